import { z } from "zod";
import { formatDuration, parseDuration } from "../core/duration.ts";
import { describe } from "../core/errors.ts";
import { channelFault, severityFault } from "../playbooks/text.ts";

/** What a source of evidence can be asked. */
export type Knows = "oncall" | "incident";

interface Common {
  /** `kind:name`, as glasskey.yaml calls it. */
  readonly name: string;
  /** What it is asked; a source that is not asked cannot answer wrongly. */
  readonly knows: readonly Knows[];
  /** How old an answer may be to count, in milliseconds. */
  readonly maxAgeMs: number;
  /**
   * From the source's words for severities to those of the playbooks, worst first. A word that is not in it stands for
   * itself.
   */
  readonly severity: ReadonlyMap<string, string>;
}

interface Reached extends Common {
  /** No user, query or fragment; https, or http on this machine. */
  readonly url: URL;
  /** File with the PEM of the CA that its certificate must chain to; undefined: the system's. */
  readonly ca?: string;
}

export interface PagerdutyConfig extends Reached {
  readonly kind: "pagerduty";
  /** Reference to a REST API key; a read-only one will do. */
  readonly token: string;
  /** The severity of an incident without a priority, by its urgency. */
  readonly urgency: { readonly high?: string; readonly low?: string };
}

export interface GrafanaConfig extends Reached {
  readonly kind: "grafana";
  /** Reference to a service account token of the stack at `url`. */
  readonly token: string;
  /** The OnCall API, as Grafana's settings show it; undefined: it is not asked for schedules. */
  readonly oncallUrl?: URL;
}

export interface AlertmanagerConfig extends Reached {
  readonly kind: "alertmanager";
  readonly token?: string;
  /** The label whose value is the reference of the incident, and the one whose value is its severity. */
  readonly incidentLabel: string;
  readonly severityLabel: string;
}

export interface WebhookConfig extends Common {
  readonly kind: "webhook";
  /** References to `whsec_…` secrets; several while one replaces the other. */
  readonly secrets: readonly string[];
}

export type SourceConfig = PagerdutyConfig | GrafanaConfig | AlertmanagerConfig | WebhookConfig;

const MAX_SOURCES = 16;
const DEFAULT_MAX_AGE = "60s"; // one break looks several times; and nobody's shift ends to the second
const MAX_AGE_BOUND_MS = 3_600_000;

const reference = z
  .string()
  .regex(/^\$\{(file|env):[^{}]+\}$/, "a literal secret is refused; write a reference such as ${env:PAGERDUTY_TOKEN}");

const maxAge = z.string().transform((text, context): number => {
  try {
    const ms = parseDuration(text);
    if (ms <= MAX_AGE_BOUND_MS) return ms;
    context.addIssue({ code: "custom", message: `must be ${formatDuration(MAX_AGE_BOUND_MS)} at most` });
  } catch (error) {
    context.addIssue({ code: "custom", message: describe(error) });
  }
  return z.NEVER;
});

const url = z.string().transform((text, context): URL => {
  const fault = urlFault(text);
  if (fault === undefined) return new URL(text);
  context.addIssue({ code: "custom", message: fault });
  return z.NEVER;
});

function urlFault(text: string): string | undefined {
  const parsed = URL.parse(text);
  if (parsed === null) return "is not a URL such as https://api.pagerduty.com";
  if (parsed.username !== "" || parsed.password !== "") return "must not have a user or a password in it";
  if (parsed.search !== "" || parsed.hash !== "") return "must not have a query or a fragment";
  if (parsed.protocol === "https:") return undefined;
  const here = parsed.protocol === "http:" && /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(parsed.hostname);
  return here
    ? undefined
    : "must begin with https:// (http:// only on this machine): a fact that anybody could forge is none";
}

const severityWord = z.string().superRefine((text, context) => {
  const fault = severityFault(text);
  if (fault !== undefined) context.addIssue({ code: "custom", message: fault });
});
const label = z.string().regex(/^[a-zA-Z_][a-zA-Z0-9_]{0,63}$/, "is not the name of a label");

const common = {
  knows: z
    .array(z.enum(["oncall", "incident"]))
    .min(1)
    .default(["oncall", "incident"]),
  max_age: maxAge.prefault(DEFAULT_MAX_AGE),
  severity: z
    .record(z.string().min(1).max(64), severityWord)
    .default({})
    .transform((words) => new Map(Object.entries(words))),
};
const reached = { ...common, ca: z.string().optional() };

