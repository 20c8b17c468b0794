import { formatDuration } from "../core/duration.ts";
import { unreachable } from "../core/errors.ts";
import { findMoment } from "./plan-hours.ts";
import { byText } from "./plan-people.ts";
import { sidesMet } from "./sides.ts";
import type { Evidence, Facts, Person, Playbook, Policy, Question, Rota, Selector, Usage } from "./policy.ts";

/** A question that shows a gain: the old policy says no to it, the new one yes. Both were asked. */
export interface Witness {
  /** As the new version is asked. */
  readonly question: Question;
  /** As the old one is asked: the same, but with who is on call as its own oncall.yaml has it. */
  readonly before: Question;
  /** The question in words. */
  readonly text: string;
  /** Why the old version says no. */
  readonly old: string;
}

/** What a witness would have to be about. What is left out is chosen so that nothing else stands in the way. */
export interface Aim {
  readonly playbook: string;
  readonly verb: "open" | "open_unanswered" | "extend" | "approve" | "sign_review" | LoneVerb;
  /** People to try, in this order; left out: whom the playbook lets in. */
  readonly people?: readonly string[];
  readonly reason?: string;
  readonly durationMs?: number;
  /** Of the incident that is named; "": none is. */
  readonly severity?: string;
  readonly atMs?: number;
  readonly unsigned?: number;
  readonly open?: number;
  readonly sinceLastMs?: number;
  readonly ageMs?: number;
  readonly byMs?: number;
  readonly extensions?: number;
  readonly totalMs?: number;
  /** Approvers to do without, if others can be had. */
  readonly avoid?: readonly string[];
}

/** What people may do by their roles alone. */
export type LoneVerb = "list_playbooks" | "kill" | "read_recording" | "check_target";

export const MAX_PEOPLE = 3; // tried for one aim; whoever is alike by the rules behaves alike
const MAX_CHOICE = 8; // approvers considered for one side; more than any playbook needs

/** Looks for a witness: a few questions are put to both versions. Undefined if none of them shows the gain. */
export function findWitness(old: Policy, next: Policy, aim: Aim): Witness | undefined {
  for (const { question, before } of candidates(old, next, aim)) {
    if (!next.decide(question).allow) continue;
    const was = old.decide(before);
    if (was.allow) continue;
    return { question, before, text: describeQuestion(question), old: was.reasons[0] ?? "It said no." };
  }
  return undefined;
}

interface Candidate {
  readonly question: Question;
  readonly before: Question;
}

function* candidates(old: Policy, next: Policy, aim: Aim): Generator<Candidate> {
  const playbook = next.playbook(aim.playbook);
  switch (aim.verb) {
    case "list_playbooks":
    case "check_target":
      for (const person of (aim.people ?? []).slice(0, MAX_PEOPLE)) yield same({ action: aim.verb, person });
      return;
    case "approve":
    case "sign_review":
    case "kill":
    case "read_recording":
      if (playbook !== undefined) yield* aboutGrants(old, next, playbook, aim, aim.verb);
      return;
    case "open":
    case "open_unanswered":
    case "extend":
      if (playbook !== undefined) yield* uses(old, next, playbook, aim, aim.verb);
      return;
    default:
      unreachable(aim.verb);
  }
}

function same(question: Question): Candidate {
  return { question, before: question };
}

function* aboutGrants(
  old: Policy,
  next: Policy,
  playbook: Playbook,
  aim: Aim,
  action: "approve" | "sign_review" | "kill" | "read_recording",
): Generator<Candidate> {
  const requesters = requestersOf(next, playbook).filter((name) => old.person(name) !== undefined);
  const people = aim.people ?? next.eligibleApprovers(playbook.name, requesters[0] ?? "").map(({ name }) => name);
  for (const person of people.slice(0, MAX_PEOPLE)) {
    const requester = requesters.find((name) => name !== person);
    if (requester === undefined) continue;
    const about = { person, playbook: playbook.name, requester };
    if (action === "approve") yield same({ action, ...about, ageMs: aim.ageMs ?? 0, approvedBy: [] });
    else yield same({ action, ...about });
  }
}

