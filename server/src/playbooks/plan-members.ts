import { both, type Census, isEmpty, type PeopleSet, union, type Version, without } from "./plan-people.ts";
import type { Role, Selector } from "./policy.ts";

/** Why people are in a rule of one version and not in the other's. */
export interface Membership {
  readonly selector: Selector;
  /** `named`: the rule names this selector only here. `joined`: they are among its people only here. `able`: they have
   * the role, and are enabled, only here. `same`: the rule names it only here, and nobody is let in by it alone. */
  readonly cause: "named" | "joined" | "able" | "same";
  readonly people: PeopleSet;
}

/**
 * Whom a list of selectors lets in here and the other version's did not: each person once, by the first selector that
 * explains it. On call is told apart from what is named: who is let in at any hour gains over who is while on call.
 * @param already people who do not gain by it in any case.
 */
export function newMembers(
  here: { readonly version: Version; readonly selectors: readonly Selector[] },
  there: { readonly version: Version; readonly selectors: readonly Selector[] },
  role: Role,
  already: PeopleSet,
): readonly Membership[] {
  const [ableHere, ableThere] = [here.version.able(role), there.version.able(role)];
  const fixed = there.selectors.filter(({ by }) => by !== "oncall");
  let explained = union(already, already, both(there.version.among(fixed), ableThere));
  const found: Membership[] = [];
  const add = (cause: Membership["cause"], selector: Selector, people: PeopleSet): void => {
    explained = union(explained, explained, people);
    found.push({ cause, selector, people });
  };
  // Named people first: for them it does not matter who is on call.
  const inOrder = here.selectors.toSorted((a, b) => Number(a.by === "oncall") - Number(b.by === "oncall"));
  for (const selector of inOrder) {
    const members = here.version.members(selector);
    const people = without(both(members, ableHere), explained);
    if (!there.selectors.some((other) => isSame(other, selector))) {
      // Who is on call is told by a source, so a rota lets in more than oncall.yaml can say.
      const lets = selector.by === "oncall" || !isEmpty(people);
      add(lets ? "named" : "same", selector, people);
      continue;
    }
    if (selector.by === "oncall" && (!here.version.listed(selector.name) || !there.version.listed(selector.name)))
      continue;
    const before = there.version.members(selector);
    const joined = without(people, before);
    // On a rota there and able there: let in there as well, while on call.
    const able = selector.by === "oncall" ? without(both(people, before), ableThere) : both(people, before);
    if (!isEmpty(joined)) add("joined", selector, joined);
    if (!isEmpty(able)) add("able", selector, able);
  }
  return found;
}

function isSame(a: Selector, b: Selector): boolean {
  return a.by === b.by && a.name === b.name;
}

/** How a rota's keeping changed, where oncall.yaml itself does not list it in both versions; undefined: not at all. */
export function rotaChange(census: Census, name: string): string | undefined {
  const text = (version: Version): string => {
    const rota = version.policy.rotas.find((known) => known.name === name);
    if (rota === undefined || "unknown" in rota) return "unknown";
    return "source" in rota ? `asked of ${rota.source} (${rota.ref})` : "listed in oncall.yaml";
  };
  const [before, after] = [text(census.old), text(census.next)];
  return before === after ? undefined : `${before} → ${after}`;
}
