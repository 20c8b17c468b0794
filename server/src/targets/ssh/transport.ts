import type { Socket } from "node:net";
import type { Sealer } from "./ciphers.ts";
import { KeyExchange, outOfPlace } from "./exchange.ts";
import { createIdentificationReader, OWN_VERSION } from "./identification.ts";
import { decodeExtInfo, encodeExtInfo, type Role } from "./kex.ts";
import { SIGNATURE_ALGORITHMS } from "./keys.ts";
import { Output } from "./output.ts";
import { PacketReader, PacketWriter } from "./packet.ts";
import {
  DISCONNECT,
  SshError,
  type ClientTransportOptions,
  type Negotiated,
  type ServerTransportOptions,
  type Transport,
  type TransportLimits,
} from "./types.ts";
import { MSG, printable, Reader, uint32, Writer } from "./wire.ts";

/**
 * The transport layer (RFC 4253) for both roles: identification, key exchange and its repetition, packets.
 *
 * One connection goes through: identification → first key exchange → open (key exchanges now and then) → over. While keys
 * are exchanged, what is sent waits; what the peer may send then is what RFC 4253, 7.1 says, and with strict key exchange
 * nothing but the exchange itself the first time.
 */

const DEFAULT_LIMITS: TransportLimits = {
  handshakeMs: 20_000, // a slow line needs three round trips; nobody types anything in that time
  rekeyBytes: 2 ** 30, // RFC 4253, 9
  rekeyPackets: 2 ** 28, // far below where a nonce or sequence number comes again
  rekeyMs: 3_600_000, // RFC 4253, 9
  rekeyWithinMs: 300_000, // some megabytes wait in the kernel, on a line of 128 kbit/s
};

/** More than this waits in the process: `send` says false. */
const HIGH_WATER_BYTES = 256 * 1024;
/** What nobody may let wait: a peer that makes this side answer and does not read is cut. */
const MAX_PENDING_BYTES = 8 * 1024 * 1024;
/** What is left to say, at the end, is thrown away after that long. */
const FAREWELL_MS = 2_000;
/**
 * A server waits so long for the client's offer before it makes its own: long enough on a near network, where speed counts,
 * to agree on GCM with a client that prefers something slower; too short to be felt on a far one.
 */
const FIRST_OFFER_MS = 5;
/** OpenSSH's server sends two. */
const MAX_EXT_INFO = 4;

/** @throws SshError when the handshake fails; the socket is closed then */
export function createServerTransport(options: ServerTransportOptions): Promise<Transport> {
  if (options.hostKeys.length === 0) throw new TypeError("a server needs a host key");
  return new SshTransport(options.socket, { ...DEFAULT_LIMITS, ...options.limits }, { role: "server", ...options })
    .ready;
}

/** @throws SshError when the handshake fails, or what `verifyHostKey` threw; the socket is closed then */
export function createClientTransport(options: ClientTransportOptions): Promise<Transport> {
  return new SshTransport(options.socket, { ...DEFAULT_LIMITS, ...options.limits }, { role: "client", ...options })
    .ready;
}

type Side = ({ role: "server" } & ServerTransportOptions) | ({ role: "client" } & ClientTransportOptions);

const ignored = (): void => undefined;

class SshTransport implements Transport {
  readonly role: Role;
  readonly ready: Promise<Transport>;
  readonly #socket: Socket;
  readonly #limits: TransportLimits;
  readonly #identification;
  readonly #reader = new PacketReader();
  readonly #writer = new PacketWriter();
  readonly #output: Output;
  readonly #exchange: KeyExchange;
  readonly #settle = Promise.withResolvers<Transport>();

  #state: "identifying" | "handshake" | "open" | "leaving" | "over" = "identifying";
  #theirVersion = "";
  #extInfos = 0;
  #signatureAlgorithms: readonly string[] = [];

