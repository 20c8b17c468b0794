import type { Promises } from "../target.ts";

/**
 * VALID UNTIL ends logins, not sessions; Glasskey ends those. The bound covers a few objects locked by others, for which
 * revocation waits 5 seconds and comes back.
 */
export function promisesOf(): Promises {
  return { nativeExpiry: "login", killsLiveSessions: true, worstCaseRevokeMs: 60_000 };
}
