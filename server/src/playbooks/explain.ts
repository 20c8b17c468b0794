import { formatDuration } from "../core/duration.ts";
import { unreachable } from "../core/errors.ts";
import type { Answer } from "./cedar.ts";
import type { Action, ClauseResult, Decision, Person, Playbook, Question, Role, Selector } from "./policy.ts";
import { INSTALLATION_VERBS } from "./verbs.ts";

/**
 * The words of a decision. Nothing here decides: clauses come from Cedar's answer. `reasons` say why not, `wouldHold` what
 * would have to be true; both are whole sentences that a tired person can act on.
 */
export interface Why {
  readonly reasons: readonly string[];
  readonly wouldHold: readonly string[];
}

type UseAction = "list" | "request" | "open" | "request_extension" | "extend";
type LimitClause = "when.reason" | "time.max" | "time.extend" | "time.cap";

export function concerns(clause: LimitClause, action: UseAction): boolean {
  if (action === "list") return false;
  if (clause === "when.reason") return true;
  return (clause === "time.max") === (action === "request" || action === "open");
}

export function limitText(clause: LimitClause, { reasons, time }: Playbook): string {
  switch (clause) {
    case "when.reason":
      return `the reason is one of ${reasons.join(", ")}`;
    case "time.max":
      return `for at most ${formatDuration(time.maxMs)}`;
    case "time.extend":
      return time.extend === undefined
        ? "extensions are not allowed"
        : `extended ${times(time.extend.times)} at most, by at most ${formatDuration(time.extend.byMs)}`;
    case "time.cap":
      return `at most ${formatDuration(time.capMs)} in all`;
    default:
      return unreachable(clause);
  }
}

export function selectorText({ by, name }: Selector): string {
  return by === "oncall" ? `on call for ${name}` : by === "group" ? `in group ${name}` : `the person ${name}`;
}

/** The rules that no playbook can override, as far as they concern this action. */
export function fixedClauses(action: Action | "list", person: Person, failing: readonly string[]): ClauseResult[] {
  const consent = action === "approve" || action === "deny";
  const rules: [id: string, text: string][] = [
    ["glasskey.enabled", `${person.name} is enabled`],
    consent
      ? ["glasskey.role.approver", `${person.name} has the role approver`]
      : ["glasskey.role.requester", `${person.name} has the role requester`],
  ];
  if (consent) rules.push(["glasskey.not-requester", "the request is another human's"]);
  if (action === "approve") rules.push(["glasskey.once", "one person counts once"]);
  if (action === "request_extension" || action === "extend") rules.push(["glasskey.own", "the grant is one's own"]);
  return rules.map(([clause, text]) => ({ clause, held: !failing.includes(clause), unknown: false, text }));
}

export function whyNot(
  failing: readonly string[],
  now: {
    person: Person;
    playbook: Playbook;
    question: Extract<Question, { facts: unknown }> | { action: "list" };
    unknown: readonly string[];
    approvers: number;
    approvals: number;
    need: number;
    missing: number;
    /** Whether any alternative of `who` let the person in. */
    matched: boolean;
  },
): Why {
  const { person, playbook, question, need, missing, approvers, approvals } = now;
  const why = collector();
  fixedWhy(why, failing, person);
  if (!now.matched) whoWhy(why, now);
  if (failing.includes("when.reason") && "reason" in question) {
    const codes = playbook.reasons.join(", ");
    why.add(
      `${shown(question.reason)} is not a reason that ${playbook.name} accepts.`,
      `Allowed with a reason of: ${codes}.`,
    );
  }
  if (failing.includes("time.max") && "durationMs" in question) {
    const longest = formatDuration(playbook.time.maxMs);
    const { durationMs } = question;
    const asked = durationMs > 0 ? `${formatDuration(durationMs)} is longer than` : "The time asked for is not within";
    why.add(`${asked} the ${longest} that ${playbook.name} gives at most.`, `Allowed for ${longest} or less.`);
  }
  if (failing.includes("time.extend")) extendWhy(why, playbook);
  if (failing.includes("time.cap")) {
    const cap = formatDuration(playbook.time.capMs);
    why.add(
      `The grant would last longer than the ${cap} that ${playbook.name} ever gives.`,
      "Allowed as a new request.",
    );
  }
  const acting = question.action === "open" || question.action === "extend";
  if (failing.includes("approve.reach")) {
    const could = approvers === 0 ? "nobody but" : `only ${approvers} other than`;
    why.add(
      `${need} must approve, and ${could} ${person.name} could.`,
      `Allowed when ${need} other ${need === 1 ? "person is" : "people are"} named in approve.from and enabled as approvers.`,
    );
  }
  if (acting && now.matched && missing > 0) {
    const of = `${approvals} of ${need} approval${need === 1 ? "" : "s"} given; ${missing} missing.`;
    why.add(of, `Allowed once ${missing} more ${missing === 1 ? "person" : "people"} approved.`);
  }
  return why.done();
}

