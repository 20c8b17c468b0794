import { describe, expect, test, vi } from "vitest";
import { MESSAGE } from "./channel.ts";
import { createConnection, type ConnectionLimits } from "./connection.ts";
import { transportPair } from "./fixtures/transport-pair.ts";
import { hold } from "./held.ts";
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
import { Writer } from "./wire.ts";

const NONE = Buffer.alloc(0);

/** What one side hears, and what it answers where a test says so. */
function listener(answers: Partial<ChannelHandlers> = {}) {
  const heard = { data: [NONE] as Buffer[], events: [] as string[], requests: [] as Request[] };
  const handlers: ChannelHandlers = {
    onData(data, stream) {
      heard.data[stream] = Buffer.concat([heard.data[stream] ?? NONE, data]);
      answers.onData?.(data, stream);
    },
    onRequest(request) {
      heard.requests.push(request);
      return answers.onRequest?.(request) ?? Promise.resolve(true);
    },
    onDrain: () => answers.onDrain?.(),
    onEof() {
      heard.events.push("eof");
      answers.onEof?.();
    },
    ...(answers.onClosing === undefined ? {} : { onClosing: answers.onClosing }),
    onClose() {
      heard.events.push("close");
      answers.onClose?.();
    },
  };
  return { heard, handlers };
}

/** Refuses nothing: every channel gets the next listener. */
function accepting(
  next: () => ChannelHandlers,
): ConnectionHandlers & { channels: Channel[]; ended: (SshError | undefined)[] } {
  const channels: Channel[] = [];
  const ended: (SshError | undefined)[] = [];
  return {
    ...{ channels, ended },
    onOpen: (_open, accept) => void channels.push(accept.accept(next())),
    onRequest: () => Promise.resolve({ ok: true, data: Buffer.from("yes") }),
    onClose: (error) => void ended.push(error),
  };
}