  /** Payloads that wait for the end of a key exchange. */
  #queue: Buffer[] = [];
  #queuedBytes = 0;
  #wantsDrain = false;
  /** Since the last keys: what counts for new ones, both directions. */
  #used = { bytesIn: 0, bytesOut: 0, packetsIn: 0, packetsOut: 0 };
  /** Since the last keys, of the layers above. */
  #earnedBytes = 0;
  /** OpenSSH cannot exchange keys during the login: this side asks for it only once somebody speaks of channels. */
  #loggedIn = false;

  #paused = false;
  #pumping = false;
  #sequenceInHand = 0;
  #deadline: NodeJS.Timeout | undefined;
  #firstOffer: NodeJS.Timeout | undefined;
  #rekey: NodeJS.Timeout | undefined;
  #farewell: NodeJS.Timeout | undefined;

  #onPacket: ((payload: Buffer) => void) | undefined;
  #onClose: ((error: SshError | undefined) => void) | undefined;
  #closedWith: { readonly error: SshError | undefined } | undefined;
  onDrain: () => void = ignored;

  constructor(socket: Socket, limits: TransportLimits, side: Side) {
    this.role = side.role;
    this.#socket = socket;
    this.#limits = limits;
    this.#identification = createIdentificationReader(side.role);
    this.#output = new Output(socket, this.#writer, () => this.#written());
    this.#exchange = new KeyExchange(
      { ...side, version: OWN_VERSION },
      {
        packet: (payload) => this.#output.packet([payload]),
        sealWith: (sealer) => this.#sealWith(sealer),
        openWith: (opener) => this.#reader.use(opener, this.#exchange.strict),
        theirVersion: () => this.#theirVersion,
        earnedBytes: () => this.#earnedBytes,
        verified: () => this.#pump(),
        refused: (error) => this.#fail(error, DISCONNECT.hostKeyNotVerifiable),
      },
    );
    this.ready = this.#settle.promise;
    this.#armDeadline();
    socket.setNoDelay(true);
    socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    socket.on("end", () => this.#lost());
    socket.on("error", (cause: Error) => this.#lost(cause));
    socket.on("close", () => this.#closed());
    this.#output.raw(Buffer.from(`${OWN_VERSION}\r\n`, "latin1"));
    if (socket.destroyed) process.nextTick(() => this.#closed());
  }

  get sessionId(): Buffer {
    return this.#exchange.sessionId;
  }
  get negotiated(): Negotiated {
    return this.#exchange.negotiated;
  }
  get peerVersion(): string {
    return this.#theirVersion;
  }
  get peerSignatureAlgorithms(): readonly string[] {
    return this.#signatureAlgorithms;
  }
  get pendingBytes(): number {
    return this.#output.pendingBytes + this.#queuedBytes;
  }

  get onPacket(): (payload: Buffer) => void {
    return this.#onPacket ?? ignored;
  }
  set onPacket(handler: (payload: Buffer) => void) {
    this.#onPacket = handler;
    this.#pumpSoon();
  }
  get onClose(): (error: SshError | undefined) => void {
    return this.#onClose ?? ignored;
  }
  set onClose(handler: (error: SshError | undefined) => void) {
    this.#onClose = handler;
    if (this.#closedWith !== undefined) queueMicrotask(() => this.#tellClosed());
  }

  // ---------------------------------------------------------------------------------------------------- receiving

  #receive(chunk: Buffer): void {
    if (this.#state === "leaving" || this.#state === "over") return;
    try {
      if (this.#state === "identifying") {
        const identified = this.#identification.push(chunk);
        if (identified === undefined) return;
        this.#theirVersion = identified.version;
        this.#state = "handshake";
        if (this.role === "client") this.#offer();
        else this.#firstOffer = setTimeout(() => this.#exchange.idle && this.#offer(), FIRST_OFFER_MS);
        if (identified.rest.length === 0) return;
        this.#reader.push(identified.rest);
      } else this.#reader.push(chunk);
    } catch (error) {
      return this.#fail(error);
    }
    this.#pump();
  }

  /** Whether packets stay where they are for now. */
  get #held(): boolean {
    const nobodyListens = this.#state === "open" && this.#onPacket === undefined;
    return this.#paused || nobodyListens || this.#exchange.verifying;
  }

  #pump(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      while ((this.#state === "handshake" || this.#state === "open") && !this.#held) {
        this.#sequenceInHand = this.#reader.sequence;
        const payload = this.#reader.next();
        if (payload === undefined) break;
        this.#handle(payload);
      }
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#pumping = false;
    }
    if (this.#held) this.#socket.pause();
    else if (this.#socket.isPaused()) this.#socket.resume();
  }

  #pumpSoon(): void {
    queueMicrotask(() => {
      if (this.#state !== "over") this.#pump();
    });
  }

  #handle(payload: Buffer): void {
    const type = payload[0] ?? 0;
    if (type === MSG.disconnect) return this.#theyDisconnected(payload);
    if (type >= MSG.kexInit && type < MSG.firstUserAuth) return this.#onExchange(payload);
    const { strict } = this.#exchange;
    if (this.#state !== "open" && (strict || type === 0 || type > MSG.debug)) throw outOfPlace(type, strict);
    this.#used.bytesIn += payload.length;
    this.#used.packetsIn += 1;
    if (type === MSG.ignore || type === MSG.unimplemented || type === MSG.debug) return this.#rekeyIfDue();
    if (type === 0 || (type >= MSG.newCompress && type < MSG.kexInit)) return this.unimplemented();
    // The peer promised with its SSH_MSG_KEXINIT to send nothing else until its SSH_MSG_NEWKEYS.
    if (this.#exchange.holdsPeer) throw outOfPlace(type, false);
    if (type === MSG.extInfo) return this.#onExtInfo(payload);
    this.#earnedBytes += payload.length;
    if (type >= MSG.firstConnection) this.#loggedIn = true;
    try {
      this.onPacket(payload);
    } finally {
      this.#rekeyIfDue();
    }
  }

  #onExtInfo(payload: Buffer): void {
    this.#extInfos += 1;
    if (this.#extInfos > MAX_EXT_INFO) throw protocolError("extensions were announced again and again");
    this.#signatureAlgorithms = decodeExtInfo(payload) ?? this.#signatureAlgorithms;
  }

  unimplemented(): void {
    this.#now(Buffer.of(MSG.unimplemented), uint32(this.#sequenceInHand));
  }

  // -------------------------------------------------------------------------------------------------- key exchange

  #offer(): void {
    this.#exchange.offer();
    this.#exchangeBegan();
  }

  #exchangeBegan(): void {
    for (const timer of [this.#firstOffer, this.#rekey]) clearTimeout(timer);
    if (this.#state === "open") this.#armDeadline();
  }

  #onExchange(payload: Buffer): void {
    const wasIdle = this.#exchange.idle;
    const came = this.#exchange.handle(payload, this.#sequenceInHand);
    if (came === "unknown") this.unimplemented();
    if (wasIdle && !this.#exchange.idle) this.#exchangeBegan();
    if (came === "done") this.#newKeys();
  }

  #sealWith(sealer: Sealer): void {
    this.#writer.use(sealer, this.#exchange.strict);
    // RFC 8308, 2.4: the first packet under the first keys.
    if (this.#state === "handshake" && this.role === "server" && this.#exchange.wantsExtInfo)
      this.#output.packet([encodeExtInfo(SIGNATURE_ALGORITHMS)]);
  }

  #newKeys(): void {
    this.#used = { bytesIn: 0, bytesOut: 0, packetsIn: 0, packetsOut: 0 };
    this.#earnedBytes = 0;
    clearTimeout(this.#deadline);
    this.#armRekey();
    if (this.#state === "handshake") {
      this.#state = "open";
      this.#settle.resolve(this);
    }
    this.#flushQueue();
  }

  #armRekey(): void {
    const due = (): void => {
      if (this.#loggedIn) this.#rekeyNow();
      else this.#armRekey();
    };
    this.#rekey = setTimeout(due, this.#limits.rekeyMs).unref();
  }

  #rekeyNow(): void {
    if (this.#state === "open" && this.#exchange.idle && this.#loggedIn) this.#offer();
  }

  #rekeyIfDue(): void {
    const { bytesIn, bytesOut, packetsIn, packetsOut } = this.#used;
    const { rekeyBytes, rekeyPackets } = this.#limits;
    if (bytesIn >= rekeyBytes || bytesOut >= rekeyBytes || packetsIn >= rekeyPackets || packetsOut >= rekeyPackets)
      this.#rekeyNow();
  }

  // ------------------------------------------------------------------------------------------------------- sending

  send(...payload: readonly Uint8Array[]): boolean {
    if (this.#state !== "open") return true;
    if (this.#mayNotSend) {
      const kept = Buffer.concat(payload);
      this.#queue.push(kept);
      this.#queuedBytes += kept.length;
    } else this.#write(payload);
    return this.#checkPending();
  }

  /** Between this side's SSH_MSG_KEXINIT and its SSH_MSG_NEWKEYS. */
  get #mayNotSend(): boolean {
    return this.#exchange.holdsSending || this.#queue.length > 0;
  }

  #write(payload: readonly Uint8Array[]): void {
    this.#output.packet(payload);
    if ((payload[0]?.[0] ?? 0) >= MSG.firstConnection) this.#loggedIn = true;
    for (const part of payload) {
      this.#used.bytesOut += part.length;
      this.#earnedBytes += part.length;
    }
    this.#used.packetsOut += 1;
    this.#rekeyIfDue();
  }

  /** Messages of the transport itself, which may be sent at any time after the first keys. */
  #now(...payload: readonly Uint8Array[]): void {
    this.#output.packet(payload);
    this.#checkPending();
  }

  #checkPending(): boolean {
    const pending = this.pendingBytes;
    if (pending > MAX_PENDING_BYTES) {
      // Not from inside of the caller's work.
      queueMicrotask(() =>
        this.#fail(new SshError(DISCONNECT.byApplication, "the other side does not read what it is sent")),
      );
    }
    if (pending <= HIGH_WATER_BYTES) return true;
    this.#wantsDrain = true;
    return false;
  }

