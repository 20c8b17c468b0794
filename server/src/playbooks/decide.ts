import { formatDuration } from "../core/duration.ts";
import { unreachable } from "../core/errors.ts";
import { type Answer, check, type Policies, prepare, type Slice } from "./cedar.ts";
import { clauseOf, fixedPolicies, installationPolicies, playbookPolicies, UNKNOWN_MARK } from "./compile.ts";
import { eligible } from "./crosscheck.ts";
import * as say from "./explain.ts";
import type { Rota } from "./oncall.ts";
import type { ClauseResult, Decision, Evidence, Facts, Person, Playbook, Policy, Question, Target } from "./policy.ts";
import { normalName } from "./text.ts";
import { GRANT_VERBS, INSTALLATION_VERBS } from "./verbs.ts";

type Use = Extract<Question, { facts: Facts }> | ListQuestion;
type Consent = Extract<Question, { action: "approve" | "deny" }>;
/** Whether a person could ask at all, whatever the reason and duration. */
interface ListQuestion {
  readonly action: "list";
  readonly person: string;
  readonly playbook: string;
  readonly facts: Facts;
}
interface Compiled {
  readonly playbook: Playbook;
  readonly policies: Policies;
  readonly ask: (slice: Slice) => Answer;
  readonly approvers: readonly Person[];
}

const MAX_APPROVALS = 100; // more yeses than any playbook needs; bounds the work of one decision

