import { crashLoop } from "../server/testing/crash-loop.ts";
import type { SoakContext, SoakResult } from "./scenario.ts";

export const summary = "glass serve killed with SIGKILL under load, then everything looked at from outside";
export const unit = "rounds";
export const defaultCount = 200;

export async function run({ cluster, count, deadlineMs, say }: SoakContext): Promise<SoakResult> {
  const found = await crashLoop(cluster, { rounds: count, deadlineMs, say });
  return {
    figures: {
      kills: `${found.rounds} of ${count}`,
      "statements acknowledged by the target": `${found.acknowledged}`,
      "statements in the exported recordings": `${found.recorded}`,
      sessions: `${found.sessions}`,
      "log entries verified": `${found.entries}`,
      "chunks verified": `${found.chunks}`,
    },
    problems: found.problems,
  };
}
