import { z } from "zod";
import type { Clock } from "../core/clock.ts";
import type { Secret } from "../core/secret.ts";
import type { PagerdutyConfig } from "./config.ts";
import { createJsonClient, tokenHeader } from "./http.ts";
import {
  checkPast,
  cleanLine,
  MAX_ON_CALL,
  MAX_OPEN_INCIDENTS,
  severityOf,
  SKEW_MS,
  SourceFault,
  type IncidentAnswer,
  type OpenIncident,
  type RotaAnswer,
  type Source,
  type Told,
} from "./source.ts";

/** PagerDuty's REST API v2 (github.com/PagerDuty/api-schema, reference/REST/openapiv3.json). */

const PAGE = 100;
/** A schedule stands in many escalation policies, and each gives an entry of its own. */
const MAX_PAGES = 5;
const time = z.string().max(64).nullish();

const oncalls = z.object({
  oncalls: z
    .array(
      z.object({
        user: z.object({ id: z.string().max(64), email: z.string().max(320) }),
        schedule: z.object({ id: z.string().max(64) }).nullish(),
        start: time,
        end: time,
      }),
    )
    .max(PAGE),
  more: z.boolean(),
});
const schedule = z.object({ schedule: z.object({ id: z.string() }) });
const incident = z.object({
  id: z.string().max(64),
  incident_number: z.number().int().optional(),
  title: z.string().nullish(),
  status: z.enum(["triggered", "acknowledged", "resolved"]),
  urgency: z.enum(["high", "low"]).nullish(),
  priority: z.object({ summary: z.string().max(200).nullish(), name: z.string().max(200).nullish() }).nullish(),
  created_at: time,
});
const notFound = z.object({ error: z.looseObject({}) });

export function pagerdutySource(config: PagerdutyConfig, clock: Clock, secret: () => Secret): Source {
  const client = createJsonClient({
    ...{ base: config.url, ...(config.ca === undefined ? {} : { ca: config.ca }) },
    headers: () => ({ ...tokenHeader("Token token=", secret), accept: "application/vnd.pagerduty+json;version=2" }),
  });

  const rota = async (ref: string, signal: AbortSignal): Promise<Told<RotaAnswer>> => {
    if (!/^[A-Z0-9]{3,32}$/.test(ref))
      return { value: { state: "unknown", why: "the rota's reference is not the id of a schedule, such as PI7DH85" } };
    const people = new Set<string>();
    let firstEndMs = Number.POSITIVE_INFINITY;
    for (let page = 0; ; page += 1) {
      if (page === MAX_PAGES) throw new SourceFault("it names more people on call than any rota has");
      const query = [
        ["schedule_ids[]", ref],
        ["include[]", "users"],
        ["limit", String(PAGE)],
        ["offset", String(page * PAGE)],
      ] as const;
      const answer = await client.ask({ path: ["oncalls"], query, answer: oncalls, signal });
      const nowMs = clock.now().getTime();
      for (const entry of answer.oncalls) {
        if (entry.schedule?.id !== ref) throw new SourceFault("it answered about another schedule than was asked for");
        checkPast(entry.start, nowMs);
        const endMs = entry.end === null || entry.end === undefined ? Number.POSITIVE_INFINITY : Date.parse(entry.end);
        if (Number.isNaN(endMs)) throw new SourceFault("its answer has a time that is none");
        if (endMs < nowMs - SKEW_MS) throw new SourceFault("it answered with shifts that are over");
        firstEndMs = Math.min(firstEndMs, endMs);
        people.add(entry.user.email);
      }
      if (people.size > MAX_ON_CALL) throw new SourceFault("it names more people on call than any rota has");
      if (!answer.more) break;
    }
    // Of a schedule that does not exist it may say the same as of one with a gap.
    if (people.size === 0) {
      const found = await client.ask({ path: ["schedules", ref], answer: schedule, missing: notFound, signal });
      if (found === undefined) return { value: { state: "unknown", why: "it has no such schedule" } };
      if (found.schedule.id !== ref) throw new SourceFault("it answered about another schedule than was asked for");
    }
    return {
      value: { state: "known", people: [...people] },
      ...(Number.isFinite(firstEndMs) ? { freshForMs: Math.max(0, firstEndMs - clock.now().getTime()) } : {}),
    };
  };

  const judge = (found: z.infer<typeof incident>): IncidentAnswer => {
    checkPast(found.created_at, clock.now().getTime());
    if (found.status === "resolved") return { state: "none", why: "it is resolved" };
    const word = found.priority?.summary ?? found.priority?.name;
    if (typeof word === "string" && word !== "") return open(severityOf(config.severity, word));
    const byUrgency = found.urgency === undefined || found.urgency === null ? undefined : config.urgency[found.urgency];
    if (byUrgency !== undefined) return { state: "open", severity: byUrgency };
    return { state: "unknown", why: "it is open, but has no priority; give it one, or map `urgency` in glasskey.yaml" };
  };

  const incidentOf = async (ref: string, signal: AbortSignal): Promise<Told<IncidentAnswer>> => {
    const byNumber = /^#?([1-9]\d{0,9})$/.exec(ref)?.[1];
    const id = byNumber ?? (/^[A-Z0-9]{3,32}$/.test(ref) ? ref : undefined);
    if (id === undefined) return { value: { state: "none", why: "it has no incident with a reference of that form" } };
    const answer = z.object({ incident });
    const found = await client.ask({ path: ["incidents", id], answer, missing: notFound, signal });
    if (found === undefined) return { value: { state: "none", why: "it has no such incident" } };
    const same =
      byNumber === undefined ? found.incident.id === id : found.incident.incident_number === Number(byNumber);
    if (!same) throw new SourceFault("it answered about another incident than was asked for");
    return { value: judge(found.incident) };
  };

  const openIncidents = async (signal: AbortSignal): Promise<Told<readonly OpenIncident[]>> => {
    const query = [
      ["statuses[]", "triggered"],
      ["statuses[]", "acknowledged"],
      ["date_range", "all"],
      ["sort_by", "created_at:desc"],
      ["limit", String(PAGE)],
    ] as const;
    const answer = z.object({ incidents: z.array(incident).max(PAGE) });
    const { incidents } = await client.ask({ path: ["incidents"], query, answer, signal });
    const list: OpenIncident[] = [];
    for (const found of incidents.slice(0, MAX_OPEN_INCIDENTS)) {
      const judged = judge(found);
      if (judged.state === "open")
        list.push({ ref: found.id, severity: judged.severity, summary: cleanLine(found.title ?? "") });
    }
    return { value: list };
  };

  return {
    ...{ name: config.name, maxAgeMs: config.maxAgeMs },
    ...(config.knows.includes("oncall") ? { rota } : {}),
    ...(config.knows.includes("incident") ? { incident: incidentOf, openIncidents } : {}),
  };
}

function open(found: ReturnType<typeof severityOf>): IncidentAnswer {
  return "severity" in found ? { state: "open", severity: found.severity } : { state: "unknown", why: found.why };
}
