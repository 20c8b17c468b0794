import { KEEPALIVE, MESSAGE, SshChannel, violation, type Mux } from "./channel.ts";
import { takeOver } from "./held.ts";
import {
  DISCONNECT,
  OPEN_FAILURE,
  OpenRefused,
  SshError,
  type Accept,
  type Channel,
  type ChannelHandlers,
  type Connection,
  type ConnectionHandlers,
  type Request,
  type Transport,
} from "./types.ts";
import { printable, Reader, Writer } from "./wire.ts";

export interface ConnectionLimits {
  /** Channels at once, being opened or open, of both sides. */
  readonly channels: number;
  /** What a peer may send on one channel ahead of `consumed`. */
  readonly windowBytes: number;
  /** The most that is taken in one packet of data, and sent. */
  readonly packetBytes: number;
  /** Packets of data, on all channels, that handlers may have and not have dealt with: tiny ones cost more than their bytes. */
  readonly waitingPackets: number;
}

const DEFAULTS: ConnectionLimits = {
  channels: 256,
  windowBytes: 2 * 1024 * 1024, // as OpenSSH; 100 MB/s over 20 ms
  packetBytes: 32 * 1024,
  waitingPackets: 131_072,
};

/**
 * So many channels get a whole window, those beyond them little: what may wait in this process for slow readers, on all
 * channels of a connection, stays below 64 MiB each way.
 */
const WHOLE_WINDOWS = 16;
const SMALL_WINDOW_BYTES = 128 * 1024;

/** The smallest packet of data that a peer may limit us to: below, every byte costs a multiple of itself. */
const MIN_PACKET_BYTES = 256;
/** Names of hosts and sockets, the longest of what an open carries, are far below. */
const MAX_OPEN_BYTES = 16 * 1024;
const MAX_GLOBAL_REQUEST_BYTES = 64 * 1024;
const MAX_UNANSWERED = 64;
/** Answers to a peer that does not read them may grow to this; then nothing more is read from it. */
const MAX_REPLY_BYTES = 1024 * 1024;

/** How long a peer may take to read the last words. */
const FAREWELL_MS = 500;

/** Global requests that are about the connection itself, answered here. */
const NO_MORE_SESSIONS = "no-more-sessions@openssh.com";
/** Host keys that OpenSSH would like a client to remember; ours are in the target's file. */
const HOST_KEYS = "hostkeys-00@openssh.com";

/** Numbers of user authentication (RFC 4252, 6). */
const USERAUTH_REQUEST = 50;

interface Opening {
  readonly handlers: ChannelHandlers;
  readonly windowBytes: number;
  readonly resolve: (channel: Channel) => void;
  readonly reject: (error: OpenRefused | SshError) => void;
}

interface Global {
  readonly wantReply: boolean;
  readonly bytes: number;
  answer: { ok: boolean; data?: Uint8Array } | undefined;
}

