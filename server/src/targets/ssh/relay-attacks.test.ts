import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import { RECORD } from "../target.ts";
import { connectClient, eventually, openChannel, statusOf } from "./fixtures/client.ts";
import { createTerminalFlow } from "./flows.ts";
import { startFakeTarget, type FakeTarget } from "./fixtures/fake-target.ts";
import { startTestGateway, statements, testAuthority, type TestGateway } from "./fixtures/gateway.ts";
import {
  encodeEndpoint,
  encodeEnv,
  encodeExitSignal,
  encodeNumber,
  encodePty,
  encodeString,
  encodeTcpOpen,
} from "./requests.ts";
import { parseScope } from "./scope.ts";
import { createClientTransport } from "./transport.ts";
import type { Channel, ChannelHandlers, Connection, ConnectionHandlers, Request } from "./types.ts";
import { MSG, Writer } from "./wire.ts";

/** Attacks on the relay, by a client that was let in and by a target that lies: both ends are fakes of our own. */

const NONE = Buffer.alloc(0);
const MIB = 1024 * 1024;
const SIZE = { columns: 80, rows: 24, width: 0, height: 0 };
const PTY = encodePty({ term: "xterm", ...SIZE, modes: [] });
const QUIET: ChannelHandlers = {
  onData: () => {},
  onRequest: () => Promise.resolve(false),
  onEof: () => {},
  onClose: () => {},
};
const YES = (): Promise<boolean> => Promise.resolve(true);
const authority = testAuthority();
let gateway: TestGateway;
let target: FakeTarget | undefined;

interface Seen {
  readonly requests: Request[];
  readonly channels: Channel[];
  data: string;
}

function scopeOf(scope: object): ReturnType<typeof JSON.parse> {
  const parsed = parseScope({ user: "root", ...scope });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return parsed.value;
}

async function start(scope: object, more: Partial<ConnectionHandlers> = {}, parts: object = {}): Promise<Seen> {
  const seen: Seen = { requests: [], channels: [], data: "" };
  target = await startFakeTarget(() => ({
    onOpen(_open, accept) {
      const channel = accept.accept({
        onData(data) {
          seen.data += data.toString();
          channel.consumed(data.length);
        },
        onRequest(request) {
          seen.requests.push({ ...request, data: Buffer.from(request.data) });
          return Promise.resolve(true);
        },
        onEof: () => {},
        onClose: () => channel.close(),
      });
      seen.channels.push(channel);
    },
    onRequest: () => Promise.resolve({ ok: false }),
    onClose: () => {},
    ...more,
  }));
  gateway = await startTestGateway({ target, authority: authority.signer, scope: scopeOf(scope), parts });
  return seen;
}

const exec = async (connection: Connection, command: string): Promise<Awaited<ReturnType<typeof openChannel>>> => {
  const program = await openChannel(connection);
  await program.channel.request("exec", true, encodeString(command));
  return program;
};

const recorded = (): number => gateway.sessions[0]?.records.reduce((sum, { payload }) => sum + payload.length, 0) ?? 0;

afterEach(async () => {
  await gateway.close();
  await target?.close();
  target = undefined;
});

