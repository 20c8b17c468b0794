import { readFileSync } from "node:fs";
import { isIPv6 } from "node:net";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { z } from "zod";
import { locateSource, POLICY_GIT_KEYS, policySchema, type GitSource } from "./bundles/config.ts";
import {
  archiveKeysAt,
  archiveSchema,
  chunkStoreSchema,
  mirrorSchema,
  overlap,
  placeArchive,
  placeAt,
  type ArchiveConfig,
  type PlaceConfig,
} from "./archive/config.ts";
import { locateWitnesses, witnessesSchema, witnessKeys, type WitnessesConfig } from "./audit/witness-config.ts";
import { LONGEST_KEEP_MS, parseDuration } from "./core/duration.ts";
import { describe, GlassError } from "./core/errors.ts";
import { Secret } from "./core/secret.ts";
import { evidenceConfig, evidenceKeys, placeEvidence, type SourceConfig } from "./evidence/config.ts";
import { locateChannels, notifyKeys, notifySchema, type NotifyConfig } from "./notify/config.ts";
import { readDocument } from "./playbooks/document.ts";
import { placeS3, type S3Config } from "./objects/config.ts";
import { formatProblems, suggest } from "./playbooks/problem.ts";
import { locate, startOf, toJson } from "./playbooks/shape.ts";
import { placeSinks, SINK_KEYS, sinksSchema, type SinkConfig } from "./sinks/config.ts";
import type { SecretResolver } from "./targets/target.ts";

/** Where people reach the API. @param host a name or an address, as it stands in `hosts`. */
export function apiUrl(host: string, port: number): string {
  return `https://${isIPv6(host) ? `[${host}]` : host}:${port}`;
}

/** What `glasskey.yaml` says, with every path absolute and every default filled in. */
export interface ServerConfig {
  /** The policy folder; what relative references in targets are relative to, also where the policy comes from git. */
  policyDir: string;
  /** Where the policy comes from, if not from the folder. */
  policyGit?: GitSource | undefined;
  dataDir: string;
  api: Listen;
  /** Where Prometheus and probes are answered, over plain HTTP; undefined: nowhere. */
  metrics?: Listen | undefined;
  /** Listeners of the gateway, by target kind. */
  gateway: Readonly<Record<string, Listen>>;
  /** Names and addresses that people reach this server by; they go into its certificate. */
  hosts: readonly string[];
  /** Files of a certificate of your own; undefined: Glasskey's own CA, made at first start. */
  tls: { cert: string; key: string; ca: string } | undefined;
  recording: "durable" | "written";
  recordings: RecordingsConfig;
  database: ExternalDatabase | undefined;
  /** Where the root key is read from; undefined: `root.key` in the data folder, made at first start. */
  rootKey: string | undefined;
  tokenTtlMs: number;
  /** Lets clients on this machine in without TLS. For measurements and old clients. */
  plaintextLoopback: boolean;
  /** Who is asked for facts from outside. */
  evidence: readonly SourceConfig[];
  /** Where people are told of things. */
  notify: NotifyConfig;
  /** Where the log goes on to. */
  sinks: readonly SinkConfig[];
  /** The log's origin (C2SP tlog-checkpoint); undefined: made from the installation's id. */
  origin: string | undefined;
  /** Where log and recordings are copied to, for good; undefined: nowhere. */
  archive?: ArchiveConfig | undefined;
  /** Where a copy of the log is kept up to date for auditors; undefined: nowhere. */
  mirror?: PlaceConfig | undefined;
  /** Who cosigns the log's checkpoints; undefined: nobody. */
  witnesses?: WitnessesConfig | undefined;
}

export interface RecordingsConfig {
  /** Where sealed chunks are kept; undefined: in the data folder. */
  store?: S3Config | undefined;
  /** A second folder for the journal, on another disk; undefined: one is all there is. */
  mirror: string | undefined;
  /** How long a complete recording is kept before its key is destroyed; undefined: for ever. */
  keepMs: number | undefined;
  /** Sizes of the journal; glasskey.yaml has no key for them. */
  limits?: { fileBytes?: number; maxUnsealedBytes?: number };
}

