import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { keyedHash } from "../../core/keyed-hash.ts";
import { secretWays } from "./fixtures/mask-ways.ts";
import { createMask, MAX_MASK_GROWTH, withheld } from "./mask.ts";
import { tokensOf } from "./mask-tokens.ts";
import { loadParser, parseSql } from "./scope-parser.ts";

const KEY = new Uint8Array(32).fill(5);
const NOTHING = { parameters: false, literals: false, key: KEY };
const PARAMETERS = { ...NOTHING, parameters: true };
const ALL = { parameters: true, literals: true, key: KEY };
const MARK = "hunter2hunter2";

const read = (sql: string): boolean => parseSql(sql).ok;
const shown = (sql: string, rules = NOTHING): string => createMask(rules).text(sql, read(sql)).shown;
const hash = (value: string): string => `‹hmac:${keyedHash(KEY, value)}›`;

beforeAll(loadParser);

describe("whatever the playbook says", () => {
  test.each(secretWays(MARK))("a secret is masked: $name", ({ sends }) => {
    const mask = createMask(NOTHING);
    for (const send of sends) {
      const [sql, values] = typeof send === "string" ? [send, []] : [send.sql, send.values];
      const text = mask.text(sql, read(sql));
      const parameters = mask.parameters(values, text);
      expect(text.shown + parameters.json).not.toContain(MARK);
      expect(parameters.json).not.toContain(Buffer.from(MARK).toString("base64"));
      expect(text.masked || parameters.masked || !JSON.stringify(send).includes(MARK)).toBe(true);
    }
  });

  test("of a statement with a secret, what it does and to whom stays readable", () => {
    expect(shown("ALTER ROLE app PASSWORD 'x' VALID UNTIL '2030-01-01'")).toBe(
      `ALTER ROLE app PASSWORD '${hash("x")}' VALID UNTIL '${hash("2030-01-01")}'`,
    );
    expect(shown(`update "users" set "password" = 'x' where users.id = 12`)).toBe(
      `update "users" set "password" = '${hash("x")}' where users.id = 12`,
    );
  });

  test("nothing else is masked", () => {
    for (const sql of [
      "select 1",
      "update orders set state = 'paid' where id = 4711 -- by hand",
      "select * from customers where name = 'O''Brien' and note = $$x$$",
      "create table t (id int primary key, keyboard text)",
      "do $$ begin perform 1; end $$",
      "sel ect 'x'",
    ]) {
      expect(createMask(NOTHING).text(sql, read(sql))).toEqual({
        shown: sql,
        masked: false,
        secret: false,
        data: false,
      });
    }
    expect(
      createMask(NOTHING).parameters(["a", null, Buffer.from([0xff])], createMask(NOTHING).text("select 1", true)),
    ).toEqual({
      json: '["a",null,{"base64":"/w=="}]',
      masked: false,
    });
    expect(createMask(NOTHING).words('column "x" does not exist', false)).toBe('column "x" does not exist');
  });

  test("what cannot be read, and mentions anything of the kind, is withheld as a whole", () => {
    const sql = `alter rol app key ${MARK}`;
    expect(shown(sql)).toBe(`‹masked: ${sql.length} characters, hmac:${keyedHash(KEY, sql)}›`);
  });

  test("the words of an error about something masked are masked, and any that name a secret", () => {
    const mask = createMask(NOTHING);
    expect(mask.words(`column "${MARK}" does not exist`, true)).not.toContain(MARK);
    expect(mask.words(`the token ${MARK} is not valid`, false)).not.toContain(MARK);
    expect(mask.words("", true)).toBe("");
    expect(withheld(`password=${MARK}`)).toBe("‹masked: 23 characters›");
    expect(withheld("psql")).toBe("psql");
    // Judged before it is cut.
    expect(withheld(`${MARK} ${"x".repeat(50)} password`, 63)).not.toContain(MARK);
    expect(withheld("x".repeat(70), 63)).toBe("x".repeat(63));
  });

  test("a name that became suspect is masked wherever it is mentioned: in reasons, errors and actions", () => {
    const mask = createMask(NOTHING);
    mask.defined(MARK, mask.text("update users set password = $1", true));
    expect(mask.name(MARK)).not.toContain(MARK);
    expect(mask.words(`prepared statement "${MARK}" does not exist`, false)).not.toContain(MARK);
    expect(mask.words("the client ended the session", false)).toBe("the client ended the session");
  });

  test("no text holds the process up or fills its memory, however long and however it is made", () => {
    const pieces = [`://${":".repeat(60)}`, "://:", "(", "\\", "/*", "connection ", "'||", "u&", "token("];
    const mask = createMask(ALL);
    mask.defined("p", mask.text("select 'x' as password", true));
    for (const piece of pieces) {
      const text = piece.repeat(15_000_000 / piece.length);
      expect(mask.text(text, false).shown.length).toBeLessThan(100);
      expect(mask.parameters([text], mask.text("select $1", true)).masked).toBe(true);
    }
  }, 30_000);

  test("after a thousand suspect names, every call is suspect: none is forgotten", () => {
    const mask = createMask(NOTHING);
    const secret = mask.text("select 'x' as password", true);
    for (let i = 0; i <= 1_001; i += 1) mask.defined(`statement${i}`, secret);
    expect(mask.text(`execute statement1001('${MARK}')`, true).shown).not.toContain(MARK);
  });
});

