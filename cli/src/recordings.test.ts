import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { newId } from "../../server/src/core/ids.ts";
import { openStudio, programOutput } from "../../server/src/recording/testing/terminal.ts";
import { openStore, type StoreAddress } from "../../server/src/store/database.ts";
import { openKeyring } from "../../server/src/store/keyring.ts";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";
import { runGlass, type Run } from "../testing/run.ts";

const glass = join(import.meta.dirname, "../bin/glass.mjs");

let system: TestSystem;
let homes: string;
let session: string;
const run = (person: string, args: readonly string[]): Promise<Run> => runGlass(homes, person, args);

/** A session of ann's with these statements; the grant is ended. */
async function recorded(statements: readonly string[]): Promise<string> {
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  for (const sql of statements) await client.query(sql).catch(() => {});
  await client.end();
  await ann.end(grant);
  return sessionOf(grant);
}

async function sessionOf(grant: string): Promise<string> {
  const { sessions } = await (
    await system.as("ida")
  ).call<{ sessions: { session: string }[] }>("GET", `/v1/sessions?grant=${grant}`);
  return sessions[0]?.session ?? "";
}

async function login(person: string): Promise<void> {
  const { url, caFile } = system.server();
  await runGlass(homes, person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
}

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-recordings-"));
  system = await startTestSystem(inject("pg18"));
  for (const person of ["ann", "sam", "ida"]) await login(person);
  session = await recorded([
    "select 'needle', 1 /* \u001B]52;c;aGk=\u0007 */",
    "select * from nowhere",
    "drop table t",
  ]);
});
afterAll(async () => {
  await system.dispose();
  await rm(homes, { recursive: true, force: true });
});

test("export writes the whole file or none, and never over another one without --force", async () => {
  const file = join(homes, "session.jsonl");
  expect(await run("ida", ["export", session, "-o", file])).toMatchObject({ code: 0 });
  const lines = (await readFile(file, "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as object);
  expect(lines).toMatchObject([
    { what: "started", content: { person: "ann" } },
    { what: "notice" },
    { what: "statement", outcome: "done" },
    { what: "statement", outcome: "failed", error: { sqlstate: "42P01" } },
    { what: "statement", outcome: "refused" },
    { what: "ended" },
  ]);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  await writeFile(file, "mine");
  expect(await run("ida", ["export", session, "-o", file])).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/is there already[^]*--force/),
  });
  expect(await readFile(file, "utf8")).toBe("mine");
  expect((await run("ida", ["export", session, "-o", file, "--force", "--format", "raw"])).code).toBe(0);
  expect(await readFile(file, "utf8")).toContain("statementStarted");
  const text = await run("ida", ["export", session, "--format", "text"]);
  expect(text.stdout).toContain("needle");
  expect(text.stdout).not.toMatch(/[\u001B\u0007]/);
  expect(await run("ida", ["export", session, "--format", "mp4"])).toMatchObject({ code: 2 });
  expect(await run("ida", ["export", session, "--format", "asciicast"])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("--format json"),
  });
  expect((await readdir(homes)).filter((name) => name.endsWith(".partial"))).toEqual([]);
  const nowhere = await run("ida", ["export", session, "-o", join(homes, "not-there", "x")]);
  expect(nowhere).toMatchObject({ code: 2, stderr: expect.stringMatching(/its folder is not there\n/) });
  expect(nowhere.stderr).not.toContain(".partial");
});

test("a recording that is damaged in the middle gives no file, and says what is wrong", async () => {
  const damaged = await recorded(Array.from({ length: 4 }, (_, i) => `select '${String(i).repeat(150_000)}'`));
  await system.storeQuery(
    "update chunks set sha256 = sha256(sha256) where session = $1 and chunk = (select max(chunk) from chunks where session = $1)",
    [damaged],
  );
  const file = join(homes, "damaged.jsonl");
  const { code, stderr } = await run("ida", ["export", damaged, "-o", file]);
  expect(code).toBe(1);
  expect(stderr).toMatch(/chunk \d+ of se_\w+ is not the one that the log tells of/);
  expect(existsSync(file)).toBe(false);
  // Nor does what comes first pass for the whole on standard output.
  const shown = await run("ida", ["export", damaged]);
  expect(shown.code).toBe(1);
  expect(shown.stdout).toContain("000000");
});

test("search finds a statement and says in which session", async () => {
  const found = await run("ida", ["search", "NEEDLE", "--since", "1h", "--person", "ann"]);
  expect(found).toMatchObject({ code: 0, stderr: expect.stringMatching(/Looked through \d+ session/) });
  expect(found.stdout).toContain(session);
  expect(found.stdout).not.toMatch(/[\u001B\u0007]/);
  const json = JSON.parse((await run("ida", ["search", "need.e", "--regex", "--json"])).stdout) as { hits: object[] };
  expect(json.hits).toMatchObject([{ session, where: "statement", person: "ann", target: "prod", playbook: "repair" }]);
  const none = await run("ida", ["search", "needle", "--until", "2001-01-01"]);
  expect(none).toMatchObject({ code: 0, stdout: "", stderr: "Nothing found. Looked through 0 sessions.\n" });
  expect(await run("ida", ["search", "needle", "--since", "yesterday"])).toMatchObject({ code: 2 });
  // Who may not read recordings finds nothing, not even in their own.
  expect((await run("ann", ["search", "needle"])).stdout).toBe("");
});

