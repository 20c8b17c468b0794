import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import type { Decision, Facts } from "../playbooks/policy.ts";
import type { Tx } from "../store/database.ts";
import type { Access, Observed } from "./access.ts";
import { observationsLog } from "./facts.ts";
import { move, type GrantRow } from "./lifecycle.ts";
import { pinned } from "./pins.ts";
import { tell } from "./tell.ts";

/** The decision about opening a grant with the yeses that it has. Votes of people who may not approve any more count for nothing. */
export async function decideOpening(
  access: Access,
  tx: Tx | Access["store"],
  grant: GrantRow,
  facts: Facts,
): Promise<Decision> {
  const approvals = await tx
    .selectFrom("approvals")
    .select("person")
    .where("grant_id", "=", grant.id)
    .where("round", "=", 0)
    .where("verdict", "=", "approve")
    .execute();
  return access.policy().decide({
    ...{ action: "open", person: grant.requester, playbook: grant.playbook, reason: grant.reason },
    ...{ durationMs: grant.duration_ms, facts, approvedBy: approvals.map((approval) => approval.person) },
  });
}

/**
 * From pending to approved and on to opening, in the caller's transaction; the window begins here. Nothing has happened on
 * the target yet: the window is fixed and the lease's plan is stored first. A decision that says no, or a playbook that
 * changed after the request, makes the grant fail instead.
 * @param how.decision of this moment, in this transaction. @param how.observed what it stood on, where the sources were
 * asked again since the request; for the log. @returns the lease, to be kicked after the commit.
 */
export async function approveAndOpen(
  access: Access,
  tx: Tx,
  grant: GrantRow,
  how: { decision: Decision; actor: string; observed?: Observed; unanswered?: { forMs: number } },
): Promise<string | undefined> {
  const { decision, actor, observed, unanswered } = how;
  const shut = access.mayOpen();
  if (shut !== undefined) throw shut; // found since the caller asked
  const duration =
    unanswered === undefined ? sql<number>`duration_ms` : sql<number>`least(duration_ms, ${unanswered.forMs}::bigint)`;
  const approved = await move(tx, {
    ...{ grant: grant.id, to: "approved", actor, guard: unanswered === undefined ? "beforeDeadline" : "unanswered" },
    set: {
      // One instant for both: two calls of clock_timestamp() differ, and the end would lie past the playbook's cap.
      approved_at: sql`statement_timestamp()`,
      ends_at: sql`statement_timestamp() + ${duration} * interval '1 millisecond'`,
      ...(unanswered === undefined ? {} : { duration_ms: duration, opened_unanswered: true }),
    },
    data: {
      ...(unanswered === undefined ? {} : { unanswered: true, forMs: unanswered.forMs }),
      ...(observed === undefined ? {} : { evidence: observationsLog(observed) }),
    },
  });
  if (approved === undefined) return undefined;
  const unchanged = access.policy().playbook(grant.playbook)?.hash === grant.playbook_hash;
  if (!decision.allow || !unchanged) {
    const cause = unchanged ? "not_eligible" : "playbook_changed";
    const text = unchanged ? decision.reasons.join(" ").slice(0, 500) : "The playbook changed after the request.";
    const set = { end_cause: cause, end_text: text, closed_at: sql<Date>`clock_timestamp()` };
    const failed = await move(tx, { grant: grant.id, to: "failed", actor: "glasskey", data: { cause }, set });
    if (failed !== undefined) {
      await tell(access, tx, failed, { event: "failed", text: `Nothing was opened for ${grant.requester}: ${text}` });
    }
    return undefined;
  }
  const opening = await move(tx, { grant: grant.id, to: "opening", actor: "glasskey", guard: "beforeEnd" });
  return opening === undefined ? undefined : planLease(access, tx, opening);
}

/** Stores a new lease with its whole plan. @returns its id, to be kicked after the commit. */
export async function planLease(access: Access, tx: Tx, grant: GrantRow): Promise<string> {
  const { playbook, target } = await pinned(tx, grant.playbook_hash);
  const kind = access.kinds.get(target.kind);
  if (kind === undefined || grant.ends_at === null)
    throw new GlassError("internal", `grant ${grant.id} cannot be opened`);
  const lease = newId("lease");
  const plan = kind.driver.plan({
    install: access.install,
    lease,
    target: target.name,
    config: target.config,
    scope: playbook.scope,
    endsAt: grant.ends_at,
  });
  await tx
    .insertInto("leases")
    .values({
      id: lease,
      grant_id: grant.id,
      target: target.name,
      kind: target.kind,
      state: "planned",
      plan: access.keyring.seal({ table: "leases", row: lease, column: "plan" }, Buffer.from(JSON.stringify(plan))),
      install: access.install,
      ends_at: grant.ends_at,
      worst_case_revoke_ms: kind.promises(target.config).worstCaseRevokeMs,
    })
    .execute();
  await append(tx, {
    type: "lease.planned",
    at: new Date(),
    actor: "glasskey",
    grant: grant.id,
    lease,
    target: target.name,
  });
  return lease;
}
