import type { Socket } from "node:net";
import type { JsonObject } from "../core/json.ts";
import type { Secret } from "../core/secret.ts";

/**
 * THE interface of a target kind. A kind is one folder under `targets/` that exports one {@link TargetKind}.
 *
 * It has two halves that run in different threads:
 * - {@link LeaseDriver}, in the control plane: mints, fences, revokes and proves one credential on the target.
 * - {@link TargetKind.serve}, in the data plane: speaks the target's own protocol on one client connection.
 *
 * Everything that passes between the halves is plain JSON, so that it can be stored and sent to another thread.
 */
export interface TargetKind {
  /** The word in `kind:` of a target file. */
  readonly kind: string;
  /** Checks a target's `config:`. Unknown keys are errors. The result is plain JSON with every default filled in. */
  parseConfig(input: unknown): Parsed;
  /** Checks a playbook's `scope:` for this kind, the same way. */
  parseScope(input: unknown): Parsed;
  /** What this kind can promise for that configuration; shown to approvers and stored with the lease. */
  promises(config: JsonObject): Promises;
  /** Lease work. `resolve` reads secret references (`${file:…}`, `${env:…}`) at the moment of use. */
  driver(resolve: SecretResolver): LeaseDriver;
  /**
   * Takes over one accepted client connection and owns it until both sides are closed.
   * Never throws: what goes wrong is told to the client in its own protocol.
   */
  serve(connection: ClientConnection, gate: Gate): void;
  /** The native client's command line for a grant, one string per argument, no secret inside. */
  clientCommand(endpoint: ClientEndpoint): ClientCommand;
}

export type Parsed = { ok: true; value: JsonObject } | { ok: false; problems: readonly Problem[] };

/** One mistake in a document. `path` leads to the value, as in zod, so that the loader can add line and column. */
export interface Problem {
  path: readonly (string | number)[];
  message: string;
}

export interface Promises {
  /** What the target itself enforces when Glasskey is dead: nothing, no new logins, or also the end of sessions. */
  nativeExpiry: "none" | "login" | "session";
  killsLiveSessions: boolean;
  /** From the grant's end to a proof, at worst, with the target up, in milliseconds. Past it, an alarm is raised. */
  worstCaseRevokeMs: number;
}

/** Reads what a secret reference points to. @throws GlassError `config_invalid` that names the reference, not the value. */
export type SecretResolver = (reference: string) => Secret;

export interface LeaseRequest {
  /** Installation id, 6 characters of base 32: part of every remote name, so two installations never sweep each other. */
  install: string;
  /** Lease id as from `newId("lease")`. */
  lease: string;
  target: string;
  config: JsonObject;
  scope: JsonObject;
  /** The grant's end; no credential outlives it. */
  endsAt: Date;
}

/**
 * What was decided before the first remote call: deterministic names and a snapshot of everything that revocation needs.
 * Stored (encrypted) in the lease row. Holds secret *references*, never secrets.
 */
export type LeasePlan = JsonObject;

/**
 * Secrets of one lease, derived from the keyring and the lease's id, so that nothing has to be stored and a restarted
 * process, or another one, has the same value. 43 characters of base64url (256 bits).
 */
export interface LeaseSecrets {
  derive(purpose: string): Secret;
}

/**
 * Every method may be called again at any time, from any process: `mint` is called at most once per lease, all others any
 * number of times, and *absent is success* for `fence` and `revoke`. A rejected promise means "not known", never "done".
 */
