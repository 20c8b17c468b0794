import type { Socket } from "node:net";

/**
 * The layers of SSH as this folder divides them, each an interface to the next: transport (RFC 4253), authentication
 * (RFC 4252) and connection (RFC 4254). The same code speaks as server (towards the user's client) and as client (towards
 * the target's sshd). No I/O happens in this file.
 */

// ------------------------------------------------------------------------------------------------------- transport

/** A key that can sign as an SSH host or user. `blob` is what goes over the wire: a public key, or a certificate. */
export interface Signer {
  /** Name of the public key algorithm as negotiated, such as `ssh-ed25519` or `ssh-ed25519-cert-v01@openssh.com`. */
  readonly algorithm: string;
  readonly blob: Uint8Array;
  /** An SSH signature blob (RFC 4253, 6.6) that names the plain key algorithm, also where `algorithm` is a certificate's. */
  sign(data: Uint8Array): Buffer;
}

export interface Negotiated {
  readonly kex: string;
  readonly hostKey: string;
  /** Whether both sides keep to OpenSSH's strict key exchange. */
  readonly strict: boolean;
  readonly cipher: { readonly in: string; readonly out: string };
}

export interface TransportLimits {
  /** From the first byte to the end of the first key exchange, in ms. */
  readonly handshakeMs: number;
  /** Bytes or packets under one key, in either direction, after which new keys are negotiated. */
  readonly rekeyBytes: number;
  readonly rekeyPackets: number;
  /** Time under one key after which new keys are negotiated, in ms. */
  readonly rekeyMs: number;
  /** From the offer of new keys to their use, in ms: long, because what is under way on a slow line comes first. */
  readonly rekeyWithinMs: number;
}

interface TransportStart {
  readonly socket: Socket;
  readonly limits?: Partial<TransportLimits>;
}
export interface ServerTransportOptions extends TransportStart {
  /** The first is preferred. */
  readonly hostKeys: readonly Signer[];
}
export interface ClientTransportOptions extends TransportStart {
  /**
   * Decides on the server's key or certificate, at each key exchange. Rejects with what the person is told.
   * The signature over the exchange hash has been verified already.
   */
  verifyHostKey(key: { algorithm: string; blob: Buffer }): Promise<void> | void;
  /** Host key algorithms that the verifier can judge, most wanted first; all that this build knows where absent. */
  readonly hostKeyAlgorithms?: readonly string[];
}

/** One SSH connection after its first key exchange. Rekeying happens inside and is not seen from here. */
export interface Transport {
  readonly role: "server" | "client";
  /** Hash of the first key exchange (RFC 4253, 7.2). */
  readonly sessionId: Buffer;
  /** The peer's identification line without its line end, such as `SSH-2.0-OpenSSH_9.2p1 Debian-2`; printable ASCII. */
  readonly peerVersion: string;
  readonly negotiated: Negotiated;
  /** Signature algorithms that the peer announced (RFC 8308, `server-sig-algs`); empty where it said nothing. */
  readonly peerSignatureAlgorithms: readonly string[];
  /**
   * Sends one packet with that payload (message number first). Queued while keys are exchanged. Does nothing after the end.
   * The bytes are taken before it returns.
   * @returns false while more than the high-water mark waits in this process; `onDrain` says when to go on.
   */
  send(...payload: readonly Uint8Array[]): boolean;
  readonly pendingBytes: number;
  /**
   * Every packet of messages 5 and 6 (service request and accept) and 50 to 255, in order. Those that come before it is set
   * for the first time wait. `payload` may be read until the handler returns; copy what is kept. After
   * that its memory may be gone, and its `length` is 0 then.
   */
  onPacket: (payload: Buffer) => void;
  onDrain: () => void;
  /** Once. `error` is undefined where the peer disconnected in good order or this side did. */
  onClose: (error: SshError | undefined) => void;
  /** Stops reading from the socket, for back-pressure over all channels; keepalive and rekeying then wait too. */
  pause(): void;
  resume(): void;
  /** Answers SSH_MSG_UNIMPLEMENTED to the packet that is being handled. */
  unimplemented(): void;
  /** SSH_MSG_DISCONNECT (RFC 4253, 11.1), then closes the socket once it is sent. Text: printable, any language. */
  disconnect(reason: number, text: string): void;
  /** Closes the socket now. */
  destroy(): void;
}

/** What the peer did wrong, or what became of the connection. `reason` is a code of RFC 4253, 11.1. */
export class SshError extends Error {
  readonly reason: number;
  constructor(reason: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "SshError";
    this.reason = reason;
  }
}

/** Reason codes of SSH_MSG_DISCONNECT (RFC 4253, 11.1). */
export const DISCONNECT = {
  hostNotAllowed: 1,
  protocolError: 2,
  keyExchangeFailed: 3,
  macError: 5,
  serviceNotAvailable: 7,
  versionNotSupported: 8,
  hostKeyNotVerifiable: 9,
  connectionLost: 10,
  byApplication: 11,
  tooManyConnections: 12,
  noMoreAuthMethods: 14,
  illegalUserName: 15,
} as const;