function* uses(
  old: Policy,
  next: Policy,
  playbook: Playbook,
  aim: Aim,
  action: "open" | "open_unanswered" | "extend",
): Generator<Candidate> {
  const before = old.playbook(playbook.name);
  const reasons = playbook.when.reasons;
  const severities = playbook.when.incident;
  const reason = aim.reason ?? reasons.find((code) => before?.when.reasons.includes(code)) ?? reasons[0] ?? "";
  const usual = severities?.find((word) => before?.when.incident?.includes(word)) ?? severities?.[0] ?? "";
  const severity = aim.severity ?? (severities === undefined ? (before?.when.incident?.[0] ?? "") : usual);
  const atMs = aim.atMs ?? momentFor(next, playbook) ?? 0;
  const usage: Usage = {
    ...{ unsigned: aim.unsigned ?? 0, open: aim.open ?? 0, overdue: 0 },
    ...(aim.sinceLastMs === undefined ? {} : { sinceLastMs: aim.sinceLastMs }),
  };
  const longest = action === "open_unanswered" ? playbook.approve.unanswered?.forMs : undefined;
  const durationMs = aim.durationMs ?? longest ?? Math.min(playbook.time.maxMs, before?.time.maxMs ?? Infinity);
  const incident: Facts["incident"] = severity === "" ? { state: "none" } : { state: "open", severity };
  for (const person of (aim.people ?? requestersOf(next, playbook)).slice(0, MAX_PEOPLE)) {
    for (const elsewhere of ["false", "true"] as const) {
      const factsOf = (policy: Policy): Facts => {
        const rotas = [...new Set([...old.rotas, ...next.rotas].map(({ name }) => name))];
        const found = rotas.map((name): [string, Evidence] => [name, onRota(policy, name, person, elsewhere)]);
        return { oncall: Object.fromEntries(found), incident, usage, atMs };
      };
      const common = { person, playbook: playbook.name, reason };
      const facts = factsOf(next);
      if (action === "open_unanswered") {
        const waitedMs = playbook.approve.unanswered?.afterMs ?? 0;
        const question = { ...common, action, durationMs, facts, waitedMs, paged: true, denied: false };
        yield { question, before: { ...question, facts: factsOf(old) } };
        continue;
      }
      // A fact that is unknown asks for a human where the playbook itself does not.
      const unsure = playbook.approve.need === 0 && Object.values(facts.oncall).includes("unknown");
      for (const need of unsure ? [0, 1] : [playbook.approve.need]) {
        const approvedBy = chooseApprovers(next, playbook, person, need, aim.avoid ?? []);
        const question: Question =
          action === "open"
            ? { ...common, action, durationMs, facts, approvedBy }
            : {
                ...{ ...common, action, requester: person, facts, approvedBy, byMs: aim.byMs ?? 0 },
                ...{ totalMs: aim.totalMs ?? aim.byMs ?? 0, extensions: aim.extensions ?? 0 },
              };
        yield { question, before: { ...question, facts: factsOf(old) } };
      }
    }
  }
}

/** Some whom the playbook lets in: the named ones first, then whoever could be on call. */
function requestersOf(policy: Policy, playbook: Playbook): readonly string[] {
  const [named, able]: [string[], string[]] = [[], []];
  for (const person of policy.people) {
    if (named.length >= MAX_PEOPLE) break;
    if (!person.enabled || !person.roles.includes("requester")) continue;
    if (able.length < MAX_PEOPLE) able.push(person.name);
    if (playbook.who.some((selector) => names(policy, selector, person))) named.push(person.name);
  }
  return named.length > 0 ? named : able;
}

function names(policy: Policy, { by, name }: Selector, person: Person): boolean {
  if (by === "group") return person.groups.includes(name);
  if (by === "user") return policy.person(name) === person;
  return onRota(policy, name, person.name, "false") === "true";
}

/** As the version's oncall.yaml says; `elsewhere` where a source is asked. */
function onRota(policy: Policy, rota: string, person: string, elsewhere: Evidence): Evidence {
  const found = policy.rotas.find(({ name }): boolean => name === rota);
  if (found === undefined || "unknown" in found) return "unknown";
  if ("source" in found) return elsewhere;
  return isOn(policy, found, person) ? "true" : "false";
}

function isOn(policy: Policy, rota: Extract<Rota, { people: readonly string[] }>, person: string): boolean {
  const human = policy.person(person);
  return human !== undefined && rota.people.some((id) => policy.person(id) === human);
}

