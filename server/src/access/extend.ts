import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { formatDuration } from "../core/duration.ts";
import { describe, GlassError } from "../core/errors.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Tx } from "../store/database.ts";
import type { Access, Observed } from "./access.ts";
import { closeIfDriftedSince } from "./drift.ts";
import { aboutGrant, factsFor, lockPlaybook, observe } from "./facts.ts";
import type { GrantRow } from "./lifecycle.ts";
import { pinned } from "./pins.ts";
import { denied } from "./request.ts";
import { decidersOf, tell } from "./tell.ts";

/**
 * Asks for a later end. A new decision with facts of its own, under the pinned playbook's `extend:`; where that needs
 * nobody it takes effect at once, else it waits for approvals of its own (`glass approve GRANT`). A grant that opened
 * without an answer is never extended without one.
 * @returns whether the end has moved. @throws GlassError `policy_denied` or `conflict`.
 */
export async function extendGrant(access: Access, person: string, grantId: string): Promise<{ extended: boolean }> {
  const shut = access.mayOpen();
  if (shut !== undefined) throw shut; // more time is new access, too
  const about = await aboutGrant(access, grantId);
  const { person: requester, playbook } = about;
  const observed = await observe(access, about);
  const actor = await pseudonymOf(access.store, person);
  const after = await access.store.transaction().execute(async (tx) => {
    const grant = await tx
      .selectFrom("grants")
      .selectAll()
      .where("id", "=", grantId)
      .forUpdate()
      .executeTakeFirstOrThrow();
    if (grant.state !== "active")
      throw new GlassError("conflict", `grant ${grantId} is ${grant.state}; only an active grant can be extended`);
    // A wider playbook does not widen an open grant, and nobody could say yes to more of a changed one.
    if (access.policy().playbook(playbook)?.hash !== grant.playbook_hash) {
      throw new GlassError("conflict", "the playbook changed after the request, so this grant is not extended", {
        next: "It ends when it would have ended. For more time, break the glass again.",
      });
    }
    const question = await questionOf(access, tx, grant, observed);
    const decision = access.policy().decide({ ...question, action: "request_extension", person, requester });
    if (!decision.allow) throw denied(decision);
    if (decision.need === 0 && !grant.opened_unanswered) {
      return applyExtension(access, tx, grant, { approvedBy: [], observed, actor });
    }
    if (grant.extension_round !== null) return undefined; // asked for already; the votes so far stand
    const asked = await tx
      .updateTable("grants")
      .set({
        // Never a number again that somebody was shown: one that was decided has its votes, one that in the end needed
        // nobody its extension.
        extension_round: sql`extensions_used + 1
          + (select coalesce(max(round), 0) from approvals where grant_id = ${grantId})`,
      })
      .where("id", "=", grantId)
      .returningAll()
      .executeTakeFirstOrThrow();
    const event = { actor, grant: grantId, target: grant.target, playbook: grant.playbook };
    await append(tx, { type: "grant.extension_requested", at: new Date(), ...event, data: { byMs: question.byMs } });
    await tell(access, tx, asked, {
      ...{ event: "extension_wanted", deciders: decidersOf(access, grant) },
      text: `${grant.requester} asks for ${formatDuration(question.byMs)} more on ${grant.target}.`,
      ...(asked.extension_round === null ? {} : { round: asked.extension_round }),
      ...(asked.ends_at === null ? {} : { until: asked.ends_at, expiresAt: asked.ends_at }),
    });
    return undefined;
  });
  if (after === undefined) return { extended: false };
  await after();
  return { extended: true };
}

/**
 * Moves the end, if the decision with these approvals allows it: grant and lease rows in the caller's transaction, which
 * holds the grant's row. Then, after the commit, what it returned is called: it moves the target's native expiry and the
 * live sessions' deadline. @returns undefined while approvals are missing.
 */
