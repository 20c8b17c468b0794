import type { EventType } from "@glasskey/contract/events";
import type { Severity } from "./sink.ts";

/** The classes of OCSF 1.8 that our events fall into, with the activities that are used (https://schema.ocsf.io/1.8.0). */
export const CLASSES = {
  detection_finding: { uid: 2004, caption: "Detection Finding", activities: { 1: "Create", 2: "Update", 3: "Close" } },
  account_change: { uid: 3001, caption: "Account Change", activities: { 1: "Create", 5: "Disable", 6: "Delete" } },
  authentication: { uid: 3002, caption: "Authentication", activities: { 1: "Logon", 2: "Logoff" } },
  entity_management: {
    uid: 3004,
    caption: "Entity Management",
    activities: { 1: "Create", 3: "Update", 4: "Delete", 8: "Enable", 10: "Activate", 11: "Deactivate" },
  },
  application_lifecycle: { uid: 6002, caption: "Application Lifecycle", activities: { 3: "Start", 4: "Stop" } },
  api_activity: { uid: 6003, caption: "API Activity", activities: { 1: "Create" } },
  datastore_activity: {
    uid: 6005,
    caption: "Datastore Activity",
    activities: { 1: "Read", 2: "Update", 5: "Write", 7: "Delete" },
  },
} as const;
export type ClassName = keyof typeof CLASSES;

export const CATEGORIES: Readonly<Record<number, string>> = {
  2: "Findings",
  3: "Identity & Access Management",
  6: "Application Activity",
};

type ActivityOf<C extends ClassName> = keyof (typeof CLASSES)[C]["activities"];
/** `other` is what has begun, or is not proved yet. */
export type Outcome = "success" | "failure" | "other";

interface Of<C extends ClassName> {
  readonly class: C;
  readonly activity: ActivityOf<C>;
  readonly outcome: Outcome;
  readonly severity: Severity;
}
/** What an entity is: a grant, an approval of it, … */
export type EntityKind = "grant" | "approval" | "review" | "lease" | "session" | "policy" | "log key";

export type Mapping =
  | (Of<"entity_management"> & { readonly entity: EntityKind })
  | (Of<"detection_finding"> & { readonly title: string })
  | (Of<"api_activity"> & { readonly operation: string })
  | Of<"account_change">
  | Of<"authentication">
  | Of<"application_lifecycle">
  | Of<"datastore_activity">;

type EntityActivity = ActivityOf<"entity_management">;
const entity = (
  kind: EntityKind,
  activity: EntityActivity,
  outcome: Outcome = "success",
  severity: Severity = "informational",
): Mapping => ({ class: "entity_management", entity: kind, activity, outcome, severity });
const account = (
  activity: ActivityOf<"account_change">,
  outcome: Outcome = "success",
  severity: Severity = "informational",
): Mapping => ({ class: "account_change", activity, outcome, severity });
const logon = (
  activity: ActivityOf<"authentication">,
  outcome: Outcome = "success",
  severity: Severity = "informational",
): Mapping => ({ class: "authentication", activity, outcome, severity });
const finding = (title: string, activity: ActivityOf<"detection_finding">, severity: Severity = "high"): Mapping => ({
  ...{ class: "detection_finding", title, activity, severity },
  outcome: activity === 3 ? "success" : "other",
});
const recording = (activity: ActivityOf<"datastore_activity">, severity: Severity = "informational"): Mapping => ({
  ...{ class: "datastore_activity", activity, severity, outcome: "success" },
});
const call = (operation: string, outcome: Outcome = "success", severity: Severity = "informational"): Mapping => ({
  ...{ class: "api_activity", activity: 1, operation, outcome, severity },
});

/**
 * Every kind of entry, and what it is in OCSF. The compiler refuses a kind that is not here.
 *
 * A grant is an entity with a life; the credential of a lease is an account on the target; a session is a logon there. What
 * needs a human is a finding.
 */
export const MAPPINGS: Readonly<Record<EventType, Mapping>> = {
  "grant.requested": entity("grant", 1, "success", "low"),
  "grant.refused": entity("grant", 1, "failure", "medium"),
  "grant.approved": entity("grant", 3, "success", "low"),
  "grant.denied": entity("grant", 11, "failure", "medium"),
  "grant.withdrawn": entity("grant", 11),
  "grant.timed_out": entity("grant", 11, "failure", "low"),
  "grant.opening": entity("grant", 8, "other", "low"),
  "grant.active": entity("grant", 10, "success", "medium"),
  "grant.extension_requested": entity("grant", 3, "other", "low"),
  "grant.extended": entity("grant", 3, "success", "low"),
  "grant.closing": entity("grant", 11, "other"),
  "grant.closed": entity("grant", 4),
  "grant.failed": entity("grant", 11, "failure", "medium"),
  "grant.reviewed": entity("grant", 3),
  "approval.given": entity("approval", 1, "success", "low"),
  "approval.denied": entity("approval", 1, "failure", "medium"),
  "review.opened": entity("review", 1),
  "review.overdue": entity("review", 3, "failure", "medium"),
  "review.signed": entity("review", 4),
  "notice.delivered": call("notice.deliver"),
  "notice.given_up": call("notice.deliver", "failure", "medium"),
  "lease.planned": entity("lease", 1),
  "lease.minting": account(1, "other"),
  "lease.minted": account(1, "success", "medium"),
  "lease.fenced": account(5),
  "lease.revoked": account(6, "other"),
  "lease.confirmed": account(6),
  "lease.failed": account(6, "failure", "high"),
  "lease.orphan_found": finding("A credential that no lease accounts for", 1),
  "lease.orphan_removed": finding("A credential that no lease accounts for", 3, "low"),
  "session.opened": logon(1, "success", "low"),
  "session.refused": logon(1, "failure", "medium"),
  "session.closed": logon(2),
  "session.killed": entity("session", 11, "success", "high"),
  "recording.sealed": recording(5),
  "recording.read": recording(1, "low"),
  "recording.held": recording(2, "low"),
  "recording.released": recording(2, "medium"),
  "recording.erased": recording(7, "medium"),
  "recording.journal_lost": finding("A recording journal was declared lost", 1, "critical"),
  "login.succeeded": logon(1),
  "login.failed": logon(1, "failure", "medium"),
  "policy.loaded": entity("policy", 3, "success", "medium"),
  "policy.rejected": entity("policy", 3, "failure", "medium"),
  "evidence.received": call("evidence.push"),
  "evidence.refused": call("evidence.push", "failure", "medium"),
  "access.drift": finding("A target's access state differs from before the grant", 1),
  "alarm.raised": finding("Something needs a human", 1),
  "alarm.cleared": finding("Something needs a human", 3, "informational"),
  "server.started": { class: "application_lifecycle", activity: 3, outcome: "success", severity: "informational" },
  "server.stopped": { class: "application_lifecycle", activity: 4, outcome: "success", severity: "informational" },
  "log.key_added": entity("log key", 10, "success", "medium"),
  "log.key_retired": entity("log key", 11, "success", "medium"),
};
