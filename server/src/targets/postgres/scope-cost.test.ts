import fc from "fast-check";
import { loadModule, scanSync } from "libpg-query";
import { beforeAll, describe, expect, it } from "vitest";
import { measureText } from "./scope-cost.ts";
import { MAX_COST_MS } from "./scope-parser.ts";
import { CLASSES } from "./scope-classes.ts";
import { compileScope, loadParser } from "./scope.ts";

beforeAll(async () => {
  await loadParser();
  await loadModule();
});

const nextPacket = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** As long as it may be and still be checked, or a little longer. */
function largest(head: string, part: string, tail = ""): string {
  let [low, high] = [0, Math.ceil(7_000_000 / part.length)];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (measureText(head + part.repeat(middle) + tail).costMs <= MAX_COST_MS) low = middle;
    else high = middle;
  }
  return head + part.repeat(low) + tail;
}

describe("the cost of a text", () => {
  it("counts every sign, which the lexer may join but never split", () => {
    expect(measureText("SELECT 1|2|3").tokens).toBe(6);
    expect(measureText("a||b ~~* {c}").tokens).toBe(10);
    expect(measureText("SELECT 'a, b; c' || $$ , , $$ /* , , */").tokens).toBe(6);
    expect(measureText("").tokens).toBe(0);
  });

  it("counts no fewer tokens than PostgreSQL's own lexer, however strings and comments are written", () => {
    const piece = fc.constantFrom(
      ...[
        "'",
        "''",
        '"',
        '""',
        "$$",
        "$a$",
        "$a",
        "$1",
        "--",
        "/*",
        "*/",
        "/",
        "*",
        "\n",
        "\r",
        "\t",
        ";",
        "\\",
        "\\'",
      ],
      ...[
        "E'",
        "e'",
        "xE'",
        "U&'",
        'U&"',
        "B'",
        "X'",
        "N'",
        "'\n'",
        "' --x\n '",
        "é",
        "1",
        "1.",
        "1e5",
        "0x1",
        "a",
        "_",
      ],
      ...[" ", ",", ",,,", "+", "-", "|", ".", "(", ")", ":", "::", "\u00a0", "\v", "\f", "E'\\'", "E'a'\n'\\'", "?"],
    );
    let scanned = 0;
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 14 }), (parts) => {
        const sql = parts.join("");
        let found: number;
        try {
          found = scanSync(sql).tokens.filter(({ tokenName }) => !tokenName.includes("COMMENT")).length;
        } catch {
          return; // an error of the lexer: nothing behind it is read
        }
        scanned++;
        expect([sql, measureText(sql).tokens >= found]).toEqual([sql, true]);
      }),
      { numRuns: 30_000 },
    );
    expect(scanned).toBeGreaterThan(3_000);
  });

  it.each([
    ["signs", "SELECT 1", "|1"],
    ["signs behind which all of the run is read again", "SELECT 1", "+"],
    ["columns", "SELECT a", ",a"],
    ["casts", "SELECT a::int", ",a::int"],
    ["strings", "SELECT ''", ",''"],
    ["signed columns", "SELECT 1", ",-a"],
    ["conditions", "SELECT 1", " OR a=b"],
    ["CASEs", "SELECT 1", ",CASE WHEN a THEN b END"],
    ["calls", "SELECT f()", ",f()"],
    ["rows", "INSERT INTO t VALUES (1)", ",(1)"],
    ["relations", "SELECT 1 FROM a", ",a"],
    ["joins", "SELECT 1 FROM a", " JOIN a ON b"],
    ["statements", "SELECT", ";SELECT"],
    ["grouping sets", "SELECT GROUP BY ()", ",()"],
    ["subqueries", "SELECT (SELECT)", ",(SELECT)"],
    ["comments in one run of signs", "SELECT ", "/**/"],
    ["nested comments", "SELECT ", "/*"],
    ["an error at the very end", "SELECT a", ",a", " )"],
    ["a string", "SELECT '", "x", "'"],
    ["a string of quotes and backslashes", "SELECT '", '"\\', "'"],
    ["a string of control characters", "SELECT '", "\u0001", "'"],
    ["a string of tags", "SELECT '", "<p>", "'"],
    ["blanks", "SELECT", " "],
    ["typed strings", "SELECT int'1'", ",int'1'"],
    ["lists", "SELECT a IN(1)", ",a IN(1)"],
    ["a dollar-quoted string of dollar signs", "SELECT $a$", "$", "$a$"],
  ])("bounds how long others wait for: %s", async (_, head, part, tail = "") => {
    const scope = compileScope({ role: "r", allow: Object.keys(CLASSES), relations: { read: ["*"], write: ["*"] } });
    const sql = largest(head, part, tail);
    await nextPacket();
    const before = process.threadCpuUsage();
    scope.check(sql);
    // some 60 ms of this thread's own work, however busy the machine; without the bound, these take seconds to minutes
    expect(process.threadCpuUsage(before).user / 1000).toBeLessThan(1_500);
    const more = scope.check(head + part.repeat(Math.ceil((sql.length / part.length) * 1.2) + 10) + tail);
    expect(more).toMatchObject({ ok: false, sqlstate: "54000", reason: expect.stringContaining("COPY") as string });
    await nextPacket();
  });

  it("lets a string of 5 million characters through", () => {
    const scope = compileScope({ role: "r" });
    expect(scope.check(`INSERT INTO t VALUES ('${"x".repeat(5_000_000)}')`)).toEqual({ ok: true, classes: ["insert"] });
  });

  it("bounds what many patterns times many names, and many WITHs times many names, take", () => {
    const patterns = Array.from({ length: 1_000 }, (_, at) => `*_${at}`);
    const names = Array.from({ length: 10_000 }, (_, at) => `a${at}_999`).join(", ");
    const scope = compileScope({ role: "r", relations: { read: patterns } });
    expect(scope.check(`SELECT 1 FROM ${names}`)).toMatchObject({ ok: false, sqlstate: "54000" });
    expect(scope.check("SELECT 1 FROM a_999, b_999").ok).toBe(true);
    const nest = `${"WITH a AS (SELECT) (".repeat(400)}SELECT 1 FROM ${names}${")".repeat(400)}`;
    expect(compileScope({ role: "r" }).check(nest)).toMatchObject({ ok: false });
  });

  it("finds names that PostgreSQL would cut off, and only those", () => {
    const long = "a".repeat(64);
    for (const sql of [
      long,
      `"${long}"`,
      `1, ${long}`,
      `'x' ${long}`,
      "é".repeat(32),
      `"${'""'.repeat(64)}"`,
      `a.${long}`,
    ])
      expect(measureText(sql).longName, sql).toBeDefined();
    const most = "a".repeat(63);
    for (const sql of [
      most,
      `"${most}"`,
      `'${long}'`,
      `--${long}`,
      `/*${long}*/`,
      `$$${long}$$`,
      `"${'""'.repeat(63)}"`,
    ])
      expect(measureText(sql).longName, sql).toBeUndefined();
  });
});
