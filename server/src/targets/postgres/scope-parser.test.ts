import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { loadParser, MAX_SQL_LENGTH, parseSql } from "./scope-parser.ts";
import { compileScope } from "./scope.ts";

beforeAll(() => loadParser());

/** Lets the spare parser be prepared, as it is between two packets. */
const nextPacket = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const DEEP: readonly (readonly [name: string, sql: string])[] = [
  ["100,000 parentheses", `SELECT ${"(".repeat(100_000)}1${")".repeat(100_000)}`],
  ["100,000 unclosed parentheses", `SELECT ${"(".repeat(100_000)}`],
  ["5,000 nested subqueries", `SELECT ${"(SELECT ".repeat(5_000)}1${")".repeat(5_000)}`],
  ["a sum of 100,000 terms", `SELECT 1${"+1".repeat(100_000)}`],
  ["a sum of 1,000,000 terms", `SELECT 1${"+1".repeat(1_000_000)}`],
  ["a sum of 3,000 terms", `SELECT 1${"+1".repeat(3_000)}`],
  ["20,000 casts", `SELECT 1${"::int".repeat(20_000)}`],
  ["100,000 NOTs", `SELECT ${"NOT ".repeat(100_000)}true`],
  ["100,000 minus signs", `SELECT ${"- ".repeat(100_000)}1`],
  ["30,000 joins", `SELECT 1 FROM a${" JOIN b ON true".repeat(30_000)}`],
  ["50,000 UNIONs", `SELECT 1${" UNION SELECT 1".repeat(50_000)}`],
  ["30,000 nested CASEs", `SELECT ${"CASE WHEN ".repeat(30_000)}1${" THEN 1 END".repeat(30_000)}`],
  ["50,000 nested calls", `SELECT ${"f(".repeat(50_000)}1${")".repeat(50_000)}`],
  ["50,000 nested arrays", `SELECT ${"ARRAY[".repeat(50_000)}1${"]".repeat(50_000)}`],
  ["50,000 nested FROMs", `SELECT * FROM ${"(SELECT * FROM ".repeat(50_000)}a${") x".repeat(50_000)}`],
];

