import { LONGEST_KEEP_MS, parseDuration } from "../core/duration.ts";
import type { Document, Entry, Node, Place } from "./document.ts";
import { readHours, readZone } from "./hours.ts";
import { type Hours, isMasked, type Masked, type Playbook } from "./policy.ts";
import { NAMED, type PlacedSelectors, readSelectors, readSides, WHO } from "./selectors.ts";
import {
  isKindsMap,
  type Placed,
  type ReadKeys,
  readCount,
  readDuration,
  readKeys,
  readLine,
  readMap,
} from "./shape.ts";
import { readName, readNames, readText, startOf } from "./shape.ts";
import { readTests, type TestEntry } from "./tests-file.ts";
import { channelFault, reasonFault, severityFault } from "./text.ts";

/** What each key of a playbook holds once it is read. Names in it are not checked against the other files yet. */
interface Values {
  readonly summary: string;
  readonly target: string;
  readonly scope: Node;
  readonly who: PlacedSelectors;
  readonly reason: readonly Placed<string>[];
  readonly incident: readonly string[];
  readonly hours: readonly Hours[];
  readonly zone: string;
  readonly need: number;
  readonly from: readonly PlacedSelectors[];
  readonly within: number;
  readonly unanswered: NonNullable<Playbook["approve"]["unanswered"]>;
  readonly max: number;
  readonly idle: number;
  readonly extend: NonNullable<Playbook["time"]["extend"]>;
  readonly uses: NonNullable<Playbook["limit"]["uses"]>;
  readonly concurrent: number;
  readonly cooldown: number;
  readonly notify: readonly string[];
  readonly review: { readonly by: PlacedSelectors; readonly withinMs: number };
  readonly drill: { readonly everyMs: number; readonly on: Placed<string> };
  readonly mask: Masked;
  readonly keep: number;
}

/** What one file says for one key. `value` is undefined after a mistake (which is reported), and for the word `none`. */
export interface Said<T> {
  readonly document: Document;
  readonly place: Place;
  readonly value: T | undefined;
  readonly none: boolean;
}
/** What one file says, key by key; or several files, the later over the earlier. */
export type Sayings = { readonly [K in keyof Values]?: Said<Values[K]> };

/** The maps within a playbook whose keys are inherited one by one. */
export interface Section {
  readonly place: Place;
  readonly slips: ReadonlySet<string>;
}

/** A file of `playbooks/`: a playbook, or a template that playbooks extend. */
export interface PlaybookFile {
  readonly document: Document;
  readonly kind: "playbook" | "template";
  readonly name: Placed<string> | undefined;
  readonly extends: Placed<string> | undefined;
  readonly sayings: Sayings;
  readonly sections: ReadonlyMap<string, Section>;
  readonly tests: readonly TestEntry[];
}

/** Keys that a playbook must have, its own or inherited, each with an example. */
export const EXAMPLES = {
  summary: "Repair customer orders while checkout is broken",
  target: "orders-prod",
  scope: "{ role: orders_rw }",
  who: "{ oncall: payments }",
  when: "{ reason: [customer-impact] }",
  approve: "{ need: 1, from: { group: payments-leads } }",
  time: "{ max: 45m }",
} as const;
const SECTIONS = {
  when: ["reason", "incident", "hours", "zone"],
  approve: ["need", "from", "within", "unanswered"],
  time: ["max", "idle", "extend"],
  limit: ["uses", "per", "concurrent", "cooldown"],
  record: ["mask", "keep"],
} as const;
const REST = ["limit", "notify", "review", "drill", "record"];
const PLAYBOOK_KEYS = ["playbook", "extends", ...Object.keys(EXAMPLES), ...REST, "tests"];
const TEMPLATE_KEYS = ["template", ...Object.keys(EXAMPLES), ...REST];
/** Who may open what, and with how much consent, is never a default: it stands where the playbook is reviewed. */
const DEFAULT_KEYS = ["approve", "time", ...REST];
const DEFAULT_SECTIONS = { ...SECTIONS, approve: ["within"] };

export const MAX_NEED = 5;
export const MAX_COUNT = 1_000;
/** Two days: soon enough that people remember, and a weekend is not overdue at once. */
export const DEFAULT_REVIEW_MS = 2 * 24 * 3_600_000;