describe("a client that was let in", () => {
  test("cannot fill the gateway with records that wait for a slow disk: it is not read meanwhile, and loses nothing", async () => {
    await start({ shell: true });
    const { connection } = await connectClient(gateway);
    gateway.sessions[0]?.holdCommits(true);
    const command = encodeString(`echo ${"x".repeat(100_000)}`);
    const floods = Array.from({ length: 10 }, async () => {
      for (let time = 0; time < 40; time++) {
        const channel = await connection.open("session", NONE, QUIET);
        void channel.request("exec", false, command);
        channel.close();
      }
    });
    await eventually(() => recorded() > 7 * MIB);
    await new Promise((done) => setTimeout(done, 500));
    expect(recorded()).toBeLessThan(12 * MIB);
    gateway.sessions[0]?.holdCommits(false);
    await Promise.all(floods);
    await eventually(() => statements(gateway).length === 400);
    connection.destroy();
  });

  test("cannot do it with requests that no window bounds either", async () => {
    const seen = await start({ shell: true });
    const { connection, transport } = await connectClient(gateway);
    const program = await openChannel(connection);
    await program.channel.request("pty-req", true, PTY);
    await program.channel.request("shell", true, NONE);
    await eventually(() => seen.requests.length === 3);
    gateway.sessions[0]?.holdCommits(true);
    let sent = 0;
    const pump = setInterval(() => {
      for (let time = 0; time < 5_000 && sent < 250_000 && transport.pendingBytes < MIB; time++, sent++)
        void program.channel.request("signal", false, encodeString(`USR1@${"x".repeat(50)}`));
    }, 1);
    await eventually(() => sent >= 250_000 || transport.pendingBytes >= MIB);
    await new Promise((done) => setTimeout(done, 500));
    clearInterval(pump);
    expect(recorded()).toBeLessThan(12 * MIB);
    connection.destroy();
  });

  test("that closes a channel right behind its last bytes has them all arrive", async () => {
    const seen = await start({ shell: true });
    const { connection } = await connectClient(gateway);
    const program = await exec(connection, "cat > /x");
    await eventually(() => seen.requests.length === 2);
    gateway.sessions[0]?.holdCommits(true);
    program.channel.write(Buffer.alloc(100_000, "x"));
    program.channel.close();
    await new Promise((done) => setTimeout(done, 50));
    gateway.sessions[0]?.holdCommits(false);
    await eventually(() => gateway.json(RECORD.statementCompleted).length === 1);
    await program.closed;
    expect(seen.data.length).toBe(100_000);
    connection.destroy();
  });

  test("that closes its channel after the end of the output still gets the exit status, as from an sshd", async () => {
    const seen = await start(
      { shell: true },
      {
        onOpen(_open, accept) {
          const channel = accept.accept({
            ...QUIET,
            onRequest(request) {
              if (request.type === "exec") {
                channel.write(Buffer.from("out"));
                channel.eof();
              }
              return Promise.resolve(true);
            },
            // The program goes on without its output, and ends only now; sshd tells so before it answers the close.
            onClosing() {
              void channel.request("exit-status", false, encodeNumber(9));
              channel.close();
            },
          });
          seen.channels.push(channel);
        },
      },
    );
    const { connection } = await connectClient(gateway);
    const program = await exec(connection, "echo out; exec >&- 2>&-; exit 9");
    program.channel.eof();
    await program.until(({ eof }) => eof);
    program.channel.close(); // what OpenSSH does once both directions have ended
    await program.closed;
    expect([program.stdout, statusOf(program)]).toEqual(["out", 9]);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ tag: "exit 9" }]);
    connection.destroy();
  });

  test("that closes its channel before the target has said that it runs the command has its end on record all the same", async () => {
    const answer = Promise.withResolvers<boolean>();
    const seen = await start(
      { shell: true },
      {
        onOpen(_open, accept) {
          const channel = accept.accept({
            ...QUIET,
            onRequest(request) {
              seen.requests.push({ ...request, data: Buffer.from(request.data) });
              return request.type === "exec" ? answer.promise : Promise.resolve(true);
            },
            onClosing() {
              answer.resolve(true);
              void channel.request("exit-status", false, encodeNumber(9));
              channel.close();
            },
          });
        },
      },
    );
    const { connection } = await connectClient(gateway);
    const program = await exec(connection, "make; exit 9");
    await eventually(() => seen.requests.some(({ type }) => type === "exec"));
    program.channel.close();
    await program.closed;
    expect(statusOf(program)).toBe(9);
    await eventually(() => gateway.json(RECORD.statementCompleted).length === 1);
    const [completed] = gateway.json(RECORD.statementCompleted);
    expect(completed).toMatchObject({ tag: "exit 9" });
    expect(completed).not.toHaveProperty("error");
    connection.destroy();
  });

  test("that closes its channel while its terminal is asked for is named as the cause, and its command never reaches the target", async () => {
    const answer = Promise.withResolvers<boolean>();
    const seen = await start(
      { shell: true },
      {
        onOpen(_open, accept) {
          const channel = accept.accept({
            ...QUIET,
            onRequest(request) {
              seen.requests.push({ ...request, data: Buffer.from(request.data) });
              return request.type === "pty-req" ? answer.promise : Promise.resolve(true);
            },
            onClosing() {
              answer.resolve(true);
              channel.close();
            },
          });
        },
      },
    );
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection);
    await program.channel.request("pty-req", true, PTY);
    await program.channel.request("exec", true, encodeString("top"));
    await eventually(() => seen.requests.some(({ type }) => type === "pty-req"));
    program.channel.close();
    await program.closed;
    await eventually(() => gateway.json(RECORD.statementCompleted).length === 1);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ error: { code: "client_gone" } }]);
    expect([statusOf(program), seen.requests.map(({ type }) => type)]).toEqual([undefined, ["env", "pty-req"]]);
    connection.destroy();
  });

  test("that has closed its channel is not said to have ended what a cut ended", async () => {
    const closing = Promise.withResolvers<void>();
    await start(
      { shell: true },
      {
        onOpen: (_open, accept) => void accept.accept({ ...QUIET, onRequest: YES, onClosing: () => closing.resolve() }),
      },
    );
    const { connection } = await connectClient(gateway);
    const program = await exec(connection, "sleep 1000");
    program.channel.close();
    await closing.promise;
    gateway.sessions[0]?.handle?.cut("the grant is over");
    await gateway.sessions[0]?.ended;
    await eventually(() => gateway.json(RECORD.statementCompleted).length === 1);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([
      { error: { code: "cut", message: "the grant is over" } },
    ]);
    connection.destroy();
  });

  test("that closes a forward whose far end does not read keeps its place until that has: what waits is bounded by channels", async () => {
    let far: Channel | undefined;
    let got = 0;
    await start(
      { forward: ["127.0.0.1:9"] },
      {
        onOpen(_open, accept) {
          far = accept.accept({ ...QUIET, onData: (data) => void (got += data.length), onClose: () => {} });
        },
      },
    );
    const { connection } = await connectClient(gateway);
    const data = encodeTcpOpen({ host: "127.0.0.1", port: 9, originHost: "::1", originPort: 1 });
    const forward = await openChannel(connection, { type: "direct-tcpip", data });
    let closed = false;
    void forward.closed.then(() => (closed = true));
    forward.channel.write(Buffer.alloc(3 * MIB));
    forward.channel.close();
    await eventually(() => got === 2 * MIB && forward.channel.pendingBytes === 0);
    await connection.request("keepalive@openssh.com", true, NONE); // its answer comes after that of the close, if there is one
    expect([closed, connection.channels]).toEqual([false, 1]);
    far?.consumed(2 * MIB);
    await forward.closed;
    expect(got).toBe(3 * MIB);
    connection.destroy();
  });

  test("gets a forward that it asks for twice at once, once: the second answer does not take the first one away", async () => {
    const asked: string[] = [];
    await start(
      { remoteForward: ["localhost:8022"] },
      {
        onRequest({ type }) {
          asked.push(type);
          return Promise.resolve({ ok: asked.length === 1 }); // as an sshd: the port is taken then
        },
      },
    );
    let opened = 0;
    const { connection } = await connectClient(gateway, {
      onOpen(_open, accept) {
        opened += 1;
        accept.accept(QUIET);
      },
    });
    const data = encodeEndpoint({ host: "localhost", port: 8022 });
    const answers = await Promise.all([1, 2].map(() => connection.request("tcpip-forward", true, data)));
    expect(answers.map(({ ok }) => ok)).toEqual([true, false]);
    const from = { host: "localhost", port: 8022, originHost: "127.0.0.1", originPort: 1 };
    await target?.connections[0]?.open("forwarded-tcpip", encodeTcpOpen(from), QUIET);
    expect([opened, asked]).toEqual([1, ["tcpip-forward"]]);
    connection.destroy();
  });

  test("reads why a command of more than 128 KiB is not run, and it is on record without being kept", async () => {
    const seen = await start({ shell: true });
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection);
    expect(await program.channel.request("exec", true, encodeString("x".repeat(200_000)))).toBe(true);
    await program.closed;
    expect([statusOf(program), program.stderr]).toEqual([254, expect.stringContaining("128 KiB")]);
    expect(statements(gateway, RECORD.statementRefused)).toHaveLength(1);
    expect(recorded()).toBeLessThan(10_000);
    expect(seen.channels).toEqual([]);
    connection.destroy();
  });

  test.each<[string, string, Buffer]>([
    ["a name with =", "env", encodeEnv({ name: "LANG=x\nLC_GLASSKEY", value: "x" })],
    ["a name with NUL", "env", encodeEnv({ name: "LC_GLASSKEY\0", value: "x" })],
    ["a name that begins as the mark", "env", encodeEnv({ name: "LC_GLASSKEYX", value: "x" })],
    ["the mark in small letters", "env", encodeEnv({ name: "lc_glasskey", value: "x" })],
    ["a value with NUL", "env", encodeEnv({ name: "LANG", value: "C\0LC_GLASSKEY=x" })],
    ["a very long value", "env", encodeEnv({ name: "LANG", value: "x".repeat(100_000) })],
    ["a terminal's name with NUL", "pty-req", encodePty({ term: "x\0LC_GLASSKEY=y", ...SIZE, modes: [] })],
  ])("smuggles nothing past Glasskey's mark: %s", async (_what, type, data) => {
    const seen = await start({ shell: true, env: ["L*", "l*"] });
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection);
    const answer = await program.channel.request(type, true, data);
    await program.channel.request("exec", true, encodeString("id"));
    await eventually(() => seen.requests.some((request) => request.type === "exec"));
    const marks = seen.requests.filter((request) => request.data.includes("GLASSKEY"));
    expect(marks.map((request) => request.data)).toEqual([encodeEnv({ name: "LC_GLASSKEY", value: gateway.lease })]);
    if (data.includes("lc_glasskey")) return connection.destroy();
    expect(answer).toBe(false);
    connection.destroy();
  });
});

