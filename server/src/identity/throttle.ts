import type { Clock } from "../core/clock.ts";

/** Counts failures per key in a sliding window. Bounded: beyond `maxKeys`, the oldest keys are forgotten first. */
export interface Throttle {
  /** Milliseconds to wait before the next attempt; 0 when it may go ahead now. */
  waitMs(key: string): number;
  failed(key: string): void;
  succeeded(key: string): void;
}

/** After `free` failures each further one doubles the wait, from 1 s up to `maxWaitMs`. */
export function createThrottle(clock: Clock, { free = 5, maxWaitMs = 300_000, maxKeys = 10_000 } = {}): Throttle {
  const failures = new Map<string, { count: number; lastMs: number }>();
  const penaltyMs = (count: number): number =>
    count < free ? 0 : Math.min(maxWaitMs, 1000 * 2 ** Math.min(30, count - free));
  return {
    waitMs(key) {
      const entry = failures.get(key);
      return entry === undefined
        ? 0
        : Math.max(0, Math.ceil(entry.lastMs + penaltyMs(entry.count) - clock.monotonicMs()));
    },
    failed(key) {
      const entry = failures.get(key);
      const stale = entry === undefined || clock.monotonicMs() - entry.lastMs > 2 * maxWaitMs;
      failures.delete(key);
      failures.set(key, { count: stale ? 1 : entry.count + 1, lastMs: clock.monotonicMs() });
      const oldest = failures.keys().next();
      if (failures.size > maxKeys && oldest.done !== true) failures.delete(oldest.value);
    },
    succeeded: (key) => void failures.delete(key),
  };
}
