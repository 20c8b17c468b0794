/**
 * What checking a text would cost, told before it is parsed: the parser holds up its whole thread, and cannot be stopped.
 *
 * It takes a lexer, for a string of megabytes costs no more than a few words, while as many signs would take seconds. So
 * this one follows PostgreSQL's own (src/backend/parser/scan.l) in all that decides where strings, quoted names and
 * comments end, with `standard_conforming_strings` on. Every sign counts as a token; PostgreSQL joins some of them.
 */

/** What {@link measureText} tells. */
export interface TextMeasure {
  /** At most so many words, numbers, strings and signs: never fewer than PostgreSQL's lexer finds. */
  readonly tokens: number;
  /** Time that parsing and judging take at worst, on a machine with two slow cores. */
  readonly costMs: number;
  /** The start of the first name that PostgreSQL would cut off at 63 bytes; undefined where there is none. */
  readonly longName: string | undefined;
}

/** Most bytes of UTF-8 in a name. PostgreSQL cuts off the rest without an error (NAMEDATALEN − 1). */
export const MAX_NAME_BYTES = 63;

/** Measured over the grammar's worst cases (see scope-cost.test.ts). */
const MS_PER_TOKEN = 0.0019;
const MS_PER_BYTE = 0.000_009_5;
const MS_PER_ESCAPE = 0.000_025;
const MS_PER_CODED = 0.000_09;
const MS_PER_TYPED = 0.006;
const MS_PER_SCANNED = 0.000_006;

const BLANK = 1;
const DIGIT = 2;
const LETTER = 3; // also what is not ASCII, and _
const OPERATOR = 4;
const KINDS = new Uint8Array(128);
for (const char of " \t\n\r\f\v") KINDS[char.charCodeAt(0)] = BLANK;
for (const char of "0123456789") KINDS[char.charCodeAt(0)] = DIGIT;
for (const char of "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") KINDS[char.charCodeAt(0)] = LETTER;
for (const char of "~!@#^&|`?+-*/%<>=") KINDS[char.charCodeAt(0)] = OPERATOR;

const [QUOTE, DOUBLE_QUOTE, DOLLAR, BACKSLASH, DOT, MINUS, SLASH, STAR] = [39, 34, 36, 92, 46, 45, 47, 42];

function kindOf(code: number): number {
  return code < 128 ? (KINDS[code] ?? 0) : LETTER;
}

/** Pure, and in one pass: takes some 5 ms for each million characters. */
export function measureText(sql: string): TextMeasure {
  const bytes = Buffer.byteLength(sql, "utf8");
  let tokens = 0;
  let scanned = 0; // characters that PostgreSQL's lexer reads again and again in a run of operator signs
  let longName: string | undefined;
  let runEnd = 0;
  let typed = 0; // `int '1'`: a word, then a string
  let afterWord = false;
  let at = 0;

  const rescan = (from: number): void => {
    if (from >= runEnd) {
      runEnd = from;
      while (kindOf(sql.charCodeAt(runEnd)) === OPERATOR) runEnd++;
    }
    scanned += runEnd - from;
  };
  const name = (from: number, to: number, quoted: boolean): void => {
    if (longName !== undefined || (to - from) * 3 <= MAX_NAME_BYTES) return;
    const raw = sql.slice(from, to);
    const given = quoted ? raw.replaceAll('""', '"') : raw;
    if (Buffer.byteLength(given, "utf8") > MAX_NAME_BYTES) longName = given.slice(0, 80);
  };

  while (at < sql.length) {
    const code = sql.charCodeAt(at);
    const kind = kindOf(code);
    if (kind === BLANK) {
      at++;
      continue;
    }
    tokens++;
    if (code === QUOTE && afterWord) typed++;
    afterWord = kind === LETTER;
    if (kind === LETTER) {
      const start = at;
      do at++;
      while (isNamePart(sql.charCodeAt(at)));
      name(start, at, false);
      // E is the start of a string only as a word of its own
      if (at - start === 1 && (code | 32) === 101 && sql.charCodeAt(at) === QUOTE) at = escapeStringEnd(sql, at + 1);
    } else if (kind === DIGIT) {
      at = numberEnd(sql, at);
    } else if (code === QUOTE) {
      at = quotedEnd(sql, at + 1, "'");
    } else if (code === DOUBLE_QUOTE) {
      const start = at + 1;
      at = quotedEnd(sql, start, '"');
      name(start, at - 1, true);
    } else if (code === DOLLAR) {
      at = dollarEnd(sql, at);
    } else if (kind === OPERATOR) {
      const next = sql.charCodeAt(at + 1);
      rescan(at);
      if (code === MINUS && next === MINUS) at = lineEnd(sql, at);
      else if (code === SLASH && next === STAR) at = commentEnd(sql, at, rescan);
      else at++;
    } else {
      at++;
    }
  }
  const costMs =
    tokens * MS_PER_TOKEN + typed * MS_PER_TYPED + bytes * MS_PER_BYTE + escapesMs(sql) + scanned * MS_PER_SCANNED;
  return { tokens, costMs, longName };
}

