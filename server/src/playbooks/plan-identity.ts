import { equalSecret } from "../core/bytes.ts";
import { both, type Census, isEmpty, type PeopleSet, without } from "./plan-people.ts";
import { difference, type Effect } from "./plan-rules.ts";
import { type Aim, type LoneVerb, MAX_PEOPLE } from "./plan-witness.ts";
import { type Person, type Role, ROLES } from "./policy.ts";

/** A difference in who somebody is, or in what they may do by their roles. */
export interface IdentityChange {
  readonly effect: Effect;
  readonly rule: string;
  readonly what: string;
  readonly people: PeopleSet;
  readonly aim?: Omit<Aim, "playbook">;
}

/** What each role gives beside the playbooks, as far as one question shows it. */
const SHOWN_BY: Readonly<Partial<Record<Role, LoneVerb>>> = {
  security_officer: "kill",
  auditor: "read_recording",
  admin: "check_target",
};

/** People who came or went, their roles, their other ids, and how they log in and are reached. */
export function compareIdentities(census: Census): readonly IdentityChange[] {
  const { old, next } = census;
  const gone = without(old.everybody, next.everybody);
  const stayed = both(old.everybody, next.everybody);
  const changes: IdentityChange[] = [];
  const add = (effect: Effect, rule: string, what: string, people: PeopleSet, verb?: LoneVerb): void => {
    if (isEmpty(people)) return;
    const aim = verb === undefined ? {} : { aim: { verb, people: census.list(people, MAX_PEOPLE) } };
    changes.push({ effect, rule, what, people, ...aim });
  };
  const known = new Map(old.policy.people.map((person) => [person.name, person]));
  for (const [roles, names] of byRoles(next.policy.people.filter(({ name }) => !known.has(name)))) {
    add("widens", "people", `new, ${roles}`, census.of(names), "list_playbooks");
  }
  add("narrows", "people", "not listed any more", gone);
  for (const role of ROLES) {
    const [before, after] = [old.able(role), next.able(role)];
    add(
      "widens",
      "roles",
      `${role}: given, or the person enabled`,
      both(without(after, before), stayed),
      SHOWN_BY[role],
    );
    add("narrows", "roles", `${role}: taken away, or the person not enabled`, both(without(before, after), stayed));
  }
  for (const person of next.policy.people) {
    const before = known.get(person.name);
    for (const { effect, rule, what, verb } of comparePerson(census, before, person)) {
      add(effect, rule, what, census.of([person.name]), verb);
    }
  }
  return changes;
}

interface PersonChange {
  readonly effect: Effect;
  readonly rule: string;
  readonly what: string;
  readonly verb?: LoneVerb;
}

function comparePerson(census: Census, before: Person | undefined, person: Person): readonly PersonChange[] {
  const changes: PersonChange[] = [];
  const [added, removed] = difference(idsOf(before), idsOf(person));
  for (const id of added) {
    if (id === person.name.toLowerCase() && before === undefined) continue;
    const owner = census.old.policy.person(id)?.name;
    if (owner === undefined && before === undefined) continue; // a new person's own
    const what = owner === undefined ? `also known as ${id}` : `${id} means this person, and not ${owner} any more`;
    changes.push({ effect: "widens", rule: "aliases", what });
  }
  for (const id of before === undefined ? [] : removed) {
    // Approvals and requests of that id do not count as this human's any more.
    changes.push({ effect: "unproved", rule: "aliases", what: `not known as ${id} any more` });
  }
  if (before === undefined) return changes;
  if (!sameSecret(before, person)) {
    const effect = person.secret === undefined ? "narrows" : "unproved";
    const what = person.secret === undefined ? "no local login any more" : "another secret for the local login";
    changes.push({ effect, rule: "secret", what });
  }
  const [told, untold] = difference(before.notify, person.notify);
  if (told.length > 0)
    changes.push({ effect: "unproved", rule: "notify", what: `signed links also go to ${told.join(", ")}` });
  if (untold.length > 0) {
    changes.push({
      effect: "narrows",
      rule: "notify",
      what: `signed links do not go to ${untold.join(", ")} any more`,
    });
  }
  return changes;
}

function idsOf(person: Person | undefined): readonly string[] {
  return person === undefined ? [] : [person.name, ...person.aliases].map((id) => id.toLowerCase());
}

function sameSecret({ secret: a }: Person, { secret: b }: Person): boolean {
  if (a === undefined || b === undefined) return a === b;
  return equalSecret(a.reveal(), b.reveal());
}

function byRoles(people: readonly Person[]): ReadonlyMap<string, readonly string[]> {
  const groups = new Map<string, string[]>();
  for (const { name, roles, enabled } of people) {
    const key = `${ROLES.filter((role) => roles.includes(role)).join(", ") || "no role"}${enabled ? "" : ", not enabled"}`;
    const names = groups.get(key);
    if (names === undefined) groups.set(key, [name]);
    else names.push(name);
  }
  return groups;
}
