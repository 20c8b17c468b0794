import { once } from "node:events";
import { createServer, type AddressInfo, type Server } from "node:net";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { JsonObject } from "../../core/json.ts";
import { RECORD } from "../target.ts";
import { connectClient, openChannel, run, statusOf, type SeenChannel } from "./fixtures/client.ts";
import { startTestGateway, statements, testAuthority, type TestGateway } from "./fixtures/gateway.ts";
import { missingSshd, startSshd, type TestSshd } from "./fixtures/sshd.ts";
import {
  encodeDirectStreamlocal,
  encodeEndpoint,
  encodeEnv,
  encodePty,
  encodeString,
  encodeTcpOpen,
  encodeX11,
} from "./requests.ts";
import { parseScope } from "./scope.ts";
import type { Connection } from "./types.ts";
import { Writer } from "./wire.ts";

/**
 * Kind of channel or request × playbook: what is not named is refused, whatever way it is asked for, and every refusal is on
 * record. (Lesson 15: authorisation was missing on a second channel.)
 */

const NONE = Buffer.alloc(0);
const PTY = encodePty({ term: "xterm", columns: 80, rows: 24, width: 0, height: 0, modes: [] });
const why = missingSshd();
const authority = testAuthority();
let sshd: TestSshd;
let files: string; // on the "host": {files}/read.txt may be read, {files}/in/ be written to
let echo: Server;
let echoPort = 0;
let listenPort = 0; // free

/** What a playbook may say, by name. */
function playbooks(): Record<string, JsonObject> {
  const commands = { commands: ["/bin/echo ok"] };
  const sftpRead = { sftp: { read: [`${files}/**`], write: [] } };
  const sftpWrite = { sftp: { read: [], write: [`${files}/in/**`] } };
  const forward = { forward: [`127.0.0.1:${echoPort}`] };
  return {
    nothing: {},
    shell: { shell: true },
    commands,
    sftpRead,
    sftpWrite,
    forward,
    everything: {
      ...{ shell: true, ...commands, sftp: { ...sftpRead.sftp, write: sftpWrite.sftp.write }, ...forward },
      ...{ remoteForward: [`localhost:${listenPort}`], agent: true, x11: true, env: ["APP_*"] },
    },
  };
}

type Outcome = "passed" | "refused";
/** One way to ask for something. Says what the client saw. */
type Attempt = (connection: Connection, gateway: TestGateway) => Promise<Outcome>;

/** Starts a program on a channel of its own; refused ones say why on the way that people see. */
async function program(connection: Connection, type: string, data: Buffer, pty = false): Promise<Outcome> {
  const seen = await openChannel(connection);
  if (pty && !(await seen.channel.request("pty-req", true, PTY))) {
    seen.channel.close();
    return "refused";
  }
  expect(await seen.channel.request(type, true, data)).toBe(true); // so that the reason is shown
  if (type === "shell") seen.channel.write(Buffer.from("exit 0\n"));
  seen.channel.eof();
  await seen.closed;
  return outcomeOf(seen);
}

function outcomeOf(seen: SeenChannel): Outcome {
  if (statusOf(seen) !== 254) return "passed";
  expect(`${seen.stderr}${seen.stdout}`).toMatch(/glasskey: .{10}/);
  return "refused";
}

async function opened(connection: Connection, type: string, data: Buffer): Promise<Outcome> {
  try {
    const seen = await openChannel(connection, { type, data });
    seen.channel.close();
    return "passed";
  } catch (error) {
    expect((error as Error).message.length).toBeGreaterThan(10); // what `ssh` shows
    return "refused";
  }
}

/** A request on a channel before its program: told apart by the answer. */
async function setUp(connection: Connection, type: string, data: Buffer): Promise<Outcome> {
  const seen = await openChannel(connection);
  const ok = await seen.channel.request(type, true, data);
  seen.channel.close();
  return ok ? "passed" : "refused";
}