export interface Listen {
  host: string;
  port: number;
}

export interface ExternalDatabase {
  host: string;
  port: number;
  user: string;
  password: string;
  database: string;
  ca: string | undefined;
  /** Whoever owns the tables and changes them with a new version; undefined: `user` does. */
  owner?: { user: string; password: string } | undefined;
}

const listen = z.string().transform((text, context): Listen => {
  const match = /^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (match?.[1] === undefined || port > 65_535) {
    context.addIssue({
      code: "custom",
      message: "must be HOST:PORT, such as 127.0.0.1:7432 (port 0 takes a free one)",
    });
    return z.NEVER;
  }
  return { host: match[1].replaceAll(/[[\]]/g, ""), port };
});

/** Where a kind of targets is listened for, or nowhere. */
const listenOrOff = z.union([z.literal("off").transform(() => undefined), listen], {
  error: "must be HOST:PORT, such as 127.0.0.1:7432 (port 0 takes a free one), or off",
});

const durationUpTo = (maxMs?: number) =>
  z.string().transform((text, context): number => {
    try {
      return parseDuration(text, maxMs);
    } catch (error) {
      context.addIssue({ code: "custom", message: describe(error) });
      return z.NEVER;
    }
  });
const duration = durationUpTo();

/** How every message begins that refuses a secret which is written out. */
const LITERAL_SECRET = "a literal secret is refused";

const reference = z
  .string()
  .regex(
    /^\$\{(file|env):[^{}]+\}$/,
    "a literal secret is refused; write a reference such as ${file:secrets/store-password}",
  );

const schema = z.strictObject({
  policy: policySchema.prefault("policy"),
  data: z.string().default("data"),
  listen: z
    .strictObject({
      api: listen.prefault("127.0.0.1:7443"),
      postgres: listenOrOff.prefault("127.0.0.1:7432"),
      ssh: listenOrOff.prefault("127.0.0.1:7422"),
      metrics: listen.optional(),
    })
    .prefault({}),
  hosts: z
    .array(z.string().regex(/^[A-Za-z0-9.:-]{1,253}$/, "is not a host name or an address"))
    .min(1)
    .default(["localhost", "127.0.0.1"]),
  tls: z.strictObject({ cert: z.string(), key: z.string(), ca: z.string() }).optional(),
  recording: z.enum(["durable", "written"]).default("durable"),
  recordings: z
    .strictObject({
      store: chunkStoreSchema.optional(),
      mirror: z.string().optional(),
      keep: durationUpTo(LONGEST_KEEP_MS).optional(),
    })
    .prefault({}),
  database: z
    .strictObject({
      host: z.string(),
      port: z.number().int().min(1).max(65_535).default(5432),
      user: z.string(),
      password: reference,
      database: z.string().default("glasskey"),
      ca: z.string().optional(),
      owner: z.strictObject({ user: z.string(), password: reference }).optional(),
    })
    .refine((db) => db.owner?.user !== db.user, {
      message: "`owner` is also `user`: whoever works on the store must not own the log's tables",
    })
    .refine((db) => db.ca !== undefined || /^(localhost|127\.\d+\.\d+\.\d+|::1)$/.test(db.host), {
      message: "`ca` is missing: a store on another machine is reached over verified TLS only",
    })
    .optional(),
  root_key: reference.optional(),
  tokens: z.strictObject({ ttl: duration.prefault("1h") }).prefault({}),
  plaintext_loopback: z.boolean().default(false),
  evidence: evidenceConfig.prefault({}),
  notify: notifySchema.prefault({}),
  sinks: sinksSchema.prefault({}),
  archive: archiveSchema.optional(),
  log: z
    .strictObject({
      origin: z
        .string()
        .regex(/^[A-Za-z0-9./_-]{3,200}$/, "is not a log origin such as example.com/glasskey")
        .optional(),
      witnesses: witnessesSchema.optional(),
      mirror: mirrorSchema.optional(),
    })
    .prefault({}),
});

