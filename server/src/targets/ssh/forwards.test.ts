import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Server } from "node:net";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { JsonObject } from "../../core/json.ts";
import { RECORD } from "../target.ts";
import { connectClient, eventually, openChannel, run, ssh } from "./fixtures/client.ts";
import { startTestGateway, statements, testAuthority, type TestGateway } from "./fixtures/gateway.ts";
import { missingSshd, startSshd, type TestSshd } from "./fixtures/sshd.ts";
import { encodeEndpoint, encodeString, encodeTcpOpen } from "./requests.ts";
import { parseScope } from "./scope.ts";

const why = missingSshd();
const authority = testAuthority();
let sshd: TestSshd;
let echo: Server;
let port = 0;
const gateways: TestGateway[] = [];
const children: ChildProcess[] = [];

async function start(input: JsonObject): Promise<TestGateway> {
  const parsed = parseScope({ user: "root", ...input });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  const target = { port: sshd.port, hostKeys: Object.values(sshd.hostKeys) };
  const gateway = await startTestGateway({ target, authority: authority.signer, scope: parsed.value });
  gateways.push(gateway);
  return gateway;
}

/** Says something to a port and hears the same. */
async function hears(at: number, text: string): Promise<string> {
  const socket = connect(at, "127.0.0.1");
  socket.end(text);
  let heard = "";
  for await (const bytes of socket) heard += String(bytes);
  return heard;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port: free } = server.address() as AddressInfo;
  server.close();
  return free;
}

