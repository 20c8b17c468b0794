import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Tx } from "../store/database.ts";
import type { Access, Observed } from "./access.ts";
import { applyExtension } from "./extend.ts";
import { aboutGrant, factsFor, lockPlaybook, observe, observedAtRequest, stillHolding } from "./facts.ts";
import { move, type GrantRow } from "./lifecycle.ts";
import { approveAndOpen, decideOpening } from "./open.ts";
import { denied } from "./request.ts";
import { tell } from "./tell.ts";

/** What a vote brought about. */
interface Outcome {
  readonly decided: boolean;
  readonly lease?: string | undefined;
  readonly after?: (() => Promise<void>) | undefined;
}

/**
 * One person's yes or no. Votes on one grant are taken one after the other (its row is locked), each is decided by the
 * policy in force at that moment, and a person has one vote. A yes while an extension is asked for counts for that
 * extension. Whether the yeses suffice is decided anew with each: a yes of somebody who may not approve any more, and a
 * playbook that has become a quorum since the request, leave the grant waiting.
 * @param shownRound which round the person was asked about, where they were: a vote never counts for another one.
 * @returns whether the vote brought the decision. When a yes opens the grant, the opening goes on after this resolves.
 * @throws GlassError `policy_denied` with the reason, `conflict` when there is nothing to vote on any more; for a yes,
 *   what `access.mayOpen` says while nothing new is opened.
 */
export async function vote(
  access: Access,
  person: string,
  grantId: string,
  verdict: "approve" | "deny",
  shownRound?: number,
): Promise<{ decided: boolean }> {
  const shut = verdict === "approve" ? access.mayOpen() : undefined;
  if (shut !== undefined) throw shut; // the yes can be given again later; a no counts at any time
  const about = await aboutGrant(access, grantId);
  const observed =
    verdict === "deny"
      ? undefined // a no needs no facts, and waits for no source
      : await observe(access, about);
  const name = access.policy().person(person)?.name ?? person;
  const actor = await pseudonymOf(access.store, name);
  const outcome = await access.store.transaction().execute(async (tx): Promise<Outcome> => {
    const grant = await tx
      .selectFrom("grants")
      .selectAll()
      .where("id", "=", grantId)
      .forUpdate()
      .executeTakeFirstOrThrow();
    const round = grant.state === "pending" ? 0 : grant.state === "active" ? grant.extension_round : null;
    if (round === null) throw nothingToDecide(grant, verdict);
    if (shownRound !== undefined && shownRound !== round) {
      throw new GlassError("conflict", "what you were asked has been decided meanwhile", {
        next: `\`glass status ${grantId}\` shows what is asked now.`,
      });
    }
    const approvedBy = await cast(access, tx, { grant, round, name, actor, verdict });
    if (observed === undefined) return refuse(access, tx, { grant, round, name, actor });
    if (round > 0) {
      const after = await applyExtension(access, tx, grant, { approvedBy, observed, actor });
      return { decided: after !== undefined, after };
    }
    return openIfEnough(access, tx, { grant, observed, actor });
  });
  if (outcome.lease !== undefined) void access.kick(outcome.lease);
  await outcome.after?.();
  return { decided: outcome.decided };
}