describe("what the playbook masks", () => {
  test("parameters: values beside the text, EXECUTE's arguments, COPY data; the text's own constants stay", () => {
    const mask = createMask(PARAMETERS);
    const text = mask.text("select 'x', $1", true);
    expect(text).toMatchObject({ shown: "select 'x', $1", masked: false, data: false });
    const { json } = mask.parameters(["a", null, Buffer.from("b")], text);
    expect(JSON.parse(json)).toEqual([hash("a"), null, hash("b")]);
    expect(mask.text("execute p ('a', 12, $2) -- 'b'", true).shown).toBe(
      `execute p ('${hash("a")}', ${hash("12")}, $2) -- 'b'`,
    );
    for (const sql of [`execute p(${MARK})`, `execute p(1, "${MARK}")`, `execute p(null, ${MARK}, now())`])
      expect(mask.text(sql, read(sql)).shown, sql).not.toContain(MARK);
    expect(mask.text("execute p(null, now(), t.x)", true).masked).toBe(false);
    expect(mask.text("copy t from stdin", true).data).toBe(true);
    expect(mask.data(Buffer.from(`1\t${MARK}\n`)).toString()).not.toContain(MARK);
  });

  test("all: every constant and comment in the text too, in whatever form", () => {
    expect(shown("select 'a', e'b', $$c$$, 1.5, x'1F', 12 /* d */", ALL)).not.toMatch(
      /'a'|e'b'|\$c|1\.5|1F|\b12\b|d \*/,
    );
    expect(shown("set work_mem = big", ALL)).toBe(`set work_mem = ${hash("big")}`);
    expect(shown("set time zone here", ALL)).toBe(`set time zone ${hash("here")}`);
    expect(shown("insert into t values (ann, now())", ALL)).toBe(`insert into t values (${hash("ann")}, now())`);
    expect(shown("select a from t where a in (select b, c from u)", ALL)).toContain("(select b, c from u)");
    expect(shown("select a.b from a where a.b = c", ALL)).toBe("select a.b from a where a.b = c");
    expect(shown("not sql 'a'", ALL)).toMatch(/^‹masked: 11 characters, hmac:[0-9a-f]{24}›$/);
  });

  test("equal values look equal, however they are written and wherever they stand, under one key only", () => {
    const mask = createMask(ALL);
    const value = hash("it's");
    const text = mask.text("select 'it''s', $$it's$$", true);
    expect(text.shown).toBe(`select '${value}', '${value}'`);
    expect(mask.parameters(["it's", Buffer.from("it's")], text).json).toBe(`["${value}","${value}"]`);
    const other = createMask({ ...ALL, key: new Uint8Array(32).fill(6) });
    expect(other.text("select 'it''s'", true).shown).not.toContain(value);
  });

  test("a text of very many constants is withheld as a whole, and none grows beyond its bound", () => {
    const sql = `select ${"1,".repeat(10_000)}1`;
    const { shown: text } = createMask(ALL).text(sql, true);
    expect(text).toMatch(/^‹masked/);
    const most = `select ${"1,".repeat(3_998)}1`;
    expect(createMask(ALL).text(most, true).shown.length).toBeLessThan(most.length + MAX_MASK_GROWTH);
  });
});

