import type { ErrorCode } from "@glasskey/contract/errors";
import type { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { JournalHealth } from "../recording/room.ts";
import type { LeasePlan, MaskRules, OpenRequest, Recorder, SessionEnd } from "../targets/target.ts";

/** What the control plane says to a session that may begin. Plain data: it crosses a thread. */
export interface OpenedGrant {
  session: string;
  grant: string;
  person: string;
  playbook: string;
  target: string;
  kind: string;
  /** Why the glass was broken; shown to the user, recorded. */
  reason: string;
  /** The grant's end, not a window that starts now. */
  endsAtMs: number;
  /** How long before the end the user is warned; 5 minutes and 1 minute where absent. */
  warnBeforeMs?: readonly number[];
  plan: LeasePlan;
  scope: JsonObject;
  /** What the driver issued for this session alone. */
  credential: JsonObject;
  /** 32 bytes, from which the data plane derives the lease's secrets. */
  leaseKey: Uint8Array;
  mask: MaskRules;
}

/** Why the gateway ended a session, as it is told, recorded and listed. */
export interface CutReason {
  code: "expired" | "ended" | "killed" | "idle" | "drift" | "stopping" | "recording_unavailable" | "error";
  /** For the person at the client. */
  text: string;
}

/** Why nobody may begin a session at the moment. */
export interface Refusal {
  code: ErrorCode;
  text: string;
}

/** Which sessions to cut: all of a grant, or one. */
export type CutFilter = { grant: string } | { session: string };

/** A session as `glass sessions` shows it. */
export interface SessionView {
  session: string;
  grant: string;
  person: string;
  playbook: string;
  target: string;
  kind: string;
  remoteAddress: string;
  startedAtMs: number;
  endsAtMs: number;
  state: "opening" | "live" | "cut";
  busy: boolean;
  /** Time since it was last busy; 0 while busy. */
  idleMs: number;
}

export interface Activity {
  session: string;
  grant: string;
  idleMs: number;
  busy: boolean;
}

/** The recording of all sessions of the process, as the gateway needs it. */
export interface SessionJournal {
  /** The journal's own id, and the last frame that was in it when it was opened: where its sealing goes on. */
  readonly id: string;
  readonly openedSequence: number;
  /** The files with frames at that moment, oldest first; the last one is the opening's own. Undefined for a journal without files. */
  readonly spans?: PlaneReady["journal"]["spans"];
  /** @throws GlassError if nothing can be recorded now. */
  recorder(session: string): Recorder;
  /** Why no session may begin now; undefined while all is well, and again once a full disk has room. */
  unavailable(): GlassError | undefined;
  /** Which of two folders was given up, and why; undefined with both, and with one alone. */
  degraded?(): string | undefined;
  /** What was done at the opening to make two folders equal; undefined where they were. */
  readonly rebuilt?: string | undefined;
  /** Flushes, then closes. Idempotent. */
  close(): Promise<void>;
}

export interface JournalOptions {
  dir: string;
  /** A second folder with the same bytes, on another disk. */
  mirror?: string | undefined;
  key: Uint8Array;
  mode: "durable" | "written";
  /** Size of one journal file. */
  fileBytes?: number;
  /** The most that may wait to be sealed before recording stops. */
  maxUnsealedBytes?: number;
}

/** `onFailure` runs each time that recording stops; no `committed` of a session that is live then runs after it. */
export type OpenJournal = (
  options: JournalOptions & { onFailure: (error: unknown) => void },
) => Promise<SessionJournal>;

export interface ListenerOptions {
  kind: string;
  host: string;
  /** 0 takes a free one. */
  port: number;
}

/** Bounds of the data plane. Every one has a value for an installation of ordinary size in {@link DEFAULT_LIMITS}. */
export interface GatewayLimits {
  connections: number;
  connectionsPerAddress: number;
  /** Connections on which nobody has proved anything yet. */
  unprovedConnections: number;
  unprovedConnectionsPerAddress: number;
  /** From accept to a session. */
  handshakeMs: number;
  /** How long the control plane may take over one answer. */
  answerMs: number;
  /** How long the journal may take over a session's first and last record. */
  journalMs: number;
  /** Failed attempts per address and minute above which the next answer is delayed, and above which it is refused. */
  slowAfterFailures: number;
  refuseAfterFailures: number;
  /** How long a closed session's sockets may take over their last bytes. */
  lingerMs: number;
  /** Pause between two reports of activity. */
  activityMs: number;
}

export const DEFAULT_LIMITS: GatewayLimits = {
  connections: 4_000,
  connectionsPerAddress: 2_000, // many engineers share a bastion host
  unprovedConnections: 1_024,
  unprovedConnectionsPerAddress: 256, // Ansible opens a hundred at once
  handshakeMs: 30_000,
  answerMs: 10_000,
  journalMs: 5_000,
  slowAfterFailures: 10,
  refuseAfterFailures: 60,
  lingerMs: 30_000,
  activityMs: 5_000,
};

/** What the worker thread is started with. */
export interface PlaneOptions {
  listeners: readonly ListenerOptions[];
  tls: { key: string; cert: string };
  /** Who the gateway is, by kind; see `GatewayIdentity.listener`. Kinds without one are not in it. */
  identities: Readonly<Record<string, JsonObject>>;
  /** Lets clients in without TLS on listeners that are bound to a loopback address, and on no other. */
  plaintextLoopback: boolean;
  journal: JournalOptions;
  limits: GatewayLimits;
}

/** What the data plane says when it listens. */
export interface PlaneReady {
  ports: readonly ListenerOptions[];
  journal: {
    id: string;
    openedSequence: number;
    spans?: readonly { readonly id: string; readonly first: number; readonly last: number }[] | undefined;
  };
}

/** What the data plane asks of the control plane. */
export type UpVerbs = {
  ready: { ask: PlaneReady; answer: null };
  cannotStart: { ask: Refusal & { next?: string }; answer: null };
  challenge: { ask: { user: string }; answer: { connectSecret: string } };
  open: { ask: OpenRequest; answer: OpenedGrant };
  closed: { ask: { session: string; end: SessionEnd; cut?: CutReason }; answer: null };
  failed: { ask: { user: string; remoteAddress: string }; answer: null };
  activity: { ask: readonly Activity[]; answer: null };
  journalFailed: { ask: string; answer: null };
  journalHealth: { ask: JournalHealth; answer: null };
  /** One line for the server's output. */
  log: { ask: string; answer: null };
};

/** What the control plane asks of the data plane. */
export type DownVerbs = {
  ping: { ask: null; answer: null };
  cut: { ask: { filter: CutFilter; reason: CutReason }; answer: number };
  extend: { ask: { grant: string; endsAtMs: number }; answer: null };
  /** For connections from now on. */
  identify: { ask: { kind: string; identity: JsonObject }; answer: null };
  sessions: { ask: null; answer: SessionView[] };
  refuseNew: { ask: Refusal | null; answer: null };
  stop: { ask: { text: string }; answer: null };
};
