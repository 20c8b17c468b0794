import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { beforeAll, describe, expect, it } from "vitest";
import type { JsonObject } from "../../core/json.ts";
import { ALLOWED } from "./fixtures/scope/allowed.ts";
import { EXPRESSION_PLACES, NEEDS_CLASS, NEVER_ALLOWED, UNREADABLE } from "./fixtures/scope/refused.ts";
import { CLASSES, PARTS, STATEMENTS } from "./scope-classes.ts";
import { factsOf } from "./scope-walk.ts";
import { compileScope, loadParser, parseScope, type ScopeChecker, type Verdict } from "./scope.ts";

beforeAll(() => loadParser());

function checker(scope: JsonObject = {}): ScopeChecker {
  return compileScope({ role: "orders_rw", ...scope });
}
const everything = { allow: Object.keys(CLASSES) };

function reasonOf(verdict: Verdict): string {
  return verdict.ok ? `allowed as ${verdict.classes.join(" ")}` : verdict.reason;
}

describe("the default scope", () => {
  it("lets data and session statements through, counted by their classes", () => {
    const scope = checker();
    for (const [sql, classes] of ALLOWED) {
      const verdict = scope.check(sql);
      expect(verdict.ok ? verdict.classes.toSorted().join(" ") : verdict.reason, sql).toBe(
        classes.split(" ").toSorted().join(" ").trim(),
      );
    }
  });

  it("refuses everything else, and names the class that another playbook would have to allow", () => {
    const scope = checker();
    for (const [cls, ...statements] of NEEDS_CLASS) {
      for (const sql of statements) {
        const verdict = scope.check(sql);
        expect(reasonOf(verdict), sql).toContain(`does not allow ${cls}`);
        expect(verdict, sql).toMatchObject({ ok: false, next: expect.stringContaining(cls) as string });
      }
    }
  });

  it("lets such a statement through where its playbook allows every class", () => {
    const scope = checker(everything);
    for (const [, ...statements] of NEEDS_CLASS) {
      for (const sql of statements) expect(reasonOf(scope.check(sql)), sql).toContain("allowed");
    }
  });
});

describe("what no playbook can allow", () => {
  it.each(NEVER_ALLOWED)("is refused because: %s", (because, ...statements) => {
    const scope = checker(everything);
    for (const sql of statements) expect(reasonOf(scope.check(sql)), sql).toContain(because);
  });

  it("includes whatever cannot be read as PostgreSQL's SQL", () => {
    const scope = checker(everything);
    for (const sql of UNREADABLE) expect(scope.check(sql), JSON.stringify(sql)).toMatchObject({ ok: false });
  });

  it("is found in every place where an expression may stand", () => {
    const scope = checker(everything);
    for (const place of EXPRESSION_PLACES) {
      for (const call of ["pg_read_file('/etc/passwd')", 'public."query_to_xml"($1, true, true, $2)']) {
        const sql = place.replace("…", call);
        expect(reasonOf(scope.check(sql)), sql).toMatch(/pg_read_file\(\) is refused|query_to_xml\(\) is refused/);
      }
      // the place itself is SQL that would pass
      expect(reasonOf(scope.check(place.replace("…", "length(a)"))), place).toContain("allowed");
    }
  });

  it("decides about every kind of statement that the parser can return, and refuses the others", async () => {
    const types = await readFile(createRequire(import.meta.url).resolve("@pgsql/types/types.d.ts"), "utf8");
    const kinds = [...types.matchAll(/^export interface (\w+Stmt) /gm)].map(([, kind = ""]) => kind);
    const parts = ["RawStmt", "SetOperationStmt", "PLAssignStmt", ...PARTS]; // never whole statements
    expect(kinds.length).toBeGreaterThan(100);
    expect(kinds.filter((kind) => STATEMENTS[kind] === undefined).toSorted()).toEqual(parts.toSorted());
    expect(factsOf({ SomeNewStmt: {} })).toMatchObject([{ fact: "forbidden" }]);
    expect(factsOf({ SelectStmt: { a: [{ b: { SomeNewStmt: {} } }] } })).toMatchObject([
      { fact: "class" },
      { fact: "forbidden" },
    ]);
    expect(factsOf({})).toMatchObject([{ fact: "forbidden" }]);
  });
});

