import { concerns } from "./denials.ts";
import { isWithinTimes } from "./plan-hours.ts";
import { both, type Census, isEmpty, type PeopleSet, union, type Version, without } from "./plan-people.ts";
import type { Denial, Policy } from "./policy.ts";

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
  const { kept, made } = coversOf(census, before, after);
  const changes: DenialChange[] = [];
  for (const cover of kept) {
    const { people, rotas } = uncovered(cover, users);
    if (!isEmpty(people) || rotas.length > 0) {
      changes.push({
        effect: "widens",
        denial: cover.denial,
        people,
        what: after.length === 0 ? "does not hold any more" : "holds less",
      });
    }
  }
  for (const cover of made) {
    const { denial } = cover;
    const { people, rotas } = uncovered(cover, users);
    if (!isEmpty(people) || rotas.length > 0) changes.push({ effect: "narrows", denial, people, what: "holds more" });
    for (const { by, name } of denial.who) {
      if (by === "oncall") changes.push(...rotaChanges(census, denial, name, users));
    }
  }
  return changes;
}

/** What another version refuses at all hours of a denial, whatever playbook it is about. */
interface Cover {
  readonly denial: Denial;
  /** Whom the denial names; undefined: everybody. */
  readonly named: PeopleSet | undefined;
  /** Whom the other version refuses then; undefined: everybody. */
  readonly refused: PeopleSet | undefined;
  /** The denial's rotas that the other version does not refuse then. */
  readonly rotas: readonly string[];
}
interface Covers {
  readonly kept: readonly Cover[];
  readonly made: readonly Cover[];
}

/** Most playbooks have the same denials, and comparing each with each once for every playbook took minutes. */
const compared = new WeakMap<Census, Map<string, Covers>>();

function coversOf(census: Census, before: readonly Denial[], after: readonly Denial[]): Covers {
  const memo = compared.get(census) ?? new Map<string, Covers>();
  compared.set(census, memo);
  const key = [before, after].map((denials) => denials.map(({ name }) => name).join(" ")).join("/");
  const known = memo.get(key);
  if (known !== undefined) return known;
  const covers = {
    kept: before.map((denial) => coverOf(census.old, denial, census.next, after)),
    made: after.map((denial) => coverOf(census.next, denial, census.old, before)),
  };
  memo.set(key, covers);
  return covers;
}

function coverOf(mine: Version, denial: Denial, theirs: Version, others: readonly Denial[]): Cover {
  const covering = others.filter((other) => isWithinTimes(denial, other));
  const named = (version: Version, who: Denial["who"]): PeopleSet =>
    version.among(who.filter(({ by }) => by !== "oncall"));
  const own = denial.who.length === 0 ? undefined : named(mine, denial.who);
  if (covering.some(({ who }) => who.length === 0)) return { denial, named: own, refused: undefined, rotas: [] };
  const selectors = covering.flatMap(({ who }) => who);
  const rotas = new Set(selectors.flatMap(({ by, name }) => (by === "oncall" ? [name] : [])));
  return {
    ...{ denial, named: own, refused: named(theirs, distinct(selectors)) },
    rotas: denial.who.flatMap(({ by, name }) => (by === "oncall" && !rotas.has(name) ? [name] : [])),
  };
}

function distinct(selectors: Denial["who"]): Denial["who"] {
  return [...new Map(selectors.map((selector) => [`${selector.by} ${selector.name}`, selector])).values()];
}

/** Those of a denial's people and rotas that another version's denials do not refuse. */
function uncovered(
  { named, refused, rotas }: Cover,
  users: PeopleSet,
): { readonly people: PeopleSet; readonly rotas: readonly string[] } {
  if (refused === undefined) return { people: union(users), rotas: [] };
  const people = without(named === undefined ? users : both(named, users), refused);
  return { people, rotas: isEmpty(users) ? [] : rotas };
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
  const target = targets.find((known) => known.name === name) ?? { name, tags: [] };
  return denials.filter((denial) => concerns(denial, target));
}
