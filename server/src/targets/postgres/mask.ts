import { keyedHash } from "../../core/keyed-hash.ts";
import type { MaskRules } from "../target.ts";
import { tokensOf, valueOf, type Token } from "./mask-tokens.ts";
import { isSuspect, isSuspectUnread } from "./mask-words.ts";
import type { Parameter } from "./wire.ts";

/**
 * What of a session is written down: everything, but for the values that the playbook masks and, whatever it says, those
 * of statements that are suspected of holding a secret (mask-words.ts). Made once per session, because a name that such a
 * statement defines is suspect afterwards. What is *forwarded* never passes here.
 *
 * In the place of a value stands `‹hmac:…›`, its keyed hash, and in the place of a text that cannot be taken apart,
 * `‹masked: 57 characters, hmac:…›`. A user can type such marks, so the record says by `masked` which ones are Glasskey's.
 */
export interface Mask {
  /**
   * A statement's text. `read`: PostgreSQL's parser has read it, so its constants are where the lexer says; anything else
   * that is suspect, or in a playbook that masks literals, is withheld as a whole.
   */
  text(text: string, read: boolean): MaskedText;
  /** The values that a client sends beside a text, as JSON; empty text where there are none. */
  parameters(parameters: readonly Parameter[], of: MaskedText): MaskedParameters;
  /** A statement of this name was prepared from that text, so that EXECUTE of it is as suspect as the text. */
  defined(name: string, of: MaskedText): void;
  /** The name of a prepared statement or a portal. */
  name(name: string, of?: MaskedText): string;
  /** Words of the target, of the gateway or of the client about something; `masked`: about something masked. */
  words(text: string, masked: boolean): string;
  /** COPY data, which is masked where `of.data` says so. */
  data(bytes: Buffer): Buffer;
}

export interface MaskedText {
  /** What is recorded in the place of the text. */
  readonly shown: string;
  /** Something in `shown` is a mark. */
  readonly masked: boolean;
  /** It may hold a secret, and what is sent for it too. */
  readonly secret: boolean;
  /** COPY data that this statement takes is masked. */
  readonly data: boolean;
}

export interface MaskedParameters {
  readonly json: string;
  readonly masked: boolean;
}

/** More constants than this are masked as one: their hashes would hold up every other session. */
const MAX_MARKS = 4_000;
/** Names that a session may make suspect; past it, all are. */
const MAX_NAMES = 1_000;
const WORD = /[\w\u0080-\uffff]+/;
const WORDS = new RegExp(WORD, "g");
/** The most that masking adds to a text. */
export const MAX_MASK_GROWTH = (MAX_MARKS + 1) * 60;

