import type { GlassError } from "../core/errors.ts";
import type { Sealer } from "./sealer.ts";

/**
 * In place of a sealer whose journal does not fit the store: nothing more is sealed, and whoever reads a recording gets what
 * is sealed and then is told why there is no more.
 */
export function closedSealer(why: () => GlassError): Sealer {
  return {
    start: () => {},
    round: () => Promise.reject(why()),
    stats: () => ({ readSequence: 0, completeSequence: 0, bufferedBytes: 0, sessions: 0 }),
    follow: () => {
      throw why();
    },
    sealNow: () => Promise.reject(why()),
    close: () => Promise.resolve(),
  };
}
