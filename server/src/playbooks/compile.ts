import { GlassError } from "../core/errors.ts";
import type { Policies } from "./cedar.ts";
import type { Denial, GrantVerb, Hours, Playbook, Role, Selector, Side } from "./policy.ts";
import { quorumNeed, unknownNeed } from "./quorum.ts";
import { GRANT_VERBS, INSTALLATION_VERBS } from "./verbs.ts";

/**
 * Playbook → Cedar. Alternatives of `who` and `approve.from` are permits: any one lets a person in, and without one nobody
 * is. Everything else is a `forbid`: all must hold, and a no names each one that did not. A condition that allows is
 * written so that an odd number, such as −1, does not meet it. docs/playbook-cedar.md has the mapping as a table.
 */

/** What a playbook is for: a person asks, and when enough others have agreed it acts; or nobody answered. */
const ASK = ["list", "request", "request_extension"] as const;
const ACT = ["open", "extend"] as const;
const USES = [...ASK, ...ACT, "open_unanswered"] as const;
/** Uses that begin something; an extension does not. */
const NEW_USES = ["list", "request", "open", "open_unanswered"] as const;
/** Uses that come with a reason, and an incident where one is asked for. */
const REASONED = ["request", "open", "open_unanswered", "request_extension", "extend"] as const;

/** Marks the clause by which an on-call fact that nobody knows lets in, with a person's yes in its place. */
export const UNKNOWN_MARK = "?";

/** Verbs of a grant that are never its requester's, whatever their roles. */
export const OTHERS_ONLY = ["sign_review", "release_hold", "erase_recording"] as const satisfies readonly GrantVerb[];

/** A person's name for any alias; undefined for who is not there, whom no policy shall mean. */
type NameOf = (alias: string) => string | undefined;

/** What no playbook can override, and who may do what to a grant whatever its playbook says: beside each playbook's own. */
export function fixedPolicies(): Policies {
  const decide = actions("approve", "deny");
  const policies: Record<string, string> = {
    ...EVERYWHERE,
    "glasskey.role.requester": `forbid (principal, action in ${actions(...USES, "connect")}, resource) unless { principal.roles.contains("requester") };`,
    "glasskey.own": `forbid (principal, action in ${actions("request_extension", "extend")}, resource) unless { principal == resource.requester };`,
    "glasskey.role.approver": `forbid (principal, action in ${decide}, resource) unless { principal.roles.contains("approver") };`,
    "glasskey.not-requester": `forbid (principal, action in ${actions("approve", "deny", ...OTHERS_ONLY)}, resource) when { principal == resource.requester };`,
    "glasskey.once": `forbid (principal, action == Action::"approve", resource) when { context.already };`,
  };
  for (const [verb, rule] of Object.entries(GRANT_VERBS)) {
    Object.assign(policies, rolePermits(verb, rule.roles));
    if (!rule.own) continue;
    const own = `permit (principal, action == Action::"${verb}", resource) when { principal == resource.requester };`;
    policies[`glasskey.own.${verb}`] = own;
  }
  return policies;
}

/** Who may call what concerns no grant. */
export function installationPolicies(): Policies {
  const permits = Object.entries(INSTALLATION_VERBS).map(([verb, rule]) => rolePermits(verb, rule.roles));
  return Object.assign({ ...EVERYWHERE }, ...permits) as Policies;
}

/**
 * A playbook's own policies, by clause.
 * @param denials those that can concern its target. @param nameOf gives the person's name for any alias.
 */
export function playbookPolicies(playbook: Playbook, denials: readonly Denial[], nameOf: NameOf): Policies {
  const policies: Record<string, string> = {};
  for (const denial of denials) policies[`forbid.${denial.name}`] = denialPolicy(denial, nameOf);
  whoPolicies(policies, playbook, nameOf);
  whenPolicies(policies, playbook);
  timePolicies(policies, playbook);
  consentPolicies(policies, playbook);
  grantPolicies(policies, playbook, nameOf);
  return policies;
}