/** Reads one file of `playbooks/`. */
export function readPlaybook(document: Document): PlaybookFile | undefined {
  const { root } = document;
  if (root === undefined) return undefined;
  const keys = root.type === "map" ? root.entries.map(({ key }) => key) : [];
  const kind = keys.includes("template") && !keys.includes("playbook") ? "template" : "playbook";
  if (kind === "template" && keys.includes("extends")) {
    const entry = root.type === "map" ? root.entries.find(({ key }) => key === "extends") : undefined;
    const message = "a template cannot extend another";
    document.report(entry?.keyPlace ?? startOf(root), message, "One level is all there is, so that a reader finds it.");
  }
  const known = kind === "template" ? [...TEMPLATE_KEYS, "extends"] : PLAYBOOK_KEYS;
  const read = readKeys(document, root, `a ${kind}`, known);
  if (read === undefined) return undefined;
  const nameNode = read.entries.get(kind)?.value;
  const name = nameNode && readName(document, nameNode, kind);
  const extendsNode = kind === "template" ? undefined : read.entries.get("extends")?.value;
  const extended = extendsNode && readName(document, extendsNode, "extends");
  const testsNode = kind === "template" ? undefined : read.entries.get("tests")?.value;
  if (nameNode === undefined && !read.slips.has(kind)) {
    document.report(startOf(root), `a ${kind} lacks ${kind}`, `Add: ${kind}: orders-db-write`);
  }
  return {
    ...{ document, kind },
    name: nameNode && name ? { value: name, place: nameNode.place } : undefined,
    extends: extendsNode && { value: extended ?? "", place: extendsNode.place },
    ...readSayings(document, root, read, SECTIONS),
    tests: testsNode === undefined ? [] : readTests(document, testsNode),
  };
}

/** Reads `defaults:` of policy.yaml. */
export function readDefaults(document: Document, node: Node): Sayings {
  const read = readKeys(document, node, "defaults", DEFAULT_KEYS);
  return read === undefined ? {} : readSayings(document, node, read, DEFAULT_SECTIONS).sayings;
}

function readSayings(
  document: Document,
  root: Node,
  { entries, slips }: ReadKeys,
  known: Readonly<Record<keyof typeof SECTIONS, readonly string[]>>,
): Pick<PlaybookFile, "sayings" | "sections"> {
  const says: { -readonly [K in keyof Values]?: Said<Values[K]> } = {};
  const put = <K extends keyof Values>(
    key: K,
    node: Node | undefined,
    read: (node: Node) => Values[K] | undefined,
    removable = false,
  ): void => {
    if (node === undefined) return;
    const none = removable && node.type === "scalar" && node.value === "none";
    const said: Said<Values[K]> = { document, place: startOf(node), value: none ? undefined : read(node), none };
    Object.assign(says, { [key]: said });
  };
  const at = (key: string): Node | undefined => entries.get(key)?.value;
  const sections = new Map<string, Section>([["", { place: startOf(root), slips }]]);
  const section = (key: keyof typeof SECTIONS): ReadonlyMap<string, Entry> => {
    const node = at(key);
    const read = node && readKeys(document, node, key, known[key]);
    if (node === undefined || read === undefined) {
      if (node !== undefined) sections.set(key, { place: startOf(node), slips: new Set(known[key]) });
      return new Map();
    }
    if ((key === "limit" || key === "record") && node.type === "map" && node.entries.length === 0) {
      document.report(startOf(node), `${key} is empty`, "Leave the key out.");
    }
    sections.set(key, { place: startOf(node), slips: read.slips });
    return read.entries;
  };
  const duration = (what: string) => (node: Node) => readDuration(document, node, what);

  put("summary", at("summary"), (node) => readLine(document, node, "summary", 200));
  put("target", at("target"), (node) => readName(document, node, "target"));
  put("scope", at("scope"), (node) => (isKindsMap(document, node, "scope") ? node : undefined));
  const nobody = "Nobody could use this playbook: name somebody.";
  put("who", at("who"), (node) => readSelectors(document, node, "who", { kinds: WHO, empty: nobody }));
  const when = section("when");
  put("reason", when.get("reason")?.value, (node) => readReasons(document, node));
  put("incident", when.get("incident")?.value, (node) => readIncident(document, node), true);
  put("hours", when.get("hours")?.value, (node) => readHours(document, node, "when.hours"), true);
  put("zone", when.get("zone")?.value, (node) => readZone(document, node, "when.zone"));
  const approve = section("approve");
  const needHelp = "How many different people must say yes; 0 opens at once.";
  const need = (node: Node): number | undefined => readCount(document, node, "approve.need", [0, MAX_NEED], needHelp);
  put("need", approve.get("need")?.value, need);
  put("from", approve.get("from")?.value, (node) => readSides(document, node));
  put("within", approve.get("within")?.value, duration("approve.within"));
  put("unanswered", approve.get("unanswered")?.value, (node) => readUnanswered(document, node), true);
  const time = section("time");
  put("max", time.get("max")?.value, duration("time.max"));
  put("idle", time.get("idle")?.value, duration("time.idle"), true);
  put("extend", time.get("extend")?.value, (node) => readExtend(document, node), true);
  const limit = section("limit");
  put("uses", limit.get("uses")?.value, (node) => readUses(document, node, limit.get("per")?.value), true);
  const per = limit.get("per");
  if (per !== undefined && (says.uses === undefined || says.uses.none)) {
    document.report(per.keyPlace, "limit.per means nothing without limit.uses", "Add: uses: 2");
  }
  const open = (node: Node): number | undefined => readCount(document, node, "limit.concurrent", [1, MAX_COUNT]);
  put("concurrent", limit.get("concurrent")?.value, open, true);
  put("cooldown", limit.get("cooldown")?.value, duration("limit.cooldown"), true);
  put("notify", at("notify"), (node) => readChannels(document, node), true);
  put("review", at("review"), (node) => readReview(document, node));
  put("drill", at("drill"), (node) => readDrill(document, node), true);
  const record = section("record");
  put("mask", record.get("mask")?.value, (node) => readMask(document, node), true);
  put("keep", record.get("keep")?.value, (node) => readDuration(document, node, "record.keep", LONGEST_KEEP_MS), true);
  return { sayings: says, sections };
}