export interface LeaseDriver {
  /** Proves, with the configured login, that a lease could be minted *and revoked* here. Changes nothing. */
  preflight(config: JsonObject, scope: JsonObject | undefined, signal: AbortSignal): Promise<readonly Check[]>;
  /** Pure. */
  plan(request: LeaseRequest): LeasePlan;
  mint(plan: LeasePlan, secrets: LeaseSecrets, signal: AbortSignal): Promise<void>;
  /** Uses the credential once, as a client would. Rejects unless the target let it in. */
  probe(plan: LeasePlan, secrets: LeaseSecrets, signal: AbortSignal): Promise<void>;
  /** Moves the native expiry to a later end, after an extension was decided. Kinds without native expiry do nothing. */
  extend(plan: LeasePlan, endsAt: Date, signal: AbortSignal): Promise<LeasePlan>;
  /** No new login from here on. Fast: one statement. */
  fence(plan: LeasePlan, signal: AbortSignal): Promise<void>;
  /** Kills live sessions and removes the credential with all it owns. */
  revoke(plan: LeasePlan, signal: AbortSignal): Promise<void>;
  /** Asks the target. Never says `dead` on a guess. */
  confirm(plan: LeasePlan, secrets: LeaseSecrets, signal: AbortSignal): Promise<Confirmation>;
  /** Leases of this installation that exist on the target, by name; what the store does not know is an orphan. */
  list(config: JsonObject, install: string, signal: AbortSignal): Promise<readonly RemoteLease[]>;
  /** A plan good enough to fence, revoke and confirm an orphan that `list` found. */
  planForOrphan(config: JsonObject, orphan: RemoteLease): LeasePlan;
  /** Who can do what on the plan's target, without this installation's own live leases. Same state, same lines. */
  fingerprint(plan: LeasePlan, install: string, signal: AbortSignal): Promise<Fingerprint>;
}

export interface Check {
  check: string;
  ok: boolean;
  /** What was seen. */
  detail: string;
  /** What to do, where not ok: a command or a line to add. */
  fix?: string;
}

export type Confirmation =
  | { verdict: "dead"; from: Date; evidence: readonly Evidence[] }
  | { verdict: "alive"; left: readonly string[] }
  | { verdict: "unknown"; why: string };

export interface Evidence {
  /** What was asked, such as `role gk_ab12cd_7kq… in pg_roles`. */
  asked: string;
  /** What the target answered, such as `absent` or `FATAL 28P01 password authentication failed`. */
  answered: string;
}

export interface RemoteLease {
  name: string;
  /** Lease id read from the name. */
  lease: string;
}

/** Sorted lines, one fact each, such as `member orders_rw -> app`. A diff of two lists is shown to people. */
export interface Fingerprint {
  lines: readonly string[];
}

// ---------------------------------------------------------------------------------------------- the data plane

export interface ClientConnection {
  readonly socket: Socket;
  /** Address of the peer as the kernel tells it; proxy headers are never believed. */
  readonly remoteAddress: string;
  /** The gateway's certificate and key for TLS towards clients, PEM. */
  readonly tls: { readonly key: string; readonly cert: string };
  /** Whether the listener lets clients in without TLS. Only ever true for a listener bound to loopback. */
  readonly plaintextAllowed: boolean;
}

/** The protocol's door to the control plane. Every channel of every protocol goes through `open`, and nothing else. */
export interface Gate {
  /**
   * The one-time connect secret that this user name must prove. Always answers, with a decoy for names that are no live
   * grant, so that neither the answer nor its time tells which names exist. Knowing the secret opens nothing by itself.
   */
  challenge(user: string): Promise<{ connectSecret: Secret }>;
  /** Reports that a client failed to prove the secret: counted per address, and logged. */
  failed(user: string, remoteAddress: string): void;
  /** After the secret was proved. @throws GlassError whose message and `next` are meant for the person at the client. */
  open(request: OpenRequest): Promise<OpenSession>;
}

export interface OpenRequest {
  user: string;
  remoteAddress: string;
  /** What the client says of itself, such as `{ database: "orders", application: "psql" }`. Untrusted, bounded, recorded. */
  client: JsonObject;
}

export interface OpenSession {
  readonly session: string;
  readonly grant: string;
  readonly person: string;
  readonly playbook: string;
  readonly target: string;
  readonly reason: string;
  readonly endsAt: Date;
  readonly plan: LeasePlan;
  readonly scope: JsonObject;
  readonly secrets: LeaseSecrets;
  /** What the kind keeps out of the records that it writes. What it forwards is never changed. */
  readonly mask: MaskRules;
  readonly recorder: Recorder;
  /**
   * Hands the gateway the means to speak to and to cut this session. Called once, before the first byte is relayed.
   * The gateway holds the deadline: it calls `warn` at 5 minutes and 1 minute before the end, `cut` at the end, and
   * destroys both sockets 50 ms after `cut` whatever the protocol does.
   */
  attach(handle: SessionHandle): void;
  /** Whether the session is doing something for its user right now; only time that is not busy counts as idle. */
  busy(busy: boolean): void;
  /** The session is over. Idempotent. Flushes the recording. */
  close(end: SessionEnd): void;
}

