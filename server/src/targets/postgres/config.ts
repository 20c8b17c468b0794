import { X509Certificate } from "node:crypto";
import { z } from "zod";
import { GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { LeasePlan, Parsed, Problem } from "../target.ts";

/** What `config:` of a `kind: postgres` target says, every default filled in. */
export type PostgresConfig = {
  readonly host: string;
  readonly port: number;
  readonly tls: {
    /** PEM of the authorities that may sign the target's certificate, or the word `system` for the machine's own. */
    readonly ca: string;
    /** The name that the certificate must carry. */
    readonly servername: string;
  };
  /** Glasskey's own login. `password` is a secret reference, read at the moment of use. */
  readonly admin: { readonly user: string; readonly password: string; readonly database: string };
  /** Databases that grants may open; the first is the default. Revocation looks at all databases of the cluster. */
  readonly databases: readonly string[];
  /** How many connections one lease may hold at once. */
  readonly connections: number;
};

/** Everything that fence, revoke and confirm need, frozen before the first remote call. */
export type PostgresPlan = {
  readonly v: 1;
  readonly host: string;
  readonly port: number;
  /** `ca: null` stands for the machine's own authorities. */
  readonly tls: { readonly ca: string | null; readonly servername: string };
  readonly admin: { readonly user: string; readonly password: string; readonly database: string };
  /** Name of the minted role: `gk_<install>_<lease>`. */
  readonly role: string;
  /** The NOLOGIN role whose privileges the lease has; empty in the plan of an orphan, which needs none. */
  readonly template: string;
  readonly databases: readonly string[];
  /** The grant's end, ISO 8601. */
  readonly validUntil: string;
  readonly connectionLimit: number;
};

const NAME_MAX_BYTES = 63; // NAMEDATALEN - 1: PostgreSQL cuts longer names silently, which would name another object

const name = z
  .string()
  .min(1)
  .refine((text) => Buffer.byteLength(text) <= NAME_MAX_BYTES && !text.includes("\0"), {
    message: `a PostgreSQL name has at most ${NAME_MAX_BYTES} bytes and no NUL`,
  });

const host = z.string().regex(/^[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?$|^::1?$/, {
  message: "write a host name or an IP address; sockets in the file system carry no TLS",
});

const reference = z.string().regex(/^\$\{(?:file|env):[^{}\p{Cc}]{1,1000}\}$/u, {
  message:
    "a literal secret is refused; write a reference such as ${file:/run/secrets/orders-admin} or ${env:ORDERS_ADMIN}",
});

const configSchema = z.strictObject({
  host,
  port: z.int().min(1).max(65_535).default(5432),
  tls: z.strictObject({
    ca: z.string().refine((text) => text === "system" || isPem(text), {
      message: 'write "system", or certificates in PEM',
    }),
    servername: host.optional(),
  }),
  admin: z.strictObject({ user: name, password: reference, database: name.default("postgres") }),
  databases: z
    .array(name)
    .min(1, { message: "name at least one database; the first is the default" })
    .max(100)
    .refine((all) => new Set(all).size === all.length, { message: "a database is named twice" }),
  connections: z.int().min(1).max(1_000).default(20),
});

const planSchema = z.strictObject({
  v: z.literal(1),
  host: z.string(),
  port: z.int(),
  tls: z.strictObject({ ca: z.string().nullable(), servername: z.string() }),
  admin: z.strictObject({ user: z.string(), password: z.string(), database: z.string() }),
  role: z.string().regex(/^gk_[0-9a-hjkmnp-tv-z]{6}_[0-9a-hjkmnp-tv-z]{12}$/),
  template: z.string(),
  databases: z.array(z.string()).min(1),
  validUntil: z.iso.datetime(),
  connectionLimit: z.int(),
});

/** Checks `config:` of a target file. Input is untrusted; the value of a good one is plain JSON with defaults filled in. */
export function parseConfig(input: unknown): Parsed {
  const parsed = configSchema.safeParse(input);
  if (!parsed.success) return { ok: false, problems: parsed.error.issues.flatMap(problemsOf) };
  const { tls, ...rest } = parsed.data;
  return { ok: true, value: { ...rest, tls: { ca: tls.ca, servername: tls.servername ?? rest.host } } };
}

/** The typed view of a value that {@link parseConfig} gave. @throws GlassError `config_invalid` for anything else. */
export function configOf(value: JsonObject): PostgresConfig {
  const parsed = parseConfig(value);
  if (parsed.ok) return parsed.value as PostgresConfig;
  const [first] = parsed.problems;
  throw new GlassError("config_invalid", `${first?.path.join(".") ?? ""}: ${first?.message ?? "not a config"}`);
}

/** The typed view of a stored plan. @throws GlassError `integrity` when it is not one. */
export function planOf(value: LeasePlan): PostgresPlan {
  const parsed = planSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new GlassError("integrity", "the stored plan of this lease is not a PostgreSQL plan of version 1", {
    cause: parsed.error,
  });
}

function problemsOf(issue: z.core.$ZodIssue): Problem[] {
  const path = issue.path.map((part) => (typeof part === "number" ? part : String(part)));
  if (issue.code !== "unrecognized_keys") return [{ path, message: issue.message }];
  return issue.keys.map((key) => ({ path: [...path, key], message: `unknown key "${key}"` }));
}

function isPem(text: string): boolean {
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  try {
    return blocks.length > 0 && blocks.every((block) => new X509Certificate(block).raw.length > 0);
  } catch {
    return false;
  }
}
