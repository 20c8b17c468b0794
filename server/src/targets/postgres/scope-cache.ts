/**
 * A bounded cache of verdicts. Statements of a busy client differ only in their numbers, so plain texts are kept under a
 * form in which every integer is `0`; every other text is kept as it is.
 */

/**
 * The key of `sql`, and whether it stands for other texts too.
 *
 * Why that is sound: the text holds only letters, digits, blanks and `, . ; ( ) = < > + - * _ $`, no `--`, and no `$` but
 * before a digit. So it has no string, no quoted name, no comment, no dollar quote and nothing outside ASCII. A run of at
 * most nine digits that touches no letter, digit, `_`, `.` or `$` is then one integer token of 32 bits, whichever digits
 * it has. Two texts with the same key have the same tokens but for the values of such integers, and so the same tree but
 * for the values of integer constants, on which no verdict on them depends: the caller keeps verdicts that looked at a
 * value, and all refusals, which tell positions, under `exact` only.
 */
export interface CacheKey {
  key: string;
  shared: boolean;
}

const DIGIT = 1;
const WORD = 2; // letters, _ and $: a digit beside one belongs to a name, a number with a fraction, or a parameter
const DOT = 3;
const SIGN = 4;
const KINDS = new Uint8Array(128);
for (const char of "0123456789") KINDS[char.charCodeAt(0)] = DIGIT;
for (const char of "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_$") KINDS[char.charCodeAt(0)] = WORD;
for (const char of " \t\r\n,;()=<>+-*") KINDS[char.charCodeAt(0)] = SIGN;
KINDS[46] = DOT;

/** Longer texts are parsed each time: they cost more to keep than to check. */
const MAX_KEY_LENGTH = 8 * 1024;

export function cacheKey(sql: string): CacheKey | undefined {
  if (sql.length > MAX_KEY_LENGTH) return undefined;
  let key = "";
  let copied = 0;
  let previous = SIGN;
  for (let at = 0; at < sql.length;) {
    const code = sql.charCodeAt(at);
    const kind = code < 128 ? (KINDS[code] ?? 0) : 0;
    if (kind === DIGIT) {
      const start = at;
      while (isDigit(sql.charCodeAt(at))) at++;
      const next = at < sql.length ? sql.charCodeAt(at) : 32;
      const after = next < 128 ? (KINDS[next] ?? 0) : 0;
      if (previous === SIGN && after === SIGN && at - start <= 9) {
        key += `${sql.slice(copied, start)}0`;
        copied = at;
      }
      previous = DIGIT;
      continue;
    }
    if (kind === 0) return { key: sql, shared: false };
    if (code === 45 && sql.charCodeAt(at + 1) === 45) return { key: sql, shared: false };
    if (code === 36 && !isDigit(sql.charCodeAt(at + 1))) return { key: sql, shared: false };
    previous = kind;
    at++;
  }
  return copied === 0 ? { key: sql, shared: true } : { key: key + sql.slice(copied), shared: true };
}

function isDigit(code: number): boolean {
  return code >= 48 && code <= 57;
}

export interface Cache<T> {
  get(key: string): T | undefined;
  set(key: string, value: T): void;
  readonly size: number;
}

/**
 * Two generations in place of a list ordered by use: what is used moves to the young one; when that is full, it becomes
 * the old one and the former old one is dropped. At most twice the bounds are held.
 */
export function createCache<T>(limits: { entries: number; characters: number }): Cache<T> {
  let young = new Map<string, T>();
  let old = new Map<string, T>();
  let characters = 0;
  const add = (key: string, value: T): void => {
    if (young.size >= limits.entries || characters + key.length > limits.characters) {
      old = young;
      young = new Map();
      characters = 0;
    }
    if (!young.has(key)) characters += key.length;
    young.set(key, value);
  };
  return {
    get(key) {
      const found = young.get(key);
      if (found !== undefined) return found;
      const aged = old.get(key);
      if (aged !== undefined) add(key, aged);
      return aged;
    },
    set: add,
    get size() {
      return young.size + old.size;
    },
  };
}
