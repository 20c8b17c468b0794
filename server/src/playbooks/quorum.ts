import { formatDuration } from "../core/duration.ts";
import type { Action, Playbook, Usage } from "./policy.ts";

/** Approvals that a quorum asks for: one more than usual, two at least, and one of every side. */
export function quorumNeed({ approve }: Playbook): number {
  return Math.max(2, approve.need + 1, approve.from.length);
}

/** Approvals that replace a fact which nobody knows, where the playbook asks for none: one of every side. */
export function unknownNeed({ approve }: Playbook): number {
  return approve.need > 0 ? approve.need : Math.max(1, approve.from.length);
}

/** Causes for which a playbook is a quorum until somebody signs or time has passed; also the ends of the clauses' ids. */
export type QuorumCause = "uses" | "cooldown" | "overdue";

/**
 * Why a use needs a quorum; empty where it does not. An extension is not another use: only an overdue review concerns it.
 * A count that is not a whole number is not a small one.
 */
export function quorumOf(playbook: Playbook, usage: Usage, action: Action | "list"): readonly QuorumCause[] {
  const { uses, cooldownMs } = playbook.limit;
  const extension = action === "request_extension" || action === "extend";
  const causes: QuorumCause[] = [];
  if (!extension && uses !== undefined && !(count(usage.unsigned) < uses.count)) causes.push("uses");
  if (!extension && cooldownMs !== undefined && !(sinceLast(usage) >= cooldownMs)) causes.push("cooldown");
  if (count(usage.overdue) !== 0) causes.push("overdue");
  return causes;
}

/** One sentence, without a name: it is kept with the grant. */
export function quorumText(cause: QuorumCause, playbook: Playbook, usage: Usage): string {
  const { name, limit } = playbook;
  switch (cause) {
    case "uses": {
      const per = formatDuration(limit.uses?.perMs ?? 0);
      const used = usage.unsigned === 1 ? "once" : `${usage.unsigned} times`;
      return `${name} was used ${used} within ${per} without a signed review; ${limit.uses?.count ?? 0} is the limit.`;
    }
    case "cooldown": {
      const ago = formatDuration(usage.sinceLastMs ?? 0);
      const wait = formatDuration(limit.cooldownMs ?? 0);
      return `The requester's last use of ${name} ended ${ago} ago; ${wait} must pass.`;
    }
    default:
      return `${usage.overdue === 1 ? "A review" : `${usage.overdue} reviews`} of ${name} ${usage.overdue === 1 ? "is" : "are"} overdue.`;
  }
}

/** As Cedar gets it: never used is as long ago as a number can say. */
export function sinceLast({ sinceLastMs }: Usage): number {
  if (sinceLastMs === undefined) return Number.MAX_SAFE_INTEGER;
  return Number.isSafeInteger(sinceLastMs) ? sinceLastMs : -1;
}

function count(value: number): number {
  return Number.isSafeInteger(value) && value >= 0 ? value : Number.POSITIVE_INFINITY;
}
