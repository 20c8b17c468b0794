import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer, connect, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { from as copyFrom, to as copyTo } from "pg-copy-streams";
import { beforeAll, describe, expect, inject, it } from "vitest";
import { randomBytes } from "node:crypto";
import { compileScope, loadParser } from "./scope.ts";

beforeAll(() => loadParser());

interface Cursor extends pg.Submittable {
  read(rows: number): Promise<unknown[]>;
  close(): Promise<void>;
}
const require = createRequire(import.meta.url);
const CursorOf = require("pg-cursor") as new (text: string, values: unknown[]) => Cursor; // it has no types

/** The scope that people write first. */
const scope = { role: "orders_rw", never: ["drop", "truncate", "grant"] };

describe("what unmodified clients send by themselves passes the default scope", () => {
  it.each(["psql.sql", "pg_dump.sql", "pgbench.sql"])("as captured in %s", async (file) => {
    const text = await readFile(new URL(`./fixtures/scope/${file}`, import.meta.url), "utf8");
    const statements = text.split("\n-- next --\n").slice(1);
    expect(statements.length).toBeGreaterThan(30);
    const checker = compileScope(scope);
    for (const sql of statements) expect({ sql, ...checker.check(sql) }).toMatchObject({ ok: true });
  });

  it("also where relations and functions are restricted, for all that looks only at the catalogs", async () => {
    const text = await readFile(new URL("./fixtures/scope/psql.sql", import.meta.url), "utf8");
    const checker = compileScope({ ...scope, relations: { write: ["public.t", "shop.*"] }, functions: [] });
    for (const sql of text.split("\n-- next --\n").slice(1)) {
      expect({ sql, ...checker.check(sql) }).toMatchObject({ ok: true });
    }
  });
});

interface Target {
  port: number;
  superuser: string;
  password: string;
}

/** Relays to a server, without TLS, and keeps each Query and Parse text, startup parameter and FunctionCall. */
async function spy(target: Target) {
  const statements: string[] = [];
  const parameters: [string, string][] = [];
  let calls = 0;
  const server = createServer((client) => {
    const upstream = connect(target.port, "127.0.0.1");
    for (const socket of [client, upstream]) socket.setNoDelay(true).on("error", () => socket.destroy());
    upstream.pipe(client);
    client.on("close", () => upstream.destroy());
    let pending = Buffer.alloc(0);
    let started = false;
    client.on("data", (chunk: Buffer) => {
      pending = Buffer.concat([pending, chunk]);
      for (;;) {
        const head = started ? 1 : 0;
        if (pending.length < head + 4) return;
        const length = head + pending.readInt32BE(head);
        if (pending.length < length) return;
        const message = pending.subarray(0, length);
        pending = pending.subarray(length);
        if (!started) {
          const code = message.readInt32BE(4);
          if (code === 80877103 || code === 80877104) {
            client.write("N"); // no TLS, no GSS
            continue;
          }
          started = code !== 80877102;
          const words = message.toString("utf8", 8, length - 2).split("\0");
          for (let at = 0; at + 1 < words.length; at += 2) parameters.push([words[at] ?? "", words[at + 1] ?? ""]);
        } else if (message[0] === 81) {
          statements.push(message.toString("utf8", 5, length - 1)); // Q
        } else if (message[0] === 80) {
          const name = message.indexOf(0, 5);
          statements.push(message.toString("utf8", name + 1, message.indexOf(0, name + 1))); // P
        } else if (message[0] === 70) {
          calls++; // F
        }
        upstream.write(message);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    statements,
    parameters,
    calls: () => calls,
    close: () => new Promise<void>((resolve) => server.close(() => resolve())),
  };
}

async function withDatabase(target: Target, work: (database: string) => Promise<void>): Promise<void> {
  const database = `scope_${randomBytes(6).toString("hex")}`;
  const admin = new pg.Client({ ...login(target), database: "postgres" });
  await admin.connect();
  try {
    await admin.query(`CREATE DATABASE ${database}`);
    await work(database);
  } finally {
    await admin.query(`DROP DATABASE IF EXISTS ${database} WITH (FORCE)`);
    await admin.end();
  }
}

function login(target: Target) {
  return { host: "127.0.0.1", port: target.port, user: target.superuser, password: target.password };
}

function run(program: string, args: readonly string[], env: Record<string, string>, input = ""): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { env: { PATH: process.env["PATH"] ?? "", ...env } });
    let output = "";
    child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (output += chunk.toString()));
    child.on("error", reject);
    child.on("close", () => resolve(output));
    child.stdin.end(input);
  });
}