/**
 * Reads `glasskey.yaml`. Relative paths are relative to the file.
 * @throws GlassError `config_invalid` whose message names line, column and what would be right.
 */
export function readConfig(file: string, dataDir?: string): ServerConfig {
  const path = resolve(file);
  let source: string;
  try {
    source = readFileSync(path, "utf8");
  } catch (cause) {
    const code = cause instanceof Error && "code" in cause ? cause.code : "";
    if (code === "EISDIR")
      throw new GlassError("config_invalid", `${path} is a folder`, {
        next: `Give the file in it: --config ${join(path, "glasskey.yaml")}`,
        cause,
      });
    throw new GlassError(
      "config_invalid",
      code === "ENOENT" ? `there is no ${path}` : `cannot read ${path}: ${describe(cause)}`,
      {
        next: "Say where it is with --config FILE, or make a folder to start from: glass init DIR",
        cause,
      },
    );
  }
  const document = readDocument(file, source);
  const root = document.root;
  const empty = root?.type === "scalar" && root.value === null;
  const parsed = root === undefined ? undefined : schema.safeParse(empty ? {} : toJson(root));
  if (root !== undefined && parsed?.success === false) {
    for (const issue of parsed.error.issues) {
      const path = issue.path.filter((step) => typeof step !== "symbol");
      if (issue.code === "unrecognized_keys") {
        for (const key of issue.keys) {
          const node = locateKey(root, path, key);
          document.mask(locate(root, [...path, key])); // a slip of "password" has a password behind it
          document.report(node, `there is no key "${key}" here`, suggest(key, knownKeys(path)));
        }
      } else {
        const place = path.length === 0 ? startOf(root) : locate(root, path);
        if (issue.message.startsWith(LITERAL_SECRET)) document.mask(place); // it is one: nobody else shall read it
        document.report(place, `${path.join(".")} ${inWords(issue.message)}`.trim());
      }
    }
  }
  const problems = document.problems();
  if (problems.length > 0 || parsed?.success !== true)
    throw new GlassError("config_invalid", formatProblems(problems).trimEnd());
  const value = parsed.data;
  const base = dirname(path);
  const absolute = (text: string): string => (isAbsolute(text) ? text : join(base, text));
  const reference = (text: string): string =>
    text.startsWith("${file:") ? `\${file:${absolute(text.slice("${file:".length, -1))}}` : text;
  const archive = value.archive === undefined ? undefined : placeArchive(value.archive, { path: absolute, reference });
  const mirror = value.log.mirror === undefined ? undefined : placeAt(value.log.mirror, { path: absolute, reference });
  if (root !== undefined && archive !== undefined && mirror !== undefined && overlap(archive.to, mirror)) {
    const why = "is where the archive is: a mirror replaces and removes files there. Give it a place of its own";
    document.report(locate(root, ["log", "mirror"]), `log.mirror ${why}`);
    throw new GlassError("config_invalid", formatProblems(document.problems()).trimEnd());
  }
  const policy = locateSource(value.policy, { path: absolute, reference });
  return {
    policyDir: policy.kind === "folder" ? policy.folder : base,
    policyGit: policy.kind === "git" ? policy : undefined,
    dataDir: dataDir === undefined ? absolute(value.data) : resolve(dataDir),
    api: value.listen.api,
    metrics: value.listen.metrics,
    gateway: listeners({ postgres: value.listen.postgres, ssh: value.listen.ssh }),
    hosts: value.hosts,
    tls:
      value.tls === undefined
        ? undefined
        : { cert: absolute(value.tls.cert), key: absolute(value.tls.key), ca: absolute(value.tls.ca) },
    recording: value.recording,
    archive,
    mirror,
    recordings: {
      ...(value.recordings.store === undefined
        ? {}
        : { store: placeS3(value.recordings.store, { path: absolute, reference }) }),
      mirror: value.recordings.mirror === undefined ? undefined : absolute(value.recordings.mirror),
      keepMs: value.recordings.keep,
    },
    database:
      value.database === undefined
        ? undefined
        : {
            ...value.database,
            password: reference(value.database.password),
            ca: value.database.ca === undefined ? undefined : absolute(value.database.ca),
            owner:
              value.database.owner === undefined
                ? undefined
                : { user: value.database.owner.user, password: reference(value.database.owner.password) },
          },
    rootKey: value.root_key === undefined ? undefined : reference(value.root_key),
    tokenTtlMs: value.tokens.ttl,
    plaintextLoopback: value.plaintext_loopback,
    evidence: placeEvidence(value.evidence, absolute, reference),
    notify: locateChannels(value.notify, { path: absolute, reference }),
    sinks: placeSinks(value.sinks, absolute, reference),
    origin: value.log.origin,
    witnesses: value.log.witnesses === undefined ? undefined : locateWitnesses(value.log.witnesses, absolute),
  };
}

