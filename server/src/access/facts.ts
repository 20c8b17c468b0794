import { sql } from "kysely";
import { GlassError } from "../core/errors.ts";
import type { JsonValue } from "../core/json.ts";
import { NO_USAGE } from "../playbooks/facts.ts";
import type { Facts, Playbook, Policy, Usage } from "../playbooks/policy.ts";
import type { Store, Tx } from "../store/database.ts";
import type { Access, Observation, Observed } from "./access.ts";
import { OPEN_STATES, type GrantRow } from "./lifecycle.ts";

/**
 * What a decision stands on. Sources of evidence are asked before a transaction, never in one; how the playbook was used
 * is counted inside it, under {@link lockPlaybook}, so that two requests never count the same free place.
 */

/** Asks the sources about the requester, for every rota that a decision about this playbook can look at. Never rejects. */
export function observe(
  access: Access,
  about: { person: string; playbook: string; incident?: string | undefined },
): Promise<Observed> {
  const policy = access.policy();
  const playbook = policy.playbook(about.playbook);
  const rotas = playbook === undefined ? [] : rotasOf(policy, [playbook]);
  return access.evidence.observe({ policy, person: about.person, rotas, incident: about.incident });
}

/** Whom and what the sources are asked about for a grant. @throws GlassError `not_found`. */
export async function aboutGrant(
  access: Access,
  grant: string,
): Promise<{ person: string; playbook: string; incident: string | undefined }> {
  const row = await access.store
    .selectFrom("grants")
    .select(["requester", "playbook", "incident"])
    .where("id", "=", grant)
    .executeTakeFirst();
  if (row === undefined) throw new GlassError("not_found", `there is no grant ${grant.slice(0, 40)}`);
  return { person: row.requester, playbook: row.playbook, incident: row.incident ?? undefined };
}

/** The rotas that decisions about these playbooks look at: of `who`, and of the denials that no playbook overrides. */
export function rotasOf(policy: Policy, playbooks: readonly Playbook[]): readonly string[] {
  const selectors = [...playbooks.flatMap(({ who }) => who), ...policy.denials.flatMap(({ who }) => who)];
  return [...new Set(selectors.flatMap(({ by, name }) => (by === "oncall" ? [name] : [])))];
}