/** The connection protocol (RFC 4254) on an authenticated transport, for both roles. Takes over the transport's handlers. */
export function createConnection(
  transport: Transport,
  handlers: ConnectionHandlers,
  limits: Partial<ConnectionLimits> = {},
): Connection {
  const { channels: maxChannels, windowBytes, packetBytes, waitingPackets } = { ...DEFAULTS, ...limits };
  const channels = new Map<number, SshChannel>();
  const opening = new Map<number, Opening>();
  /** Channels that the peer opens, by its numbers; and those of all its open ones. */
  const peerOpening = new Set<number>();
  const peerNumbers = new Set<number>();
  const asked: ((answer: { ok: boolean; data: Buffer }) => void)[] = [];
  const globals: Global[] = [];
  const ready: SshChannel[] = [];
  let nextId = 0;
  let blocked = false;
  let flooded = false; // answers wait that the peer does not read
  let heldBack = false; // somebody asked for it
  let paused = false;
  let turning = false;
  let sessionsOver = false;
  let waiting = 0;
  let over: { readonly error: SshError | undefined } | undefined;
  /** Over, but for the disconnect, which waits behind that many answers. */
  let leaving: { owed: number; readonly go: () => void } | undefined;

  const send = (...payload: readonly Uint8Array[]): void => {
    if (over !== undefined) return;
    if (!transport.send(...payload)) blocked = true;
    if (!flooded && transport.pendingBytes > MAX_REPLY_BYTES) {
      flooded = true;
      pace();
    }
  };

  const pace = (): void => {
    const before = paused;
    paused = flooded || heldBack;
    if (paused && !before) transport.pause();
    else if (before && !paused) transport.resume();
  };

  /** One packet of each channel that wants to send, in turn, until the socket has enough. */
  const takeTurns = (): void => {
    if (turning) return;
    turning = true;
    while (!blocked && over === undefined) {
      const channel = ready.shift();
      if (channel === undefined) break;
      guard(() => channel.turn());
    }
    turning = false;
  };

  const end = (error: SshError | undefined): void => {
    if (over !== undefined) return;
    over = { error };
    const reason = error ?? new SshError(DISCONNECT.connectionLost, "the connection is over");
    for (const { reject } of opening.values()) reject(reason);
    opening.clear();
    for (const answer of asked.splice(0)) answer({ ok: false, data: Buffer.alloc(0) });
    globals.length = 0;
    ready.length = 0;
    for (const channel of channels.values()) channel.end();
    peerOpening.clear();
    try {
      handlers.onClose(error);
    } catch {
      // There is nothing left to end.
    }
  };

  const fail = (error: unknown): void => {
    if (over !== undefined) return;
    // What is no violation of the peer's is a defect here, whose words are not for the peer.
    if (!(error instanceof SshError)) handlers.onDefect?.(error);
    const known =
      error instanceof SshError ? error : new SshError(DISCONNECT.byApplication, "internal error", { cause: error });
    transport.disconnect(known.reason, known.message);
    end(known);
  };

  const guard = (run: () => void): void => {
    try {
      run();
    } catch (error) {
      fail(error);
    }
  };

  const mux: Mux = {
    send,
    guard,
    get blocked() {
      return blocked || over !== undefined;
    },
    queue(channel) {
      ready.push(channel);
      takeTurns();
    },
    waiting(packets) {
      waiting += packets;
      if (waiting > waitingPackets) throw violation("too many small packets that nobody has read");
    },
    closed(channel) {
      channels.delete(channel.id);
      peerNumbers.delete(channel.peerId);
    },
  };

  // ------------------------------------------------------------------------------------------------- channels

  const open = (
    id: number,
    peer: { id: number; window: number; packet: number },
    room: number,
    to: ChannelHandlers,
  ): SshChannel => {
    const channel = new SshChannel(
      mux,
      {
        ...{ id, peerId: peer.id, peerWindow: peer.window, windowBytes: room, packetBytes },
        peerPacket: Math.min(peer.packet, packetBytes),
      },
      to,
    );
    channels.set(id, channel);
    peerNumbers.add(peer.id);
    return channel;
  };

  const newId = (): number => {
    do nextId = (nextId + 1) >>> 0;
    while (channels.has(nextId) || opening.has(nextId));
    return nextId;
  };

  const count = (): number => channels.size + opening.size + peerOpening.size;

  const nextWindow = (): number => (count() < WHOLE_WINDOWS ? windowBytes : Math.min(windowBytes, SMALL_WINDOW_BYTES));

  const gotOpen = (reader: Reader): void => {
    const type = reader.name();
    const peer = { id: reader.uint32(), window: reader.uint32(), packet: reader.uint32() };
    const data = reader.rest();
    if (peerNumbers.has(peer.id) || peerOpening.has(peer.id))
      throw violation("a channel with the number of an open one");
    const refuse = (reason: number, text: string): void => {
      peerOpening.delete(peer.id);
      const head = new Writer().byte(MESSAGE.openFailure).uint32(peer.id).uint32(reason);
      send(head.string(printable(text, 1000)).string("").done());
    };
    const { administrativelyProhibited, resourceShortage } = OPEN_FAILURE;
    if (count() >= maxChannels) return refuse(resourceShortage, `no more than ${maxChannels} channels at once`);
    if (peer.packet < MIN_PACKET_BYTES)
      return refuse(resourceShortage, `packets of at least ${MIN_PACKET_BYTES} bytes are needed`);
    if (data.length > MAX_OPEN_BYTES) return refuse(resourceShortage, "that is too long");
    if (type === "session" && sessionsOver)
      return refuse(administrativelyProhibited, "the client said: no more sessions");
    peerOpening.add(peer.id);
    let answered = false;
    const answer = (): boolean => {
      const first = !answered;
      answered = true;
      return first && over === undefined;
    };
    const accept: Accept = {
      accept(to, extra = Buffer.alloc(0)) {
        const live = answer();
        peerOpening.delete(peer.id);
        const [id, room] = [newId(), nextWindow()];
        const head = new Writer().byte(MESSAGE.openConfirmation).uint32(peer.id).uint32(id);
        if (live) send(head.uint32(room).uint32(packetBytes).raw(extra).done());
        const channel = open(id, peer, room, to);
        if (!live) channel.end();
        return channel;
      },
      refuse(reason, text) {
        if (answer()) refuse(reason, text);
      },
    };
    try {
      handlers.onOpen({ type, data: Buffer.from(data) }, accept);
    } catch (error) {
      if (!(error instanceof OpenRefused)) throw error;
      accept.refuse(error.reason, error.message);
    }
  };

  const gotConfirmation = (reader: Reader): void => {
    const id = reader.uint32();
    const peer = { id: reader.uint32(), window: reader.uint32(), packet: reader.uint32() };
    if (peerNumbers.has(peer.id) || peerOpening.has(peer.id))
      throw violation("a channel with the number of an open one");
    if (peer.packet < MIN_PACKET_BYTES) throw violation("a channel that takes next to nothing in a packet");
    const { handlers: to, windowBytes: room, resolve } = takeOpening(id);
    const channel = open(id, peer, room, to);
    channel.hold();
    resolve(channel);
  };

  const gotRefusal = (reader: Reader): void => {
    const [id, reason, text] = [reader.uint32(), reader.uint32(), reader.string()];
    takeOpening(id).reject(new OpenRefused(reason, printable(text.toString("utf8"), 1000)));
  };

  /** Whoever takes it settles it: a violation after this would leave the opener waiting for ever. */
  const takeOpening = (id: number): Opening => {
    const found = opening.get(id);
    if (found === undefined) throw violation("an answer for a channel that was not asked for");
    opening.delete(id);
    return found;
  };

  const channelOf = (reader: Reader): SshChannel => {
    const channel = channels.get(reader.uint32());
    if (channel === undefined) throw violation("a message for a channel that is not open");
    return channel;
  };

  const gotChannelRequest = (reader: Reader): void => {
    const id = reader.uint32();
    const channel = channels.get(id);
    const request = readRequest(reader);
    if (channel !== undefined) return channel.gotRequest(request);
    const wasOpen = id > 0 && id <= nextId && !opening.has(id);
    if (!wasOpen || request.type !== KEEPALIVE) throw violation("a message for a channel that is not open");
  };

  // ------------------------------------------------------------------------------------------- global requests

  const gotGlobal = (reader: Reader): void => {
    const request = readRequest(reader);
    if (request.data.length > MAX_GLOBAL_REQUEST_BYTES) throw violation("a global request that is too long");
    const global: Global = { wantReply: request.wantReply, bytes: request.data.length, answer: undefined };
    globals.push(global);
    if (globals.length > MAX_UNANSWERED) throw violation("more global requests than can be answered");
    const answer = (given: { ok: boolean; data?: Uint8Array }): void => {
      global.answer = given;
      for (let [first] = globals; first?.answer !== undefined; [first] = globals) {
        globals.shift();
        if (!first.wantReply) continue;
        if (first.answer.ok) send(Buffer.of(MESSAGE.requestSuccess), first.answer.data ?? Buffer.alloc(0));
        else send(Buffer.of(MESSAGE.requestFailure));
      }
    };
    switch (request.type) {
      case KEEPALIVE:
      case HOST_KEYS:
        return answer({ ok: false });
      case NO_MORE_SESSIONS:
        sessionsOver ||= transport.role === "server";
        return answer({ ok: transport.role === "server" });
      default: {
        const copy = { ...request, data: Buffer.from(request.data) };
        void settle(() => handlers.onRequest(copy)).then(answer, () => answer({ ok: false }));
      }
    }
  };

  const gotGlobalAnswer = (ok: boolean, data: Buffer): void => {
    const resolve = asked.shift();
    if (resolve === undefined) throw violation("an answer to a global request that was not made");
    resolve({ ok, data: Buffer.from(data) });
  };

  // -------------------------------------------------------------------------------------------------- packets

  const dispatch = (payload: Buffer): void => {
    const reader = new Reader(payload, 1);
    switch (payload[0]) {
      case MESSAGE.data: {
        const channel = channelOf(reader);
        const data = reader.string();
        reader.end();
        return channel.gotData(data, 0);
      }
      case MESSAGE.extendedData: {
        const channel = channelOf(reader);
        const stream = reader.uint32();
        // Type 0 is not defined, and would be the main stream here.
        if (stream === 0) throw violation("extended data without a type");
        const data = reader.string();
        reader.end();
        return channel.gotData(data, stream);
      }
      case MESSAGE.windowAdjust: {
        const channel = channelOf(reader);
        const bytes = reader.uint32();
        reader.end();
        return channel.gotAdjust(bytes);
      }
      case MESSAGE.eof:
        return only(reader).gotEof();
      case MESSAGE.close:
        return only(reader).gotClose();
      case MESSAGE.success:
        return only(reader).gotAnswer(true);
      case MESSAGE.failure:
        return only(reader).gotAnswer(false);
      case MESSAGE.request:
        return gotChannelRequest(reader);
      case MESSAGE.open:
        return gotOpen(reader);
      case MESSAGE.openConfirmation:
        return gotConfirmation(reader);
      case MESSAGE.openFailure:
        return gotRefusal(reader);
      case MESSAGE.globalRequest:
        return gotGlobal(reader);
      case MESSAGE.requestSuccess:
        return gotGlobalAnswer(true, reader.rest());
      case MESSAGE.requestFailure:
        reader.end();
        return gotGlobalAnswer(false, Buffer.alloc(0));
      case USERAUTH_REQUEST:
        // RFC 4252, 5.1: requests that come after the one that succeeded are ignored.
        if (transport.role === "server") return;
        return transport.unimplemented();
      default:
        return transport.unimplemented();
    }
  };

  const only = (reader: Reader): SshChannel => {
    const channel = channelOf(reader);
    reader.end();
    return channel;
  };

  takeOver(transport, {
    onPacket(payload) {
      if (over === undefined) return guard(() => dispatch(payload));
      if (payload[0] !== MESSAGE.requestSuccess && payload[0] !== MESSAGE.requestFailure) return;
      if (leaving === undefined) return;
      leaving.owed -= 1;
      if (leaving.owed === 0) leaving.go();
    },
    onDrain() {
      blocked = false;
      flooded = false;
      pace();
      takeTurns();
    },
    onClose: end,
  });

  return {
    get channels() {
      return channels.size;
    },
    open(type, data, to) {
      if (over !== undefined)
        return Promise.reject(over.error ?? new SshError(DISCONNECT.connectionLost, "the connection is over"));
      if (count() >= maxChannels) {
        return Promise.reject(
          new OpenRefused(OPEN_FAILURE.resourceShortage, `no more than ${maxChannels} channels at once`),
        );
      }
      const { promise, resolve, reject } = Promise.withResolvers<Channel>();
      const [id, room] = [newId(), nextWindow()];
      opening.set(id, { handlers: to, windowBytes: room, resolve, reject });
      const head = new Writer().byte(MESSAGE.open).string(type).uint32(id);
      send(head.uint32(room).uint32(packetBytes).raw(data).done());
      return promise;
    },
    request(type, wantReply, data) {
      if (over !== undefined) return Promise.resolve({ ok: false, data: Buffer.alloc(0) });
      send(new Writer().byte(MESSAGE.globalRequest).string(type).boolean(wantReply).raw(data).done());
      if (!wantReply) return Promise.resolve({ ok: true, data: Buffer.alloc(0) });
      const { promise, resolve } = Promise.withResolvers<{ ok: boolean; data: Buffer }>();
      asked.push(resolve);
      return promise;
    },
    hold(on) {
      heldBack = on;
      if (over === undefined) pace();
    },
    disconnect(reason, text) {
      if (over !== undefined) return;
      transport.disconnect(reason, text);
      end(undefined);
    },
    farewell(reason, text) {
      if (over !== undefined) return;
      const owed = asked.length + 1;
      // Packets are taken in order, so an answer to any question says that all before it were.
      send(new Writer().byte(MESSAGE.globalRequest).string(KEEPALIVE).boolean(true).done());
      end(undefined);
      const go = (): void => {
        clearTimeout(timer);
        leaving = undefined;
        transport.disconnect(reason, text);
      };
      const timer = setTimeout(go, FAREWELL_MS);
      leaving = { owed, go };
      if (paused) transport.resume();
    },
    destroy() {
      transport.destroy();
      end(undefined);
    },
  };
}

function readRequest(reader: Reader): Request {
  return { type: reader.name(), wantReply: reader.boolean(), data: reader.rest() };
}

async function settle<T>(run: () => Promise<T>): Promise<T> {
  return run();
}
