import { z } from "zod";
import type { Clock } from "../core/clock.ts";
import type { Secret } from "../core/secret.ts";
import type { GrafanaConfig } from "./config.ts";
import { createJsonClient, tokenHeader, type JsonClient } from "./http.ts";
import {
  checkPast,
  cleanLine,
  MAX_ON_CALL,
  MAX_OPEN_INCIDENTS,
  severityOf,
  SourceFault,
  type IncidentAnswer,
  type OpenIncident,
  type RotaAnswer,
  type Source,
  type Told,
} from "./source.ts";

/**
 * Grafana IRM: the OnCall API v1 (grafana.com/docs, "OnCall HTTP API reference") for schedules and users, and the Incident
 * JSON/HTTP RPC API v1 (the client that Grafana generates from it: github.com/grafana/incident-go).
 */

const PAGE = 50;
const ID = /^[A-Z0-9]{4,32}$/;

const schedule = z.object({ id: z.string(), on_call_now: z.array(z.string().regex(ID)).max(1000) });
const user = z.object({ id: z.string(), email: z.string().min(1).max(320) });
const notFound = z.object({ detail: z.string() });
const incidents = z.object({
  incidents: z
    .array(
      z.object({
        incidentID: z.string().min(1).max(64),
        severity: z.string().max(200),
        status: z.enum(["active", "resolved"]),
        title: z.string(),
        isDrill: z.boolean(),
        createdTime: z.string().max(64),
      }),
    )
    .max(PAGE)
    .nullable() // how its server writes an empty list
    .transform((list) => list ?? []),
  cursor: z.object({ hasMore: z.boolean(), nextValue: z.string().max(1000) }),
});
type Incidents = z.infer<typeof incidents>["incidents"];

export function grafanaSource(config: GrafanaConfig, clock: Clock, secret: () => Secret): Source {
  const ca = config.ca === undefined ? {} : { ca: config.ca };
  const stack = createJsonClient({ base: config.url, ...ca, headers: () => tokenHeader("Bearer ", secret) });
  const oncall =
    config.oncallUrl === undefined
      ? undefined
      : createJsonClient({
          ...{ base: config.oncallUrl, ...ca },
          headers: () => ({ ...tokenHeader("Bearer ", secret), "x-grafana-url": config.url.origin }),
        });

  const rotaAt =
    (client: JsonClient) =>
    async (ref: string, signal: AbortSignal): Promise<Told<RotaAnswer>> => {
      if (!ID.test(ref))
        return {
          value: { state: "unknown", why: "the rota's reference is not the id of a schedule, such as SBM7DV7BKFUYU" },
        };
      const path = ["api", "v1", "schedules", ref, ""];
      const found = await client.ask({ path, answer: schedule, missing: notFound, signal });
      if (found === undefined) return { value: { state: "unknown", why: "it has no such schedule" } };
      if (found.id !== ref) throw new SourceFault("it answered about another schedule than was asked for");
      const ids = [...new Set(found.on_call_now)];
      if (ids.length > MAX_ON_CALL) throw new SourceFault("it names more people on call than any rota has");
      const people = await Promise.all(
        ids.map(async (id) => {
          const person = await client.ask({ path: ["api", "v1", "users", id, ""], answer: user, signal });
          if (person.id !== id) throw new SourceFault("it answered about another user than was asked for");
          return person.email;
        }),
      );
      return { value: { state: "known", people } };
    };

  /** All of them: what is not in a complete list is not open. An answer to "get" for no such incident is not documented. */
  const active = async (signal: AbortSignal): Promise<Incidents> => {
    const list: Incidents = [];
    let cursor = { hasMore: false, nextValue: "" };
    do {
      const answer = await stack.ask({
        path: ["api", "plugins", "grafana-irm-app", "resources", "api", "v1", "IncidentsService.QueryIncidents"],
        body: { query: { limit: PAGE, includeStatuses: ["active"], orderDirection: "DESC" }, cursor },
        ...{ answer: incidents, signal },
      });
      list.push(...answer.incidents);
      if (list.length > MAX_OPEN_INCIDENTS)
        throw new SourceFault("it names more open incidents than can be looked through");
      if (answer.cursor.hasMore && answer.cursor.nextValue === cursor.nextValue)
        throw new SourceFault("its list of incidents does not end");
      cursor = answer.cursor;
    } while (cursor.hasMore);
    const nowMs = clock.now().getTime();
    for (const { status, createdTime } of list) {
      if (status !== "active") throw new SourceFault("it answered with incidents that were not asked for");
      checkPast(createdTime, nowMs);
    }
    return list;
  };

  const incident = async (ref: string, signal: AbortSignal): Promise<Told<IncidentAnswer>> => {
    const found = (await active(signal)).find(({ incidentID }) => incidentID === ref);
    if (found === undefined) return { value: { state: "none", why: "it is not among its active incidents" } };
    if (found.isDrill) return { value: { state: "none", why: "it is a drill" } };
    const word = severityOf(config.severity, found.severity);
    return { value: "why" in word ? { state: "unknown", why: word.why } : { state: "open", severity: word.severity } };
  };

  const openIncidents = async (signal: AbortSignal): Promise<Told<readonly OpenIncident[]>> => {
    const list: OpenIncident[] = [];
    for (const { incidentID, severity, title, isDrill } of await active(signal)) {
      const word = severityOf(config.severity, severity);
      if (!isDrill && "severity" in word)
        list.push({ ref: incidentID, severity: word.severity, summary: cleanLine(title) });
    }
    return { value: list };
  };

  return {
    ...{ name: config.name, maxAgeMs: config.maxAgeMs },
    ...(config.knows.includes("oncall") && oncall !== undefined ? { rota: rotaAt(oncall) } : {}),
    ...(config.knows.includes("incident") ? { incident, openIncidents } : {}),
  };
}
