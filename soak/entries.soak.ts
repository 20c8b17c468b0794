import { manyEntries } from "../server/testing/many-entries.ts";
import type { SoakContext, SoakResult } from "./scenario.ts";

export const summary = "a large log: sequenced, signed, exported, and verified from the folder";
export const unit = "entries";
export const defaultCount = 10_000_000;

export async function run({ cluster, count, deadlineMs, say }: SoakContext): Promise<SoakResult> {
  const found = await manyEntries(cluster, { entries: count, deadlineMs, say });
  const rate = (seconds: number): string => `${Math.round(found.entries / Math.max(seconds, 0.1))} entries/s`;
  return {
    figures: {
      entries: `${found.entries} of ${count}`,
      sequenced: rate(found.sequenceSeconds),
      exported: rate(found.exportSeconds),
      verified: rate(found.verifySeconds),
      "peak memory, exporter and verifier": `${found.peakRssMiB} MiB`,
    },
    problems: found.problems,
  };
}
