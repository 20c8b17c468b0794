import { sleep } from "./core/clock.ts";
import { describe } from "./core/errors.ts";

/** What was started, by its name in the order of stopping. */
export type Parts = Map<Part, () => Promise<void> | void>;

type Part = (typeof STOP_ORDER)[number];

/** Nobody new, then the sessions, then what records them, then what the records are kept in. */
const STOP_ORDER = [
  "api",
  "timers",
  "policy",
  "leases",
  "notifier",
  "gateway",
  "bus",
  "sealer",
  "node",
  "sequencer",
  "witnesses",
  "sinks",
  "archive",
  "mirror",
  "export",
  "metrics",
  "store",
  "cluster",
  "lock",
] as const;

/** Stops what is there. One that fails is said and keeps none of the others from being stopped. */
export async function stopParts(parts: Parts, warn: (line: string) => void): Promise<void> {
  for (const name of STOP_ORDER) {
    try {
      await parts.get(name)?.();
    } catch (error) {
      warn(`stopping, ${name}: ${describe(error)}`);
    }
  }
}

/** Runs `work` at once and then again and again, `pauseMs` apart, until the signal. A failure is said and tried again. */
export async function every(
  pauseMs: number,
  signal: AbortSignal,
  work: () => Promise<void>,
  warn: (line: string) => void,
): Promise<void> {
  let last = "";
  while (!signal.aborted) {
    try {
      await work();
      last = "";
    } catch (error) {
      if (describe(error) !== last) warn(describe(error));
      last = describe(error);
    }
    await sleep(pauseMs, signal).catch(() => {});
  }
}