/** Counts the vote, if the policy in force lets this person vote. @returns everybody whose yes is on the books. */
async function cast(
  access: Access,
  tx: Tx,
  about: { grant: GrantRow; round: number; name: string; actor: string; verdict: "approve" | "deny" },
): Promise<readonly string[]> {
  const { grant, round, name, actor, verdict } = about;
  const policy = access.policy(); // read under the lock: whoever left the group since the click has no vote
  const votes = await tx
    .selectFrom("approvals")
    .select(["person", "verdict"])
    .where("grant_id", "=", grant.id)
    .where("round", "=", round)
    .execute();
  const approvedBy = votes.filter((row) => row.verdict === "approve").map((row) => row.person);
  const { ageMs, late } = await ageOf(tx, grant, round);
  if (late) {
    throw new GlassError("conflict", "the time to decide is over", {
      next: "The requester can break the glass again.",
    });
  }
  const { playbook, requester } = grant;
  const decision = policy.decide({ action: verdict, person: name, playbook, requester, ageMs, approvedBy });
  if (!decision.allow) throw denied(decision);
  if (policy.playbook(playbook)?.hash !== grant.playbook_hash) {
    throw new GlassError("conflict", "the playbook changed after the request", {
      next: "Ask the requester to break the glass again.",
    });
  }
  const fresh = await tx
    .insertInto("approvals")
    .values({ grant_id: grant.id, round, person: name, verdict })
    .onConflict((c) => c.columns(["grant_id", "round", "person"]).doNothing())
    .returning("person")
    .executeTakeFirst();
  if (fresh === undefined) throw new GlassError("conflict", `${name} has already decided on this grant`);
  const event = { at: new Date(), actor, grant: grant.id, target: grant.target, playbook, data: { round } };
  await append(tx, { type: verdict === "approve" ? "approval.given" : "approval.denied", ...event });
  return verdict === "approve" ? [...approvedBy, name] : approvedBy;
}

async function refuse(
  access: Access,
  tx: Tx,
  { grant, round, name, actor }: { grant: GrantRow; round: number; name: string; actor: string },
): Promise<Outcome> {
  if (round > 0) {
    await tx.updateTable("grants").set({ extension_round: null }).where("id", "=", grant.id).execute();
    const text = `${name} said no to more time; ${grant.id} ends when it would have ended.`;
    await tell(access, tx, grant, { event: "denied", round, text });
    return { decided: true };
  }
  const moved = await move(tx, {
    ...{ grant: grant.id, to: "denied", actor, guard: "beforeDeadline" },
    set: {
      ...{ end_cause: "denied", end_text: `denied by ${name}`, ended_by: name },
      closed_at: sql<Date>`clock_timestamp()`,
    },
  });
  if (moved === undefined) return { decided: false };
  await tell(access, tx, moved, { event: "denied", round, text: `${name} said no to ${grant.requester}.` });
  return { decided: true };
}

async function openIfEnough(
  access: Access,
  tx: Tx,
  { grant, observed, actor }: { grant: GrantRow; observed: Observed; actor: string },
): Promise<Outcome> {
  await lockPlaybook(tx, grant.playbook);
  const facts = await factsFor(access, tx, {
    ...{ person: grant.requester, playbook: grant.playbook, except: grant.id },
    observed: stillHolding(observed, observedAtRequest(grant)),
  });
  const decision = await decideOpening(access, tx, grant, facts);
  if (decision.missing > 0) {
    // What it needs may have grown since the request; whoever looks sees what is in force.
    const quorum = JSON.stringify(decision.quorum);
    await tx.updateTable("grants").set({ need: decision.need, quorum }).where("id", "=", grant.id).execute();
    return { decided: false };
  }
  const lease = await approveAndOpen(access, tx, grant, { decision, actor, observed });
  return { decided: true, lease };
}

async function ageOf(tx: Tx, grant: GrantRow, round: number): Promise<{ ageMs: number; late: boolean }> {
  const { age, late } = await tx
    .selectFrom("grants")
    .select([
      sql<number>`extract(epoch from clock_timestamp() - created_at) * 1000`.as("age"),
      (round === 0 ? sql<boolean>`decide_by <= clock_timestamp()` : sql<boolean>`ends_at <= clock_timestamp()`).as(
        "late",
      ),
    ])
    .where("id", "=", grant.id)
    .executeTakeFirstOrThrow();
  // An extension may be asked for long after the request; its own deadline is the grant's end.
  return { ageMs: round === 0 ? Math.max(0, Math.floor(age)) : 0, late };
}

function nothingToDecide(grant: GrantRow, verdict: "approve" | "deny"): GlassError {
  const open = grant.state === "approved" || grant.state === "opening" || grant.state === "active";
  return new GlassError(
    "conflict",
    `grant ${grant.id} is ${grant.state.replace("_", " ")}; there is nothing to ${verdict}`,
    {
      next: open
        ? "An open grant is ended with `glass end`, or by a security officer with `glass kill`."
        : "`glass status` shows what happened.",
    },
  );
}
