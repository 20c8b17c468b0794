import { unreachable } from "../core/errors.ts";
import type { Answer, Policies, Slice } from "./cedar.ts";
import { fromClauses, NOBODY, UNKNOWN_MARK } from "./compile.ts";
import { type UseCircumstances, useClauses, whyNot } from "./explain-use.ts";
import { faulty } from "./explain.ts";
import { isMoment, localMoment } from "./moment.ts";
import type { Decision, Denial, Facts, IncidentFact, Person, Playbook, Question } from "./policy.ts";
import { quorumNeed, quorumOf, quorumText, sinceLast, unknownNeed } from "./quorum.ts";
import { type Approvers, sidesMet } from "./sides.ts";

/** Whether a person could ask at all, whatever the reason, the duration and the incident. */
interface ListQuestion {
  readonly action: "list";
  readonly person: string;
  readonly playbook: string;
  readonly facts: Facts;
}
export type Use = Extract<Question, { facts: Facts }> | ListQuestion;

/** A playbook with all that is asked when it is used, or when something happens to one of its grants. */
export interface Compiled {
  readonly playbook: Playbook;
  /** Those that can concern its target. */
  readonly denials: readonly Denial[];
  readonly policies: Policies;
  readonly ask: (slice: Slice) => Answer;
  readonly approvers: Approvers;
  /** The parents of the playbook in Cedar: its target, and the target's tags. */
  readonly parents: Slice["resource"]["parents"];
  /** Groups, rotas and zones that its policies name; nothing else needs to be told. */
  readonly groups: ReadonlySet<string>;
  readonly rotas: readonly string[];
  readonly zones: readonly string[];
  /** Sides (from 0) that Cedar lets a person speak for; what it said once, it would say again. */
  readonly speakers: Map<Person, readonly number[]>;
}

const MAX_APPROVALS = 100; // more yeses than any playbook needs; bounds the work of one decision
const MAX_SPEAKERS = 1_000; // remembered for one playbook

/** May this person use the playbook so, now, with what was agreed? */
export function decideUse(question: Use, person: Person, known: Compiled, find: FindPerson): Decision {
  const { playbook } = known;
  const { approve, when } = playbook;
  const { action, facts } = question;
  if (!isMoment(facts.atMs)) return faulty("the moment is not known", approve.need);
  const acting = action === "open" || action === "extend";
  const given = acting ? speakersAmong(question.approvedBy ?? [], person, known, find) : [];
  const reach = {
    approvals: known.approvers.people.length - (known.approvers.has(person) ? 1 : 0),
    sides: known.approvers.reach(person),
  };
  const met = sidesMet(given);
  const agreed = acting
    ? { approvals: given.length, sides: met.length }
    : action === "open_unanswered"
      ? { approvals: 0, sides: 0 }
      : reach;
  const oncallUnknown = rotasThat("unknown", known, facts);
  const incident = incidentOf(facts);
  const common = {
    ...{ oncall: rotasThat("true", known, facts), oncallUnknown },
    ...{ unsigned: whole(facts.usage.unsigned), open: whole(facts.usage.open), overdue: whole(facts.usage.overdue) },
    sinceLastMs: sinceLast(facts.usage),
  };
  const principal = personEntity(person, known.groups);
  const clocks = known.zones.map((zone) => clockEntity(zone, facts.atMs));
  const answer = known.ask({
    ...useSlice(question, known, { ...common, approvals: agreed.approvals, sidesMet: agreed.sides }, incident, find),
    ...{ principal, others: clocks },
  });
  const failing = answer.allow ? [] : answer.decidedBy;
  // After a no: which alternatives does the person meet, if all who could agree did?
  const could = { ...common, approvals: reach.approvals, sidesMet: reach.sides };
  const match = answer.allow
    ? answer
    : known.ask({ principal, action: "match_who", resource: playbookEntity(known), context: could, others: clocks });
  const permits = match.allow ? match.decidedBy : [];
  const certain = permits.some((id) => !id.endsWith(UNKNOWN_MARK));
  const incidentUnknown = incident.state === "unknown" && when.incident !== undefined && action !== "list";
  const byUnknown = (!certain && permits.length > 0) || incidentUnknown;
  const causes = quorumOf(playbook, facts.usage, action);
  const quorum = causes.map((cause) => quorumText(cause, playbook, facts.usage));
  const need = needOf(playbook, action, { byUnknown, quorum: causes.length > 0 });
  const missing = need === 0 ? 0 : Math.max(0, need - given.length, approve.from.length - met.length);

  const fault = answer.fault ?? match.fault;
  if (fault !== undefined) return faulty(fault, need);
  // Cedar decides; the numbers beside it are told to people. If they ever say different things, nothing is right.
  if (answer.allow && ((acting && missing > 0) || (!acting && reach.approvals < need))) {
    return faulty("Cedar and the count of approvals disagree", need);
  }
  const circumstances: UseCircumstances = {
    ...{
      person,
      playbook,
      denials: known.denials,
      question,
      failing,
      permits,
      oncallUnknown,
      incident,
      incidentUnknown,
    },
    ...{ approvers: reach.approvals, sidesReach: reach.sides, approvals: given.length, sidesMet: met },
    ...{ need, missing, quorum, causes },
  };
  const clauses = useClauses(circumstances);
  const why = answer.allow ? { reasons: [], wouldHold: [] } : whyNot(circumstances);
  return { allow: answer.allow, need, missing, quorum, clauses, ...why };
}

type FindPerson = (nameOrAlias: string) => Person | undefined;