describe("never", () => {
  it("wins over allow, by the playbook of the product's own example", () => {
    const scope = compileScope({ role: "orders_rw", never: ["drop", "truncate", "grant"] });
    expect(scope.check("UPDATE orders SET state = 'paid' WHERE id = 1")).toEqual({ ok: true, classes: ["update"] });
    expect(scope.check("SELECT 1; DROP TABLE orders")).toEqual({
      ok: false,
      reason: "statement 2 of 2: DROP is refused: this playbook's scope says never: drop",
      next: "Ask for a playbook whose scope allows drop (DROP …, ALTER TABLE … DROP …).",
      position: 11,
    });
    const contradictory = checker({ ...everything, never: ["drop", "delete", "ddl"] });
    for (const sql of [
      "ALTER TABLE t DROP COLUMN a",
      "ALTER TABLE t DROP CONSTRAINT c",
      "WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a",
      "EXPLAIN DELETE FROM t",
      "PREPARE p AS DELETE FROM t",
      "COPY (DELETE FROM t RETURNING *) TO STDOUT",
      "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE",
      "INSERT INTO t WITH a AS (DELETE FROM u RETURNING *) SELECT * FROM a",
      "CREATE RULE r AS ON INSERT TO t DO ALSO DELETE FROM u",
      "SELECT 1 INTO t",
    ]) {
      expect(reasonOf(contradictory.check(sql)), sql).toMatch(/says never: (drop|delete|create|alter)/);
    }
  });

  it("catches the UPDATE inside of INSERT … ON CONFLICT", () => {
    const scope = checker({ never: ["update"] });
    expect(scope.check("INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING").ok).toBe(true);
    expect(reasonOf(scope.check("INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 1"))).toContain(
      "never: update",
    );
  });
});

describe("allow", () => {
  it("replaces the default set, and takes groups", () => {
    const reader = checker({ allow: ["read"] });
    for (const sql of ["SELECT 1", "BEGIN", "SHOW ALL", "COPY t TO STDOUT", "EXPLAIN SELECT 1"]) {
      expect(reader.check(sql).ok, sql).toBe(true);
    }
    for (const sql of [
      "INSERT INTO t VALUES (1)",
      "WITH a AS (DELETE FROM t RETURNING 1) SELECT 1",
      "SELECT nextval('s')",
    ]) {
      expect(reader.check(sql).ok, sql).toBe(false);
    }
  });

  it("means nothing at all when it is empty", () => {
    const nobody = checker({ allow: [] });
    for (const sql of ["SELECT 1", "BEGIN", "SHOW ALL"]) expect(nobody.check(sql).ok, sql).toBe(false);
    expect(nobody.check("").ok).toBe(true);
  });

  it("opens the FunctionCall message only by its own word", () => {
    expect(reasonOf(checker().fastpath())).toContain("does not allow fastpath");
    expect(checker({ allow: ["default", "fastpath"] }).fastpath()).toEqual({ ok: true, classes: ["fastpath"] });
    expect(checker({ allow: ["fastpath"], never: ["opaque"] }).fastpath().ok).toBe(false);
  });
});

