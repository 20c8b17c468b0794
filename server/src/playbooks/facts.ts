import type { Facts, Usage } from "./policy.ts";

/** A playbook that nobody has used, with no review waiting. */
export const NO_USAGE: Usage = { unsigned: 0, open: 0, overdue: 0 };

/** No fact from outside: every rota is unknown, no incident is named, and the playbook was not used. */
export function emptyFacts(atMs: number): Facts {
  return { oncall: {}, incident: { state: "none" }, usage: NO_USAGE, atMs };
}