/** Compiles checked content and answers questions about it. All lists are sorted by name. Pure once it has returned. */
export function createPolicy(content: {
  readonly hash: string;
  readonly people: readonly Person[];
  readonly rotas: readonly Rota[];
  readonly targets: readonly Target[];
  readonly playbooks: readonly Playbook[];
}): Policy {
  const { people, targets, playbooks } = content;
  const byId = new Map(people.flatMap((person) => [person.name, ...person.aliases].map((id) => [id, person])));
  const findPerson = (id: string): Person | undefined => byId.get(normalName(id) ?? "");
  const nameOf = (id: string): string => findPerson(id)?.name ?? id;
  const fixed = fixedPolicies();
  const forInstallation = { ...fixed, ...installationPolicies() };
  const own = playbooks.map((playbook) => playbookPolicies(playbook, nameOf));
  check(Object.assign({ ...forInstallation }, ...own.map((policies, i) => prefixed(`${i}/`, policies))) as Policies);
  const askFixed = prepare(forInstallation);
  const compiled = new Map(
    playbooks.map((playbook, i): [string, Compiled] => {
      const policies = own[i] ?? {};
      const approvers = eligible(people, playbook.approve.from);
      return [playbook.name, { playbook, policies, ask: prepare({ ...fixed, ...policies }), approvers }];
    }),
  );
  const findPlaybook = (name: string): Compiled | undefined => compiled.get(normalName(name) ?? "");

  /** Different people among these ids whom Cedar lets approve, in the order given. */
  const counted = (known: Compiled, requester: string, ids: readonly string[]): readonly string[] => {
    const names = new Set(ids.slice(0, MAX_APPROVALS).map((id) => findPerson(id)?.name ?? ""));
    return [...names].filter((name) => {
      const person = findPerson(name);
      if (person === undefined) return false;
      const context = { ageMs: 0, already: false };
      return known.ask({
        principal: personEntity(person),
        action: "approve",
        resource: grant(known, requester),
        context,
      }).allow;
    });
  };

  const decideUse = (question: Use, person: Person, known: Compiled): Decision => {
    const { playbook } = known;
    const { approve } = playbook;
    const acting = question.action === "open" || question.action === "extend";
    const approvers = known.approvers.filter((other) => other !== person).length;
    const given = "approvedBy" in question ? (question.approvedBy ?? []) : [];
    const approvals = acting ? counted(known, person.name, given).length : 0;
    const unknown = rotasWith(playbook, question.facts, "unknown");
    const common = {
      oncall: rotasWith(playbook, question.facts, "true"),
      oncallUnknown: unknown,
      approvers,
      approvals,
    };
    const principal = personEntity(person);
    const answer = known.ask({ principal, ...useSlice(question, known, common, findPerson) });
    const failing = answer.allow ? [] : answer.decidedBy;
    const here = { type: "Playbook", id: playbook.name };
    const match = answer.allow
      ? answer
      : known.ask({ principal, action: "match_who", resource: { uid: here, attrs: {}, parents: [] }, context: common });
    const permits = match.allow ? match.decidedBy : [];
    const certain = permits.some((id) => id.startsWith("who.") && !id.includes(UNKNOWN_MARK));
    const byUnknown = !certain && permits.length > 0;
    const need = byUnknown ? Math.max(1, approve.need) : approve.need;
    const missing = Math.max(0, need - approvals);

    const clauses: ClauseResult[] = say.fixedClauses(question.action, person, failing);
    for (const [i, selector] of playbook.who.entries()) {
      const id = clauseOf("who", selector, i);
      const isUnknown = selector.by === "oncall" && unknown.includes(selector.name);
      clauses.push({ clause: id, held: permits.includes(id), unknown: isUnknown, text: say.selectorText(selector) });
    }
    for (const id of ["when.reason", "time.max", "time.extend", "time.cap"] as const) {
      if (!say.concerns(id, question.action)) continue;
      clauses.push({ clause: id, held: !failing.includes(id), unknown: false, text: say.limitText(id, playbook) });
    }
    if (need > 0 && !acting) {
      const text = `enough people could approve: ${need} of ${approvers}`;
      clauses.push({ clause: "approve.reach", held: approvers >= need, unknown: false, text });
    }
    if (need > 0 && acting) {
      const text = `${need} approval${need === 1 ? "" : "s"}, ${approvals} given`;
      clauses.push({ clause: "approve.need", held: missing === 0, unknown: false, text });
    }
    if (answer.fault !== undefined) return say.faulty(answer.fault, need);
    if (answer.allow) return { allow: true, need, missing, clauses, reasons: [], wouldHold: [] };
    const circumstances = {
      person,
      playbook,
      question,
      unknown,
      approvers,
      approvals,
      need,
      missing,
      matched: permits.length > 0,
    };
    return { allow: false, need, missing, clauses, ...say.whyNot(failing, circumstances) };
  };

  const decideConsent = (question: Consent, person: Person, known: Compiled): Decision => {
    const { approve } = known.playbook;
    const requester = findPerson(question.requester);
    if (requester === undefined) {
      const text = `${say.shown(question.requester)} is not in people.yaml any more, so it cannot be told whether that is the same human`;
      return say.no("glasskey.requester", text, "Ask for a new request by a person who is in people.yaml.");
    }
    const already = question.approvedBy.some((id) => findPerson(id) === person);
    const principal = personEntity(person);
    const context = { ageMs: whole(question.ageMs), already };
    const answer = known.ask({ principal, action: question.action, resource: grant(known, requester.name), context });
    const here = { uid: { type: "Playbook", id: known.playbook.name }, attrs: {}, parents: [] };
    const match = answer.allow ? answer : known.ask({ principal, action: "match_from", resource: here, context: {} });
    const failing = answer.allow ? [] : answer.decidedBy;
    const permits = match.allow ? match.decidedBy : [];
    const clauses = say.fixedClauses(question.action, person, failing);
    for (const [i, selector] of approve.from.entries()) {
      const id = clauseOf("approve.from", selector, i);
      clauses.push({ clause: id, held: permits.includes(id), unknown: false, text: say.selectorText(selector) });
    }
    const within = `within ${formatDuration(approve.withinMs)} of the request`;
    clauses.push({ clause: "approve.within", held: !failing.includes("approve.within"), unknown: false, text: within });
    if (answer.fault !== undefined) return say.faulty(answer.fault, 0);
    if (answer.allow) return { allow: true, need: 0, missing: 0, clauses, reasons: [], wouldHold: [] };
    const why = say.whyNoConsent(failing, { person, playbook: known.playbook, matched: permits.length > 0 });
    return { allow: false, need: 0, missing: 0, clauses, ...why };
  };

  const decideVerb = (question: Exclude<Question, Use | Consent>, person: Person): Decision => {
    const about = "playbook" in question ? question : undefined;
    const known = about === undefined ? undefined : findPlaybook(about.playbook);
    const requester = about === undefined ? "" : (findPerson(about.requester)?.name ?? "(unknown)");
    const resource = about === undefined ? INSTALLATION : grant(known, requester);
    const slice = { principal: personEntity(person), action: question.action, resource, context: {} };
    const answer = (known?.ask ?? askFixed)(slice);
    if (answer.fault !== undefined) return say.faulty(answer.fault, 0);
    const rule = { ...GRANT_VERBS, ...INSTALLATION_VERBS }[question.action];
    return say.verbDecision(question.action, rule, { person, answer, playbook: known?.playbook });
  };

  const decide = (question: Question | ListQuestion): Decision => {
    const person = findPerson(question.person);
    if (person === undefined) {
      const text = `there is no person ${say.shown(question.person)}`;
      return say.no("glasskey.person", text, "Allowed for people in people.yaml only.");
    }
    switch (question.action) {
      case "list":
      case "request":
      case "open":
      case "request_extension":
      case "extend": {
        const known = findPlaybook(question.playbook);
        return known === undefined ? noPlaybook(question.playbook) : decideUse(question, person, known);
      }
      case "approve":
      case "deny": {
        const known = findPlaybook(question.playbook);
        return known === undefined ? noPlaybook(question.playbook) : decideConsent(question, person, known);
      }
      case "read_grant":
      case "withdraw":
      case "connect":
      case "end":
      case "kill":
      case "read_recording":
      case "watch_session":
      case "list_playbooks":
      case "list_grants":
      case "read_log":
      case "read_people":
      case "read_targets":
      case "check_target":
      case "read_alarms":
      case "reload_policy":
        return decideVerb(question, person);
      default:
        return unreachable(question);
    }
  };

  return {
    ...{ hash: content.hash, people, targets, playbooks, decide },
    playbook: (name) => findPlaybook(name)?.playbook,
    target: (name) => targets.find((target) => target.name === normalName(name)),
    person: findPerson,
    facts: (id) => {
      const person = findPerson(id);
      return { oncall: Object.fromEntries(content.rotas.map((rota) => [rota.name, onRota(rota, person, findPerson)])) };
    },
    canRequest: (person, facts) =>
      playbooks.map((playbook) => ({
        playbook,
        decision: decide({ action: "list", person, playbook: playbook.name, facts }),
      })),
    eligibleApprovers: (playbook, requester) => {
      const other = findPerson(requester);
      return other === undefined ? [] : (findPlaybook(playbook)?.approvers ?? []).filter((person) => person !== other);
    },
    cedar: (name) => {
      const known = findPlaybook(name);
      return known === undefined ? undefined : { ...fixed, ...known.policies };
    },
  };
}

