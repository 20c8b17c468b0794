import type { EvidenceService, Observation, Observed } from "../access/access.ts";
import type { Clock } from "../core/clock.ts";
import { formatDuration } from "../core/duration.ts";
import { unreachable } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import type { Evidence, IncidentFact, Policy, Rota } from "../playbooks/policy.ts";
import type { Store } from "../store/database.ts";
import { alertmanagerSource } from "./alertmanager.ts";
import { createAsker, createBreaker, type Asked } from "./ask.ts";
import type { SourceConfig } from "./config.ts";
import { grafanaSource } from "./grafana.ts";
import { pagerdutySource } from "./pagerduty.ts";
import { createPushReceiver, keyOf, type PushReceiver } from "./push.ts";
import { pushedSource } from "./pushed.ts";
import { isReference, type IncidentAnswer, type OpenIncident, type RotaAnswer, type Source } from "./source.ts";

export interface EvidenceOptions {
  readonly sources: readonly SourceConfig[];
  readonly store: Store;
  readonly clock: Clock;
  /** @throws GlassError where the reference leads nowhere. */
  readonly resolveSecret: (reference: string) => Secret;
  readonly warn: (line: string) => void;
  /** For one question to one source, in milliseconds. */
  readonly timeoutMs?: number;
}

/** Long enough for a slow vendor, short enough that whoever breaks the glass does not think that it hangs. */
const TIMEOUT_MS = 3_000;

interface Askable {
  readonly name: string;
  readonly rota?: (ref: string) => Promise<Asked<RotaAnswer>>;
  readonly incident?: (ref: string) => Promise<Asked<IncidentAnswer>>;
  readonly openIncidents?: (ref: string) => Promise<Asked<readonly OpenIncident[]>>;
}

/**
 * Facts from outside: true, false or unknown, each with who said so and how old it is.
 * @throws GlassError `config_invalid` where a secret or a CA of a source cannot be read.
 */
export function createEvidence(options: EvidenceOptions): EvidenceService & PushReceiver {
  const { clock } = options;
  const sources = new Map(options.sources.map((config) => [config.name, askable(config, options)]));
  const receiver = createPushReceiver({
    ...options,
    sources: options.sources
      .filter((config) => config.kind === "webhook")
      .map((config) => ({ config, secrets: () => config.secrets.map(options.resolveSecret) })),
  });

  return {
    receive: (push, read) => receiver.receive(push, read),

    async observe({ policy, person, rotas, incident }) {
      const oncall = [...new Set(rotas)].map(async (name) => [name, await rotaOf(policy, person, name)] as const);
      const [rotaFacts, incidentFacts] = await Promise.all([
        Promise.all(oncall),
        incident === undefined ? NO_INCIDENT : incidentOf(incident),
      ]);
      return {
        oncall: Object.fromEntries(rotaFacts.map(([name, { value }]) => [name, value])),
        incident: incidentFacts.incident,
        observations: [...rotaFacts.map(([, observation]) => observation), ...incidentFacts.observations],
      };
    },

    async openIncidents() {
      const lists = await Promise.all(
        [...sources.values()].map(async ({ name: source, openIncidents }) => {
          const asked = await openIncidents?.("");
          return asked?.ok === true ? asked.value.map((found) => ({ ...found, source })) : [];
        }),
      );
      return lists.flat();
    },
  };

  async function rotaOf(policy: Policy, person: string, name: string): Promise<Observation> {
    const fact = `oncall:${name}`;
    const rota = policy.rotas.find((candidate) => candidate.name === name);
    if (rota === undefined) return here(fact, "unknown", `oncall.yaml has no rota ${name}`);
    if ("unknown" in rota) return here(fact, "unknown", "oncall.yaml says that nobody knows");
    if ("people" in rota) return here(fact, isAmong(policy, person, rota.people) ? "true" : "false");
    return observeRota(policy, person, rota);
  }

  async function observeRota(
    policy: Policy,
    person: string,
    rota: Extract<Rota, { source: string }>,
  ): Promise<Observation> {
    const { source } = rota;
    const fact = `oncall:${rota.name}`;
    const ask = sources.get(source)?.rota;
    if (ask === undefined) {
      const detail = sources.has(source)
        ? "it is not asked who is on call"
        : "glasskey.yaml has no such source of evidence";
      return { ...here(fact, "unknown", detail), source };
    }
    const asked = await ask(rota.ref);
    const about = { fact, source, ...seen(asked) };
    if (!asked.ok)
      return { ...about, value: "unknown", detail: faultText(asked, (told) => rotaText(policy, person, told)) };
    if (asked.value.state === "unknown") return { ...about, value: "unknown", detail: asked.value.why };
    const { people } = asked.value;
    if (isAmong(policy, person, people)) return { ...about, value: "true" };
    const strangers = people.filter((id) => policy.person(id) === undefined).length;
    const detail = `${strangers} of the ${people.length} on call are not in people.yaml, by name or alias`;
    return { ...about, value: "false", ...(strangers === 0 ? {} : { detail }) };
  }

  async function incidentOf(text: string): Promise<Pick<Observed, "incident" | "observations">> {
    if (!isReference(text)) {
      const detail = "what was named does not have the form of an incident's reference";
      return { incident: { state: "none" }, observations: [here("incident:-", "false", detail)] };
    }
    const { ref, only } = splitReference(text, sources);
    const fact = `incident:${text}`;
    const able = [...sources.values()].filter(
      ({ name, incident }) => incident !== undefined && (only ?? name) === name,
    );
    if (able.length === 0) {
      const detail = "no source of evidence in glasskey.yaml can tell";
      return { incident: { state: "unknown" }, observations: [here(fact, "unknown", detail)] };
    }
    const observations = await Promise.all(
      able.map(async ({ name: source, incident: ask }): Promise<Observation> => {
        const asked = await ask?.(ref);
        if (asked === undefined) return { ...here(fact, "unknown"), source };
        const about = { fact, source, ...seen(asked) };
        if (!asked.ok) return { ...about, value: "unknown", detail: faultText(asked, incidentText) };
        const { value } = asked;
        if (value.state === "open") return { ...about, value: "true", severity: value.severity };
        const detail = value.why === undefined ? {} : { detail: value.why };
        return { ...about, value: value.state === "none" ? "false" : "unknown", ...detail };
      }),
    );
    return { incident: together(observations), observations: observations.toSorted(byWeight) };
  }

  /** What Glasskey itself knows. */
  function here(fact: string, value: Evidence, detail?: string): Observation {
    const observedAt = clock.now().toISOString();
    return { fact, value, source: "static", observedAt, ageMs: 0, ...(detail === undefined ? {} : { detail }) };
  }
}

