import { insiderLoop } from "../server/testing/insider-loop.ts";
import type { SoakContext, SoakResult } from "./scenario.ts";

export const summary =
  "somebody with the store's superuser edits, deletes, reorders, cuts, forks and swaps, and an auditor looks";
export const unit = "rounds";
export const defaultCount = 50;

const ENTRIES = 600; // several tiles, some of them full

export async function run({ cluster, count, deadlineMs, folder, say }: SoakContext): Promise<SoakResult> {
  const found = await insiderLoop(cluster, { rounds: count, entries: ENTRIES, folder, deadlineMs, say });
  return {
    figures: {
      rounds: `${found.rounds} of ${count}`,
      "entries in the log": `${found.entries}`,
      manipulations: `${found.played}`,
      "found and named": `${found.found}`,
      seed: `${found.seed}`,
    },
    problems: found.problems,
  };
}