function whoPolicies(policies: Record<string, string>, playbook: Playbook, nameOf: NameOf): void {
  const [action, resource] = [`action in ${actions(...USES, "match_who")}`, here(playbook)];
  for (const [i, selector] of playbook.who.entries()) {
    const clause = clauseOf("who", selector, i);
    if (selector.by !== "oncall") {
      policies[clause] = `permit (${principal(selector, nameOf)}, ${action}, ${resource});`;
      continue;
    }
    const rota = quoted(selector.name);
    policies[clause] = `permit (principal, ${action}, ${resource}) when { context.oncall.contains(${rota}) };`;
    // Where the playbook names nobody, no yes can replace the fact, and unknown lets nobody in.
    if (playbook.approve.from.length === 0) continue;
    const instead = `context.oncallUnknown.contains(${rota}) && ${agreed(playbook, unknownNeed(playbook))}`;
    policies[`${clause}${UNKNOWN_MARK}`] = `permit (principal, ${action}, ${resource}) when { ${instead} };`;
  }
}

function whenPolicies(policies: Record<string, string>, playbook: Playbook): void {
  const { reasons, incident, hours, zone } = playbook.when;
  const asked = `principal, action in ${actions(...REASONED)}, ${here(playbook)}`;
  policies["when.reason"] = `forbid (${asked}) unless { ${oneOf(reasons)}.contains(context.reason) };`;
  if (incident !== undefined) {
    const known = `${oneOf(incident)}.contains(context.severity)`;
    const instead = `(context.incidentUnknown && ${agreed(playbook, unknownNeed(playbook))})`;
    policies["when.incident"] = `forbid (${asked}) unless { ${known} || ${instead} };`;
  }
  if (hours !== undefined) {
    policies["when.hours"] =
      `forbid (principal, action in ${actions(...USES)}, ${here(playbook)}) unless { ${within(hours, zone)} };`;
  }
}

function timePolicies(policies: Record<string, string>, playbook: Playbook): void {
  const { time, limit } = playbook;
  const resource = here(playbook);
  policies["time.max"] =
    `forbid (principal, action in ${actions("request", "open", "open_unanswered")}, ${resource}) unless { context.durationMs > 0 && context.durationMs <= ${whole(time.maxMs)} };`;
  const extensions = `action in ${actions("request_extension", "extend")}`;
  const { times, byMs } = time.extend ?? { times: 0, byMs: 0 };
  policies["time.extend"] =
    `forbid (principal, ${extensions}, ${resource}) unless { context.byMs > 0 && context.byMs <= ${whole(byMs)} && context.extensions >= 0 && context.extensions < ${whole(times)} };`;
  policies["time.cap"] =
    `forbid (principal, ${extensions}, ${resource}) unless { context.totalMs > 0 && context.totalMs <= ${whole(time.capMs)} };`;
  if (limit.concurrent !== undefined) {
    policies["limit.concurrent"] =
      `forbid (principal, action in ${actions(...NEW_USES)}, ${resource}) unless { context.open >= 0 && context.open < ${whole(limit.concurrent)} };`;
  }
}