export function whyNoConsent(
  failing: readonly string[],
  now: { person: Person; playbook: Playbook; matched: boolean },
): Why {
  const { person, playbook } = now;
  const why = collector();
  fixedWhy(why, failing, person);
  if (!now.matched) {
    const names = either(playbook.approve.from.map(selectorText));
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
  rule: {
    readonly own?: boolean;
    readonly approvers?: boolean;
    readonly roles: readonly Role[];
    readonly words: string;
  },
  now: { person: Person; answer: Answer; playbook: Playbook | undefined },
): Decision {
  const { person, answer, playbook } = now;
  const failing = answer.allow ? [] : answer.decidedBy;
  const permits = answer.allow ? answer.decidedBy : [];
  const clauses: ClauseResult[] = [
    {
      clause: "glasskey.enabled",
      held: !failing.includes("glasskey.enabled"),
      unknown: false,
      text: `${person.name} is enabled`,
    },
  ];
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
  if (rule.roles.length > 0) {
    const all = rule.roles.length === ROLE_COUNT ? ["people with any role"] : rule.roles.map((role) => `role ${role}`);
    add(`glasskey.may.${action}`, either(all), permits.includes(`glasskey.may.${action}`));
  }
  if (answer.allow) return { allow: true, need: 0, missing: 0, clauses, reasons: [], wouldHold: [] };
  const why = collector();
  fixedWhy(why, failing, person);
  if (failing.length === 0) why.add(`${person.name} may not ${rule.words}.`, `Allowed for: ${either(may)}.`);
  return { allow: false, need: 0, missing: 0, clauses, ...why.done() };
}

const ROLE_COUNT = INSTALLATION_VERBS.list_grants.roles.length;

/** A no that is known before Cedar is asked. */
export function no(clause: string, text: string, wouldHold: string): Decision {
  const reasons = [`${text.charAt(0).toUpperCase()}${text.slice(1)}.`];
  const clauses = [{ clause, held: false, unknown: false, text }];
  return { allow: false, need: 0, missing: 0, clauses, reasons, wouldHold: [wouldHold] };
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

function fixedWhy(why: Collector, failing: readonly string[], { name }: Person): void {
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

function whoWhy(
  why: Collector,
  now: { person: Person; playbook: Playbook; unknown: readonly string[]; approvers: number },
): void {
  const { person, playbook, unknown } = now;
  const sure = playbook.who.filter(({ by, name }) => by !== "oncall" || !unknown.includes(name)).map(selectorText);
  if (sure.length > 0) why.add(`${person.name} is not ${either(sure)}.`);
  if (unknown.length > 0) {
    const rotas = either(unknown);
    const instead =
      playbook.approve.from.length === 0
        ? `${playbook.name} names nobody who could approve instead`
        : `nobody but ${person.name} could approve instead`;
    why.add(`Whether ${person.name} is on call for ${rotas} is unknown, and ${instead}.`);
  }
  why.would(`Allowed if ${person.name} is ${either(playbook.who.map(selectorText))}.`);
}

function extendWhy(why: Collector, playbook: Playbook): void {
  const { extend } = playbook.time;
  if (extend === undefined) why.add(`${playbook.name} cannot be extended.`, "Allowed as a new request.");
  else {
    const limit = `${times(extend.times)}, by ${formatDuration(extend.byMs)} or less each time`;
    why.add(`${playbook.name} can be extended ${limit}.`, `Allowed ${limit}.`);
  }
}

interface Collector {
  add(reason: string, would?: string): void;
  would(sentence: string): void;
  done(): Why;
}

function collector(): Collector {
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

function either(texts: readonly string[]): string {
  if (texts.length < 2) return texts[0] ?? "";
  return `${texts.slice(0, -1).join(", ")} or ${texts.at(-1)}`;
}

function times(count: number): string {
  return count === 1 ? "once" : count === 2 ? "twice" : `${count} times`;
}