function readReasons(document: Document, node: Node): readonly Placed<string>[] | undefined {
  const empty = "A reason is always given: list the codes that count here.";
  const codes = readNames(document, node, "when.reason", { single: false, empty, fault: reasonFault });
  return codes === undefined || codes.length === 0 ? undefined : codes;
}

function readIncident(document: Document, node: Node): readonly string[] | undefined {
  const empty = "List the severities that count here, such as [SEV1, SEV2], or leave the key out.";
  const severities = readNames(document, node, "when.incident", { single: true, empty, fault: severityFault });
  return severities === undefined || severities.length === 0 ? undefined : severities.map(({ value }) => value);
}

/** Channels as `kind:name`; whether glasskey.yaml has them is not known here. */
export function readChannels(document: Document, node: Node): readonly string[] | undefined {
  const empty = "Leave the key out.";
  const channels = readNames(document, node, "notify", { single: true, empty, fault: channelFault });
  return channels === undefined || channels.length === 0 ? undefined : channels.map(({ value }) => value);
}

function readUnanswered(document: Document, node: Node): Values["unanswered"] | undefined {
  const keys = { required: { after: "10m", then: "open", for: "15m" }, optional: [] };
  const map = readMap(document, node, "approve.unanswered", keys);
  const [after, then, forNode] = [map?.get("after")?.value, map?.get("then")?.value, map?.get("for")?.value];
  const afterMs = after && readDuration(document, after, "approve.unanswered.after");
  const forMs = forNode && readDuration(document, forNode, "approve.unanswered.for");
  const isOpen = then?.type === "scalar" && then.value === "open";
  if (then !== undefined && !isOpen) {
    const help = "Without the key, a request that nobody answers times out.";
    document.report(startOf(then), "approve.unanswered.then can only be: open", help);
  }
  return afterMs === undefined || forMs === undefined || !isOpen ? undefined : { afterMs, forMs };
}

function readExtend(document: Document, node: Node): Values["extend"] | undefined {
  const text = readText(document, node, "time.extend");
  if (text === undefined) return undefined;
  const match = /^([1-9]\d?)x(\w+)$/.exec(text);
  const byMs = match?.[2] === undefined ? undefined : durationOrNothing(match[2]);
  if (match !== null && byMs !== undefined) return { times: Number(match[1]), byMs };
  const help = "Write it as 2x30m: twice, 30 minutes each.";
  document.report(node.place, "time.extend must say how often and by how much", help);
  return undefined;
}

function durationOrNothing(text: string): number | undefined {
  try {
    return parseDuration(text);
  } catch {
    return undefined;
  }
}

function readUses(document: Document, node: Node, per: Node | undefined): Values["uses"] | undefined {
  const count = readCount(document, node, "limit.uses", [1, MAX_COUNT]);
  if (per === undefined) document.report(startOf(node), "limit.uses lacks limit.per", "Add: per: 7d");
  const perMs = per && readDuration(document, per, "limit.per");
  return count === undefined || perMs === undefined ? undefined : { count, perMs };
}

function readReview(document: Document, node: Node): Values["review"] | undefined {
  const map = readMap(document, node, "review", {
    required: { by: "{ group: payments-leads }" },
    optional: ["within"],
  });
  const [byNode, withinNode] = [map?.get("by")?.value, map?.get("within")?.value];
  const options = { kinds: NAMED, empty: "Nobody could sign: name somebody." };
  const by = byNode && readSelectors(document, byNode, "review.by", options);
  const withinMs = withinNode === undefined ? DEFAULT_REVIEW_MS : readDuration(document, withinNode, "review.within");
  return by === undefined || withinMs === undefined ? undefined : { by, withinMs };
}

function readDrill(document: Document, node: Node): Values["drill"] | undefined {
  const map = readMap(document, node, "drill", { required: { every: "30d", on: "orders-staging" }, optional: [] });
  const [everyNode, onNode] = [map?.get("every")?.value, map?.get("on")?.value];
  const everyMs = everyNode && readDuration(document, everyNode, "drill.every");
  const on = onNode && readName(document, onNode, "drill.on");
  if (everyMs === undefined || onNode === undefined || on === undefined) return undefined;
  return { everyMs, on: { value: on, place: onNode.place } };
}

function readMask(document: Document, node: Node): Masked | undefined {
  const text = readText(document, node, "record.mask");
  if (text === undefined || isMasked(text)) return text;
  document.report(
    node.place,
    "record.mask must be none, parameters or all",
    "parameters: what a client sends beside the statement. all: those, and every literal in its text.",
  );
  return undefined;
}