function consentPolicies(policies: Record<string, string>, playbook: Playbook): void {
  const { approve, limit } = playbook;
  const resource = here(playbook);
  if (approve.need > 0) {
    policies["approve.reach"] =
      `forbid (principal, action in ${actions(...ASK)}, ${resource}) unless { ${agreed(playbook, approve.need)} };`;
    policies["approve.need"] =
      `forbid (principal, action in ${actions(...ACT)}, ${resource}) unless { context.approvals >= ${whole(approve.need)} };`;
    if (approve.from.length > 1) {
      policies["approve.sides"] =
        `forbid (principal, action in ${actions(...ACT)}, ${resource}) unless { context.sidesMet >= ${whole(approve.from.length)} };`;
    }
  }
  const orQuorum = agreed(playbook, quorumNeed(playbook));
  const quorum = (cause: string, action: string, unless: string): void => {
    policies[`approve.quorum.${cause}`] =
      `forbid (principal, action in ${action}, ${resource}) unless { (${unless}) || (${orQuorum}) };`;
  };
  const beginning = actions(...NEW_USES);
  if (limit.uses !== undefined) {
    quorum("uses", beginning, `context.unsigned >= 0 && context.unsigned < ${whole(limit.uses.count)}`);
  }
  if (limit.cooldownMs !== undefined) {
    quorum("cooldown", beginning, `context.sinceLastMs >= ${whole(limit.cooldownMs)}`);
  }
  quorum("overdue", actions(...USES), "context.overdue == 0");
  const silent = `principal, action == Action::"open_unanswered", ${resource}`;
  if (approve.unanswered === undefined) {
    policies["approve.unanswered"] = `forbid (${silent});`;
    return;
  }
  const { afterMs, forMs } = approve.unanswered;
  policies["approve.unanswered.after"] =
    `forbid (${silent}) unless { context.waitedMs >= ${whole(afterMs)} && context.waitedMs < ${whole(approve.withinMs)} };`;
  policies["approve.unanswered.for"] =
    `forbid (${silent}) unless { context.durationMs > 0 && context.durationMs <= ${whole(forMs)} };`;
  policies["approve.unanswered.paged"] = `forbid (${silent}) unless { context.paged };`;
  policies["approve.unanswered.denied"] = `forbid (${silent}) when { context.denied };`;
}

function grantPolicies(policies: Record<string, string>, playbook: Playbook, nameOf: NameOf): void {
  const { approve, review } = playbook;
  const resource = here(playbook);
  policies["approve.within"] =
    `forbid (principal, action in ${actions("approve", "deny")}, ${resource}) unless { context.ageMs >= 0 && context.ageMs < ${whole(approve.withinMs)} };`;
  const role = `principal.roles.contains("approver")`;
  for (const { clause, selector } of fromClauses(approve.from)) {
    const who = principal(selector, nameOf);
    policies[clause] = `permit (${who}, action in ${actions("approve", "deny", "match_from")}, ${resource});`;
    const verbs = Object.entries(GRANT_VERBS).flatMap(([verb, rule]) => (rule.approvers ? [verb] : []));
    policies[`${clause}.oversee`] = `permit (${who}, action in ${actions(...verbs)}, ${resource}) when { ${role} };`;
  }
  const verbs = Object.entries(GRANT_VERBS).flatMap(([verb, rule]) => (rule.reviewers ? [verb] : []));
  for (const [i, selector] of review.by.entries()) {
    policies[clauseOf("review.by", selector, i)] =
      `permit (${principal(selector, nameOf)}, action in ${actions(...verbs)}, ${resource}) when { ${role} };`;
  }
}

/** A hard denial: no `unless` beside its own conditions, and no playbook in it. */
function denialPolicy({ who, targets, tags, hours, zone }: Denial, nameOf: NameOf): string {
  const people = who.map((selector) => {
    if (selector.by === "user") return `principal == ${personOf(selector.name, nameOf)}`;
    const name = quoted(selector.name);
    if (selector.by === "group") return `principal in Group::${name}`;
    return `context.oncall.contains(${name}) || context.oncallUnknown.contains(${name})`; // unknown is not "no"
  });
  const places = [
    ...targets.map((name) => `resource in Target::${quoted(name)}`),
    ...tags.map((name) => `resource in Tag::${quoted(name)}`),
  ];
  const conditions = [
    ...(people.length === 0 ? [] : [`(${people.join(" || ")})`]),
    ...(places.length === 0 ? [] : [`(${places.join(" || ")})`]),
    ...(hours === undefined ? [] : [`(${within(hours, zone)})`]),
  ];
  const when = conditions.length === 0 ? "" : ` when { ${conditions.join(" && ")} }`;
  return `forbid (principal, action in ${actions(...USES)}, resource)${when};`;
}

/** A clause's id. It goes into the log, so a person is named by place in the list, never by name. */
export function clauseOf(key: string, selector: Selector, index: number): string {
  return selector.by === "user" ? `${key}.user.${index + 1}` : `${key}.${selector.by}:${selector.name}`;
}

