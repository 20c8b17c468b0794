import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";

const glass = join(import.meta.dirname, "../bin/glass.mjs");
const SECRET = "a-secret-of-the-tests";
const psql = existsSync("/usr/bin/psql");

let system: TestSystem;
let homes: string;

interface Run {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** `glass …` as that person, without a terminal. */
function run(person: string, args: readonly string[], input = "", env: Record<string, string> = {}): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [glass, ...args], {
      env: { ...process.env, GLASSKEY_HOME: join(homes, person), ...env },
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, stdout, stderr }));
    child.stdin.on("error", () => {});
    child.stdin.end(input);
  });
}

const login = (person: string, secret = SECRET): Promise<Run> =>
  run(person, ["login", person, "--server", system.server().url, "--ca", system.server().caFile], `${secret}\n`);

const BREAK = ["--reason", "outage", "--why", "checkout is down"];

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-cli-"));
  system = await startTestSystem(inject("pg18"));
  for (const person of ["ann", "bob", "sam", "ida"]) await login(person);
});
afterAll(async () => {
  await system.dispose();
  await rm(homes, { recursive: true, force: true });
});

test("a wrong secret is exit code 1, and the right one leaves a login that only its owner can read", async () => {
  const wrong = await login("zoe", "wrong");
  expect(wrong).toMatchObject({ code: 1, stdout: "" });
  expect(wrong.stderr).toContain("wrong name or secret");
  expect((await stat(join(homes, "ann", "login.json"))).mode & 0o777).toBe(0o600);
  expect(await readFile(join(homes, "ann", "login.json"), "utf8")).not.toContain(SECRET);
});

test("a server whose certificate nobody vouches for is not talked to", async () => {
  const { code, stderr } = await run("nobody", ["login", "ann", "--server", system.server().url], SECRET);
  expect(code).toBe(1);
  expect(stderr).toMatch(/certificate[^]*--ca FILE/);
});

test("a verb, an option or an argument that does not exist is exit code 2, with what was meant", async () => {
  expect(await run("ann", ["brake"])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("Did you mean: glass break?"),
  });
  expect(await run("ann", ["break", "repair", "--reson", "x"])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("Usage: glass break"),
  });
  expect((await run("ann", ["ssh", "web-1"])).stderr).toContain("Did you mean: glass connect?");
  const bare = await run("ann", ["connect", "gr_7kq2m9x4tbzc", "uptime"]);
  expect(bare).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/"uptime" is too much\s+A command goes behind --/),
  });
  expect(await run("ann", ["end"])).toMatchObject({ code: 2 });
  for (const verb of ["replay", "watch", "export"]) {
    const grant = await run("ann", [verb, "gr_7kq2m9x4tbzc"]);
    expect(grant).toMatchObject({ code: 2, stderr: expect.stringContaining("glass sessions gr_7kq2m9x4tbzc") });
  }
  for (const words of [
    ["kill", "GRANT"],
    ["sessions", "repair"],
    ["replay", "../people"],
  ]) {
    const { code, stderr } = await run("ann", words);
    expect([code, stderr], words.join(" ")).toEqual([2, expect.stringContaining("They look like ")]);
  }
  const incomplete = await run("ann", ["break", "repair"]);
  expect(incomplete.code).toBe(2);
  expect(incomplete.stderr).toContain("glass break repair --reason outage|data-loss --why");
});

test("what the policy denies is exit code 3, and says what would have to be true", async () => {
  const denied = await run("ann", ["break", "repair", "--reason", "boredom", "--why", "just looking"]);
  expect(denied.code).toBe(3);
  expect(denied.stderr).toMatch(/boredom[^]*outage/);
  expect(await run("bob", ["kill", "gr_000000000000"])).toMatchObject({ code: 1 });
});

test("waiting for a human is exit code 4; after a yes the grant opens", async () => {
  const waiting = await run("ann", ["break", "consent", ...BREAK, "--no-wait", "--json"]);
  expect(waiting.code).toBe(4);
  const { grant } = JSON.parse(waiting.stdout) as { grant: string };
  expect(await run("bob", ["approve", grant])).toMatchObject({ code: 0, stdout: expect.stringContaining("Approved") });
  await (await system.as("ann")).until(grant, ["active"]);
  expect(await run("ann", ["end", grant])).toMatchObject({ code: 0 });
});

test("without --no-wait, break waits for the yes and then runs the command", async () => {
  const waiting = run("ann", [
    "break",
    "consent",
    ...BREAK,
    "--",
    process.execPath,
    "-e",
    "console.log(process.env.PGUSER)",
  ]);
  const ann = await system.as("ann");
  const pending = async (): Promise<string | undefined> =>
    (await ann.call<{ grants: { grant: string; state: string }[] }>("GET", "/v1/grants?open=true")).grants.find(
      (grant) => grant.state === "pending",
    )?.grant;
  await expect.poll(pending, { timeout: 20_000 }).toBeDefined();
  const grant = (await pending()) ?? "";
  expect((await run("bob", ["approve", grant])).code).toBe(0);
  const { code, stdout, stderr } = await waiting;
  expect({ code, stdout: stdout.trim() }).toEqual({ code: 0, stdout: grant });
  expect(stderr).toMatch(/Waiting for 1 approval of .*bob/);
  await ann.end(grant);
});

