import { restoreLoop } from "../server/testing/restore-loop.ts";
import type { SoakContext, SoakResult } from "./scenario.ts";

export const summary = "a large log archived in stages, restored from the archive alone, and verified";
export const unit = "entries";
export const defaultCount = 2_000_000;

export async function run({ cluster, count, deadlineMs, folder, say }: SoakContext): Promise<SoakResult> {
  const found = await restoreLoop(cluster, { entries: count, stages: 50, folder, deadlineMs, say });
  const rate = (seconds: number): string => `${Math.round(found.entries / Math.max(seconds, 0.1))} entries/s`;
  return {
    figures: {
      entries: `${found.entries} of ${count}`,
      chunks: `${found.chunks}`,
      "dated checkpoints": `${found.dated}`,
      archived: rate(found.archiveSeconds),
      restored: rate(found.restoreSeconds),
      verified: rate(found.verifySeconds),
      "peak memory": `${found.peakRssMiB} MiB`,
    },
    problems: found.problems,
  };
}