/** Those that are not off. */
function listeners(of: Readonly<Record<string, Listen | undefined>>): Readonly<Record<string, Listen>> {
  return Object.fromEntries(Object.entries(of).flatMap(([kind, at]) => (at === undefined ? [] : [[kind, at]])));
}

const TYPES: Readonly<Record<string, string>> = {
  ...{
    string: "text",
    number: "a number",
    boolean: "true or false",
    array: "a list",
    object: "a map",
    record: "a map",
  },
};

/** The schema library's own words about a wrong type, in ours. */
function inWords(message: string): string {
  const [, expected = "", received] = /^Invalid input: expected (\w+), received (\w+)$/.exec(message) ?? [];
  if (received === "undefined") return "is missing";
  return received === undefined ? message : `must be ${TYPES[expected] ?? expected}`;
}

function locateKey(
  root: Parameters<typeof locate>[0],
  path: readonly (string | number)[],
  key: string,
): { start: number; end: number } {
  let node = root;
  for (const step of path) {
    const next = node.type === "map" ? node.entries.find((entry) => entry.key === step)?.value : undefined;
    if (next === undefined) return locate(root, path);
    node = next;
  }
  const entry = node.type === "map" ? node.entries.find((candidate) => candidate.key === key) : undefined;
  return entry?.keyPlace ?? locate(root, path);
}

function knownKeys(path: readonly (string | number)[]): readonly string[] {
  const shapes: Record<string, readonly string[]> = {
    "": Object.keys(schema.shape),
    policy: ["git"],
    "policy.git": POLICY_GIT_KEYS,
    listen: ["api", "postgres", "ssh", "metrics"],
    tls: ["cert", "key", "ca"],
    database: ["host", "port", "user", "password", "database", "ca", "owner"],
    "database.owner": ["user", "password"],
    tokens: ["ttl"],
    log: ["origin", "witnesses", "mirror"],
    recordings: ["store", "mirror", "keep"],
  };
  if (path[0] === "evidence" && path.length === 2) return evidenceKeys(String(path[1]));
  if (path[0] === "log" && path[1] === "witnesses") return witnessKeys(path.slice(2));
  if (path[0] === "notify" && path.length === 2) return notifyKeys(String(path[1]));
  if (path[0] === "sinks" && path.length === 2) return SINK_KEYS;
  return archiveKeysAt(path) ?? shapes[path.join(".")] ?? [];
}

/** Reads `${file:PATH}` (first line, trailing white space dropped) and `${env:NAME}`. Never quotes what it read. */
export const resolveSecret: SecretResolver = (text) => {
  const match = /^\$\{(file|env):([^{}]+)\}$/.exec(text);
  const [, from, name = ""] = match ?? [];
  if (from === "env") {
    const value = process.env[name];
    if (value === undefined || value === "")
      throw new GlassError("config_invalid", `environment variable ${name} is not set`);
    return new Secret(value);
  }
  if (from !== "file")
    throw new GlassError("config_invalid", "a secret must be a reference such as ${file:…} or ${env:…}");
  try {
    const value = readFileSync(name, "utf8").split("\n", 1)[0]?.trimEnd() ?? "";
    if (value === "") throw new Error("it is empty");
    return new Secret(value);
  } catch (cause) {
    throw new GlassError("config_invalid", `secret file ${name}: ${describe(cause)}`, { cause });
  }
};
