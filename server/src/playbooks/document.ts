import { isAlias, isMap, isScalar, isSeq, Lexer, parseDocument, type YAMLParseError } from "yaml";
import type { PolicyProblem } from "./problem.ts";
import { codePoint } from "./text.ts";

/** Offsets into the source, UTF-16 units, end excluded. */
export interface Place {
  readonly start: number;
  readonly end: number;
}
export interface Entry {
  readonly key: string;
  readonly keyPlace: Place;
  readonly value: Node;
}
/** The small part of YAML that policy files may use: maps with string keys, lists, plain values. */
export type Node =
  | { readonly type: "map"; readonly place: Place; readonly entries: readonly Entry[] }
  | { readonly type: "list"; readonly place: Place; readonly items: readonly Node[] }
  | { readonly type: "scalar"; readonly place: Place; readonly value: string | number | boolean | null };

/** One file under examination. Problems are collected, so that all of them can be told at once. */
export interface Document {
  readonly file: string;
  /** Undefined when the text is no usable YAML; the problems then say why. */
  readonly root: Node | undefined;
  /** `help` as a function is only asked where the problem is kept: suggestions cost time. */
  report(place: Place, message: string, help?: string | (() => string | undefined)): void;
  /** Never show this part of the source in a problem. */
  mask(place: Place): void;
  /** The line on which a place begins, from 1. */
  lineOf(place: Place): number;
  problems(): readonly PolicyProblem[];
}