describe("a target that lies", () => {
  test("ends a program once: what it says of it later does not reach the client, however often", async () => {
    const seen = await start({ shell: true });
    const { connection, transport, closed } = await connectClient(gateway);
    const program = await exec(connection, "x");
    await eventually(() => seen.requests.length === 2);
    const [channel] = seen.channels;
    void channel?.request("exit-status", false, encodeNumber(3));
    await program.until(({ requests }) => requests.length === 1);
    transport.pause(); // a client that does not read must not be charged with it
    const long = encodeExitSignal({ name: "TERM", coreDumped: false, message: "x".repeat(100_000) });
    for (let time = 0; time < 300; time++) {
      void channel?.request("exit-status", false, encodeNumber(0));
      void channel?.request("exit-signal", false, long);
      void channel?.request("xon-xoff", false, Buffer.of(time % 2));
      void channel?.request("eow@openssh.com", false, Buffer.alloc(100_000));
      if (time % 2 === 0) await eventually(() => (target?.transports[0]?.pendingBytes ?? 0) === 0);
    }
    await channel?.request("last", true, NONE);
    transport.resume();
    channel?.close();
    await program.closed;
    expect(gateway.sessions[0]?.end).toBeUndefined();
    expect(statusOf(program)).toBe(3);
    expect(program.requests.filter(({ type }) => type.startsWith("exit-"))).toHaveLength(1);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ tag: "exit 3" }]);
    connection.destroy();
    await closed;
  });

  test("does not turn the status of what the gateway ended into a success, however late its client reads", async () => {
    const damaged = Buffer.from([0, 0, 0, 5, 101, 0, 0, 0, 1]); // an answer that nobody asked for
    await start(
      { sftp: { read: ["/"] } },
      {
        onOpen(_open, accept) {
          const channel = accept.accept({
            ...QUIET,
            onRequest(request) {
              if (request.type === "subsystem") {
                channel.write(Buffer.alloc(3 * MIB, "x"), 1);
                channel.write(damaged);
              }
              return YES();
            },
            onClosing() {
              void channel.request("exit-status", false, encodeNumber(0));
              channel.close();
            },
          });
        },
      },
    );
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection, { reading: false });
    await program.channel.request("subsystem", true, encodeString("sftp"));
    await eventually(() => gateway.json(RECORD.statementCompleted).length === 1);
    program.reading = true;
    program.channel.consumed(program.bytes);
    await program.closed;
    expect(program.requests.map(({ type, data }) => [type, data.readUInt32BE(0)])).toEqual([["exit-status", 254]]);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ error: { code: "refused" } }]);
    connection.destroy();
  });

  test("is named as the cause when it opens channels without end that nobody asked for", async () => {
    await start({ shell: true });
    const { connection, closed } = await connectClient(gateway);
    const lies = target?.connections[0];
    const flood = async (): Promise<void> => {
      for (let time = 0; time < 1_100; time++) await lies?.open("forwarded-tcpip", NONE_TCP, QUIET).catch(() => {});
    };
    void flood();
    await closed;
    const end = await gateway.sessions[0]?.ended;
    expect(end).toMatchObject({ cause: "target" });
    expect(end?.detail).not.toContain("grant");
    connection.destroy();
  });
});

