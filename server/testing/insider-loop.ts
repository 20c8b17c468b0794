import { randomInt } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { SharedCluster } from "./global.ts";
import { audit, backup, INSIDER, populate } from "./insider.ts";
import { startTestSystem } from "./system.ts";

export interface InsiderLoopResult {
  readonly rounds: number;
  /** Manipulations that were played, and of those the ones that the auditor found and named. */
  readonly played: number;
  readonly found: number;
  readonly entries: number;
  /** What `random` of these victims begins with: the same seed plays the same again. */
  readonly seed: number;
  readonly problems: readonly string[];
}

export interface InsiderLoopOptions {
  readonly rounds: number;
  readonly entries: number;
  /** A folder for what the auditor is given. */
  readonly folder: string;
  readonly seed?: number;
  readonly deadlineMs?: number;
  say?(line: string): void;
}

/** Each round plays everything that somebody with the store's superuser can do to the history, on other victims each time. */
export async function insiderLoop(cluster: SharedCluster, options: InsiderLoopOptions): Promise<InsiderLoopResult> {
  const { rounds, deadlineMs = Number.POSITIVE_INFINITY, seed = randomInt(2 ** 31), say = () => {} } = options;
  const random = generator(seed);
  const problems: string[] = [];
  const system = await startTestSystem(cluster);
  let [round, played, found, entries] = [0, 0, 0, 0];
  try {
    const remembered = await populate(system, options.entries);
    const restore = await backup(system);
    const look = async (): ReturnType<typeof audit> => {
      const folder = await mkdtemp(join(options.folder, "auditor-"));
      try {
        return await audit(system, remembered, folder);
      } finally {
        await rm(folder, { recursive: true });
      }
    };
    entries = (await look()).size;
    for (; round < rounds && performance.now() < deadlineMs; round += 1) {
      for (const way of INSIDER) {
        await way.act(system, random);
        played += 1;
        const report = await look();
        const named = report.problems.some(({ what, where }) => way.what.test(what) && way.where.test(where));
        if (!report.ok && named) found += 1;
        else problems.push(`round ${round}, ${way.name}: not found, or not named: ${JSON.stringify(report.problems)}`);
        await restore();
        const after = await look();
        if (!after.ok) throw new Error(`round ${round}, ${way.name}: the repair is not one`);
      }
      if ((round + 1) % 10 === 0) say(`${round + 1} rounds`);
    }
  } finally {
    await rm(`${system.config.dataDir}.kept`, { recursive: true, force: true });
    await system.dispose();
  }
  return { rounds: round, played, found, entries, seed, problems };
}

/** Numbers from 0 to 1 that follow from the seed: the multiply-with-carry of everybody's textbook, and good enough to choose by. */
function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}
