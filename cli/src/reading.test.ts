import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, open, readdir, rm, stat, writeFile } from "node:fs/promises";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createAuthority, issueServerCertificate } from "../../server/src/core/certificates.ts";
import { runGlass, type Run } from "../testing/run.ts";
import { createOutput, quoted } from "./output.ts";

const GLASS = join(import.meta.dirname, "../bin/glass.mjs");
const SESSION = "se_0123456789ab";

/** A fake server, which answers whatever a test wants. */
let answer: (request: IncomingMessage, response: ServerResponse) => void;
let homes: string;
let cleanUp: () => void;

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-reading-"));
  const authority = await createAuthority("fake", 1);
  const identity = await issueServerCertificate(authority, ["127.0.0.1"], 1);
  const server = createServer(identity, (request, response) => answer(request, response));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const login = { server: `https://127.0.0.1:${port}`, ca: authority.cert, person: "x", token: "t", expiresAt: "" };
  await mkdir(join(homes, "x"));
  await writeFile(join(homes, "x", "login.json"), JSON.stringify(login), { mode: 0o600 });
  cleanUp = () => {
    server.close();
    server.closeAllConnections();
  };
});
afterAll(async () => {
  cleanUp();
  await rm(homes, { recursive: true, force: true });
});

const run = (...args: string[]): Promise<Run> => runGlass(homes, "x", args);

interface Started {
  readonly child: ChildProcess;
  readonly ended: Promise<Run>;
}

function start(args: readonly string[], stdout: number | "pipe" = "pipe"): Started {
  const child = spawn(process.execPath, [GLASS, ...args], {
    env: { ...process.env, GLASSKEY_HOME: join(homes, "x") },
    stdio: ["ignore", stdout, "pipe"],
  });
  let [out, errors] = ["", ""];
  child.stdout?.on("data", (chunk: Buffer) => (out += chunk.toString()));
  child.stderr?.on("data", (chunk: Buffer) => (errors += chunk.toString()));
  const ended = new Promise<Run>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, stdout: out, stderr: errors }));
  });
  return { child, ended };
}

const at = "2026-01-02T03:04:05.000Z";
const statement = (n: number, text: string): string =>
  `${JSON.stringify({ what: "statement", at, n, seq: n, via: "simple", text, outcome: "done", tag: "SELECT 1", us: 5, sentBytes: 0 })}\n`;

/** Lines, and the word that they are all. */
function whole(response: ServerResponse, text: string): void {
  response.writeHead(200, { trailer: "glass-end" });
  response.write(text);
  response.addTrailers({ "glass-end": "ok" });
  response.end();
}

test.skipIf(!existsSync("/dev/full"))("what cannot be written to standard output is no success", async () => {
  answer = (_request, response) => whole(response, statement(1, "select 1").repeat(2_000));
  for (const args of [
    ["export", SESSION],
    ["replay", SESSION],
    ["replay", SESSION, "--json"],
  ]) {
    await using full = await open("/dev/full", "w");
    const { code, stderr } = await start(args, full.fd).ended;
    expect([args, code]).toEqual([args, 1]);
    expect(stderr).toContain("ENOSPC");
  }
});

test("Ctrl-C before the server has answered ends a watch, a replay and an export", async () => {
  for (const args of [
    ["watch", SESSION],
    ["replay", SESSION],
    ["export", SESSION],
  ]) {
    const asked = Promise.withResolvers<ServerResponse>();
    answer = (_request, response) => asked.resolve(response);
    const { child, ended } = start(args);
    const response = await asked.promise;
    child.kill("SIGINT");
    await ended;
    expect(response.writableEnded).toBe(false); // it was never answered
  }
});

test("Ctrl-C in a replay ends it there, and what was read so far is not given as the whole", async () => {
  const asked: ServerResponse[] = [];
  answer = (_request, response) => {
    asked.push(response);
    response.writeHead(200, { trailer: "glass-end" });
    response.write(statement(1, "select 1"));
  };
  const { child, ended } = start(["replay", SESSION, "--json"]);
  await expect.poll(() => asked.length, { timeout: 20_000 }).toBe(1);
  // It reads what was sent: there is nothing to see of it from outside, but more comes.
  asked[0]?.write(statement(2, "select 2"));
  child.kill("SIGINT");
  const { code, stdout } = await ended;
  expect(code).not.toBe(0);
  expect(stdout).not.toContain("select");
});

test("Ctrl-C in an export to a file leaves nothing of it", async () => {
  const folder = join(homes, "left");
  await mkdir(folder);
  answer = (_request, response) => {
    response.writeHead(200, { trailer: "glass-end" });
    response.write(statement(1, "select 'secret'"));
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    const { child, ended } = start(["export", SESSION, "-o", join(folder, "file")]);
    await expect.poll(() => readdir(folder), { timeout: 20_000 }).toHaveLength(1);
    child.kill(signal);
    expect((await ended).code).not.toBe(0);
    expect(await readdir(folder)).toEqual([]);
  }
});

test("JSON for a program does not drive the terminal that shows it", async () => {
  const text = "select '\u009B2J \u202E gpj.exe \u007F'";
  answer = (request, response) => {
    if (request.url?.endsWith("/watch") === true) response.end(`${statement(1, text)}{"what":"over","text":"x"}\n`);
    else if (request.method === "POST")
      response.end(
        JSON.stringify({
          hits: [],
          sessions: 1,
          erased: 0,
          problems: [{ session: SESSION, message: text }],
          next: null,
        }),
      );
    else whole(response, statement(1, text));
  };
  for (const args of [
    ["replay", SESSION],
    ["watch", SESSION],
    ["search", "x"],
  ]) {
    const { stdout } = await run(...args, "--json");
    expect(stdout).not.toMatch(/[\u007F-\u009F\p{Cf}]/u);
    expect(stdout).toContain("\\u009b2J");
  }
});

