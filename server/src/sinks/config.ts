import { isIP } from "node:net";
import { z } from "zod";
import { unreachable } from "../core/errors.ts";

/** A sink as `glasskey.yaml` describes it. Secrets are references (`${file:…}`, `${env:…}`), read at each use. */
export type SinkConfig = SyslogSink | WebhookSink | SplunkSink | OtelSink | FileSink;

export interface CommonSink {
  readonly name: string;
  /** `ocsf`: OCSF 1.8 JSON; `entry`: the entry itself. */
  readonly format: "ocsf" | "entry";
  /** Where a sink that is new begins: with what comes from now on, or with the first entry of the log. */
  readonly from: "now" | "start";
  /** Whether names of people stand beside their pseudonymous ids. */
  readonly names: boolean;
}
interface OverTls extends CommonSink {
  /** File with the PEM of the CA that the far side's certificate must chain to; undefined: the public ones. */
  readonly ca?: string | undefined;
}
export interface SyslogSink extends OverTls {
  readonly kind: "syslog";
  readonly host: string;
  readonly port: number;
  readonly transport: "tls" | "tcp";
  /** The name that the certificate must have; undefined: `host`. */
  readonly serverName?: string | undefined;
  /** Files with a certificate of Glasskey's own and its key, for receivers that ask for one. */
  readonly client?: { readonly cert: string; readonly key: string } | undefined;
  /** The private enterprise number of the structured data (RFC 5424, section 7.2.2). */
  readonly enterprise: number;
  /** What stands as HOSTNAME; undefined: this machine's. */
  readonly hostname?: string | undefined;
}
export interface WebhookSink extends OverTls {
  readonly kind: "webhook";
  readonly url: string;
  /** Reference to `whsec_…` (Standard Webhooks). */
  readonly secret: string;
  readonly body: "ndjson" | "array";
}
export interface SplunkSink extends OverTls {
  readonly kind: "splunk_hec";
  /** The collector's base, without `/services/…`. */
  readonly url: string;
  readonly token: string;
  /** Splunk's index; undefined: the token's default. */
  readonly index?: string | undefined;
  readonly sourcetype?: string | undefined;
}
export interface OtelSink extends OverTls {
  readonly kind: "otel";
  /** The whole URL, with `/v1/logs`. */
  readonly url: string;
  /** Further headers, such as an authorization; their values are references. */
  readonly headers: Readonly<Record<string, string>>;
}
export interface FileSink extends CommonSink {
  readonly kind: "file";
  readonly folder: string;
  /** A file that has grown to this size is left as it is, and a new one begun. */
  readonly rotateBytes: number;
}

const MAX_SINKS = 20; // each has a connection's worth of memory and asks the store four times a second
const NAME = /^[a-z][a-z0-9-]{0,39}$/;
/**
 * RFC 5612 keeps this number for documentation. Glasskey has none of its own, and an SD-ID without `@` would have to be
 * registered with IANA.
 */
const DOCUMENTATION_ENTERPRISE = 32_473;
const MIB = 1024 * 1024;

const reference = z
  .string()
  .regex(
    /^\$\{(file|env):[^{}]+\}$/,
    "a literal secret is refused; write a reference such as ${file:secrets/siem-token}",
  );
const isLoopback = (host: string): boolean => /^(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[?::1\]?)$/.test(host);

const url = z.string().superRefine((text, context) => {
  const parsed = URL.parse(text);
  const fault =
    parsed === null || (parsed.protocol !== "https:" && parsed.protocol !== "http:")
      ? "must be an https:// URL"
      : parsed.username !== "" || parsed.password !== ""
        ? "must not have a user or a password in it; write the secret as a reference"
        : parsed.protocol === "http:" && !isLoopback(parsed.hostname)
          ? "must be an https:// URL: without TLS only this machine is reached"
          : undefined;
  if (fault !== undefined) context.addIssue({ code: "custom", message: fault });
});
const path = z.string().min(1).max(1_000);
const host = z
  .string()
  .max(253)
  .refine((text) => isIP(text) !== 0 || /^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$/.test(text), {
    message: "is not a host name or an address",
  });
const size = z.string().transform((text, context): number => {
  const [, count, unit] = /^(\d{1,5})(MiB|GiB)$/.exec(text) ?? [];
  const bytes = Number(count) * (unit === "GiB" ? 1024 * MIB : MIB);
  if (count !== undefined && bytes >= MIB && bytes <= 64 * 1024 * MIB) return bytes;
  context.addIssue({ code: "custom", message: "must be a size from 1MiB to 64GiB" });
  return z.NEVER;
});
const printable = z.string().regex(/^[\x21-\x7E]{1,100}$/, "must be 1 to 100 printable ASCII characters");

const common = {
  format: z.enum(["ocsf", "entry"]).default("ocsf"),
  from: z.enum(["now", "start"]).default("now"),
  names: z.boolean().default(false),
};
const overTls = { ...common, ca: path.optional() };

