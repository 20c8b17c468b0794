import { sql } from "kysely";
import { formatDuration } from "../core/duration.ts";
import { describe } from "../core/errors.ts";
import type { Decision, Facts } from "../playbooks/policy.ts";
import type { Tx } from "../store/database.ts";
import type { Access } from "./access.ts";
import { factsFor, lockPlaybook, observe, observedAtRequest } from "./facts.ts";
import { GUARDS, type GrantRow } from "./lifecycle.ts";
import { approveAndOpen } from "./open.ts";
import { decidersOf, tell } from "./tell.ts";

/**
 * Opens what nobody answered, where the playbook says so (`approve.unanswered`): a channel that wakes people confirmed that
 * it delivered the call, the wait since then is over (who was not called yet cannot have been silent), nobody said no, and the policy in force allows it on what the sources tell
 * now. What they told at the request does not help here: without a human, unknown is no. Safe in any number of processes.
 */
export async function openUnanswered(access: Access): Promise<void> {
  if (access.mayOpen() !== undefined) return;
  for (const id of await due(access)) {
    try {
      await attempt(access, id);
    } catch (error) {
      access.warn(`opening ${id} without an answer: ${describe(error)}`); // the others must not wait for this one
    }
  }
}

/** One question however many playbooks opted in: it is asked every second. */
async function due(access: Access): Promise<readonly string[]> {
  const opted = access
    .policy()
    .playbooks.flatMap(({ name, hash, approve: { unanswered } }) =>
      unanswered === undefined ? [] : [{ name, hash, afterMs: unanswered.afterMs }],
    );
  if (opted.length === 0) return [];
  const column = <K extends keyof (typeof opted)[number]>(key: K) => opted.map((playbook) => playbook[key]);
  const { rows } = await sql<{ id: string }>`
    select grants.id
    from unnest(${column("name")}::text[], ${column("hash")}::text[], ${column("afterMs")}::bigint[]) as opted(name, hash, after_ms)
    join grants on grants.playbook = opted.name and grants.playbook_hash = opted.hash
    where grants.state = 'pending' and ${GUARDS.unanswered}
      and ${CALLED_AT} + opted.after_ms * interval '1 millisecond' <= clock_timestamp()`.execute(access.store);
  return rows.map(({ id }) => id);
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
  if (lease !== undefined) void access.kick(lease); // a slow target holds up no other request
}

async function decide(access: Access, db: Access["store"] | Tx, grant: GrantRow, facts: Facts) {
  const calledAt = await calledFor(db, grant.id);
  const no = await db
    .selectFrom("approvals")
    .select("person")
    .where("grant_id", "=", grant.id)
    .where("verdict", "=", "deny")
    .executeTakeFirst();
  const waitedMs = calledAt === undefined ? 0 : Math.max(0, facts.atMs - calledAt.getTime());
  const decision = ask(access, grant, facts, { waitedMs, paged: calledAt !== undefined, denied: no !== undefined });
  return { allow: decision.allow, decision };
}

function ask(
  access: Access,
  grant: GrantRow,
  facts: Facts,
  so: { waitedMs: number; paged: boolean; denied: boolean },
): Decision {
  const forMs = access.policy().playbook(grant.playbook)?.approve.unanswered?.forMs ?? 0;
  return access.policy().decide({
    ...{ action: "open_unanswered", person: grant.requester, playbook: grant.playbook, reason: grant.reason, facts },
    ...{ durationMs: Math.min(grant.duration_ms, forMs), ...so },
  });
}

/** Whether it would open once the wait is over and a page is delivered, as far as `facts` go; for people who look. */
export function mayOpenUnanswered(access: Access, grant: GrantRow, facts: Facts): boolean {
  const waitedMs = access.policy().playbook(grant.playbook)?.approve.unanswered?.afterMs;
  return waitedMs !== undefined && ask(access, grant, facts, { waitedMs, paged: true, denied: false }).allow;
}

/** When a channel that wakes people first confirmed that it delivered the call for this grant; undefined: not yet. */
export async function calledFor(db: Access["store"] | Tx, grant: string): Promise<Date | undefined> {
  const row = await db.selectFrom("grants").select(CALLED_AT.as("at")).where("id", "=", grant).executeTakeFirst();
  return row?.at ?? undefined;
}

const CALLED_AT = sql<Date | null>`(select min(notices.delivered_at) from notices where notices.grant_id = grants.id
  and notices.event = 'approval_wanted' and notices.page)`;
