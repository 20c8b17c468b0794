import { spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import pg from "pg";
import { from as copyFrom, to as copyTo } from "pg-copy-streams";
import Cursor from "pg-cursor";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { embeddedBinDir } from "../../store/cluster.ts";
import { PG15_BIN } from "../../../testing/global.ts";
import { startTestTarget, type TestTarget } from "../../../testing/target.ts";
import { RECORD } from "../target.ts";
import { createLeaseRole, startTestGateway, texts, type TestGateway } from "./fixtures/gateway.ts";

/** Unmodified clients, as people have them. A program that is not installed is named in the test that says so. */
const program = (name: string): string | undefined =>
  [PG15_BIN, embeddedBinDir(), "/usr/bin", "/usr/local/bin"]
    .map((folder) => (folder === undefined ? "" : join(folder, name)))
    .find((path) => existsSync(path));
const PSQL = program("psql");
const PGBENCH = program("pgbench");
const PG_DUMP = program("pg_dump");
const PYTHON = "/usr/bin/python3";

interface Ran {
  code: number | null;
  out: string;
  err: string;
}

function start(
  argv: readonly string[],
  env: Record<string, string>,
  input = "",
): { child: ChildProcess; ran: Promise<Ran> } {
  const child = spawn(argv[0] ?? "", argv.slice(1), {
    env: { PATH: process.env["PATH"] ?? "", LC_ALL: "C.UTF-8", HOME: "/nonexistent", ...env },
  });
  let [out, err] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => (out += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (err += chunk.toString()));
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  const ran = new Promise<Ran>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, out, err }));
  });
  return { child, ran };
}

/** Also Debian's PostgreSQL 15, where it is installed. */
const VERSIONS: readonly (readonly [version: string, binDir: string | undefined])[] = [
  ["18", undefined],
  ...(PG15_BIN === undefined ? [] : [["15", PG15_BIN] as const]),
];