describe.skipIf(why !== undefined)(`forwards${why === undefined ? "" : ` (${why})`}`, () => {
  beforeAll(async () => {
    sshd = await startSshd({ trustedUserCas: [authority.line], config: ["AllowAgentForwarding yes"] });
    echo = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket).on("error", () => {})).listen(
      0,
      "127.0.0.1",
    );
    await once(echo, "listening");
    port = (echo.address() as AddressInfo).port;
  }, 30_000);
  afterEach(async () => {
    for (const child of children.splice(0)) child.kill("SIGKILL");
    await Promise.all(gateways.splice(0).map((gateway) => gateway.close()));
  });
  afterAll(async () => {
    echo?.close();
    await sshd?.dispose();
  });

  test("ssh -W reaches what the playbook names, with its bytes counted both ways", async () => {
    const gateway = await start({ forward: [`127.0.0.1:${port}`] });
    const done = await ssh(gateway, ["-W", `127.0.0.1:${port}`, "gw"], { input: "hello" });
    expect(done).toMatchObject({ code: 0, stdout: "hello" });
    await gateway.sessions[0]?.ended;
    expect(statements(gateway)).toEqual([`forward 127.0.0.1:${port}`]);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ bytes: 10, detail: { in: 5, out: 5 } }]);
  });

  test("ssh -L passes several connections, each a statement, and the named port alone", async () => {
    const gateway = await start({ forward: [`127.0.0.1:${port}`] });
    const socket = join(gateway.dir, "forward.sock");
    const other = join(gateway.dir, "other.sock");
    const args = ["-N", "-L", `${socket}:127.0.0.1:${port}`, "-L", `${other}:127.0.0.1:${sshd.port}`, "gw"];
    children.push(spawn("ssh", [...gateway.clientArgs, ...args], { stdio: "ignore" }));
    const say = async (path: string): Promise<string> => {
      const client = connect(path);
      client.end("hi");
      let heard = "";
      for await (const bytes of client) heard += String(bytes);
      return heard;
    };
    await eventually(async () => (await say(socket).catch(() => "")) === "hi");
    expect(await Promise.all([say(socket), say(socket)])).toEqual(["hi", "hi"]);
    expect(await say(other).catch(() => "")).toBe("");
    expect(statements(gateway, RECORD.statementRefused)).toEqual([`forward 127.0.0.1:${sshd.port}`]);
  });

  test("ssh -J to the grant's own target is refused with the line that works", async () => {
    const gateway = await start({ shell: true });
    const jump = [...gateway.clientArgs, "-J", "gw", "-p", String(sshd.port), "root@127.0.0.1", "true"];
    const done = await run("ssh", jump);
    expect(done.code).toBe(255);
    expect(done.stderr).toContain(`ssh ${gateway.grant}@`);
    expect(statements(gateway)).toEqual([]);
  });

  test("ssh -R listens where the playbook says, and what connects there reaches the client", async () => {
    const given = await freePort();
    const gateway = await start({ remoteForward: [`localhost:${given}`] });
    let reached = "";
    const { connection } = await connectClient(gateway, {
      onOpen(open, accept) {
        expect(open.type).toBe("forwarded-tcpip");
        const channel = accept.accept({
          onData(data) {
            reached += data.toString();
            channel.consumed(data.length);
            channel.write(data);
          },
          onRequest: () => Promise.resolve(false),
          onEof: () => channel.eof(),
          onClose: () => {},
        });
      },
    });
    const answer = await connection.request("tcpip-forward", true, encodeEndpoint({ host: "localhost", port: given }));
    expect(answer.ok).toBe(true);
    expect(await hears(given, "from the host")).toBe("from the host");
    expect(reached).toBe("from the host");
    const cancelled = await connection.request(
      "cancel-tcpip-forward",
      true,
      encodeEndpoint({ host: "localhost", port: given }),
    );
    expect(cancelled.ok).toBe(true);
    await expect(hears(given, "again")).rejects.toThrow(/ECONNREFUSED|ECONNRESET/);
    await eventually(() => gateway.json(RECORD.statementCompleted).length === 2);
    expect(statements(gateway)[1]).toMatch(/^remote-forward localhost:\d+ from /);
    connection.destroy();
  });

  test("a forward whose far end is closed says what the target said", async () => {
    const dead = await freePort();
    const gateway = await start({ forward: [`127.0.0.1:${dead}`] });
    const done = await ssh(gateway, ["-W", `127.0.0.1:${dead}`, "gw"]);
    expect(done.stderr).toMatch(/connect failed.*refused/i);
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([{ error: { code: "refused" } }]);
  });

  test("the client's agent is reached from the host where the playbook says so, each time on record", async () => {
    const gateway = await start({ shell: true, agent: true });
    const socket = join(gateway.dir, "agent.sock");
    const agent = spawn("ssh-agent", ["-D", "-a", socket], { stdio: "ignore" });
    children.push(agent);
    await eventually(() => {
      try {
        execFileSync("ssh-add", ["-q", join(gateway.dir, "key")], {
          env: { ...process.env, SSH_AUTH_SOCK: socket },
          stdio: "ignore",
        });
        return true;
      } catch {
        return false;
      }
    });
    const done = await ssh(gateway, ["-o", `IdentityAgent=${socket}`, "-A", "gw", "ssh-add -l"]);
    expect(done.stdout).toMatch(/SHA256:\S+ ann \(ED25519/);
    expect(statements(gateway)).toEqual(["exec ssh-add -l", "agent the client's agent"]);
  });

  test("without that, the host finds no agent", async () => {
    const gateway = await start({ shell: true });
    const { connection } = await connectClient(gateway);
    const seen = await openChannel(connection);
    expect(await seen.channel.request("auth-agent-req@openssh.com", true, Buffer.alloc(0))).toBe(false);
    await seen.channel.request("exec", true, encodeString("echo [$SSH_AUTH_SOCK]"));
    await seen.closed;
    expect(seen.stdout).toBe("[]\n");
    connection.destroy();
  });

  test("no more than the client asked for can be opened by the target, and end of the session ends forwards", async () => {
    const gateway = await start({ forward: [`127.0.0.1:${port}`], shell: true });
    const { connection, closed } = await connectClient(gateway);
    const data = encodeTcpOpen({ host: "127.0.0.1", port, originHost: "::1", originPort: 1 });
    const forward = await openChannel(connection, { type: "direct-tcpip", data });
    forward.channel.write(Buffer.from("ping"));
    await forward.until(({ stdout }) => stdout === "ping");
    const program = await openChannel(connection);
    await program.channel.request("exec", true, encodeString("echo up; cat"));
    await program.until(({ stdout }) => stdout === "up\n");
    gateway.sessions[0]?.handle?.cut("over");
    await closed;
    expect(gateway.json(RECORD.statementCompleted)).toMatchObject([
      { n: 1, error: { code: "cut", message: "over" }, detail: { in: 4, out: 4 } },
      { n: 2, error: { code: "cut" } },
    ]);
  });
});
