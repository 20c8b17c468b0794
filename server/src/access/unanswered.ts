import { sql } from "kysely";
import { formatDuration } from "../core/duration.ts";
import { describe } from "../core/errors.ts";
import type { Facts, Playbook } from "../playbooks/policy.ts";
import type { Tx } from "../store/database.ts";
import type { Access } from "./access.ts";
import { factsFor, lockPlaybook, observe, observedAtRequest } from "./facts.ts";
import { GUARDS, type GrantRow } from "./lifecycle.ts";
import { approveAndOpen } from "./open.ts";
import { decidersOf, tell } from "./tell.ts";

/**
 * Opens what nobody answered, where the playbook says so (`approve.unanswered`): the wait is over, a channel that wakes
 * people confirmed that it delivered the call, nobody said no, and the policy in force allows it on what the sources tell
 * now. What they told at the request does not help here: without a human, unknown is no. Safe in any number of processes.
 */
export async function openUnanswered(access: Access): Promise<void> {
  const opted = access.policy().playbooks.filter(({ approve }) => approve.unanswered !== undefined);
  for (const playbook of opted) {
    for (const { id } of await due(access, playbook)) {
      try {
        await attempt(access, id);
      } catch (error) {
        access.warn(`opening ${id} without an answer: ${describe(error)}`); // the others must not wait for this one
      }
    }
  }
}

function due(access: Access, playbook: Playbook): Promise<{ id: string }[]> {
  const afterMs = playbook.approve.unanswered?.afterMs ?? Number.MAX_SAFE_INTEGER;
  return access.store
    .selectFrom("grants")
    .select("id")
    .where("playbook", "=", playbook.name)
    .where("playbook_hash", "=", playbook.hash)
    .where("state", "=", "pending")
    .where(sql<boolean>`created_at + ${afterMs} * interval '1 millisecond' <= clock_timestamp()`)
    .where(GUARDS.unanswered)
    .execute();
}

async function attempt(access: Access, id: string): Promise<void> {
  const grant = await access.store.selectFrom("grants").selectAll().where("id", "=", id).executeTakeFirstOrThrow();
  const about = { person: grant.requester, playbook: grant.playbook, except: grant.id };
  // First without asking anybody: what was not so at the request needs no source each second.
  const early = await factsFor(access, access.store, { ...about, observed: observedAtRequest(grant) });
  if (!(await decide(access, access.store, grant, early)).allow) return;
  const observed = await observe(access, { ...about, incident: grant.incident ?? undefined });
  const lease = await access.store.transaction().execute(async (tx) => {
    const row = await tx.selectFrom("grants").selectAll().where("id", "=", id).forUpdate().executeTakeFirstOrThrow();
    if (row.state !== "pending") return undefined; // somebody answered meanwhile, or took it back
    await lockPlaybook(tx, row.playbook);
    const facts = await factsFor(access, tx, { ...about, observed });
    const { allow, decision } = await decide(access, tx, row, facts);
    const unanswered = access.policy().playbook(row.playbook)?.approve.unanswered;
    if (!allow || unanswered === undefined || access.policy().playbook(row.playbook)?.hash !== row.playbook_hash) {
      return undefined;
    }
    const forMs = unanswered.forMs;
    const how = { decision, actor: "glasskey", observed, unanswered: { forMs } };
    const opened = await approveAndOpen(access, tx, row, how);
    if (opened === undefined) return undefined;
    const shorter = Math.min(row.duration_ms, forMs);
    await tell(access, tx, row, {
      ...{ event: "opened_unanswered", deciders: decidersOf(access, row) },
      until: new Date(facts.atMs + shorter),
      text: `Nobody answered ${row.requester} within ${formatDuration(unanswered.afterMs)}: ${row.playbook} opens ${row.target} for ${formatDuration(shorter)} without approval. To stop it: glass end ${row.id}`,
    });
    return opened;
  });
  if (lease !== undefined) await access.kick(lease);
}

async function decide(access: Access, db: Access["store"] | Tx, grant: GrantRow, facts: Facts) {
  const paged = await pagedFor(db, grant.id);
  const no = await db
    .selectFrom("approvals")
    .select("person")
    .where("grant_id", "=", grant.id)
    .where("verdict", "=", "deny")
    .executeTakeFirst();
  const forMs = access.policy().playbook(grant.playbook)?.approve.unanswered?.forMs ?? 0;
  const decision = access.policy().decide({
    ...{ action: "open_unanswered", person: grant.requester, playbook: grant.playbook, reason: grant.reason, facts },
    durationMs: Math.min(grant.duration_ms, forMs),
    waitedMs: Math.max(0, facts.atMs - grant.created_at.getTime()),
    ...{ paged, denied: no !== undefined },
  });
  return { allow: decision.allow, decision };
}

/** Whether a channel that wakes people confirmed that it delivered the call for this grant. */
export async function pagedFor(db: Access["store"] | Tx, grant: string): Promise<boolean> {
  const row = await db
    .selectFrom("notices")
    .select("id")
    .where("grant_id", "=", grant)
    .where("event", "=", "approval_wanted")
    .where("page", "=", true)
    .where("delivered_at", "is not", null)
    .executeTakeFirst();
  return row !== undefined;
}
