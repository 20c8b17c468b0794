import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { ConnectAnswer } from "@glasskey/contract";
import type pg from "pg";
import { from as copyFrom } from "pg-copy-streams";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { playbook, startTestSystem, type Client, type TestSystem } from "./system.ts";
import { folderChunkStore } from "../src/recording/chunk-store.ts";
import { chunkName, MAX_CHUNK_BYTES, openChunk } from "../src/recording/chunk.ts";
import { readJournal } from "../src/recording/reader.ts";
import type { StoredRecord } from "../src/recording/record.ts";
import { readSessionKey } from "../src/recording/session-keys.ts";
import { openStore } from "../src/store/database.ts";
import { openKeyring, type Keyring } from "../src/store/keyring.ts";
import { RECORD } from "../src/targets/target.ts";
import { secretWays } from "../src/targets/postgres/fixtures/mask-ways.ts";

/*
 * Marked secrets go through a real Glasskey to a real PostgreSQL. Afterwards everything that Glasskey wrote anywhere is
 * searched for the marks, what is encrypted after it was decrypted.
 */

const ROOT_KEY = Buffer.alloc(32, 7); // as testing/system.ts writes it
const PYTHON = "/usr/bin/python3";
const PSQL = "/usr/bin/psql";

let system: TestSystem;
let ann: Client;
/** Every secret that was sent; each is longer than what a text holds by chance. */
const marks: string[] = [];

const newMark = (): string => {
  const mark = `gkMark${marks.length}x${Math.floor(Math.random() * 2 ** 40).toString(36)}q`;
  marks.push(mark);
  return mark;
};

beforeAll(async () => {
  const scope = "{ role: app_rw, allow: [default, privileges, execute, do, routine, alter, create] }";
  system = await startTestSystem(inject("pg18"), {
    "playbooks/repair.yaml": playbook("repair", { scope }),
    "playbooks/veiled.yaml": playbook("veiled", { scope, record: "{ mask: parameters }" }),
    "playbooks/dark.yaml": playbook("dark", { scope, record: "{ mask: all, keep: 30d }" }),
  });
  ann = await system.as("ann");
}, 120_000);
afterAll(async () => {
  await system?.dispose();
});

/** Sends it and takes whatever comes: an answer, an error, a refusal. */
async function send(client: pg.Client, sql: string, values?: readonly unknown[]): Promise<void> {
  await (values === undefined ? client.query(sql) : client.query(sql, [...values])).catch(() => {});
}

test("of secrets sent in over fifty ways, no byte is written anywhere: files, recordings, store, log, output", async () => {
  const grant = await ann.break("repair");
  const client = await ann.connect(grant.grant);
  for (const [index] of secretWays("x").entries()) {
    const way = secretWays(newMark())[index];
    for (const one of way?.sends ?? []) {
      if (typeof one === "string") await send(client, one);
      else await send(client, one.sql, one.values);
    }
  }
  // The same texts by Parse, which fails in other places than a simple query.
  for (const [index] of secretWays("x").entries()) {
    for (const one of secretWays(newMark())[index]?.sends ?? [])
      if (typeof one === "string") await send(client, one, []);
  }
  await send(client, `prepare named as select '${newMark()}' as password`);
  // A function of the target's own that says a secret, and only far behind it that it is one.
  const says = `begin raise exception '${newMark()} % password', repeat('x', 3000); end`;
  await system.target.query(`create function boom() returns void language plpgsql as $x$ ${says} $x$`);
  await send(client, "select boom()");
  expect((await client.query("select 'still here'")).rowCount).toBe(1);
  await client.end();
  await otherClients(grant.grant);
  await ann.end(grant.grant);

  await maskedPlaybooks();
  expect(marks.length).toBeGreaterThan(110);
  await system.stop();
  await expectNoMark();
}, 300_000);