const NONE_TCP = new Writer().string("localhost").uint32(1).string("").uint32(0).done();

test("a defect of the gateway's own ends the session as that, and nobody is blamed for it", async () => {
  await start({ shell: true });
  const { connection, closed } = await connectClient(gateway);
  const program = await exec(connection, "cat");
  const [session] = gateway.sessions;
  const { records } = session ?? { records: [] };
  records.push = () => {
    throw new Error("a made-up defect");
  };
  program.channel.write(Buffer.from("x"));
  await closed;
  expect(await session?.ended).toMatchObject({ cause: "error", detail: "a defect: a made-up defect" });
});

test("what is pasted is dealt with in turns of the event loop, in order, and its end stays behind it", async () => {
  const typed: number[] = [];
  const sent: Buffer[] = [];
  let eofAt = -1;
  const terminal = {
    input(bytes: Uint8Array, committed: () => void) {
      typed.push(bytes.length);
      committed();
    },
    output: () => {},
    resize: () => {},
  };
  const ends = {
    toTarget(data: Uint8Array, done?: () => void) {
      sent.push(Buffer.from(data));
      done?.();
    },
    targetEof: () => void (eofAt = sent.length),
    ...{ toClient: () => {}, clientDone: () => {}, targetDone: () => {} },
  };
  const flow = createTerminalFlow(
    terminal,
    ends,
    () => {},
    (error) => expect.unreachable(String(error)),
  );
  flow.fromClient(Buffer.from("k"));
  expect(typed).toEqual([1]); // a keystroke goes at once
  const paste = Buffer.from(Array.from({ length: 20_000 }, (_, index) => index % 251));
  flow.fromClient(paste);
  flow.fromClient(Buffer.from("behind"));
  flow.clientEof();
  expect(typed).toEqual([1, 512]);
  await eventually(() => eofAt > 0);
  expect(Math.max(...typed)).toBe(512);
  expect(Buffer.concat(sent)).toEqual(Buffer.concat([Buffer.from("k"), paste, Buffer.from("behind")]));
  expect(eofAt).toBe(sent.length);
});

