import type { Socket } from "node:net";
import type { ErrorCode } from "@glasskey/contract/errors";
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
  /**
   * Which way a scope went, for `glass playbook plan`: both as {@link parseScope} gave them. One change for each key that
   * differs, also where it means the same. Sound: where no change is `wider` or `other`, all that is allowed after was
   * allowed before; what cannot be proved, or takes too long, is `other`. Pure, bounded, never throws. Without it, any
   * difference needs eyes.
   */
  compareScopes?(before: JsonObject, after: JsonObject): readonly ScopeChange[];
  /** What this kind can promise for that configuration; shown to approvers and stored with the lease. */
  promises(config: JsonObject): Promises;
  /** Lease work. */
  driver(tools: DriverTools): LeaseDriver;
  /**
   * What an administrator puts on the target once so that leases can be minted there, ready to copy. Pure; no secret.
   * Absent where the kind's docs say it all.
   */
  hostSetup?(tools: Pick<DriverTools, "derive" | "install">, config: JsonObject): HostSetup;
  /** Who the gateway is in this protocol, where a TLS certificate does not say it. Pure: same input, same keys. */
  identity?(request: IdentityRequest): GatewayIdentity;
  /**
   * A credential for the client's own key, for protocols that have one: it proves the connect secret's owner to the gateway
   * and to nobody else. @throws GlassError `usage` for a public key that is none, or too weak.
   */
  clientCertificate?(request: ClientCertificateRequest): ClientCertificate;
  /**
   * Takes over one accepted client connection and owns it until both sides are closed.
   * Never throws: what goes wrong is told to the client in its own protocol.
   */
  serve(connection: ClientConnection, gate: Gate): void;
  /** From accept to a session, where the gateway's own bound is too short because a person types a secret meanwhile. */
  readonly handshakeMs?: number;
  /** The native client's command line for a grant, one string per argument, no secret inside. */
  clientCommand(endpoint: ClientEndpoint): ClientCommand;
}

export type Parsed = { ok: true; value: JsonObject } | { ok: false; problems: readonly Problem[] };

/** What became of one key of a scope. */
export interface ScopeChange {
  /** Such as `sftp.read`; empty for the scope as a whole. */
  readonly key: string;
  readonly effect: "same" | "narrower" | "wider" | "other";
  /** For a reviewer, on one line: what is new or gone, with an example where that helps. No secret. */
  readonly what: string;
}

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

/** What the control plane gives a driver. */
export interface DriverTools {
  /** Installation id, as in {@link LeaseRequest}. */
  readonly install: string;
  /** Reads secret references (`${file:…}`, `${env:…}`) at the moment of use. */
  readonly resolve: SecretResolver;
  /**
   * A secret of this kind in this installation, such as the key of its certificate authority: the same 256 bits in every
   * process, stored nowhere. Never leaves the control plane. 43 characters of base64url.
   */
  derive(purpose: string): Secret;
}

export interface HostSetup {
  /** Each one file or command on the target, in order. */
  readonly steps: readonly { readonly title: string; readonly file?: string; readonly text: string }[];
  /** The same as a whole, by tool: `shell`, `cloud-init`, `ansible`. */
  readonly formats: Readonly<Record<string, string>>;
}

export interface IdentityRequest {
  derive(purpose: string): Secret;
  /** Names and addresses that people reach the gateway by. */
  readonly hosts: readonly string[];
  readonly port: number;
  readonly now: Date;
}

export interface GatewayIdentity {
  /** For {@link ClientConnection.identity}. Holds private keys: it goes to the data plane and nowhere else. */
  readonly listener: JsonObject;
  /** What a client needs to know the gateway by, such as a line for `known_hosts`; public. */
  readonly trust: string;
  /** When `listener` has to be made anew. */
  readonly renewAt: Date;
}

export interface ClientCertificateRequest {
  readonly connectSecret: Secret;
  readonly grant: string;
  /** The client's public key as it writes it, such as `ssh-ed25519 AAAA… ann@laptop`. Untrusted. */
  readonly publicKey: string;
  readonly now: Date;
  /** The grant's end. */
  readonly endsAt: Date;
}