interface Both {
  client: Connection;
  server: Connection;
  serverSide: ReturnType<typeof accepting>;
  clientSide: ReturnType<typeof accepting>;
  pair: ReturnType<typeof transportPair>;
}
function connect(next: () => ChannelHandlers, limits: Partial<ConnectionLimits> = {}, highWaterBytes = 1 << 20): Both {
  const pair = transportPair({ highWaterBytes });
  const [clientSide, serverSide] = [accepting(() => listener().handlers), accepting(next)];
  const client = createConnection(pair.client, clientSide, limits);
  const server = createConnection(pair.server, serverSide, limits);
  return { client, server, serverSide, clientSide, pair };
}

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("channels", () => {
  test("carry bytes both ways, on both streams, and close in both directions by themselves", async () => {
    const [far, near] = [listener(), listener()];
    const { client, serverSide } = connect(() => far.handlers);
    const channel = await client.open("session", NONE, near.handlers);
    channel.write(Buffer.from("to the server"));
    channel.eof();
    await settled();
    expect(far.heard.data[0]?.toString()).toBe("to the server");
    expect(far.heard.events).toEqual(["eof"]);

    // Half closed: the other direction goes on.
    const [other] = serverSide.channels;
    other?.write(Buffer.from("answer"));
    other?.write(Buffer.from("complaint"), 1);
    other?.close();
    await settled();
    expect(near.heard.data.map(String)).toEqual(["answer", "complaint"]);
    expect([near.heard.events, far.heard.events]).toEqual([["close"], ["eof", "close"]]);
    expect(client.channels).toBe(0);
  });

  test("a peer gets its window back only as bytes are consumed, and never sends past it", async () => {
    const far = listener();
    const { client, serverSide } = connect(() => far.handlers, { windowBytes: 1000, packetBytes: 300 });
    const channel = await client.open("session", NONE, listener().handlers);
    const sent = vi.fn<() => void>();
    channel.write(Buffer.alloc(2500, "a"), 0, sent);
    await settled();
    expect(far.heard.data[0]).toHaveLength(1000);
    expect(channel.pendingBytes).toBe(1500);
    serverSide.channels[0]?.consumed(1000);
    await settled();
    expect(far.heard.data[0]).toHaveLength(2000);
    expect(sent).not.toHaveBeenCalled();
    serverSide.channels[0]?.consumed(1_000_000); // more than there is opens no larger window
    await settled();
    expect(far.heard.data[0]).toHaveLength(2500);
    expect(sent).toHaveBeenCalledOnce();
    channel.write(Buffer.alloc(5000));
    await settled();
    expect(far.heard.data[0]).toHaveLength(3000);
  });

  test("one that nobody reads stops no other", async () => {
    const listeners = [listener(), listener()];
    let next = 0;
    const { client } = connect(() => listeners[next++]?.handlers ?? listener().handlers, { windowBytes: 2000 }, 4000);
    const stuck = await client.open("session", NONE, listener().handlers);
    stuck.write(Buffer.alloc(1_000_000));
    const other = await client.open("session", NONE, listener().handlers);
    for (let n = 0; n < 100; n += 1) other.write(Buffer.alloc(20, n));
    await settled();
    expect(listeners[1]?.heard.data[0]).toHaveLength(2000);
    expect(listeners[0]?.heard.data[0]).toHaveLength(2000);
  });

  test("share a socket that is full packet by packet, in turn", async () => {
    const { client, pair } = connect(() => listener().handlers, { packetBytes: 1000, windowBytes: 1 << 20 }, 500);
    const channels = await Promise.all([1, 2, 3].map(() => client.open("session", NONE, listener().handlers)));
    const before = pair.client.sent.length;
    for (const channel of channels) channel.write(Buffer.alloc(10_000));
    await settled();
    const order = pair.client.sent.slice(before).map((packet) => packet.readUInt32BE(1));
    expect(order).toHaveLength(30);
    // The first was sent while the socket was free; from there on nobody has two turns before the others had one.
    for (let at = 1; at + 3 <= 25; at += 3) expect(new Set(order.slice(at, at + 3)).size, `${order}`).toBe(3);
  });

  test("many small writes that wait go out together, in order, and each is told that it went", async () => {
    const far = listener();
    const { client, serverSide, pair } = connect(() => far.handlers, { windowBytes: 100, packetBytes: 1000 });
    const channel = await client.open("session", NONE, listener().handlers);
    const told: number[] = [];
    const expected: string[] = [];
    for (let n = 0; n < 300; n += 1) {
      expected.push(`${n},`);
      channel.write(Buffer.from(`${n},`), 0, () => told.push(n));
    }
    for (let round = 0; round < 100; round += 1) {
      serverSide.channels[0]?.consumed(1000);
      await settled();
    }
    expect(far.heard.data[0]?.toString()).toBe(expected.join(""));
    expect(told).toEqual(expected.map((_, n) => n));
    expect(channel.pendingBytes).toBe(0);
    expect(pair.client.sent.length).toBeLessThan(100);
  });

  test("the bytes of a write are taken before it returns", async () => {
    const far = listener();
    const { client, serverSide } = connect(() => far.handlers, { windowBytes: 10 });
    const channel = await client.open("session", NONE, listener().handlers);
    const bytes = Buffer.alloc(20, "a");
    channel.write(bytes);
    bytes.fill("z");
    await settled();
    serverSide.channels[0]?.consumed(10);
    await settled();
    expect(far.heard.data[0]?.toString()).toBe("a".repeat(20));
  });

  test("what follows the confirmation at once is heard after the opener has its channel", async () => {
    const { client } = connect(() => listener().handlers);
    // The far side speaks in the very turn in which it accepts.
    const pair = transportPair();
    const speaking: ConnectionHandlers = {
      onOpen(_open, accept) {
        const channel = accept.accept(listener().handlers);
        channel.write(Buffer.from("at once"));
        void channel.request("exit-status", false, Buffer.alloc(4));
        channel.eof();
        channel.close();
      },
      onRequest: () => Promise.resolve({ ok: false }),
      onClose: () => {},
    };
    createConnection(pair.server, speaking);
    const opener = createConnection(
      pair.client,
      accepting(() => listener().handlers),
    );
    const order: string[] = [];
    const near = listener({ onData: (data) => void order.push(String(data)), onEof: () => void order.push("eof") });
    const closed = Promise.withResolvers<void>();
    const channel = await opener.open("session", NONE, { ...near.handlers, onClose: () => closed.resolve() });
    order.push("opened");
    await closed.promise;
    expect(order).toEqual(["opened", "at once", "eof"]);
    expect(near.heard.requests.map(({ type }) => type)).toEqual(["exit-status"]);
    channel.write(Buffer.from("too late")); // and that is nobody's error
    await settled();
    expect(pair.client.disconnected).toBeUndefined();
    client.destroy();
  });

  test("a graceful close waits for what was written and for answers that are owed; abort waits for nothing", async () => {
    const gate = Promise.withResolvers<boolean>();
    const far = listener({ onRequest: () => gate.promise });
    const { client, serverSide } = connect(() => far.handlers, { windowBytes: 100 });
    const near = listener();
    const channel = await client.open("session", NONE, near.handlers);
    const answer = channel.request("exec", true, NONE);
    await settled();
    serverSide.channels[0]?.write(Buffer.alloc(250, "x"));
    serverSide.channels[0]?.close();
    await settled();
    expect(near.heard.data[0]).toHaveLength(100);
    for (let n = 0; n < 3; n += 1) {
      channel.consumed(100);
      await settled();
    }
    expect(near.heard.data[0]).toHaveLength(250);
    expect(near.heard.events).toEqual([]);
    gate.resolve(true);
    expect(await answer).toBe(true);
    await settled();
    expect(near.heard.events).toEqual(["close"]);

    const second = await client.open("session", NONE, listener().handlers);
    second.write(Buffer.alloc(1000));
    const unanswered = second.request("exec", true, NONE);
    second.abort();
    expect(second.pendingBytes).toBe(0);
    expect(await unanswered).toBe(false);
    await settled();
    expect(client.channels).toBe(0);
  });

  test("after close no data is heard, and the peer is not held up by what nobody reads", async () => {
    const far = listener();
    const { client, serverSide } = connect(() => far.handlers, { windowBytes: 100 });
    const near = listener();
    const channel = await client.open("session", NONE, near.handlers);
    const other = serverSide.channels[0];
    channel.write(Buffer.alloc(150)); // 50 wait, so the close waits as well
    channel.close();
    other?.write(Buffer.alloc(1000)); // ten windows
    const late = other?.request("signal", true, NONE);
    await settled();
    expect(other?.pendingBytes).toBe(0);
    expect(await late).toBe(true);
    expect(near.heard).toMatchObject({ events: [], requests: [{ type: "signal" }] });
    expect(near.heard.data[0]).toHaveLength(0);
    other?.consumed(100);
    await settled();
    expect([near.heard.events, far.heard.events]).toEqual([["close"], ["close"]]);
  });

  test("whoever takes its time to answer a close can still send requests, and is heard, but not its data", async () => {
    let closing = 0;
    const far = listener({ onClosing: () => void (closing += 1) });
    const { client, serverSide } = connect(() => far.handlers);
    const near = listener();
    const channel = await client.open("session", NONE, near.handlers);
    channel.eof();
    channel.close();
    await settled();
    expect(closing).toBe(1);
    const [other] = serverSide.channels;
    other?.write(Buffer.from("nobody reads it"), 0, () => expect.unreachable());
    void other?.request("exit-status", false, Buffer.of(0, 0, 0, 7));
    const asked = other?.request("signal", true, NONE); // no answer can follow a close
    await settled();
    expect(near.heard).toMatchObject({ events: [], requests: [{ type: "exit-status" }] });
    expect([client.channels, far.heard.events]).toEqual([1, ["eof"]]);
    other?.close();
    await settled();
    expect(await asked).toBe(false);
    expect(near.heard.data[0]).toHaveLength(0);
    expect([client.channels, near.heard.events, far.heard.events]).toEqual([0, ["close"], ["eof", "close"]]);
  });

  test("there may be 256 at once and no more; each that closes makes room", async () => {
    const { client } = connect(() => listener().handlers);
    const all = await Promise.all(Array.from({ length: 256 }, () => client.open("session", NONE, listener().handlers)));
    await expect(client.open("session", NONE, listener().handlers)).rejects.toThrow(OpenRefused);
    all[17]?.close();
    await settled();
    await client.open("session", NONE, listener().handlers);
    expect(client.channels).toBe(256);
  });

  test("a refusal gives reason and text, also when it comes late or was thrown", async () => {
    let held: Accept | undefined;
    const pair = transportPair();
    createConnection(pair.server, {
      onOpen(open, accept) {
        if (open.type === "x11") throw new OpenRefused(OPEN_FAILURE.administrativelyProhibited, "no windows here");
        held = accept;
      },
      onRequest: () => Promise.resolve({ ok: false }),
      onClose: () => {},
    });
    const client = createConnection(
      pair.client,
      accepting(() => listener().handlers),
    );
    await expect(client.open("x11", NONE, listener().handlers)).rejects.toMatchObject({
      reason: 1,
      message: "no windows here",
    });
    const opening = client.open("session", NONE, listener().handlers);
    await settled();
    held?.refuse(OPEN_FAILURE.connectFailed, "the target\u001b[2J is down\n");
    await expect(opening).rejects.toMatchObject({ reason: 2, message: "the target [2J is down" });
    held?.refuse(OPEN_FAILURE.connectFailed, "twice");
    await settled();
    expect(pair.client.disconnected).toBeUndefined();
  });
});