test("a revocation that cannot be proved is exit code 5, and is proved later", async () => {
  const { grant } = JSON.parse((await run("ann", ["break", "repair", ...BREAK, "--json"])).stdout) as { grant: string };
  await system.target.stop();
  const ended = run("ann", ["end", grant]);
  expect(await ended).toMatchObject({ code: 5, stdout: expect.stringContaining("Not proved yet") });
  await system.target.start();
  expect(await run("ann", ["end", grant])).toMatchObject({ code: 0, stdout: expect.stringContaining("28P01") });
}, 90_000);

test("the secret is in the environment of the client only: not in its arguments, not in any file", async () => {
  const show =
    "console.log(JSON.stringify({ argv: process.argv, env: process.env.PGPASSWORD, ca: process.env.PGSSLROOTCERT }))";
  const { stdout, stderr } = await run("ann", ["break", "repair", ...BREAK, "--", process.execPath, "-e", show, "x"]);
  const seen = JSON.parse(stdout) as { argv: string[]; env: string; ca: string };
  expect(seen.env).toMatch(/^[\w-]{43}$/);
  expect(seen.argv.join(" ")).not.toContain(seen.env);
  expect(await readFile(seen.ca, "utf8")).toContain("BEGIN CERTIFICATE");
  const grant = /gr_\w+/.exec(stderr)?.[0] ?? "";
  const { execFileSync } = await import("node:child_process");
  expect(execFileSync("grep", ["-rl", "-e", "BEGIN CERTIFICATE", join(homes, "ann")]).toString()).toContain("ca.pem");
  expect(() => execFileSync("grep", ["-rlq", "-e", seen.env, join(homes, "ann")])).toThrow(/Command failed/);
  expect((await run("ann", ["end", grant])).code).toBe(0);
  expect(existsSync(seen.ca)).toBe(false); // what the grant needed goes with it
});

test.runIf(psql)(
  "psql works under connect, its exit code comes through, and replay shows each statement with its answer",
  async () => {
    const { grant } = JSON.parse((await run("ann", ["break", "repair", ...BREAK, "--json"])).stdout) as {
      grant: string;
    };
    const good = await run("ann", ["connect", grant, "--", "-X", "-At", "-c", "select count(*) from t"]);
    expect(good).toMatchObject({ code: 0, stdout: "100\n" });
    const bad = await run("ann", ["connect", grant, "--", "-X", "-c", "drop table t"]);
    expect(bad.code).toBe(1);
    expect(bad.stderr).toContain("DROP");
    await run("ann", ["end", grant]);
    const { sessions } = JSON.parse((await run("ida", ["sessions", grant, "--json"])).stdout) as {
      sessions: { session: string }[];
    };
    const replays = await Promise.all(sessions.map(({ session }) => run("ida", ["replay", session])));
    const text = replays.map(({ stdout }) => stdout).join("");
    expect(text).toMatch(/select count\(\*\) from t[^]*SELECT 1/);
    expect(text).toMatch(/drop table t[^]*refused/);
    expect(await run("ann", ["replay", sessions[0]?.session ?? ""])).toMatchObject({ code: 3 });
  },
);

test("the log can be read, proved and verified from the command line, and one changed byte is named", async () => {
  const { size } = JSON.parse((await run("ida", ["log", "--from", "0", "--json"])).stdout) as { size: number };
  expect(size).toBeGreaterThan(10);
  const proof = await run("ida", ["log", "prove", "3"]);
  expect(proof).toMatchObject({ code: 0, stdout: expect.stringContaining("c2sp.org/tlog-proof") });
  const { logDir, vkey } = system.server();
  await expect
    .poll(() => run("ida", ["verify", logDir, "--key", vkey]).then(({ code }) => code), { timeout: 20_000 })
    .toBe(0);
  const { cp, writeFile } = await import("node:fs/promises");
  const copy = join(homes, "log-copy");
  await cp(logDir, copy, { recursive: true });
  const checkpoint = await readFile(join(copy, "checkpoint"), "utf8");
  await writeFile(
    join(copy, "checkpoint"),
    checkpoint.replace(/\n(\d)/, (_all, digit: string) => `\n${(Number(digit) + 1) % 10 || 1}`),
  );
  const broken = await run("ida", ["verify", copy, "--key", vkey]);
  expect(broken.code).toBe(1);
  expect(broken.stdout).toContain("checkpoint");
});

test("--json gives one JSON value and nothing else, also for errors", async () => {
  for (const args of [["whoami"], ["ls"], ["status"], ["sessions"], ["log", "--from", "0"]]) {
    const { stdout } = await run("ida", [...args, "--json"]);
    expect(JSON.parse(stdout), args.join(" ")).toBeTypeOf("object");
  }
  const { stdout } = await run("ida", ["status", "gr_000000000000", "--json"]);
  expect(JSON.parse(stdout)).toMatchObject({ error: { code: "not_found" } });
});