export interface ClientCertificate {
  /** As the client's file has it. */
  readonly certificate: string;
  readonly validUntil: Date;
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
  /**
   * True where the target cannot tell, or end, a session that has done nothing yet: then the proof is asked only once the
   * gateway has ended every session of the lease.
   */
  readonly cutsFirst?: boolean;
  /** Proves, with the configured login, that a lease could be minted *and revoked* here. Changes nothing. */
  preflight(config: JsonObject, scope: JsonObject | undefined, signal: AbortSignal): Promise<readonly Check[]>;
  /** Pure. */
  plan(request: LeaseRequest): LeasePlan;
  mint(plan: LeasePlan, secrets: LeaseSecrets, signal: AbortSignal): Promise<void>;
  /** Uses the credential once, as a client would. Rejects unless the target let it in. */
  probe(plan: LeasePlan, secrets: LeaseSecrets, signal: AbortSignal): Promise<void>;
  /**
   * What the data plane needs for one session beside the lease's secrets, made for that session alone and stored nowhere:
   * an ephemeral key with its certificate, a short token. No I/O to the target. `{}` where the lease's secrets are enough.
   */
  issue(plan: LeasePlan, secrets: LeaseSecrets, to: IssueRequest): Promise<JsonObject>;
  /** Moves the native expiry to a later end, after an extension was decided. Kinds without native expiry do nothing. */
  extend(plan: LeasePlan, endsAt: Date, signal: AbortSignal): Promise<LeasePlan>;
  /** No new login from here on. Fast: one statement. */
  fence(plan: LeasePlan, signal: AbortSignal): Promise<void>;
  /** Kills live sessions and removes the credential with all it owns. */
  revoke(plan: LeasePlan, signal: AbortSignal): Promise<void>;
  /**
   * Asks the target. Never says `dead` on a guess.
   * @param lastIssue nothing was issued for this lease after that instant; absent where nobody knows.
   */
  confirm(plan: LeasePlan, secrets: LeaseSecrets, signal: AbortSignal, lastIssue?: Date): Promise<Confirmation>;
  /** Leases of this installation that exist on the target, by name; what the store does not know is an orphan. */
  list(config: JsonObject, install: string, signal: AbortSignal): Promise<readonly RemoteLease[]>;
  /** A plan good enough to fence, revoke and confirm an orphan that `list` found. */
  planForOrphan(config: JsonObject, orphan: RemoteLease): LeasePlan;
  /** Who can do what on the plan's target, without this installation's own live leases. Same state, same lines. */
  fingerprint(plan: LeasePlan, install: string, signal: AbortSignal): Promise<Fingerprint>;
}

export interface IssueRequest {
  readonly session: string;
  /** The instant of the decision to let this session in; validity counts from here, however late the call is. */
  readonly at: Date;
  /** The lease's end as it is now, after extensions. */
  readonly endsAt: Date;
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
  | { verdict: "unknown"; why: string; code?: ErrorCode };

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
  /** {@link GatewayIdentity.listener} of the kind that is served; `{}` where it has none. */
  readonly identity: JsonObject;
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
  /** What {@link LeaseDriver.issue} made for this session. */
  readonly credential: JsonObject;
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
  /** What became of it, where the closed set of errors has a word for that, such as `target_untrusted`. */
  code?: ErrorCode;
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
  /** What the program wrote to terminal `n` (the statement that opened it): u32 BE n, then raw bytes. */
  terminalOutput: 16,
  /** What the user typed there, in the same form. Printable text that was not echoed is not in it (kind 19 and 20). */
  terminalInput: 17,
  /** JSON: `{ n, cols, rows }`; the first one of a terminal comes before any of its output. */
  terminalResize: 18,
  /**
   * Printable text typed at terminal `n`, under a key of its own that only the gateway's memory holds: u32 BE n, u32 BE run,
   * then ciphertext. Without a reveal nobody can ever read it, which is what is wanted of a password typed without echo.
   */
  terminalHidden: 19,
  /** The run was echoed, so its key is given: u32 BE n, u32 BE run, 32 bytes of key; none where it was not and the key is gone. */
  terminalReveal: 20,
  /**
   * What a command without a terminal wrote: u32 BE n, one byte (1 stdout, 2 stderr), then raw bytes; up to the kind's bound,
   * after which only the totals in the statement's end are known.
   */
  output: 21,
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
  /** {@link GatewayIdentity.trust} of the kind; empty where it has none. */
  trust: string;
}

export interface ClientCommand {
  /** Program and arguments of the native client. */
  argv: readonly string[];
  /** What any other client of this protocol needs in its environment; no secret. */
  env: Readonly<Record<string, string>>;
  /** The environment variable that carries the connect secret. */
  secretEnv: string;
}