function isNamePart(code: number): boolean {
  const kind = kindOf(code); // NaN, past the end, is of kind LETTER: `code < 128` is false
  return (kind === LETTER && !Number.isNaN(code)) || kind === DIGIT || code === DOLLAR;
}

/** Of `"`, `\` and `$`, which take two steps, and of control characters, `<` and `>`: as six, slowly. */
function escapesMs(sql: string): number {
  let [escapes, coded] = [0, 0];
  for (let at = 0; at < sql.length; at++) {
    const code = sql.charCodeAt(at);
    if (code === DOUBLE_QUOTE || code === BACKSLASH || code === DOLLAR) escapes++;
    else if (code < 32 || code === 60 || code === 62 || code === 127) coded++;
  }
  return escapes * MS_PER_ESCAPE + coded * MS_PER_CODED;
}

/** Digits, and letters that stand at them: an error in PostgreSQL's lexer if they are not part of the number. */
function numberEnd(sql: string, start: number): number {
  let at = start;
  let whole = sql.charCodeAt(start - 1) !== DOT; // `.1.a` is a number, a dot and a name
  for (;;) {
    const code = sql.charCodeAt(at);
    const kind = kindOf(code);
    if (Number.isNaN(code) || (kind !== LETTER && kind !== DIGIT && !(code === DOT && whole))) return at;
    if (kind !== DIGIT) whole = false;
    at++;
  }
}

/** Behind the closing quote; a doubled one is part of the text. */
function quotedEnd(sql: string, start: number, quote: string): number {
  let at = start;
  for (;;) {
    const end = sql.indexOf(quote, at);
    if (end < 0) return sql.length;
    if (sql[end + 1] !== quote) return end + 1;
    at = end + 2;
  }
}

/** E'…' with its backslashes, and all that continues it: a string behind a line break is read as E'…' too. */
function escapeStringEnd(sql: string, start: number): number {
  let at = start;
  for (;;) {
    const code = sql.charCodeAt(at);
    if (Number.isNaN(code)) return sql.length;
    if (code === BACKSLASH) {
      at += 2;
    } else if (code !== QUOTE) {
      at++;
    } else if (sql.charCodeAt(at + 1) === QUOTE) {
      at += 2;
    } else {
      const next = CONTINUATION.exec(sql.slice(at + 1, at + 1 + MAX_CONTINUATION));
      if (next === null) return at + 1;
      at += 1 + next[0].length;
    }
  }
}
// With a comment between, PostgreSQL joins the strings and the parser used here does not: it refuses the second string.
const CONTINUATION = /^[ \t\f\v]*[\n\r][ \t\n\r\f\v]*'/;
const MAX_CONTINUATION = 1_000;

/** `$tag$ … $tag$`, `$1`, or a lone sign. */
function dollarEnd(sql: string, start: number): number {
  let at = start + 1;
  if (kindOf(sql.charCodeAt(at)) === DIGIT) {
    while (kindOf(sql.charCodeAt(at)) === DIGIT) at++;
    return at;
  }
  while (isNamePart(sql.charCodeAt(at)) && sql.charCodeAt(at) !== DOLLAR) at++;
  if (sql.charCodeAt(at) !== DOLLAR) return start + 1;
  const tag = sql.slice(start, at + 1);
  const end = sql.indexOf(tag, at + 1);
  return end < 0 ? sql.length : end + tag.length;
}

function lineEnd(sql: string, start: number): number {
  let at = start;
  for (;;) {
    const code = sql.charCodeAt(at);
    if (code === 10 || code === 13 || Number.isNaN(code)) return at;
    at++;
  }
}

function commentEnd(sql: string, start: number, rescan: (from: number) => void): number {
  const marks = /\/\*|\*\//g;
  marks.lastIndex = start + 2;
  let depth = 1;
  for (;;) {
    const mark = marks.exec(sql);
    if (mark === null) return sql.length;
    rescan(mark.index);
    if (mark[0] === "/*") depth++;
    else if (--depth === 0) return marks.lastIndex;
  }
}
