import { formatDuration } from "../core/duration.ts";
import { clauseOf, UNKNOWN_MARK } from "./compile.ts";
import {
  type Collector,
  collector,
  either,
  fixedClauses,
  fixedWhy,
  selectorText,
  shown,
  times,
  type Why,
} from "./explain.ts";
import { hoursText, momentText } from "./moment.ts";
import type { ClauseResult, Denial, IncidentFact, Person, Playbook } from "./policy.ts";
import type { QuorumCause } from "./quorum.ts";
import type { Use } from "./use.ts";

/** All that is known when a decision about a use is put into words. Nothing here decides. */
export interface UseCircumstances {
  readonly person: Person;
  readonly playbook: Playbook;
  readonly denials: readonly Denial[];
  readonly question: Use;
  /** Clauses that Cedar named as the cause of a no; empty after a yes. */
  readonly failing: readonly string[];
  /** Alternatives of `who` that let the person in. */
  readonly permits: readonly string[];
  readonly oncallUnknown: readonly string[];
  readonly incident: IncidentFact;
  /** Whether the playbook asks about the incident, and nobody knows. */
  readonly incidentUnknown: boolean;
  /** People other than the requester who could approve, and how many sides different ones of them could speak for. */
  readonly approvers: number;
  readonly sidesReach: number;
  /** People who did, and the sides (from 0) that different ones of them speak for. */
  readonly approvals: number;
  readonly sidesMet: readonly number[];
  readonly need: number;
  readonly missing: number;
  readonly quorum: readonly string[];
  readonly causes: readonly QuorumCause[];
}

type NewUse = Extract<Use, { action: "list" | "request" | "open" | "open_unanswered" }>;
type Extension = Extract<Use, { action: "request_extension" | "extend" }>;

/** Each rule that concerns the action, in the order in which a person would check them. */
export function useClauses(now: UseCircumstances): readonly ClauseResult[] {
  const { person, playbook, question, failing, permits, oncallUnknown, approvers, need } = now;
  const { when, time, limit, approve } = playbook;
  const clauses: ClauseResult[] = fixedClauses(question.action, person, failing);
  const add = (clause: string, text: string, held = !failing.includes(clause), unknown = false): void => {
    clauses.push({ clause, held, unknown, text });
  };
  for (const denial of now.denials) {
    const clause = `forbid.${denial.name}`;
    const held = !failing.includes(clause);
    add(clause, `not forbidden: ${denial.why}`, held, !held && onlyUnknown(denial, now));
  }
  for (const [i, selector] of playbook.who.entries()) {
    const unknown = selector.by === "oncall" && oncallUnknown.includes(selector.name);
    const id = clauseOf("who", selector, i);
    add(id, selectorText(selector), permits.includes(id), unknown);
  }
  const listing = question.action === "list";
  if (!listing) add("when.reason", `the reason is one of ${when.reasons.join(", ")}`);
  if (!listing && when.incident !== undefined) {
    const held = !failing.includes("when.incident") && !now.incidentUnknown;
    add("when.incident", `an open incident is ${either(when.incident)}`, held, now.incidentUnknown);
  }
  if (when.hours !== undefined) add("when.hours", hoursText(when.hours, when.zone));
  if (isExtension(question)) {
    const { extend } = time;
    const text =
      extend === undefined
        ? "extensions are not allowed"
        : `extended ${times(extend.times)} at most, by at most ${formatDuration(extend.byMs)}`;
    add("time.extend", text);
    add("time.cap", `at most ${formatDuration(time.capMs)} in all`);
  } else {
    if (!listing) add("time.max", `for at most ${formatDuration(time.maxMs)}`);
    if (limit.concurrent !== undefined)
      add(
        "limit.concurrent",
        limit.concurrent === 1 ? "no other grant now" : `fewer than ${limit.concurrent} other grants now`,
      );
  }
  quorumClauses(now, add);
  if (question.action === "open_unanswered") unansweredClauses(playbook, add);
  else if (question.action === "open" || question.action === "extend") {
    if (need > 0) {
      const text = `${people(need)} agreed, ${now.approvals} did`;
      add("approve.need", text.replace("person agreed", "person agrees"), now.approvals >= need);
      if (approve.from.length > 1) {
        for (const i of approve.from.keys())
          add(`approve.from.${i + 1}`, `agreed: ${sideText(playbook, i)}`, now.sidesMet.includes(i));
      }
    }
  } else if (need > 0) {
    const reached = approvers >= need && now.sidesReach >= approve.from.length;
    add("approve.reach", `enough people could approve: ${need} of ${approvers}`, reached);
  }
  return clauses;
}

