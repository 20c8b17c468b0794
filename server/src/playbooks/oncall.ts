import type { Document, Node } from "./document.ts";
import type { Rota } from "./policy.ts";
import { type Placed, readMap, readName, readNames, startOf } from "./shape.ts";
import { channelFault, nameFault } from "./text.ts";

/** A rota as its file says it; the people are not checked yet. */
export type RotaEntry =
  | { readonly name: string; readonly people: readonly Placed<string>[] }
  | Extract<Rota, { readonly source: string } | { readonly unknown: true }>;

const SOURCE = { required: { source: "pagerduty:main", schedule: "PABC123" }, optional: [] };
const SCHEDULE = /^[\u0021-\u007E]{1,128}$/;

/** Reads `oncall.yaml`: rota → list of people, a schedule of a source of evidence, or the word `unknown`. */
export function readRotas(document: Document): readonly RotaEntry[] {
  const { root } = document;
  if (root === undefined) return [];
  if (root.type !== "map") {
    document.report(startOf(root), "oncall.yaml must be a map of rotas", "Write it as payments: [ann, bob].");
    return [];
  }
  return root.entries.flatMap(({ key, keyPlace, value }) => {
    const fault = nameFault(key);
    if (fault === undefined) return [readRota(document, key, value)];
    document.report(keyPlace, `the rota's name ${fault}`);
    return [];
  });
}

function readRota(document: Document, name: string, node: Node): RotaEntry {
  if (node.type === "scalar" && node.value === "unknown") return { name, unknown: true };
  if (node.type === "map") {
    const map = readMap(document, node, `rota ${name}`, SOURCE);
    const [sourceNode, scheduleNode] = [map?.get("source")?.value, map?.get("schedule")?.value];
    const source = sourceNode && readName(document, sourceNode, "source", channelFault);
    const ref = scheduleNode && readName(document, scheduleNode, "schedule", scheduleFault);
    return source === undefined || ref === undefined ? { name, unknown: true } : { name, source, ref };
  }
  const empty = "Name who is on call, or write: unknown";
  const people = readNames(document, node, `rota ${name}`, { single: false, empty, ids: true });
  return people === undefined ? { name, unknown: true } : { name, people };
}

function scheduleFault(text: string): string | undefined {
  return SCHEDULE.test(text) ? undefined : "is not a schedule's id: visible ASCII characters, 128 at most";
}
