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
/** The most that masking adds to a text. */
export const MAX_MASK_GROWTH = (MAX_MARKS + 1) * 60;

export function createMask(rules: MaskRules): Mask {
  const { key } = rules;
  const names = new Set<string>();
  let everyName = false;

  const hash = (value: Uint8Array | string): string => `hmac:${keyedHash(key, value)}`;
  const whole = (text: string): string => `‹masked: ${text.length} characters, ${hash(text)}›`;

  const remember = (name: string): void => {
    if (names.size >= MAX_NAMES) everyName = true;
    else if (name !== "") names.add(name.toLowerCase());
  };

  /** Whether the text uses a name that a suspect statement of this session defined. */
  const usesName = (sql: string): boolean => {
    if (names.size === 0) return false;
    const tokens = tokensOf(sql);
    const name = (token: Token): string => sql.slice(token.start, token.end).replaceAll('"', "").toLowerCase();
    if (everyName && /execute|\(/i.test(sql)) return true;
    return tokens.some(
      (token) =>
        (token.kind === "word" || token.kind === "quoted") &&
        // A name in escapes may be any.
        (names.has(name(token)) || (token.kind === "quoted" && !sql.startsWith('"', token.start))),
    );
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
      if (secret) for (const name of definedNames(sql)) remember(name);
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
    name: (name, of) => ((of?.secret === true && name !== "") || isSuspect(name) ? whole(name) : name),
    words: (text, masked) => (text !== "" && (masked || isSuspect(text)) ? whole(text) : text),
    data: (bytes) => Buffer.from(`‹masked: ${bytes.length} bytes, ${hash(bytes)}›\n`),
  };
}

/** What a client says of itself before there is a key: withheld without a hash. */
export function withheld(text: string): string {
  return isSuspect(text) ? `‹masked: ${text.length} characters›` : text;
}

function isSuspectParameter(parameter: Parameter): boolean {
  if (parameter === null) return false;
  return isSuspect(typeof parameter === "string" ? parameter : parameter.toString("latin1"));
}

/** Words that stand where a value may, and are none that anybody would keep to himself. */
const PLAIN =
  /^(?:null|true|false|default|on|off|current|local|all|any|some|array|row|case|not|exists|select|cast|coalesce)$/i;

/**
 * Names that stand where a value does: `SET app.password = hunter2`, and `password = "hunter2"`, which somebody wrote who
 * took double quotes for single ones. Not a name that is qualified, or called.
 */
function valuePlaces(sql: string, tokens: readonly Token[], secret: boolean): ReadonlySet<number> {
  const places = new Set<number>();
  let first = ""; // of the statement
  let setting = false; // behind SET name TO, up to the statement's end
  let after = false; // behind a sign of comparison or assignment
  let inValues = 0; // depth of parentheses behind VALUES
  let depth = 0;
  for (const [index, token] of tokens.entries()) {
    if (token.kind === "blank" || token.kind === "comment") continue;
    const text = sql.slice(token.start, token.end);
    if (token.kind === "word" || token.kind === "quoted") {
      const word = text.toLowerCase();
      const sets = first === "set" || first === "alter" || first === "create";
      if (first === "") first = word;
      else if (sets && word === "to") setting = true;
      else if (word === "values") inValues = depth + 1;
      else if (setting || (secret && (after || (inValues > 0 && depth >= inValues && token.kind === "quoted")))) {
        const sign = nextSign(sql, tokens, index);
        if (sign !== "." && sign !== "(" && !PLAIN.test(text)) places.add(index);
      } else if (secret && token.kind === "quoted" && !/^"[A-Za-z_]+"$/.test(text)) places.add(index);
      after = false;
      continue;
    }
    after = /^[=<>~!@]$/.test(text);
    if (text === "=" && (first === "set" || first === "alter")) setting = true;
    if (text === "(") depth += 1;
    if (text === ")") depth -= 1;
    if (text === ";") [first, setting, inValues, depth] = ["", false, 0, 0];
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

/** The constants among the arguments of `EXECUTE name (…)`. */
function argumentPlaces(sql: string, tokens: readonly Token[]): ReadonlySet<number> {
  const places = new Set<number>();
  let seen: "nothing" | "execute" | "name" = "nothing";
  let depth = 0;
  for (const [index, token] of tokens.entries()) {
    if (token.kind === "blank" || token.kind === "comment") continue;
    const text = sql.slice(token.start, token.end);
    if (depth > 0) {
      if (text === "(") depth += 1;
      else if (text === ")") depth -= 1;
      else if (token.kind === "string" || token.kind === "number") places.add(index);
      if (depth === 0) seen = "nothing";
    } else if (seen === "name" && text === "(") depth = 1;
    else if (seen === "execute" && (token.kind === "word" || token.kind === "quoted")) seen = "name";
    else seen = /^execute$/i.test(text) ? "execute" : "nothing";
  }
  return places;
}

/** Names of statements that are prepared, and of functions and procedures that are made, in a text. */
function definedNames(sql: string): readonly string[] {
  const names: string[] = [];
  let pending: string | undefined; // the name so far, empty behind the keyword
  let dotted = false;
  const done = (): void => {
    if (pending !== undefined && pending !== "") names.push(pending);
    pending = undefined;
  };
  for (const token of tokensOf(sql)) {
    if (token.kind === "blank" || token.kind === "comment") continue;
    const text = sql.slice(token.start, token.end);
    const isName = token.kind === "word" || token.kind === "quoted";
    if (isName && (pending === "" || (pending !== undefined && dotted))) pending = text.replaceAll('"', "");
    else if (text !== "." || pending === undefined) {
      done();
      if (/^(?:prepare|function|procedure)$/i.test(text)) pending = "";
    }
    dotted = text === ".";
  }
  done();
  return names;
}
