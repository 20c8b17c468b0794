import { isWithinTimes } from "./plan-hours.ts";
import { type Census, isEmpty, type PeopleSet, union, type Version, without } from "./plan-people.ts";
import type { Denial, Policy, Target } from "./policy.ts";

/** A denial that holds less than it did for a playbook, or more. */
export interface DenialChange {
  readonly effect: "widens" | "unproved" | "narrows";
  readonly denial: Denial;
  readonly what: string;
  /** Whom it let through before or refuses now, as far as they can be named. */
  readonly people: PeopleSet;
}

/**
 * What differs between the denials that apply to a playbook's target. A denial is still there if others, taken together
 * at all of its hours, refuse all of its people: those among `users`, whom the playbook could let in.
 */
export function compareDenials(
  census: Census,
  targets: { readonly old: string; readonly next: string },
  users: PeopleSet,
): readonly DenialChange[] {
  const before = applying(census.old.policy, targets.old);
  const after = applying(census.next.policy, targets.next);
  const changes: DenialChange[] = [];
  for (const denial of before) {
    const { people, rotas } = uncovered(census.old, denial, census.next, after, users);
    if (!isEmpty(people) || rotas.length > 0) {
      changes.push({
        effect: "widens",
        denial,
        people,
        what: after.length === 0 ? "does not hold any more" : "holds less",
      });
    }
  }
  for (const denial of after) {
    const { people, rotas } = uncovered(census.next, denial, census.old, before, users);
    if (!isEmpty(people) || rotas.length > 0) changes.push({ effect: "narrows", denial, people, what: "holds more" });
    for (const { by, name } of denial.who) {
      if (by === "oncall") changes.push(...rotaChanges(census, denial, name, users));
    }
  }
  return changes;
}

/** Those of a denial's people and rotas that another version's denials do not refuse. */
function uncovered(
  mine: Version,
  denial: Denial,
  theirs: Version,
  others: readonly Denial[],
  users: PeopleSet,
): { readonly people: PeopleSet; readonly rotas: readonly string[] } {
  const covering = others.filter((other) => isWithinTimes(denial, other));
  if (covering.some(({ who }) => who.length === 0)) return { people: union(users), rotas: [] };
  const named = (version: Version, { who }: Denial): PeopleSet =>
    who.length === 0 ? users : version.among(who.filter(({ by }) => by !== "oncall"));
  const refused = union(users, ...covering.map((other) => named(theirs, other)));
  const people = named(mine, denial).map((word, i) => word & (users[i] ?? 0) & ~(refused[i] ?? 0));
  const rotas = new Set(covering.flatMap(({ who }) => who.filter(({ by }) => by === "oncall").map(({ name }) => name)));
  const missing = denial.who.flatMap(({ by, name }) => (by === "oncall" && !rotas.has(name) ? [name] : []));
  return { people, rotas: isEmpty(users) ? [] : missing };
}

/** Whoever leaves a rota is let through by a denial that names it; an unknown rota counts as being on call. */
function rotaChanges(census: Census, denial: Denial, name: string, users: PeopleSet): readonly DenialChange[] {
  const [before, after] = [census.old, census.next].map(({ policy }) =>
    policy.rotas.find((rota) => rota.name === name),
  );
  const selector = { by: "oncall", name } as const;
  const none = union(users);
  if (before !== undefined && after !== undefined && "people" in before && "people" in after) {
    const gone = without(census.old.members(selector), census.next.members(selector)).map(
      (word, i) => word & (users[i] ?? 0),
    );
    return isEmpty(gone) ? [] : [{ effect: "widens", denial, people: gone, what: `rota ${name} is smaller` }];
  }
  if (after === undefined || "unknown" in after) return [];
  const sameSource =
    before !== undefined &&
    "source" in before &&
    "source" in after &&
    before.source === after.source &&
    before.ref === after.ref;
  if (sameSource) return [];
  return [{ effect: "unproved", denial, people: none, what: `rota ${name} is kept in another place` }];
}

function applying({ denials, targets }: Policy, name: string): readonly Denial[] {
  const target = targets.find((known) => known.name === name);
  return denials.filter((denial) => appliesTo(denial, target, name));
}

function appliesTo(denial: Denial, target: Target | undefined, name: string): boolean {
  if (denial.targets.length === 0 && denial.tags.length === 0) return true;
  return denial.targets.includes(name) || denial.tags.some((tag) => target?.tags.includes(tag) === true);
}