describe("requests", () => {
  test("are answered in the order in which they came, whatever time each takes", async () => {
    const answers = [1, 2, 3].map(() => Promise.withResolvers<boolean>());
    let next = 0;
    const far = listener({ onRequest: () => answers[next++]?.promise ?? Promise.resolve(true) });
    const { client } = connect(() => far.handlers);
    const channel = await client.open("session", NONE, listener().handlers);
    const got: string[] = [];
    const ask = (name: string): void => void channel.request(name, true, NONE).then((ok) => got.push(`${name} ${ok}`));
    ask("a");
    expect(await channel.request("env", false, NONE)).toBe(true); // nobody waits for what comes of it
    ask("b");
    ask("c");
    await settled();
    expect(far.heard.requests.map(({ type }) => type)).toEqual(["a", "env", "b", "c"]);
    answers[2]?.resolve(false);
    await settled();
    expect(got).toEqual([]);
    answers[0]?.reject(new Error("what is thrown is a no"));
    await settled();
    expect(got).toEqual(["a false", "b false", "c true"]);
  });

  test("of the whole connection: keepalives are answered, host keys passed over, the rest is the handler's", async () => {
    const { client, server } = connect(() => listener().handlers);
    expect(await client.request("keepalive@openssh.com", true, NONE)).toMatchObject({ ok: false });
    expect(await server.request("hostkeys-00@openssh.com", false, NONE)).toMatchObject({ ok: true });
    expect(await client.request("tcpip-forward", true, NONE)).toEqual({ ok: true, data: Buffer.from("yes") });
  });

  test("no-more-sessions: from there on no further session opens", async () => {
    const { client } = connect(() => listener().handlers);
    await client.open("session", NONE, listener().handlers);
    void client.request("no-more-sessions@openssh.com", false, NONE);
    await expect(client.open("session", NONE, listener().handlers)).rejects.toMatchObject({ reason: 1 });
    await client.open("direct-tcpip", NONE, listener().handlers);
  });
});