export function createMask(rules: MaskRules): Mask {
  const { key } = rules;
  const names = new Set<string>();
  let everyName = false;

  const hash = (value: Uint8Array | string): string => `hmac:${keyedHash(key, value)}`;
  const whole = (text: string): string => `‹masked: ${text.length} characters, ${hash(text)}›`;

  const remember = (name: string): void => {
    if (name === "") return;
    // By its first word, so that it is found in whatever quotes. One in escapes, or put together, may be any.
    const word = /^u&"|%/i.test(name) ? undefined : WORD.exec(name)?.[0];
    if (word === undefined || names.size >= MAX_NAMES) everyName = true;
    else names.add(word.toLowerCase());
  };

  /** Whether the text uses, also within a string, a name that a suspect statement of this session defined. */
  const usesName = (text: string): boolean => {
    if (everyName && /execute|fetch|\(/i.test(text)) return true;
    if (names.size === 0) return false;
    if (/u&"/i.test(text)) return true; // a name in escapes may be any
    for (const [word] of text.matchAll(WORDS)) if (names.has(word.toLowerCase())) return true;
    return false;
  };

  const mark = (sql: string, token: Token): string => {
    const value = valueOf(sql, token);
    switch (token.kind) {
      case "comment":
        return sql.startsWith("--", token.start) ? `-- ‹${hash(value)}›` : `/* ‹${hash(value)}› */`;
      case "string":
        return `'‹${hash(value)}›'`;
      case "quoted":
        return `"‹${hash(value)}›"`;
      default:
        return `‹${hash(value)}›`;
    }
  };

  /** The text with marks for the tokens that are chosen; undefined when there are too many. */
  const marked = (
    sql: string,
    chosen: (token: Token, index: number) => boolean,
    tokens: readonly Token[],
  ): string | undefined => {
    let shown = "";
    let copied = 0;
    let marks = 0;
    for (const [index, token] of tokens.entries()) {
      if (!chosen(token, index)) continue;
      if (++marks > MAX_MARKS) return undefined;
      shown += sql.slice(copied, token.start) + mark(sql, token);
      copied = token.end;
    }
    return shown + sql.slice(copied);
  };

  /** Every constant that may be a secret, or, with `literals`, every constant. */
  const constants = (sql: string, secret: boolean, literals: boolean): string => {
    const tokens = tokensOf(sql);
    const values = valuePlaces(sql, tokens, secret);
    const chosen = (token: Token, index: number): boolean => {
      if (token.kind === "string" || token.kind === "comment") return true;
      if (token.kind === "number") return literals || token.end - token.start > 3;
      return values.has(index);
    };
    return marked(sql, chosen, tokens) ?? whole(sql);
  };

  const executeArguments = (sql: string): string => {
    const tokens = tokensOf(sql);
    const places = argumentPlaces(sql, tokens);
    return marked(sql, (_token, index) => places.has(index), tokens) ?? whole(sql);
  };

  const result = (shown: string, sql: string, secret: boolean): MaskedText => {
    const masked = shown !== sql;
    const copies = rules.parameters || rules.literals;
    return { shown, masked, secret, data: secret || (copies && /copy/i.test(sql)) };
  };

  return {
    text(sql, read) {
      const secret = read ? isSuspect(sql) || usesName(sql) : isSuspectUnread(sql) || usesName(sql);
      if (!secret && !rules.literals) {
        if (!rules.parameters || !/execute/i.test(sql)) return result(sql, sql, false);
        return result(read ? executeArguments(sql) : whole(sql), sql, false);
      }
      // What could not be read is not forwarded, and defines nothing.
      if (secret && read) for (const name of definedNames(sql)) remember(name);
      if (!read) return result(sql === "" ? "" : whole(sql), sql, secret);
      return result(constants(sql, secret, rules.literals), sql, secret);
    },
    parameters(parameters, of) {
      if (parameters.length === 0) return { json: "", masked: false };
      const masked = rules.parameters || rules.literals || of.secret || parameters.some(isSuspectParameter);
      let json = "[";
      for (const parameter of parameters) {
        if (json.length > 1) json += ",";
        if (parameter === null) json += "null";
        else if (masked) json += `"‹${hash(parameter)}›"`;
        else if (typeof parameter === "string") json += JSON.stringify(parameter);
        else json += `{"base64":"${parameter.toString("base64")}"}`;
      }
      return { json: `${json}]`, masked };
    },
    defined(name, of) {
      if (of.secret) remember(name);
    },
    name: (name, of) =>
      (of?.secret === true && name !== "") || isSuspect(name) || usesName(name) ? whole(name) : name,
    // A name is in double quotes there.
    words: (text, masked) =>
      text !== "" &&
      (masked ||
        isSuspect(text) ||
        Array.from(text.matchAll(/"([^"]{1,200})"/g), ([, name = ""]) => name).some(usesName))
        ? whole(text)
        : text,
    data: (bytes) => Buffer.from(`‹masked: ${bytes.length} bytes, ${hash(bytes)}›\n`),
  };
}

/** What a client says of itself before there is a key: withheld without a hash. The word that tells may be cut off. */
export function withheld(text: string, maxLength = Number.POSITIVE_INFINITY): string {
  return isSuspect(text) ? `‹masked: ${text.length} characters›` : text.slice(0, maxLength);
}

function isSuspectParameter(parameter: Parameter): boolean {
  if (parameter === null) return false;
  return isSuspect(typeof parameter === "string" ? parameter : parameter.toString("latin1"));
}

/** Words that stand where a value may, and are none that anybody would keep to himself. */
const PLAIN =
  /^(?:null|true|false|default|on|off|current|local|all|any|some|array|row|case|not|exists|select|cast|coalesce|user|(?:current|session)_\w+|localtime\w*)$/i;
/** Words behind which a value stands. */
const COMPARES = /^(?:like|ilike)$/i;
/** Words in front of a parenthesis that values stand in. */
const TAKES_VALUES = /^(?:values|in|set_config|crypt|hmac|digest|dblink\w*|pgp_\w+|encrypt|decrypt)$/i;

/**
 * Names that stand where a value does: `SET app.password = hunter2`, `password = "hunter2"`, `VALUES (ann, hunter2)`, of
 * somebody who took double quotes for single ones, or whose shell took them away. Not a name that is qualified, or called.
 */
function valuePlaces(sql: string, tokens: readonly Token[], secret: boolean): ReadonlySet<number> {
  const places = new Set<number>();
  let first = ""; // of the statement
  let setting = false; // behind SET name TO, up to the statement's end
  let sets = false; // behind SET in a statement that makes something
  let after = false; // behind a sign of comparison or assignment
  let inValues = 0; // depth of parentheses behind VALUES
  let depth = 0;
  const lists: number[] = []; // depths at which values are listed
  let last = "";
  for (const [index, token] of tokens.entries()) {
    if (token.kind === "blank" || token.kind === "comment") continue;
    const text = sql.slice(token.start, token.end);
    const before = last;
    last = text;
    if (token.kind === "word" || token.kind === "quoted") {
      const word = text.toLowerCase();
      const isSetter = first === "set" || first === "alter" || first === "create";
      if (first === "") first = word;
      else if (isSetter && word === "to") setting = true;
      else if (word === "set") [sets, setting] = [true, false];
      else if (word === "as" && first === "create") setting = false;
      else if (word === "zone" && first === "set") setting = true; // SET TIME ZONE
      else if (word === "values") inValues = depth + 1;
      else if (word === "select" && before === "(") lists.pop(); // IN (SELECT …)
      else {
        const sign = nextSign(sql, tokens, index);
        const isListed = lists.at(-1) === depth && (before === "(" || before === ",") && (sign === "," || sign === ")");
        const quoted = inValues > 0 && depth >= inValues && token.kind === "quoted";
        const isValue = setting || isListed || (secret && (after || quoted));
        if (isValue && sign !== "." && sign !== "(" && !PLAIN.test(text)) places.add(index);
        else if (!isValue && secret && token.kind === "quoted" && !/^"[A-Za-z_]+"$/.test(text)) places.add(index);
      }
      after = COMPARES.test(text);
      continue;
    }
    after = /^[=<>~!@]$/.test(text);
    if (text === "=" && (first === "set" || first === "alter")) setting = true;
    if (text === "=" && first === "create" && sets) [setting, sets] = [true, false];
    if (text === "(") {
      depth += 1;
      if (TAKES_VALUES.test(before) || (before === "," && inValues === depth)) lists.push(depth);
    }
    if (text === ")") {
      if (lists.at(-1) === depth) lists.pop();
      depth -= 1;
    }
    if (text === ";") {
      [first, setting, sets, inValues, depth] = ["", false, false, 0, 0];
      lists.length = 0;
    }
  }
  return places;
}

function nextSign(sql: string, tokens: readonly Token[], index: number): string {
  for (let at = index + 1; at < tokens.length; at++) {
    const token = tokens[at];
    if (token === undefined || (token.kind !== "blank" && token.kind !== "comment"))
      return token === undefined ? "" : sql.slice(token.start, token.end);
  }
  return "";
}

/** The constants among the arguments of `EXECUTE name (…)`, and names that are a whole argument. */
function argumentPlaces(sql: string, tokens: readonly Token[]): ReadonlySet<number> {
  const places = new Set<number>();
  let seen: "nothing" | "execute" | "name" = "nothing";
  let depth = 0;
  let last = "";
  for (const [index, token] of tokens.entries()) {
    if (token.kind === "blank" || token.kind === "comment") continue;
    const text = sql.slice(token.start, token.end);
    const before = last;
    last = text;
    if (depth > 0) {
      if (text === "(") depth += 1;
      else if (text === ")") depth -= 1;
      else if (token.kind === "string" || token.kind === "number") places.add(index);
      else if (token.kind !== "sign" && /^[(,]$/.test(before) && !PLAIN.test(text)) {
        if (/^[,)]$/.test(nextSign(sql, tokens, index))) places.add(index);
      }
      if (depth === 0) seen = "nothing";
    } else if (seen === "name" && text === "(") depth = 1;
    else if (seen === "execute" && (token.kind === "word" || token.kind === "quoted")) seen = "name";
    else seen = /^execute$/i.test(text) ? "execute" : "nothing";
  }
  return places;
}

/** As in a string that is run: `prepare p`, `create function "s"."f"`. Bounded, and `%I` and the like are part of a name. */
const DEFINES = /\b(?:prepare|function|procedure)\s{1,20}([\w$%."\u0080-\uffff]{1,200})/gi;

/**
 * Names that a text gives: to statements that are prepared, to functions and procedures, to cursors, and by RENAME. Also
 * in strings, as in `DO $$ … EXECUTE 'PREPARE …' … $$`.
 */
function definedNames(sql: string): readonly string[] {
  const names = Array.from(sql.matchAll(DEFINES), ([, name = ""]) => name.split(".").at(-1) ?? "");
  let pending: string | undefined; // the name so far, empty behind the keyword
  let last = "";
  const done = (): void => {
    if (pending !== undefined && pending !== "") names.push(pending);
    pending = undefined;
  };
  for (const token of tokensOf(sql)) {
    if (token.kind === "blank" || token.kind === "comment") continue;
    const text = sql.slice(token.start, token.end);
    const isName = token.kind === "word" || token.kind === "quoted";
    if (isName && (pending === "" || (pending !== undefined && last === "."))) pending = text;
    else if (text !== "." || pending === undefined) {
      done();
      if (/^(?:prepare|function|procedure|declare)$/i.test(text)) pending = "";
      if (/^to$/i.test(text) && /^rename$/i.test(last)) pending = "";
    }
    last = text;
  }
  done();
  return names;
}
