import type { JsonObject } from "../core/json.ts";
import type { Secret } from "../core/secret.ts";

/** What a person may be in Glasskey. None implies another: an admin approves nothing, an approver requests nothing. */
export const ROLES = ["requester", "approver", "security_officer", "auditor", "admin"] as const;
export type Role = (typeof ROLES)[number];

/** One human. `aliases` are other ids of the same human, so that a second identity is never a second person. */
export interface Person {
  readonly name: string;
  /** A person who is not enabled can do nothing, and counts as nobody's approver. */
  readonly enabled: boolean;
  readonly roles: readonly Role[];
  readonly groups: readonly string[];
  readonly aliases: readonly string[];
  /** `scrypt$N$r$p$salt$hash`. Without it this person has no local login. */
  readonly secret?: Secret;
  /** Channels (`kind:name` of glasskey.yaml's `notify`) that reach this person alone: signed links go there. */
  readonly notify: readonly string[];
}

/** A production system that can be opened. `config` went through the kind's own check; secrets in it are references. */
export interface Target {
  readonly name: string;
  readonly kind: string;
  readonly summary: string;
  readonly tags: readonly string[];
  readonly config: JsonObject;
  /** SHA-256 (hex) of the canonical content. */
  readonly hash: string;
}

/** One alternative of `who:` or `approve.from:`; a list of them is "any of". */
export interface Selector {
  readonly by: "oncall" | "group" | "user";
  readonly name: string;
}

/** People who stand for one interest. Any one of them speaks for it. */
export type Side = readonly Selector[];

/** A time of the week in which a rule holds, in the playbook's zone. `toMinute` below `fromMinute` passes midnight. */
export interface Hours {
  /** Days on which it begins, 1 (Monday) to 7 (Sunday). */
  readonly days: readonly number[];
  /** Minutes after midnight, 0 to 1439; and the first minute that is not in it any more, 1 to 1440. */
  readonly fromMinute: number;
  readonly toMinute: number;
}

export interface Playbook {
  readonly name: string;
  readonly summary: string;
  readonly target: string;
  /** Checked by the target's kind, defaults filled in. */
  readonly scope: JsonObject;
  readonly who: readonly Selector[];
  readonly when: {
    /** The codes that may be given; never empty, and each declared in policy.yaml. */
    readonly reasons: readonly string[];
    /** Severities, any one of which the incident named by the requester must have; undefined: none is asked for. */
    readonly incident?: readonly string[];
    /** Any one of them; undefined: at any time. */
    readonly hours?: readonly Hours[];
    /** IANA name of the zone that `hours` are told in. */
    readonly zone: string;
  };
  readonly approve: {
    /** How many different people must say yes; 0 opens at once. At least as many as there are sides, unless 0. */
    readonly need: number;
    /** All sides must agree, each by a person of its own: who belongs to two of them speaks for one. */
    readonly from: readonly Side[];
    /** From the request to the last moment at which a yes counts, in milliseconds. */
    readonly withinMs: number;
    /** Opens without an answer `afterMs` after the first page was delivered, for `forMs` at most; never after a no, and loudly. */
    readonly unanswered?: { readonly afterMs: number; readonly forMs: number };
  };
  readonly time: {
    /** Longest first window, in milliseconds. */
    readonly maxMs: number;
    /** A session with nothing going on is cut after this many milliseconds. */
    readonly idleMs?: number;
    readonly extend?: { readonly times: number; readonly byMs: number };
    /** No grant lives longer, whatever is extended: `maxMs` and all extensions together. */
    readonly capMs: number;
  };
  readonly limit: {
    /** Uses without a signed review within the last `perMs`; one more needs a quorum. */
    readonly uses?: { readonly count: number; readonly perMs: number };
    /** Grants open or waiting at once, of everybody; one more is refused. */
    readonly concurrent?: number;
    /** From the end of a person's last use to their next; until then a quorum is needed. */
    readonly cooldownMs?: number;
  };
  /** Channels as `kind:name` of glasskey.yaml's `notify`, told of what happens to a grant. */
  readonly notify: readonly string[];
  readonly review: {
    /** Who signs, beside security officers. */
    readonly by: readonly Selector[];
    /** From the opening; later the review is overdue, and the playbook a quorum. */
    readonly withinMs: number;
  };
  readonly drill?: { readonly everyMs: number; readonly on: string };
  /** What of its recordings is kept, and how long. Secrets in statements are masked whatever it says. */
  readonly record?: {
    /** Undefined: nothing else is masked. */
    readonly mask?: Masked;
    /** From the end of a session until the key of its recording is destroyed; undefined: the installation's own. */
    readonly keepMs?: number;
  };
  /**
   * SHA-256 (hex) of the canonical content of this playbook and of its target's kind and config: what an approver agreed
   * to. A grant pins it.
   */
  readonly hash: string;
}

