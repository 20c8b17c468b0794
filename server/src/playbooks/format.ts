import { isDeepStrictEqual } from "node:util";
import {
  Document,
  isCollection,
  isMap,
  isPair,
  isScalar,
  isSeq,
  type Node,
  parseDocument,
  visit,
  type YAMLMap,
} from "yaml";
import type { JsonValue } from "../core/json.ts";
import { readDocument } from "./document.ts";
import { compare, type PolicyProblem } from "./problem.ts";
import { toJson } from "./shape.ts";
import { commentsOf } from "./sources.ts";

export type FormattedFile =
  | { readonly ok: true; readonly text: string }
  | { readonly ok: false; readonly problems: readonly PolicyProblem[] };

/** The order of a map's keys; of each map where the value is a list of them. Keys that are not listed stay behind, as they are. */
interface Order {
  readonly keys: readonly string[];
  /** By key; `*` for any other. */
  readonly within?: { readonly [key: string]: Order };
}

const SELECTORS: Order = { keys: ["oncall", "group", "user"] };
const HOURS: Order = { keys: ["days", "from", "to"] };
const TEST: Order = {
  keys: [
    ...["who", "oncall", "unknown", "incident", "reason", "for", "approvedBy", "at"],
    ...["unsigned", "open", "overdue", "sinceLast"],
  ],
};
const SECTIONS: Readonly<Record<string, Order>> = {
  who: SELECTORS,
  when: { keys: ["incident", "reason", "hours", "zone"], within: { hours: HOURS } },
  approve: {
    keys: ["need", "from", "within", "unanswered"],
    within: { from: SELECTORS, unanswered: { keys: ["after", "then", "for"] } },
  },
  time: { keys: ["max", "idle", "extend"] },
  limit: { keys: ["uses", "per", "concurrent", "cooldown"] },
  review: { keys: ["by", "within"], within: { by: SELECTORS } },
  drill: { keys: ["every", "on"] },
  record: { keys: ["mask", "keep"] },
  tests: { keys: ["allow", "deny"], within: { allow: TEST, deny: TEST } },
};
const PLAYBOOK: Order = {
  keys: [
    ...["playbook", "template", "extends", "summary", "target", "scope", "who", "when", "approve", "time", "limit"],
    ...["notify", "review", "drill", "record", "tests"],
  ],
  within: SECTIONS,
};
const ORDERS = {
  playbook: PLAYBOOK,
  target: { keys: ["target", "kind", "summary", "tags", "config"] },
  people: { keys: ["name", "enabled", "roles", "groups", "aliases", "notify", "secret"] },
  oncall: { keys: [], within: { "*": { keys: ["source", "schedule"] } } },
  policy: {
    keys: ["reasons", "zone", "defaults", "forbid"],
    within: {
      defaults: PLAYBOOK,
      forbid: {
        keys: ["rule", "why", "who", "target", "hours", "zone"],
        within: { who: SELECTORS, target: { keys: ["name", "tag"] }, hours: HOURS },
      },
    },
  },
} as const satisfies Record<string, Order>;

/** Wide enough for a line of a playbook, narrow enough to stand beside another in a review. */
const WIDTH = 100;
const MAX_ROUNDS = 4;

/**
 * A policy file in its canonical form: keys in the order of docs/playbooks.md, two spaces, comments kept, maps and lists in
 * brackets while they fit into 100 columns. What the file means never changes: the result is read again and compared, and
 * so are its comments. A file with mistakes is refused, and so is one where that does not come out the same.
 * @param path tells what file it is, by its name or folder; else its keys do. @param source not trusted.
 */
export function formatFile(path: string, source: string): FormattedFile {
  const before = readDocument(path, source);
  if (before.root === undefined || before.problems().length > 0) return { ok: false, problems: before.problems() };
  const meaning = toJson(before.root);
  const order = orderOf(path, meaning);
  if (order === undefined) {
    const message = "it cannot be told what kind of policy file this is";
    const help = "Name it policy.yaml, people.yaml or oncall.yaml, or put it into targets/ or playbooks/.";
    return { ok: false, problems: [{ file: path, line: 1, column: 1, message, help }] };
  }
  let text = source.replaceAll("\r\n", "\n");
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const next = once(text, order);
    if (next === text) break;
    text = next;
  }
  const after = readDocument(path, text);
  const same =
    after.root !== undefined && after.problems().length === 0 && isDeepStrictEqual(toJson(after.root), meaning);
  if (!same || once(text, order) !== text || !isDeepStrictEqual(remarks(text), remarks(source))) {
    const message = "this file cannot be formatted without changing what it says";
    const help = "It has a comment or a key in an unusual place: write it more plainly.";
    return { ok: false, problems: [{ file: path, line: 1, column: 1, message, help }] };
  }
  return { ok: true, text };
}