describe("as a property", () => {
  const word = fc.constantFrom("password", "SECRET", "app_token", "passwd", "api_key", "conninfo");
  const quote = fc.constantFrom(
    (v: string) => `'${v}'`,
    (v: string) => `E'${v}'`,
    (v: string) => `U&'${v}'`,
    (v: string) => `$q$${v}$q$`,
    (v: string) => `'x' -- y\n'${v}'`,
    (v: string) => `'it''s ${v}'`,
    (v: string) => `/* ' */ '${v}'`,
    (v: string) => `-- '\n'${v}'`,
    (v: string) => v,
    (v: string) => `"${v}"`,
  );
  const filler = fc.array(
    fc.constantFrom("select", "'a'", "1", ";", "--\n", "/*", "*/", "(", ")", "=", ",", "$1", "$$", "'", '"', "\\", "é"),
    {
      maxLength: 8,
    },
  );

  test("a mark in a constant does not get through beside a word of secrets, whatever else the text holds", () => {
    fc.assert(
      fc.property(filler, word, filler, quote, filler, fc.boolean(), (a, said, b, quoted, c, behind) => {
        const value = quoted(MARK);
        const sql = [...a, ...(behind ? [] : [said]), ...b, value, ...c, ...(behind ? [said] : [])].join(" ");
        const isRead = read(sql);
        // A bare name is a name where the parser reads it as one.
        fc.pre(!(isRead && (value === MARK || value === `"${MARK}"`)));
        expect(createMask(NOTHING).text(sql, isRead).shown).not.toContain(MARK);
      }),
      { numRuns: 3_000 },
    );
  });

  test("with all, no constant's mark gets through any text, read or not", () => {
    fc.assert(
      fc.property(filler, quote, filler, (a, quoted, b) => {
        fc.pre(![...a, ...b].includes('"')); // inside of them it would be a name
        const value = quoted(MARK);
        const sql = [...a, value, ...b].join(" ");
        const isRead = read(sql);
        fc.pre(!(isRead && (value === MARK || value === `"${MARK}"`)));
        expect(createMask(ALL).text(sql, isRead).shown).not.toContain(MARK);
      }),
      { numRuns: 3_000 },
    );
  });

  test("tokens cover the text without a gap, for any text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 60 }), (sql) => {
        let at = 0;
        for (const { start, end } of tokensOf(sql)) {
          expect(start).toBe(at);
          expect(end).toBeGreaterThan(start);
          at = end;
        }
        expect(at).toBe(sql.length);
      }),
    );
  });
});

test("constants are where PostgreSQL's own lexer finds them, in all that its clients send", async () => {
  const require = createRequire(import.meta.url);
  const library = require("libpg-query") as {
    loadModule(): Promise<void>;
    scanSync(sql: string): { tokens: { start: number; end: number; tokenName: string }[] };
  };
  await library.loadModule();
  let compared = 0;
  for (const file of ["psql.sql", "pg_dump.sql", "pgbench.sql"]) {
    const sql = readFileSync(new URL(`fixtures/scope/${file}`, import.meta.url), "utf8");
    for (const text of [sql, ...secretWays(MARK).flatMap(({ sends }) => sends.filter((s) => typeof s === "string"))]) {
      const bytes = Buffer.from(text);
      let theirs: string[];
      try {
        theirs = library
          .scanSync(text)
          .tokens.map(({ start, end, tokenName }) => ({ tokenName, text: bytes.toString("utf8", start, end) }))
          // It has no names for the tokens of U&'…', B'…' and X'…'.
          .filter(({ tokenName, text: token }) => tokenName === "SCONST" || /^(?:u&|b|x)'/i.test(token))
          .map(({ text: token }) => token);
      } catch {
        continue; // such as a string that does not end
      }
      const ours = tokensOf(text)
        .filter(({ kind }) => kind === "string")
        // To it, the N of N'…' is a word.
        .map(({ start, end }) => text.slice(start, end).replace(/^n'/i, "'"));
      // PostgreSQL joins what continues on the next line.
      expect(ours.join("").replaceAll(/\s/g, "")).toBe(theirs.join("").replaceAll(/\s/g, ""));
      compared += theirs.length;
    }
  }
  expect(compared).toBeGreaterThan(500);
});