const INSTALLATION = { uid: { type: "Installation", id: "glasskey" }, attrs: {}, parents: [] };

function personEntity(person: Person): Slice["principal"] {
  return {
    uid: { type: "Person", id: person.name },
    attrs: { enabled: person.enabled, roles: [...person.roles] },
    parents: person.groups.map((id) => ({ type: "Group", id })),
  };
}

function prefixed(prefix: string, policies: Policies): Policies {
  return Object.fromEntries(Object.entries(policies).map(([id, text]) => [`${prefix}${id}`, text]));
}

function noPlaybook(name: string): Decision {
  const text = `there is no playbook ${say.shown(name)}`;
  return say.no("glasskey.playbook", text, "Allowed where a playbook in the policy folder says so.");
}

/** Every grant is the same to Cedar but for whose it is and under which playbook. */
function grant(known: Compiled | undefined, requester: string): Slice["resource"] {
  return {
    uid: { type: "Grant", id: "this" },
    attrs: { requester: { __entity: { type: "Person", id: requester } } },
    parents: known === undefined ? [] : [{ type: "Playbook", id: known.playbook.name }],
  };
}

function useSlice(
  question: Use,
  known: Compiled,
  common: Slice["context"],
  findPerson: (id: string) => Person | undefined,
): Omit<Slice, "principal"> {
  const playbook = { uid: { type: "Playbook", id: known.playbook.name }, attrs: {}, parents: [] };
  switch (question.action) {
    case "list":
      return { action: "list", resource: playbook, context: common };
    case "request":
    case "open": {
      const { action, reason } = question;
      return { action, resource: playbook, context: { ...common, reason, durationMs: whole(question.durationMs) } };
    }
    case "request_extension":
    case "extend": {
      const { action, reason } = question;
      const resource = grant(known, findPerson(question.requester)?.name ?? "(unknown)");
      const times = {
        byMs: whole(question.byMs),
        totalMs: whole(question.totalMs),
        extensions: whole(question.extensions),
      };
      return { action, resource, context: { ...common, reason, ...times } };
    }
    default:
      return unreachable(question);
  }
}

/** Rotas of the playbook for which the facts say so; what they do not list, or say oddly, is unknown. */
function rotasWith(playbook: Playbook, facts: Facts, wanted: "true" | "unknown"): string[] {
  return playbook.who.flatMap(({ by, name }) => {
    if (by !== "oncall") return [];
    const said = Object.hasOwn(facts.oncall, name) ? facts.oncall[name] : undefined;
    const fact: Evidence = said === "true" || said === "false" ? said : "unknown";
    return fact === wanted ? [name] : [];
  });
}

function onRota(rota: Rota, person: Person | undefined, findPerson: (id: string) => Person | undefined): Evidence {
  if (rota.people === "unknown") return "unknown";
  return person !== undefined && rota.people.some(({ value }) => findPerson(value) === person) ? "true" : "false";
}

/** Cedar has whole numbers only; −1 is refused by every clause. */
function whole(value: number): number {
  return Number.isSafeInteger(value) ? value : -1;
}