/**
 * Which values a recording holds as keyed hashes only: `parameters`, those that a client sends beside a statement's text;
 * `all`, those and every literal in the text.
 */
export type Masked = "parameters" | "all";

export function isMasked(text: string): text is Masked {
  return text === "parameters" || text === "all";
}

/** A denial that no playbook can override (`forbid:` in policy.yaml). All conditions that are given must hold for it to deny. */
export interface Denial {
  /** The rule's name; the clause of a no is `forbid.NAME`. */
  readonly name: string;
  /** Shown to whoever is refused. */
  readonly why: string;
  /** Any one of them; empty: everybody. A rota that is unknown counts as on call. */
  readonly who: readonly Selector[];
  /** Names of targets, and tags; any one; both empty: every target. */
  readonly targets: readonly string[];
  readonly tags: readonly string[];
  readonly hours?: readonly Hours[];
  readonly zone: string;
}

/** A `tests:` entry of a playbook. */
export interface PlaybookTest {
  readonly expect: "allow" | "deny";
  readonly who: string;
  readonly oncall: readonly string[];
  /** Rotas, or "incident", that nobody knows about. */
  readonly unknown: readonly string[];
  readonly incident?: string;
  readonly reason: string;
  readonly forMs: number;
  readonly approvedBy: readonly string[];
  /** Milliseconds since the epoch; undefined: a moment within `when.hours`, or any. */
  readonly atMs?: number;
  /** Unsigned uses, open grants, overdue reviews, and time since the requester's last use. */
  readonly usage: Usage;
  readonly place: { readonly file: string; readonly line: number };
}

/** What is known from outside. A source that cannot tell says `unknown`, which is neither yes nor no. */
export type Evidence = "true" | "false" | "unknown";

/** About the incident that the requester named. `none`: there is no such open incident, or none was named. */
export type IncidentFact =
  | { readonly state: "open"; readonly severity: string }
  | { readonly state: "none" }
  | { readonly state: "unknown" };

/** How a playbook was used lately, as the store counts it; all whole numbers. */
export interface Usage {
  /** Uses within `limit.uses.perMs` whose review is not signed. */
  readonly unsigned: number;
  /** Grants of this playbook that wait or are open, the one in question left out. */
  readonly open: number;
  /** Reviews of this playbook that should have been signed by now. */
  readonly overdue: number;
  /** Since the end of the requester's last use; undefined: never used, or long ago. */
  readonly sinceLastMs?: number;
}

/** Facts about one person, one playbook and one moment. A rota that is not listed is `unknown`. */
export interface Facts {
  readonly oncall: Readonly<Record<string, Evidence>>;
  readonly incident: IncidentFact;
  readonly usage: Usage;
  /** The moment, in milliseconds since the epoch, by the store's clock. */
  readonly atMs: number;
}

/** Names of people may be given by any alias. Durations are in milliseconds. */
export type Question =
  | {
      /** `request`: may this be asked for? `open`: and may it now be opened, with these approvals? */
      readonly action: "request" | "open";
      readonly person: string;
      readonly playbook: string;
      readonly reason: string;
      readonly durationMs: number;
      readonly facts: Facts;
      /** Who said yes. Only counted for `open`; people who may not approve, and repeats, count for nothing. */
      readonly approvedBy?: readonly string[];
    }
  | {
      /** May it open without an answer? A fact that is unknown never helps here, and a quorum never goes unanswered. */
      readonly action: "open_unanswered";
      readonly person: string;
      readonly playbook: string;
      readonly reason: string;
      readonly durationMs: number;
      readonly facts: Facts;
      /** Since a page channel first confirmed that it delivered the call, by the store's clock; 0 before that. */
      readonly waitedMs: number;
      /** Whether a page channel confirmed that it delivered the call. */
      readonly paged: boolean;
      /** Whether anybody said no. */
      readonly denied: boolean;
    }
  | {
      /** An extension is a decision of its own: `request_extension` asks, `extend` needs approvals given for it. */
      readonly action: "request_extension" | "extend";
      readonly person: string;
      readonly playbook: string;
      readonly requester: string;
      readonly reason: string;
      /** How much longer. */
      readonly byMs: number;
      /** From the grant's opening to the end it would then have. */
      readonly totalMs: number;
      /** Extensions that this grant has had. */
      readonly extensions: number;
      readonly facts: Facts;
      readonly approvedBy?: readonly string[];
    }
  | {
      readonly action: "approve" | "deny";
      readonly person: string;
      readonly playbook: string;
      readonly requester: string;
      /** Since the request, by the store's clock. */
      readonly ageMs: number;
      /** Who said yes already. */
      readonly approvedBy: readonly string[];
    }
  | {
      /** What concerns one grant, and stays possible when its playbook is gone. */
      readonly action: GrantVerb;
      readonly person: string;
      readonly playbook: string;
      readonly requester: string;
    }
  | { readonly action: InstallationVerb; readonly person: string };

