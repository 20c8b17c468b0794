import { isIP } from "node:net";
import { z } from "zod";
import { GlassError } from "../../core/errors.ts";
import { isId } from "../../core/ids.ts";
import type { JsonObject } from "../../core/json.ts";
import type { LeasePlan, LeaseRequest, Parsed, Problem, RemoteLease } from "../target.ts";
import { parsePublicKeyLine, publicKeyLine } from "./keys.ts";
import { SshError } from "./types.ts";

/** How long a session's certificate is valid after the decision to let it in; sshd looks at it at the login only. */
export const CERTIFICATE_MS = 60_000;
/** And before, for hosts whose clock is behind. */
export const BACKDATE_MS = 60_000;

/** How a host's key is known: by who signed it, or itself. Lines as in `ssh_host_ed25519_key.pub`, without comment. */
export type HostKeys = { readonly ca: readonly string[] } | { readonly pin: readonly string[] };

/** Glasskey's own login on the host. */
export type Control = {
  readonly user: string;
  /** The principal in its certificate; the user's name where sshd has no AuthorizedPrincipalsFile. */
  readonly principal: string;
  /** `RevokedKeys` of sshd_config: an absolute path on the host. */
  readonly revokedKeys: string;
};

/** What `config:` of a `kind: ssh` target says, every default filled in. */
export type SshConfig = {
  readonly host: string;
  readonly port: number;
  readonly hostKeys: HostKeys;
  /** The principal in each lease's certificate; null stands for the scope's user. */
  readonly principal: string | null;
  /** Addresses or networks from which the host sees the gateway; empty: as the route says. */
  readonly from: readonly string[];
  readonly control: Control | null;
  /** Files on the host whose SHA-256 is part of the fingerprint. */
  readonly fingerprint: { readonly paths: readonly string[] };
  /** How often each side of a session is asked for a sign of life. */
  readonly keepaliveSeconds: number;
};

/** Everything that sessions, fence, revoke and confirm need, frozen before the first remote call. No secret in it. */
export type SshPlan = {
  readonly v: 1;
  readonly host: string;
  readonly port: number;
  readonly hostKeys: HostKeys;
  /** `gk_<install>_<lease>`: key id of every certificate of this lease, and the mark on what its sessions run. */
  readonly lease: string;
  /** The user on the host; empty in the plan of an orphan, which nobody can be let in by. */
  readonly user: string;
  readonly principal: string;
  /** The certificate's extensions, such as `permit-pty`: only what the scope needs. */
  readonly extensions: readonly string[];
  readonly from: readonly string[];
  readonly control: Control | null;
  readonly fingerprint: { readonly paths: readonly string[] };
  readonly keepaliveSeconds: number;
  /** The lease's end, ISO 8601. */
  readonly validUntil: string;
};

/** Of a name on Unix: what useradd takes and nothing that a shell, sshd or a log could read as more. */
const UNIX_NAME = /^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/;
const PRINCIPAL = /^[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,127}$/;
/** Absolute, and made of characters that need no quoting anywhere. */
const PLAIN_PATH = /^(?:\/[A-Za-z0-9_@%+=:,.-]+)+$/;
const LEASE = /^gk_[0-9a-hjkmnp-tv-z]{6}_[0-9a-hjkmnp-tv-z]{12}$/;
const INSTALL = /^[0-9a-hjkmnp-tv-z]{6}$/;

/** Said of a session's user or principal that is Glasskey's own. */
export const OWN_LOGIN = "this is Glasskey's own login on the host, and nobody else's";