type Add = (clause: string, text: string, held?: boolean, unknown?: boolean) => void;

function quorumClauses({ playbook, question, causes, failing }: UseCircumstances, add: Add): void {
  const { uses, cooldownMs } = playbook.limit;
  const clause = (cause: QuorumCause, text: string): void => {
    const id = `approve.quorum.${cause}`;
    const held = !failing.includes(id);
    add(id, causes.includes(cause) && held ? `${text}; it is not so, and a quorum decides` : text, held);
  };
  if (!isExtension(question)) {
    if (uses !== undefined)
      clause("uses", `fewer than ${uses.count} uses within ${formatDuration(uses.perMs)} without a signed review`);
    if (cooldownMs !== undefined) clause("cooldown", `${formatDuration(cooldownMs)} since the requester's last use`);
  }
  clause("overdue", "no review is overdue");
}

function unansweredClauses({ approve }: Playbook, add: Add): void {
  if (approve.unanswered === undefined) {
    add("approve.unanswered", "opens without an answer");
    return;
  }
  const { afterMs, forMs } = approve.unanswered;
  add(
    "approve.unanswered.after",
    `nobody answered for ${formatDuration(afterMs)}, and not more than ${formatDuration(approve.withinMs)} passed`,
  );
  add("approve.unanswered.for", `without an answer for at most ${formatDuration(forMs)}`);
  add("approve.unanswered.paged", "a page to those who could answer was delivered");
  add("approve.unanswered.denied", "nobody said no");
}

/** Why a use is refused. @returns at least one reason. */
export function whyNot(now: UseCircumstances): Why {
  const { person, playbook, question, failing } = now;
  const why = collector();
  fixedWhy(why, failing, person);
  denialWhy(why, now);
  if (now.permits.length === 0) whoWhy(why, now);
  if (question.action === "open_unanswered" && !failing.some((id) => id.startsWith("who."))) certainWhy(why, now);
  if (failing.includes("when.reason") && "reason" in question) {
    const codes = playbook.when.reasons.join(", ");
    why.add(
      `${shown(question.reason)} is not a reason that ${playbook.name} accepts.`,
      `Allowed with a reason of: ${codes}.`,
    );
  }
  if (failing.includes("when.incident")) incidentWhy(why, now);
  if (failing.includes("when.hours")) hoursWhy(why, now);
  if (isExtension(question)) extensionWhy(why, now);
  else newUseWhy(why, now, question);
  const acting = question.action === "open" || question.action === "extend";
  if (acting) approvalsWhy(why, now);
  else if (question.action !== "open_unanswered") reachWhy(why, now);
  return why.done();
}

function newUseWhy(why: Collector, { playbook, failing, quorum }: UseCircumstances, question: NewUse): void {
  const { name, time, limit, approve } = playbook;
  if (failing.includes("time.max") && "durationMs" in question) {
    const longest = formatDuration(time.maxMs);
    const { durationMs } = question;
    const asked = durationMs > 0 ? `${formatDuration(durationMs)} is longer than` : "The time asked for is not within";
    why.add(`${asked} the ${longest} that ${name} gives at most.`, `Allowed for ${longest} or less.`);
  }
  if (failing.includes("limit.concurrent")) {
    why.add(
      `As many grants of ${name} wait or are open as there may be at once (${limit.concurrent}).`,
      `Allowed once one of them has ended; glass status shows them.`,
    );
  }
  if (question.action !== "open_unanswered") return;
  const { unanswered } = approve;
  if (unanswered === undefined) {
    why.add(`${name} never opens without an answer.`, "Allowed once it is approved.");
    return;
  }
  const [after, longest] = [formatDuration(unanswered.afterMs), formatDuration(unanswered.forMs)];
  if (failing.includes("approve.unanswered.after")) {
    const within = formatDuration(approve.withinMs);
    why.add(
      question.waitedMs < unanswered.afterMs
        ? `${name} opens without an answer after ${after}; ${formatDuration(question.waitedMs)} have passed.`
        : `The ${within} in which ${name} can be opened are over.`,
      `Allowed from ${after} after the first page was delivered, until ${within} after the request.`,
    );
  }
  if (failing.includes("approve.unanswered.for")) {
    why.add(`Without an answer ${name} opens for ${longest} at most.`, `Allowed for ${longest} or less.`);
  }
  if (failing.includes("approve.unanswered.paged")) {
    why.add("No page is known to have reached anybody.", "Allowed once a page channel has confirmed a delivery.");
  }
  if (failing.includes("approve.unanswered.denied")) {
    why.add("Somebody said no.", "Allowed as a new request.");
  }
  if (quorum.length > 0) {
    for (const sentence of quorum) why.add(sentence);
    why.would("Allowed once it is approved: a quorum never goes unanswered.");
  }
}