export type GrantVerb =
  | "read_grant"
  | "withdraw"
  | "connect"
  | "end"
  | "kill"
  | "read_recording"
  | "watch_session"
  | "hold_recording"
  | "release_hold"
  | "erase_recording"
  | "sign_review";
export type InstallationVerb =
  | "list_playbooks"
  | "list_grants"
  | "read_log"
  | "manage_log_keys"
  | "read_people"
  | "read_targets"
  | "check_target"
  | "read_alarms"
  | "read_reports"
  | "read_holds"
  | "reload_policy";
export type Action = Question["action"];

/** One rule that was looked at, in the words of the playbook's own keys, such as `who.group:payments` or `time.max`. */
export interface ClauseResult {
  readonly clause: string;
  readonly held: boolean;
  /** True where nobody knows; then `held` is false. */
  readonly unknown: boolean;
  readonly text: string;
}

/** Deterministic: the same policy and question give the same decision. */
export interface Decision {
  readonly allow: boolean;
  /**
   * Approvals needed before this takes effect: the playbook's `need`; at least 1 where a fact is unknown; one more than
   * `need`, and at least 2, where the playbook has become a quorum.
   */
  readonly need: number;
  /** Of those, how many are still missing; sides that nobody spoke for count. `open` and `extend` are allowed only at 0. */
  readonly missing: number;
  /** Why the playbook needs a quorum, one sentence each; empty where it does not. */
  readonly quorum: readonly string[];
  readonly clauses: readonly ClauseResult[];
  /** Why not, one sentence each. Empty when allowed. */
  readonly reasons: readonly string[];
  /** What would have to be true, one sentence each. Empty when allowed. */
  readonly wouldHold: readonly string[];
}

/** Who is on call: names of people, or a schedule of a source of evidence that is asked when it matters. */
export type Rota =
  | { readonly name: string; readonly people: readonly string[] }
  | { readonly name: string; readonly source: string; readonly ref: string }
  | { readonly name: string; readonly unknown: true };

/** A whole policy folder, checked. Immutable; a changed folder is loaded as another policy. */
export interface Policy {
  /** Names the policy: `bundleHash` of its files, offline as in the server. */
  readonly hash: string;
  readonly people: readonly Person[];
  readonly targets: readonly Target[];
  readonly playbooks: readonly Playbook[];
  readonly rotas: readonly Rota[];
  /** Reason codes that policy.yaml declares, each with what it is for. */
  readonly reasons: ReadonlyMap<string, string>;
  readonly denials: readonly Denial[];
  /** By playbook. */
  readonly tests: ReadonlyMap<string, readonly PlaybookTest[]>;
  playbook(name: string): Playbook | undefined;
  target(name: string): Target | undefined;
  /** By name or alias, in any case of letters. */
  person(nameOrAlias: string): Person | undefined;
  /** THE authorisation function: every channel and every verb asks here, and nowhere else. */
  decide(question: Question): Decision;
  /** Whether this person could ask for a playbook now, whatever the reason and duration. */
  canRequest(person: string, playbook: string, facts: Facts): Decision;
  /** Different people who may approve this playbook for that requester; the requester is never among them. */
  eligibleApprovers(playbook: string, requester: string): readonly Person[];
  /** The Cedar policies that decide about a playbook, by id. For people to read. */
  cedar(playbook: string): Readonly<Record<string, string>> | undefined;
}
