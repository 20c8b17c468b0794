import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Decision } from "../playbooks/policy.ts";
import { nearest } from "../playbooks/problem.ts";
import type { Access } from "./access.ts";
import { move, OPEN_STATES } from "./lifecycle.ts";
import { beginOpening, pin } from "./open.ts";

const MAX_OPEN_GRANTS = 20; // each is a role on a target; a bound for a client that runs wild, not a policy

export interface BreakRequest {
  person: string;
  playbook: string;
  reason: string;
  /** In the requester's own words; stored encrypted, committed to in the log by the hash of the ciphertext. */
  why: string;
  incident?: string | undefined;
  /** Default: the playbook's max. */
  forMs?: number | undefined;
}

/** A policy's no as an error: every reason, and what would have to be true. */
export function denied(decision: Decision): GlassError {
  return new GlassError("policy_denied", decision.reasons.join(" ") || "The playbook does not allow this.", {
    ...(decision.wouldHold.length === 0 ? {} : { next: decision.wouldHold.join(" ") }),
    details: { clauses: decision.clauses.filter((clause) => !clause.held) },
  });
}

/**
 * Breaks the glass: makes a grant, and opens it at once where the playbook needs no human.
 * @returns the grant's id. When it opens at once, this resolves after the attempt to open: look at its state.
 * @throws GlassError `policy_denied` (logged), or `not_found` for a playbook that does not exist.
 */
export async function requestGrant(access: Access, request: BreakRequest): Promise<string> {
  const policy = access.policy();
  const playbook = policy.playbook(request.playbook);
  const target = playbook === undefined ? undefined : policy.target(playbook.target);
  if (playbook === undefined || target === undefined) {
    const near = nearest(
      request.playbook,
      policy.playbooks.map((known) => known.name),
    );
    throw new GlassError("not_found", `there is no playbook "${request.playbook.slice(0, 64)}"`, {
      next: near === undefined ? "`glass ls` lists the playbooks." : `Did you mean ${near}? \`glass ls\` lists all.`,
    });
  }
  const person = policy.person(request.person)?.name ?? request.person;
  const durationMs = request.forMs ?? playbook.time.maxMs;
  const facts = policy.facts(person);
  const decision = policy.decide({
    action: "request",
    person,
    playbook: playbook.name,
    reason: request.reason,
    durationMs,
    facts,
  });
  if (!decision.allow) {
    await access.store.transaction().execute(async (tx) => {
      await append(tx, {
        ...{
          type: "grant.refused",
          at: new Date(),
          actor: await pseudonymOf(tx, person),
          target: target.name,
          playbook: playbook.name,
        },
        data: { clauses: decision.clauses.filter((clause) => !clause.held).map((clause) => clause.clause) },
      });
    });
    throw denied(decision);
  }

  const grant = newId("grant");
  const why = access.keyring.seal({ table: "grants", row: grant, column: "why" }, Buffer.from(request.why, "utf8"));
  const lease = await access.store.transaction().execute(async (tx) => {
    const actor = await pseudonymOf(tx, person);
    const { count } = await tx
      .selectFrom("grants")
      .select((eb) => eb.fn.countAll<number>().as("count"))
      .where("requester", "=", person)
      .where("state", "in", ["pending", ...OPEN_STATES])
      .executeTakeFirstOrThrow();
    if (count >= MAX_OPEN_GRANTS) {
      throw new GlassError(
        "conflict",
        `${person} has ${MAX_OPEN_GRANTS} grants open, the most that one person may have`,
        {
          next: "End some of them: glass status",
        },
      );
    }
    await pin(tx, playbook, target);
    await tx
      .insertInto("grants")
      .values({
        id: grant,
        state: "pending",
        playbook: playbook.name,
        playbook_hash: playbook.hash,
        target: target.name,
        kind: target.kind,
        requester: person,
        reason: request.reason,
        why,
        incident: request.incident ?? null,
        need: decision.need,
        duration_ms: durationMs,
        max_ms: playbook.time.capMs,
        idle_ms: playbook.time.idleMs ?? null,
        decision: JSON.stringify(decision.clauses),
        decide_by: sql`clock_timestamp() + ${playbook.approve.withinMs} * interval '1 millisecond'`,
      })
      .execute();
    await append(tx, {
      ...{ type: "grant.requested", at: new Date(), actor, grant, target: target.name, playbook: playbook.name },
      data: {
        reason: request.reason,
        durationMs,
        need: decision.need,
        playbookHash: playbook.hash,
        whySha256: sha256(why).toString("hex"),
        ...(request.incident === undefined ? {} : { incidentSha256: sha256(request.incident).toString("hex") }),
      },
    });
    if (decision.need > 0) return undefined;
    return approveAndOpen(access, tx, grant, "glasskey");
  });
  if (lease !== undefined) await access.kick(lease);
  return grant;
}

/** From pending to approved and on to opening, in the caller's transaction; the window begins here. */
export async function approveAndOpen(
  access: Access,
  tx: Parameters<typeof move>[0],
  grant: string,
  actor: string,
): Promise<string | undefined> {
  const approved = await move(tx, {
    ...{ grant, to: "approved", guard: "beforeDeadline", actor },
    set: {
      // One instant for both: two calls of clock_timestamp() differ, and the end would lie past the playbook's cap.
      approved_at: sql`statement_timestamp()`,
      ends_at: sql`statement_timestamp() + duration_ms * interval '1 millisecond'`,
    },
  });
  return approved === undefined ? undefined : beginOpening(access, tx, approved);
}
