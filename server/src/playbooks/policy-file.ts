import type { Document, Node } from "./document.ts";
import { readHours, readZone } from "./hours.ts";
import { readDefaults, type Sayings } from "./playbook.ts";
import type { Hours } from "./policy.ts";
import { type PlacedSelectors, readSelectors, WHO } from "./selectors.ts";
import { type Placed, readLine, readMap, readName, readNames, startOf } from "./shape.ts";
import { reasonFault } from "./text.ts";

/** A rule of `forbid:`; the names in it are not checked yet. */
export interface DenialEntry {
  readonly name: Placed<string>;
  readonly why: string;
  readonly who: PlacedSelectors;
  readonly targets: readonly Placed<string>[];
  readonly tags: readonly Placed<string>[];
  readonly hours: readonly Hours[] | undefined;
  readonly zone: string | undefined;
}

/** What `policy.yaml` says for all playbooks. */
export interface PolicyFile {
  readonly document: Document;
  readonly reasons: ReadonlyMap<string, string>;
  readonly zone: string;
  readonly defaults: Sayings;
  readonly denials: readonly DenialEntry[];
}

const KEYS = {
  required: { reasons: "{ customer-impact: Customers cannot use the product }" },
  optional: ["zone", "defaults", "forbid"],
};
const RULE = {
  required: { rule: "no-contractors-on-pci", why: "Contractors never reach cardholder data" },
  optional: ["who", "target", "hours", "zone"],
};
const MAX_RULES = 200;

/** Reads `policy.yaml`. */
export function readPolicyFile(document: Document): PolicyFile | undefined {
  const { root } = document;
  if (root === undefined) return undefined;
  const map = readMap(document, root, "policy.yaml", KEYS);
  if (map === undefined) return undefined;
  const [reasons, zone] = [map.get("reasons")?.value, map.get("zone")?.value];
  const [defaults, forbid] = [map.get("defaults")?.value, map.get("forbid")?.value];
  return {
    document,
    reasons: reasons === undefined ? new Map() : readReasons(document, reasons),
    zone: (zone && readZone(document, zone, "zone")) ?? "UTC",
    defaults: defaults === undefined ? {} : readDefaults(document, defaults),
    denials: forbid === undefined ? [] : readDenials(document, forbid),
  };
}

function readReasons(document: Document, node: Node): ReadonlyMap<string, string> {
  const reasons = new Map<string, string>();
  if (node.type !== "map" || node.entries.length === 0) {
    const help = "Write each as CODE: what it is for, such as data-loss: Data is being lost.";
    document.report(startOf(node), "reasons must be a map of codes", help);
    return reasons;
  }
  for (const { key, keyPlace, value } of node.entries) {
    const fault = reasonFault(key);
    if (fault !== undefined) document.report(keyPlace, `"${key}" ${fault}`);
    // What a person reads when choosing must not be empty.
    reasons.set(key, readLine(document, value, `reason ${key}`, 200) ?? "");
  }
  return reasons;
}

function readDenials(document: Document, node: Node): readonly DenialEntry[] {
  if (node.type !== "list" || node.items.length === 0 || node.items.length > MAX_RULES) {
    const many = node.type === "list" && node.items.length > 0;
    const help = "Begin each with: - rule: no-contractors-on-pci";
    document.report(
      startOf(node),
      many ? `forbid has more than ${MAX_RULES} rules` : "forbid must be a list of rules",
      help,
    );
    return [];
  }
  const taken = new Set<string>();
  return node.items.flatMap((item) => {
    const rule = readDenial(document, item);
    if (rule === undefined) return [];
    if (taken.has(rule.name.value)) document.report(rule.name.place, `there are two rules "${rule.name.value}"`);
    taken.add(rule.name.value);
    return [rule];
  });
}

function readDenial(document: Document, item: Node): DenialEntry | undefined {
  const map = readMap(document, item, "a rule of forbid", RULE);
  if (map === undefined) return undefined;
  const at = (key: string): Node | undefined => map.get(key)?.value;
  const [ruleNode, whyNode, whoNode] = [at("rule"), at("why"), at("who")];
  const [targetNode, hoursNode, zoneNode] = [at("target"), at("hours"), at("zone")];
  const name = ruleNode && readName(document, ruleNode, "rule");
  const why = whyNode && readLine(document, whyNode, "why", 200);
  const empty = "Leave the key out to mean everybody.";
  const who = whoNode === undefined ? [] : (readSelectors(document, whoNode, "who", { kinds: WHO, empty }) ?? []);
  const which = targetNode === undefined ? { targets: [], tags: [] } : readWhich(document, targetNode);
  const hours = hoursNode && readHours(document, hoursNode, "hours");
  const zone = zoneNode && readZone(document, zoneNode, "zone");
  if (ruleNode === undefined || name === undefined || why === undefined) return undefined;
  return { name: { value: name, place: ruleNode.place }, why, who, ...which, hours, zone };
}

function readWhich(document: Document, node: Node): Pick<DenialEntry, "targets" | "tags"> {
  const empty = "Leave the key out to mean every target.";
  const map = readMap(document, node, "target", { required: {}, optional: ["name", "tag"] });
  if (node.type === "map" && node.entries.length === 0) document.report(startOf(node), "target is empty", empty);
  const names = (key: string): readonly Placed<string>[] => {
    const value = map?.get(key)?.value;
    return value === undefined ? [] : (readNames(document, value, `target.${key}`, { single: true, empty }) ?? []);
  };
  return { targets: names("name"), tags: names("tag") };
}