const MAX_DEPTH = 16; // the deepest sensible policy file has 5
const MAX_SYNTAX_PROBLEMS = 5; // one slip makes many, and only the first ones help
const MAX_PROBLEMS = 50; // of one file; nobody reads more before mending some
const MAX_SHOWN = 1_000; // characters of a line on each side of a mistake; a terminal shows fewer
const SECRET_LINE = /(?:secret|pass\w*|token|credentials?|\w*key|dsn|url)["']?\s*:\s*(?=[^\s$])/gi;

const KEY_LINE = /^\s*(?:- )?["']?[\w.-]+["']?\s*:(?:\s|$)/;
/** A suspicious key whose value is not, or not wholly, on its own line. */
const OPEN_SECRET =
  /(?:secret|pass\w{0,32}|token|credentials?|\w{0,32}key|dsn|url)["']?\s*:\s*(?:[|>].*|["'][^"']*|[[{][^\]}]*)?$/i;

/** Whether a secret may go on in the line after this text, which is no YAML. */
function goesOn(before: string): boolean {
  const last = before
    .slice(-4_096)
    .split("\n")
    .findLast((line) => KEY_LINE.test(line));
  return last !== undefined && OPEN_SECRET.test(last.trimEnd());
}

/** Reads YAML text. Never throws for what is in it. The caller bounds its length, with which the time grows evenly. */
export function readDocument(file: string, source: string): Document {
  const found: { place: Place; message: string; help: string | undefined }[] = [];
  let unsaid = 0;
  const masks: Place[] = [];
  const mask = (place: Place): void => void masks.push(place);
  const lineStarts = [0];
  for (let at = source.indexOf("\n"); at !== -1; at = source.indexOf("\n", at + 1)) lineStarts.push(at + 1);
  const lineOf = (place: Place): number => Math.max(1, lineStarts.findLastIndex((start) => start <= place.start) + 1);
  const report: Report = (place, message, help) => {
    // What a template says wrongly is found again with every playbook that extends it.
    if (found.some((known) => known.place.start === place.start && known.message === message)) return;
    if (found.length < MAX_PROBLEMS) found.push({ place, message, help: typeof help === "function" ? help() : help });
    else unsaid++;
  };
  const root = parse(source, report, mask);
  return {
    ...{ file, root, report, mask, lineOf },
    problems: () => {
      const problems = found.map(({ place, message, help }): PolicyProblem => {
        const line = lineOf(place) - 1;
        const from = lineStarts[line] ?? 0;
        const to = (lineStarts[line + 1] ?? source.length + 1) - 1;
        return {
          ...{ file, line: line + 1, column: place.start - from + 1, message },
          ...(help === undefined ? {} : { help }),
          ...(root === undefined && goesOn(source.slice(0, from))
            ? {}
            : shown(source.slice(from, to).replace(/\r$/, ""), from, place, root === undefined ? undefined : masks)),
        };
      });
      const last = { file, line: lineStarts.length, column: 1, message: `and ${unsaid} more problems in this file` };
      return unsaid === 0 ? problems : [...problems, last];
    },
  };
}

type Report = Document["report"];
type Mask = Document["mask"];

function parse(source: string, report: Report, mask: Mask): Node | undefined {
  const unfit = prescan(source);
  if (unfit !== undefined) {
    report({ start: unfit.at, end: unfit.at + 1 }, unfit.message, unfit.help);
    return undefined;
  }
  const document = parseDocument(source, {
    // Repeated keys are found in `convert`, in linear time.
    ...{ version: "1.2", schema: "core", strict: true, stringKeys: true, merge: false, uniqueKeys: false },
    ...{ prettyErrors: false, logLevel: "error", keepSourceTokens: false },
  });
  if (document.errors.length > 0) {
    reportSyntax(source, document.errors, report);
    return undefined;
  }
  if (document.contents === null) {
    report({ start: 0, end: 0 }, "the file is empty");
    return undefined;
  }
  return convert(document.contents, { start: 0, end: 0 }, 0, { source, report, mask });
}

/** One problem a line: what follows on the same line is most often an echo of the first. */
function reportSyntax(source: string, errors: readonly YAMLParseError[], report: Report): void {
  const lines = new Set<number>();
  for (const { code, message, pos } of errors) {
    // An unclosed bracket is noticed at the end of the file; the last thing written is where a person should look.
    const start = Math.max(0, Math.min(pos[0], source.trimEnd().length - 1));
    const from = source.lastIndexOf("\n", start - 1) + 1;
    if (lines.has(from) || lines.size === MAX_SYNTAX_PROBLEMS) continue;
    lines.add(from);
    const tab = /^ *\t/.exec(source.slice(from, start + 1));
    if (tab === null) {
      const end = source.indexOf("\n", start);
      const twice = /:\s/.test(source.slice(start, end === -1 ? undefined : end + 1));
      const kind = code === "BLOCK_AS_IMPLICIT_KEY" && !twice ? "TOO_DEEP" : code;
      report({ start, end: Math.max(start + 1, pos[1]) }, ...syntaxMessage(kind, message.startsWith("Flow ")));
    } else
      report({ start: from + tab[0].length - 1, end: from + tab[0].length }, ...syntaxMessage("TAB_AS_INDENT", false));
  }
}

/** In a comment these show lines that are none, or words in another order than YAML reads them (trojansource.codes). */
const DECEIVING = /[\p{Zl}\p{Zp}\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069]|(?!\t)\p{Cc}/u;

/** What would cost too much, or mean something else, if the parser saw it: deep nesting, directives; or if a person did. */
function prescan(source: string): { at: number; message: string; help?: string } | undefined {
  let depth = 0;
  let inLine = 0;
  let at = 0;
  let scalar = false;
  for (const token of new Lexer().lex(source)) {
    if (token === "\u0002" || token === "\u0018") continue;
    if (token === "\u001F") {
      scalar = true;
      continue;
    }
    if (!scalar) {
      if (token.startsWith("%")) return { at, message: "YAML directives are not allowed", help: "Remove the line." };
      const unseen = token.startsWith("#") ? DECEIVING.exec(token.replace(/\r$/, "")) : null;
      if (unseen !== null) {
        const message = `this comment has ${codePoint(unseen[0])}, which is not seen`;
        return { at: at + unseen.index, message, help: "Remove it: a reviewer may see another line than is there." };
      }
      if (token === "[" || token === "{") depth++;
      else if (token === "]" || token === "}") depth--;
      else if (token === "-" || token === "?") inLine++;
      else if (token.includes("\n")) inLine = 0;
      if (depth > MAX_DEPTH || inLine > MAX_DEPTH) return { at, message: `nested more than ${MAX_DEPTH} levels deep` };
    }
    scalar = false;
    at += token.length;
  }
  return undefined;
}

interface Context {
  readonly source: string;
  readonly report: Report;
  readonly mask: Mask;
}

function convert(input: unknown, fallback: Place, depth: number, context: Context): Node | undefined {
  const { source, report } = context;
  if (isAlias(input)) {
    report(placeOf(input, fallback), "aliases (*name) are not allowed", "Write the value out.");
    return undefined;
  }
  if (!isMap(input) && !isSeq(input) && !isScalar(input)) return { type: "scalar", place: fallback, value: null };
  const place = placeOf(input, fallback);
  if (input.anchor !== undefined) {
    const at = before(source, place, "&");
    report(at, `anchors (${source.slice(at.start, at.end)}) are not allowed`, "Write the value out.");
  }
  if (input.tag !== undefined) {
    const at = before(source, place, "!");
    report(at, `tags (${source.slice(at.start, at.end)}) are not allowed`, "Remove it.");
  }
  if (depth > MAX_DEPTH) {
    report(place, `nested more than ${MAX_DEPTH} levels deep`);
    return undefined;
  }
  if (isScalar(input)) {
    const { value } = input;
    if (typeof value === "string" && !value.isWellFormed()) {
      report(place, "this text has half a character (a lone surrogate)");
      return undefined;
    }
    if (typeof value === "number" && (!Number.isFinite(value) || Math.abs(value) > Number.MAX_SAFE_INTEGER)) {
      report(place, "this number is too large to be exact", "Put it in quotes if it is a text.");
      return undefined;
    }
    if (value === null || typeof value === "string" || typeof value === "number" || typeof value === "boolean") {
      return { type: "scalar", place, value };
    }
    report(place, "this kind of value is not allowed", "Use text, a number, true or false.");
    return undefined;
  }
  if (isSeq(input)) {
    const items = input.items.map((item) => convert(item, place, depth + 1, context));
    return { type: "list", place, items: items.filter((item) => item !== undefined) };
  }
  const entries: Entry[] = [];
  const seen = new Set<string>();
  for (const pair of input.items) {
    const keyPlace = placeOf(pair.key, place);
    const key = convert(pair.key, keyPlace, depth + 1, context);
    if (key?.type !== "scalar" || typeof key.value !== "string") {
      if (key !== undefined) report(keyPlace, "a key must be a word");
      continue;
    }
    const name = key.value;
    if (seen.has(name)) {
      report(keyPlace, `"${name}" is written twice here`, "Keep one of them.");
      context.mask(placeOf(pair.value, keyPlace)); // nobody looks at it, so nobody knows whether it is a secret
      continue;
    }
    seen.add(name);
    if (name === "<<") {
      report(keyPlace, "merge keys (<<) are not allowed", "Write the values out.");
    } else if (!/^[\x21-\x7E]{1,128}$/.test(name) || name === "__proto__") {
      report(keyPlace, "a key may only have visible ASCII characters, and no spaces");
    } else {
      const value = convert(pair.value, { start: keyPlace.end, end: keyPlace.end }, depth + 1, context);
      if (value !== undefined) entries.push({ key: name, keyPlace, value });
    }
  }
  return { type: "map", place, entries };
}

/** The word beginning with `sign` that stands before a value. */
function before(source: string, value: Place, sign: string): Place {
  let start = source.lastIndexOf(sign, value.start);
  if (start === -1) return value;
  while (start > 0 && /\S/.test(source[start - 1] ?? "")) start--;
  const length = /^\S*/.exec(source.slice(start, start + 128))?.[0].length ?? 1;
  return { start, end: start + Math.max(1, length) };
}

function placeOf(input: unknown, fallback: Place): Place {
  const range = isMap(input) || isSeq(input) || isScalar(input) || isAlias(input) ? input.range : undefined;
  return range === undefined || range === null ? fallback : { start: range[0], end: range[1] };
}

/** Never the parser's own words: they quote the source, and with it a secret. `flow` tells of an unclosed bracket. */
function syntaxMessage(code: string, flow: boolean): [message: string, help?: string] {
  switch (code) {
    case "TAB_AS_INDENT":
      return ["a tab is used to indent", "Use spaces."];
    case "MULTIPLE_DOCS":
      return ["a second document begins here", "One file holds one document: remove the --- or split the file."];
    case "BLOCK_AS_IMPLICIT_KEY":
      return ['there is a second ": " on this line', "Put quotes around the text that holds it."];
    case "TOO_DEEP":
      return ["what follows is indented deeper than this line allows", "Is this line indented like its neighbours?"];
    case "BAD_INDENT":
      return [flow ? "a bracket that was opened is not closed" : "this line is not indented like its neighbours"];
    case "MISSING_CHAR":
      return ["a quote, a colon or a comma is missing here"];
    case "NON_STRING_KEY":
      return ["a key must be a word"];
    default:
      return ["this is not YAML", "Look at the quotes, brackets and indentation here and just before."];
  }
}

/**
 * The source line of a problem, with what is masked replaced by `***`, and the mark moved accordingly. Without masks (the
 * text is no YAML, so nobody knows where its secrets are) everything after a suspicious key is hidden.
 */
function shown(
  line: string,
  offset: number,
  place: Place,
  masks: readonly Place[] | undefined,
): Pick<PolicyProblem, "source" | "mark"> | undefined {
  if (line.trim() === "") return undefined;
  const hidden = masks?.filter((mask) => mask.start < offset + line.length && mask.end > offset) ?? [];
  for (const match of masks === undefined ? line.matchAll(SECRET_LINE) : []) {
    hidden.push({ start: offset + match.index + match[0].length, end: offset + line.length });
  }
  // Of a very long line only what is around the mark: fifty problems on one line of megabytes must not cost fifty lines.
  const middle = Math.min(line.length, Math.max(0, place.start - offset));
  const [from, to] = [Math.max(0, middle - MAX_SHOWN), Math.min(line.length, middle + MAX_SHOWN)];
  const near = hidden.filter(({ start, end }) => start <= offset + to && end >= offset + from);
  let text = from > 0 ? "…" : "";
  const moved: number[] = []; // where each character from `from` on is in the text
  for (let i = from; i < to; i++) {
    const isHidden = near.some(({ start, end }) => offset + i >= start && offset + i < end);
    const wasHidden = i > from && near.some(({ start, end }) => offset + i > start && offset + i <= end);
    moved.push(isHidden && wasHidden ? Math.max(0, text.length - 3) : text.length);
    if (!isHidden) text += line[i];
    else if (!wasHidden) text += "***";
  }
  const at = moved[Math.max(0, place.start - offset) - from] ?? text.length;
  const end = moved[Math.max(0, place.end - offset) - from] ?? text.length;
  return { source: to < line.length ? `${text}…` : text, mark: { at, length: Math.max(1, end - at) } };
}