// ------------------------------------------------------------------------------------------------------ connection

/** Reasons of SSH_MSG_CHANNEL_OPEN_FAILURE (RFC 4254, 5.1). */
export const OPEN_FAILURE = {
  administrativelyProhibited: 1,
  connectFailed: 2,
  unknownChannelType: 3,
  resourceShortage: 4,
} as const;

/** `session`, `direct-tcpip`, … with the data that is specific to the type, unparsed. */
export interface ChannelOpen {
  readonly type: string;
  readonly data: Buffer;
}

/** A request on a channel, or a global one. `data` is what follows want-reply, unparsed. */
export interface Request {
  readonly type: string;
  readonly wantReply: boolean;
  readonly data: Buffer;
}

/** Data on a channel: 0 is the main stream, 1 is SSH_EXTENDED_DATA_STDERR; other codes of extended data as they are. */
export type Stream = number;

/** The multiplexed part of one SSH connection. */
export interface Connection {
  readonly channels: number;
  /** @throws OpenRefused as the peer said; SshError when the connection ended. */
  open(type: string, data: Uint8Array, handlers: ChannelHandlers): Promise<Channel>;
  /** Resolves to whether the peer said yes (at once `true` without `wantReply`), in the order in which they were sent. */
  request(type: string, wantReply: boolean, data: Uint8Array): Promise<{ ok: boolean; data: Buffer }>;
  /** While true, nothing is read from the peer: whoever deals with what it asks for is behind. */
  hold(on: boolean): void;
  /** Ends all channels' handlers with `onClose` and the transport with it. */
  disconnect(reason: number, text: string): void;
  /**
   * The same for whoever is to read what was written last: the peer is told only when it has taken that, or after a moment.
   * OpenSSH's client ends at a disconnect, and what it has not shown by then is lost. What the peer sends is thrown away.
   */
  farewell(reason: number, text: string): void;
  destroy(): void;
}

export interface ConnectionHandlers {
  /** Answers with handlers for the new channel, or refuses it by throwing OpenRefused. May take its time. */
  onOpen(open: ChannelOpen, accept: Accept): void;
  /** Answers in order whatever the time each takes; a rejection is answered with failure. */
  onRequest(request: Request): Promise<{ ok: boolean; data?: Uint8Array }>;
  /** Something on this side failed, not the peer. The connection ends, and `onClose` follows. */
  onDefect?(error: unknown): void;
  onClose(error: SshError | undefined): void;
}

export interface Accept {
  accept(handlers: ChannelHandlers, data?: Uint8Array): Channel;
  /** A code of {@link OPEN_FAILURE} and a sentence that clients show. */
  refuse(reason: number, text: string): void;
}

export class OpenRefused extends Error {
  readonly reason: number;
  constructor(reason: number, message: string) {
    super(message);
    this.name = "OpenRefused";
    this.reason = reason;
  }
}

export interface ChannelHandlers {
  /** The bytes, and their `length`, may be read until it returns; copy what is kept. Say `channel.consumed(n)` when they are dealt with. */
  onData(data: Buffer, stream: Stream): void;
  /**
   * Requests are answered in the order in which they came, whatever the time each takes. They are heard after `close` too,
   * until the peer closes: an sshd tells of a program's exit then.
   */
  onRequest(request: Request): Promise<boolean>;
  /** Everything that was written has been handed to the socket. */
  onDrain?(): void;
  onEof(): void;
  /**
   * The peer closed its direction: what is written from here is dropped, but requests still reach it (an exit status) until
   * `channel.close()`, which is then owed. Without this handler the close is answered at once (RFC 4254, 5.3).
   */
  onClosing?(): void;
  /** The last one: both directions are over, or the connection is. */
  onClose(): void;
}

export interface Channel {
  readonly id: number;
  /**
   * Queues data within what the peer's window lets through; the bytes are taken (copied only where they must wait).
   * `sent` runs when all of it was handed to the transport, which may be before this returns; never, where the channel ends
   * before.
   */
  write(data: Uint8Array, stream?: Stream, sent?: () => void): void;
  /** Bytes that wait for the peer's window or for the socket. */
  readonly pendingBytes: number;
  /** Bytes from `onData` that are dealt with: gives the peer room for as many. The peer can never be further ahead than the window. */
  consumed(bytes: number): void;
  /** `false` for a failure, and for an answer that never came. At once `true` without `wantReply`. */
  request(type: string, wantReply: boolean, data: Uint8Array): Promise<boolean>;
  /** After what is queued. */
  eof(): void;
  /** After what is queued. Idempotent. */
  close(): void;
  /** Forgets what is queued and closes. */
  abort(): void;
}
