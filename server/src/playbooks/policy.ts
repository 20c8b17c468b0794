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

export interface Playbook {
  readonly name: string;
  readonly summary: string;
  readonly target: string;
  /** Checked by the target's kind, defaults filled in. */
  readonly scope: JsonObject;
  readonly who: readonly Selector[];
  /** The codes that may be given; never empty. */
  readonly reasons: readonly string[];
  readonly approve: {
    /** How many different people must say yes; 0 opens at once. */
    readonly need: number;
    readonly from: readonly Selector[];
    /** From the request to the last moment at which a yes counts, in milliseconds. */
    readonly withinMs: number;
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
  /**
   * SHA-256 (hex) of the canonical content of this playbook and of its target's kind and config: what an approver agreed
   * to. A grant pins it.
   */
  readonly hash: string;
}

/** What is known from outside. A source that cannot tell says `unknown`, which is neither yes nor no. */
export type Evidence = "true" | "false" | "unknown";

/** Facts about one person at one moment. A rota that is not listed is `unknown`. */
export interface Facts {
  readonly oncall: Readonly<Record<string, Evidence>>;
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

export type GrantVerb = "read_grant" | "withdraw" | "connect" | "end" | "kill" | "read_recording" | "watch_session";
export type InstallationVerb =
  | "list_playbooks"
  | "list_grants"
  | "read_log"
  | "read_people"
  | "read_targets"
  | "check_target"
  | "read_alarms"
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
  /** Approvals needed before this takes effect; at least the playbook's `need`, and 1 where on-call is unknown. */
  readonly need: number;
  /** Of those, how many are still missing. `open` and `extend` are allowed only when none is. */
  readonly missing: number;
  readonly clauses: readonly ClauseResult[];
  /** Why not, one sentence each. Empty when allowed. */
  readonly reasons: readonly string[];
  /** What would have to be true, one sentence each. Empty when allowed. */
  readonly wouldHold: readonly string[];
}

/** A whole policy folder, checked. Immutable; a changed folder is loaded as another policy. */
export interface Policy {
  /** SHA-256 (hex) of everything that was loaded. */
  readonly hash: string;
  readonly people: readonly Person[];
  readonly targets: readonly Target[];
  readonly playbooks: readonly Playbook[];
  playbook(name: string): Playbook | undefined;
  target(name: string): Target | undefined;
  /** By name or alias, in any case of letters. */
  person(nameOrAlias: string): Person | undefined;
  /** What the static rota file says of this person now. */
  facts(person: string): Facts;
  /** THE authorisation function: every channel and every verb asks here, and nowhere else. */
  decide(question: Question): Decision;
  /** Every playbook, and whether this person could ask for it now, whatever the reason and duration. */
  canRequest(person: string, facts: Facts): readonly { readonly playbook: Playbook; readonly decision: Decision }[];
  /** Different people who may approve this playbook for that requester; the requester is never among them. */
  eligibleApprovers(playbook: string, requester: string): readonly Person[];
  /** The Cedar policies that decide about a playbook, by id. For people to read. */
  cedar(playbook: string): Readonly<Record<string, string>> | undefined;
}
