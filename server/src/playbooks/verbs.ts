import type { GrantVerb, InstallationVerb, Role } from "./policy.ts";
import { ROLES } from "./policy.ts";

/**
 * Who may call what, once: the fixed Cedar policies and the words of a decision are made from these tables. Roles do not
 * imply each other, so every role is named where it counts.
 */
export interface GrantRule {
  /** Whether the grant's requester may. */
  readonly own: boolean;
  /** Whether people in the playbook's `approve.from` with the role approver may. */
  readonly approvers: boolean;
  /** Whether people in the playbook's `review.by` with the role approver may. */
  readonly reviewers: boolean;
  readonly roles: readonly Role[];
  /** For sentences: "ann may not …". */
  readonly words: string;
}

const NOBODY = { own: false, approvers: false, reviewers: false } as const;
const OWN = { ...NOBODY, own: true, roles: [] } as const;

export const GRANT_VERBS: Readonly<Record<GrantVerb, GrantRule>> = {
  read_grant: {
    ...{ own: true, approvers: true, reviewers: true, roles: ["security_officer", "auditor"] },
    words: "see this grant",
  },
  withdraw: { ...OWN, words: "withdraw this request" },
  connect: { ...OWN, words: "connect under this grant" },
  end: { ...NOBODY, own: true, approvers: true, roles: ["security_officer"], words: "end this grant" },
  kill: { ...NOBODY, roles: ["security_officer"], words: "kill grants and sessions" },
  // Not the requester: a terminal's recording holds the target's data, and access to that ends with the grant.
  read_recording: { ...NOBODY, roles: ["security_officer", "auditor"], words: "read recordings" },
  watch_session: { ...NOBODY, roles: ["security_officer", "auditor"], words: "watch sessions" },
  // To keep is never against anybody. To let go, or to destroy, is never the requester's: `glasskey.not-requester`.
  hold_recording: { ...NOBODY, roles: ["security_officer"], words: "hold recordings" },
  release_hold: { ...NOBODY, roles: ["security_officer"], words: "lift holds" },
  erase_recording: { ...NOBODY, roles: ["security_officer"], words: "erase recordings" },
  // Never the requester, whatever else they are: `glasskey.not-requester`.
  sign_review: { ...NOBODY, reviewers: true, roles: ["security_officer"], words: "sign this review" },
};

export const INSTALLATION_VERBS: Readonly<Record<InstallationVerb, { roles: readonly Role[]; words: string }>> = {
  list_playbooks: { roles: ROLES, words: "list the playbooks" },
  // Each row is then asked about with read_grant.
  list_grants: { roles: ROLES, words: "list grants" },
  read_log: { roles: ["security_officer", "auditor"], words: "read the log" },
  manage_log_keys: { roles: ["admin"], words: "change the log's keys" },
  read_people: { roles: ["security_officer", "auditor", "admin"], words: "read the list of people" },
  read_targets: { roles: ["security_officer", "auditor", "admin"], words: "read the targets' configuration" },
  check_target: { roles: ["admin"], words: "check a target" },
  read_alarms: { roles: ["security_officer", "auditor", "admin"], words: "read alarms" },
  read_reports: { roles: ["security_officer", "auditor", "admin"], words: "read reports" },
  read_holds: { roles: ["security_officer", "auditor"], words: "see the holds on recordings" },
  reload_policy: { roles: ["admin"], words: "load the policy again" },
};
