import { GlassError } from "../core/errors.ts";
import type { Policies } from "./cedar.ts";
import type { Playbook, Role, Selector } from "./policy.ts";
import { GRANT_VERBS, INSTALLATION_VERBS } from "./verbs.ts";

/**
 * Playbook → Cedar. Alternatives of `who` and `approve.from` are permits: any one lets a person in, and without one nobody
 * is. Everything else is a `forbid … unless`: all must hold, and a no names each one that did not. docs/playbooks.md has
 * the mapping as a table.
 */

const USES = ["request", "open", "request_extension", "extend"] as const;

/** Marks the clause by which an on-call fact that nobody knows lets in, with a person's yes in its place. */
export const UNKNOWN_MARK = "?";

/** What no playbook can override: it goes into every set of policies, beside each playbook's own. */
export function fixedPolicies(): Policies {
  const decide = actions("approve", "deny");
  const use = `[Action::"ask", Action::"act", Action::"connect"]`;
  const policies: Record<string, string> = {
    "glasskey.enabled": `forbid (principal, action in Action::"verb", resource) unless { principal.enabled };`,
    "glasskey.role.requester": `forbid (principal, action in ${use}, resource) unless { principal.roles.contains("requester") };`,
    "glasskey.role.approver": `forbid (principal, action in ${decide}, resource) unless { principal.roles.contains("approver") };`,
    "glasskey.not-requester": `forbid (principal, action in ${decide}, resource) when { principal == resource.requester };`,
    "glasskey.once": `forbid (principal, action == Action::"approve", resource) when { context.already };`,
    "glasskey.own": `forbid (principal, action in ${actions("request_extension", "extend")}, resource) unless { principal == resource.requester };`,
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
  return Object.assign({}, ...permits) as Policies;
}

/** A playbook's own policies, by clause. `nameOf` gives the person's name for any alias. */
export function playbookPolicies(playbook: Playbook, nameOf: (alias: string) => string): Policies {
  const { name, approve, reasons, time } = playbook;
  const resource = `resource in Playbook::${quoted(name)}`;
  const policies: Record<string, string> = {};
  for (const [i, selector] of playbook.who.entries()) {
    const clause = clauseOf("who", selector, i);
    const action = `action in [Action::"ask", Action::"act", Action::"match_who"]`;
    if (selector.by !== "oncall") {
      policies[clause] = `permit (${principal(selector, nameOf)}, ${action}, ${resource});`;
      continue;
    }
    const rota = quoted(selector.name);
    policies[clause] = `permit (principal, ${action}, ${resource}) when { context.oncall.contains(${rota}) };`;
    if (approve.from.length === 0) continue; // nobody's yes could replace the fact, so unknown lets nobody in
    const asking = `permit (principal, action in [Action::"ask", Action::"match_who"], ${resource})`;
    const acting = `permit (principal, action in Action::"act", ${resource})`;
    const unknown = `context.oncallUnknown.contains(${rota})`;
    policies[`${clause}${UNKNOWN_MARK}`] = `${asking} when { ${unknown} && context.approvers >= 1 };`;
    policies[`${clause}${UNKNOWN_MARK}approved`] = `${acting} when { ${unknown} && context.approvals >= 1 };`;
  }
  const uses = `action in ${actions(...USES)}`;
  policies["when.reason"] =
    `forbid (principal, ${uses}, ${resource}) unless { [${reasons.map(quoted).join(", ")}].contains(context.reason) };`;
  policies["time.max"] =
    `forbid (principal, action in ${actions("request", "open")}, ${resource}) unless { context.durationMs > 0 && context.durationMs <= ${whole(time.maxMs)} };`;
  const extensions = `action in ${actions("request_extension", "extend")}`;
  const { times, byMs } = time.extend ?? { times: 0, byMs: 0 };
  policies["time.extend"] =
    `forbid (principal, ${extensions}, ${resource}) unless { context.byMs > 0 && context.byMs <= ${whole(byMs)} && context.extensions >= 0 && context.extensions < ${whole(times)} };`;
  policies["time.cap"] =
    `forbid (principal, ${extensions}, ${resource}) unless { context.totalMs > 0 && context.totalMs <= ${whole(time.capMs)} };`;
  if (approve.need > 0) {
    const need = whole(approve.need);
    policies["approve.reach"] =
      `forbid (principal, action in Action::"ask", ${resource}) unless { context.approvers >= ${need} };`;
    policies["approve.need"] =
      `forbid (principal, action in Action::"act", ${resource}) unless { context.approvals >= ${need} };`;
  }
  policies["approve.within"] =
    `forbid (principal, action in ${actions("approve", "deny")}, ${resource}) unless { context.ageMs >= 0 && context.ageMs < ${whole(approve.withinMs)} };`;
  for (const [i, selector] of approve.from.entries()) {
    const clause = clauseOf("approve.from", selector, i);
    const who = principal(selector, nameOf);
    policies[clause] = `permit (${who}, action in ${actions("approve", "deny", "match_from")}, ${resource});`;
    const verbs = Object.entries(GRANT_VERBS).flatMap(([verb, rule]) => (rule.approvers ? [verb] : []));
    policies[`${clause}.oversee`] =
      `permit (${who}, action in ${actions(...verbs)}, ${resource}) when { principal.roles.contains("approver") };`;
  }
  return policies;
}

/** A clause's id. It goes into the log, so a person is named by place in the list, never by name. */
export function clauseOf(key: "who" | "approve.from", selector: Selector, index: number): string {
  return selector.by === "user" ? `${key}.user.${index + 1}` : `${key}.${selector.by}:${selector.name}`;
}

function rolePermits(verb: string, roles: readonly Role[]): Policies {
  if (roles.length === 0) return {};
  const test = `principal.roles.containsAny([${roles.map(quoted).join(", ")}])`;
  return { [`glasskey.may.${verb}`]: `permit (principal, action == Action::"${verb}", resource) when { ${test} };` };
}

function principal(selector: Selector, nameOf: (alias: string) => string): string {
  if (selector.by === "group") return `principal in Group::${quoted(selector.name)}`;
  return `principal == Person::${quoted(nameOf(selector.name))}`;
}

function actions(...names: readonly string[]): string {
  return `[${names.map((name) => `Action::"${name}"`).join(", ")}]`;
}

/** Names were checked when they were loaded; this holds even if somebody loosens that check. */
function quoted(text: string): string {
  if (!/^[a-z0-9._-]+$/.test(text) && !/^[a-z_]+$/.test(text)) {
    throw new GlassError("internal", "a name that was not checked reached the Cedar compiler");
  }
  return `"${text}"`;
}

function whole(value: number): string {
  if (!Number.isSafeInteger(value) || value < 0) throw new GlassError("internal", "a number is not whole");
  return String(value);
}
