import type { Document } from "./document.ts";
import { nameFault } from "./text.ts";
import { type Placed, readNames, startOf } from "./shape.ts";

/** Who is on call: names of people, or `unknown` while nothing answers for this rota. */
export interface Rota {
  readonly name: string;
  readonly people: readonly Placed<string>[] | "unknown";
}

/** Reads `oncall.yaml`: rota → list of people, or the word `unknown`. */
export function readRotas(document: Document): readonly Rota[] {
  const { root } = document;
  if (root === undefined) return [];
  if (root.type !== "map") {
    document.report(startOf(root), "oncall.yaml must be a map of rotas", "Write it as payments: [ann, bob].");
    return [];
  }
  const rotas: Rota[] = [];
  for (const { key, keyPlace, value } of root.entries) {
    const fault = nameFault(key);
    if (fault !== undefined) document.report(keyPlace, `the rota's name ${fault}`);
    else if (value.type === "scalar" && value.value === "unknown") rotas.push({ name: key, people: "unknown" });
    else {
      const empty = "Name who is on call, or write: unknown";
      const people = readNames(document, value, `rota ${key}`, { single: false, empty, ids: true });
      rotas.push({ name: key, people: people ?? "unknown" });
    }
  }
  return rotas;
}
