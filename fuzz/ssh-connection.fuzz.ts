import { createConnection } from "../server/src/targets/ssh/connection.ts";
import * as requests from "../server/src/targets/ssh/requests.ts";
import { SshError, type Channel, type ChannelHandlers, type Transport } from "../server/src/targets/ssh/types.ts";
import { Writer } from "../server/src/targets/ssh/wire.ts";
import type { Random } from "./random.ts";

/** An input is packets, each behind its length in two bytes, so that a mutation may break a packet or the order of several. */
function packets(...payloads: readonly Buffer[]): Buffer {
  return Buffer.concat(payloads.flatMap((payload) => [Buffer.of(payload.length >> 8, payload.length & 0xff), payload]));
}
const WINDOW_BYTES = 1000;
const PACKET_BYTES = 500;
const to = (number: number, channel: number): Writer => new Writer().byte(number).uint32(channel);
const open = (peerId: number, data: Uint8Array = Buffer.alloc(0), type = "session"): Buffer =>
  new Writer().byte(90).string(type).uint32(peerId).uint32(700).uint32(300).raw(data).done();
const pty = requests.encodePty({
  term: "xterm",
  columns: 80,
  rows: 24,
  width: 0,
  height: 0,
  modes: [{ opcode: 53, value: 1 }],
});
const tcp = requests.encodeTcpOpen({ host: "db.internal", port: 5432, originHost: "127.0.0.1", originPort: 40_000 });

export const seeds: readonly Uint8Array[] = [
  packets(
    open(0),
    to(98, 2).string("pty-req").boolean(true).raw(pty).done(),
    to(98, 2).string("shell").boolean(true).done(),
  ),
  packets(
    open(7),
    to(98, 2).string("exec").boolean(true).string("id").done(),
    to(94, 2).string("input").done(),
    to(96, 2).done(),
  ),
  packets(
    open(1, tcp, "direct-tcpip"),
    to(93, 2).uint32(5000).done(),
    to(94, 2).string("GET /").done(),
    to(97, 2).done(),
  ),
  packets(open(0), open(1), to(95, 2).uint32(1).string("x").done(), to(97, 3).done(), to(94, 2).string("y").done()),
  packets(
    to(91, 1).uint32(9).uint32(1000).uint32(300).done(),
    to(94, 1).string("hello").done(),
    to(99, 1).done(),
    to(97, 1).done(),
  ),
  packets(to(92, 1).uint32(1).string("no").string("").done(), new Writer().byte(82).done()),
  packets(
    new Writer()
      .byte(80)
      .string("tcpip-forward")
      .boolean(true)
      .raw(requests.encodeEndpoint({ host: "", port: 0 }))
      .done(),
  ),
  packets(new Writer().byte(80).string("keepalive@openssh.com").boolean(true).done(), open(2), to(100, 1).done()),
  packets(
    open(3),
    to(98, 2)
      .string("exit-signal")
      .boolean(false)
      .raw(requests.encodeExitSignal({ name: "TERM", coreDumped: false, message: "m" }))
      .done(),
  ),
];
export const words: readonly string[] = [
  "session",
  "x11",
  "exec",
  "env",
  "\0\0\0\u0002",
  "\0\0\0\0",
  "no-more-sessions@openssh.com",
];

const PARSERS: readonly ((data: Buffer) => unknown)[] = [
  ...[requests.parsePty, requests.parseWindowChange, requests.parseEnv, requests.parseExec, requests.parseWord],
  ...[requests.parseNumber, requests.parseExitSignal, requests.parseX11, requests.parseTcpOpen],
  ...[
    requests.parseEndpoint,
    requests.parseDirectStreamlocal,
    requests.parseForwardedStreamlocal,
    requests.parseStreamlocal,
  ],
];

/**
 * Nothing but the declared error; no peer is ever further ahead than its window, we are never further than the peer's; every
 * channel and the connection end once; what comes after the end reaches nobody.
 */