/**
 * Which values a recording holds as keyed hashes only (core/keyed-hash.ts). Plain data: it crosses a thread. Passwords and
 * other secrets of a protocol never reach the recorder in clear, whatever is said here.
 */
export interface MaskRules {
  /** What is sent beside a command's text: bound values, arguments, bulk data. */
  readonly parameters: boolean;
  /** Every constant in a command's text. */
  readonly literals: boolean;
  /** 32 bytes, the same for every session of a playbook, so that equal values look equal there and nowhere else. */
  readonly key: Uint8Array;
}

export interface SessionHandle {
  warn(text: string): void;
  /** Tell the client why, in its protocol, then close. Must not wait for anybody. */
  cut(text: string): void;
  /** Destroy every socket of the session now. */
  destroy(): void;
}

export interface SessionEnd {
  /** Who ended it: the client, the target, an error, or a cut whose reason the gateway already knows. */
  cause: "client" | "target" | "error" | "cut";
  detail: string;
  statements: number;
  refused: number;
  bytesIn: number;
  bytesOut: number;
}

/**
 * Kinds of records in a recording. Numbers are the stored format: never reuse one.
 * JSON payloads are UTF-8 objects; `data`, terminal output and input are raw bytes.
 */
export const RECORD = {
  /** JSON: who, grant, target, client, endsAt. Written by the gateway. */
  sessionStarted: 1,
  /** JSON: cause, detail, counts. Written by the gateway. */
  sessionEnded: 2,
  /** JSON: `{ n, via, text, params? }`, before the statement is forwarded. `n` counts statements within the session. */
  statementStarted: 3,
  /** JSON: `{ n, tag?, rows?, bytes?, error?: { sqlstate, message }, us }`. */
  statementCompleted: 4,
  /** JSON: `{ n, via, text, reason }`: refused, never forwarded. */
  statementRefused: 5,
  /** Raw bytes from the user that belong to statement `n`: u32 BE n, then the bytes (COPY data, large parameters). */
  data: 6,
  /** JSON: anything else that the user's client asked for, such as `{ what: "cancel" }`. */
  action: 7,
  /** JSON: what Glasskey told the user, such as a warning. */
  notice: 8,
  /** Raw bytes that the program wrote. */
  terminalOutput: 16,
  terminalInput: 17,
  /** JSON: `{ cols, rows }`; the first one comes before any output. */
  terminalResize: 18,
} as const;
export type RecordKind = (typeof RECORD)[keyof typeof RECORD];

/** Writes one session's recording. Records are kept in call order. */
export interface Recorder {
  /**
   * Queues one record (at most 1 MiB; longer ones are the caller's to split). `committed` runs once it is as safe as the
   * installation's `recording:` setting asks, always after `write` has returned, in call order. If the journal fails,
   * `committed` never runs and the gateway cuts the session: so forward to the target only from inside `committed`.
   */
  write(kind: RecordKind, payload: Uint8Array | string, committed?: () => void): void;
  /** Bytes queued for this session and not yet committed. Stop reading from the client above 1 MiB. */
  readonly pendingBytes: number;
}

export interface ClientEndpoint {
  host: string;
  port: number;
  grant: string;
  config: JsonObject;
  /** Path of a PEM file with the gateway's CA, for clients that verify. */
  caFile: string;
}

export interface ClientCommand {
  /** Program and arguments of the native client. */
  argv: readonly string[];
  /** What any other client of this protocol needs in its environment; no secret. */
  env: Readonly<Record<string, string>>;
  /** The environment variable that carries the connect secret. */
  secretEnv: string;
}
