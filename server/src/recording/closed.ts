import type { GlassError } from "../core/errors.ts";
import type { Sealer } from "./sealer.ts";

/**
 * In place of a sealer whose journal does not fit the store: nothing more is sealed, and whoever reads a recording gets what
 * is sealed and then is told why there is no more.
 */
export function closedSealer(why: () => GlassError): Omit<Sealer, "stats"> {
  return {
    start: () => {},
    round: () => Promise.reject(why()),
    follow: () => {
      throw why();
    },
    sealNow: () => Promise.reject(why()),
    close: () => Promise.resolve(),
  };
}
