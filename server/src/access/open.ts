import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import type { JsonObject } from "../core/json.ts";
import type { Playbook, Target } from "../playbooks/policy.ts";
import type { Tx } from "../store/database.ts";
import type { Access } from "./access.ts";
import { move, type GrantRow } from "./lifecycle.ts";

/** What a grant pins: the playbook and the target exactly as they were decided upon. */
export interface Pinned {
  playbook: Playbook;
  target: { name: string; kind: string; config: JsonObject };
}

export async function pin(tx: Tx, playbook: Playbook, target: Target): Promise<void> {
  const content: Pinned = { playbook, target: { name: target.name, kind: target.kind, config: target.config } };
  await tx
    .insertInto("playbook_versions")
    .values({ hash: playbook.hash, playbook: playbook.name, content: JSON.stringify(content) })
    .onConflict((c) => c.column("hash").doNothing())
    .execute();
}

export async function pinned(tx: Tx | Access["store"], hash: string): Promise<Pinned> {
  const row = await tx
    .selectFrom("playbook_versions")
    .select("content")
    .where("hash", "=", hash)
    .executeTakeFirstOrThrow();
  return row.content as unknown as Pinned;
}

/**
 * From approved to opening: eligibility is checked again, the window is fixed, and the lease's plan is stored, all before
 * anything happens on the target. @returns the lease to work on, or undefined when the grant failed instead.
 */
export async function beginOpening(access: Access, tx: Tx, grant: GrantRow): Promise<string | undefined> {
  const policy = access.policy();
  const approvals = await tx
    .selectFrom("approvals")
    .select("person")
    .where("grant_id", "=", grant.id)
    .where("round", "=", 0)
    .where("verdict", "=", "approve")
    .execute();
  const decision = policy.decide({
    action: "open",
    person: grant.requester,
    playbook: grant.playbook,
    reason: grant.reason,
    durationMs: grant.duration_ms,
    facts: policy.facts(grant.requester),
    approvedBy: approvals.map((approval) => approval.person),
  });
  const unchanged = policy.playbook(grant.playbook)?.hash === grant.playbook_hash;
  if (!decision.allow || !unchanged) {
    const text = unchanged ? decision.reasons.join(" ") : "The playbook changed after the request.";
    await move(tx, {
      ...{
        grant: grant.id,
        to: "failed",
        actor: "glasskey",
        data: { cause: unchanged ? "not_eligible" : "playbook_changed" },
      },
      set: {
        end_cause: unchanged ? "not_eligible" : "playbook_changed",
        end_text: text,
        closed_at: sql`clock_timestamp()`,
      },
    });
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
