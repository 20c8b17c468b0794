import type { Person, Policy, Role, Selector } from "./policy.ts";

/**
 * People of two versions of a policy as sets of bits, so that comparing two sets costs the same however many people are
 * in them. A set belongs to the census that made it.
 */
export type PeopleSet = Uint32Array;

/** Everybody who is in either version, by name. */
export interface Census {
  readonly old: Version;
  readonly next: Version;
  /** Names in a set, sorted; at most the first so many. */
  list(set: PeopleSet, most?: number): readonly string[];
  of(names: Iterable<string>): PeopleSet;
}

/** What one version says about its people. */
export interface Version {
  readonly policy: Policy;
  readonly everybody: PeopleSet;
  /** People who are enabled and have the role. */
  able(role: Role): PeopleSet;
  /** People that a selector names; for a rota, those whom oncall.yaml lists, and nobody where a source is asked. */
  members(selector: Selector): PeopleSet;
  /** The union of several selectors' members. */
  among(selectors: readonly Selector[]): PeopleSet;
  /** Whether oncall.yaml itself lists who is on this rota. */
  listed(rota: string): boolean;
}

export function takeCensus(old: Policy, next: Policy): Census {
  const names = [...new Set([...old.people, ...next.people].map(({ name }) => name))].toSorted(byText);
  const index = new Map(names.map((name, i) => [name, i]));
  const words = Math.ceil(names.length / 32);
  const of = (chosen: Iterable<string>): PeopleSet => {
    const set = new Uint32Array(words);
    for (const name of chosen) {
      const i = index.get(name);
      if (i !== undefined) set[i >>> 5] = (set[i >>> 5] ?? 0) | (1 << (i & 31));
    }
    return set;
  };
  const list = (set: PeopleSet, most = Infinity): readonly string[] => {
    const found: string[] = [];
    for (const [i, name] of names.entries()) {
      if (found.length >= most) break;
      if (((set[i >>> 5] ?? 0) & (1 << (i & 31))) !== 0) found.push(name);
    }
    return found;
  };
  return { old: createVersion(old, of), next: createVersion(next, of), list, of };
}

function createVersion(policy: Policy, of: Census["of"]): Version {
  const memo = new Map<string, PeopleSet>();
  const remember = (key: string, make: () => PeopleSet): PeopleSet => {
    const known = memo.get(key);
    if (known !== undefined) return known;
    const made = make();
    memo.set(key, made);
    return made;
  };
  const groups = new Map<string, string[]>();
  for (const person of policy.people) {
    for (const group of person.groups) {
      const members = groups.get(group);
      if (members === undefined) groups.set(group, [person.name]);
      else members.push(person.name);
    }
  }
  const rotas = new Map(policy.rotas.map((rota) => [rota.name, "people" in rota ? rota.people : undefined]));
  const named = (ids: readonly string[]): readonly string[] =>
    ids.flatMap((id): readonly string[] => {
      const person: Person | undefined = policy.person(id);
      return person === undefined ? [] : [person.name];
    });
  const members = ({ by, name }: Selector): PeopleSet =>
    remember(`${by} ${name}`, () => {
      if (by === "group") return of(groups.get(name) ?? []);
      return of(named(by === "user" ? [name] : (rotas.get(name) ?? [])));
    });
  const everybody = of(policy.people.map(({ name }) => name));
  return {
    ...{ policy, everybody, members },
    able: (role) =>
      remember(`role ${role}`, () =>
        of(policy.people.filter(({ enabled, roles }) => enabled && roles.includes(role)).map(({ name }) => name)),
      ),
    among: (selectors) => union(everybody, ...selectors.map(members)),
    listed: (rota) => rotas.get(rota) !== undefined,
  };
}

/** @param like gives the size; its members are not taken. */
export function union(like: PeopleSet, ...sets: readonly PeopleSet[]): PeopleSet {
  const all = new Uint32Array(like.length);
  for (const set of sets) for (let i = 0; i < all.length; i++) all[i] = (all[i] ?? 0) | (set[i] ?? 0);
  return all;
}

export function both(a: PeopleSet, b: PeopleSet): PeopleSet {
  return a.map((word, i) => word & (b[i] ?? 0));
}

/** Those of `a` who are not in `b`. */
export function without(a: PeopleSet, b: PeopleSet): PeopleSet {
  return a.map((word, i) => word & ~(b[i] ?? 0));
}

export function isEmpty(set: PeopleSet): boolean {
  return set.every((word) => word === 0);
}

/** Whether everybody in `a` is in `b`. */
export function isWithin(a: PeopleSet, b: PeopleSet): boolean {
  return a.every((word, i) => (word & ~(b[i] ?? 0)) === 0);
}

/** Equal sets have equal keys. */
export function keyOf(set: PeopleSet): string {
  return set.join(",");
}

export function byText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