export async function applyExtension(
  access: Access,
  tx: Tx,
  grant: GrantRow,
  { approvedBy, observed, actor }: { approvedBy: readonly string[]; observed: Observed; actor: string },
): Promise<(() => Promise<void>) | undefined> {
  const shut = access.mayOpen();
  if (shut !== undefined) throw shut; // found while the sources were asked
  const question = await questionOf(access, tx, grant, observed);
  const decision = access
    .policy()
    .decide({ ...question, action: "extend", person: grant.requester, requester: grant.requester, approvedBy });
  if (grant.opened_unanswered && approvedBy.length === 0) return undefined;
  if (!decision.allow) {
    if (decision.missing > 0) return undefined;
    throw denied(decision);
  }
  const moved = await tx
    .updateTable("grants")
    .set((eb) => ({
      ends_at: sql`ends_at + ${question.byMs} * interval '1 millisecond'`,
      extensions_used: eb("extensions_used", "+", 1),
      extension_round: null,
    }))
    .where("id", "=", grant.id)
    .where("state", "=", "active")
    .where("extensions_used", "=", grant.extensions_used)
    .where(sql<boolean>`ends_at > clock_timestamp()`)
    .where(
      sql<boolean>`ends_at + ${question.byMs} * interval '1 millisecond' <= approved_at + max_ms * interval '1 millisecond'`,
    )
    .returningAll()
    .executeTakeFirst();
  const endsAt = moved?.ends_at;
  if (moved === undefined || endsAt === undefined || endsAt === null)
    throw new GlassError("conflict", "the grant is over, or the extension would pass the playbook's cap");
  const lease = await tx
    .updateTable("leases")
    .set({ ends_at: endsAt, extend_due: true, next_at: sql`clock_timestamp()` })
    .where("grant_id", "=", grant.id)
    .where("state", "=", "live")
    .returning("id")
    .executeTakeFirst();
  const data = { byMs: question.byMs, endsAt: endsAt.toISOString() };
  await append(tx, {
    type: "grant.extended",
    at: new Date(),
    actor,
    grant: grant.id,
    target: grant.target,
    playbook: grant.playbook,
    data,
  });
  const text = `${grant.requester} has ${formatDuration(question.byMs)} more on ${grant.target}.`;
  await tell(access, tx, moved, { event: "extended", text, until: endsAt });
  return async () => {
    // Live sessions do not wait for the target: its own expiry stops new logins only, and the lease's loop moves it.
    // It is decided and stored: what fails from here on is made up for, and no reason to tell the person that it failed.
    await Promise.all([
      access
        .cutter()
        .extend(grant.id, endsAt.getTime())
        .catch((error: unknown) => access.warn(`the open sessions of ${grant.id} keep their end: ${describe(error)}`)),
      lease === undefined ? undefined : access.kick(lease.id),
      closeIfDriftedSince(access, grant.id),
    ]);
  };
}

/** Locks the playbook and counts its use, so that what it returns holds until the transaction ends. */
async function questionOf(access: Access, tx: Tx, grant: GrantRow, observed: Observed) {
  const { playbook } = await pinned(tx, grant.playbook_hash);
  const byMs = playbook.time.extend?.byMs ?? 0;
  if (byMs === 0)
    throw new GlassError("policy_denied", `playbook ${grant.playbook} allows no extension`, {
      next: "Break the glass again when this grant has ended.",
    });
  const spanMs =
    grant.ends_at === null || grant.approved_at === null
      ? grant.duration_ms
      : grant.ends_at.getTime() - grant.approved_at.getTime();
  await lockPlaybook(tx, grant.playbook);
  const about = { person: grant.requester, playbook: grant.playbook, observed, except: grant.id };
  return {
    ...{ playbook: grant.playbook, reason: grant.reason, byMs, totalMs: spanMs + byMs },
    ...{ extensions: grant.extensions_used, facts: await factsFor(access, tx, about) },
  };
}
