import type { Clock } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";

/** When a session ends, by two clocks. Whichever says so first is right. */
export interface Deadline {
  readonly endsAtMs: number;
  /** Milliseconds left, negative once it is over. */
  remainingMs(): number;
  /**
   * After an extension was decided. The monotonic end moves by exactly as much as the one on the wall. One that is heard of
   * after a later one takes nothing back: an end only ever moves away.
   */
  move(endsAtMs: number): void;
}

export interface Deadlines {
  /** @throws GlassError `internal` unless the end is a finite number. */
  start(grant: string, endsAtMs: number): Deadline;
}

const REMEMBERED = 10_000;

/**
 * A wall clock that is set back must not lengthen a grant, neither for a session that runs nor for the next connection:
 * so the greatest distance between wall and monotonic clock seen at an opening is remembered per grant.
 */
export function createDeadlines(clock: Clock): Deadlines {
  const aheadByGrant = new Map<string, number>();
  return {
    start(grant, endsAtMs) {
      if (!Number.isFinite(endsAtMs)) throw new GlassError("internal", "a grant without an end opens nothing");
      const seen = aheadByGrant.get(grant) ?? Number.NEGATIVE_INFINITY;
      const aheadMs = Math.max(seen, clock.now().getTime() - clock.monotonicMs());
      aheadByGrant.delete(grant); // to the end of the map's order: the grant unused for longest is forgotten first
      aheadByGrant.set(grant, aheadMs);
      for (const oldest of aheadByGrant.keys()) {
        if (aheadByGrant.size <= REMEMBERED) break;
        aheadByGrant.delete(oldest);
      }
      let endMs = endsAtMs;
      return {
        get endsAtMs() {
          return endMs;
        },
        remainingMs: () => Math.min(endMs - aheadMs - clock.monotonicMs(), endMs - clock.now().getTime()),
        move(to) {
          if (!Number.isFinite(to)) throw new GlassError("internal", "an extension needs an end");
          endMs = Math.max(endMs, to);
        },
      };
    },
  };
}