const KINDS = {
  syslog: z
    .strictObject({
      kind: z.literal("syslog"),
      host,
      port: z.number().int().min(1).max(65_535).default(6514), // RFC 5425, section 4.1
      transport: z.enum(["tls", "tcp"]).default("tls"),
      server_name: host.optional(),
      cert: path.optional(),
      key: path.optional(),
      enterprise: z.number().int().min(1).max(4_294_967_295).default(DOCUMENTATION_ENTERPRISE),
      hostname: printable.optional(),
      ...overTls,
    })
    .superRefine((value, context) => {
      if (value.transport === "tcp" && !isLoopback(value.host)) {
        const message = "must be tls: without TLS only this machine is reached";
        context.addIssue({ code: "custom", path: ["transport"], message });
      }
      if ((value.cert === undefined) !== (value.key === undefined)) {
        context.addIssue({ code: "custom", message: "has one of `cert` and `key`, which belong together" });
      }
    }),
  webhook: z.strictObject({
    ...{ kind: z.literal("webhook"), url, secret: reference, body: z.enum(["ndjson", "array"]).default("ndjson") },
    ...overTls,
  }),
  splunk_hec: z.strictObject({
    ...{ kind: z.literal("splunk_hec"), url, token: reference, index: printable.optional() },
    ...{ sourcetype: printable.optional(), ...overTls },
  }),
  otel: z.strictObject({
    ...{ kind: z.literal("otel"), url },
    headers: z.record(z.string().regex(/^[A-Za-z0-9-]{1,60}$/, "is not the name of a header"), reference).default({}),
    ...overTls,
  }),
  file: z.strictObject({ kind: z.literal("file"), folder: path, rotate: size.prefault("100MiB"), ...common }),
} as const;
type Kind = keyof typeof KINDS;
const isKind = (kind: unknown): kind is Kind => typeof kind === "string" && Object.hasOwn(KINDS, kind);

/** All keys that a sink of any kind can have, for suggestions. */
export const SINK_KEYS: readonly string[] = [
  ...new Set(Object.values(KINDS).flatMap((kind) => Object.keys(kind.shape))),
];

/**
 * `sinks:` in glasskey.yaml, by name. Relative paths and references stay as they are written; {@link placeSinks}
 * resolves them.
 */
export const sinksSchema = z.record(z.string(), z.unknown()).transform((input, context): readonly SinkConfig[] => {
  const sinks: SinkConfig[] = [];
  for (const [name, value] of Object.entries(input)) {
    const kind: unknown = typeof value === "object" && value !== null && "kind" in value ? value.kind : undefined;
    if (!NAME.test(name)) {
      const message = "is not the name of a sink; it has lower-case letters, digits and hyphens, at most 40";
      context.addIssue({ code: "custom", path: [name], message });
    } else if (!isKind(kind)) {
      const message = `needs \`kind\`, one of ${Object.keys(KINDS).join(", ")}`;
      context.addIssue({ code: "custom", path: [name], message });
    } else {
      const parsed = parse(name, kind, value);
      if (parsed.ok) sinks.push(parsed.sink);
      else for (const issue of parsed.issues) pass(context, name, issue);
    }
  }
  if (sinks.length > MAX_SINKS) context.addIssue({ code: "custom", message: `has more than ${MAX_SINKS} sinks` });
  return context.issues.length > 0 ? z.NEVER : sinks;
});

type Parsed = { ok: true; sink: SinkConfig } | { ok: false; issues: readonly z.core.$ZodIssue[] };

function parse(name: string, kind: Kind, value: unknown): Parsed {
  switch (kind) {
    case "syslog": {
      const parsed = KINDS.syslog.safeParse(value);
      if (!parsed.success) return { ok: false, issues: parsed.error.issues };
      const { server_name: serverName, cert, key, ...rest } = parsed.data;
      const client = cert === undefined || key === undefined ? undefined : { cert, key };
      return { ok: true, sink: { name, ...rest, serverName, client } };
    }
    case "file": {
      const parsed = KINDS.file.safeParse(value);
      if (!parsed.success) return { ok: false, issues: parsed.error.issues };
      const { rotate: rotateBytes, ...rest } = parsed.data;
      return { ok: true, sink: { name, ...rest, rotateBytes } };
    }
    case "webhook":
    case "splunk_hec":
    case "otel": {
      const parsed = KINDS[kind].safeParse(value);
      return parsed.success ? { ok: true, sink: { name, ...parsed.data } } : { ok: false, issues: parsed.error.issues };
    }
    default:
      return unreachable(kind);
  }
}

/** An issue of one sink as an issue of the whole map; unknown keys stay recognisable as such. */
function pass(context: z.core.$RefinementCtx, name: string, issue: z.core.$ZodIssue): void {
  const path = [name, ...issue.path];
  if (issue.code === "unrecognized_keys")
    context.addIssue({ code: issue.code, keys: issue.keys, path, input: issue.input ?? {} });
  else context.addIssue({ code: "custom", message: issue.message, path });
}

/** The same sinks with every path and reference made absolute by the caller's rules. */
export function placeSinks(
  sinks: readonly SinkConfig[],
  absolute: (path: string) => string,
  reference: (text: string) => string,
): readonly SinkConfig[] {
  return sinks.map((sink): SinkConfig => {
    if (sink.kind === "file") return { ...sink, folder: absolute(sink.folder) };
    const ca = sink.ca === undefined ? {} : { ca: absolute(sink.ca) };
    switch (sink.kind) {
      case "syslog": {
        const { client } = sink;
        const own = client === undefined ? undefined : { cert: absolute(client.cert), key: absolute(client.key) };
        return { ...sink, ...ca, client: own };
      }
      case "webhook":
        return { ...sink, ...ca, secret: reference(sink.secret) };
      case "splunk_hec":
        return { ...sink, ...ca, token: reference(sink.token) };
      case "otel": {
        const headers = Object.entries(sink.headers).map(([name, text]) => [name, reference(text)] as const);
        return { ...sink, ...ca, headers: Object.fromEntries(headers) };
      }
      default:
        return unreachable(sink);
    }
  });
}