async function global(connection: Connection, type: string, data: Buffer): Promise<Outcome> {
  return (await connection.request(type, true, data)).ok ? "passed" : "refused";
}

async function sftp(gateway: TestGateway, command: string): Promise<Outcome> {
  const done = await run("sftp", [...gateway.clientArgs, "-b", "-", "gw"], { input: `${command}\n` });
  return done.code === 0 ? "passed" : "refused";
}

const tcp = (port: number): Buffer =>
  encodeTcpOpen({ host: "127.0.0.1", port, originHost: "127.0.0.1", originPort: 1 });
const x11 = encodeX11({ singleConnection: false, protocol: "MIT-MAGIC-COOKIE-1", cookie: "00".repeat(16), screen: 0 });

/** What each attempt needs; `everything` always has it, and "nobody" is for what no playbook gives. */
const attempts: readonly { name: string; by: readonly string[]; attempt: Attempt }[] = [
  { name: "shell", by: ["shell"], attempt: (c) => program(c, "shell", NONE) },
  { name: "shell on a terminal", by: ["shell"], attempt: (c) => program(c, "shell", NONE, true) },
  {
    name: "the named command",
    by: ["shell", "commands"],
    attempt: (c) => program(c, "exec", encodeString("/bin/echo ok")),
  },
  { name: "another command", by: ["shell"], attempt: (c) => program(c, "exec", encodeString("/bin/echo no")) },
  {
    name: "the named command with one behind",
    by: ["shell"],
    attempt: (c) => program(c, "exec", encodeString("/bin/echo ok; id")),
  },
  {
    name: "the named command with a line behind",
    by: ["shell"],
    attempt: (c) => program(c, "exec", encodeString("/bin/echo ok\nid")),
  },
  { name: "an empty command", by: ["shell"], attempt: (c) => program(c, "exec", encodeString("")) },
  { name: "subsystem of no such name", by: [], attempt: (c) => program(c, "subsystem", encodeString("netconf")) },
  { name: "subsystem that begins like sftp", by: [], attempt: (c) => program(c, "subsystem", encodeString("sftp\0x")) },
  {
    name: "sftp-server as a command",
    by: ["shell"],
    attempt: (c) => program(c, "exec", encodeString("/usr/lib/openssh/sftp-server")),
  },
  { name: "mosh-server", by: [], attempt: (c) => program(c, "exec", encodeString("mosh-server new -s")) },
  { name: "sftp get", by: ["sftpRead"], attempt: (_, g) => sftp(g, `get ${files}/read.txt ${g.dir}/got`) },
  { name: "sftp put", by: ["sftpWrite"], attempt: (_, g) => sftp(g, `put ${g.dir}/known_hosts ${files}/in/put`) },
  { name: "sftp put beside", by: [], attempt: (_, g) => sftp(g, `put ${g.dir}/known_hosts ${files}/beside`) },
  { name: "forward to the named port", by: ["forward"], attempt: (c) => opened(c, "direct-tcpip", tcp(echoPort)) },
  { name: "forward to another port", by: [], attempt: (c) => opened(c, "direct-tcpip", tcp(sshd.port)) },
  {
    name: "forward to a socket",
    by: [],
    attempt: (c) => opened(c, "direct-streamlocal@openssh.com", encodeDirectStreamlocal("/run/docker.sock")),
  },
  {
    name: "listen on the named port",
    by: ["everything"],
    attempt: (c) => global(c, "tcpip-forward", encodeEndpoint({ host: "localhost", port: listenPort })),
  },
  {
    name: "listen everywhere",
    by: [],
    attempt: (c) => global(c, "tcpip-forward", encodeEndpoint({ host: "", port: 0 })),
  },
  {
    name: "listen on a socket",
    by: [],
    attempt: (c) => global(c, "streamlocal-forward@openssh.com", encodeString("/tmp/gk.sock")),
  },
  { name: "agent", by: ["everything"], attempt: (c) => setUp(c, "auth-agent-req@openssh.com", NONE) },
  { name: "X11", by: ["everything"], attempt: (c) => setUp(c, "x11-req", x11) },
  {
    name: "a named variable",
    by: ["everything"],
    attempt: (c) => setUp(c, "env", encodeEnv({ name: "APP_MODE", value: "1" })),
  },
  {
    name: "LD_PRELOAD",
    by: [],
    attempt: (c) => setUp(c, "env", encodeEnv({ name: "LD_PRELOAD", value: "/tmp/x.so" })),
  },
  { name: "Glasskey's mark", by: [], attempt: (c) => setUp(c, "env", encodeEnv({ name: "LC_GLASSKEY", value: "x" })) },
  {
    name: "a variable within a name",
    by: [],
    attempt: (c) => setUp(c, "env", encodeEnv({ name: "LANG=C\nLD_PRELOAD", value: "x" })),
  },
  { name: "a tunnel", by: [], attempt: (c) => opened(c, "tun@openssh.com", new Writer().uint32(1).uint32(0).done()) },
  {
    name: "a channel of the agent from the wrong side",
    by: [],
    attempt: (c) => opened(c, "auth-agent@openssh.com", NONE),
  },
  { name: "a forwarded channel from the wrong side", by: [], attempt: (c) => opened(c, "forwarded-tcpip", tcp(22)) },
  { name: "a channel of no known type", by: [], attempt: (c) => opened(c, "unheard-of", NONE) },
  { name: "a request of no known type", by: [], attempt: (c) => global(c, "unheard-of@example.org", NONE) },
  { name: "a channel request of no known type", by: [], attempt: (c) => setUp(c, "unheard-of@example.org", NONE) },
];

