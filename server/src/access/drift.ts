import canonicalize from "canonicalize";
import { NO_USAGE } from "../playbooks/facts.ts";
import type { Evidence, Facts, Policy } from "../playbooks/policy.ts";
import type { Tx } from "../store/database.ts";
import type { Access } from "./access.ts";
import { beginClosing, carryOut } from "./close.ts";
import { observedAtRequest, rotasOf } from "./facts.ts";
import type { GrantRow } from "./lifecycle.ts";
import { pinned, type Pinned } from "./pins.ts";

/**
 * After another policy came into force: closes every open grant that the new policy would not give, or whose scope or
 * target it changed. What was approved stays approved, and a wider policy does not widen an open grant: that goes by the
 * playbook it pinned. May run in any number of processes at once, and again at any time. A grant that cannot be judged keeps
 * no other from being closed. @throws the first failure, once all were looked at.
 *
 * Only the rules drift. What was true at the request is still true for this grant: who was on call, which incident was
 * open, the hour of the week. How often the playbook was used since does not matter.
 */
export async function closeDrifted(access: Access, policy: Policy): Promise<void> {
  const grants = await access.store
    .selectFrom("grants")
    .selectAll()
    .where("state", "in", ["approved", "opening", "active"])
    .execute();
  const failures: unknown[] = [];
  for (const grant of grants) await closeIfDrifted(access, policy, grant).catch((error) => failures.push(error));
  if (failures.length > 0) throw failures[0];
}

/**
 * The same for a grant that is about to become active, in the caller's transaction, which then holds its row. A policy that
 * came into force while the opening was being stored did not find it among the open ones; from here on the next one does.
 */
export async function closeIfDriftedMeanwhile(access: Access, tx: Tx, id: string): Promise<void> {
  const grant = await tx.selectFrom("grants").selectAll().where("id", "=", id).forUpdate().executeTakeFirstOrThrow();
  if (grant.state !== "opening") return;
  const text = whyDrifted(access.policy(), grant, await pinned(tx, grant.playbook_hash));
  if (text !== undefined) await beginClosing(access, tx, { grant: id, actor: "glasskey", cause: "drift", text });
}

/**
 * The same for a grant whose end was just moved: a policy that came into force between the decision and the commit looked at
 * it with its end before.
 */
export async function closeIfDriftedSince(access: Access, id: string): Promise<void> {
  const grant = await access.store.selectFrom("grants").selectAll().where("id", "=", id).executeTakeFirstOrThrow();
  if (grant.state === "active") await closeIfDrifted(access, access.policy(), grant);
}

async function closeIfDrifted(access: Access, policy: Policy, grant: GrantRow): Promise<void> {
  const text = whyDrifted(policy, grant, await pinned(access.store, grant.playbook_hash));
  if (text === undefined) return;
  const moved = await access.store
    .transaction()
    .execute((tx) => beginClosing(access, tx, { grant: grant.id, actor: "glasskey", cause: "drift", text }));
  if (moved !== undefined) void carryOut(access, grant.id, { code: "drift", text });
}

function whyDrifted(policy: Policy, grant: GrantRow, before: Pinned): string | undefined {
  const now = policy.playbook(grant.playbook);
  const target = now === undefined ? undefined : policy.target(now.target);
  if (now === undefined || target === undefined) return "its playbook was removed";
  // The store gives keys in another order. What a scope means is the kind's; any change of it counts as a narrower one.
  if (canonicalize(now.scope) !== canonicalize(before.playbook.scope)) return "the scope of its playbook changed";
  if (now.target !== before.target.name || canonicalize(target.config) !== canonicalize(before.target.config)) {
    return "the target of its playbook changed";
  }
  const decision = policy.decide({
    ...{ action: "request", person: grant.requester, playbook: grant.playbook, reason: grant.reason },
    ...{ durationMs: grant.duration_ms, facts: factsAtRequest(policy, grant) },
  });
  if (!decision.allow) return decision.reasons[0] ?? "its playbook changed";
  const wholeMs =
    grant.ends_at === null || grant.approved_at === null ? 0 : grant.ends_at.getTime() - grant.approved_at.getTime();
  return wholeMs > now.time.capMs ? "it is longer than its playbook now allows" : undefined;
}

/**
 * Nobody asked at the request about a rota that only the new policy names. A static one tells by itself. Of another one
 * nothing is known: it does not let the grant go on, and it does not keep it from a denial.
 */
function factsAtRequest(policy: Policy, grant: GrantRow): Facts {
  const observed = observedAtRequest(grant);
  const denied = new Set(
    policy.denials.flatMap(({ who }) => who.flatMap(({ by, name }) => (by === "oncall" ? [name] : []))),
  );
  const playbook = policy.playbook(grant.playbook);
  const requester = policy.person(grant.requester)?.name;
  const valueOf = (name: string): Evidence => {
    const known = Object.hasOwn(observed.oncall, name) ? observed.oncall[name] : undefined;
    if (known !== undefined) return known;
    const rota = policy.rotas.find((candidate) => candidate.name === name);
    if (rota !== undefined && "people" in rota) return rota.people.some((one) => one === requester) ? "true" : "false";
    return denied.has(name) ? "unknown" : "false";
  };
  const rotas = playbook === undefined ? [] : rotasOf(policy, [playbook]);
  return {
    oncall: Object.fromEntries(rotas.map((name) => [name, valueOf(name)])),
    incident: observed.incident,
    usage: NO_USAGE,
    atMs: grant.created_at.getTime(),
  };
}
