import { parseDuration } from "../core/duration.ts";
import type { JsonObject, JsonValue } from "../core/json.ts";
import type { Document, Entry, Node, Place } from "./document.ts";
import { nearest, suggest } from "./problem.ts";
import { aliasFault, lineFault, nameFault } from "./text.ts";

/**
 * Readers of one value each. A reader that finds a mistake reports it on the document and gives undefined; it never
 * throws and never guesses a value. `what` is the key, for the sentence.
 */

const MAX_SLIPS = 50; // suggestions cost time, and nobody reads more

export interface Keys {
  /** Each with an example of its value, for whoever left it out. */
  readonly required: Readonly<Record<string, string>>;
  readonly optional: readonly string[];
  /** Whether the value of an unknown key may be a secret that must not be shown. */
  readonly hideUnknown?: boolean;
}

/** The keys of a map that has been read; what it lacks can be told later, when it is known what else says it. */
export interface ReadKeys {
  readonly entries: ReadonlyMap<string, Entry>;
  /** What misspelt keys were probably meant to be: that the right one is missing would be the same news twice. */
  readonly slips: ReadonlySet<string>;
}

/** The entries of a map by key. Unknown and missing keys are reported; the known ones are still returned. */
export function readMap(
  document: Document,
  node: Node,
  what: string,
  keys: Keys,
): ReadonlyMap<string, Entry> | undefined {
  const read = readKeys(document, node, what, [...Object.keys(keys.required), ...keys.optional], keys.hideUnknown);
  if (read === undefined) return undefined;
  const missing = Object.keys(keys.required).filter((key) => !read.entries.has(key) && !read.slips.has(key));
  reportMissing(document, startOf(node), what, missing, keys.required);
  return read.entries;
}

/** As {@link readMap}, without looking for what is missing. */
export function readKeys(
  document: Document,
  node: Node,
  what: string,
  known: readonly string[],
  hideUnknown = false,
): ReadKeys | undefined {
  if (node.type !== "map") {
    document.report(startOf(node), `${what} must be a map of keys`, `Keys: ${known.join(", ")}.`);
    return undefined;
  }
  const entries = new Map<string, Entry>();
  const slips = new Set<string>();
  for (const entry of node.entries) {
    if (known.includes(entry.key)) {
      entries.set(entry.key, entry);
      continue;
    }
    const few = slips.size < MAX_SLIPS;
    if (few) slips.add(nearest(entry.key, known) ?? entry.key);
    // A slip of the fingers can put a secret where a key should be: only what looks like a key is repeated.
    const plain = /^[a-z_]{1,32}$/i.test(entry.key);
    if (!plain) document.mask(entry.keyPlace);
    document.report(
      entry.keyPlace,
      plain ? `${what} has no key "${entry.key}"` : `${what} has no such key`,
      few ? suggest(entry.key, known) : undefined,
    );
    if (hideUnknown) document.mask(entry.value.place);
  }
  return { entries, slips };
}

/** Names the keys that are missing, each with a line that could stand there. */
export function reportMissing(
  document: Document,
  place: Place,
  what: string,
  missing: readonly string[],
  examples: Readonly<Record<string, string>>,
): void {
  if (missing.length === 0) return;
  const lines = missing.map((key) => `${key}: ${examples[key] ?? "…"}`);
  document.report(place, `${what} lacks ${missing.join(", ")}`, `Add: ${lines.join("\n       ")}`);
}

/** Whether a document whose keys belong to a target's kind is a map at all; what is in it, the kind says. */
export function isKindsMap(document: Document, node: Node, what: string): boolean {
  if (node.type === "map") return true;
  document.report(startOf(node), `${what} must be a map of keys`, "The keys belong to the target's kind.");
  return false;
}

export function readText(document: Document, node: Node, what: string): string | undefined {
  if (node.type === "scalar" && typeof node.value === "string") return node.value;
  const help = node.type === "scalar" && node.value !== null ? `Put it in quotes: "${node.value}".` : undefined;
  document.report(startOf(node), `${what} must be text`, help);
  return undefined;
}

/** One line for people. */
export function readLine(document: Document, node: Node, what: string, maxLength: number): string | undefined {
  const text = readText(document, node, what);
  const fault = text === undefined ? undefined : lineFault(text, maxLength);
  if (fault === undefined) return text?.trim();
  document.report(node.place, `${what} ${fault}`);
  return undefined;
}

export function readName(
  document: Document,
  node: Node,
  what: string,
  fault: (text: string) => string | undefined = nameFault,
): string | undefined {
  const text = readText(document, node, what);
  if (text === undefined) return undefined;
  const wrong = fault(text);
  if (wrong === undefined) return text;
  document.report(node.place, `${what} ${wrong}`);
  return undefined;
}