describe("relations", () => {
  const scope = (): ScopeChecker =>
    checker({ ...everything, relations: { read: ["customers", "sales.*", "logs.day_*"], write: ["public.orders"] } });

  it("lets named relations through, and the system catalogs that clients live on", () => {
    for (const sql of [
      "SELECT * FROM orders o JOIN public.customers c USING (id) FOR UPDATE OF o",
      "SELECT * FROM sales.anything, logs.day_1",
      "UPDATE orders SET a = (SELECT 1 FROM customers)",
      "INSERT INTO orders SELECT * FROM sales.x",
      "COPY orders FROM STDIN; COPY customers TO STDOUT",
      "LOCK TABLE customers IN ACCESS SHARE MODE",
      "LOCK TABLE orders IN EXCLUSIVE MODE",
      "SELECT * FROM pg_class, pg_catalog.pg_namespace, information_schema.tables, pg_stat_activity",
      "WITH secret AS (SELECT 1) SELECT * FROM secret",
      "WITH RECURSIVE secret AS (SELECT 1 UNION SELECT * FROM secret) SELECT * FROM secret",
      "WITH a AS (SELECT 1), b AS (SELECT * FROM a) INSERT INTO orders SELECT * FROM b",
      "WITH secret AS (SELECT 1) SELECT 1 UNION (SELECT 2 FROM secret)",
      "TRUNCATE orders",
      "CREATE TEMP TABLE backup AS SELECT * FROM orders; SELECT * FROM pg_temp.backup; DROP TABLE pg_temp.backup",
      "SELECT nextval('orders'), setval('public.orders', 1), nextval('public.orders'::regclass), nextval('orders'::text)",
      "SET search_path = public",
      "SET search_path = pg_catalog, public",
      "SELECT set_config('search_path', '', false)",
      "RESET search_path; RESET ALL; DISCARD ALL",
      "VACUUM orders; ANALYZE orders (a)",
    ]) {
      expect(reasonOf(scope().check(sql)), sql).toContain("allowed");
    }
  });

  it.each([
    "SELECT * FROM secret",
    "TABLE secret",
    "SELECT * FROM public.secret",
    'SELECT * FROM "public"."secret" AS orders',
    "SELECT * FROM orders JOIN secret orders2 ON true",
    "SELECT * FROM ONLY (secret)",
    "SELECT (SELECT 1 FROM secret)",
    "SELECT * FROM orders WHERE id IN (TABLE secret)",
    "SELECT * FROM evil.orders",
    'SELECT * FROM "Orders"',
    'SELECT * FROM "orders "',
    'SELECT * FROM "public.orders"',
    "SELECT * FROM logs.week_1",
    "SELECT * FROM evil.pg_class",
    "SELECT * FROM pg_secret",
    "SELECT * FROM pg_stats",
    "SELECT * FROM pg_catalog.pg_statistic",
    "SELECT * FROM pg_toast.pg_toast_1234",
    "SELECT * FROM pg_temp_3.x",
    "SELECT nextval('secret_seq')",
    "SELECT setval('public.secret_seq', 1)",
    "SELECT nextval($1)",
    "SELECT nextval('orders_id_seqX'::varchar(13)::regclass)",
    "SELECT nextval('orders'::varchar(3))",
    "SELECT nextval('orders'::pg_temp.regclass)",
    "SELECT nextval('orders'::regclass::text::regclass)",
    "SELECT nextval('orders'::regclass[])",
    "SELECT nextval('16384')",
    "SELECT nextval(16384)",
    "SELECT nextval('16384'::regclass)",
    "SELECT nextval('-')",
    "SELECT nextval('\"public.orders\"')",
    "SELECT nextval('\"public,orders\"')",
    "SELECT nextval('orders\u00a0')",
    `SELECT nextval('${"a".repeat(64)}')`,
    "SELECT ('secret_seq'::regclass).nextval",
    "SELECT x.nextval FROM unnest(ARRAY['secret_seq'::regclass]) x",
    "COPY secret TO STDOUT",
    "COPY (SELECT * FROM secret) TO STDOUT",
    "COPY customers FROM STDIN",
    "INSERT INTO customers VALUES (1)",
    "UPDATE customers SET a = 1",
    "DELETE FROM sales.x",
    "UPDATE orders SET a = 1 FROM secret",
    "DELETE FROM orders USING secret",
    "MERGE INTO customers USING orders ON true WHEN MATCHED THEN DELETE",
    "MERGE INTO orders USING secret ON true WHEN MATCHED THEN DELETE",
    "INSERT INTO orders SELECT * FROM secret",
    "INSERT INTO orders VALUES (1) RETURNING (SELECT 1 FROM secret)",
    "WITH secret AS (SELECT * FROM secret) SELECT * FROM secret",
    "WITH a AS (SELECT * FROM secret), secret AS (SELECT 1) SELECT * FROM a",
    "WITH secret AS (SELECT 1) DELETE FROM secret",
    "WITH secret AS (SELECT 1) UPDATE secret SET a = 1",
    "WITH secret AS (SELECT 1) INSERT INTO secret SELECT 1",
    "WITH secret AS (SELECT 1) SELECT * FROM public.secret",
    "SELECT * FROM (WITH secret AS (SELECT 1) SELECT * FROM secret) x, secret",
    "(WITH secret AS (SELECT 1) SELECT * FROM secret) UNION SELECT * FROM secret",
    "WITH a AS (WITH secret AS (SELECT 1) SELECT * FROM secret) SELECT * FROM secret",
    "LOCK TABLE secret IN ACCESS SHARE MODE",
    "LOCK TABLE customers",
    "TRUNCATE customers",
    "TRUNCATE orders CASCADE",
    "DROP TABLE secret",
    "DROP TABLE orders CASCADE",
    "DROP SCHEMA public",
    "DROP TRIGGER x ON secret",
    "ALTER TABLE secret RENAME TO orders",
    "ALTER SCHEMA evil RENAME TO sales",
    "CREATE VIEW sales.v AS SELECT 1",
    "CREATE VIEW orders AS SELECT * FROM secret",
    "CREATE TABLE t (a int REFERENCES orders)",
    "CREATE INDEX ON secret (a)",
    "CREATE TRIGGER x BEFORE INSERT ON secret EXECUTE FUNCTION f()",
    "CREATE POLICY p ON secret USING (true)",
    "SELECT 1 INTO secret",
    "GRANT SELECT ON secret TO PUBLIC",
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC",
    "VACUUM",
    "ANALYZE",
    "ANALYZE secret",
    "REINDEX TABLE secret",
    "REINDEX SCHEMA public",
    "CLUSTER",
    "REFRESH MATERIALIZED VIEW secret",
    "PREPARE p AS SELECT * FROM secret",
    "DECLARE c CURSOR FOR SELECT * FROM secret",
    "EXPLAIN SELECT * FROM secret",
    "SET search_path = evil",
    "SET search_path = public, pg_catalog",
    'SET search_path = "public, pg_catalog"',
    'SET search_path = "$user", public',
    "SET LOCAL search_path TO evil, public",
    "SET SCHEMA 'evil'",
    "SELECT set_config('search_path', 'evil', true)",
    "SELECT set_config('search_path', $1, true)",
  ])("refuses: %s", (sql) => {
    expect(reasonOf(scope().check(sql))).toMatch(/relation|search_path/);
    expect(scope().check(sql).ok).toBe(false);
  });

  it("pins the search path, since it is what an unqualified name means", () => {
    expect(scope().startup).toEqual({ search_path: '"public"' });
    expect(checker().startup).toEqual({});
    const wide = checker({ relations: { read: ["a.orders"] }, searchPath: ["a", "b"] });
    expect(wide.startup).toEqual({ search_path: '"a", "b"' });
    // it may be found in b, which is not listed
    expect(reasonOf(wide.check("SELECT * FROM orders"))).toContain("meaning a.orders or b.orders");
    expect(wide.parameter("search_path", "b").ok).toBe(true);
    expect(wide.parameter("search_path", "evil").ok).toBe(false);
    expect(wide.parameter("options", "-c search_path=evil").ok).toBe(false);
  });

  it("tells which relation, read as what, and which clause of the playbook refused it", () => {
    const verdict = checker({ relations: { read: ["public.*"], write: ["orders"] } }).check("DELETE FROM customers");
    expect(verdict).toMatchObject({
      reason:
        "DELETE: relation customers (meaning public.customers) is refused: this playbook's relations.write allows orders",
      next: "Ask for a playbook whose scope lists it in relations.write.",
    });
  });

  it("means nothing may be read when the lists are empty", () => {
    const none = checker({ relations: {} });
    expect(none.check("SELECT 1").ok).toBe(true);
    expect(reasonOf(none.check("SELECT * FROM t"))).toContain("allows nothing");
  });

  it("lets * reach everything but system schemas", () => {
    const all = checker({ ...everything, relations: { write: ["*"] } });
    expect(all.check("DELETE FROM a.b; VACUUM; TRUNCATE x CASCADE").ok).toBe(true);
    expect(all.check("DELETE FROM pg_catalog.pg_class").ok).toBe(false);
    expect(all.check("SELECT * FROM pg_toast.pg_toast_1").ok).toBe(false);
  });
});

