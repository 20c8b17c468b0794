import { Worker } from "node:worker_threads";
import type { Random } from "./random.ts";
import type { FuzzWork, Outcome } from "./worker.ts";

/**
 * What each `NAME.fuzz.ts` exports. The parser's declared errors are caught inside `one`; whatever it throws is a crash.
 */
export interface FuzzTarget {
  /** Well-formed inputs to start from. */
  seeds: readonly Uint8Array[];
  /** Pieces of the language, put in at random. */
  words?: readonly string[];
  /** Feeds one input to the parser, and throws where an invariant is broken. `random` is for choices such as split points. */
  one: (input: Uint8Array, random: Random) => void | Promise<void>;
}

export interface FuzzOptions {
  /** `file:` URL of a module that is a FuzzTarget. */
  target: URL;
  /** The first input's seed; the nth input has this plus n. */
  seed: number;
  iterations: number;
  /** Stop starting new inputs after this long. */
  forMs?: number;
  /** One input that takes longer is a crash: the parser hangs. */
  hangsAfterMs?: number;
}

export type FuzzReport = { crashed: false; ran: number } | { crashed: true; ran: number; seed: number; why: string };

const HANGS_AFTER_MS = 20_000; // far above any input's time, also on a machine that does ten other things
const MAX_HEAP_MB = 512;

/**
 * Runs inputs in a thread of their own, so that a parser that hangs or eats all memory is seen and named, until one
 * crashes or all have run.
 */
export async function fuzz(options: FuzzOptions): Promise<FuzzReport> {
  const progress = new BigInt64Array(new SharedArrayBuffer(8));
  const { seed, iterations, forMs } = options;
  const work: FuzzWork = { target: options.target.href, seed, iterations, forMs: forMs ?? Infinity, progress };
  const worker = new Worker(new URL("./worker.ts", import.meta.url), {
    workerData: work,
    resourceLimits: { maxOldGenerationSizeMb: MAX_HEAP_MB },
  });
  const ran = (): number => Number(Atomics.load(progress, 0));
  const { promise, resolve } = Promise.withResolvers<FuzzReport>();
  const crash = (why: string): void => resolve({ crashed: true, ran: ran(), seed: (seed + ran()) >>> 0, why });

  const hangsAfterMs = options.hangsAfterMs ?? HANGS_AFTER_MS;
  let [last, since] = [-1, performance.now()];
  const watch = setInterval(() => {
    const now = ran();
    if (now !== last) [last, since] = [now, performance.now()];
    else if (performance.now() - since > hangsAfterMs) crash(`still running after ${hangsAfterMs} ms`);
  }, hangsAfterMs / 20);
  worker.on("message", (outcome: Outcome) => {
    if (outcome.ok) resolve({ crashed: false, ran: ran() });
    else crash(outcome.why);
  });
  worker.on("error", (error) => crash(error instanceof Error ? (error.stack ?? error.message) : String(error)));
  worker.on("exit", (code) => crash(`the thread ended with ${code}`));
  try {
    return await promise;
  } finally {
    clearInterval(watch);
    await worker.terminate();
  }
}