/** The clauses of all sides; with several sides each is numbered, from 1. */
export function fromClauses(from: readonly Side[]): { clause: string; selector: Selector; side: number }[] {
  return from.flatMap((selectors, side) => {
    const key = from.length > 1 ? `approve.from.${side + 1}` : "approve.from";
    return selectors.map((selector, i) => ({ clause: clauseOf(key, selector, i), selector, side }));
  });
}

/** Part of every set. */
const EVERYWHERE: Policies = {
  "glasskey.enabled": `forbid (principal, action, resource) unless { principal.enabled || action in ${actions("match_who", "match_from")} };`,
};

function rolePermits(verb: string, roles: readonly Role[]): Policies {
  if (roles.length === 0) return {};
  const test = `principal.roles.containsAny([${roles.map((role) => quoted(role)).join(", ")}])`;
  return { [`glasskey.may.${verb}`]: `permit (principal, action == Action::"${verb}", resource) when { ${test} };` };
}

/** So many people have agreed, or could when it is only asked; and every side has somebody of its own among them. */
function agreed({ approve }: Playbook, need: number): string {
  const sides = approve.from.length;
  return `context.approvals >= ${whole(need)}${sides > 1 ? ` && context.sidesMet >= ${whole(sides)}` : ""}`;
}

/** A time of the week that passes midnight is two: the rest of its day, and the beginning of the next. */
function within(hours: readonly Hours[], zone: string): string {
  const clock = `Clock::${quoted(zone, ZONE)}`;
  const on = (days: readonly number[]): string => `[${days.map(whole).join(", ")}].contains(${clock}.day)`;
  const from = (minute: number): string => `${clock}.minute >= ${whole(minute)}`;
  const before = (minute: number): string => `${clock}.minute < ${whole(minute)}`;
  const windows = hours.flatMap(({ days, fromMinute, toMinute }) => {
    if (days.length === 0) throw new GlassError("internal", "a time of the week without days");
    if (fromMinute < toMinute) return [`(${on(days)} && ${from(fromMinute)} && ${before(toMinute)})`];
    const next = days.map((day) => (day % 7) + 1);
    return [`(${on(days)} && ${from(fromMinute)})`, `(${on(next)} && ${before(toMinute)})`];
  });
  if (windows.length === 0) throw new GlassError("internal", "an empty list of times");
  return windows.join(" || ");
}

function oneOf(words: readonly string[]): string {
  if (words.length === 0) throw new GlassError("internal", "an empty list reached the Cedar compiler");
  return `[${words.map((word) => quoted(word, WORD)).join(", ")}]`;
}

function here({ name }: Playbook): string {
  return `resource in Playbook::${quoted(name)}`;
}

function principal({ by, name }: Selector, nameOf: NameOf): string {
  if (by === "group") return `principal in Group::${quoted(name)}`;
  if (by === "user") return `principal == ${personOf(name, nameOf)}`;
  throw new GlassError("internal", "on call decides who asks, never who consents");
}

/** No person's name: it begins with a bracket. */
export const NOBODY = "(unknown)";

function personOf(alias: string, nameOf: NameOf): string {
  const name = nameOf(alias);
  return `Person::${name === undefined ? `"${NOBODY}"` : quoted(name)}`;
}

/** Written out rather than as groups: a question then needs no entity for its action, and no action slips past a group. */
function actions(...names: readonly string[]): string {
  return `[${names.map((name) => `Action::"${name}"`).join(", ")}]`;
}

const NAME = /^[a-z][a-z0-9._-]*$/;
const WORD = /^[A-Za-z][A-Za-z0-9_-]*$/;
const ZONE = /^[A-Za-z][A-Za-z0-9_+/-]*$/;

/** Names were checked when they were loaded; this holds even if somebody loosens that check. */
function quoted(text: string, allowed: RegExp = NAME): string {
  if (!allowed.test(text)) {
    throw new GlassError("internal", "a name that was not checked reached the Cedar compiler");
  }
  return `"${text}"`;
}

function whole(value: number): string {
  if (!Number.isSafeInteger(value) || value < 0) throw new GlassError("internal", "a number is not whole");
  return String(value);
}