/** One per kind: what may stand in glasskey.yaml, and the source that it makes. */
const KINDS = {
  pagerduty: {
    keys: z.strictObject({
      ...reached,
      url: url.prefault("https://api.pagerduty.com"),
      token: reference,
      urgency: z.strictObject({ high: severityWord.optional(), low: severityWord.optional() }).prefault({}),
    }),
  },
  grafana: { keys: z.strictObject({ ...reached, url, token: reference, oncall_url: url.optional() }) },
  alertmanager: {
    keys: z.strictObject({
      ...reached,
      url,
      knows: z.array(z.literal("incident", "Alertmanager knows incidents only")).min(1).default(["incident"]),
      bearer: reference.optional(),
      incident_label: label.default("incident"),
      severity_label: label.default("severity"),
    }),
  },
  webhook: {
    keys: z
      .strictObject({ ...common, secret: z.union([reference, z.array(reference).min(1).max(4)]) })
      .omit({ max_age: true }), // each push says how long it holds
  },
} as const;

/** The keys of a source's kind, for suggestions; none where there is no such kind. */
export function evidenceKeys(name: string): readonly string[] {
  const kind = name.split(":", 1)[0] ?? "";
  return isKind(kind) ? Object.keys(KINDS[kind].keys.shape) : [];
}

function isKind(kind: string): kind is keyof typeof KINDS {
  return Object.hasOwn(KINDS, kind);
}

/** `evidence:` of glasskey.yaml: a map from `kind:name` to the kind's keys. Paths in it are as written. */
export const evidenceConfig = z.record(z.string(), z.unknown()).transform((map, context): readonly SourceConfig[] => {
  const names = Object.keys(map);
  if (names.length > MAX_SOURCES) context.addIssue({ code: "custom", message: `has more than ${MAX_SOURCES} sources` });
  const sources: SourceConfig[] = [];
  for (const name of names.slice(0, MAX_SOURCES)) {
    const kind = name.split(":", 1)[0] ?? "";
    const fault =
      channelFault(name) ?? (isKind(kind) ? undefined : `has a kind that is none of ${Object.keys(KINDS).join(", ")}`);
    if (fault !== undefined) {
      context.addIssue({ code: "custom", path: [name], message: fault });
      continue;
    }
    const read = readSource(name, kind, map[name]);
    if (read.success) sources.push(read.source);
    else
      for (const issue of read.issues) context.issues.push({ ...issue, input: undefined, path: [name, ...issue.path] });
  }
  return sources;
});

type Read = { success: true; source: SourceConfig } | { success: false; issues: readonly z.core.$ZodIssue[] };

function readSource(name: string, kind: string, value: unknown): Read {
  switch (kind) {
    case "pagerduty": {
      const { success, data, error } = KINDS.pagerduty.keys.safeParse(value);
      if (!success) return { success, issues: error.issues };
      const { urgency, token } = data;
      const { high, low } = urgency;
      const words = { ...(high === undefined ? {} : { high }), ...(low === undefined ? {} : { low }) };
      return { success, source: { kind, token, urgency: words, ...reachedOf(name, data) } };
    }
    case "grafana": {
      const { success, data, error } = KINDS.grafana.keys.safeParse(value);
      if (!success) return { success, issues: error.issues };
      const { token, oncall_url: oncallUrl } = data;
      const source = { kind, token, ...reachedOf(name, data) } as const;
      return { success, source: oncallUrl === undefined ? source : { ...source, oncallUrl } };
    }
    case "alertmanager": {
      const { success, data, error } = KINDS.alertmanager.keys.safeParse(value);
      if (!success) return { success, issues: error.issues };
      const { bearer, incident_label: incidentLabel, severity_label: severityLabel } = data;
      const source = { kind, incidentLabel, severityLabel, ...reachedOf(name, data) } as const;
      return { success, source: bearer === undefined ? source : { ...source, token: bearer } };
    }
    default: {
      const { success, data, error } = KINDS.webhook.keys.safeParse(value);
      if (!success) return { success, issues: error.issues };
      const { knows, severity, secret } = data;
      const secrets = typeof secret === "string" ? [secret] : secret;
      return { success, source: { kind: "webhook", name, knows, severity, secrets, maxAgeMs: 0 } };
    }
  }
}

function reachedOf(
  name: string,
  data: {
    knows: readonly Knows[];
    max_age: number;
    severity: ReadonlyMap<string, string>;
    url: URL;
    ca?: string | undefined;
  },
): Reached {
  const { knows, max_age: maxAgeMs, severity, url, ca } = data;
  return { name, knows, maxAgeMs, severity, url, ...(ca === undefined ? {} : { ca }) };
}

/** The same sources with paths and references made absolute, in the ways glasskey.yaml's reader does it. */
export function placeEvidence(
  sources: readonly SourceConfig[],
  absolute: (path: string) => string,
  reference: (reference: string) => string,
): readonly SourceConfig[] {
  return sources.map((source) => {
    if (source.kind === "webhook") return { ...source, secrets: source.secrets.map(reference) };
    const ca = source.ca === undefined ? {} : { ca: absolute(source.ca) };
    if (source.kind === "alertmanager")
      return { ...source, ...ca, ...(source.token === undefined ? {} : { token: reference(source.token) }) };
    return { ...source, ...ca, token: reference(source.token) };
  });
}