/** A moment at which the playbook can be used, if possible one at which no denial has its hours. */
function momentFor(policy: Policy, { when }: Playbook): number | undefined {
  const denials = policy.denials.filter(({ hours }) => hours !== undefined);
  return findMoment([when], denials) ?? findMoment([when]);
}

/** As few people as the playbook needs, one for each side first. */
function chooseApprovers(
  policy: Policy,
  playbook: Playbook,
  requester: string,
  need: number,
  avoid: readonly string[],
): readonly string[] {
  if (need === 0) return [];
  const unwanted = new Set(avoid);
  const eligible = policy.eligibleApprovers(playbook.name, requester);
  const wanted = eligible.filter(({ name }) => !unwanted.has(name));
  const inOrder = [...wanted, ...eligible.filter(({ name }) => unwanted.has(name))];
  const considered = new Set<Person>();
  for (const side of playbook.approve.from) {
    const speakers = inOrder.filter((person) => side.some((selector) => names(policy, selector, person)));
    for (const person of speakers.slice(0, MAX_CHOICE)) considered.add(person);
  }
  const chosen: (readonly number[])[] = [];
  const people: string[] = [];
  const consider = (person: Person, force: boolean): void => {
    const speaksFor = [...playbook.approve.from.keys()].filter((i) =>
      (playbook.approve.from[i] ?? []).some((selector) => names(policy, selector, person)),
    );
    if (people.includes(person.name)) return;
    // Whoever adds to the sides that are spoken for belongs to some largest choice of speakers.
    if (!force && sidesMet([...chosen, speaksFor]).length === sidesMet(chosen).length) return;
    chosen.push(speaksFor);
    people.push(person.name);
  };
  for (const person of considered) consider(person, false);
  for (const person of considered) if (people.length < need) consider(person, true);
  return people.toSorted(byText);
}

/** A question as a sentence. */
function describeQuestion(question: Question): string {
  const { person } = question;
  switch (question.action) {
    case "request":
    case "open":
    case "open_unanswered":
    case "request_extension":
    case "extend": {
      const { facts, reason } = question;
      const parts = [`reason ${reason}`];
      if (facts.incident.state === "open") parts.push(`incident ${facts.incident.severity}`);
      const oncall = Object.entries(facts.oncall).flatMap(([name, fact]) => (fact === "true" ? [name] : []));
      if (oncall.length > 0) parts.push(`on call for ${oncall.join(", ")}`);
      if (facts.usage.unsigned > 0) parts.push(`after ${facts.usage.unsigned} uses that nobody reviewed`);
      if (facts.usage.open > 0) parts.push(`while ${facts.usage.open} other grants are open`);
      if (facts.usage.sinceLastMs !== undefined) {
        parts.push(`${formatDuration(facts.usage.sinceLastMs)} after their last use`);
      }
      parts.push(`at ${momentText(facts.atMs)}`);
      if (question.action === "open_unanswered") {
        parts.push(`${formatDuration(question.waitedMs)} without an answer`);
        return `${person} opens ${question.playbook} for ${formatDuration(question.durationMs)}: ${parts.join(", ")}`;
      }
      const { approvedBy = [] } = question;
      parts.push(approvedBy.length === 0 ? "nobody's approval" : `approved by ${approvedBy.join(" and ")}`);
      if ("durationMs" in question) {
        return `${person} opens ${question.playbook} for ${formatDuration(question.durationMs)}: ${parts.join(", ")}`;
      }
      const total = `${formatDuration(question.byMs)}, to ${formatDuration(question.totalMs)} in all`;
      return `${person} extends a grant of ${question.playbook} by ${total}, extended ${question.extensions} times before: ${parts.join(", ")}`;
    }
    case "approve":
      return `${person} approves ${question.requester}'s request of ${question.playbook}, ${formatDuration(question.ageMs)} after it was made`;
    case "sign_review":
      return `${person} signs the review of a use of ${question.playbook} by ${question.requester}`;
    case "kill":
      return `${person} kills a grant of ${question.requester}`;
    case "read_recording":
      return `${person} reads the recording of a grant of ${question.requester}`;
    case "list_playbooks":
      return `${person} lists the playbooks`;
    default:
      return `${person} asks for ${question.action}`;
  }
}

/** Such as `Mon 2026-01-05 10:00 UTC`. */
function momentText(atMs: number): string {
  const moment = new Date(atMs);
  const day = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"][moment.getUTCDay()] ?? "";
  return `${day} ${moment.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}
