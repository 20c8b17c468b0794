import { z } from "zod";
import type { Clock } from "../core/clock.ts";
import type { Secret } from "../core/secret.ts";
import type { AlertmanagerConfig } from "./config.ts";
import { createJsonClient, tokenHeader } from "./http.ts";
import {
  checkPast,
  cleanLine,
  isReference,
  MAX_OPEN_INCIDENTS,
  severityOf,
  SourceFault,
  type IncidentAnswer,
  type OpenIncident,
  type Source,
  type Told,
} from "./source.ts";

/** Alertmanager's API v2 (github.com/prometheus/alertmanager, api/v2/openapi.yaml). It knows nothing of who is on call. */

const MAX_ALERTS = 5000;

const alerts = z
  .array(
    z.object({
      labels: z.record(z.string(), z.string()),
      annotations: z.record(z.string(), z.string()).optional(),
      startsAt: z.string().max(64),
      endsAt: z.string().max(64),
      status: z.object({
        state: z.enum(["unprocessed", "active", "suppressed"]),
        silencedBy: z.array(z.string()),
        inhibitedBy: z.array(z.string()),
      }),
    }),
  )
  .max(MAX_ALERTS);
type Alert = z.infer<typeof alerts>[number];

export function alertmanagerSource(
  config: AlertmanagerConfig,
  clock: Clock,
  secret: (() => Secret) | undefined,
): Source {
  const { incidentLabel, severityLabel } = config;
  const client = createJsonClient({
    ...{ base: config.url, ...(config.ca === undefined ? {} : { ca: config.ca }) },
    headers: () => (secret === undefined ? {} : tokenHeader("Bearer ", secret)),
  });

  /** Alerts that fire, and that nobody silenced, by matcher. */
  const firing = async (matcher: string, signal: AbortSignal): Promise<readonly Alert[]> => {
    const query = [
      ["active", "true"],
      ["silenced", "false"],
      ["inhibited", "false"],
      ["unprocessed", "false"],
      ["filter", matcher],
    ] as const;
    const found = await client.ask({ path: ["api", "v2", "alerts"], query, answer: alerts, signal });
    const nowMs = clock.now().getTime();
    for (const { status, startsAt, endsAt } of found) {
      if (status.state !== "active" || status.silencedBy.length > 0 || status.inhibitedBy.length > 0)
        throw new SourceFault("it answered with alerts that were not asked for");
      checkPast(startsAt, nowMs);
      if (Number.isNaN(Date.parse(endsAt))) throw new SourceFault("its answer has a time that is none");
    }
    // It drops what has ended when it next looks; whoever asks in between is told of it still.
    return found.filter(({ endsAt }) => Date.parse(endsAt) > nowMs);
  };

  const labelOf = (alert: Alert, label: string): string | undefined =>
    Object.hasOwn(alert.labels, label) ? alert.labels[label] : undefined;

  /** Alerts of one incident may differ; the worst counts, where `severity` of glasskey.yaml says which is. */
  const judge = (list: readonly Alert[]): IncidentAnswer => {
    const words = new Set(list.map((alert) => labelOf(alert, severityLabel) ?? ""));
    const [first = ""] = words;
    const ranked = [...words].every((word) => config.severity.has(word));
    const worst = words.size === 1 ? first : [...config.severity.keys()].find((word) => ranked && words.has(word));
    if (worst === undefined)
      return {
        state: "unknown",
        why: "its alerts differ in severity; list the words under `severity` in glasskey.yaml, worst first",
      };
    if (worst === "") return { state: "unknown", why: `its alerts have no label ${severityLabel}` };
    const word = severityOf(config.severity, worst);
    return "why" in word ? { state: "unknown", why: word.why } : { state: "open", severity: word.severity };
  };

  const incident = async (ref: string, signal: AbortSignal): Promise<Told<IncidentAnswer>> => {
    // A reference has neither quotes nor backslashes, so it cannot leave the matcher's string.
    const list = isReference(ref) ? await firing(`${incidentLabel}="${ref}"`, signal) : [];
    if (list.some((alert) => labelOf(alert, incidentLabel) !== ref))
      throw new SourceFault("it answered about another incident than was asked for");
    if (list.length === 0) return { value: { state: "none", why: "no alert of that incident fires" } };
    return { value: judge(list) };
  };

  const openIncidents = async (signal: AbortSignal): Promise<Told<readonly OpenIncident[]>> => {
    const byRef = new Map<string, Alert[]>();
    for (const alert of await firing(`${incidentLabel}!=""`, signal)) {
      const ref = labelOf(alert, incidentLabel) ?? "";
      const others = byRef.get(ref);
      if (others !== undefined) others.push(alert);
      else if (isReference(ref) && byRef.size < MAX_OPEN_INCIDENTS) byRef.set(ref, [alert]);
    }
    const list: OpenIncident[] = [];
    for (const [ref, found] of byRef) {
      const judged = judge(found);
      const summary = found.find(({ annotations }) => annotations?.["summary"] !== undefined)?.annotations?.["summary"];
      if (judged.state === "open") list.push({ ref, severity: judged.severity, summary: cleanLine(summary ?? "") });
    }
    return { value: list };
  };

  return { name: config.name, maxAgeMs: config.maxAgeMs, incident, openIncidents };
}