describe("functions", () => {
  const scope = (): ScopeChecker => checker({ ...everything, functions: ["app.*", "public.refund", "total"] });

  it("lets PostgreSQL's own and the listed ones through", () => {
    for (const sql of [
      "SELECT lower('A'), pg_catalog.upper('a'), count(*), now() FROM t",
      "SELECT app.anything(1), public.refund(1), refund(2), total()",
      "CALL app.proc()",
    ]) {
      expect(reasonOf(scope().check(sql)), sql).toContain("allowed");
    }
  });

  it.each(["SELECT evil()", "SELECT public.evil()", "SELECT evil.refund()", 'SELECT "Lower"(1)', "CALL evil()"])(
    "refuses: %s",
    (sql) => expect(reasonOf(scope().check(sql))).toContain("is refused: this playbook's scope allows functions"),
  );

  it("pins the search path, since it is what an unqualified function means", () => {
    expect(scope().startup).toEqual({ search_path: '"public"' });
    expect(reasonOf(scope().check("SET search_path = evil"))).toContain("restricts names");
  });

  it("still refuses what no playbook can allow", () => {
    const all = checker({ ...everything, functions: ["*"] });
    expect(reasonOf(all.check("SELECT app.dblink('x')"))).toContain("connects to another system");
  });
});

