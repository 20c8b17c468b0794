import { formatDuration } from "../core/duration.ts";
import { GlassError, unreachable } from "../core/errors.ts";
import { check, prepare } from "./cedar.ts";
import { fixedPolicies, fromClauses, installationPolicies, NOBODY, playbookPolicies } from "./compile.ts";
import { concerns } from "./denials.ts";
import * as say from "./explain.ts";
import type { Decision, Denial, Person, Playbook, PlaybookTest, Policy, Question, Rota, Target } from "./policy.ts";
import { approversOf, crowdOf } from "./sides.ts";
import { normalName } from "./text.ts";
import { type Compiled, decideUse, grantEntity, namedIn, personEntity, type Use, whole } from "./use.ts";
import { GRANT_VERBS, INSTALLATION_VERBS } from "./verbs.ts";

type Consent = Extract<Question, { action: "approve" | "deny" }>;

/**
 * Compiles checked content and answers questions about it. All lists are sorted by name. Pure once it has returned: the
 * same question has the same answer.
 * @throws GlassError `config_invalid` for more of it than Cedar can hold; `internal` for content that the loader would not
 *   have let through.
 */
export function createPolicy(content: {
  readonly hash: string;
  readonly people: readonly Person[];
  readonly rotas: readonly Rota[];
  readonly targets: readonly Target[];
  readonly playbooks: readonly Playbook[];
  readonly reasons: ReadonlyMap<string, string>;
  readonly denials: readonly Denial[];
  readonly tests: ReadonlyMap<string, readonly PlaybookTest[]>;
}): Policy {
  const { people, playbooks, denials } = content;
  const byId = new Map(people.flatMap((person) => [person.name, ...person.aliases].map((id) => [id, person])));
  const findPerson = (id: string): Person | undefined => byId.get(normalName(id) ?? "");
  const nameOf = (id: string): string | undefined => findPerson(id)?.name;
  const targets = new Map(content.targets.map((target) => [target.name, target]));
  const crowd = crowdOf(people, findPerson);
  const fixed = fixedPolicies();
  const forInstallation = installationPolicies();

  let characters = 0;
  const drafts = playbooks.map((playbook) => {
    const tags = targets.get(playbook.target)?.tags ?? [];
    // Of the others Cedar would find that they do not hold; their policies still say where they hold.
    const concerned = denials.filter((denial) => concerns(denial, { name: playbook.target, tags }));
    const own = playbookPolicies(playbook, concerned, nameOf);
    for (const text of Object.values(own)) characters += text.length;
    if (characters > MAX_CEDAR_CHARACTERS) throw new GlassError("config_invalid", TOO_MUCH, { next: FEWER });
    return { playbook, tags, denials: concerned, own };
  });
  check([fixed, forInstallation, ...drafts.map(({ own }) => own)]);
  const askInstallation = prepare(forInstallation);
  const askAnyGrant = prepare(fixed);
  const compiled = new Map(
    drafts.map(({ playbook, tags, denials: concerned, own }): [string, Compiled] => {
      const named = namedIn(playbook, concerned);
      const places = [{ type: "Target", id: playbook.target }, ...tags.map((id) => ({ type: "Tag", id }))];
      // Only a denial speaks of them.
      const parents = concerned.length === 0 ? [] : places;
      const policies = { ...fixed, ...own };
      return [
        playbook.name,
        {
          ...{ playbook, denials: concerned, policies, parents, ...named },
          ask: prepare(policies),
          approvers: approversOf(playbook.approve.from, crowd),
          speakers: new Map(),
        },
      ];
    }),
  );
  const findPlaybook = (name: string): Compiled | undefined => compiled.get(normalName(name) ?? "");

  const decideConsent = (question: Consent, person: Person, known: Compiled): Decision => {
    const { playbook } = known;
    const requester = findPerson(question.requester);
    if (requester === undefined) {
      const text = `${say.shown(question.requester)} is not in people.yaml any more, so it cannot be told whether that is the same human`;
      return say.no("glasskey.requester", text, "Ask for a new request by a person who is in people.yaml.");
    }
    const already = question.approvedBy.some((id) => findPerson(id) === person);
    const principal = personEntity(person, known.groups);
    const context = { ageMs: whole(question.ageMs), already };
    const resource = grantEntity(known, requester.name);
    const answer = known.ask({ principal, action: question.action, resource, context });
    const here = { uid: { type: "Playbook", id: playbook.name }, attrs: {}, parents: [] };
    const match = answer.allow ? answer : known.ask({ principal, action: "match_from", resource: here, context: {} });
    const fault = answer.fault ?? match.fault;
    if (fault !== undefined) return say.faulty(fault, 0);
    const failing = answer.allow ? [] : answer.decidedBy;
    const permits = match.allow ? match.decidedBy : [];
    const clauses = say.fixedClauses(question.action, person, failing);
    for (const { clause, selector } of fromClauses(playbook.approve.from)) {
      clauses.push({ clause, held: permits.includes(clause), unknown: false, text: say.selectorText(selector) });
    }
    const text = `within ${formatDuration(playbook.approve.withinMs)} of the request`;
    clauses.push({ clause: "approve.within", held: !failing.includes("approve.within"), unknown: false, text });
    const why = answer.allow
      ? { reasons: [], wouldHold: [] }
      : say.whyNoConsent(failing, { person, playbook, matched: permits.length > 0 });
    return { allow: answer.allow, need: 0, missing: 0, quorum: [], clauses, ...why };
  };

  const decideVerb = (question: Exclude<Question, Use | Consent>, person: Person): Decision => {
    const rule = { ...GRANT_VERBS, ...INSTALLATION_VERBS }[question.action];
    if (!("playbook" in question)) {
      const slice = { principal: personEntity(person, NO_GROUPS), action: question.action, context: {} };
      const answer = askInstallation({ ...slice, resource: INSTALLATION });
      return say.verbDecision(question.action, rule, { person, answer, playbook: undefined });
    }
    const requester = findPerson(question.requester);
    // Whoever signs a review must not be its requester. Where nobody can tell any more who that was, the playbook's own
    // people do not sign, but the security officers do: a review that nobody could sign would never end.
    const blind = question.action === "sign_review" && requester === undefined;
    const known = blind ? undefined : findPlaybook(question.playbook);
    const answer = (known?.ask ?? askAnyGrant)({
      principal: personEntity(person, known?.groups ?? NO_GROUPS),
      action: question.action,
      resource: grantEntity(known, requester?.name ?? NOBODY),
      context: {},
    });
    return say.verbDecision(question.action, rule, { person, answer, playbook: known?.playbook });
  };

  const decide = (question: Question | Use): Decision => {
    const person = findPerson(question.person);
    if (person === undefined) {
      const text = `there is no person ${say.shown(question.person)}`;
      return say.no("glasskey.person", text, "Allowed for people in people.yaml only.");
    }
    switch (question.action) {
      case "list":
      case "request":
      case "open":
      case "open_unanswered":
      case "request_extension":
      case "extend": {
        const known = findPlaybook(question.playbook);
        return known === undefined ? noPlaybook(question.playbook) : decideUse(question, person, known, findPerson);
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
      case "hold_recording":
      case "release_hold":
      case "erase_recording":
      case "sign_review":
      case "list_playbooks":
      case "list_grants":
      case "read_log":
      case "manage_log_keys":
      case "read_people":
      case "read_targets":
      case "check_target":
      case "read_alarms":
      case "read_reports":
      case "read_holds":
      case "reload_policy":
        return decideVerb(question, person);
      default:
        return unreachable(question);
    }
  };

  return {
    ...content,
    decide,
    playbook: (name) => findPlaybook(name)?.playbook,
    target: (name) => targets.get(normalName(name) ?? ""),
    person: findPerson,
    canRequest: (person, playbook, facts) => decide({ action: "list", person, playbook, facts }),
    eligibleApprovers: (playbook, requester) => {
      const other = findPerson(requester);
      const approvers = findPlaybook(playbook)?.approvers.people ?? [];
      return other === undefined ? [] : approvers.filter((person) => person !== other);
    },
    cedar: (name) => findPlaybook(name)?.policies,
  };
}

/** Cedar keeps each about seventy times as large, in 4 GiB at most, beside the policy before; more would stop the process. */
const MAX_CEDAR_CHARACTERS = 16 * 1024 * 1024;
const TOO_MUCH = "the playbooks and the rules of forbid are too many together";
const FEWER =
  "Each rule counts once for every playbook that it concerns: join rules, or name fewer people and hours in them.";

const INSTALLATION = { uid: { type: "Installation", id: "glasskey" }, attrs: {}, parents: [] };
const NO_GROUPS: ReadonlySet<string> = new Set();

function noPlaybook(name: string): Decision {
  const text = `there is no playbook ${say.shown(name)}`;
  return say.no("glasskey.playbook", text, "Allowed where a playbook in the policy folder says so.");
}