describe("the end of a connection", () => {
  test("is told once to every channel, question and opening", async () => {
    const listeners = Array.from({ length: 5 }, () => listener({ onRequest: () => new Promise(() => {}) }));
    let next = 0;
    const silent: ConnectionHandlers = {
      onOpen: (open, accept) =>
        void (open.type === "session" && accept.accept(listeners[next++]?.handlers ?? listener().handlers)),
      onRequest: () => new Promise(() => {}),
      onClose: vi.fn<() => void>(),
    };
    const pair = transportPair();
    createConnection(pair.server, silent);
    const clientSide = accepting(() => listener().handlers);
    const client = createConnection(pair.client, clientSide);
    const near = Array.from({ length: 5 }, () => listener());
    const channels = await Promise.all(near.map(({ handlers }) => client.open("session", NONE, handlers)));
    const opening = client.open("never", NONE, listener().handlers);
    const asked = [client.request("x", true, NONE), channels[0]?.request("y", true, NONE) ?? Promise.resolve(true)];
    channels[1]?.write(Buffer.alloc(5_000_000));
    await settled();
    pair.server.destroy();
    await expect(opening).rejects.toThrow(SshError);
    expect(await Promise.all(asked)).toEqual([{ ok: false, data: NONE }, false]);
    await settled();
    for (const { heard } of [...near, ...listeners])
      expect(heard.events.filter((event) => event === "close")).toHaveLength(1);
    expect(clientSide.ended).toHaveLength(1);
    expect(silent.onClose).toHaveBeenCalledOnce();
    expect([client.channels, channels[1]?.pendingBytes]).toEqual([0, 0]);
    await expect(client.open("session", NONE, listener().handlers)).rejects.toThrow(SshError);
    expect(await client.request("x", true, NONE)).toMatchObject({ ok: false });
    channels[0]?.write(Buffer.from("into nothing"));
    channels[0]?.abort();
  });

  test("a farewell's disconnect waits until the peer has taken what came before it, and what it sends meanwhile is thrown away", async () => {
    const { say, sent, ended, state, far, connection } = await attacked();
    void connection.request("keepalive@openssh.com", true, NONE);
    connection.farewell(DISCONNECT.byApplication, "bye");
    expect(sent.slice(-2).map((payload) => payload[0])).toEqual([MESSAGE.globalRequest, MESSAGE.globalRequest]);
    expect([ended, far.heard.events.at(-1), state.disconnected]).toEqual([[undefined], "close", undefined]);
    const heard = far.heard.events.length;
    const before = sent.length;
    say(to(94).string("late").done()); // data
    say(openMessage(6));
    say(w(82).done()); // the answer to the question before
    expect([far.heard.events.length, sent.length, state.disconnected]).toEqual([heard, before, undefined]);
    say(w(82).done());
    expect(state.disconnected).toEqual({ reason: DISCONNECT.byApplication, text: "bye" });
    say(w(82).done());
  });

  test("a peer that never takes the last words is cut all the same", async () => {
    const { state, connection } = await attacked();
    connection.farewell(DISCONNECT.byApplication, "bye");
    expect(state.disconnected).toBeUndefined();
    await expect.poll(() => state.disconnected, { timeout: 30_000 }).toEqual({ reason: 11, text: "bye" });
  });

  test("a channel that is accepted after the end hears of the end, and sends nothing", async () => {
    let accept: Accept | undefined;
    const pair = transportPair();
    createConnection(pair.server, {
      onOpen: (_open, given) => void (accept = given),
      onRequest: () => Promise.resolve({ ok: false }),
      onClose: () => {},
    });
    const client = createConnection(
      pair.client,
      accepting(() => listener().handlers),
    );
    client.open("session", NONE, listener().handlers).catch(() => {});
    await settled();
    client.disconnect(DISCONNECT.byApplication, "bye");
    await settled();
    const before = pair.server.sent.length;
    const late = listener();
    accept?.accept(late.handlers).write(Buffer.from("x"));
    expect(late.heard.events).toEqual(["close"]);
    expect(pair.server.sent).toHaveLength(before);
  });

  test("what a peer says between login and connection waits, its end too", async () => {
    const pair = transportPair();
    hold(pair.server);
    const client = createConnection(
      pair.client,
      accepting(() => listener().handlers),
    );
    const opened = client.open("session", NONE, listener().handlers);
    await settled();
    const serverSide = accepting(() => listener().handlers);
    createConnection(pair.server, serverSide);
    await opened;
    expect(serverSide.channels).toHaveLength(1);

    const second = transportPair();
    hold(second.server);
    second.client.destroy();
    await settled();
    const ended = accepting(() => listener().handlers);
    createConnection(second.server, ended);
    await settled();
    expect(ended.ended).toHaveLength(1);
  });

  test("a handler that throws ends its connection in words that say nothing of it", async () => {
    const far = listener({
      onData: () => {
        throw new Error("password is hunter2");
      },
    });
    const { client, pair, serverSide } = connect(() => far.handlers);
    const channel = await client.open("session", NONE, listener().handlers);
    channel.write(Buffer.from("x"));
    await settled();
    expect(pair.server.disconnected).toEqual({ reason: DISCONNECT.byApplication, text: "internal error" });
    expect(serverSide.ended).toHaveLength(1);
    expect(far.heard.events).toEqual(["close"]);
  });
});

