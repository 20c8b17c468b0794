import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { cacheKey, createCache } from "./scope-cache.ts";
import { compileScope, loadParser, type Verdict } from "./scope.ts";

beforeAll(() => loadParser());

const SCOPES = [
  { role: "r" },
  { role: "r", allow: ["default", "create"], never: ["delete"] },
  { role: "r", relations: { read: ["t", "a.*"], write: ["t"] }, functions: ["f"] },
];

/** Numbers, and what might be mistaken for one. */
const literal = fc.oneof(
  { weight: 4, arbitrary: fc.nat({ max: 999_999_999 }).map(String) },
  { weight: 2, arbitrary: fc.bigInt({ min: 0n, max: 10n ** 25n }).map(String) },
  fc.constantFrom(
    ...[
      "0",
      "007",
      "1.5",
      "1.",
      ".5",
      "1e5",
      "1E-5",
      "0x1F",
      "0b1",
      "0o7",
      "1_000",
      "1_",
      "1a",
      "$1",
      "$12",
      "$1a",
      "a1",
    ],
    ...[
      "- 1",
      "-1",
      "--1",
      "+1",
      "-- 1\n2",
      "/* 1 */2",
      "'1'",
      "E'\\'1'",
      "$$1$$",
      "$a$1$a$",
      '"1"',
      "U&'\\0031'",
      "B'1'",
    ],
    ...[
      "1;2",
      "1,2",
      "(1)",
      "1*1",
      "1=1",
      "1<>2",
      "off",
      "on",
      "NULL",
      "1 ; DROP TABLE t",
      "1\u00A0",
      "١",
      "𝟏",
      "1\v2",
      "1\f",
    ],
    ...["1) ; SET ROLE x; SELECT (1", "1'; DROP TABLE t; --", "1$$; DROP TABLE t; --$$", "2147483648", "4294967297"],
  ),
);

const template = fc.constantFrom(
  "SELECT abalance FROM t WHERE aid = #;",
  "UPDATE t SET abalance = abalance + # WHERE aid = #;",
  "INSERT INTO t (a, b) VALUES (#, #, CURRENT_TIMESTAMP)",
  "DELETE FROM t WHERE a = #",
  "SET work_mem = #",
  "SET standard_conforming_strings = #",
  "SET client_encoding = #",
  "SET app.x = #, #",
  "SET role = #",
  "SELECT set_config(#, #, false)",
  "SELECT f(#), g#(#)",
  "SELECT t#.a FROM a.t#",
  "SELECT # # #",
  "SELECT #",
  "#",
  "SELECT 1 FROM t LIMIT # OFFSET #",
  "SELECT $#, a[#:#] FROM t",
  "CREATE TABLE t (a numeric(#, #), b float(#))",
  "FETCH # FROM c",
  "SELECT nextval(#)",
  "SELECT # -# --# \n; DROP TABLE t#",
  "BEGIN; SELECT #; COMMIT",
);

const statement = fc.tuple(template, fc.array(literal, { minLength: 1, maxLength: 4 })).map(([text, values]) => {
  let next = 0;
  return text.replaceAll("#", () => values[next++ % values.length] ?? "");
});

describe("the verdict cache", () => {
  it("never changes a verdict, whatever was asked before, with numbers and what looks like numbers", () => {
    const warm = SCOPES.map((scope) => compileScope(scope)); // keeps its cache over all runs
    fc.assert(
      fc.property(fc.array(statement, { minLength: 1, maxLength: 4 }), fc.nat(SCOPES.length - 1), (texts, which) => {
        for (const sql of texts) {
          const fresh = compileScope(SCOPES[which] ?? { role: "r" }).check(sql);
          expect(sameButServersErrors(warm[which]?.check(sql), fresh, sql), sql).toBe(true);
        }
      }),
      { numRuns: 1_500 },
    );
  });

  it("never changes the verdict on arbitrary texts of the characters that matter", () => {
    const pieces = fc.constantFrom(
      ..."0 1 23 999999999 a b_ $ . , ; ( ) = - * + < > \n ' \" / -- /* */ $$ E' SELECT SET FROM DROP t role off".split(
        " ",
      ),
      " ",
      "",
    );
    const warm = compileScope({ role: "r" });
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 12 }), (parts) => {
        const sql = `SELECT ${parts.join("")}`;
        expect(sameButServersErrors(warm.check(sql), compileScope({ role: "r" }).check(sql), sql), sql).toBe(true);
      }),
      { numRuns: 1_500 },
    );
  });

  it("keeps one verdict for statements that differ in plain integers only", () => {
    const scope = compileScope({ role: "r" });
    for (let id = 0; id < 1_000; id++) scope.check(`SELECT abalance FROM pgbench_accounts WHERE aid = ${id};`);
    expect(scope.cached).toBe(1);
  });

  it("does not take a verdict on one value of a parameter for another value", () => {
    const scope = compileScope({ role: "r" });
    for (const value of [1, 0, 1, 0])
      expect(scope.check(`SET standard_conforming_strings = ${value}`).ok).toBe(value === 1);
  });

  it("keys only what it can be sure of", () => {
    const plain = "SELECT a FROM t WHERE b = 12 AND c = -5";
    expect(cacheKey(plain)).toEqual({ key: "SELECT a FROM t WHERE b = 0 AND c = -0", shared: true });
    for (const sql of [
      "SELECT '1'",
      'SELECT "1"',
      "SELECT 1 -- 2",
      "SELECT 1 /* 2 */",
      "SELECT $$1$$",
      "SELECT $a$1$a$",
      "SELECT é1",
    ]) {
      expect(cacheKey(sql), sql).toEqual({ key: sql, shared: false });
    }
    for (const sql of [
      "SELECT $1",
      "SELECT a1",
      "SELECT 1.5",
      "SELECT 1e5",
      "SELECT 0x1",
      "SELECT 1_0",
      "SELECT 1234567890",
    ]) {
      expect(cacheKey(sql), sql).toEqual({ key: sql, shared: true });
    }
    expect(cacheKey("x".repeat(9_000))).toBeUndefined();
  });

  it("holds at most two generations, and keeps what is used", () => {
    const cache = createCache<number>({ entries: 10, characters: 1_000 });
    for (let at = 0; at < 1_000; at++) {
      cache.set(`k${at}`, at);
      expect(cache.get("k0")).toBe(0);
      expect(cache.size).toBeLessThanOrEqual(20);
    }
    const wide = createCache<number>({ entries: 1_000, characters: 100 });
    for (let at = 0; at < 100; at++) wide.set(`${at}`.padStart(50, " "), at);
    expect(wide.size).toBeLessThanOrEqual(4);
  });
});

/**
 * The one difference that the key allows: `float(99)` after `float(1)`, which the server refuses as an error of its own.
 * So a text that is no SQL may keep the verdict of one that is; no other difference is accepted.
 */
function sameButServersErrors(cached: Verdict | undefined, fresh: Verdict, sql: string): boolean {
  if (JSON.stringify(cached) === JSON.stringify(fresh)) return true;
  return cached?.ok === true && !fresh.ok && /precision for type float/.test(fresh.reason) && /float\(/.test(sql);
}