test("a search that finds more than fits into one JSON value says so", async () => {
  const hit = { session: SESSION, person: "ann", target: "t", playbook: "p", at, seq: 1, where: "screen", text: "x" };
  const hits = Array.from({ length: 60_000 }, () => hit);
  answer = (_request, response) =>
    response.end(JSON.stringify({ hits, sessions: 1, erased: 0, problems: [], next: "on" }));
  const { code, stdout, stderr } = await run("search", "x", "--json");
  expect(code).toBe(2);
  expect(stdout.length).toBeLessThan(1_000);
  expect(stderr).toContain("too much for one JSON value");
});

async function slowly(response: ServerResponse, pauseMs: number): Promise<void> {
  response.writeHead(200, { trailer: "glass-end" });
  for (let i = 0; i < 500 && !response.destroyed; i++) {
    response.write(statement(i, "x".repeat(1_000)));
    if (pauseMs > 0) await new Promise((done) => setTimeout(done, pauseMs));
  }
  response.addTrailers({ "glass-end": "ok" });
  response.end();
}

test("a disk that fills up during an export gives no file, and says what is wrong", async ({ skip }) => {
  const small = join(homes, "small");
  await mkdir(small);
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=256k", "tmpfs", small], { stdio: "pipe" });
  } catch {
    skip("this user may mount nothing here");
  }
  try {
    // At once, and so slowly that nobody waits for the disk when it says no.
    for (const pauseMs of [0, 2]) {
      answer = (_request, response) => void slowly(response, pauseMs);
      const { code, stderr } = await run("export", SESSION, "-o", join(small, "file"));
      expect([code, stderr]).toEqual([2, expect.stringMatching(/^glass: cannot write .*(ENOSPC|disk is full)/)]);
      expect(await readdir(small)).toEqual([]);
    }
  } finally {
    execFileSync("umount", [small], { stdio: "pipe" });
  }
});

test("a large export to a file is written without a word on standard error", async () => {
  answer = (_request, response) => whole(response, statement(1, "x".repeat(1_000)).repeat(20_000));
  const file = join(homes, "large");
  expect(await run("export", SESSION, "-o", file)).toMatchObject({ code: 0, stderr: "" });
  expect((await stat(file)).size).toBeGreaterThan(20_000_000);
});

test("a statement cannot pass for a line of ours: what a terminal would break goes on behind a mark", () => {
  const out = createOutput(false);
  const said = (text: string): string[] => quoted(out, "02:31:07  ", text, undefined, 80).map(stripVTControlCharacters);
  const forged = "02:31:08  session ends: the client ended the session";
  for (let pad = 0; pad < 200; pad++) {
    for (const filler of [" ", "x", "你"]) {
      const lines = said(`select 1${filler.repeat(pad)}${forged}\n${forged}`);
      expect(lines.length).toBeGreaterThan(1);
      for (const line of lines.slice(1)) expect(line).toMatch(/^ {8}│ /);
      for (const line of lines) expect(line.replaceAll("你", "xx").length).toBeLessThan(81);
      const joined = lines.map((line) => line.slice(10)).join("");
      expect(joined).toBe(`select 1${filler.repeat(pad)}${forged}${forged}`);
    }
  }
  expect(said("select 1")).toEqual(["02:31:07  select 1"]);
});

/** What puts a terminal back to what it was. */
const LEAVE = "\u001B[0m\u001B[?7h\u001B[?25h\u001B[?1049l";
/** What a shell does for Ctrl-Z, `fg` and Ctrl-C: runs a program on a real pseudo-terminal. */
const SHELL = `
import os, pty, select, signal, sys
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
def until(text):
    seen = b""
    while text not in seen:
        if not select.select([fd], [], [], 60)[0]:
            sys.exit("nothing more came: " + repr(seen))
        seen += os.read(fd, 65536)
    os.write(1, seen)
until(b"a picture")
os.kill(pid, signal.SIGTSTP)
if not os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
    sys.exit("it did not stop")
until(b"1049l")
os.write(1, b"<stopped>")
os.kill(pid, signal.SIGCONT)
until(b"a picture")
os.write(fd, b"\\x03")
until(b"1049l")
`;

test.skipIf(!existsSync("/usr/bin/python3"))(
  "Ctrl-Z while a terminal is watched gives the shell its own screen back, and later the picture is drawn again",
  async () => {
    const screen = { what: "screen", at, cols: 40, rows: 5, cursor: { x: 0, y: 0 }, whole: true };
    answer = (_request, response) =>
      void response.write(`${JSON.stringify({ ...screen, lines: [{ y: 0, runs: [{ text: "a picture" }] }] })}\n`);
    const child = spawn("python3", ["-c", SHELL, process.execPath, GLASS, "watch", SESSION], {
      env: { ...process.env, GLASSKEY_HOME: join(homes, "x"), TERM: "xterm" },
      stdio: ["ignore", "pipe", "inherit"],
    });
    let shown = "";
    child.stdout.on("data", (chunk: Buffer) => (shown += chunk.toString()));
    expect(await new Promise((resolve) => child.once("close", resolve))).toBe(0);
    const [stopped = "", gone = ""] = shown.split("<stopped>");
    expect(stopped).toContain("a picture");
    expect(stopped.endsWith(LEAVE), JSON.stringify(stopped.slice(-80))).toBe(true);
    expect(gone).toContain("a picture");
    expect(gone).toContain(LEAVE);
  },
);
