import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { sha256 } from "../core/bytes.ts";
import { formatDuration } from "../core/duration.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Decision, Facts, Playbook, Target } from "../playbooks/policy.ts";
import { nearest } from "../playbooks/problem.ts";
import type { Tx } from "../store/database.ts";
import type { Access, Observed } from "./access.ts";
import { factsFor, lockPlaybook, observationsJson, observationsLog, observe } from "./facts.ts";
import { OPEN_STATES } from "./lifecycle.ts";
import { approveAndOpen, decideOpening } from "./open.ts";
import { pin } from "./pins.ts";
import { decidersOf, tell } from "./tell.ts";

const MAX_OPEN_GRANTS = 20; // each is a role on a target; a bound for a client that runs wild, not a policy
/** Requests that came to nothing, in so short a time: each called people, who must still hear the next one's call. */
const MAX_FRUITLESS = 20;
const FRUITLESS_MS = 600_000;
const MAX_WHY_LENGTH = 2_000;
const MAX_INCIDENT_LENGTH = 200;
const SHOWN_INCIDENTS = 8; // what a person can choose from on one screen

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
 * @throws GlassError `policy_denied` (logged), `usage`, or `not_found` for a playbook that does not exist; what
 *   `access.mayOpen` says while nothing new is opened.
 */
export async function requestGrant(access: Access, request: BreakRequest): Promise<string> {
  const shut = access.mayOpen();
  if (shut !== undefined) throw shut; // before anybody is called, or a request is kept that could not open
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
  checkText(request);
  const person = policy.person(request.person)?.name ?? request.person;
  const durationMs = request.forMs ?? playbook.time.maxMs;
  const incident = request.incident;
  const observed = await observe(access, { person, playbook: playbook.name, incident });
  const outcome = await access.store.transaction().execute(async (tx) => {
    const actor = await pseudonymOf(tx, person);
    await lockPlaybook(tx, playbook.name);
    const facts = await factsFor(access, tx, { person, playbook: playbook.name, observed });
    const question = {
      action: "request",
      person,
      playbook: playbook.name,
      reason: request.reason,
      durationMs,
    } as const;
    const decision = policy.decide({ ...question, facts });
    if (!decision.allow) {
      const clauses = decision.clauses.filter((clause) => !clause.held).map((clause) => clause.clause);
      const event = {
        type: "grant.refused",
        at: new Date(),
        actor,
        target: target.name,
        playbook: playbook.name,
      } as const;
      await append(tx, { ...event, data: { clauses } });
      return { refused: decision, facts };
    }
    await checkOpenGrants(tx, person);
    const bundle = policy.hash;
    return create(access, tx, {
      ...{ request, person, actor, playbook, target, bundle, durationMs, observed, decision, facts },
    });
  });
  if ("refused" in outcome)
    throw await refusal(access, request, outcome.refused, { person, playbook, facts: outcome.facts });
  if (outcome.lease !== undefined) await access.kick(outcome.lease);
  return outcome.grant;
}

/** The same bounds as the API's; here they hold for every caller. */
function checkText({ why, incident }: BreakRequest): void {
  const length = why.trim().length;
  if (length < 3 || length > MAX_WHY_LENGTH) {
    throw new GlassError("usage", "why is required, in 3 to 2,000 characters", {
      next: "Say in a few words what is broken.",
    });
  }
  if (incident !== undefined && (incident.trim() === "" || incident.length > MAX_INCIDENT_LENGTH)) {
    throw new GlassError("usage", "the incident's reference is empty or too long");
  }
}

async function checkOpenGrants(tx: Tx, person: string): Promise<void> {
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
  const { fruitless } = await tx
    .selectFrom("grants")
    .select((eb) => eb.fn.countAll<number>().as("fruitless"))
    .where("requester", "=", person)
    .where("state", "in", ["withdrawn", "denied", "timed_out"])
    .where(sql<boolean>`created_at > clock_timestamp() - ${FRUITLESS_MS} * interval '1 millisecond'`)
    .executeTakeFirstOrThrow();
  if (fruitless < MAX_FRUITLESS) return;
  const within = formatDuration(FRUITLESS_MS);
  throw new GlassError("too_many_attempts", `${fruitless} requests of ${person} came to nothing within ${within}`, {
    next: "Wait some minutes, and talk to the people who approve.",
  });
}