describe.each(VERSIONS)("clients against PostgreSQL %s", (version, binDir) => {
  let target: TestTarget;
  let gateway: TestGateway;
  let folder: string;
  let env: Record<string, string>;
  const database = `orders_${randomBytes(4).toString("hex")}`;

  beforeAll(async () => {
    target = await startTestTarget(binDir === undefined ? {} : { binDir });
    const lease = await createLeaseRole((sql) => target.query(sql), { database });
    gateway = await startTestGateway({ target, role: lease.role, rolePassword: lease.password, databases: [database] });
    folder = await mkdtemp(join(tmpdir(), "glasskey-clients-"));
    await writeFile(join(folder, "ca.pem"), gateway.ca);
    env = {
      ...{ PGHOST: "localhost", PGPORT: String(gateway.port), PGUSER: gateway.grant, PGPASSWORD: gateway.secret },
      ...{ PGDATABASE: database, PGSSLMODE: "verify-full", PGSSLROOTCERT: join(folder, "ca.pem") },
    };
  });
  afterAll(async () => {
    await gateway.close();
    await target.dispose();
    await rm(folder, { recursive: true, force: true });
  });

  const psql = (input: string, ...args: string[]): Promise<Ran> =>
    start([PSQL ?? "", "-X", "-At", ...args], env, input).ran;

  async function connectPg(): Promise<pg.Client> {
    const client = new pg.Client({
      ...{ host: "localhost", port: gateway.port, user: gateway.grant, password: gateway.secret, database },
      ssl: { ca: gateway.ca },
    });
    client.on("error", () => {});
    await client.connect();
    return client;
  }

  describe.runIf(PSQL !== undefined)("psql", () => {
    test("connects with verify-full and channel binding required, shows the notice, and \\d lists tables", async () => {
      const ran = start(
        [PSQL ?? "", "-X"],
        { ...env, PGCHANNELBINDING: "require" },
        "create table widgets (id int);\n\\d\n\\d widgets\n",
      );
      const { code, out, err } = await ran.ran;
      expect(err).toMatch(/NOTICE: {2}pe_000000000000 is on orders-prod until .*recorded/);
      expect(out).toContain("widgets");
      expect(out).toContain("integer");
      expect(code).toBe(0);
      expect(texts(gateway).some((text) => text.includes("pg_catalog.pg_class"))).toBe(true);
    });

    test("\\copy works both ways and what went in is in the recording", async () => {
      const file = join(folder, "out.csv");
      const { code, out } = await psql(
        `\\copy (select generate_series(1, 50000)) to '${file}'
         create table copied (i int);
         \\copy copied from '${file}'
         select count(*), sum(i) from copied;`,
      );
      expect(out).toContain("50000|1250025000");
      expect(code).toBe(0);
      const data = gateway.sessions.at(-1)?.records.filter((r) => r.kind === RECORD.data) ?? [];
      expect(Buffer.concat(data.map((r) => r.payload.subarray(4))).toString()).toBe(await readFile(file, "utf8"));
    });

    test("lesson 5: Ctrl-C stops a long statement, and the end of the session is psql's own", async () => {
      const running = start([PSQL ?? "", "-X", "-c", "select pg_sleep(60)"], env);
      await expect.poll(() => texts(gateway).at(-1), { timeout: 10_000 }).toBe("select pg_sleep(60)");
      const session = gateway.sessions.at(-1);
      await expect.poll(() => session?.busy).toBe(true);
      await new Promise((done) => setTimeout(done, 200));
      running.child.kill("SIGINT");
      expect((await running.ran).err).toContain("canceling statement due to user request");
      expect(await session?.ended).toMatchObject({ cause: "client", detail: "the client ended the session" });
      expect(gateway.json(RECORD.statementCompleted).at(-1)).toMatchObject({ error: { sqlstate: "57014" } });
      expect(session?.records.some((r) => r.kind === RECORD.action && r.payload.includes("cancel"))).toBe(true);
    });

    test("\\watch repeats, each time recorded", async () => {
      const running = start([PSQL ?? "", "-X"], env, "select 'watched' \\watch 0.1\n");
      const seen = (): number => texts(gateway).filter((text) => text.includes("watched")).length;
      await expect.poll(seen, { timeout: 10_000 }).toBeGreaterThan(2);
      running.child.kill("SIGTERM");
      await running.ran;
    });

    test("a refusal shows reason, place and advice, and a mistyped statement PostgreSQL's own words", async () => {
      const { err } = await psql("drop table widgets;\nselec 1;\n");
      expect(err).toContain("ERROR:  DROP is refused");
      expect(err).toContain("Glasskey did not send this to orders-prod");
      expect(err).toContain('syntax error at or near "selec"');
      expect(err).toMatch(/LINE 1: selec 1;\n\s+\^/);
    });

    test("the end of the grant is told as the reason", async () => {
      const running = start([PSQL ?? "", "-X", "-c", "select pg_sleep(60)"], env);
      await expect.poll(() => texts(gateway).at(-1), { timeout: 10_000 }).toBe("select pg_sleep(60)");
      gateway.sessions.at(-1)?.handle?.cut("the grant ended at 14:32 UTC, as approved");
      expect((await running.ran).err).toContain("FATAL:  the grant ended at 14:32 UTC, as approved");
    });
  });

  test.runIf(PGBENCH !== undefined)("pgbench runs in all three query modes, with nothing failed", async () => {
    const init = await start([PGBENCH ?? "", "-i", "-I", "tgvp", "-q"], env).ran;
    expect(init.code, init.err).toBe(0);
    for (const mode of ["simple", "extended", "prepared"]) {
      for (const script of [["-S"], ["-b", "tpcb-like"]]) {
        const n = gateway.json(RECORD.statementStarted).length;
        const { code, out, err } = await start([PGBENCH ?? "", "-n", "-M", mode, ...script, "-c", "3", "-t", "20"], env)
          .ran;
        expect(code, err).toBe(0);
        expect(out).toContain("number of transactions actually processed: 60/60");
        const statements = gateway.json(RECORD.statementStarted).slice(n);
        expect(statements.length).toBeGreaterThanOrEqual(60 * (script.length === 1 ? 1 : 7));
      }
    }
    await expect.poll(() => gateway.sessions.every((session) => session.end !== undefined)).toBe(true);
    expect(gateway.json(RECORD.statementCompleted).length).toBe(gateway.json(RECORD.statementStarted).length);
  });

  describe("node-postgres", () => {
    test("parameters, prepared statements, cursors and COPY streams", async () => {
      const client = await connectPg();
      try {
        const rows = await client.query<{ a: number }>("select $1::int + 1 as a", [41]);
        expect(rows.rows).toEqual([{ a: 42 }]);
        for (const value of ["x", "y"]) {
          const named = await client.query({ name: "named", text: "select $1::text as v", values: [value] });
          expect(named.rows).toEqual([{ v: value }]);
        }
        const cursor = client.query(new Cursor("select generate_series(1, $1::int) as i", [250]));
        let total = 0;
        for (let part = await cursor.read(100); part.length > 0; part = await cursor.read(100)) total += part.length;
        await cursor.close();
        expect(total).toBe(250);
        await client.query("create table streamed (i int)");
        const source = Readable.from(Array.from({ length: 5_000 }, (_, i) => `${i}\n`));
        await pipeline(source, client.query(copyFrom("copy streamed from stdin")));
        let copied = "";
        for await (const chunk of client.query(copyTo("copy streamed to stdout"))) copied += String(chunk);
        expect(copied.split("\n").length).toBe(5_001);
        await expect(client.query("drop table streamed")).rejects.toMatchObject({ code: "42501" });
        await expect(client.query("truncate streamed; drop table streamed")).rejects.toMatchObject({ code: "42501" });
        await expect(client.query("drop table streamed where $1", [1])).rejects.toMatchObject({ code: "42601" });
        expect((await client.query("select count(*)::int as n from streamed")).rows).toEqual([{ n: 5_000 }]);
      } finally {
        await client.end();
      }
    });

    test("lesson 6: 250,000 rows arrive, and a long silent statement is busy and survives", async () => {
      const client = await connectPg();
      try {
        const { rows } = await client.query("select i, repeat('x', 50) as v from generate_series(1, 250000) i");
        expect(rows.length).toBe(250_000);
        expect(gateway.json(RECORD.statementCompleted).at(-1)).toMatchObject({ rows: 250_000, tag: "SELECT 250000" });
        const session = gateway.sessions.at(-1);
        const silent = client.query("select pg_sleep(1.5)");
        await expect.poll(() => session?.busy).toBe(true);
        await silent;
        expect(session?.busy).toBe(false);
        expect(session?.end).toBeUndefined();
      } finally {
        await client.end();
      }
    });
  });

  test.runIf(existsSync(PYTHON))("python3-psycopg2 runs unmodified", async ({ skip }) => {
    const script = `
import io, sys
try:
    import psycopg2
except ImportError:
    sys.exit(77)
c = psycopg2.connect("")
k = c.cursor()
k.execute("create table snake (i int, v text)")
k.executemany("insert into snake values (%s, %s)", [(1, "é"), (2, None)])
k.copy_expert("copy snake from stdin", io.StringIO("3\\tx\\n"))
c.commit()
try:
    k.execute("drop table snake")
except psycopg2.errors.InsufficientPrivilege as e:
    print("refused", e.diag.message_hint is not None)
c.rollback()
k.execute("select count(*) from snake")
print(k.fetchone()[0])
n = c.cursor("named")
n.execute("select generate_series(1, 5000)")
print(sum(1 for _ in n))
`;
    const { code, out, err } = await start([PYTHON, "-"], env, script).ran;
    skip(code === 77, "psycopg2 is not installed for /usr/bin/python3");
    expect(err).not.toContain("Traceback");
    expect(out.trim().split("\n")).toEqual(["refused True", "3", "5000"]);
  });

  test.runIf(PG_DUMP !== undefined)("pg_dump runs unmodified, or says that it is too old for this server", async () => {
    const { out, err } = await start([PG_DUMP ?? "", "--no-owner"], env).ran;
    const tooOld = version === "15" ? "" : "|aborting because of server version mismatch";
    expect(out + err).toMatch(new RegExp(`PostgreSQL database dump complete${tooOld}`));
  });
});