function expectAllowed(spied: Awaited<ReturnType<typeof spy>>, atLeast: number): void {
  const checker = compileScope(scope);
  expect(spied.statements.length).toBeGreaterThanOrEqual(atLeast);
  for (const sql of spied.statements) expect({ sql, ...checker.check(sql) }).toMatchObject({ ok: true });
  const settings = spied.parameters.filter(([name]) => name !== "user" && name !== "database");
  for (const [name, value] of settings) expect(checker.parameter(name, value)).toMatchObject({ ok: true });
}

const SCHEMA = `
  CREATE TABLE orders (id serial PRIMARY KEY, state text DEFAULT 'new' CHECK (state <> ''));
  CREATE VIEW open_orders AS SELECT * FROM orders WHERE state = 'new';
  CREATE FUNCTION total() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM orders';
  INSERT INTO orders (state) SELECT 'paid' FROM generate_series(1, 100)`;

const CLUSTERS = (["pg18", "pg15"] as const).filter((which) => inject(which) !== undefined);
const PSQL = existsSync("/usr/bin/psql") ? CLUSTERS : [];
/** pg_dump refuses servers newer than itself; Debian's is as old as Debian's server. */
const PG_DUMP = existsSync("/usr/bin/pg_dump") ? CLUSTERS.filter((which) => which === "pg15") : [];

describe("live clients", () => {
  it("node-postgres with parameters, cursors and COPY streams passes", async () => {
    const target = inject("pg18");
    await withDatabase(target, async (database) => {
      const spied = await spy(target);
      const client = new pg.Client({ ...login({ ...target, port: spied.port }), database });
      await client.connect();
      await client.query("CREATE TEMP TABLE t (a int)");
      spied.statements.length = 0;
      await client.query("BEGIN");
      await client.query({ name: "insert", text: "INSERT INTO t VALUES ($1)", values: [1] });
      await client.query("COMMIT");
      const cursor = client.query(new CursorOf("SELECT * FROM generate_series(1, $1)", [10]));
      expect(await cursor.read(5)).toHaveLength(5);
      await cursor.close();
      const out = client.query(copyTo("COPY (SELECT 1) TO STDOUT"));
      for await (const chunk of out) expect(String(chunk)).toBe("1\n");
      const into = client.query(copyFrom("COPY t FROM STDIN"));
      await new Promise<void>((resolve, reject) => into.on("finish", resolve).on("error", reject).end("2\n"));
      await client.end();
      await spied.close();
      expectAllowed(spied, 6);
    });
  });

  it.each(PSQL)("psql passes with its backslash commands on %s", async (which) => {
    const target = inject(which) ?? inject("pg18");
    await withDatabase(target, async (database) => {
      const env = { PGPASSWORD: target.password, PGSSLMODE: "disable", PGOPTIONS: "-c statement_timeout=60s" };
      const at = (port: number): string[] => [
        "-X",
        "-h",
        "127.0.0.1",
        "-p",
        String(port),
        "-U",
        target.superuser,
        database,
      ];
      await run("psql", [...at(target.port), "-c", SCHEMA], env);
      const spied = await spy(target);
      const folder = await mkdtemp(join(tmpdir(), "glasskey-scope-"));
      const commands = String.raw`\d
          \d+ orders
          \dt+
          \df
          \df+ total
          \l
          \du+
          \dn+
          \dp
          \di+
          \ds
          \dv+
          \dT
          \dx
          \dconfig
          \sf total
          \conninfo
          \copy orders to '${join(folder, "out")}' csv
          SELECT 1 \gdesc
          \set FETCH_COUNT 10
          SELECT * FROM orders;`.replaceAll(/^\s+/gm, "");
      await run("psql", at(spied.port), env, commands);
      await rm(folder, { recursive: true });
      await spied.close();
      expectAllowed(spied, 30);
      expect(spied.calls()).toBe(0);
    });
  });

  it.each(PG_DUMP)("pg_dump passes, whole, on %s", async (which) => {
    const target = inject(which) ?? inject("pg18");
    await withDatabase(target, async (database) => {
      const env = { PGPASSWORD: target.password, PGSSLMODE: "disable" };
      const at = (port: number): string[] => ["-h", "127.0.0.1", "-p", String(port), "-U", target.superuser, database];
      await run("psql", ["-X", ...at(target.port), "-c", SCHEMA], env);
      const spied = await spy(target);
      expect(await run("pg_dump", at(spied.port), env)).toContain("database dump complete");
      await spied.close();
      expectAllowed(spied, 30);
    });
  });
});
