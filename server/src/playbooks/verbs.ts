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
  readonly roles: readonly Role[];
  /** For sentences: "ann may not …". */
  readonly words: string;
}

export const GRANT_VERBS: Readonly<Record<GrantVerb, GrantRule>> = {
  read_grant: { own: true, approvers: true, roles: ["security_officer", "auditor"], words: "see this grant" },
  withdraw: { own: true, approvers: false, roles: [], words: "withdraw this request" },
  connect: { own: true, approvers: false, roles: [], words: "connect under this grant" },
  end: { own: true, approvers: true, roles: ["security_officer"], words: "end this grant" },
  kill: { own: false, approvers: false, roles: ["security_officer"], words: "kill grants and sessions" },
  // Not the requester: a terminal's recording holds the target's data, and access to that ends with the grant.
  read_recording: { own: false, approvers: false, roles: ["security_officer", "auditor"], words: "read recordings" },
  watch_session: { own: false, approvers: false, roles: ["security_officer", "auditor"], words: "watch sessions" },
};

export const INSTALLATION_VERBS: Readonly<Record<InstallationVerb, { roles: readonly Role[]; words: string }>> = {
  list_playbooks: { roles: ROLES, words: "list the playbooks" },
  // Each row is then asked about with read_grant.
  list_grants: { roles: ROLES, words: "list grants" },
  read_log: { roles: ["security_officer", "auditor"], words: "read the log" },
  read_people: { roles: ["security_officer", "auditor", "admin"], words: "read the list of people" },
  read_targets: { roles: ["security_officer", "auditor", "admin"], words: "read the targets' configuration" },
  check_target: { roles: ["admin"], words: "check a target" },
  read_alarms: { roles: ["security_officer", "auditor", "admin"], words: "read alarms" },
  reload_policy: { roles: ["admin"], words: "load the policy again" },
};