function remarks(source: string): readonly string[] {
  return commentsOf(source)
    .map(({ text }) => text)
    .toSorted(compare);
}

function orderOf(path: string, meaning: JsonValue): Order | undefined {
  const [name = "", folder] = path.split(/[/\\]/).toReversed();
  const byName = /^(policy|people|oncall)\.yaml$/.exec(name)?.[1];
  if (byName === "policy" || byName === "people" || byName === "oncall") return ORDERS[byName];
  if (folder === "targets") return ORDERS.target;
  if (folder === "playbooks") return ORDERS.playbook;
  if (typeof meaning !== "object" || meaning === null || Array.isArray(meaning)) return undefined;
  if ("playbook" in meaning || "template" in meaning) return ORDERS.playbook;
  return "target" in meaning && "kind" in meaning ? ORDERS.target : undefined;
}

function once(source: string, order: Order): string {
  const document = parseDocument(source, {
    ...{ version: "1.2", schema: "core", strict: true, stringKeys: true, merge: false, uniqueKeys: false },
    ...{ prettyErrors: false, logLevel: "error" },
  });
  const { contents } = document;
  if (contents === null || !isCollection(contents)) return source;
  sendOn(contents, source, commentsOf(source));
  const header = takeHeader(document);
  arrange(contents, order, true);
  const first = isMap(contents) ? contents.items[0]?.key : undefined;
  if (header !== undefined && isScalar(first)) {
    first.commentBefore = joined("\n", header, first.commentBefore);
  }
  layOut(contents, 0, 0, true);
  return document.toString({ indent: 2, indentSeq: true, lineWidth: 0, flowCollectionPadding: true });
}

/**
 * What stands above the first key, up to the last blank line or the line for editors, is about the file. What a blank line
 * ends becomes the document's own; the rest is returned, for whichever key comes first.
 */
function takeHeader(document: ReturnType<typeof parseDocument>): string | undefined {
  const key = isMap(document.contents) ? document.contents.items[0]?.key : undefined;
  if (!isScalar(key) || !isRemark(key.commentBefore)) return undefined;
  const lines = key.commentBefore.split("\n");
  const blank = lines.lastIndexOf("");
  const editor = lines.findLastIndex((line) => line.startsWith(" yaml-language-server:"));
  if (blank !== -1) {
    const header = lines.slice(0, blank).join("\n");
    document.commentBefore = joined("\n\n", document.commentBefore, header);
  }
  const rest = lines.slice(Math.max(blank, editor) + 1).join("\n");
  key.commentBefore = rest === "" ? null : rest;
  return editor > blank ? lines.slice(blank + 1, editor + 1).join("\n") : undefined;
}

/**
 * The parser gives all comments below a block to that block, also those that stand further out: they belong to what
 * follows. A line without text in such a comment is a blank line.
 */
function sendOn(node: unknown, source: string, comments: ReturnType<typeof commentsOf>): void {
  if (!isCollection(node)) return;
  const children: readonly { value: unknown; before: unknown }[] = node.items.map((item) =>
    isPair(item) ? { value: item.value, before: item.key } : { value: item, before: item },
  );
  for (const [i, { value }] of children.entries()) {
    sendOn(value, source, comments);
    if (!isCollection(value) || value.flow === true || !isRemark(value.comment) || !Array.isArray(value.range))
      continue;
    const [start] = value.range;
    const lines = value.comment.split("\n");
    const words = lines.filter((line) => line !== "");
    const first = comments.findIndex(
      (comment, at) => comment.start >= start && words.every((line, i) => sameRemark(comments[at + i]?.text, line)),
    );
    const told = first === -1 ? [] : comments.slice(first, first + words.length);
    const further = told.findIndex((comment) => columnOf(source, comment.start) < columnOf(source, start));
    if (further === -1) continue;
    let seen = 0;
    const at = lines.findIndex((line) => line !== "" && seen++ === further);
    const own = lines.slice(0, at).join("\n").replace(/\n+$/, "");
    const rest = lines.slice(at).join("\n");
    value.comment = own === "" ? null : own;
    const next = children[i + 1]?.before;
    if (!isScalar(next) && !isCollection(next)) {
      node.comment = joined("\n", rest, node.comment);
      continue;
    }
    next.commentBefore = joined("\n", rest, next.commentBefore);
    if (lines[at - 1] === "") next.spaceBefore = true;
  }
}

