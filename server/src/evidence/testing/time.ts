import type { Clock } from "../../core/clock.ts";

/** A clock that moves when it is told to. */
export interface HeldClock extends Clock {
  advance(ms: number): void;
}

export function heldClock(start = "2026-11-20T02:14:00.000Z"): HeldClock {
  let ms = 0;
  return {
    now: () => new Date(Date.parse(start) + ms),
    monotonicMs: () => 1_000 + ms,
    advance(by) {
      ms += by;
    },
  };
}