// ------------------------------------------------------------------------------------------------------- attacks

/** A connection whose peer says what a test wants, byte for byte. Channel 1 is open (the peer's 5), with window and packet 1000. */
async function attacked(
  handlers: Partial<ChannelHandlers> = {},
  limits: Partial<ConnectionLimits> = { windowBytes: 1000, packetBytes: 1000 },
) {
  const sent: Buffer[] = [];
  const ended: (SshError | undefined)[] = [];
  const state = { pendingBytes: 0, paused: false, unimplemented: 0, disconnected: undefined as unknown };
  const transport: Transport = {
    ...{ role: "server", sessionId: NONE, peerVersion: "SSH-2.0-x", peerSignatureAlgorithms: [] },
    negotiated: { kex: "", hostKey: "", strict: true, cipher: { in: "", out: "" } },
    send: (...payload) => sent.push(Buffer.concat(payload)) > 0,
    get pendingBytes() {
      return state.pendingBytes;
    },
    ...{ onPacket: () => {}, onDrain: () => {}, onClose: () => {} },
    pause: () => (state.paused = true),
    resume: () => (state.paused = false),
    unimplemented: () => (state.unimplemented += 1),
    disconnect: (reason, text) => (state.disconnected ??= { reason, text }),
    destroy: () => {},
  };
  const far = listener(handlers);
  const connection = createConnection(
    transport,
    {
      onOpen: (open, accept) => void (open.type === "session" && accept.accept(far.handlers)),
      onRequest: () => new Promise(() => {}),
      onClose: (error) => void ended.push(error),
    },
    limits,
  );
  const say = (...payload: Uint8Array[]): void => transport.onPacket(Buffer.concat(payload));
  say(openMessage(5));
  await settled();
  return { say, sent, ended, state, far, connection, transport };
}

