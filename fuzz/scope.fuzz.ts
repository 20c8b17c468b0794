import { compileScope, loadParser, type Verdict } from "../server/src/targets/postgres/scope.ts";

await loadParser();

const scope = {
  ...{ role: "orders_ro", allow: ["select", "transaction", "show", "prepare", "execute", "set"] },
  relations: { read: ["public.orders", "public.customers"], write: [] },
  functions: ["public.order_total"],
};
/** Remembers verdicts over all inputs, as a session's checker does. */
const shared = compileScope(scope);
const ALLOWED = new Set(scope.allow);

export const seeds: readonly Uint8Array[] = [
  "select id, total from orders where id = 42 and note = 'it''s' order by 1 limit 10",
  "begin; select * from public.customers c join orders o using (id); commit",
  "with w as (delete from orders returning *) select count(*) from w",
  "do $$ begin execute 'drop table orders'; end $$",
  "copy (select 1) to program 'id'",
  "prepare p (int) as select * from orders where id = $1; execute p(1)",
  "select $tag$ text $tag$, E'\\x41\\'', U&'\\0041', B'101', 1e10, order_total(3)",
  "set session authorization postgres; reset role; set local role x",
  "select pg_read_file('/etc/passwd'), lo_import('x'), dblink('host=x', 'drop table orders')",
  "explain analyze update orders set total = 1 where id in (select id from pg_authid)",
  "/* a /* nested */ comment */ select 1 -- to the end\n; values (1), (2)",
].map((text) => Buffer.from(text));
export const words: readonly string[] = [
  ...[
    "; ",
    "--",
    "/*",
    "*/",
    "$$",
    "$a$",
    "'",
    "''",
    "\\'",
    '"',
    "E'",
    "U&'",
    "\u0000",
    "\ud800",
    "\u00a0",
    "\ufeff",
    "::regclass",
  ],
  ...[
    "drop table orders",
    "select ",
    "into t ",
    "for update ",
    "(((((((((",
    "))))",
    "pg_catalog.",
    "pg_authid",
    "$1",
    "1",
    "-1",
  ],
  ...[
    "set role ",
    "union all ",
    "case when ",
    "array[",
    "row(",
    "not ",
    "lateral ",
    "execute p",
    "do ",
    "truncate orders",
  ],
];

/**
 * A verdict, never an exception; only allowed classes pass; and what was judged before has no influence: the checker with
 * a memory says what one without says.
 */
export function one(input: Uint8Array): void {
  const sql = Buffer.from(input).toString("utf8");
  const fresh = compileScope(scope).check(sql);
  if (fresh.ok && fresh.classes.some((name) => !ALLOWED.has(name))) {
    throw new Error(`passed with classes ${fresh.classes.join(", ")}`);
  }
  const remembered = shared.check(sql);
  if (summary(remembered) !== summary(fresh)) {
    throw new Error(`judged ${summary(fresh)} alone, but ${summary(remembered)} after other statements`);
  }
  const [name = "", ...rest] = sql.split("=");
  shared.parameter(name, rest.join("="));
}

function summary(verdict: Verdict): string {
  return verdict.ok ? `ok ${[...verdict.classes].toSorted().join()}` : `refused ${verdict.sqlstate ?? "42501"}`;
}
