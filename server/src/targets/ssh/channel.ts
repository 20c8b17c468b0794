import { giveBack } from "./give-back.ts";
import { DISCONNECT, SshError, type Channel, type ChannelHandlers, type Request, type Stream } from "./types.ts";
import { Writer } from "./wire.ts";

/** Message numbers of the connection protocol (RFC 4254, 9). */
export const MESSAGE = {
  globalRequest: 80,
  requestSuccess: 81,
  requestFailure: 82,
  open: 90,
  openConfirmation: 91,
  openFailure: 92,
  windowAdjust: 93,
  data: 94,
  extendedData: 95,
  eof: 96,
  close: 97,
  request: 98,
  success: 99,
  failure: 100,
} as const;

/** What a channel needs of its connection. */
export interface Mux {
  send(...payload: readonly Uint8Array[]): void;
  /** Whether the socket has enough to do: then data waits for its turn. */
  readonly blocked: boolean;
  /** Puts the channel at the end of those that want to send data. Once per turn. */
  queue(channel: SshChannel): void;
  /** So many data packets more (or fewer) were handed to handlers that have not dealt with them. */
  waiting(packets: number): void;
  /** Runs handlers' code; what it throws ends the connection. */
  guard(run: () => void): void;
  closed(channel: SshChannel): void;
}

/** Both sides of a channel's numbers and rooms, as the open and its confirmation say (RFC 4254, 5.1). */
export interface ChannelNumbers {
  readonly id: number;
  readonly peerId: number;
  /** What may be sent, and how much of it in one packet. */
  readonly peerWindow: number;
  readonly peerPacket: number;
  /** What the peer may send. */
  readonly windowBytes: number;
  readonly packetBytes: number;
}

/**
 * Asks for a sign of life. An sshd with ClientAliveInterval sends it on the first channel that it still has, also on one
 * that it has closed and whose close has not been answered yet: nothing that is worth a connection.
 */
export const KEEPALIVE = "keepalive@openssh.com";

/** Requests of the peer that nobody has answered yet: clients send a handful; more is a flood. */
const MAX_UNANSWERED = 64;
/** Those that want no answer come in bursts: a client may send its whole environment at once. */
const MAX_UNHANDLED = 1024;
const MAX_UNHANDLED_BYTES = 1024 * 1024;
const MAX_UINT32 = 0xffff_ffff;
/** Writes below half of it that have to wait are put together. */
const SLAB_BYTES = 4096;
/** Window is given back in steps of so many packets: an adjustment for each would double the number of packets. */
const STEP_PACKETS = 3;

interface Waiting {
  bytes: Buffer;
  /** How much of `bytes` is filled, and how much of that was sent. */
  end: number;
  start: number;
  readonly stream: Stream;
  sent: (() => void)[];
}

/** A request that wants an answer. */
interface Unanswered {
  answer: boolean | undefined;
}

/**
 * One channel (RFC 4254, 5). After `abort` nothing but `onClose` is heard of it; after `close` its requests are, too, because
 * an sshd tells of a program's exit after it was asked to close. A graceful close goes out after everything that was written
 * and after the answers to the peer's requests.
 */
export class SshChannel implements Channel {
  readonly id: number;
  readonly #mux: Mux;
  readonly #numbers: ChannelNumbers;
  #handlers: ChannelHandlers;

  #peerWindow: number;
  readonly #queue: Waiting[] = [];
  #pendingBytes = 0;
  #queued = false; // with the mux
  /** What follows the queue, and what of it was sent already. */
  #wish: "nothing" | "eof" | "close" = "nothing";
  #eofWished = false;
  #sent: "nothing" | "eof" | "close" = "nothing";

  /** What the peer may still send; what handlers have and have not dealt with; what they have, but the peer was not told. */
  #room: number;
  #outstanding = 0;
  #outstandingPackets = 0;
  #unreturned = 0;
  #received: "nothing" | "eof" | "close" = "nothing";

  /** The peer's requests whose answers are owed, in order; and all that handlers are working on. */
  readonly #owed: Unanswered[] = [];
  #unhandled = 0;
  #unhandledBytes = 0;
  readonly #asked: ((ok: boolean) => void)[] = [];