const w = (number: number): Writer => new Writer().byte(number);
const to = (number: number, channel = 1): Writer => w(number).uint32(channel);
const openMessage = (peerId: number, type = "session", packet = 1000): Buffer =>
  w(MESSAGE.open).string(type).uint32(peerId).uint32(1000).uint32(packet).done();

const violations: readonly [what: string, messages: readonly Buffer[]][] = [
  ["more data than the window", [to(94).string(Buffer.alloc(600)).done(), to(94).string(Buffer.alloc(401)).done()]],
  ["more data in a packet than was offered", [to(94).string(Buffer.alloc(1001)).done()]],
  [
    "extended data past the window that both streams share",
    [to(94).string(Buffer.alloc(600)).done(), to(95).uint32(1).string(Buffer.alloc(401)).done()],
  ],
  ["extended data of type 0, which would pass as the main stream", [to(95).uint32(0).string("x").done()]],
  ["data after the end of the stream", [to(96).done(), to(94).string("x").done()]],
  ["a second end of the stream", [to(96).done(), to(96).done()]],
  ["data after close", [to(97).done(), to(94).string("x").done()]],
  ["a second close", [to(97).done(), to(97).done()]],
  ["a request after close", [to(97).done(), to(98).string("exec").boolean(true).string("id").done()]],
  ["data for a channel that never was", [to(94, 2).string("x").done()]],
  ["data for the peer's own number", [to(94, 5).string("x").done()]],
  ["a window that grows past 2^32 - 1", [to(93).uint32(0xffff_ffff).done()]],
  [
    "a window that grows past 2^32 - 1 in steps",
    [to(93).uint32(0x8000_0000).done(), to(93).uint32(0x8000_0000).done()],
  ],
  ["success without a request", [to(99).done()]],
  ["failure without a request", [to(100).done()]],
  ["success of a global request that nobody made", [w(81).done()]],
  ["failure of a global request that nobody made", [w(82).done()]],
  ["confirmation of a channel that nobody opens", [to(91, 9).uint32(1).uint32(1).uint32(1000).done()]],
  ["confirmation of a channel that is open", [to(91).uint32(1).uint32(1).uint32(1000).done()]],
  ["refusal of a channel that nobody opens", [to(92, 9).uint32(1).string("").string("").done()]],
  ["a second channel with the number of an open one", [openMessage(5)]],
  ["a second channel with the number of one that is being opened", [openMessage(6, "slow"), openMessage(6, "slow")]],
  ["a message that ends in its middle", [Buffer.of(94, 0, 0, 0, 1, 0, 0)]],
  ["a string that is longer than its message", [Buffer.of(94, 0, 0, 0, 1, 0, 0, 0, 9, 1)]],
  ["bytes after data", [Buffer.concat([to(94).string("x").done(), Buffer.of(0)])]],
  ["bytes after close", [Buffer.concat([to(97).done(), Buffer.of(0)])]],
  ["a channel type that is no name", [w(90).string("a,b").uint32(7).uint32(1000).uint32(1000).done()]],
  ["a request type that is no name", [to(98).string("a b").boolean(false).done()]],
];