/** The library leaves the `#` out; an empty comment is a space there. */
function sameRemark(text: string | undefined, line: string): boolean {
  return text !== undefined && text.slice(1).trimEnd() === line.trimEnd();
}

function isRemark(text: string | null | undefined): text is string {
  return typeof text === "string" && text !== "";
}

function joined(separator: string, ...texts: readonly (string | null | undefined)[]): string {
  return texts.filter(isRemark).join(separator);
}

function columnOf(source: string, at: number): number {
  return at - (source.lastIndexOf("\n", at - 1) + 1);
}

/** Sorts the keys. A comment above a key goes with it; one above the whole file, or above an entry of a list, stays there. */
function arrange(node: unknown, order: Order, whole: boolean): void {
  if (isSeq(node)) {
    for (const item of node.items) arrange(item, order, node.flow !== true);
    return;
  }
  if (!isMap(node)) return;
  const first = node.items[0]?.key;
  if (!whole && isScalar(first) && isRemark(node.commentBefore)) {
    first.commentBefore = joined("\n", node.commentBefore, first.commentBefore);
    node.commentBefore = null;
  }
  const rank = (key: unknown): number => {
    const at = order.keys.indexOf(keyOf(key));
    return at === -1 ? order.keys.length : at;
  };
  const sorted = node.items.toSorted((a, b) => rank(a.key) - rank(b.key));
  const moved = sorted[0]?.key;
  if (moved !== first) {
    // The blank line belongs between keys, not above the first.
    if (isScalar(moved)) moved.spaceBefore = false;
  }
  node.items = sorted;
  for (const { key, value } of sorted) {
    const within = order.within?.[keyOf(key)] ?? order.within?.["*"];
    if (within !== undefined) arrange(value, within, false);
  }
}

/**
 * Decides for each map and list whether it stands in brackets: it did, has no comment or blank line inside, and fits.
 * @param column where it would begin on its line. @param indent of the line.
 */
function layOut(node: Node, column: number, indent: number, top: boolean): void {
  if (!isCollection(node)) return;
  const inBrackets = node.flow === true && !top && !hasRemarks(node);
  if (node.items.length === 0 || (inBrackets && column + widthOf(node) <= WIDTH)) {
    setInBrackets(node);
    return;
  }
  node.flow = false;
  for (const item of node.items) {
    if (isPair(item)) {
      const key = keyOf(item.key);
      const value = item.value;
      if (isCollection(value)) layOut(value, indent + key.length + 2, indent + 2, false);
    } else if (isCollection(item)) layOut(item, indent + 2, indent + 2, false);
  }
}

/** A space within the brackets of a map, none within those of a list; the library knows only one way for both. */
function setInBrackets(node: Node): void {
  visit(node, {
    Collection: (_, inner) => {
      inner.flow = true;
      const write = inner.toString.bind(inner);
      const padding = isMap(inner) ? " " : "";
      inner.toString = (context, ...rest) =>
        write(context === undefined ? context : { ...context, flowCollectionPadding: padding }, ...rest);
    },
  });
}

function hasRemarks(node: Node): boolean {
  let found = false;
  visit(node, {
    Node: (_, inner) => {
      if (inner === node) return undefined; // what stands before or behind all of it may stay there
      if (!isRemark(inner.comment) && !isRemark(inner.commentBefore) && inner.spaceBefore !== true) return undefined;
      found = true;
      return visit.BREAK;
    },
  });
  return found;
}

/** Characters of a map or list in brackets, on one line. */
function widthOf(node: Node): number {
  const copy = node.clone() as YAMLMap;
  [copy.comment, copy.commentBefore, copy.spaceBefore] = [null, null, false];
  setInBrackets(copy);
  const alone = new Document(null);
  alone.contents = copy as never;
  return alone.toString({ lineWidth: 0, flowCollectionPadding: true }).trimEnd().length;
}

function keyOf(key: unknown): string {
  return isScalar(key) && typeof key.value === "string" ? key.value : "";
}
