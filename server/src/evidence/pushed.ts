import { sql } from "kysely";
import type { Store } from "../store/database.ts";
import type { WebhookConfig } from "./config.ts";
import {
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
 * What a webhook source pushed, read from the store, where every process finds it. What it never spoke of, and what it said
 * too long ago, is unknown: silence is no answer.
 */
export function pushedSource(config: WebhookConfig, store: Store): Source {
  const read = async (fact: string): Promise<Told<FactRow> | { unknown: string }> => {
    const row = await facts(store, config.name)
      .where("fact", "=", fact)
      .executeTakeFirst()
      .catch(() => {
        throw new SourceFault("the store does not answer", true);
      });
    if (row === undefined) return { unknown: "it has not said anything of it" };
    if (row.over) return { unknown: "what it said no longer holds, and it has not spoken since" };
    return { value: row, learnt: { at: row.observed_at, ageMs: Math.max(0, Math.round(row.age_ms)) } };
  };

  const rota = async (ref: string): Promise<Told<RotaAnswer>> => {
    const row = await read(`oncall:${ref}`);
    if ("unknown" in row) return { value: { state: "unknown", why: row.unknown } };
    const { people } = row.value;
    if (people === null) return { value: { state: "unknown", why: "it does not know either" } };
    return { ...row, value: { state: "known", people } };
  };

  const incident = async (ref: string): Promise<Told<IncidentAnswer>> => {
    const row = await read(`incident:${ref}`);
    if ("unknown" in row) return { value: { state: "unknown", why: row.unknown } };
    return { ...row, value: judge(row.value) };
  };

  const judge = ({ value, severity }: FactRow): IncidentAnswer => {
    if (value === "false") return { state: "none", why: "it is closed" };
    if (value === "unknown" || severity === null) return { state: "unknown", why: "it does not know either" };
    const word = severityOf(config.severity, severity);
    return "why" in word ? { state: "unknown", why: word.why } : { state: "open", severity: word.severity };
  };

  const openIncidents = async (): Promise<Told<readonly OpenIncident[]>> => {
    const rows = await facts(store, config.name)
      .where("fact", "like", "incident:%")
      .where("value", "=", "true")
      .where("expires_at", ">", sql<Date>`clock_timestamp()`)
      .orderBy("observed_at", "desc")
      .limit(MAX_OPEN_INCIDENTS)
      .execute();
    const list: OpenIncident[] = [];
    for (const row of rows) {
      const judged = judge(row);
      if (judged.state === "open")
        list.push({ ref: row.fact.slice("incident:".length), severity: judged.severity, summary: "" });
    }
    return { value: list };
  };

  return {
    ...{ name: config.name, maxAgeMs: 0 },
    ...(config.knows.includes("oncall") ? { rota } : {}),
    ...(config.knows.includes("incident") ? { incident, openIncidents } : {}),
  };
}

interface FactRow {
  readonly fact: string;
  readonly value: "true" | "false" | "unknown";
  readonly severity: string | null;
  readonly people: readonly string[] | null;
  readonly observed_at: Date;
  readonly age_ms: number;
  readonly over: boolean;
}

function facts(store: Store, source: string) {
  return store
    .selectFrom("evidence_facts")
    .select(["fact", "value", "severity", "people", "observed_at"])
    .select(sql<number>`(extract(epoch from clock_timestamp() - observed_at) * 1000)::float8`.as("age_ms"))
    .select(sql<boolean>`expires_at <= clock_timestamp()`.as("over"))
    .where("source", "=", source);
}
