import { keyedHash } from "../server/src/core/keyed-hash.ts";
import { createMask, MAX_MASK_GROWTH } from "../server/src/targets/postgres/mask.ts";
import { tokensOf } from "../server/src/targets/postgres/mask-tokens.ts";
import { loadParser, parseSql } from "../server/src/targets/postgres/scope-parser.ts";
import type { Random } from "./random.ts";

await loadParser();

const KEY = new Uint8Array(32).fill(1);
const SECRETS = { parameters: false, literals: false, key: KEY };
const ALL = { parameters: true, literals: true, key: KEY };
const MARK = "Qx7markQx7";

export const seeds: readonly Uint8Array[] = [
  `alter role app password '${MARK}'`,
  `create user mapping for app server s options (user 'x', password E'${MARK}\\'')`,
  `select 1; -- token\nupdate users set "password" = $a$${MARK}$a$ where id = 12345`,
  `do $$ begin execute 'alter role app pass' || 'word ''${MARK}'''; end $$`,
  `prepare p (text) as update users set password = $1; execute p('${MARK}')`,
  `select set_config('app.secret', U&'${MARK}\\0041', false) /* '${MARK}' */`,
  `set app.password to 'x', '${MARK}'`,
].map((text) => Buffer.from(text));
export const words: readonly string[] = [
  ...[`'${MARK}'`, `E'${MARK}'`, `$q$${MARK}$q$`, `/* ${MARK} */`, `-- ${MARK}\n`, `'\n'${MARK}'`, `U&'${MARK}'`],
  ...["'", "''", "\\'", '"', "/*", "*/", "--", "\n", "$$", "$a$", "E'", ";", "(", ")", "=", ",", "\u0000", "\u00a0"],
  ...[
    "password ",
    "execute p",
    "prepare p as ",
    "set x = ",
    "values (",
    "uescape '!'",
    "\\x70",
    "||",
    "copy t from stdin",
  ],
];

/**
 * Never throws, grows within its bound, and lets no mark through: where PostgreSQL's parser reads the text, none that
 * stands in a constant or a comment; where it does not, none at all.
 */
export function one(input: Uint8Array, random: Random): void {
  const sql = Buffer.from(input).toString("utf8");
  const read = parseSql(sql).ok;
  for (const rules of [SECRETS, ALL]) {
    const mask = createMask(rules);
    const text = mask.text(sql, read);
    if (text.shown.length > sql.length + MAX_MASK_GROWTH) throw new Error(`grew to ${text.shown.length}`);
    const hides = rules.literals || text.secret;
    if (hides && read && inConstant(text.shown)) throw new Error("a constant's mark got through");
    if (hides && !read && text.shown.includes(MARK)) throw new Error("a mark in what cannot be read got through");
    if (text.masked !== (text.shown !== sql)) throw new Error("says wrongly whether it masked");
    const values = mask.parameters([sql, Buffer.from(input), null], text);
    if (hides && values.json.includes(MARK)) throw new Error("a parameter's mark got through");
    JSON.parse(values.json || "[]");
    mask.defined(sql.slice(0, 20), text);
    mask.words(sql, random.chance(2));
    mask.name(sql, text);
  }
  if (keyedHash(KEY, sql) !== keyedHash(KEY, Buffer.from(sql))) throw new Error("one value, two hashes");
}

function inConstant(shown: string): boolean {
  return tokensOf(shown).some(
    ({ kind, start, end }) => (kind === "string" || kind === "comment") && shown.slice(start, end).includes(MARK),
  );
}