const NO_INCIDENT: Pick<Observed, "incident" | "observations"> = { incident: { state: "none" }, observations: [] };

function askable(config: SourceConfig, options: EvidenceOptions): Askable {
  const { clock, warn, timeoutMs = TIMEOUT_MS } = options;
  const source = sourceOf(config, options);
  const breaker = createBreaker(source.name, clock, warn);
  const common = { clock, breaker, timeoutMs, maxAgeMs: source.maxAgeMs };
  const { name, rota, incident, openIncidents } = source;
  return {
    name,
    ...(rota === undefined ? {} : { rota: createAsker({ ...common, ask: rota }) }),
    ...(incident === undefined ? {} : { incident: createAsker({ ...common, ask: incident }) }),
    ...(openIncidents === undefined
      ? {}
      : { openIncidents: createAsker({ ...common, ask: (_ref, signal) => openIncidents(signal) }) }),
  };
}

function sourceOf(config: SourceConfig, { clock, store, resolveSecret }: EvidenceOptions): Source {
  const secret = (reference: string): (() => Secret) => {
    resolveSecret(reference); // a reference that leads nowhere stops the start, not a break at night
    return () => resolveSecret(reference);
  };
  switch (config.kind) {
    case "pagerduty":
      return pagerdutySource(config, clock, secret(config.token));
    case "grafana":
      return grafanaSource(config, clock, secret(config.token));
    case "alertmanager":
      return alertmanagerSource(config, clock, config.token === undefined ? undefined : secret(config.token));
    case "webhook":
      for (const reference of config.secrets) keyOf(resolveSecret(reference));
      return pushedSource(config, store);
    default:
      return unreachable(config);
  }
}

/** `pagerduty:main/PABC123` asks one source; anything else asks all of them. */
function splitReference(text: string, sources: ReadonlyMap<string, unknown>): { ref: string; only?: string } {
  const slash = text.indexOf("/");
  const only = text.slice(0, slash);
  const ref = text.slice(slash + 1);
  return slash > 0 && sources.has(only) && isReference(ref) ? { ref, only } : { ref: text };
}

/** Open if any source says so; none only if all of them say so. The first of glasskey.yaml's gives the severity. */
function together(observations: readonly Observation[]): IncidentFact {
  for (const { value, severity } of observations)
    if (value === "true" && severity !== undefined) return { state: "open", severity };
  return { state: observations.every(({ value }) => value === "false") ? "none" : "unknown" };
}

/** What decides comes first: a yes, then whoever does not know, then a no. */
function byWeight(a: Observation, b: Observation): number {
  const weight = { true: 0, unknown: 1, false: 2 };
  return weight[a.value] - weight[b.value];
}

function isAmong(policy: Policy, person: string, ids: readonly string[]): boolean {
  const human = policy.person(person);
  return human !== undefined && ids.some((id) => policy.person(id)?.name === human.name);
}

function seen({ observedAt, ageMs }: Asked<unknown>): Pick<Observation, "observedAt" | "ageMs"> {
  return { observedAt: observedAt.toISOString(), ageMs };
}

function faultText<T>(asked: Asked<T> & { ok: false }, words: (told: T) => string): string {
  const { why, before } = asked;
  return before === undefined ? why : `${why}; ${formatDuration(before.ageMs)} ago it said: ${words(before.value)}`;
}

function rotaText(policy: Policy, person: string, told: RotaAnswer): string {
  if (told.state === "unknown") return "unknown";
  return isAmong(policy, person, told.people) ? "on call" : "not on call";
}

function incidentText(told: IncidentAnswer): string {
  return told.state === "open" ? `open, ${told.severity}` : told.state === "none" ? "not open" : "unknown";
}