export async function one(input: Uint8Array, random: Random): Promise<void> {
  const bytes = Buffer.from(input);
  for (const parse of PARSERS) attempt(() => parse(bytes));

  let ends = 0;
  let open = 0;
  const ended: { error: SshError | undefined }[] = [];
  const disconnected: string[] = [];
  const sentTo = new Map<number, number>();
  const transport: Transport = {
    ...{ role: "server", sessionId: Buffer.alloc(0), peerVersion: "", peerSignatureAlgorithms: [], pendingBytes: 0 },
    negotiated: { kex: "", hostKey: "", strict: true, cipher: { in: "", out: "" } },
    send(...payload) {
      const [head = Buffer.alloc(0), ...rest] = payload;
      if (head[0] === 94) {
        const peerId = Buffer.from(head).readUInt32BE(1);
        sentTo.set(peerId, (sentTo.get(peerId) ?? 0) + rest.reduce((sum, part) => sum + part.length, 0));
      }
      return !random.chance(5);
    },
    ...{
      onPacket: () => {},
      onDrain: () => {},
      onClose: () => {},
      pause: () => {},
      resume: () => {},
      unimplemented: () => {},
    },
    disconnect: (reason) => void disconnected.push(String(reason)),
    destroy: () => {},
  };
  const handlers = (self: () => Channel | undefined): ChannelHandlers => {
    let unconsumed = 0;
    let closed = false;
    open += 1;
    return {
      onData(data, stream) {
        if (closed || ended.length > 0) throw new TypeError("data after the end");
        unconsumed += data.length;
        if (unconsumed > WINDOW_BYTES || data.length > PACKET_BYTES) throw new TypeError("more than the window");
        self()?.write(data, stream);
        if (random.chance(2)) return;
        const done = random.int(unconsumed + 1);
        unconsumed -= done;
        self()?.consumed(done);
      },
      onRequest(request) {
        if (closed) throw new TypeError("a request after the end");
        if (random.chance(10)) self()?.close();
        if (random.chance(10)) self()?.abort();
        return request.data.length % 2 === 0 ? Promise.resolve(true) : Promise.reject(new Error("no"));
      },
      onEof: () => void (random.chance(2) && self()?.eof()),
      onClose() {
        if (closed) throw new TypeError("closed twice");
        closed = true;
        ends += 1;
      },
    };
  };
  const connection = createConnection(
    transport,
    {
      onOpen(_open, accept) {
        const holder: { channel?: Channel } = {};
        holder.channel = accept.accept(handlers(() => holder.channel));
      },
      onRequest: () => Promise.resolve({ ok: true }),
      onClose: (error) => void ended.push({ error }),
    },
    { windowBytes: WINDOW_BYTES, packetBytes: PACKET_BYTES, channels: 8 },
  );
  const own: { channel?: Channel } = {};
  const opening = connection
    .open(
      "session",
      Buffer.alloc(0),
      handlers(() => own.channel),
    )
    .then(
      (channel) => void (own.channel = channel),
      () => void (open -= 1), // it never was
    );
  for (let at = 0; at + 2 <= bytes.length;) {
    const length = bytes.readUInt16BE(at);
    const payload = bytes.subarray(at + 2, at + 2 + length);
    at += 2 + length;
    if (payload.length > 0) transport.onPacket(payload);
    if (random.chance(4)) transport.onDrain();
    if (random.chance(4)) await new Promise(setImmediate);
  }
  connection.destroy();
  await opening;
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  if (ended.length !== 1) throw new Error(`the connection ended ${ended.length} times`);
  const [{ error } = { error: undefined }] = ended;
  // Handlers' own errors, thrown above, come back as this.
  if (error?.message === "internal error") throw new Error("a handler saw what it must not", { cause: error.cause });
  if (disconnected.length > 1) throw new Error("disconnected twice");
  if (ends !== open || connection.channels !== 0) throw new Error(`${open} channels, ${ends} of them ended`);
}

function attempt(parse: () => unknown): void {
  try {
    parse();
  } catch (error) {
    if (!(error instanceof SshError)) throw error;
  }
}
