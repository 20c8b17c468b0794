/**
 * Where the words, constants and comments of a SQL text are, as PostgreSQL's lexer sees them (src/backend/parser/scan.l)
 * with `standard_conforming_strings` on. Made for masking: it never throws, every character belongs to one token, and
 * what does not end is one token up to the end of the text, so that nothing of a constant is left outside of it.
 */
export interface Token {
  readonly kind: TokenKind;
  readonly start: number;
  /** Behind its last UTF-16 unit. */
  readonly end: number;
}

/**
 * `string`: any form of it with its prefix, also `$$…$$`, bit strings and `U&'…'`. `number` with all that touches it.
 * `sign`: one character of an operator or of punctuation; `$1` is one as well.
 */
export type TokenKind = "blank" | "comment" | "word" | "quoted" | "string" | "number" | "sign";

/** Pure; in one pass over the text. */
export function tokensOf(sql: string): Token[] {
  const tokens: Token[] = [];
  let at = 0;
  while (at < sql.length) {
    const token = tokenAt(sql, at);
    tokens.push(token);
    at = token.end;
  }
  return tokens;
}

const [QUOTE, DOUBLE_QUOTE, DOLLAR, BACKSLASH, AMPERSAND, DOT, MINUS, SLASH, STAR] = [
  39, 34, 36, 92, 38, 46, 45, 47, 42,
];

/** The token that begins at `start`, which is not the end of the text. */
export function tokenAt(sql: string, start: number): Token {
  const code = sql.charCodeAt(start);
  const next = sql.charCodeAt(start + 1);
  if (isBlank(code)) return { kind: "blank", start, end: blankEnd(sql, start) };
  if (isLetter(code)) return wordAt(sql, start);
  if (isDigit(code) || (code === DOT && isDigit(next))) return { kind: "number", start, end: numberEnd(sql, start) };
  if (code === QUOTE) return { kind: "string", start, end: quotedEnd(sql, start + 1, "'") };
  if (code === DOUBLE_QUOTE) return { kind: "quoted", start, end: quotedEnd(sql, start + 1, '"') };
  if (code === DOLLAR) return dollarAt(sql, start);
  if (code === MINUS && next === MINUS) return { kind: "comment", start, end: lineEnd(sql, start) };
  if (code === SLASH && next === STAR) return { kind: "comment", start, end: commentEnd(sql, start) };
  return { kind: "sign", start, end: start + 1 };
}

function isBlank(code: number): boolean {
  return code === 32 || (code >= 9 && code <= 13);
}

function isDigit(code: number): boolean {
  return code >= 48 && code <= 57;
}

/** Also `_`, and all that is not ASCII; past the end there is none. */
function isLetter(code: number): boolean {
  return (code >= 97 && code <= 122) || (code >= 65 && code <= 90) || code === 95 || code > 127;
}

function isNamePart(code: number): boolean {
  return isLetter(code) || isDigit(code) || code === DOLLAR;
}

function blankEnd(sql: string, start: number): number {
  let at = start + 1;
  while (isBlank(sql.charCodeAt(at))) at++;
  return at;
}

/** A word; or the prefix of a string, which belongs to the string. */
function wordAt(sql: string, start: number): Token {
  let end = start + 1;
  while (isNamePart(sql.charCodeAt(end))) end++;
  if (end - start > 1) return { kind: "word", start, end };
  const letter = sql.charAt(start).toLowerCase();
  const next = sql.charCodeAt(end);
  if (letter === "u" && next === AMPERSAND) {
    const quote = sql.charCodeAt(end + 1);
    if (quote === QUOTE) return { kind: "string", start, end: quotedEnd(sql, end + 2, "'") };
    if (quote === DOUBLE_QUOTE) return { kind: "quoted", start, end: quotedEnd(sql, end + 2, '"') };
  }
  if (next !== QUOTE) return { kind: "word", start, end };
  if (letter === "e") return { kind: "string", start, end: escapeStringEnd(sql, end + 1) };
  if (letter === "b" || letter === "x" || letter === "n")
    return { kind: "string", start, end: quotedEnd(sql, end + 1, "'") };
  return { kind: "word", start, end };
}

/** Digits, and what touches them: junk behind a number is an error, and may be the rest of a secret. */
function numberEnd(sql: string, start: number): number {
  let at = start + 1;
  for (;;) {
    const code = sql.charCodeAt(at);
    if (!isNamePart(code) && code !== DOT) return at;
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

/** E'…' and all that continues it behind a line break, which is read with its backslashes too. */
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
      const continued = continuation(sql, at + 1);
      if (continued === undefined) return at + 1;
      at = continued;
    }
  }
}

/** Behind the quote that continues a string: blanks with a line break among them stand between. */
function continuation(sql: string, start: number): number | undefined {
  const end = isBlank(sql.charCodeAt(start)) ? blankEnd(sql, start) : start;
  const broken = /[\n\r]/.test(sql.slice(start, end));
  return broken && sql.charCodeAt(end) === QUOTE ? end + 1 : undefined;
}

/** `$tag$ … $tag$`, `$1`, or a lone sign. */
function dollarAt(sql: string, start: number): Token {
  let at = start + 1;
  if (isDigit(sql.charCodeAt(at))) {
    while (isNamePart(sql.charCodeAt(at))) at++;
    // Junk behind a parameter's number is an error, like junk behind a number.
    return { kind: /^\$\d+$/.test(sql.slice(start, at)) ? "sign" : "number", start, end: at };
  }
  while (isNamePart(sql.charCodeAt(at)) && sql.charCodeAt(at) !== DOLLAR) at++;
  if (sql.charCodeAt(at) !== DOLLAR) return { kind: "sign", start, end: start + 1 };
  const tag = sql.slice(start, at + 1);
  const end = sql.indexOf(tag, at + 1);
  return { kind: "string", start, end: end < 0 ? sql.length : end + tag.length };
}

function lineEnd(sql: string, start: number): number {
  let at = start;
  for (;;) {
    const code = sql.charCodeAt(at);
    if (code === 10 || code === 13 || Number.isNaN(code)) return at;
    at++;
  }
}

/** Comments nest. */
function commentEnd(sql: string, start: number): number {
  const marks = /\/\*|\*\//g;
  marks.lastIndex = start + 2;
  for (let depth = 1; depth > 0;) {
    const mark = marks.exec(sql);
    if (mark === null) return sql.length;
    depth += mark[0] === "/*" ? 1 : -1;
  }
  return marks.lastIndex;
}

/**
 * What a string constant stands for, so that one value has one hash however it is written: quotes taken off, doubled ones
 * single. A form with escapes is left as it is written, prefix and all.
 */
export function valueOf(sql: string, { start, end }: Token): string {
  const text = sql.slice(start, end);
  if (text.startsWith("'") && text.length > 1 && text.endsWith("'")) return text.slice(1, -1).replaceAll("''", "'");
  const tag = /^\$[^$]*\$/.exec(text)?.[0];
  if (tag !== undefined && text.length >= 2 * tag.length && text.endsWith(tag))
    return text.slice(tag.length, -tag.length);
  return text;
}