/** Serialises decisions about one playbook until the transaction ends. Taken after the grant's own row, never before. */
export async function lockPlaybook(tx: Tx, playbook: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended(${`glasskey playbook ${playbook}`}, 0))`.execute(tx);
}

/** The observed facts together with the playbook's use and the store's clock at this moment. */
export async function factsFor(
  access: Access,
  db: Store | Tx,
  about: { person: string; playbook: string; observed: Observed; except?: string | undefined },
): Promise<Facts> {
  const { person, playbook, observed, except } = about;
  const { atMs, usage } = await countUsage(access, db, { person, playbooks: [playbook], except });
  return { oncall: observed.oncall, incident: observed.incident, usage: usage.get(playbook) ?? NO_USAGE, atMs };
}

/**
 * Counts how playbooks were used, in one query however many they are. A use counts from its opening on; a grant that never
 * became active was none. `except` is the grant in question: it is not held against itself.
 */
export async function countUsage(
  access: Access,
  db: Store | Tx,
  about: { person: string; playbooks: readonly string[]; except?: string | undefined },
): Promise<{ atMs: number; usage: ReadonlyMap<string, Usage> }> {
  const policy = access.policy();
  const requester = policy.person(about.person);
  const names = requester === undefined ? [about.person] : [requester.name, ...requester.aliases];
  const periods = about.playbooks.map((name) => policy.playbook(name)?.limit.uses?.perMs ?? 0);
  const except = about.except ?? "";
  const { rows } = await sql<{
    name: string;
    unsigned: number;
    open: number;
    overdue: number;
    since: number | null;
    at: number;
  }>`
    select p.name, (extract(epoch from n.now) * 1000)::float8 as at,
      (select count(*)::int from reviews r where r.playbook = p.name and r.signed_at is null and r.grant_id <> ${except}
         and r.opened_at > n.now - p.period * interval '1 millisecond')
      + (select count(*)::int from grants g where g.playbook = p.name and g.state in ('approved', 'opening')
           and g.id <> ${except} and p.period > 0) as unsigned,
      (select count(*)::int from grants g where g.playbook = p.name and g.id <> ${except}
         and g.state = any(${["pending", ...OPEN_STATES]})) as open,
      (select count(*)::int from reviews r where r.playbook = p.name and r.signed_at is null and r.grant_id <> ${except}
         and r.due_at <= n.now) as overdue,
      (select (extract(epoch from n.now - max(coalesce(g.closed_at, n.now))) * 1000)::float8 from grants g
         where g.playbook = p.name and g.id <> ${except} and g.requester = any(${names})
           and (g.active_at is not null or g.state in ('approved', 'opening'))) as since
    from (select clock_timestamp() as now) n, unnest(${about.playbooks}::text[], ${periods}::bigint[]) as p(name, period)`.execute(
    db,
  );
  const usage = new Map(
    rows.map(({ name, unsigned, open, overdue, since }): [string, Usage] => [
      name,
      { unsigned, open, overdue, ...(since === null ? {} : { sinceLastMs: Math.max(0, Math.floor(since)) }) },
    ]),
  );
  return { atMs: Math.floor(rows[0]?.at ?? Date.now()), usage };
}

/** The observations that a grant was requested with. */
export function observationsOf(grant: Pick<GrantRow, "evidence">): readonly Observation[] {
  return Array.isArray(grant.evidence) ? grant.evidence : [];
}

/** Those observations as facts. */
export function observedAtRequest(grant: Pick<GrantRow, "evidence">): Observed {
  const observations = observationsOf(grant);
  const incident = observations.find(({ fact }) => fact.startsWith("incident:"));
  return {
    oncall: Object.fromEntries(
      observations.flatMap(({ fact, value }) => (fact.startsWith("oncall:") ? [[fact.slice(7), value]] : [])),
    ),
    incident:
      incident?.value === "true" && incident.severity !== undefined
        ? { state: "open", severity: incident.severity }
        : { state: incident === undefined || incident.value === "false" ? "none" : "unknown" },
    observations,
  };
}

/**
 * What holds at the opening of a grant. What a source tells now counts, also when it takes back what it told before. Where
 * it cannot tell now, what it told at the request still counts: an outage between request and approval neither helps nor
 * harms. The grant's own deadline (`approve.within`) bounds how old that can be, since nothing opens after it.
 */
export function stillHolding(now: Observed, then: Observed): Observed {
  const rotas = new Set([...Object.keys(now.oncall), ...Object.keys(then.oncall)]);
  const oncall: Record<string, Facts["oncall"][string]> = {};
  for (const rota of rotas) {
    const fresh = Object.hasOwn(now.oncall, rota) ? (now.oncall[rota] ?? "unknown") : "unknown";
    const kept = Object.hasOwn(then.oncall, rota) ? (then.oncall[rota] ?? "unknown") : "unknown";
    oncall[rota] = fresh === "unknown" ? kept : fresh;
  }
  return {
    oncall,
    incident: now.incident.state === "unknown" ? then.incident : now.incident,
    observations: now.observations,
  };
}

/** For the grant's row and its log entry: what was observed, without what a source added of its own. */
export function observationsJson(observed: Observed): readonly JsonValue[] {
  return observed.observations.slice(0, MAX_OBSERVATIONS).map((observation) => ({
    ...{ fact: observation.fact.slice(0, 300), value: observation.value, source: observation.source.slice(0, 100) },
    ...{ observedAt: observation.observedAt, ageMs: Math.max(0, Math.round(observation.ageMs)) },
    ...(observation.severity === undefined ? {} : { severity: observation.severity.slice(0, 32) }),
    ...(observation.detail === undefined ? {} : { detail: observation.detail.slice(0, 300).toWellFormed() }),
  }));
}

/** The same for an entry of the log. An incident's reference is a person's free text, so it is left out there. */
export function observationsLog(observed: Observed): readonly JsonValue[] {
  return observed.observations
    .slice(0, MAX_OBSERVATIONS)
    .map(({ fact, value, severity, source, observedAt, ageMs }) => ({
      fact: fact.startsWith("incident:") ? "incident" : fact,
      ...{ value, source, observedAt, ageMs: Math.max(0, Math.round(ageMs)) },
      ...(severity === undefined ? {} : { severity }),
    }));
}

const MAX_OBSERVATIONS = 50; // a playbook names a few rotas; the bound keeps the log entry small