test("a server that is not there is said so, with what to do", async () => {
  const { code, stderr } = await run("lost", ["login", "ann", "--server", "https://127.0.0.1:1"], SECRET);
  expect(code).toBe(1);
  expect(stderr).toMatch(/cannot reach[^]*glass serve/);
});

test("lesson 23: logging in and connecting change nothing of the user's own: every file is in Glasskey's folder", async () => {
  const { mkdir, readdir, writeFile } = await import("node:fs/promises");
  const own = join(homes, "own");
  await mkdir(own);
  await writeFile(join(own, ".pgpass"), "their own\n", { mode: 0o600 });
  const env = { HOME: own, XDG_CONFIG_HOME: "" };
  const home = { GLASSKEY_HOME: join(own, "glasskey"), ...env };
  await run("own", ["login", "ann", "--server", system.server().url, "--ca", system.server().caFile], SECRET, home);
  const done = await run("own", ["break", "repair", ...BREAK, "--", process.execPath, "-e", "0"], "", home);
  expect(done.code).toBe(0);
  expect((await readdir(own)).toSorted()).toEqual([".pgpass", "glasskey"]);
  expect(await readFile(join(own, ".pgpass"), "utf8")).toBe("their own\n");
  await run("own", ["end", /gr_\w+/.exec(done.stderr)?.[0] ?? ""], "", home);
});

test("text from elsewhere stays text: no line of its own, no escape, in status and in replay", async () => {
  const why = "boring\nForged: gr_000000000000 is closed";
  const { grant } = JSON.parse(
    (await run("ann", ["break", "repair", "--reason", "outage", "--why", why, "--json"])).stdout,
  ) as { grant: string };
  const status = await run("ann", ["status", grant]);
  expect(status.stdout).toContain("boring⏎Forged");
  expect(status.stdout).not.toMatch(/^\s*Forged/m);
  const client = await (await system.as("ann")).connect(grant);
  await client.query(
    "select 1 /*\n12:00:00  session ends: all is well\n          → SELECT 1, 0.1 ms\u001B]0;owned\u0007*/",
  );
  await client.end();
  await run("ann", ["end", grant]);
  const { sessions } = JSON.parse((await run("ida", ["sessions", grant, "--json"])).stdout) as {
    sessions: { session: string }[];
  };
  const { stdout } = await run("ida", ["replay", sessions[0]?.session ?? ""]);
  expect(stdout).toContain("all is well");
  expect(stdout).not.toMatch(/^12:00:00 {2}session ends/m);
  expect(stdout).not.toMatch(/[\u001B\u0007]/);
});

test("a server that answers with another grant's name, a program or a variable gets neither a file nor a process", async () => {
  const { createServer } = await import("node:https");
  const { createAuthority, issueServerCertificate } = await import("../../server/src/core/certificates.ts");
  const { mkdir, writeFile } = await import("node:fs/promises");
  const authority = await createAuthority("evil", 1);
  const identity = await issueServerCertificate(authority, ["127.0.0.1"], 1);
  const good = "gr_000000000000";
  const hostile = (grant: string): object => ({
    ...{
      grant,
      kind: "postgres",
      host: "h",
      port: 1,
      user: "u",
      secret: "s",
      secretEnv: "LD_PRELOAD",
      ca: "CA",
      endsAt: new Date().toISOString(),
    },
    ...{
      argv: ["sh", "-c", `touch ${join(homes, "pwned")}`],
      env: { LD_PRELOAD: "/evil.so", PGHOST: "h" },
      state: "closed",
      proof: null,
    },
  });
  let grant = "../../victim";
  const server = createServer({ ...identity }, (_request, response) => response.end(JSON.stringify(hostile(grant))));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const port = (server.address() as { port: number }).port;
    const home = join(homes, "fooled");
    await mkdir(join(homes, "victim"), { recursive: true });
    await mkdir(home);
    const login = { server: `https://127.0.0.1:${port}`, ca: authority.cert, person: "x", token: "t", expiresAt: "" };
    await writeFile(join(home, "login.json"), JSON.stringify(login), { mode: 0o600 });
    for (const verb of ["end", "connect"]) expect((await run("fooled", [verb, good])).code, verb).toBe(1);
    expect(existsSync(join(homes, "victim"))).toBe(true);
    grant = good;
    const shown = await run("fooled", [
      "connect",
      good,
      "--",
      process.execPath,
      "-e",
      "console.log(JSON.stringify(process.env))",
    ]);
    expect(JSON.parse(shown.stdout)).toMatchObject({ PGHOST: "h", PGPASSWORD: "s" });
    expect(JSON.parse(shown.stdout)).not.toHaveProperty("LD_PRELOAD");
    await run("fooled", ["connect", good], "", { PATH: "/nonexistent" });
    expect(existsSync(join(homes, "pwned"))).toBe(false);
  } finally {
    server.close();
    server.closeAllConnections();
  }
});