const host = z.string().regex(/^[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?$|^::1?$/, {
  message: "write a host name or an IP address",
});
const unixName = z.string().regex(UNIX_NAME, { message: "write the name of a user on the host" });
const principal = z.string().regex(PRINCIPAL, {
  message: "a principal has letters, digits and _ . @ : - only; an empty one would let everybody in",
});
const path = z
  .string()
  .max(1000)
  .regex(PLAIN_PATH, { message: "write an absolute path of letters, digits and _ @ % + = : , . -" })
  .refine((text) => !text.split("/").includes(".."), { message: "write the path without .." });

const keyLines = z
  .array(z.string())
  .min(1, { message: "name at least one key: an empty list trusts nobody" })
  .max(20)
  .transform((lines, context) =>
    lines.map((line, index) => {
      const read = readLine(line);
      if (typeof read !== "string") context.addIssue({ code: "custom", path: [index], message: read.problem });
      return typeof read === "string" ? read : "";
    }),
  );

const network = z.string().refine(isNetwork, { message: "write an IP address or a network such as 10.0.0.0/24" });

const configSchema = z.strictObject({
  host,
  port: z.int().min(1).max(65_535).default(22),
  hostKeys: z.union([z.strictObject({ ca: keyLines }), z.strictObject({ pin: keyLines })], {
    error: (issue) =>
      issue.code === "invalid_union" ? hostKeysHint(issue.errors) : "write { ca: [LINE] } or { pin: [LINE] }",
  }),
  principal: principal.nullable().default(null),
  from: z.array(network).max(16).default([]),
  control: z
    .strictObject({
      user: unixName,
      principal: principal.optional(),
      revokedKeys: path
        .refine((text) => /revoked|krl/.test(text.split("/").at(-1) ?? ""), {
          message: 'the file\'s name must have "revoked" or "krl" in it: the script on the host writes no other',
        })
        .default("/etc/ssh/glasskey_revoked_keys"),
    })
    .nullable()
    .default(null),
  fingerprint: z.strictObject({ paths: z.array(path).max(100).default([]) }).default({ paths: [] }),
  keepaliveSeconds: z.int().min(5).max(600).default(30),
});

const planSchema = z.strictObject({
  v: z.literal(1),
  host: z.string(),
  port: z.int(),
  hostKeys: z.union([
    z.strictObject({ ca: z.array(z.string()).min(1) }),
    z.strictObject({ pin: z.array(z.string()).min(1) }),
  ]),
  lease: z.string().regex(LEASE),
  user: z.union([z.literal(""), z.string().regex(UNIX_NAME)]),
  principal: z.union([z.literal(""), z.string().regex(PRINCIPAL)]),
  extensions: z.array(z.string().regex(/^[\w@.-]{1,64}$/)),
  from: z.array(z.string()),
  control: z.strictObject({ user: z.string(), principal: z.string(), revokedKeys: z.string() }).nullable(),
  fingerprint: z.strictObject({ paths: z.array(z.string()) }),
  keepaliveSeconds: z.int(),
  validUntil: z.iso.datetime(),
});

/** Checks `config:` of a target file. Input is untrusted; the value of a good one is plain JSON with defaults filled in. */
export function parseConfig(input: unknown): Parsed {
  const parsed = configSchema.safeParse(input);
  if (!parsed.success) return { ok: false, problems: parsed.error.issues.flatMap(problemsOf) };
  const { control, ...rest } = parsed.data;
  const own = control === null ? null : { ...control, principal: control.principal ?? control.user };
  if (own !== null && own.user !== "root" && rest.principal === own.principal) {
    return { ok: false, problems: [{ path: ["principal"], message: OWN_LOGIN }] };
  }
  return { ok: true, value: { ...rest, control: own } };
}

/** The typed view of a value that {@link parseConfig} gave. @throws GlassError `config_invalid` for anything else. */
export function configOf(value: JsonObject): SshConfig {
  const parsed = parseConfig(value);
  if (parsed.ok) return parsed.value as SshConfig;
  const [first] = parsed.problems;
  throw new GlassError("config_invalid", `${first?.path.join(".") ?? ""}: ${first?.message ?? "not a config"}`);
}

/** The typed view of a stored plan. @throws GlassError `integrity` when it is not one. */
export function planOf(value: LeasePlan): SshPlan {
  const parsed = planSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new GlassError("integrity", "the stored plan of this lease is not an SSH plan of version 1", {
    cause: parsed.error,
  });
}

/** Pure: the same request gives the same plan. @throws GlassError `internal` for ids that are not ids, or a scope without user. */
export function createPlan(request: LeaseRequest): LeasePlan {
  const config = configOf(request.config);
  const user = userOf(request.scope);
  if (!INSTALL.test(request.install) || !isId("lease", request.lease) || user === undefined) {
    throw new GlassError("internal", "a lease needs an installation id, a lease id and a scope with a user");
  }
  const plan: SshPlan = {
    ...frame(config, leaseName(request.install, request.lease)),
    ...{ user, principal: config.principal ?? user, extensions: extensionsFor(request.scope) },
    validUntil: request.endsAt.toISOString(),
  };
  return plan;
}

/** A plan that can fence, revoke and confirm what runs on the host, and let nobody in. */
export function orphanPlan(config: JsonObject, orphan: RemoteLease): LeasePlan {
  if (!LEASE.test(orphan.name)) throw new GlassError("internal", "this is no lease's name");
  const nobody = { user: "", principal: "", extensions: [], validUntil: new Date(0).toISOString() };
  const plan: SshPlan = { ...frame(configOf(config), orphan.name), ...nobody };
  return plan;
}

/** `gk_ab12cd_7kq2m9x4tbzc` */
export function leaseName(install: string, lease: string): string {
  return `gk_${install}_${lease.slice("ls_".length)}`;
}

export function isLeaseName(text: string): boolean {
  return LEASE.test(text);
}

/** Whether a session as this user would speak with Glasskey's own script on the host, which may end anybody's lease. */
export function isControlLogin({ control }: Pick<SshConfig, "control">, user: string): boolean {
  return control !== null && control.user !== "root" && control.user === user;
}

export function isInstall(text: string): boolean {
  return INSTALL.test(text);
}

/** The user that a scope names on the host. */
export function userOf(scope: JsonObject | undefined): string | undefined {
  const user = scope?.["user"];
  return typeof user === "string" && UNIX_NAME.test(user) ? user : undefined;
}

/** What sshd must let a session have, by the scope; everything else stays refused by the host too. */
export function extensionsFor(scope: JsonObject): string[] {
  const some = (value: unknown): boolean => Array.isArray(value) && value.length > 0;
  const extensions: string[] = [];
  if (scope["x11"] === true) extensions.push("permit-X11-forwarding");
  if (scope["agent"] === true) extensions.push("permit-agent-forwarding");
  if (some(scope["forward"]) || some(scope["remoteForward"])) extensions.push("permit-port-forwarding");
  if (scope["shell"] === true || some(scope["commands"])) extensions.push("permit-pty");
  return extensions;
}

function frame(config: SshConfig, lease: string): Omit<SshPlan, "user" | "principal" | "extensions" | "validUntil"> {
  const { host: name, port, hostKeys, from, control, fingerprint, keepaliveSeconds } = config;
  return { v: 1, host: name, port, hostKeys, lease, from, control, fingerprint, keepaliveSeconds };
}

function readLine(line: string): string | { problem: string } {
  try {
    const { key } = parsePublicKeyLine(line.trim());
    return publicKeyLine(key.blob);
  } catch (error) {
    const why = error instanceof SshError ? error.message : "this is no public key";
    return { problem: `${why}; write the line of the host's .pub file, such as ssh-ed25519 AAAA…` };
  }
}

function isNetwork(text: string): boolean {
  const [address = "", bits, ...more] = text.split("/");
  const version = isIP(address);
  if (version === 0 || more.length > 0 || address.includes("%")) return false;
  if (bits === undefined) return true;
  // A network of length 0 is everywhere: then the certificate would not be bound to the gateway.
  return /^[1-9]\d{0,2}$/.test(bits) && Number(bits) <= (version === 4 ? 32 : 128);
}

function hostKeysHint(errors: readonly (readonly z.core.$ZodIssue[])[]): string {
  const line = errors.flat().find((issue) => issue.code === "custom" || issue.code === "too_small");
  return line?.message ?? "write either ca: [LINE] or pin: [LINE], with lines of public keys";
}

function problemsOf(issue: z.core.$ZodIssue): Problem[] {
  const at = issue.path.map((part) => (typeof part === "number" ? part : String(part)));
  if (issue.code !== "unrecognized_keys") return [{ path: at, message: issue.message }];
  return issue.keys.map((key) => ({ path: [...at, key], message: `unknown key "${key}"` }));
}