describe("a refusal", () => {
  it("tells where in the text, also after characters of several bytes", () => {
    const sql = "SELECT 'é€😀';\n  -- a comment\n  TRUNCATE t";
    const verdict = checker().check(sql);
    expect(verdict).toMatchObject({ ok: false, reason: expect.stringContaining("statement 2 of 2") as string });
    expect(verdict).toMatchObject({ position: Array.from(sql.slice(0, sql.indexOf("TRUNCATE"))).length + 1 });
  });

  it("is a syntax error, with its place, where the text is not SQL", () => {
    expect(checker().check("selct 1")).toMatchObject({ ok: false, sqlstate: "42601", position: 1 });
  });

  it("is the first of several", () => {
    expect(reasonOf(checker().check("SELECT 1; DROP TABLE a; TRUNCATE b"))).toContain("statement 2 of 3: DROP");
  });
});

describe("a compiled scope", () => {
  it("is refused where the stored scope is not valid, rather than read generously", () => {
    expect(() => compileScope({ role: "x", nevr: ["drop"] })).toThrow("nevr");
    expect(() => compileScope({})).toThrow("role");
  });

  it("is the same from what parseScope gave", () => {
    const parsed = parseScope({ role: "orders_rw", never: ["drop"] });
    expect(parsed).toEqual({ ok: true, value: { role: "orders_rw", allow: ["default"], never: ["drop"] } });
    expect(parsed.ok && compileScope(parsed.value).check("DROP TABLE x").ok).toBe(false);
  });
});