/** What a client says of itself, and unmodified clients of other makers. */
async function otherClients(grant: string): Promise<void> {
  const answer = await ann.call<ConnectAnswer>("POST", `/v1/grants/${grant}/connect`);
  const env = {
    ...{ PGHOST: "127.0.0.1", PGPORT: String(answer.port), PGUSER: answer.user, PGPASSWORD: answer.secret },
    ...{ PGDATABASE: "postgres", PGSSLMODE: "require", HOME: "/nonexistent", PATH: process.env["PATH"] ?? "" },
  };
  if (existsSync(PSQL)) {
    const script = [
      `alter user app_rw password '${newMark()}';`,
      `select format('alter role app_rw password %L', '${newMark()}') \\gexec`,
      `copy t (id, note) from stdin /* the password file */;\n900\t${newMark()}\n\\.`,
      `select $1 as token \\bind '${newMark()}' \\g`,
    ].join("\n");
    await run([PSQL, "-X", "-q"], { ...env, PGAPPNAME: `password=${newMark()}` }, script);
    await run(
      [PSQL, "-X", "-q", "-c", "select 1"],
      { ...env, PGAPPNAME: `${newMark()}${"x".repeat(40)} password` },
      "",
    );
    await run([PSQL, "-X", "-q", "-c", "select 1"], { ...env, PGUSER: newMark() }, "");
    await run([PSQL, "-X", "-q", "-c", "select 1"], { ...env, PGDATABASE: `token-${newMark()}` }, "");
    await run([PSQL, "-X", "-c", "select 1"], { ...env, PGOPTIONS: `-c app.password=${newMark()}` }, "");
  }
  if (existsSync(PYTHON)) {
    const script = `
try:
    import psycopg2
except ImportError:
    raise SystemExit(0)
c = psycopg2.connect("")
c.autocommit = True
k = c.cursor()
for sql, args in [("update t set note = %s where note = 'password'", ("${newMark()}",)),
                  ("alter role app_rw password %s", ("${newMark()}",)),
                  ("select set_config('app.secret', %s, false)", ("${newMark()}",))]:
    try:
        k.execute(sql, args)
    except psycopg2.Error:
        pass
`;
    await run([PYTHON, "-c", script], env, "");
  }
}

/** Values that are no secrets by their looks, under playbooks that mask them. */
async function maskedPlaybooks(): Promise<void> {
  const veiled = await ann.break("veiled");
  const first = await ann.connect(veiled.grant);
  await send(first, "update t set note = $1 where id = $2", [newMark(), 1]);
  await send(first, "select $1::int", [newMark()]);
  await send(first, "select $1::bytea", [Buffer.from(newMark())]);
  await send(first, "prepare q (text) as select $1");
  await send(first, `execute q('${newMark()}')`);
  await copyIn(first, "copy t (id, note) from stdin", `901\t${newMark()}\n902\t${newMark()}\n`);
  await first.end();
  await ann.end(veiled.grant);
  const dark = await ann.break("dark");
  const second = await ann.connect(dark.grant);
  await send(second, `update t set note = '${newMark()}' where id = 1 -- ${newMark()}`);
  await send(second, `select '${newMark()}'::int`);
  await send(second, `select $$${newMark()}$$`);
  await send(second, `selec '${newMark()}`);
  await send(second, `do $$ begin raise exception '${newMark()}'; end $$`);
  await send(second, `set app.x = ${newMark()}`);
  await copyIn(second, "copy t (id, note) from stdin", `903\t${newMark()}\nno number\t${newMark()}\n`);
  await second.end();
  await ann.end(dark.grant);
}

async function copyIn(client: pg.Client, sql: string, rows: string): Promise<void> {
  await pipeline(Readable.from([rows.slice(0, 7), rows.slice(7)]), client.query(copyFrom(sql))).catch(() => {});
}

function run(argv: readonly string[], env: Record<string, string>, input: string): Promise<void> {
  const child = spawn(argv[0] ?? "", argv.slice(1), { env, stdio: ["pipe", "ignore", "ignore"] });
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", () => resolve());
  });
}

/** A mark as it is, and as base64 at each of the three offsets, as hex, and as UTF-16. */
function formsOf(mark: string): Buffer[] {
  const forms = [Buffer.from(mark), Buffer.from(Buffer.from(mark).toString("hex")), Buffer.from(mark, "utf16le")];
  for (const lead of ["", "a", "ab"]) {
    const text = Buffer.from(lead + mark).toString("base64");
    forms.push(Buffer.from(text.slice(lead === "" ? 0 : 4, Math.floor((lead.length + mark.length) / 3) * 4)));
  }
  return forms;
}

