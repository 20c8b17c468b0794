import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Tx } from "../store/database.ts";
import type { Access } from "./access.ts";
import { applyExtension } from "./extend.ts";
import { move, type GrantRow } from "./lifecycle.ts";
import { approveAndOpen, denied } from "./request.ts";

/**
 * One person's yes or no. Votes on one grant are taken one after the other (its row is locked), each is decided by the
 * policy in force, and a person has one vote. A yes while an extension is asked for counts for that extension.
 * @returns whether the vote brought the decision. When a yes opens the grant, the opening goes on after this resolves.
 * @throws GlassError `policy_denied` with the reason, `conflict` when there is nothing to vote on any more.
 */
export async function vote(
  access: Access,
  person: string,
  grantId: string,
  verdict: "approve" | "deny",
): Promise<{ decided: boolean }> {
  const policy = access.policy();
  const name = policy.person(person)?.name ?? person;
  const actor = await pseudonymOf(access.store, name);
  const { lease, after, decided } = await access.store.transaction().execute(async (tx) => {
    const grant = await tx.selectFrom("grants").selectAll().where("id", "=", grantId).forUpdate().executeTakeFirst();
    if (grant === undefined) throw new GlassError("not_found", `there is no grant ${grantId.slice(0, 40)}`);
    const round = grant.state === "pending" ? 0 : grant.state === "active" ? grant.extension_round : null;
    if (round === null) throw nothingToDecide(grant, verdict);

    const votes = await tx
      .selectFrom("approvals")
      .select(["person", "verdict"])
      .where("grant_id", "=", grantId)
      .where("round", "=", round)
      .execute();
    const approvedBy = votes.filter((row) => row.verdict === "approve").map((row) => row.person);
    const { ageMs, late } = await ageOf(tx, grant, round);
    if (late) {
      throw new GlassError("conflict", "the time to decide is over", {
        next: "The requester can break the glass again.",
      });
    }
    const decision = policy.decide({
      action: verdict,
      person: name,
      playbook: grant.playbook,
      requester: grant.requester,
      ageMs,
      approvedBy,
    });
    if (!decision.allow) throw denied(decision);
    if (policy.playbook(grant.playbook)?.hash !== grant.playbook_hash) {
      throw new GlassError("conflict", "the playbook changed after the request", {
        next: "Ask the requester to break the glass again.",
      });
    }
    const fresh = await tx
      .insertInto("approvals")
      .values({ grant_id: grantId, round, person: name, verdict })
      .onConflict((c) => c.columns(["grant_id", "round", "person"]).doNothing())
      .returning("person")
      .executeTakeFirst();
    if (fresh === undefined) throw new GlassError("conflict", `${name} has already decided on this grant`);
    const event = {
      at: new Date(),
      actor,
      grant: grantId,
      target: grant.target,
      playbook: grant.playbook,
      data: { round },
    };
    await append(tx, { type: verdict === "approve" ? "approval.given" : "approval.denied", ...event });

    if (verdict === "deny") {
      if (round > 0) {
        await tx.updateTable("grants").set({ extension_round: null }).where("id", "=", grantId).execute();
        return { lease: undefined, after: undefined, decided: true };
      }
      const set = {
        end_cause: "denied",
        end_text: `denied by ${name}`,
        ended_by: name,
        closed_at: sql<Date>`clock_timestamp()`,
      };
      const moved = await move(tx, { grant: grantId, to: "denied", actor, guard: "beforeDeadline", set });
      return { lease: undefined, after: undefined, decided: moved !== undefined };
    }
    if (round > 0) {
      const extended = await applyExtension(access, tx, grant, [...approvedBy, name], actor);
      return { lease: undefined, after: extended, decided: extended !== undefined };
    }
    if (approvedBy.length + 1 < grant.need) return { lease: undefined, after: undefined, decided: false };
    const opened = await approveAndOpen(access, tx, grantId, actor);
    return { lease: opened, after: undefined, decided: true };
  });
  if (lease !== undefined) void access.kick(lease);
  if (after !== undefined) await after();
  return { decided };
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