/** The grant's row, its entry in the log, and the call to those who may decide; it opens at once where nobody has to. */
async function create(
  access: Access,
  tx: Tx,
  about: {
    request: BreakRequest;
    person: string;
    actor: string;
    playbook: Playbook;
    target: Target;
    /** The policy that the request was decided by; another may have come into force since. */
    bundle: string;
    durationMs: number;
    observed: Observed;
    decision: Decision;
    facts: Facts;
  },
): Promise<{ grant: string; lease: string | undefined }> {
  const { request, person, actor, playbook, target, bundle, durationMs, observed, decision, facts } = about;
  const id = newId("grant");
  const why = access.keyring.seal({ table: "grants", row: id, column: "why" }, Buffer.from(request.why, "utf8"));
  const evidence = observationsJson(observed);
  await pin(tx, playbook, target);
  const grant = await tx
    .insertInto("grants")
    .values({
      ...{ id, state: "pending", playbook: playbook.name, playbook_hash: playbook.hash, target: target.name },
      ...{ kind: target.kind, requester: person, reason: request.reason, why, incident: request.incident ?? null },
      ...{ need: decision.need, duration_ms: durationMs, max_ms: playbook.time.capMs, bundle },
      idle_ms: playbook.time.idleMs ?? null,
      decision: JSON.stringify(decision.clauses),
      evidence: JSON.stringify(evidence),
      quorum: JSON.stringify(decision.quorum),
      decide_by: sql`clock_timestamp() + ${playbook.approve.withinMs} * interval '1 millisecond'`,
    })
    .returningAll()
    .executeTakeFirstOrThrow();
  await append(tx, {
    ...{ type: "grant.requested", at: new Date(), actor, grant: id, target: target.name, playbook: playbook.name },
    data: {
      ...{ reason: request.reason, durationMs, need: decision.need, quorum: decision.quorum.length > 0 },
      ...{ playbookHash: playbook.hash, bundle, whySha256: sha256(why).toString("hex") },
      evidence: observationsLog(observed),
      ...(request.incident === undefined ? {} : { incidentSha256: sha256(request.incident).toString("hex") }),
    },
  });
  if (decision.need === 0) {
    const opening = await decideOpening(access, tx, grant, facts);
    return { grant: id, lease: await approveAndOpen(access, tx, grant, { decision: opening, actor: "glasskey" }) };
  }
  const quorum = decision.quorum.length === 0 ? "" : " It needs a quorum.";
  await tell(access, tx, grant, {
    ...{ event: "approval_wanted", deciders: decidersOf(access, grant), expiresAt: grant.decide_by, round: 0 },
    text: `${person} asks for ${playbook.name} on ${target.name}: ${decision.need} must say yes.${quorum}`,
  });
  return { grant: id, lease: undefined };
}

/** The policy's no. Where only the incident is missing, the incidents that the sources know of are named to choose from. */
async function refusal(
  access: Access,
  request: BreakRequest,
  decision: Decision,
  { person, playbook, facts }: { person: string; playbook: Playbook; facts: Facts },
): Promise<GlassError> {
  const error = denied(decision);
  const severities = playbook.when.incident;
  const severity = severities?.[0];
  if (severities === undefined || severity === undefined || facts.incident.state !== "none") return error;
  const elsewise = access.policy().decide({
    ...{ action: "request", person, playbook: playbook.name, reason: request.reason },
    ...{ durationMs: request.forMs ?? playbook.time.maxMs, facts: { ...facts, incident: { state: "open", severity } } },
  });
  if (!elsewise.allow) return error; // who could not use this playbook anyway is told of no incident
  const open = (await access.evidence.openIncidents()).filter((known) => severities.includes(known.severity));
  const shown = open.slice(0, SHOWN_INCIDENTS).map(({ ref, severity: level, summary, source }) => ({
    ...{ ref: ref.slice(0, 100), severity: level, summary: summary.slice(0, 100).toWellFormed(), source },
  }));
  const list = shown
    .map(({ ref, severity: level, summary, source }) => {
      const about = [level, ...(summary === "" ? [] : [summary]), `says ${source}`];
      return `${ref} (${about.join(", ")})`;
    })
    .join("; ");
  const more = open.length > shown.length ? ` and ${open.length - shown.length} more` : "";
  const next =
    shown.length === 0
      ? `No source knows of an open incident with severity ${severities.join(" or ")}. Name one once it is declared: --incident REF`
      : `Open now: ${list}${more}. Name one: --incident REF`;
  return new GlassError("policy_denied", error.message, { next, details: { ...error.details, incidents: shown } });
}