describe("a peer that does not keep to RFC 4254 is cut", () => {
  test.each(violations)("%s", async (_what, messages) => {
    const { say, ended, state, far, connection } = await attacked();
    for (const [index, message] of messages.entries()) {
      expect(state.disconnected, `before message ${index}`).toBeUndefined();
      say(message);
    }
    expect(state.disconnected).toMatchObject({ reason: DISCONNECT.protocolError });
    expect(ended).toHaveLength(1);
    expect(ended[0]).toMatchObject({ reason: DISCONNECT.protocolError });
    expect(far.heard.events.filter((event) => event === "close")).toHaveLength(1);
    expect(connection.channels).toBe(0);
    // Whatever it says now reaches nobody.
    say(to(94).string("late").done());
    expect(far.heard.data[0]?.includes("late")).toBe(false);
  });

  test.each([
    ["a confirmation that ends in its middle", (id: number) => to(91, id).uint32(77).done()],
    [
      "a confirmation with the number of an open channel",
      (id: number) => to(91, id).uint32(5).uint32(1000).uint32(1000).done(),
    ],
    ["a confirmation that takes next to nothing", (id: number) => to(91, id).uint32(77).uint32(1000).uint32(1).done()],
    ["a refusal that ends in its middle", (id: number) => to(92, id).uint32(1).done()],
  ])("%s: and whoever opened the channel is told", async (_what, answer) => {
    const { say, state, connection } = await attacked();
    const opening = connection.open("session", NONE, listener().handlers);
    say(answer(2));
    await expect(opening).rejects.toMatchObject({ reason: DISCONNECT.protocolError });
    expect(state.disconnected).toMatchObject({ reason: DISCONNECT.protocolError });
  });

  test("requests without end that wait for answers, on a channel and on the connection", async () => {
    const slow = { onRequest: () => new Promise<boolean>(() => {}) };
    const onChannel = await attacked(slow);
    for (let n = 0; n < 64; n += 1) onChannel.say(to(98).string("exec").boolean(true).string("id").done());
    expect(onChannel.state.disconnected).toBeUndefined();
    onChannel.say(to(98).string("exec").boolean(true).string("id").done());
    expect(onChannel.state.disconnected).toMatchObject({ reason: DISCONNECT.protocolError });

    const global = await attacked();
    for (let n = 0; n < 65; n += 1) global.say(w(80).string("tcpip-forward").boolean(true).done());
    expect(global.state.disconnected).toMatchObject({ reason: DISCONNECT.protocolError });
  });

  test("requests that want no answer: an environment's worth is taken, a flood or a mass of bytes is not", async () => {
    const slow = { onRequest: () => new Promise<boolean>(() => {}) };
    const env = (bytes: number): Buffer =>
      to(98).string("env").boolean(false).string("A").string(Buffer.alloc(bytes)).done();
    const many = await attacked(slow);
    for (let n = 0; n < 1000; n += 1) many.say(env(20));
    expect(many.state.disconnected).toBeUndefined();
    for (let n = 0; n < 25; n += 1) many.say(env(20));
    expect(many.state.disconnected).toBeDefined();
    const large = await attacked(slow);
    for (let n = 0; n < 9; n += 1) large.say(env(128 * 1024));
    expect(large.state.disconnected).toBeDefined();
  });

  test("single bytes without end that nobody reads, although the window has room for them", async () => {
    const limits = { windowBytes: 1 << 20, packetBytes: 1000, waitingPackets: 5000 };
    const { say, state, connection } = await attacked({}, limits);
    for (let n = 0; n < 5000; n += 1) say(to(94).string("x").done());
    expect(state.disconnected).toBeUndefined();
    say(to(94).string("x").done());
    expect(state.disconnected).toMatchObject({ reason: DISCONNECT.protocolError });
    expect(connection.channels).toBe(0);
  });

  test("single bytes that are read may go on for ever", async () => {
    const holder: { channel?: Channel } = {};
    const limits = { windowBytes: 1 << 20, packetBytes: 1000, waitingPackets: 100 };
    const pair = transportPair();
    const reading: ConnectionHandlers = {
      onOpen: (_open, accept) =>
        void (holder.channel = accept.accept(
          listener({ onData: (data) => holder.channel?.consumed(data.length) }).handlers,
        )),
      onRequest: () => Promise.resolve({ ok: false }),
      onClose: () => {},
    };
    createConnection(pair.server, reading, limits);
    const client = createConnection(
      pair.client,
      accepting(() => listener().handlers),
      limits,
    );
    const channel = await client.open("session", NONE, listener().handlers);
    for (let n = 0; n < 1000; n += 1) channel.write(Buffer.of(n));
    await settled();
    expect(pair.server.disconnected).toBeUndefined();
  });
});