describe("whoever leaves", () => {
  test("before, during and after the login leaves nothing behind", async () => {
    const held = new Set<Socket>();
    const silent = createServer((socket) => {
      held.add(socket.resume());
      socket.on("error", () => {}).once("close", () => held.delete(socket));
    }).listen(0, "127.0.0.1");
    await once(silent, "listening");
    const { port } = silent.address() as AddressInfo;
    gateway = await startTestGateway({
      target: { port, hostKeys: [authority.line] },
      ...{ authority: authority.signer, scope: scopeOf({ shell: true }) },
    });
    // Half a greeting; then a greeting and half an offer; then the keys and half a login.
    const half = connect(gateway.port, "127.0.0.1").on("error", () => {});
    half.write("SSH-2.0-x");
    const kex = connect(gateway.port, "127.0.0.1").on("error", () => {});
    kex.write(Buffer.concat([Buffer.from("SSH-2.0-x\r\n"), Buffer.of(0, 0, 0, 252, 4, MSG.kexInit)]));
    const login = connect(gateway.port, "127.0.0.1").on("error", () => {});
    const transport = await createClientTransport({ socket: login, verifyHostKey: () => {} });
    transport.send(new Writer().byte(MSG.serviceRequest).string("ssh-userauth").done());
    // Let in, and the target does not answer.
    const dialling = connectClient(gateway).catch((error: unknown) => error);
    await eventually(() => held.size === 1 && gateway.open.size === 4);
    for (const socket of [half, kex, login]) socket.destroy();
    await eventually(() => gateway.open.size === 1);
    for (const socket of gateway.open) socket.resetAndDestroy();
    await dialling;
    expect(await gateway.sessions[0]?.ended).toMatchObject({ cause: "client", detail: "the client went away" });
    await eventually(() => held.size === 0 && gateway.open.size === 0);
    silent.close();
  });

  test("is cut in the same turn, reads or not, and nothing more reaches the target", async () => {
    const seen = await start({ shell: true });
    const { connection, transport } = await connectClient(gateway);
    const program = await exec(connection, "yes");
    await eventually(() => seen.requests.length === 2);
    transport.pause();
    const block = Buffer.alloc(64 * 1024, "y");
    for (let time = 0; time < 64; time++) seen.channels[0]?.write(block);
    await eventually(() => (gateway.sessions[0]?.records.filter(({ kind }) => kind === RECORD.output).length ?? 0) > 4);
    gateway.sessions[0]?.handle?.cut("it is over");
    expect(gateway.sessions[0]?.end).toMatchObject({ cause: "cut", detail: "it is over", statements: 1 });
    program.channel.write(Buffer.from("late"));
    gateway.sessions[0]?.handle?.destroy();
    await eventually(() => gateway.open.size === 0);
    expect(seen.data).toBe("");
  });
});
