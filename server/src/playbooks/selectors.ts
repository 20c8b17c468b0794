import type { Document, Node } from "./document.ts";
import type { Selector } from "./policy.ts";
import { type Placed, readMap, readNames, startOf } from "./shape.ts";

export const WHO = ["oncall", "group", "user"] as const;
/** On call changes by the hour and may be unknown: who consents must not depend on it. */
export const NAMED = ["group", "user"] as const;
const MAX_SIDES = 5; // as many as `approve.need` can ask for

export type PlacedSelectors = readonly Placed<Selector>[];

/** A map of alternatives, any one of which is enough. Undefined where nobody could be meant. */
export function readSelectors(
  document: Document,
  node: Node,
  what: string,
  options: { kinds: readonly Selector["by"][]; empty: string },
): PlacedSelectors | undefined {
  const { kinds, empty } = options;
  const map = readMap(document, node, what, { required: {}, optional: kinds });
  if (map === undefined) return undefined;
  if (node.type === "map" && node.entries.length === 0) {
    document.report(startOf(node), `${what} is empty`, empty);
    return undefined;
  }
  const selectors: Placed<Selector>[] = [];
  for (const by of kinds) {
    const entry = map.get(by);
    if (entry === undefined) continue;
    const names = readNames(document, entry.value, `${what}.${by}`, { single: true, empty, ids: by === "user" });
    for (const { value, place } of names ?? []) selectors.push({ value: { by, name: value }, place });
  }
  return selectors.length === 0 ? undefined : selectors;
}

/** `approve.from`: one side as a map, or a list of sides that must all agree. */
export function readSides(document: Document, node: Node): readonly PlacedSelectors[] | undefined {
  const empty = "Nobody could approve: name somebody.";
  const options = { kinds: NAMED, empty };
  if (node.type !== "list") {
    const side = readSelectors(document, node, "approve.from", options);
    return side === undefined ? undefined : [side];
  }
  if (node.items.length === 0) {
    document.report(node.place, "approve.from is an empty list", empty);
    return undefined;
  }
  if (node.items.length > MAX_SIDES) {
    document.report(startOf(node), `approve.from has more than ${MAX_SIDES} sides`, "All of them must agree.");
    return undefined;
  }
  const sides = node.items.map((item) => readSelectors(document, item, "a side of approve.from", options));
  const sound = sides.filter((side) => side !== undefined);
  return sound.length === sides.length ? sound : undefined;
}