describe("a peer that goes to the limits", () => {
  test("channels opened without end are refused one by one, and none of them costs anything afterwards", async () => {
    const { say, sent, connection, state } = await attacked({}, { channels: 10 });
    for (let n = 100; n < 10_100; n += 1) say(openMessage(n));
    expect(connection.channels).toBe(10);
    const refused = sent.filter((packet) => packet[0] === MESSAGE.openFailure);
    expect(refused).toHaveLength(10_000 - 9);
    expect(new Set(refused.map((packet) => packet.readUInt32BE(5)))).toEqual(new Set([OPEN_FAILURE.resourceShortage]));
    expect(state.disconnected).toBeUndefined();
  });

  test("channels that are opened and never answered count as well", async () => {
    const { say, sent } = await attacked({}, { channels: 10 });
    for (let n = 100; n < 120; n += 1) say(openMessage(n, "slow"));
    expect(sent.filter((packet) => packet[0] === MESSAGE.openFailure)).toHaveLength(11);
  });

  test("one that reads no answers is read no further, until it does", async () => {
    const { say, state, transport } = await attacked();
    state.pendingBytes = 2 << 20;
    say(openMessage(7, "session", 1));
    expect(state.paused).toBe(true);
    state.pendingBytes = 0;
    transport.onDrain();
    expect(state.paused).toBe(false);
  });

  test("packets too small to be worth their headers, and opens with a book in them, are refused", async () => {
    const { say, sent } = await attacked();
    say(openMessage(7, "session", 255));
    say(openMessage(8, "session", 0));
    say(Buffer.concat([openMessage(9), Buffer.alloc(20_000)]));
    expect(sent.filter((packet) => packet[0] === MESSAGE.openFailure)).toHaveLength(3);
  });

  test("a number is free again once both sides have closed, and empty data is nothing", async () => {
    const { say, state, connection, far } = await attacked();
    say(to(94).string("").done());
    say(to(93).uint32(0).done());
    say(to(97).done());
    expect(far.heard.events).toEqual(["close"]);
    say(openMessage(5));
    say(to(94, 2).string("again").done());
    expect([connection.channels, far.heard.data[0]?.toString()]).toEqual([1, "again"]);
    expect(state.disconnected).toBeUndefined();
  });

  test("late login requests are passed over; messages that nobody knows are answered as such", async () => {
    const { say, state, sent } = await attacked();
    const before = sent.length;
    say(w(50).string("root").string("ssh-connection").string("none").done());
    expect([sent.length, state.unimplemented]).toEqual([before, 0]);
    say(w(53).string("banner").string("").done());
    say(w(60).done());
    say(w(192).string("ping").done());
    expect(state.unimplemented).toBe(3);
    expect(state.disconnected).toBeUndefined();
  });

  test("a sign of life that is asked for on a channel which has just closed is passed over, as an sshd asks on any that it still has", async () => {
    const keepalive = (channel: number): Buffer => to(98, channel).string("keepalive@openssh.com").boolean(true).done();
    const both = await attacked();
    both.say(to(97).done());
    both.say(keepalive(1));
    expect([both.state.disconnected, both.far.heard.requests]).toEqual([undefined, []]);
    both.say(keepalive(2));
    expect(both.state.disconnected).toMatchObject({ reason: DISCONNECT.protocolError });

    const half = await attacked({ onClosing: () => {} });
    half.say(to(97).done());
    half.say(keepalive(1));
    await settled();
    expect([half.state.disconnected, half.far.heard.requests, half.connection.channels]).toEqual([undefined, [], 1]);
  });

  test("answers that crossed our close are no error", async () => {
    const holder: { channel?: Channel } = {};
    const { say, state, connection } = await attacked();
    const opening = connection.open("session", NONE, listener().handlers);
    say(to(91, 2).uint32(77).uint32(1000).uint32(1000).done());
    holder.channel = await opening;
    const asked = holder.channel.request("exec", true, NONE);
    holder.channel.abort();
    say(to(99, 2).done());
    say(to(94, 2).string("late").done());
    say(to(97, 2).done());
    expect(await asked).toBe(false);
    expect([state.disconnected, connection.channels]).toEqual([undefined, 1]);
  });
});