describe("the parser", () => {
  it.each(DEEP)("refuses %s, and reads the next statement as if nothing had happened", async (_, sql) => {
    const scope = compileScope({ role: "r", allow: ["select"] });
    for (let round = 0; round < 2; round++) {
      expect(scope.check(sql)).toMatchObject({ ok: false });
      await nextPacket();
      expect(scope.check(`SELECT 1${" ".repeat(round)}`)).toEqual({ ok: true, classes: ["select"] });
      expect(scope.check(`DROP TABLE t${" ".repeat(round)}`).ok).toBe(false);
    }
  });

  it("has a spare for a second such statement in the same packet, then refuses everything, then is back", async () => {
    const deep = `SELECT 1${"+1".repeat(12_900)}`;
    const outcomes = [parseSql(deep), parseSql("SELECT 1"), parseSql(deep), parseSql("SELECT 1")].map(({ ok }) => ok);
    expect(outcomes.slice(0, 3)).toEqual([false, true, false]);
    const scope = compileScope({ role: "r" });
    const during = scope.check("SELECT 2");
    expect(during.ok ? "again" : during.reason).toContain("again");
    await nextPacket();
    expect(scope.check("SELECT 2").ok).toBe(true); // and the refusal was not kept
  });

  it("stays usable over many of them", async () => {
    for (let round = 0; round < 40; round++) {
      expect(parseSql(`SELECT 1${"+1".repeat(12_500 + round)}`).ok).toBe(false);
      await nextPacket();
      expect(parseSql("SELECT 1").ok).toBe(true);
    }
  });

  it("reads a sum to its full depth or not at all", async () => {
    const wrong: number[] = [];
    for (let terms = 500; terms < 9_000; terms += 500) {
      const parsed = parseSql(`SELECT 1${"+1".repeat(terms)}`);
      if (parsed.ok && depthOf(parsed.statements[0]?.node, "lexpr") !== terms) wrong.push(terms);
      await nextPacket();
    }
    expect(wrong).toEqual([]);
  });

  it("does so on the larger stack of a worker thread, where the gateway runs it", async () => {
    const source = `
      const { parentPort, workerData } = require("node:worker_threads");
      import(workerData).then(async ({ loadParser, parseSql }) => {
        await loadParser();
        const bad = [];
        for (let terms = 1000; terms < 60000; terms += 3000) {
          const parsed = parseSql("SELECT 1" + "+1".repeat(terms));
          if (parsed.ok) {
            let depth = 0;
            let node = parsed.statements[0].node.SelectStmt.targetList[0].ResTarget.val;
            while (node.A_Expr) { depth++; node = node.A_Expr.lexpr; }
            if (depth !== terms) bad.push([terms, depth]);
          }
          await new Promise((resolve) => setImmediate(resolve));
          if (!parseSql("SELECT 1").ok) bad.push([terms, "unusable"]);
        }
        parentPort.postMessage(bad);
      });`;
    const worker = new Worker(source, { eval: true, workerData: new URL("./scope-parser.ts", import.meta.url).href });
    const bad = await new Promise((resolve, reject) => {
      worker.once("message", resolve);
      worker.once("error", reject);
    });
    await worker.terminate();
    expect(bad).toEqual([]);
  });

  it("reads long texts up to its bounds, and says which bound was passed", async () => {
    expect(parseSql(`SELECT '${"x".repeat(4 << 20)}'`).ok).toBe(true);
    expect(parseSql(`INSERT INTO t VALUES ${"(1, 'a b'), ".repeat(3_000)}(2, 'b')`).ok).toBe(true);
    expect(parseSql(`SELECT 1${" OR a".repeat(10_000)}`).ok).toBe(true);
    expect(parseSql(`SELECT '${"x".repeat(MAX_SQL_LENGTH)}'`)).toMatchObject({
      ok: false,
      message: expect.stringContaining("characters") as string,
    });
    expect(parseSql("SELECT 1;".repeat(200_000))).toMatchObject({
      ok: false,
      message: expect.stringContaining("split it") as string,
    });
    await nextPacket();
    expect(parseSql("SELECT 1").ok).toBe(true);
  });

  it("takes time in proportion to the text, also for what could be read quadratically or worse", () => {
    const insert = (depth: number): string =>
      depth === 0 ? "SELECT 1" : `WITH a AS (${insert(depth - 1)}) INSERT INTO t VALUES (1) RETURNING 1`;
    const scope = compileScope({ role: "r", relations: { write: ["*"] } });
    const slow = [
      insert(200),
      `WITH ${Array.from({ length: 3_000 }, (_, at) => `a${at} AS (SELECT 1)`).join(", ")} SELECT * FROM a1`,
      `SELECT 'é'${"; SELECT 1".repeat(7_000)}`,
      `SELECT f(${"g(1), ".repeat(4_000)}1)`,
    ];
    // read quadratically or worse, each takes minutes, and the test's own timeout ends it
    for (const sql of slow) expect(scope.check(sql)).toMatchObject({ ok: true });
  });

  it("carries every name and string exactly, so that none can pretend to be structure", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", minLength: 1, maxLength: 15 }), (name) => {
        fc.pre(!name.includes("\0") && name.isWellFormed());
        const parsed = parseSql(`SELECT '${name.replaceAll("'", "''")}' FROM "${name.replaceAll('"', '""')}"`);
        expect(parsed.ok).toBe(true);
        const select = parsed.ok ? JSON.stringify(parsed.statements[0]?.node) : "";
        expect(select).toContain(`"relname":${JSON.stringify(name)}`);
        expect(select).toContain(`"sval":${JSON.stringify(name)}`);
      }),
      { numRuns: 1_000 },
    );
    for (const name of ['","relname":"orders', '\\","a":{"', "\u2028", "\u0001", "\\u0000", "\u007f", "😀"]) {
      const parsed = parseSql(`SELECT * FROM "${name.replaceAll('"', '""')}"`);
      expect(parsed.ok && JSON.stringify(parsed.statements[0]?.node)).toContain(`"relname":${JSON.stringify(name)}`);
    }
  });

  it("never throws, on any text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), (sql) => {
        expect(typeof parseSql(sql).ok).toBe("boolean");
      }),
      { numRuns: 1_000 },
    );
  });
});

function depthOf(node: unknown, key: string): number {
  let depth = 0;
  const open: unknown[] = [node];
  while (open.length > 0) {
    const next = open.pop();
    if (typeof next !== "object" || next === null) continue;
    if (key in next) depth++;
    open.push(...Object.values(next));
  }
  return depth;
}
