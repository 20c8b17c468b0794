// The thread that feeds a parser; see harness.ts.
import { getHeapStatistics } from "node:v8";
import { parentPort, workerData } from "node:worker_threads";
import type { FuzzTarget } from "./harness.ts";
import { mutate } from "./mutate.ts";
import { createRandom } from "./random.ts";

export interface FuzzWork {
  target: string;
  seed: number;
  iterations: number;
  forMs: number;
  /** How many inputs are done, for the one who watches. */
  progress: BigInt64Array;
}

export type Outcome = { ok: true } | { ok: false; why: string };

const MAX_INPUT_GROWTH_BYTES = 64 << 20; // inputs have at most 64 KiB; more is memory for a length that was announced
const MAX_RUN_GROWTH_BYTES = 256 << 20;

const { target, seed, iterations, forMs, progress } = workerData as FuzzWork;
const { seeds, words = [], one } = (await import(target)) as FuzzTarget;
const external = (): number => getHeapStatistics().external_memory;

async function run(): Promise<Outcome> {
  const until = performance.now() + forMs;
  const atStart = external();
  for (let n = 0; n < iterations && performance.now() < until; n += 1) {
    const random = createRandom(seed + n);
    const input = mutate(seeds, words, random);
    const before = external();
    try {
      await one(input, random);
    } catch (error) {
      return { ok: false, why: error instanceof Error ? (error.stack ?? error.message) : String(error) };
    }
    const grown = external() - before;
    if (grown > MAX_INPUT_GROWTH_BYTES) return { ok: false, why: `one input took ${grown} bytes of memory` };
    Atomics.add(progress, 0, 1n);
  }
  const grown = external() - atStart;
  if (grown > MAX_RUN_GROWTH_BYTES) return { ok: false, why: `memory grew by ${grown} bytes over the run` };
  return { ok: true };
}

parentPort?.postMessage(await run());
