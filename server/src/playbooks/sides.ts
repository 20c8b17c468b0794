import type { Person, Selector, Side } from "./policy.ts";

/**
 * How many sides different people can speak for: a largest matching of sides to people, found by augmenting paths (Kuhn).
 * @param sidesOf for each person, the numbers (from 0) of the sides they may speak for.
 * @returns the numbers of the sides that are spoken for, ascending. Which of several largest sets it is depends on the
 * order of the people only.
 */
export function sidesMet(sidesOf: readonly (readonly number[])[]): readonly number[] {
  const speaker = new Map<number, number>();
  const speak = (person: number, tried: Set<number>): boolean => {
    for (const side of sidesOf[person] ?? []) {
      if (tried.has(side)) continue;
      tried.add(side);
      const other = speaker.get(side);
      if (other !== undefined && !speak(other, tried)) continue;
      speaker.set(side, person);
      return true;
    }
    return false;
  };
  for (const person of sidesOf.keys()) speak(person, new Set());
  return [...speaker.keys()].toSorted((a, b) => a - b);
}

/** People by group, so that a big installation is not searched once for each playbook. */
export interface Crowd {
  readonly inGroup: ReadonlyMap<string, readonly Person[]>;
  readonly find: (nameOrAlias: string) => Person | undefined;
}

export function crowdOf(people: readonly Person[], find: (nameOrAlias: string) => Person | undefined): Crowd {
  const inGroup = new Map<string, Person[]>();
  for (const person of people) {
    for (const group of new Set(person.groups)) {
      const members = inGroup.get(group);
      if (members === undefined) inGroup.set(group, [person]);
      else members.push(person);
    }
  }
  return { inGroup, find };
}

/** Who could approve under a playbook, whoever asks. */
export interface Approvers {
  /** Each once, by name. */
  readonly people: readonly Person[];
  /** Whether `person` is one of them. */
  readonly has: (person: Person) => boolean;
  /** How many sides different people other than this one could speak for. */
  readonly reach: (requester: Person) => number;
}

/** Each person counts once, however many groups lead to them; only who is enabled and has the role approver. */
export function approversOf(from: readonly Side[], crowd: Crowd): Approvers {
  const sidesOf = new Map<Person, number[]>();
  for (const [i, side] of from.entries()) {
    for (const person of new Set(side.flatMap((selector) => matching(selector, crowd)))) {
      if (!person.enabled || !person.roles.includes("approver")) continue;
      const known = sidesOf.get(person);
      if (known === undefined) sidesOf.set(person, [i]);
      else known.push(i);
    }
  }
  const kept = enough(sidesOf, from.length);
  const all = sidesMet([...kept.values()]).length;
  return {
    people: [...sidesOf.keys()].toSorted((a, b) => (a.name < b.name ? -1 : 1)),
    has: (person) => sidesOf.has(person),
    reach: (requester) => {
      if (!kept.has(requester)) return all;
      return sidesMet([...kept].filter(([person]) => person !== requester).map(([, sides]) => sides)).length;
    },
  };
}

/** For each side one person more than there are sides: without any one of them, the largest matching stays the same. */
function enough(
  sidesOf: ReadonlyMap<Person, readonly number[]>,
  sides: number,
): ReadonlyMap<Person, readonly number[]> {
  const kept = new Map<Person, readonly number[]>();
  const found = Array.from({ length: sides }, () => 0);
  for (const [person, speaksFor] of sidesOf) {
    if (!speaksFor.some((side) => (found[side] ?? 0) <= sides)) continue;
    kept.set(person, speaksFor);
    for (const side of speaksFor) found[side] = (found[side] ?? 0) + 1;
  }
  return kept;
}

function matching({ by, name }: Selector, crowd: Crowd): readonly Person[] {
  if (by === "group") return crowd.inGroup.get(name) ?? [];
  const person = by === "user" ? crowd.find(name) : undefined;
  return person === undefined ? [] : [person];
}
