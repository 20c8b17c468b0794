import { parseDuration } from "../core/duration.ts";
import type { Document, Entry, Node, Place } from "./document.ts";
import type { Playbook, Selector } from "./policy.ts";
import { type Placed, readDuration, readLine, readMap, readName, readNames, readText, startOf } from "./shape.ts";
import { reasonFault } from "./text.ts";

/** A playbook as its file says it; who and what it names is not checked yet. */
export interface PlaybookFile {
  readonly document: Document;
  readonly name: Placed<string> | undefined;
  readonly target: Placed<string> | undefined;
  readonly scope: Node | undefined;
  readonly who: readonly Placed<Selector>[];
  readonly from: readonly Placed<Selector>[];
  readonly needPlace: Place | undefined;
  /** Undefined where the file has mistakes of its own; the parts above are still checked against the other files. */
  readonly playbook: Omit<Playbook, "hash"> | undefined;
}

const KEYS = {
  required: {
    playbook: "orders-db-write",
    summary: "Repair customer orders while checkout is broken",
    target: "orders-prod",
    scope: "{ role: orders_rw }",
    who: "{ oncall: payments }",
    when: "{ reason: [customer-impact] }",
    approve: "{ need: 1, from: { group: payments-leads } }",
    time: "{ max: 45m }",
  },
  optional: [],
  later: ["limit", "notify", "review", "drill", "tests", "extends"],
};
const WHEN = {
  required: { reason: "[customer-impact]" },
  optional: [],
  later: ["incident", "severity", "hours", "days", "window"],
};
const APPROVE = { required: { need: "1" }, optional: ["from", "within"], later: ["unanswered"] };
const TIME = { required: { max: "45m" }, optional: ["idle", "extend"] };
const WHO = ["oncall", "group", "user"] as const;
const FROM = ["group", "user"] as const;

/** Fifteen minutes: at 2 a.m. a person who has not answered by then is asleep, and somebody else must be asked. */
const DEFAULT_WITHIN_MS = 15 * 60_000;
const MAX_NEED = 5;

/** Reads one file of `playbooks/`. */
export function readPlaybook(document: Document): PlaybookFile | undefined {
  if (document.root === undefined) return undefined;
  const map = readMap(document, document.root, "a playbook", KEYS);
  if (map === undefined) return undefined;
  const at = (key: string): Node | undefined => map.get(key)?.value;
  const [nameNode, summaryNode, targetNode, scope] = [at("playbook"), at("summary"), at("target"), at("scope")];
  const [whoNode, whenNode, approveNode, timeNode] = [at("who"), at("when"), at("approve"), at("time")];
  const name = nameNode && readName(document, nameNode, "playbook");
  const summary = summaryNode && readLine(document, summaryNode, "summary", 200);
  const target = targetNode && readName(document, targetNode, "target");
  const nobody = "Nobody could use this playbook: name somebody.";
  const who = (whoNode && readSelectors(document, whoNode, "who", WHO, nobody)) ?? [];
  const reasons = whenNode && readWhen(document, whenNode);
  const approve = approveNode && readApprove(document, approveNode);
  const time = timeNode && readTime(document, timeNode);
  const from = approve?.from ?? [];
  const parts = {
    ...{ document, scope, who, from, needPlace: approve?.needPlace },
    name: nameNode && name ? { value: name, place: nameNode.place } : undefined,
    target: targetNode && target ? { value: target, place: targetNode.place } : undefined,
  };
  if (name === undefined || summary === undefined || target === undefined || scope === undefined) {
    return { ...parts, playbook: undefined };
  }
  if (who.length === 0 || reasons === undefined || approve?.rule === undefined || time === undefined) {
    return { ...parts, playbook: undefined };
  }
  const consent = { ...approve.rule, from: from.map(({ value }) => value) };
  const said = {
    name,
    summary,
    target,
    scope: {},
    who: who.map(({ value }) => value),
    reasons,
    approve: consent,
    time,
  };
  return { ...parts, playbook: said };
}

function readSelectors(
  document: Document,
  node: Node,
  what: string,
  kinds: readonly Selector["by"][],
  empty: string,
): readonly Placed<Selector>[] | undefined {
  const later = what === "approve.from" ? ["oncall"] : [];
  const map = readMap(document, node, what, { required: {}, optional: kinds, later });
  if (map === undefined) return undefined;
  if (node.type === "map" && node.entries.length === 0) {
    document.report(startOf(node), `${what} is empty`, empty);
    return undefined;
  }
  const selectors: Placed<Selector>[] = [];
  for (const by of kinds) {
    const entry = map.get(by);
    if (entry === undefined) continue;
    const options = { single: true, empty, ids: by === "user" };
    for (const { value, place } of readNames(document, entry.value, `${what}.${by}`, options) ?? []) {
      selectors.push({ value: { by, name: value }, place });
    }
  }
  return selectors;
}