async function expectNoMark(): Promise<void> {
  const forms = marks.flatMap((mark) => formsOf(mark));
  const upper = marks.map((mark) => Buffer.from(Buffer.from(mark).toString("hex").toUpperCase()));
  let searched = 0;
  const search = (where: string, bytes: Buffer): void => {
    searched += bytes.length;
    for (const form of [...forms, ...upper]) {
      const at = bytes.indexOf(form);
      const around = at < 0 ? "" : bytes.subarray(Math.max(0, at - 150), at + 100).toString();
      expect(at, `${where} holds ${form.toString()}: ${around}`).toBe(-1);
    }
  };

  // Every file as it is: journals, chunks, the log's folder, the head file.
  const { dataDir } = system.config;
  for (const entry of readdirSync(dataDir, { recursive: true, encoding: "utf8" })) {
    const path = join(dataDir, entry);
    if (statSync(path).isFile()) search(path, readFileSync(path));
  }
  // The store, table by table.
  const tables = await system.storeQuery<{ name: string }>(
    "select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname not in ('pg_catalog', 'information_schema')",
  );
  expect(tables.length).toBeGreaterThan(10);
  for (const { name } of tables) {
    const rows = await system.storeQuery<{ row: string }>(`select t::text as row from ${name} t`);
    search(name, Buffer.from(rows.map(({ row }) => row).join("\n")));
    const bytes = await system.storeQuery<{ json: string }>(`select to_jsonb(t)::text as json from ${name} t`);
    search(name, Buffer.from(bytes.map(({ json }) => json).join("\n")));
  }
  search("output", Buffer.from(system.warnings.join("\n")));

  // What is encrypted, after it was decrypted as Glasskey itself does.
  const external = system.config.database;
  const { password } = inject("pg18");
  if (external === undefined) throw new Error("the store is elsewhere");
  const { host, port, database, owner } = external as typeof external & { owner?: { user: string } };
  const store = openStore({ host, port, database, password, user: owner?.user ?? external.user });
  try {
    const keyring = await openKeyring(store, ROOT_KEY);
    let [records, frames] = [0, 0];
    const chunks = folderChunkStore(join(dataDir, "chunks"));
    for (const row of await store.selectFrom("chunks").selectAll().execute()) {
      const key = await readSessionKey(store, keyring, row.session);
      if (!(key instanceof Buffer)) throw new Error(`no key of ${row.session}`);
      for (const record of await recordsOf(chunks, key, row)) {
        records += 1;
        search(`recording of ${row.session}, kind ${record.kind}`, Buffer.from(record.payload));
      }
    }
    frames += await searchJournal(keyring, dataDir, search);
    expect(records).toBeGreaterThan(200);
    expect(frames).toBeGreaterThan(0);
    expect(searched).toBeGreaterThan(100_000);
    await expectMarksOfGlasskey(store, keyring, chunks);
  } finally {
    await store.destroy();
  }
}

async function recordsOf(
  chunks: ReturnType<typeof folderChunkStore>,
  key: Buffer,
  { session, chunk, sha256 }: { session: string; chunk: number; sha256: Buffer },
): Promise<readonly StoredRecord[]> {
  const file = await chunks.get(chunkName(session, chunk, sha256), MAX_CHUNK_BYTES);
  if (file === undefined) throw new Error(`no chunk ${chunk} of ${session}`);
  return openChunk(key, file).records;
}

async function searchJournal(
  keyring: Keyring,
  dataDir: string,
  search: (where: string, bytes: Buffer) => void,
): Promise<number> {
  const node = readFileSync(join(dataDir, "node"), "utf8").trim();
  let frames = 0;
  for await (const frame of readJournal(join(dataDir, "journal"), keyring.derive("journal", node))) {
    frames += 1;
    for (const record of frame.records) search("journal", Buffer.from(record.payload));
  }
  return frames;
}

/** Payloads of every record of that kind. */
async function searchable(
  store: ReturnType<typeof openStore>,
  keyring: Keyring,
  chunks: ReturnType<typeof folderChunkStore>,
  kind: number,
): Promise<string[]> {
  const texts: string[] = [];
  for (const row of await store.selectFrom("chunks").selectAll().execute()) {
    const key = await readSessionKey(store, keyring, row.session);
    if (!(key instanceof Buffer)) throw new Error(`no key of ${row.session}`);
    for (const record of await recordsOf(chunks, key, row))
      if (record.kind === kind) texts.push(Buffer.from(record.payload).toString());
  }
  return texts;
}

/** The search would find nothing in an empty recording either: the statements are there, and say that they are masked. */
async function expectMarksOfGlasskey(
  store: ReturnType<typeof openStore>,
  keyring: Keyring,
  chunks: ReturnType<typeof folderChunkStore>,
): Promise<void> {
  const texts = [
    ...(await searchable(store, keyring, chunks, RECORD.statementStarted)),
    ...(await searchable(store, keyring, chunks, RECORD.statementRefused)),
  ];
  const masked = texts.map((text) => JSON.parse(text) as { text: string; params?: string[]; masked?: boolean });
  expect(masked.filter((record) => record.masked === true).length).toBeGreaterThan(100);
  expect(masked.some(({ text }) => text === "select 'still here'")).toBe(true);
  expect(masked.some(({ text }) => /^update users set password = '‹hmac:[0-9a-f]{24}›' where id = 5$/.test(text))).toBe(
    true,
  );
  const veiled = masked.find(({ text }) => text === "update t set note = $1 where id = $2");
  const data = await searchable(store, keyring, chunks, RECORD.data);
  expect(data.filter((text) => /‹masked: \d+ bytes, hmac:[0-9a-f]{24}›/.test(text)).length).toBeGreaterThanOrEqual(2);
  expect(veiled?.params?.every((value) => /^‹hmac:[0-9a-f]{24}›$/.test(value))).toBe(true);
}
