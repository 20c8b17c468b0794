import type { Access } from "./access.ts";
import { factsFor, observedAtRequest } from "./facts.ts";
import type { GrantRow } from "./lifecycle.ts";
import { decideOpening } from "./open.ts";
import { decidersOf } from "./tell.ts";
import { calledFor, mayOpenUnanswered } from "./unanswered.ts";

/** What a grant waits for at this moment, for people who look. Nothing is decided by it. */
export interface Waiting {
  readonly need: number;
  readonly missing: number;
  readonly quorum: readonly string[];
  /** Sides of `approve.from` that nobody has spoken for, in words; empty where there is one side only. */
  readonly sidesMissing: readonly string[];
  /** People whose yes would still count: who may approve, and has not said anything yet. */
  readonly mayDecide: readonly string[];
  /** Whether a page channel confirmed that it delivered the call. */
  readonly paged: boolean;
  /**
   * When it may open without an answer; before anybody was called, when it could at the earliest. Undefined where it will
   * not: no such playbook, a quorum, an unknown fact, an extension, a wait that ends after the time to decide.
   */
  readonly unansweredAt: Date | undefined;
}

/**
 * With the yeses that count by the policy in force, the use as it is now, and the evidence of the request: no source is
 * asked because somebody looks. @returns undefined for a grant that waits for nobody.
 */
export async function waitingFor(access: Access, grant: GrantRow): Promise<Waiting | undefined> {
  if (grant.state === "pending") return pending(access, grant);
  if (grant.state !== "active" || grant.extension_round === null) return undefined;
  const said = await saidBy(access, grant.id, grant.extension_round);
  const playbook = access.policy().playbook(grant.playbook);
  const need = Math.max(1, playbook?.approve.need ?? 1); // it was asked for because somebody has to agree
  const missing = Math.max(1, need - said.length);
  const mayDecide = decidersOf(access, grant).filter((name) => !said.includes(name));
  return { need, missing, quorum: [], sidesMissing: [], mayDecide, paged: false, unansweredAt: undefined };
}

async function pending(access: Access, grant: GrantRow): Promise<Waiting> {
  const { store } = access;
  const about = { person: grant.requester, playbook: grant.playbook, except: grant.id };
  const facts = await factsFor(access, store, { ...about, observed: observedAtRequest(grant) });
  const decision = await decideOpening(access, store, grant, facts);
  const said = await saidBy(access, grant.id, 0);
  const afterMs = access.policy().playbook(grant.playbook)?.approve.unanswered?.afterMs;
  const calledAt = await calledFor(store, grant.id);
  const unansweredAt = new Date((calledAt?.getTime() ?? facts.atMs) + (afterMs ?? 0));
  const never = afterMs === undefined || unansweredAt >= grant.decide_by || !mayOpenUnanswered(access, grant, facts);
  return {
    ...{ need: decision.need, missing: Math.max(decision.missing, 0), quorum: decision.quorum },
    sidesMissing: decision.clauses.flatMap(({ clause, held, text }) =>
      /^approve\.from\.\d+$/.test(clause) && !held ? [text.replace(/^agreed: /, "")] : [],
    ),
    mayDecide: decidersOf(access, grant).filter((name) => !said.includes(name)),
    paged: calledAt !== undefined,
    unansweredAt: never ? undefined : unansweredAt,
  };
}

async function saidBy(access: Access, grant: string, round: number): Promise<readonly string[]> {
  const rows = await access.store
    .selectFrom("approvals")
    .select("person")
    .where("grant_id", "=", grant)
    .where("round", "=", round)
    .execute();
  return rows.map(({ person }) => person);
}