  /** Whoever has the handlers said close or abort: from there they hear of no data; after an abort of `onClose` alone. */
  #leftAlone = false;
  #aborted = false;
  /** Events that came before whoever opened the channel can know of it. */
  #held: (() => void)[] | undefined;

  readonly #dataHeader = Buffer.alloc(9);
  readonly #extendedHeader = Buffer.alloc(13);

  constructor(mux: Mux, numbers: ChannelNumbers, handlers: ChannelHandlers) {
    this.#mux = mux;
    this.#numbers = numbers;
    this.#handlers = handlers;
    this.id = numbers.id;
    this.#peerWindow = numbers.peerWindow;
    this.#room = numbers.windowBytes;
    this.#dataHeader[0] = MESSAGE.data;
    this.#dataHeader.writeUInt32BE(numbers.peerId, 1);
    this.#extendedHeader[0] = MESSAGE.extendedData;
    this.#extendedHeader.writeUInt32BE(numbers.peerId, 1);
  }

  get peerId(): number {
    return this.#numbers.peerId;
  }

  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  // --------------------------------------------------------------------------------------------------- sending

  write(data: Uint8Array, stream: Stream = 0, sent?: () => void): void {
    if (this.#wish !== "nothing" || this.#sent !== "nothing" || this.#received === "close") return;
    let start = 0;
    if (this.#queue.length === 0 && !this.#mux.blocked) {
      while (start < data.length && this.#peerWindow > 0 && !this.#mux.blocked) {
        const end = Math.min(data.length, start + this.#sendable());
        this.#sendData(data.subarray(start, end), stream);
        start = end;
      }
      if (start === data.length) {
        if (sent !== undefined) this.#mux.guard(sent);
        return;
      }
    }
    this.#wait(data.subarray(start), stream, sent);
    this.#wake();
  }

  #sendable(): number {
    return Math.min(this.#peerWindow, this.#numbers.peerPacket);
  }

  #sendData(bytes: Uint8Array, stream: Stream): void {
    this.#peerWindow -= bytes.length;
    if (stream === 0) {
      this.#dataHeader.writeUInt32BE(bytes.length, 5);
      this.#mux.send(this.#dataHeader, bytes);
    } else {
      this.#extendedHeader.writeUInt32BE(stream, 5);
      this.#extendedHeader.writeUInt32BE(bytes.length, 9);
      this.#mux.send(this.#extendedHeader, bytes);
    }
  }

  /** Copies what has to wait. Many small writes take the room of one. */
  #wait(data: Uint8Array, stream: Stream, sent: (() => void) | undefined): void {
    this.#pendingBytes += data.length;
    const last = this.#queue.at(-1);
    if (last !== undefined && last.stream === stream && last.bytes.length - last.end >= data.length) {
      last.bytes.set(data, last.end);
      last.end += data.length;
      if (sent !== undefined) last.sent.push(sent);
      return;
    }
    const bytes = Buffer.allocUnsafeSlow(data.length < SLAB_BYTES / 2 ? SLAB_BYTES : data.length);
    bytes.set(data);
    this.#queue.push({ bytes, end: data.length, start: 0, stream, sent: sent === undefined ? [] : [sent] });
  }

  /** Asks for a turn where something can be sent. */
  #wake(): void {
    if (this.#queued || this.#sent === "close") return;
    const [first] = this.#queue;
    if (first === undefined) {
      this.#finish();
    } else if (this.#peerWindow > 0 || first.start === first.end) {
      this.#queued = true;
      this.#mux.queue(this);
    }
  }

