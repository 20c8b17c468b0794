import { formatDuration } from "../core/duration.ts";
import type { Answer } from "./cedar.ts";
import type { Action, ClauseResult, Decision, Person, Playbook, Selector } from "./policy.ts";
import { fromClauses, OTHERS_ONLY } from "./compile.ts";
import { type GrantRule, INSTALLATION_VERBS } from "./verbs.ts";

/**
 * The words of a decision. Nothing here decides: clauses come from Cedar's answer. `reasons` say why not, `wouldHold` what
 * would have to be true; both are whole sentences that a tired person can act on.
 */
export interface Why {
  readonly reasons: readonly string[];
  readonly wouldHold: readonly string[];
}

export function selectorText({ by, name }: Selector): string {
  return by === "oncall" ? `on call for ${name}` : by === "group" ? `in group ${name}` : `the person ${name}`;
}

/** The rules that no playbook can override, as far as they concern this action. */
export function fixedClauses(action: Action | "list", person: Person, failing: readonly string[]): ClauseResult[] {
  const rules: [id: string, text: string][] = [["glasskey.enabled", `${person.name} is enabled`]];
  if (CONSENTS.has(action)) rules.push(["glasskey.role.approver", `${person.name} has the role approver`]);
  else if (ASKS.has(action)) rules.push(["glasskey.role.requester", `${person.name} has the role requester`]);
  if (CONSENTS.has(action) || OTHERS.has(action)) {
    rules.push(["glasskey.not-requester", "the request is another human's"]);
  }
  if (action === "approve") rules.push(["glasskey.once", "one person counts once"]);
  if (action === "request_extension" || action === "extend") rules.push(["glasskey.own", "the grant is one's own"]);
  return rules.map(([clause, text]) => ({ clause, held: !failing.includes(clause), unknown: false, text }));
}

const OTHERS: ReadonlySet<string> = new Set(OTHERS_ONLY);
const CONSENTS: ReadonlySet<string> = new Set<Action>(["approve", "deny"]);
const ASKS: ReadonlySet<string> = new Set<Action | "list">([
  ...(["list", "request", "open", "open_unanswered", "request_extension", "extend", "connect"] as const),
]);

export function whyNoConsent(
  failing: readonly string[],
  now: { person: Person; playbook: Playbook; matched: boolean },
): Why {
  const { person, playbook } = now;
  const why = collector();
  fixedWhy(why, failing, person);
  if (!now.matched) {
    const names = either(fromClauses(playbook.approve.from).map(({ selector }) => selectorText(selector)));
    const missing = names === "" ? `${playbook.name} needs nobody's approval.` : `${person.name} is not ${names}.`;
    why.add(missing, names === "" ? "Nothing to decide." : `Allowed for people who are ${names}.`);
  }
  if (failing.includes("approve.within")) {
    const within = formatDuration(playbook.approve.withinMs);
    why.add(`The ${within} in which a decision counts are over.`, "Allowed for a new request.");
  }
  return why.done();
}

export function verbDecision(
  action: Action,
  rule: Partial<GrantRule> & Pick<GrantRule, "roles" | "words">,
  now: { person: Person; answer: Answer; playbook: Playbook | undefined },
): Decision {
  const { person, answer, playbook } = now;
  const failing = answer.allow ? [] : answer.decidedBy;
  const permits = answer.allow ? answer.decidedBy : [];
  const clauses = fixedClauses(action, person, failing);
  const may: string[] = [];
  const add = (clause: string, text: string, held: boolean): void => {
    may.push(text);
    clauses.push({ clause, held, unknown: false, text });
  };
  if (rule.own === true)
    add(`glasskey.own.${action}`, "the grant's requester", permits.includes(`glasskey.own.${action}`));
  if (rule.approvers === true && playbook !== undefined) {
    add(
      "approve.from",
      "who may approve it",
      permits.some((id) => id.endsWith(".oversee")),
    );
  }
  if (rule.reviewers === true && playbook !== undefined) {
    add(
      "review.by",
      "who signs its reviews",
      permits.some((id) => id.startsWith("review.by")),
    );
  }
  if (rule.roles.length > 0) {
    const all = rule.roles.length === ROLE_COUNT ? ["people with any role"] : rule.roles.map((role) => `role ${role}`);
    add(`glasskey.may.${action}`, either(all), permits.includes(`glasskey.may.${action}`));
  }
  if (answer.allow) return { allow: true, need: 0, missing: 0, quorum: [], clauses, reasons: [], wouldHold: [] };
  const why = collector();
  fixedWhy(why, failing, person);
  if (failing.length === 0) why.add(`${person.name} may not ${rule.words}.`, `Allowed for: ${either(may)}.`);
  return { allow: false, need: 0, missing: 0, quorum: [], clauses, ...why.done() };
}

const ROLE_COUNT = INSTALLATION_VERBS.list_grants.roles.length;

/** A no that is known before Cedar is asked. */
export function no(clause: string, text: string, wouldHold: string): Decision {
  const reasons = [`${text.charAt(0).toUpperCase()}${text.slice(1)}.`];
  const clauses = [{ clause, held: false, unknown: false, text }];
  return { allow: false, need: 0, missing: 0, quorum: [], clauses, reasons, wouldHold: [wouldHold] };
}

/** A decision that could not be made is a no. */
export function faulty(fault: string, need: number): Decision {
  const decision = no(
    "glasskey.evaluation",
    `the decision could not be made: ${fault}`,
    "Allowed once that is mended.",
  );
  return { ...decision, need, missing: need };
}

/** Somebody else's text in quotes, short and without anything that is not seen. */
export function shown(text: string): string {
  return `"${text.slice(0, 64).replaceAll(/[^\x20-\x7E]/g, "?")}"`;
}

export function fixedWhy(why: Collector, failing: readonly string[], { name }: Person): void {
  if (failing.includes("glasskey.enabled")) why.add(`${name} is not enabled.`, `Allowed once ${name} is enabled.`);
  for (const role of ["requester", "approver"] as const) {
    if (!failing.includes(`glasskey.role.${role}`)) continue;
    why.add(
      `${name} does not have the role ${role}.`,
      `Allowed for people with the role ${role}; no other role implies it.`,
    );
  }
  if (failing.includes("glasskey.not-requester")) {
    why.add(`${name} made this request, and nobody decides about their own.`, "Allowed for another human.");
  }
  if (failing.includes("glasskey.once")) why.add(`${name} has approved already.`, "Allowed for another human.");
  if (failing.includes("glasskey.own")) why.add(`The grant is not ${name}'s.`, "Allowed for the grant's requester.");
}

/** Sentences in order; what would have to be true is said once. */
export interface Collector {
  add(reason: string, would?: string): void;
  would(sentence: string): void;
  done(): Why;
}

export function collector(): Collector {
  const reasons: string[] = [];
  const wouldHold: string[] = [];
  const would = (sentence: string): void => {
    if (!wouldHold.includes(sentence)) wouldHold.push(sentence);
  };
  return {
    add: (reason, sentence) => {
      reasons.push(reason);
      if (sentence !== undefined) would(sentence);
    },
    would,
    done: () => ({ reasons, wouldHold }),
  };
}

export function either(texts: readonly string[]): string {
  if (texts.length < 2) return texts[0] ?? "";
  return `${texts.slice(0, -1).join(", ")} or ${texts.at(-1)}`;
}

export function times(count: number): string {
  return count === 1 ? "once" : count === 2 ? "twice" : `${count} times`;
}
