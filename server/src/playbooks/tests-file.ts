import type { Document, Node, Place } from "./document.ts";
import type { PlaybookTest } from "./policy.ts";
import { type Placed, readCount, readDuration, readMap, readName, readNames, readText, startOf } from "./shape.ts";
import { aliasFault, reasonFault, severityFault } from "./text.ts";

/** A `tests:` entry as it is written; names are not checked, and what was left out is not filled in yet. */
export interface TestEntry {
  readonly expect: PlaybookTest["expect"];
  readonly place: Place;
  readonly who: Placed<string>;
  readonly oncall: readonly Placed<string>[];
  readonly unknown: readonly Placed<string>[];
  readonly approvedBy: readonly Placed<string>[];
  readonly reason: Placed<string> | undefined;
  readonly incident: string | undefined;
  readonly forMs: number | undefined;
  readonly atMs: number | undefined;
  readonly usage: PlaybookTest["usage"];
}

const KEYS = {
  required: { who: "ann" },
  optional: [
    ...["oncall", "unknown", "incident", "reason", "for", "approvedBy", "at"],
    ...["unsigned", "open", "overdue", "sinceLast"],
  ],
};
const MAX_TESTS = 200; // of one playbook: more is a table that nobody reads
const MAX_COUNT = 1_000_000;

/** Reads `tests:`, a list of `allow:` and `deny:`. */
export function readTests(document: Document, node: Node): readonly TestEntry[] {
  const help = "Begin each with - allow: { who: ann } or - deny: { who: ann }.";
  if (node.type !== "list" || node.items.length === 0 || node.items.length > MAX_TESTS) {
    const fault =
      node.type === "list" && node.items.length > 0 ? `has more than ${MAX_TESTS}` : "must be a list of tests";
    document.report(startOf(node), `tests ${fault}`, help);
    return [];
  }
  return node.items.flatMap((item) => {
    const map = readMap(document, item, "a test", { required: {}, optional: ["allow", "deny"] });
    if (map === undefined) return [];
    const [entry, other] = [...map.values()];
    if (entry === undefined || other !== undefined) {
      if (item.type === "map" && (other !== undefined || item.entries.length === 0)) {
        document.report(startOf(item), "a test is either allow or deny", help);
      }
      return [];
    }
    const expect = entry.key === "allow" ? "allow" : "deny";
    const read = readTest(document, entry.value, expect, entry.keyPlace);
    return read === undefined ? [] : [read];
  });
}

function readTest(document: Document, node: Node, expect: TestEntry["expect"], place: Place): TestEntry | undefined {
  const map = readMap(document, node, `tests.${expect}`, KEYS);
  if (map === undefined) return undefined;
  const names = (key: string, ids: boolean): readonly Placed<string>[] => {
    const value = map.get(key)?.value;
    const options = { single: true, empty: "Leave the key out.", ids };
    return value === undefined ? [] : (readNames(document, value, `tests.${key}`, options) ?? []);
  };
  const read = <T>(key: string, reader: (value: Node) => T | undefined): T | undefined => {
    const value = map.get(key)?.value;
    return value === undefined ? undefined : reader(value);
  };
  const word = (key: string, fault: (text: string) => string | undefined) =>
    read(key, (value): Placed<string> | undefined => {
      const text = readName(document, value, `tests.${key}`, fault);
      return text === undefined ? undefined : { value: text, place: value.place };
    });
  const count = (key: string): number =>
    read(key, (value) => readCount(document, value, `tests.${key}`, [0, MAX_COUNT])) ?? 0;
  const who = word("who", aliasFault);
  const sinceLastMs = read("sinceLast", (value) => readDuration(document, value, "tests.sinceLast"));
  const entry = {
    ...{ expect, place, oncall: names("oncall", false), unknown: names("unknown", false) },
    ...{ approvedBy: names("approvedBy", true), reason: word("reason", reasonFault) },
    incident: word("incident", severityFault)?.value,
    forMs: read("for", (value) => readDuration(document, value, "tests.for")),
    atMs: read("at", (value) => readMoment(document, value)),
    usage: {
      ...{ unsigned: count("unsigned"), open: count("open"), overdue: count("overdue") },
      ...(sinceLastMs === undefined ? {} : { sinceLastMs }),
    },
  };
  return who === undefined ? undefined : { ...entry, who: { ...who, value: who.value.toLowerCase() } };
}

/** Milliseconds since the epoch, from RFC 3339 with seconds left out at will. The zone is always written. */
function readMoment(document: Document, node: Node): number | undefined {
  const text = readText(document, node, "tests.at");
  if (text === undefined) return undefined;
  const match = /^(\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?)(?:Z|[+-]([01]\d|2[0-3]):[0-5]\d)$/.exec(text);
  const atMs = match === null ? Number.NaN : Date.parse(text);
  // Date.parse takes the 30th of February for a day in March.
  const local = match?.[1] === undefined ? Number.NaN : Date.parse(`${match[1]}Z`);
  if (Number.isFinite(atMs) && Number.isFinite(local) && new Date(local).toISOString().startsWith(match?.[1] ?? "-")) {
    return atMs;
  }
  document.report(
    node.place,
    "tests.at is not a moment",
    "Write it as 2026-11-20T02:14Z, or with +01:00 in place of Z.",
  );
  return undefined;
}