  #flushQueue(): void {
    const waiting = this.#queue;
    this.#queue = [];
    this.#queuedBytes = 0;
    for (const [i, payload] of waiting.entries()) {
      this.#write([payload]);
      if (!this.#exchange.holdsSending) continue;
      // So much waited that new keys are due again.
      this.#queue = waiting.slice(i + 1);
      for (const { length } of this.#queue) this.#queuedBytes += length;
      return;
    }
    this.#written();
  }

  #written(): void {
    if (!this.#wantsDrain || this.pendingBytes > HIGH_WATER_BYTES / 2 || this.#state !== "open") return;
    this.#wantsDrain = false;
    try {
      this.onDrain();
    } catch (error) {
      this.#fail(error);
    }
  }

  pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#pumpSoon();
  }

  // ---------------------------------------------------------------------------------------------------- the end

  #armDeadline(): void {
    clearTimeout(this.#deadline);
    const { handshakeMs, rekeyWithinMs } = this.#limits;
    const withinMs = this.#state === "open" ? rekeyWithinMs : handshakeMs;
    this.#deadline = setTimeout(() => {
      if (this.#held && !this.#exchange.verifying) return this.#armDeadline(); // it is this side that does not read
      const { said } = this.#identification;
      const what = this.#state === "identifying" ? "no identification" : "no end of the key exchange";
      const instead = this.#state === "identifying" && said !== "" ? `; it said: ${said}` : "";
      this.#fail(new SshError(DISCONNECT.connectionLost, `${what} within ${withinMs} ms${instead}`));
    }, withinMs);
  }

  #theyDisconnected(payload: Buffer): void {
    const reader = new Reader(payload, 1);
    const reason = reader.uint32();
    const text = printable(reader.string().toString("utf8"));
    if (reason === DISCONNECT.byApplication && this.#state === "open") return this.#over(undefined);
    this.#over(new SshError(reason, `the other side disconnected: ${text === "" ? `reason ${reason}` : text}`));
  }

  /** The peer's end of the stream, or the socket's error. */
  #lost(cause?: Error): void {
    if (this.#state === "leaving") return void (cause === undefined || this.#socket.destroy());
    const { said } = this.#identification;
    const instead = this.#state === "identifying" && said !== "" ? `; it said: ${said}` : "";
    const what =
      cause === undefined ? "the other side closed the connection" : `the connection broke: ${cause.message}`;
    this.#over(new SshError(DISCONNECT.connectionLost, what + instead, cause === undefined ? undefined : { cause }));
  }

  #closed(): void {
    if (this.#state === "leaving") this.#over(undefined);
    else this.#lost();
  }

  /** This side ends the connection because of an error: the peer is told, whoever uses the transport too. */
  #fail(error: unknown, reason?: number): void {
    if (this.#state === "over" || this.#state === "leaving") return;
    const known = error instanceof SshError;
    const code = known ? error.reason : (reason ?? DISCONNECT.byApplication);
    const told = known ? error.message : reason === undefined ? "internal error" : "the host key was not accepted";
    if (this.#state !== "identifying") this.#output.packet([encodeDisconnect(code, told)]);
    const failure = known ? error : new SshError(code, error instanceof Error ? error.message : told, { cause: error });
    this.#over(failure, known || reason === undefined ? failure : error);
  }

  disconnect(reason: number, text: string): void {
    if (this.#state === "over" || this.#state === "leaving") return;
    if (this.#state !== "open") return this.#over(undefined);
    // What was said before is sent first; while keys are exchanged it cannot be, and the end does not wait for them.
    this.#output.packet([encodeDisconnect(reason, text)]);
    this.#state = "leaving";
    this.#forget();
    this.#output.end();
    this.#socket.resume(); // what still comes is thrown away; without reading, the end of the stream would not be seen
    this.#farewell = setTimeout(() => this.#socket.destroy(), FAREWELL_MS);
  }

  destroy(): void {
    if (this.#state === "over") return;
    this.#output.drop();
    this.#socket.destroy();
    this.#over(undefined);
  }

  /** @param rejection what the handshake's promise is rejected with, if that is not `error` */
  #over(error: SshError | undefined, rejection: unknown = error): void {
    if (this.#state === "over") return;
    this.#state = "over";
    this.#forget();
    clearTimeout(this.#farewell);
    if (!this.#socket.destroyed) {
      this.#output.end();
      this.#socket.resume();
      const timer = setTimeout(() => this.#socket.destroy(), FAREWELL_MS);
      this.#socket.once("close", () => clearTimeout(timer));
    }
    const early = new SshError(DISCONNECT.connectionLost, "the connection ended before it began");
    this.#settle.reject(rejection ?? early); // of no effect after the handshake
    this.#closedWith = { error };
    this.#tellClosed();
  }

  #forget(): void {
    for (const timer of [this.#deadline, this.#firstOffer, this.#rekey]) clearTimeout(timer);
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#exchange.stop();
  }

  #tellClosed(): void {
    const handler = this.#onClose;
    const closed = this.#closedWith;
    if (handler === undefined || closed === undefined) return;
    this.#onClose = ignored;
    this.#closedWith = undefined;
    handler(closed.error);
  }
}

function encodeDisconnect(reason: number, text: string): Buffer {
  return new Writer().byte(MSG.disconnect).uint32(reason).string(printable(text, 1000)).string("").done();
}

function protocolError(what: string): SshError {
  return new SshError(DISCONNECT.protocolError, what);
}