function extensionWhy(why: Collector, { playbook, failing }: UseCircumstances): void {
  const { name, time } = playbook;
  if (failing.includes("time.extend")) {
    const { extend } = time;
    if (extend === undefined) why.add(`${name} cannot be extended.`, "Allowed as a new request.");
    else {
      const limit = `${times(extend.times)}, by ${formatDuration(extend.byMs)} or less each time`;
      why.add(`${name} can be extended ${limit}.`, `Allowed ${limit}.`);
    }
  }
  if (failing.includes("time.cap")) {
    const cap = formatDuration(time.capMs);
    why.add(`The grant would last longer than the ${cap} that ${name} ever gives.`, "Allowed as a new request.");
  }
}

function denialWhy(why: Collector, now: UseCircumstances): void {
  for (const denial of now.denials) {
    if (!now.failing.includes(`forbid.${denial.name}`)) continue;
    why.add(`${denial.name} forbids it: ${sentence(denial.why)}`);
    if (onlyUnknown(denial, now)) {
      const rotas = either(denial.who.flatMap(({ by, name }) => (by === "oncall" ? [name] : [])));
      why.would(`Allowed once it is known that ${now.person.name} is not on call for ${rotas}.`);
    }
    if (denial.hours !== undefined) {
      why.would(`Allowed outside of ${hoursText(denial.hours, denial.zone)}.`);
    }
    why.would(`No playbook can override ${denial.name}; it is written in policy.yaml.`);
  }
}

/** Whether a denial holds only because nobody knows who is on call. */
function onlyUnknown({ who }: Denial, { person, oncallUnknown, question }: UseCircumstances): boolean {
  if (who.length === 0) return false;
  return who.every(({ by, name }) => {
    if (by === "group") return !person.groups.includes(name);
    if (by === "user") return person.name !== name && !person.aliases.includes(name);
    return oncallUnknown.includes(name) || question.facts.oncall[name] !== "true";
  });
}

function whoWhy(why: Collector, { person, playbook, oncallUnknown }: UseCircumstances): void {
  const names = playbook.who.flatMap(({ by, name }) => (by === "oncall" ? [name] : []));
  const unknown = names.filter((name) => oncallUnknown.includes(name));
  const sure = playbook.who.filter(({ by, name }) => by !== "oncall" || !unknown.includes(name)).map(selectorText);
  if (sure.length > 0) why.add(`${person.name} is not ${either(sure)}.`);
  if (unknown.length > 0) {
    const rotas = either(unknown);
    const instead =
      playbook.approve.from.length === 0
        ? `${playbook.name} names nobody who could approve instead`
        : playbook.approve.from.length > 1
          ? `not every side that could approve instead has somebody beside ${person.name}`
          : `nobody but ${person.name} could approve instead`;
    why.add(`Whether ${person.name} is on call for ${rotas} is unknown, and ${instead}.`);
  }
  why.would(`Allowed if ${person.name} is ${either(playbook.who.map(selectorText))}.`);
}