  /** Sends one packet; called when it is this channel's turn. */
  turn(): void {
    this.#queued = false;
    const [first] = this.#queue;
    if (this.#sent === "close" || first === undefined) return;
    if (first.start < first.end) {
      if (this.#peerWindow === 0) return;
      const end = Math.min(first.end, first.start + this.#sendable());
      this.#sendData(first.bytes.subarray(first.start, end), first.stream);
      this.#pendingBytes -= end - first.start;
      first.start = end;
    }
    if (first.start === first.end) {
      this.#queue.shift();
      giveBack(first.bytes);
      for (const sent of first.sent) this.#mux.guard(sent);
      if (this.#queue.length === 0) this.#mux.guard(() => this.#handlers.onDrain?.());
    }
    this.#wake();
  }

  /** Sends what was wished for after the data, once there is no more of it. */
  #finish(): void {
    if (this.#queue.length > 0 || this.#sent === "close") return;
    if (this.#eofWished && this.#sent === "nothing") {
      this.#sent = "eof";
      this.#mux.send(this.#message(MESSAGE.eof).done());
    }
    if (this.#wish === "close" && this.#owed.length === 0) this.#sendClose();
  }

  eof(): void {
    if (this.#wish !== "nothing") return;
    this.#wish = "eof";
    this.#eofWished = true;
    this.#wake();
  }

  close(): void {
    if (this.#wish === "close") return;
    this.#wish = "close";
    this.#letGo();
    this.#wake();
  }

  abort(): void {
    this.#aborted = true;
    this.#wish = "close";
    this.#forget();
    this.#sendClose();
    this.#unasked();
    this.#letGo();
  }

  /** Nobody reads any more: what the peer sends meanwhile is dropped, and must not hold it up. */
  #letGo(): void {
    this.#leftAlone = true;
    this.consumed(this.#outstanding);
  }

  #forget(): void {
    this.#queue.length = 0;
    this.#pendingBytes = 0;
  }

  #sendClose(): void {
    if (this.#sent === "close") return;
    this.#sent = "close";
    this.#mux.send(this.#message(MESSAGE.close).done());
    if (this.#received === "close") this.end();
  }

  /** No answer is waited for any more. A graceful close is none of that: what was asked before it is still answered. */
  #unasked(): void {
    for (const answer of this.#asked.splice(0)) answer(false);
  }

  request(type: string, wantReply: boolean, data: Uint8Array): Promise<boolean> {
    if (this.#sent === "close") return Promise.resolve(false);
    this.#mux.send(this.#message(MESSAGE.request).string(type).boolean(wantReply).raw(data).done());
    if (!wantReply) return Promise.resolve(true);
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#asked.push(resolve);
    return promise;
  }

  #message(number: number): Writer {
    return new Writer().byte(number).uint32(this.#numbers.peerId);
  }

  // ------------------------------------------------------------------------------------------------- receiving

  /** The peer gives room. @throws SshError past 2^32 - 1 (RFC 4254, 5.2) */
  gotAdjust(bytes: number): void {
    if (this.#peerWindow + bytes > MAX_UINT32) throw violation("a window that grows past 2^32 - 1");
    this.#peerWindow += bytes;
    if (bytes > 0) this.#wake();
  }

  /** @throws SshError for more than the window or a packet takes, and after the end of the stream */
  gotData(bytes: Buffer, stream: Stream): void {
    if (this.#received !== "nothing") throw violation("data after the end of a channel's stream");
    if (bytes.length > this.#numbers.packetBytes) throw violation("more data in one packet than was offered");
    if (bytes.length > this.#room) throw violation("more data than the window has room for");
    if (bytes.length === 0) return;
    this.#room -= bytes.length;
    this.#outstanding += bytes.length;
    if (this.#leftAlone) {
      this.consumed(bytes.length);
      return;
    }
    this.#outstandingPackets += 1;
    this.#mux.waiting(1);
    if (this.#held === undefined) this.#handlers.onData(bytes, stream);
    else {
      const copy = Buffer.from(bytes);
      this.#deliver(() => {
        if (!this.#leftAlone) this.#handlers.onData(copy, stream);
      });
    }
  }

  consumed(bytes: number): void {
    const done = Math.min(bytes, this.#outstanding);
    if (!(done > 0)) return;
    // Which packets these bytes were in is not known; their share is close enough to bound what waits.
    const packets =
      done === this.#outstanding
        ? this.#outstandingPackets
        : Math.floor((this.#outstandingPackets * done) / this.#outstanding);
    this.#outstanding -= done;
    this.#outstandingPackets -= packets;
    if (packets > 0) this.#mux.waiting(-packets);
    this.#unreturned += done;
    const { packetBytes, windowBytes } = this.#numbers;
    const step = Math.min(Math.max(STEP_PACKETS * packetBytes, windowBytes / 8), Math.ceil(windowBytes / 2));
    if (this.#unreturned < step || this.#received !== "nothing" || this.#sent === "close") return;
    this.#room += this.#unreturned;
    this.#mux.send(this.#message(MESSAGE.windowAdjust).uint32(this.#unreturned).done());
    this.#unreturned = 0;
  }

  gotEof(): void {
    if (this.#received !== "nothing") throw violation("a second end of a channel's stream");
    this.#received = "eof";
    this.#deliver(() => {
      if (!this.#leftAlone) this.#handlers.onEof();
    });
  }

  gotClose(): void {
    if (this.#received === "close") throw violation("a second close of a channel");
    this.#received = "close";
    this.#forget();
    if (this.#sent === "close") this.end();
    else if (this.#handlers.onClosing === undefined || this.#leftAlone) this.#answerClose();
    else
      this.#deliver(() => {
        if (this.#leftAlone) this.#answerClose();
        else this.#handlers.onClosing?.();
      });
  }

  #answerClose(): void {
    this.#wish = "close";
    this.#sendClose();
  }

  /** @throws SshError when too many wait for a handler or their answer */
  gotRequest({ type, wantReply, data }: Request): void {
    if (this.#received === "close") {
      if (type === KEEPALIVE) return; // see there
      throw violation("a request on a channel after its close");
    }
    if (this.#aborted || (wantReply && this.#sent === "close")) return; // it crossed our close: no answer can follow that
    const owed: Unanswered | undefined = wantReply ? { answer: undefined } : undefined;
    if (owed !== undefined) this.#owed.push(owed);
    if (this.#owed.length > MAX_UNANSWERED) throw violation("more requests on a channel than can be answered");
    this.#unhandled += 1;
    const bytes = data.length; // `data` is gone by the time of the answer
    this.#unhandledBytes += bytes;
    if (this.#unhandled > MAX_UNHANDLED || this.#unhandledBytes > MAX_UNHANDLED_BYTES) {
      throw violation("more requests on a channel than can be dealt with");
    }
    const settled = (ok: boolean): void => {
      this.#unhandled -= 1;
      this.#unhandledBytes -= bytes;
      if (owed !== undefined) this.#answer(owed, ok);
    };
    const request = { type, wantReply, data: Buffer.from(data) };
    this.#deliver(() => {
      if (this.#aborted) settled(false);
      else void handle(() => this.#handlers.onRequest(request)).then(settled, () => settled(false));
    });
  }

  /** Answers go out in the order of the requests. */
  #answer(owed: Unanswered, ok: boolean): void {
    owed.answer = ok;
    for (let [first] = this.#owed; first?.answer !== undefined; [first] = this.#owed) {
      this.#owed.shift();
      if (this.#sent !== "close")
        this.#mux.send(this.#message(first.answer ? MESSAGE.success : MESSAGE.failure).done());
    }
    this.#finish();
  }

  /** @throws SshError when nothing was asked */
  gotAnswer(ok: boolean): void {
    const resolve = this.#asked.shift();
    // Answers to what was asked before an abort may still be on their way; they were given up with it.
    if (resolve === undefined && !this.#aborted) throw violation("an answer to a request that was not made");
    resolve?.(ok);
  }

  // --------------------------------------------------------------------------------------------------- its life

  /** Events wait until the opener has had its turn. */
  hold(): void {
    const held: (() => void)[] = [];
    this.#held = held;
    setImmediate(() => {
      // Handlers may be given a further event while these run: it has to wait for them.
      for (let next = held.shift(); next !== undefined; next = held.shift()) this.#mux.guard(next);
      this.#held = undefined;
    });
  }

  #deliver(event: () => void): void {
    if (this.#held === undefined) event();
    else this.#held.push(event);
  }

  /** Both directions are over, or the connection is. */
  end(): void {
    this.#wish = "close";
    this.#sent = "close";
    this.#received = "close";
    this.#forget();
    this.#unasked();
    this.consumed(this.#outstanding);
    this.#mux.closed(this);
    const handlers = this.#handlers;
    this.#deliver(() => {
      this.#handlers = NOBODY;
      this.#mux.guard(() => handlers.onClose());
    });
  }
}

/** In place of handlers that were let go: a late word of a channel holds nothing of theirs in memory. */
const NOBODY: ChannelHandlers = {
  onData: () => {},
  onRequest: () => Promise.resolve(false),
  onEof: () => {},
  onClose: () => {},
};

async function handle(run: () => Promise<boolean>): Promise<boolean> {
  return run();
}

export function violation(what: string): SshError {
  return new SshError(DISCONNECT.protocolError, what);
}