function readWhen(document: Document, node: Node): readonly string[] | undefined {
  const map = readMap(document, node, "when", WHEN);
  const entry = map?.get("reason");
  if (entry === undefined) return undefined;
  const empty = "A reason is always given: list the codes that count here.";
  const codes = readNames(document, entry.value, "when.reason", { single: false, empty, fault: reasonFault });
  return codes === undefined || codes.length === 0 ? undefined : codes.map(({ value }) => value);
}

interface ApproveFile {
  readonly from: readonly Placed<Selector>[];
  readonly needPlace: Place | undefined;
  readonly rule: { readonly need: number; readonly withinMs: number } | undefined;
}

function readApprove(document: Document, node: Node): ApproveFile | undefined {
  const map = readMap(document, node, "approve", APPROVE);
  if (map === undefined) return undefined;
  const needNode = map.get("need")?.value;
  const fromNode = map.get("from")?.value;
  const withinNode = map.get("within")?.value;
  const nobody = "Nobody could approve: name somebody.";
  const from = (fromNode && readSelectors(document, fromNode, "approve.from", FROM, nobody)) ?? [];
  const withinMs = withinNode === undefined ? DEFAULT_WITHIN_MS : readDuration(document, withinNode, "approve.within");
  const need = needNode && readNeed(document, needNode);
  const needPlace = needNode && startOf(needNode);
  if (needPlace !== undefined && need !== undefined && need > 0 && fromNode === undefined) {
    const help = "Say who may approve: from: { group: some-leads }.";
    document.report(needPlace, `${need} must approve, but nobody may: approve lacks from`, help);
  }
  const complete = need !== undefined && withinMs !== undefined && (fromNode === undefined || from.length > 0);
  return { from, needPlace, rule: complete ? { need, withinMs } : undefined };
}

function readNeed(document: Document, node: Node): number | undefined {
  const need = node.type === "scalar" ? node.value : undefined;
  if (typeof need === "number" && Number.isInteger(need) && need >= 0 && need <= MAX_NEED) return need;
  const help = "How many different people must say yes; 0 opens at once.";
  document.report(startOf(node), `approve.need must be a whole number from 0 to ${MAX_NEED}`, help);
  return undefined;
}

function readTime(document: Document, node: Node): Playbook["time"] | undefined {
  const map = readMap(document, node, "time", TIME);
  const maxNode = map?.get("max")?.value;
  const idleNode = map?.get("idle")?.value;
  const extendEntry = map?.get("extend");
  const maxMs = maxNode && readDuration(document, maxNode, "time.max");
  const idleMs = idleNode && readDuration(document, idleNode, "time.idle");
  const extend = extendEntry && readExtend(document, extendEntry);
  if (maxMs === undefined || (idleNode && idleMs === undefined) || (extendEntry && extend === undefined)) {
    return undefined;
  }
  if (idleMs !== undefined && idleNode !== undefined && idleMs > maxMs) {
    document.report(idleNode.place, "time.idle is longer than time.max, so it would never matter");
    return undefined;
  }
  return {
    maxMs,
    ...(idleMs === undefined ? {} : { idleMs }),
    ...(extend === undefined ? {} : { extend }),
    capMs: maxMs + (extend === undefined ? 0 : extend.times * extend.byMs),
  };
}

function readExtend(document: Document, { value }: Entry): { times: number; byMs: number } | undefined {
  const text = readText(document, value, "time.extend");
  if (text === undefined) return undefined;
  const match = /^([1-9]\d?)x(\w+)$/.exec(text);
  const byMs = match?.[2] === undefined ? undefined : durationOrNothing(match[2]);
  if (match !== null && byMs !== undefined) return { times: Number(match[1]), byMs };
  document.report(
    value.place,
    "time.extend must say how often and by how much",
    "Write it as 2x30m: twice, 30 minutes each.",
  );
  return undefined;
}

function durationOrNothing(text: string): number | undefined {
  try {
    return parseDuration(text);
  } catch {
    return undefined;
  }
}
