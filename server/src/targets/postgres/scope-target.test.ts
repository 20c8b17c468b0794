import { randomBytes } from "node:crypto";
import fc from "fast-check";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { CATALOG_FUNCTIONS, CATALOG_RELATIONS } from "./scope-catalog.ts";
import { compileScope, loadParser } from "./scope.ts";

/**
 * What docs/postgres-scope.md says of the target, tried on real servers: on one hand what the template role's privileges
 * enforce without the gateway, on the other hand that the ways around, which only the gateway closes, are real.
 */
const servers = (["pg18", "pg15"] as const).flatMap((name) => {
  const server = inject(name);
  return server === undefined ? [] : [{ name, server }];
});

const FUZZ_RUNS = 300;

beforeAll(() => loadParser());

describe.each(servers)("on $name", ({ name, server }) => {
  const suffix = randomBytes(5).toString("hex");
  const database = `scope_${suffix}`;
  const [template, lease, other] = [`tmpl_${suffix}`, `lease_${suffix}`, `other_${suffix}`];
  const login = { host: "127.0.0.1", port: server.port };
  const admin = new pg.Client({ ...login, user: server.superuser, password: server.password, database: "postgres" });
  const inside = new pg.Client({ ...login, user: server.superuser, password: server.password, database });
  const user = new pg.Client({ ...login, user: lease, password: "p", database });

  beforeAll(async () => {
    await admin.connect();
    await admin.query(`CREATE DATABASE ${database}`);
    await admin.query(`CREATE ROLE ${template} NOLOGIN SUPERUSER CREATEDB CREATEROLE BYPASSRLS`);
    await admin.query(`CREATE ROLE ${other} NOLOGIN`);
    await admin.query(`CREATE ROLE ${lease} LOGIN PASSWORD 'p'`);
    await admin.query(`GRANT ${template} TO ${lease}${name === "pg18" ? " WITH INHERIT TRUE, SET FALSE" : ""}`);
    await inside.connect();
    await inside.query(`CREATE TABLE orders (id int); CREATE TABLE secret (id int); INSERT INTO secret VALUES (42)`);
    await inside.query(`GRANT SELECT, UPDATE ON orders TO ${template}; ALTER TABLE secret ENABLE ROW LEVEL SECURITY`);
    await user.connect();
  });

  afterAll(async () => {
    await Promise.allSettled([user.end(), inside.end()]);
    await admin.query(`DROP DATABASE IF EXISTS ${database} WITH (FORCE)`);
    for (const role of [lease, template, other]) await admin.query(`DROP ROLE IF EXISTS ${role}`);
    await admin.end();
  });

  it("the template's privileges on relations hold without the gateway", async () => {
    await user.query("UPDATE orders SET id = 1");
    await expect(user.query("SELECT * FROM secret")).rejects.toMatchObject({ code: "42501" });
    await expect(user.query("DELETE FROM orders")).rejects.toMatchObject({ code: "42501" });
    await expect(user.query("TRUNCATE orders")).rejects.toMatchObject({ code: "42501" });
    await expect(user.query("DROP TABLE orders")).rejects.toMatchObject({ code: "42501" });
    await expect(user.query("BEGIN; LOCK TABLE secret")).rejects.toMatchObject({ code: "42501" });
    await user.query("ROLLBACK");
  });

  it("a template's own attributes, such as SUPERUSER, are not inherited by a lease", async () => {
    for (const sql of [
      "SELECT pg_read_file('/etc/passwd')",
      "COPY orders TO '/tmp/x'",
      "COPY orders TO PROGRAM 'true'",
      "ALTER SYSTEM SET work_mem = '5MB'",
      "CREATE ROLE x",
      "CREATE DATABASE x",
      "LOAD '$libdir/dict_snowball'",
      "SET session_replication_role = replica",
      `SET SESSION AUTHORIZATION ${other}`,
    ]) {
      await expect(user.query(sql), sql).rejects.toMatchObject({ code: "42501" });
    }
  });

  it("SET ROLE to the template is refused by the target from PostgreSQL 16 on, and always by the gateway", async () => {
    const outcome = await user.query(`SET ROLE ${template}`).then(
      () => "done",
      (error: unknown) => (error as { code?: string }).code,
    );
    await user.query("RESET ROLE");
    expect(outcome).toBe(name === "pg18" ? "42501" : "done");
    expect(compileScope({ role: "r" }).check(`SET ROLE ${template}`).ok).toBe(false);
  });

  /** Each works at the target for a role without any right of its own, and is refused by the gateway alone. */
  it.each([
    ["a text run as SQL", "SELECT query_to_xml('SELECT id FROM orders', true, true, '')::text AS seen", "7"],
    [
      "a function called like a column",
      "SELECT ('select id::text::tsvector from orders'::text).ts_stat::text AS seen",
      "7",
    ],
    [
      "the same on a scalar in FROM",
      "SELECT x.ts_stat::text AS seen FROM unnest(ARRAY['select id::text::tsvector from orders']) x",
      "7",
    ],
    ["a table read by its name as a value", "SELECT table_to_xml('orders', true, true, '')::text AS seen", "7"],
    [
      "code whose text is opaque",
      "DO $$ BEGIN EXECUTE 'UPDATE orders SET id = 7'; END $$; SELECT id::text AS seen FROM orders",
      "7",
    ],
    [
      "a parameter set through UPDATE",
      "BEGIN; UPDATE pg_settings SET setting = 'off' WHERE name = 'standard_conforming_strings'; SELECT current_setting('standard_conforming_strings') AS seen",
      "off",
    ],
    [
      "a parameter set by a name that is computed",
      "BEGIN; SELECT set_config('standard_' || 'conforming_strings', 'off', true) AS seen",
      "off",
    ],
    [
      "a parameter whose name a cast cuts off",
      "BEGIN; SELECT set_config('standard_conforming_strings.x'::varchar(27), 'off', true) AS seen",
      "off",
    ],
    [
      "a parameter whose name a domain cuts off",
      "BEGIN; CREATE DOMAIN pg_temp.text AS varchar(27); SELECT set_config('standard_conforming_strings.x'::text, 'off', true) AS seen",
      "off",
    ],
    [
      "a parameter whose name a relation's name becomes",
      "BEGIN; CREATE TEMP TABLE search_path (); SELECT set_config('pg_temp.search_path'::regclass::text, 'evil', true) AS seen",
      "evil",
    ],
    [
      "a name that the server cuts off",
      `BEGIN; CREATE TEMP TABLE ${"a".repeat(63)} AS SELECT 7 AS seen; SELECT seen::text FROM ${"a".repeat(64)}`,
      "7",
    ],
  ])("only the gateway closes: %s", async (_, sql, seen) => {
    await inside.query("TRUNCATE orders; INSERT INTO orders VALUES (7)");
    try {
      const results = await user.query(sql);
      const last: unknown = [results].flat().at(-1)?.rows[0];
      expect((last as { seen: string }).seen).toContain(seen);
    } finally {
      await user.query("ROLLBACK");
    }
    const everythingButOpaque = compileScope({ role: "r", allow: ["default", "ddl", "privileges", "maintenance"] });
    expect(everythingButOpaque.check(sql).ok).toBe(false);
  });

  it("a sequence named by a cast that cuts off, by its OID or by blanks of another kind, is not the one that is read", async () => {
    await inside.query(
      `CREATE SEQUENCE orders_id_seq; CREATE SEQUENCE "orders_id_seq\u00a0"; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO ${template}`,
    );
    const listed = compileScope({ role: "r", relations: { write: ["public.orders_id_seqX", "orders_id_seq"] } });
    const oid = await inside.query<{ oid: string }>("SELECT 'orders_id_seq'::regclass::oid::text AS oid");
    for (const sql of [
      "SELECT nextval('orders_id_seqX'::varchar(13)::regclass)::text AS n",
      `SELECT nextval('${oid.rows[0]?.oid ?? ""}')::text AS n`,
      "SELECT nextval('orders_id_seq\u00a0')::text AS n",
    ]) {
      expect(((await user.query(sql)).rows[0] as { n: string }).n, sql).toMatch(/^[12]$/);
      expect(listed.check(sql).ok, sql).toBe(false);
    }
    expect(listed.check("SELECT nextval('orders_id_seq'::regclass)").ok).toBe(true);
    await inside.query('DROP SEQUENCE orders_id_seq, "orders_id_seq\u00a0"');
  });

  it("with client_encoding LATIN1, another text runs than was recorded: that is why only UTF8 can be set", async () => {
    await user.query("SET client_encoding = 'LATIN1'");
    const seen = await user.query("SELECT encode(convert_to('é', 'UTF8'), 'hex') AS seen");
    await user.query("SET client_encoding = 'UTF8'");
    expect(seen.rows).toEqual([{ seen: "c383c2a9" }]);
    for (const encoding of ["LATIN1", "SQL_ASCII"]) {
      expect(compileScope({ role: "r" }).check(`SET client_encoding = '${encoding}'`).ok).toBe(false);
    }
  });

  it("with standard_conforming_strings off, a text means two things: that is why it can never be set", async () => {
    // With it on: two statements, the second harmless. With it off: one string, and an UPDATE behind it.
    const sql = String.raw`SELECT '\'; SELECT '; UPDATE orders SET id = 8; --'`;
    expect(compileScope({ role: "r", allow: ["select"] }).check(sql)).toEqual({ ok: true, classes: ["select"] });
    await user.query(
      "SET standard_conforming_strings = off; SET escape_string_warning = off; SET backslash_quote = on",
    );
    await user.query(sql);
    await user.query("RESET ALL");
    expect((await user.query("SELECT DISTINCT id FROM orders")).rows).toEqual([{ id: 8 }]);
  });

  it("the search path that a session starts with is what RESET and DISCARD ALL return to", async () => {
    await inside.query(`ALTER DATABASE ${database} SET search_path = evil`);
    const startup = compileScope({ role: "r", relations: {} }).startup["search_path"] ?? "";
    const pinned = new pg.Client({
      ...login,
      user: lease,
      password: "p",
      database,
      options: `-c search_path=${startup}`,
    });
    await pinned.connect();
    const seen: unknown[] = [];
    for (const sql of ["SELECT 1", "RESET search_path", "RESET ALL", "SET search_path TO DEFAULT", "DISCARD ALL"]) {
      await pinned.query(sql);
      seen.push((await pinned.query("SELECT array_to_string(current_schemas(false), ' ') AS path")).rows[0]);
    }
    await pinned.end();
    expect(seen).toEqual(Array.from({ length: 5 }, () => ({ path: "public" })));
  });

  it("a function called like a column is not seen by `functions`: there the EXECUTE privilege decides", async () => {
    await inside.query(
      "CREATE FUNCTION refund(text) RETURNS text LANGUAGE sql AS 'SELECT $1'; REVOKE EXECUTE ON FUNCTION refund(text) FROM PUBLIC",
    );
    const sql = "SELECT x.refund FROM unnest(ARRAY['a']) x";
    expect(compileScope({ role: "r", functions: [] }).check(sql).ok).toBe(true);
    await expect(user.query(`SELECT x.refund FROM unnest(ARRAY['a']) x`)).rejects.toMatchObject({ code: "42501" });
  });

  it("gateway and server split and read a text the same way, however it is quoted and commented", async () => {
    await inside.query(`CREATE TABLE IF NOT EXISTS victim (a int); GRANT ALL ON victim TO ${template}`);
    const piece = fc.constantFrom(
      ...[
        "'",
        "''",
        '"',
        "$$",
        "$a$",
        "$1",
        "--",
        "/*",
        "*/",
        "\n",
        "\r",
        ";",
        "\\",
        "E'",
        "U&'",
        'U&"',
        "B'",
        "X'",
        "N'",
      ],
      ..." | SELECT 1 | INSERT INTO victim VALUES (1) | DELETE FROM victim |,|(|)|a|1|0x|1_|é|\u00a0|\ufeff|UESCAPE|+|-|@|:|::text|?|.|..|[|]|\t".split(
        "|",
      ),
    );
    const checker = compileScope({ role: "r", allow: ["select"] });
    let forwarded = 0;
    const attempt = async (sql: string): Promise<void> => {
      const verdict = checker.check(sql);
      if (!verdict.ok) return;
      forwarded++;
      const results = await user.query(sql).then(
        (result) => [result].flat(),
        () => [],
      );
      for (const { command } of results) expect([sql, command ?? "SELECT"]).toEqual([sql, "SELECT"]);
    };
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 10 }), fc.array(piece, { maxLength: 6 }), async (parts, more) => {
        await attempt(`SELECT ${parts.join("")}`);
        await attempt(`SELECT '${parts.join("")}'; INSERT INTO victim VALUES (1); ${more.join("")}`);
        await attempt(`SELECT 1 ${parts.join("")} ; DELETE FROM victim ${more.join("")}`);
        await attempt(`SELECT $$${parts.join("")}$$ AS "${more.join("")}"`);
      }),
      { numRuns: FUZZ_RUNS },
    );
    expect(forwarded).toBeGreaterThan(FUZZ_RUNS / 10);
    expect((await user.query("SELECT count(*)::int AS n FROM victim")).rows).toEqual([{ n: 0 }]);
  });

  it("the lists of PostgreSQL's own names are complete", async () => {
    const relations = await inside.query<{ name: string }>(
      "SELECT relname AS name FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')",
    );
    expect(relations.rows.map((row) => row.name).filter((relation) => !CATALOG_RELATIONS.has(relation))).toEqual([]);
    const functions = await inside.query<{ name: string }>(
      "SELECT DISTINCT proname AS name FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN ('lower', 'now', 'count', 'jsonb_agg', 'to_char', 'pg_get_viewdef')",
    );
    expect(functions.rows.length).toBe(6);
    for (const row of functions.rows) expect(CATALOG_FUNCTIONS.has(row.name)).toBe(true);
  });
});
