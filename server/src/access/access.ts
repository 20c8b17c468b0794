import type { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { Evidence, Facts, IncidentFact, Policy } from "../playbooks/policy.ts";
import type { Keyring } from "../store/keyring.ts";
import type { Store, Tx } from "../store/database.ts";
import type { LeaseDriver, Promises } from "../targets/target.ts";

/** What access needs of a target kind in the control plane. */
export interface KindControl {
  readonly driver: LeaseDriver;
  promises(config: JsonObject): Promises;
}

/** Why a session is cut: a code for machines, a text for the person whose session it is. */
export interface CutReason {
  code: "expired" | "ended" | "killed" | "idle" | "drift";
  text: string;
}

/** Kills live sessions and tells their data plane of a later end. Implemented by gateway, for every process. */
export interface SessionCutter {
  /** Resolves when the sockets of this process are gone, with their number; other processes are told and do the same. */
  cut(filter: { grant: string } | { session: string }, reason: CutReason): Promise<number>;
  extend(grant: string, endsAtMs: number): Promise<void>;
  /** What the sessions of this process are doing at this moment. */
  activity(): Promise<readonly SessionActivity[]>;
}

export interface SessionActivity {
  session: string;
  grant: string;
  busy: boolean;
  /** Since it was last busy; 0 while busy. */
  idleMs: number;
}

/** One fact as a source told it; kept on the grant, and in its log entry. */
export interface Observation {
  /** `oncall:ROTA` or `incident:REF`. */
  readonly fact: string;
  readonly value: Evidence;
  /** Of an open incident. */
  readonly severity?: string;
  /** `static`, or `kind:name` of glasskey.yaml's `evidence`. */
  readonly source: string;
  /** When the source itself was asked, ISO 8601; what was cached is older than the decision. */
  readonly observedAt: string;
  readonly ageMs: number;
  /** Where unknown: why, in words without secrets. */
  readonly detail?: string;
}

export interface Observed {
  readonly oncall: Facts["oncall"];
  readonly incident: IncidentFact;
  readonly observations: readonly Observation[];
}

/** Asks the sources of evidence. Implemented by evidence. */
export interface EvidenceService {
  /**
   * What is known of one person and these rotas, and of the incident where one is named. Never rejects, and takes a few
   * seconds at most: what cannot be known by then is unknown.
   */
  observe(about: {
    policy: Policy;
    person: string;
    rotas: readonly string[];
    incident?: string | undefined;
  }): Promise<Observed>;
  /** Open incidents that the sources know of now, for a person who has to name one. Never rejects. */
  openIncidents(): Promise<readonly { ref: string; severity: string; summary: string; source: string }[]>;
}

/** What people are told of. */
export type NoticeEvent =
  | "approval_wanted"
  | "extension_wanted"
  | "opened"
  | "opened_unanswered"
  | "denied"
  | "withdrawn"
  | "timed_out"
  | "failed"
  | "extended"
  | "closed"
  | "not_proved"
  | "review_overdue"
  | "review_signed"
  | "alarm"
  | "alarm_over";

/** Something to tell, before it is written for each channel. Free text of people (`why`) is in it; channels leave it out. */
export interface Notice {
  readonly event: NoticeEvent;
  /** The grant it is about; undefined for an alarm of the installation. */
  readonly grant?: string;
  readonly round?: number;
  readonly playbook?: string;
  readonly target?: string;
  readonly requester?: string;
  readonly reason?: string;
  readonly why?: string;
  readonly incident?: string;
  readonly until?: Date;
  /** One sentence. */
  readonly text: string;
  /** Channels of the playbook. */
  readonly channels: readonly string[];
  /** People who may decide now; each with a channel of their own gets a signed link there. Never the requester. */
  readonly deciders?: readonly string[];
  /** After this moment it is not delivered any more. */
  readonly expiresAt?: Date;
}

/** Tells people. Implemented by notify. */
export interface Notifier {
  /** Writes the notice into the outbox, in the caller's transaction. Delivery begins after the commit. */
  post(tx: Tx, notice: Notice): Promise<void>;
  /** Whether the channel (`kind:name`) is configured, and whether it is one that wakes people and confirms that it did. */
  channel(name: string): { page: boolean } | undefined;
}

/** Everything that the files of this folder work with; made once, in main.ts. */
export interface Access {
  readonly store: Store;
  readonly keyring: Keyring;
  /** Installation id: part of every remote name. */
  readonly install: string;
  /** This process's id in table `nodes`. */
  readonly node: string;
  /** The policy in force; a reload replaces it. */
  readonly policy: () => Policy;
  readonly kinds: ReadonlyMap<string, KindControl>;
  readonly evidence: EvidenceService;
  readonly notifier: Notifier;
  readonly cutter: () => SessionCutter;
  /** Why nothing new may be opened now, such as a log that does not verify; every opening path asks. Undefined: nothing. */
  readonly mayOpen: () => GlassError | undefined;
  /** Starts work on a lease at once, and resolves when this attempt is over. Never rejects. */
  readonly kick: (lease: string) => Promise<void>;
  /** Where a person running the server looks: one line, no secret. */
  readonly warn: (line: string) => void;
}