test("everybody who reads a recording is in the log", async () => {
  await run("sam", ["replay", session]);
  await run("sam", ["export", session]);
  await run("sam", ["search", "needle"]);
  await (await system.as("sam")).refused("GET", `/v1/sessions/${session}/chunks/99`); // nothing was read
  const { entries } = await (
    await system.as("ida")
  ).call<{
    entries: { entry: { type: string; session?: string; data: { how: string } }; people: Record<string, string> }[];
  }>("GET", "/v1/log?from=0");
  const read = entries.filter(
    ({ entry, people }) => entry.type === "recording.read" && Object.values(people).includes("sam"),
  );
  expect(read.map(({ entry }) => [entry.data.how, entry.session])).toEqual([
    ["replay", session],
    ["export", session],
    ["search", undefined],
  ]);
  expect(JSON.stringify(read)).not.toContain("needle");
});

test("watch shows what is done as it is done, ends with the session, and its watcher is in the log", async () => {
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  await client.query("select 'before'");
  const watched = await sessionOf(grant);
  const child = spawn(process.execPath, [glass, "watch", watched], {
    env: { ...process.env, GLASSKEY_HOME: join(homes, "sam") },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let seen = "";
  child.stdout.on("data", (chunk: Buffer) => (seen += chunk.toString()));
  const closed = new Promise((resolve) => {
    child.once("close", resolve);
  });
  await expect.poll(() => seen, { timeout: 30_000 }).toContain("select 'before'");
  await client.query("select 'live \u001B[2J'");
  await expect.poll(() => seen, { timeout: 30_000 }).toMatch(/select 'live[^]*SELECT 1/);
  await client.end();
  expect(await closed).toBe(0);
  expect(seen).toContain("session ends");
  expect(seen).not.toContain("\u001B");
  await ann.end(grant);
  const reads = await system.storeQuery<{ entry: Buffer }>("select entry from log_entries");
  expect(reads.map(({ entry }) => entry.toString()).filter((text) => text.includes('"how":"watch"'))).toHaveLength(1);
});

test("a watcher who loses the right to watch is cut, and told", async () => {
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  const watched = await sessionOf(grant);
  const watching = run("sam", ["watch", watched, "--json"]);
  await expect
    .poll(
      async () =>
        (
          await system.storeQuery("select 1 from log_entries where convert_from(entry, 'utf8') like $1", [
            `%"watch"%${watched}%`,
          ])
        ).length,
      { timeout: 30_000 },
    )
    .toBe(1);
  await system.storeQuery("delete from tokens where person = 'sam'");
  const { code, stdout } = await watching;
  expect(code).toBe(1);
  expect(stdout).toContain('"code":"unauthenticated"');
  await login("sam");
  await client.end();
  await ann.end(grant);
});

test("a person watches four sessions at once, and no more; a free place can be taken again", async () => {
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  const watched = await sessionOf(grant);
  const five = Array.from({ length: 5 }, () => run("sam", ["watch", watched, "--json"]));
  const refused = await Promise.race(five);
  expect(refused).toMatchObject({ code: 1, stdout: expect.stringContaining("too_many_attempts") });
  await client.end();
  const all = await Promise.all(five);
  expect(
    all.filter(({ code }) => code === 0),
    JSON.stringify(all),
  ).toHaveLength(4);
  expect(await run("sam", ["watch", watched])).toMatchObject({ code: 0 });
  await ann.end(grant);
});

test("who watches a session in which nothing happens hears that the connection is there", async () => {
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  const { token } = JSON.parse(await readFile(join(homes, "sam", "login.json"), "utf8")) as { token: string };
  const { url, caFile } = system.server();
  const beat = await new Promise<boolean>((resolve, reject) => {
    void sessionOf(grant).then(async (watched) => {
      const asked = request(new URL(`/v1/sessions/${watched}/watch`, url), {
        ca: await readFile(caFile, "utf8"),
        headers: { authorization: `Bearer ${token}` },
      });
      asked.once("error", reject);
      asked.once("response", (response) => {
        let seen = "";
        response.on("error", () => {});
        response.on("data", (chunk: Buffer) => {
          seen += chunk.toString();
          if (!seen.includes('{"what":"beat"}\n')) return;
          response.destroy();
          resolve(true);
        });
      });
      asked.end();
    }, reject);
  });
  expect(beat).toBe(true);
  await client.end();
  await ann.end(grant);
});

/** What a terminal's bytes become on the terminal of who replays or watches them: `glass` in a real pseudo-terminal. */
const inPty = (person: string, args: readonly string[]): Promise<Buffer[]> =>
  programOutput([process.execPath, glass, ...args], {
    ...{ cols: 60, rows: 20 },
    env: { GLASSKEY_HOME: join(homes, person), GLASSKEY_DEBUG: "1" },
  });

test.skipIf(!existsSync("/usr/bin/python3"))(
  "a terminal is replayed on a terminal: text and colours pass, and nothing that could drive it",
  { timeout: 120_000 },
  async () => {
    const store = openStore(storeOf(system));
    const keyring = await openKeyring(store, Buffer.alloc(32, 7));
    const model = await store.selectFrom("sessions").selectAll().where("id", "=", session).executeTakeFirstOrThrow();
    const makeSession = async (): Promise<string> => {
      const id = newId("session");
      const { journal: _journal, journal_sequence: _sequence, ...row } = model;
      const fresh = { sealed_seq: 0, sealed_chunks: 0, recording_complete: false, client: JSON.stringify(row.client) };
      await store
        .insertInto("sessions")
        .values({ ...row, ...fresh, id })
        .execute();
      return id;
    };
    const { dataDir } = system.config;
    const base = {
      store,
      keyring,
      address: storeOf(system),
      session: makeSession,
      [Symbol.asyncDispose]: () => store.destroy(),
    };
    await using _closing = base;
    await using studio = await openStudio(dataDir, base, { dir: join(homes, "journal") });
    const take = await studio.session();
    await take.begin();
    await take.resize(40, 6);
    await take.output("$ \u001B[31mred alert\u001B[0m\r\n");
    await take.output('\u001B]52;c;cm0gLXJmIC8K\u0007\u001B]0;owned\u0007\u001B[6n\u001B[?1003h\u001BP$q"p\u001B\\');
    await take.output("full screen\u202E");
    await take.resize(40, 6, 7);
    await take.output("of another channel", 7);
    await take.end();
    await studio.sealer.sealNow();

    const shown = Buffer.concat(await inPty("ida", ["replay", take.session, "--idle-limit", "1s"])).toString();
    expect(shown).toContain("\u001B[0;38;5;1mred alert");
    expect(shown).toContain("full screen");
    expect(shown).toContain("session ends");
    expect(shown).not.toContain("owned");
    expect(shown).not.toContain("]52;");
    expect(shown).not.toContain("\u202E");
    // Every escape sequence is one of ours.
    const left = shown.replaceAll(/\u001B\[(?:\d*(?:;\d+)*[mHJK]|\?(?:1049|7|25)[hl])/g, "");
    expect(left.replaceAll(/[\r\n]/g, "")).not.toMatch(/\p{Cc}/u);
    expect(shown.lastIndexOf("\u001B[?1049l")).toBeGreaterThan(shown.lastIndexOf("\u001B[?1049h"));
    expect(shown).not.toContain("of another channel");
    expect(shown).toContain(`--terminal 7`);
    const other = Buffer.concat(await inPty("ida", ["replay", take.session, "--terminal", "7"])).toString();
    expect(other).toContain("of another channel");
    expect(other).not.toContain("full screen");

    const lines = await run("ida", ["replay", take.session]);
    expect(lines.stdout).toMatch(/│ \$ red alert[^]*│ full screen[^]*session ends/);
    const found = await run("ida", ["search", "red alert", "--json"]);
    expect(JSON.parse(found.stdout)).toMatchObject({ hits: [{ session: take.session, where: "screen" }] });
    const watched = Buffer.concat(await inPty("sam", ["watch", take.session])).toString();
    expect(watched).toContain("full screen");
    expect(watched).not.toContain("owned");
    const cast = await run("ida", ["export", take.session, "--format", "asciicast"]);
    expect(cast.stdout.split("\n")[0]).toContain('"version":3');
  },
);

test("a server that stops says so to whoever watches", { timeout: 120_000 }, async () => {
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  const watched = await sessionOf(grant);
  const child = spawn(process.execPath, [glass, "watch", watched], {
    env: { ...process.env, GLASSKEY_HOME: join(homes, "sam") },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [seen, errors] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => (seen += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
  const closed = new Promise((resolve) => {
    child.once("close", resolve);
  });
  await expect.poll(() => seen, { timeout: 30_000 }).toContain("session begins");
  await system.stop();
  expect(await closed).toBe(1);
  expect(errors).toContain("Glasskey is stopping");
  await client.end().catch(() => {});
  await system.start();
});

function storeOf({ config }: TestSystem): StoreAddress {
  const { host, port, database } = config.database ?? { host: "", port: 0, database: "" };
  const { superuser, password } = inject("pg18");
  return { host, port, database, user: superuser, password };
}