export interface Placed<T> {
  readonly value: T;
  readonly place: Place;
}

/**
 * A list of different names that is not empty; with `single`, one name may stand alone. With `ids`, they are names or
 * aliases of people, given in lower case.
 */
export function readNames(
  document: Document,
  node: Node,
  what: string,
  options: { single: boolean; empty: string; ids?: boolean; fault?: (text: string) => string | undefined },
): readonly Placed<string>[] | undefined {
  if (node.type === "scalar" && node.value === null) {
    document.report(startOf(node), `${what} is empty`, options.empty);
    return undefined;
  }
  const items = node.type === "list" ? node.items : options.single ? [node] : undefined;
  if (items === undefined) {
    document.report(startOf(node), `${what} must be a list`, "Write it as [one, two].");
    return undefined;
  }
  if (items.length === 0) {
    document.report(node.place, `${what} is an empty list`, options.empty);
    return undefined;
  }
  const names = new Map<string, Placed<string>>();
  for (const item of items) {
    const fault = options.ids === true ? aliasFault : options.fault;
    const read = readName(document, item, node.type === "list" ? `an item of ${what}` : what, fault);
    if (read === undefined) continue;
    const name = options.ids === true ? read.toLowerCase() : read;
    if (names.has(name)) document.report(item.place, `"${name}" is twice in ${what}`);
    else names.set(name, { value: name, place: item.place });
  }
  return [...names.values()];
}

/** Milliseconds, at most a year where `maxMs` is left out. */
export function readDuration(document: Document, node: Node, what: string, maxMs?: number): number | undefined {
  const form = "Write it as 30m, 90s, 2h or 1h30m.";
  if (node.type === "scalar" && typeof node.value === "string") {
    try {
      return parseDuration(node.value, maxMs);
    } catch {
      document.report(node.place, `${what} is not a duration`, form);
      return undefined;
    }
  }
  document.report(startOf(node), `${what} is not a duration`, form);
  return undefined;
}

/** A whole number within bounds, both included. */
export function readCount(
  document: Document,
  node: Node,
  what: string,
  [min, max]: readonly [number, number],
  help?: string,
): number | undefined {
  const count = node.type === "scalar" ? node.value : undefined;
  if (typeof count === "number" && Number.isInteger(count) && count >= min && count <= max) return count;
  document.report(startOf(node), `${what} must be a whole number from ${min} to ${max}`, help);
  return undefined;
}

export function readBoolean(document: Document, node: Node, what: string): boolean | undefined {
  if (node.type === "scalar" && typeof node.value === "boolean") return node.value;
  document.report(startOf(node), `${what} must be true or false`, "Without quotes; yes and no are texts in YAML 1.2.");
  return undefined;
}

/** The value as JSON, for a target kind's own check. */
export function toJson(node: Node): JsonValue {
  if (node.type === "scalar") return node.value;
  if (node.type === "list") return node.items.map(toJson);
  const object: Record<string, JsonValue> = {};
  for (const entry of node.entries) object[entry.key] = toJson(entry.value);
  return object;
}

/** The same JSON object with some values replaced; `replace` gets each text and the path to it. */
export function mapTexts(
  value: JsonValue,
  replace: (text: string, path: readonly (string | number)[]) => string,
  path: readonly (string | number)[] = [],
): JsonValue {
  if (typeof value === "string") return replace(value, path);
  if (Array.isArray(value)) return value.map((item: JsonValue, i) => mapTexts(item, replace, [...path, i]));
  if (typeof value !== "object" || value === null) return value;
  const object: Record<string, JsonValue> = {};
  for (const [key, item] of Object.entries(value as JsonObject)) object[key] = mapTexts(item, replace, [...path, key]);
  return object;
}

/** The place that a path within `node` leads to, or the last place on the way that exists. */
export function locate(node: Node, path: readonly (string | number)[]): Place {
  let place = startOf(node);
  let current: Node | undefined = node;
  for (const step of path) {
    if (current?.type === "map") {
      const entry: Entry | undefined = current.entries.find(({ key }) => key === step);
      if (entry === undefined) return place;
      current = entry.value;
      place = current.type === "scalar" && current.value !== null ? current.place : entry.keyPlace;
    } else if (current?.type === "list" && typeof step === "number") {
      current = current.items[step];
      if (current === undefined) return place;
      place = startOf(current);
    } else return place;
  }
  return place;
}

/** A scalar whole; of a map or a list only the beginning, so that the mark does not run over lines. */
export function startOf(node: Node): Place {
  if (node.type === "scalar") return node.place;
  const first = node.type === "map" ? node.entries[0]?.keyPlace : undefined;
  return first ?? { start: node.place.start, end: node.place.start + 1 };
}
