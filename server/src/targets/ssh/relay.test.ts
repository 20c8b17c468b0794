import { afterEach, describe, expect, test } from "vitest";
import { RECORD } from "../target.ts";
import { createActivity } from "./activity.ts";
import { connectClient, eventually, openChannel, statusOf } from "./fixtures/client.ts";
import { startFakeTarget, type FakeTarget } from "./fixtures/fake-target.ts";
import { startTestGateway, statements, testAuthority, type TestGateway } from "./fixtures/gateway.ts";
import { encodeEnv, encodeExitSignal, encodePty, encodeString, encodeTcpOpen } from "./requests.ts";
import { parseScope } from "./scope.ts";
import { DISCONNECT, type Channel, type Connection, type ConnectionHandlers, type Request } from "./types.ts";

/** The relay between a client of our own and a fake target: what neither OpenSSH would do. */

const NONE = Buffer.alloc(0);
const authority = testAuthority();
let gateway: TestGateway;
let target: FakeTarget;

/** What the fake target was sent, over all channels. */
interface Seen {
  requests: Request[];
  channels: Channel[];
  data: string;
  opened: string[];
}

async function start(scope: object, more: Partial<ConnectionHandlers> = {}, parts: object = {}): Promise<Seen> {
  const seen: Seen = { requests: [], channels: [], data: "", opened: [] };
  target = await startFakeTarget(() => ({
    onOpen(open, accept) {
      seen.opened.push(open.type);
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
  const parsed = parseScope({ user: "root", ...scope });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  gateway = await startTestGateway({ target, authority: authority.signer, scope: parsed.value, parts });
  return seen;
}

const exec = (connection: Connection, command: string): Promise<Awaited<ReturnType<typeof openChannel>>> =>
  openChannel(connection).then(async (seen) => {
    await seen.channel.request("exec", true, encodeString(command));
    return seen;
  });

describe("the relay", () => {
  afterEach(async () => {
    await gateway.close();
    await target.close();
  });

  test("tells the target nothing that the client set up before the program is on record, and then all of it behind Glasskey's mark", async () => {
    const seen = await start({ shell: true, env: ["APP_*"] });
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection);
    const pty = encodePty({
      term: "xterm",
      columns: 80,
      rows: 24,
      width: 0,
      height: 0,
      modes: [{ opcode: 53, value: 1 }],
    });
    expect(await program.channel.request("pty-req", true, pty)).toBe(true);
    expect(await program.channel.request("env", true, encodeEnv({ name: "APP_MODE", value: "x" }))).toBe(true);
    expect(seen.opened).toEqual([]);
    expect(await program.channel.request("exec", true, encodeString("top"))).toBe(true);
    await eventually(() => seen.requests.length === 4);
    expect(seen.requests.map(({ type }) => type)).toEqual(["env", "env", "pty-req", "exec"]);
    expect(seen.requests[0]?.data).toEqual(encodeEnv({ name: "LC_GLASSKEY", value: gateway.lease }));
    expect(seen.requests[2]?.data).toEqual(pty);
    expect(gateway.json(RECORD.statementStarted)).toMatchObject([
      { via: "exec", text: "top", detail: { terminal: { cols: 80, rows: 24 }, env: { APP_MODE: "x" } } },
    ]);
    connection.destroy();
  });

  test("a second program on one channel, and set-up after the first, change nothing and are on record", async () => {
    const seen = await start({ shell: true });
    const { connection } = await connectClient(gateway);
    const program = await exec(connection, "first");
    await eventually(() => seen.requests.length === 2);
    expect(await program.channel.request("exec", true, encodeString("second"))).toBe(false);
    expect(await program.channel.request("shell", true, NONE)).toBe(false);
    const pty = encodePty({ term: "x", columns: 1, rows: 1, width: 0, height: 0, modes: [] });
    expect(await program.channel.request("pty-req", true, pty)).toBe(false);
    expect(await program.channel.request("env", true, encodeEnv({ name: "LANG", value: "C" }))).toBe(false);
    expect(await program.channel.request("subsystem", true, encodeString("sftp"))).toBe(false);
    expect(seen.requests.map(({ type }) => type)).toEqual(["env", "exec"]);
    expect(statements(gateway, RECORD.statementRefused)).toHaveLength(5);
    connection.destroy();
  });

  test("requests before there is a program, and damaged ones, are answered with no and reach nobody", async () => {
    const seen = await start({ shell: true });
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection);
    expect(await program.channel.request("signal", true, encodeString("KILL"))).toBe(false);
    expect(await program.channel.request("window-change", true, NONE)).toBe(false);
    expect(await program.channel.request("pty-req", true, Buffer.from("short"))).toBe(false);
    expect(await program.channel.request("env", true, Buffer.from([0, 0, 0, 200, 1]))).toBe(false);
    expect(await program.channel.request("exec", true, Buffer.from([255, 255, 255, 255]))).toBe(false);
    expect([seen.opened, statements(gateway)]).toEqual([[], []]);
    connection.destroy();
  });

  test("a command that is no text is refused where the person sees it, and its bytes are on record", async () => {
    await start({ shell: true });
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection);
    await program.channel.request("exec", true, new Uint8Array([0, 0, 0, 3, 0x6c, 0xff, 0x73]));
    await program.closed;
    expect(program.stderr).toContain("UTF-8");
    expect(statusOf(program)).toBe(254);
    expect(gateway.json(RECORD.statementRefused)).toMatchObject([
      { base64: Buffer.from([0x6c, 0xff, 0x73]).toString("base64") },
    ]);
    connection.destroy();
  });

  test("the target opens no channel that nobody asked for, whatever its type", async () => {
    await start({ shell: true });
    const { connection } = await connectClient(gateway, {
      onOpen: () => expect.unreachable("a channel of the target's reached the client"),
    });
    const types = ["session", "auth-agent@openssh.com", "x11", "direct-tcpip", "unheard-of"];
    for (const type of [...types, "forwarded-tcpip"]) {
      const data =
        type === "forwarded-tcpip"
          ? encodeTcpOpen({ host: "localhost", port: 22, originHost: "", originPort: 0 })
          : NONE;
      await expect(target.connections[0]?.open(type, data, QUIET)).rejects.toThrow(/nobody asked for/);
    }
    expect(statements(gateway, RECORD.statementRefused)).toHaveLength(types.length + 1);
    connection.destroy();
  });

  test("a damaged message of the target ends the session and not the gateway", async () => {
    await start({ agent: true });
    const { closed } = await connectClient(gateway);
    target.connections[0]?.open("forwarded-tcpip", Buffer.from([1, 2]), QUIET).catch(() => {});
    await closed;
    expect((await gateway.sessions[0]?.ended)?.cause).toBe("error");
  });

  test("what the target says of a program's end has no control characters when it reaches the client and the record", async () => {
    const seen = await start({ shell: true });
    const { connection } = await connectClient(gateway);
    const program = await exec(connection, "x");
    await eventually(() => seen.requests.length === 2);
    void seen.channels[0]?.request(
      "exit-signal",
      false,
      encodeExitSignal({ name: "A\x1b]0;x\x07", coreDumped: false, message: "\x1b[2J" }),
    );
    seen.channels[0]?.close();
    await program.closed;
    expect(program.requests[0]?.data.includes(0x1b)).toBe(false);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ tag: "signal A ]0;x" }]);
    connection.destroy();
  });

  test("data behind the end, on a channel that is closed, and for a refused program goes nowhere", async () => {
    const seen = await start({ commands: ["uptime"] });
    const { connection } = await connectClient(gateway);
    const program = await openChannel(connection);
    program.channel.write(Buffer.from("rm -rf /\n"));
    await program.channel.request("exec", true, encodeString("sh"));
    program.channel.write(Buffer.from("rm -rf /\n"));
    await program.closed;
    expect([seen.opened, seen.data]).toEqual([[], ""]);
    connection.destroy();
  });

  test("somebody who asks a thousand times for what is refused is cut, and the record does not grow for ever", async () => {
    await start({ commands: ["uptime"] });
    const { connection, closed } = await connectClient(gateway);
    const flood = async (): Promise<void> => {
      for (let index = 0; index < 1_100; index++) await connection.request("unheard-of@example.org", true, NONE);
    };
    flood().catch(() => {});
    await closed;
    expect((await gateway.sessions[0]?.ended)?.detail).toContain("too much");
    expect(statements(gateway, RECORD.statementRefused)).toHaveLength(1_000);
  });

  test("a target that gives no sign of life is found and told, while one that answers lives", async () => {
    const seen = await start({ shell: true }, {}, { keepaliveMs: 50 });
    const { connection, closed } = await connectClient(gateway);
    const program = await exec(connection, "x");
    await eventually(() => seen.requests.length === 2);
    await new Promise((done) => setTimeout(done, 1_000)); // twenty signs of life
    expect(gateway.sessions[0]?.end).toBeUndefined();
    target.transports[0]?.pause();
    await closed;
    expect(program.stderr).toContain("web-1 gave no sign of life");
    expect((await gateway.sessions[0]?.ended)?.cause).toBe("target");
  });

  test("a client that gives no sign of life is let go of, and so is what it held on the target", async () => {
    const seen = await start({ shell: true }, {}, { keepaliveMs: 50 });
    const { connection, transport } = await connectClient(gateway);
    await exec(connection, "x");
    await eventually(() => seen.requests.length === 2);
    transport.pause();
    const end = await gateway.sessions[0]?.ended;
    expect(end).toMatchObject({ cause: "client", detail: "the client gave no sign of life" });
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ error: { code: "client_gone" } }]);
    await eventually(() => gateway.open.size === 0);
  });

  test("while a command does not read, its sender waits, and a window is all that is held", async () => {
    const channels: Channel[] = [];
    await start(
      { shell: true },
      {
        onOpen(_open, accept) {
          channels.push(
            accept.accept({
              onData: () => {},
              onRequest: () => Promise.resolve(true),
              onEof: () => {},
              onClose: () => {},
            }),
          );
        },
      },
    );
    const { connection } = await connectClient(gateway);
    const program = await exec(connection, "sleep");
    const block = Buffer.alloc(64 * 1024, "x");
    for (let index = 0; index < 256; index++) program.channel.write(block); // 16 MiB
    await eventually(() => gateway.sessions[0]?.records.filter(({ kind }) => kind === RECORD.data).length !== 0);
    await new Promise((done) => setTimeout(done, 500));
    const taken = gateway.sessions[0]?.records.reduce(
      (sum, { kind, payload }) => sum + (kind === RECORD.data ? payload.length : 0),
      0,
    );
    expect(taken).toBeLessThan(6 * 1024 * 1024); // the target's window and the client's
    expect(program.channel.pendingBytes).toBeGreaterThan(8 * 1024 * 1024);
    connection.disconnect(DISCONNECT.byApplication, "");
  });

  test("a program whose record comes after the end is never begun", async () => {
    const seen = await start({ shell: true });
    const { connection } = await connectClient(gateway);
    gateway.sessions[0]?.holdCommits(true);
    const program = await openChannel(connection);
    void program.channel.request("exec", false, encodeString("late"));
    program.channel.close();
    await eventually(() => statements(gateway).length === 1);
    gateway.sessions[0]?.handle?.cut("over");
    gateway.sessions[0]?.holdCommits(false);
    await gateway.sessions[0]?.ended;
    expect(seen.requests.filter(({ type }) => type === "exec")).toEqual([]);
    void connection;
  });
});

const QUIET = { onData: () => {}, onRequest: () => Promise.resolve(false), onEof: () => {}, onClose: () => {} };

describe("being busy", () => {
  test("lasts while something is held, and for a while after a byte", async () => {
    const said: boolean[] = [];
    const activity = createActivity((busy) => said.push(busy), 50);
    const release = activity.hold();
    activity.touch();
    await new Promise((done) => setTimeout(done, 120));
    expect(said).toEqual([true]);
    release();
    release();
    expect(said).toEqual([true, false]);
    activity.touch();
    activity.touch();
    await eventually(() => said.length === 4);
    expect(said).toEqual([true, false, true, false]);
    activity.stop();
  });
});