describe.skipIf(why !== undefined)(`kind of channel × playbook${why === undefined ? "" : ` (${why})`}`, () => {
  beforeAll(async () => {
    sshd = await startSshd({
      trustedUserCas: [authority.line],
      config: ["AllowAgentForwarding yes", "X11Forwarding yes"],
    });
    files = await mkdtemp(join(tmpdir(), "glasskey-matrix-"));
    await writeFile(join(files, "read.txt"), "read me\n");
    await run("mkdir", [join(files, "in")]);
    echo = createServer((socket) => socket.pipe(socket)).listen(0, "127.0.0.1");
    await once(echo, "listening");
    echoPort = (echo.address() as AddressInfo).port;
    const free = createServer().listen(0, "127.0.0.1");
    await once(free, "listening");
    listenPort = (free.address() as AddressInfo).port;
    free.close();
  }, 30_000);
  afterAll(async () => {
    echo?.close();
    await sshd?.dispose();
    if (files !== undefined) await rm(files, { recursive: true, force: true });
  });

  test.each(["nothing", "shell", "commands", "sftpRead", "sftpWrite", "forward", "everything"])(
    "lesson 15: the playbook for %s opens that and nothing else, whatever the channel",
    async (playbook) => {
      const parsed = parseScope({ user: "root", ...playbooks()[playbook] });
      if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
      const target = { port: sshd.port, hostKeys: Object.values(sshd.hostKeys) };
      const gateway = await startTestGateway({ target, authority: authority.signer, scope: parsed.value });
      try {
        const { connection } = await connectClient(gateway);
        const seen: Record<string, Outcome> = {};
        const wanted: Record<string, Outcome> = {};
        for (const { name, by, attempt } of attempts) {
          const before = statements(gateway, RECORD.statementRefused).length;
          seen[name] = await attempt(connection, gateway);
          const all = playbook === "everything" && by.length > 0;
          wanted[name] = all || by.includes(playbook) ? "passed" : "refused";
          const refusals = statements(gateway, RECORD.statementRefused).length - before;
          if (seen[name] === "refused") expect([name, refusals > 0]).toEqual([name, true]);
        }
        expect(seen).toEqual(wanted);
        connection.destroy();
      } finally {
        await gateway.close();
      }
    },
    120_000,
  );
});