function needOf(playbook: Playbook, action: Use["action"], raised: { byUnknown: boolean; quorum: boolean }): number {
  if (action === "open_unanswered") return 0; // nobody is asked any more
  return Math.max(
    playbook.approve.need,
    raised.byUnknown ? unknownNeed(playbook) : 0,
    raised.quorum ? quorumNeed(playbook) : 0,
  );
}

/** The sides of each different human among these ids whom Cedar lets approve; the requester is none of them. */
function speakersAmong(
  ids: readonly string[],
  requester: Person,
  known: Compiled,
  find: FindPerson,
): readonly (readonly number[])[] {
  const people = new Set(ids.slice(0, MAX_APPROVALS).flatMap((id) => find(id) ?? []));
  people.delete(requester);
  return [...people].map((person) => speaksFor(person, known)).filter((sides) => sides.length > 0);
}

function speaksFor(person: Person, known: Compiled): readonly number[] {
  const before = known.speakers.get(person);
  if (before !== undefined) return before;
  const { allow, decidedBy } = known.ask({
    principal: personEntity(person, known.groups),
    action: "approve",
    resource: grantEntity(known, NOBODY),
    context: { ageMs: 0, already: false },
  });
  const permits = new Set(allow ? decidedBy : []);
  const clauses = fromClauses(known.playbook.approve.from).filter(({ clause }) => permits.has(clause));
  const sides = [...new Set(clauses.map(({ side }) => side))];
  if (known.speakers.size >= MAX_SPEAKERS) known.speakers.clear();
  known.speakers.set(person, sides);
  return sides;
}

export function personEntity(person: Person, groups: ReadonlySet<string>): Slice["principal"] {
  return {
    uid: { type: "Person", id: person.name },
    attrs: { enabled: person.enabled, roles: [...person.roles] },
    parents: person.groups.filter((id) => groups.has(id)).map((id) => ({ type: "Group", id })),
  };
}

function playbookEntity({ playbook, parents }: Compiled): Slice["resource"] {
  return { uid: { type: "Playbook", id: playbook.name }, attrs: {}, parents };
}

/** Every grant is the same to Cedar but for whose it is and under which playbook. */
export function grantEntity(known: Compiled | undefined, requester: string): Slice["resource"] {
  return {
    uid: { type: "Grant", id: "this" },
    attrs: { requester: { __entity: { type: "Person", id: requester } } },
    parents: known === undefined ? [] : [{ type: "Playbook", id: known.playbook.name }, ...known.parents],
  };
}

function clockEntity(zone: string, atMs: number): Slice["resource"] {
  return { uid: { type: "Clock", id: zone }, attrs: { ...localMoment(zone, atMs) }, parents: [] };
}

function useSlice(
  question: Use,
  known: Compiled,
  common: Slice["context"],
  incident: IncidentFact,
  find: FindPerson,
): Omit<Slice, "principal"> {
  if (question.action === "list") return { action: "list", resource: playbookEntity(known), context: common };
  const context = {
    ...{ ...common, reason: question.reason, incidentUnknown: incident.state === "unknown" },
    severity: incident.state === "open" ? incident.severity : "",
  };
  switch (question.action) {
    case "request":
    case "open":
    case "open_unanswered": {
      const { action } = question;
      const silence =
        action === "open_unanswered"
          ? { waitedMs: whole(question.waitedMs), paged: question.paged, denied: question.denied }
          : {};
      const durationMs = whole(question.durationMs);
      return { action, resource: playbookEntity(known), context: { ...context, durationMs, ...silence } };
    }
    case "request_extension":
    case "extend": {
      const { action } = question;
      const resource = grantEntity(known, find(question.requester)?.name ?? NOBODY);
      const times = {
        byMs: whole(question.byMs),
        totalMs: whole(question.totalMs),
        extensions: whole(question.extensions),
      };
      return { action, resource, context: { ...context, ...times } };
    }
    default:
      return unreachable(question);
  }
}

/** Rotas that matter here and for which the facts say so; what they do not list, or say oddly, is unknown. */
function rotasThat(are: "true" | "unknown", { rotas }: Compiled, facts: Facts): string[] {
  return rotas.filter((name) => {
    const said = Object.hasOwn(facts.oncall, name) ? facts.oncall[name] : undefined;
    return (said === "true" || said === "false" ? said : "unknown") === are;
  });
}

/** What is said oddly is unknown. */
function incidentOf({ incident }: Facts): IncidentFact {
  const { state } = incident;
  if (state === "open") return typeof incident.severity === "string" ? incident : { state: "unknown" };
  return { state: state === "none" ? "none" : "unknown" };
}

/** Cedar has whole numbers only; −1 is refused by every clause. */
export function whole(value: number): number {
  return Number.isSafeInteger(value) ? value : -1;
}

/** What a playbook's policies name: the rest of a person, or of the facts, makes no difference. */
export function namedIn(playbook: Playbook, denials: readonly Denial[]): Pick<Compiled, "groups" | "rotas" | "zones"> {
  const selectors = [
    ...[...playbook.who, ...playbook.approve.from.flat(), ...playbook.review.by],
    ...denials.flatMap(({ who }) => who),
  ];
  const named = (by: string): string[] => selectors.flatMap((selector) => (selector.by === by ? [selector.name] : []));
  const zones = [playbook.when, ...denials].flatMap(({ hours, zone }) => (hours === undefined ? [] : [zone]));
  return { groups: new Set(named("group")), rotas: [...new Set(named("oncall"))], zones: [...new Set(zones)] };
}