/** What is unknown helps a request that a human answers, and never one that nobody does. */
function certainWhy(why: Collector, { person, permits, oncallUnknown }: UseCircumstances): void {
  if (permits.length === 0 || permits.some((id) => !id.endsWith(UNKNOWN_MARK))) return;
  why.add(
    `Whether ${person.name} is on call for ${either(oncallUnknown)} is unknown.`,
    "Allowed once it is approved: what is unknown never opens without an answer.",
  );
}

function incidentWhy(why: Collector, { playbook, incident, question }: UseCircumstances): void {
  const { name, when, approve } = playbook;
  const wanted = either(when.incident ?? []);
  const would = `Allowed with --incident REF of an open incident that is ${wanted}.`;
  if (incident.state === "open") {
    why.add(`The incident is ${shown(incident.severity).slice(1, -1)}, and ${name} asks for ${wanted}.`, would);
  } else if (incident.state === "none") {
    why.add(`${name} asks for an open incident that is ${wanted}, and there is none that was named.`, would);
  } else {
    const instead =
      question.action === "open_unanswered"
        ? "nobody answered"
        : approve.from.length === 0
          ? `${name} names nobody who could approve instead`
          : "not enough people approved instead";
    why.add(`Whether the incident is open is unknown, and ${instead}.`, would);
  }
}

function hoursWhy(why: Collector, { playbook, question }: UseCircumstances): void {
  const { name, when } = playbook;
  const text = hoursText(when.hours ?? [], when.zone);
  why.add(`It is ${momentText(when.zone, question.facts.atMs)}, and ${name} is for ${text}.`, `Allowed ${text}.`);
}

/** On asking: there must be enough people for the answer. */
function reachWhy(why: Collector, now: UseCircumstances): void {
  const { person, playbook, need, approvers, sidesReach, quorum, failing } = now;
  const sides = playbook.approve.from.length;
  if (!failing.some((id) => id === "approve.reach" || id.startsWith("approve.quorum."))) return;
  for (const sentence of quorum) why.add(sentence);
  if (approvers < need) {
    const could = approvers === 0 ? "nobody but" : `only ${approvers} other than`;
    why.add(
      `${need} must approve, and ${could} ${person.name} could.`,
      `Allowed when ${need} other ${need === 1 ? "person is" : "people are"} named in approve.from and enabled as approvers.`,
    );
  } else if (sidesReach < sides) {
    why.add(
      `${sides} sides must agree, each by a person of its own, and for only ${sidesReach} could somebody other than ${person.name}.`,
      "Allowed when every side of approve.from has an enabled approver of its own.",
    );
  }
  quorumWould(why, now);
}

/** On acting: what is still missing. */
function approvalsWhy(why: Collector, now: UseCircumstances): void {
  const { playbook, permits, missing, approvals, need, sidesMet, quorum } = now;
  if (permits.length === 0 || missing === 0) return;
  for (const sentence of quorum) why.add(sentence);
  why.add(
    `${approvals} of ${need} approval${need === 1 ? "" : "s"} given; ${missing} missing.`,
    `Allowed once ${missing} more ${missing === 1 ? "person" : "people"} approved.`,
  );
  const { from } = playbook.approve;
  const silent = [...from.keys()].filter((i) => !sidesMet.includes(i));
  if (from.length > 1 && silent.length > 0) {
    why.add(
      `Nobody has spoken for: ${silent.map((i) => sideText(playbook, i)).join("; ")}. One person speaks for one side.`,
    );
  }
  quorumWould(why, now);
}

function quorumWould(why: Collector, { playbook, causes }: UseCircumstances): void {
  if (causes.includes("uses") || causes.includes("overdue")) {
    why.would(`Back to ${people(playbook.approve.need)} once its reviews are signed: glass review.`);
  }
  if (causes.includes("cooldown")) {
    const wait = formatDuration(playbook.limit.cooldownMs ?? 0);
    why.would(`Back to ${people(playbook.approve.need)} ${wait} after the requester's last use ended.`);
  }
}

function sideText(playbook: Playbook, side: number): string {
  return either((playbook.approve.from[side] ?? []).map(selectorText));
}

function people(count: number): string {
  return count === 0 ? "nobody's approval" : count === 1 ? "1 person" : `${count} people`;
}

function sentence(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function isExtension(question: Use): question is Extension {
  return question.action === "request_extension" || question.action === "extend";
}
