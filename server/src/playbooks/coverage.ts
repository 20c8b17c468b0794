import { runTest, usualMoment } from "./check-tests.ts";
import { createPolicy } from "./decide.ts";
import { concerns } from "./denials.ts";
import type { Denial, Person, Playbook, PlaybookTest, Policy, Selector } from "./policy.ts";
import { crowdOf } from "./sides.ts";

/** A clause of a playbook, or a rule of `forbid`, and whether a test would notice if it were not there. */
export interface ClauseCoverage {
  /** Undefined for a rule of `forbid`, which belongs to all playbooks. */
  readonly playbook?: string;
  readonly clause: string;
  readonly covered: boolean;
  /** The test that is missing, in words. */
  readonly wanted: string;
}

/** One change to a playbook that its tests should notice. */
interface Mutant {
  readonly clause: string;
  readonly wanted: string;
  readonly playbook: Playbook;
  readonly denials?: readonly Denial[];
}

const YEAR_MS = 366 * 24 * 3_600_000;

/**
 * Which clauses the tests exercise. The definition: a clause is exercised if a test that passes would fail without it. A
 * limit is taken away (then a `deny` test must turn, so that test fails because of this clause alone); an alternative of
 * `who` is taken away (then an `allow` test must turn). Each is tried: the changed playbook is compiled and its tests are
 * run through the same decision. Clauses whose absence could change nothing, such as a `who` that names everybody, are
 * not counted, nor is what no test can ask about (idle, extend, unanswered, notify, review, drill).
 */
export function measureCoverage(policy: Policy): readonly ClauseCoverage[] {
  const found: ClauseCoverage[] = [];
  const rules = new Map<string, boolean>();
  const crowd = crowdOf(policy.people, (name) => policy.person(name));
  for (const playbook of policy.playbooks) {
    const tests = policy.tests.get(playbook.name) ?? [];
    const usualMs = usualMoment(policy, playbook);
    const alone = variantOf(policy, playbook, policy.denials);
    const passing = tests.filter((test) => runTest(alone, playbook.name, test, usualMs).passed);
    const notices = ({ playbook: changed, denials }: Mutant): boolean => {
      if (passing.length === 0) return false;
      const mutated = variantOf(policy, changed, denials ?? policy.denials);
      return passing.some((test) => !runTest(mutated, playbook.name, test, usualMs).passed);
    };
    for (const mutant of mutantsOf(policy, playbook, (selectors) => peopleOf(selectors, crowd.inGroup, policy))) {
      const { clause, wanted } = mutant;
      found.push({ playbook: playbook.name, clause, wanted, covered: notices(mutant) });
    }
    const target = { name: playbook.target, tags: policy.target(playbook.target)?.tags ?? [] };
    for (const denial of policy.denials.filter((known) => concerns(known, target))) {
      const denials = policy.denials.filter((other) => other !== denial);
      const clause = `forbid.${denial.name}`;
      const covered = rules.get(clause) === true || notices({ clause, wanted: "", playbook, denials });
      rules.set(clause, covered);
    }
  }
  const wanted = "a deny of somebody whom only this rule stops";
  return [...found, ...[...rules].map(([clause, covered]) => ({ clause, covered, wanted }))];
}

/** Whole percent, rounded down: 100 means all. Nothing to cover is fully covered. */
export function percentOf(coverage: readonly ClauseCoverage[]): number {
  if (coverage.length === 0) return 100;
  return Math.floor((coverage.filter(({ covered }) => covered).length * 100) / coverage.length);
}

function variantOf(policy: Policy, playbook: Playbook, denials: readonly Denial[]): Policy {
  const { hash, people, rotas, reasons } = policy;
  const targets = policy.targets.filter(({ name }) => name === playbook.target);
  const tests: ReadonlyMap<string, readonly PlaybookTest[]> = new Map();
  return createPolicy({ hash, people, rotas, targets, reasons, denials, playbooks: [playbook], tests });
}

type PeopleOf = (selectors: readonly Selector[]) => ReadonlySet<Person>;

function mutantsOf(policy: Policy, playbook: Playbook, members: PeopleOf): readonly Mutant[] {
  return [
    ...whoMutants(policy, playbook, members),
    ...whenMutants(policy, playbook),
    ...consentMutants(policy, playbook, members),
    ...limitMutants(playbook),
  ];
}

function whoMutants({ people }: Policy, playbook: Playbook, members: PeopleOf): readonly Mutant[] {
  const requesters = people.filter(({ enabled, roles }) => enabled && roles.includes("requester"));
  const mutants: Mutant[] = [];
  const known = members(playbook.who);
  // A rota's people change, so there is always somebody who is not on call.
  if (playbook.who.some(({ by }) => by === "oncall") || requesters.some((person) => !known.has(person))) {
    const who = requesters.map(({ name }): Selector => ({ by: "user", name }));
    const wanted = "a deny of a requester who is not meant";
    mutants.push({ clause: "who", wanted, playbook: { ...playbook, who } });
  }
  if (playbook.who.length === 1) return mutants; // without it nobody could ask: any allow shows that it works
  for (const selector of playbook.who) {
    const who = playbook.who.filter((other) => other !== selector);
    const clause = `who.${selector.by}:${selector.name}`;
    const wanted = "an allow of somebody whom only this alternative lets in";
    const rest = members(who);
    const adds = selector.by === "oncall" || [...members([selector])].some((person) => !rest.has(person));
    if (adds) mutants.push({ clause, wanted, playbook: { ...playbook, who } });
  }
  return mutants;
}

function whenMutants(policy: Policy, playbook: Playbook): readonly Mutant[] {
  const { reasons, zone, incident, hours } = playbook.when;
  const mutants: Mutant[] = [];
  const all = [...policy.reasons.keys()];
  const change = (clause: string, wanted: string, when: Playbook["when"]): void =>
    void mutants.push({ clause, wanted, playbook: { ...playbook, when } });
  const other = all.find((code) => !reasons.includes(code));
  if (other !== undefined) {
    change("when.reason", `a deny with a reason that is not listed, such as ${other}`, {
      ...playbook.when,
      reasons: all,
    });
  }
  if (incident !== undefined) {
    const rest = { reasons, zone, ...(hours === undefined ? {} : { hours }) };
    change("when.incident", "a deny without an incident, or with another severity", rest);
  }
  if (hours !== undefined) {
    const rest = { reasons, zone, ...(incident === undefined ? {} : { incident }) };
    change("when.hours", "a deny with `at:` outside of the hours", rest);
  }
  return mutants;
}

function consentMutants({ people }: Policy, playbook: Playbook, members: PeopleOf): readonly Mutant[] {
  const { approve } = playbook;
  if (approve.need === 0) return [];
  const approvers = people.filter(({ enabled, roles }) => enabled && roles.includes("approver"));
  const mutants: Mutant[] = [];
  const change = (clause: string, wanted: string, changed: Playbook["approve"]): void =>
    void mutants.push({ clause, wanted, playbook: { ...playbook, approve: changed } });
  // With as many sides as people needed, the sides alone make the number.
  if (approve.from.length < 2 || approve.need > approve.from.length) {
    const few = approve.need === 1 ? "a deny without an approval" : "a deny with one approval too few";
    change("approve.need", few, { ...approve, need: approve.need - 1 });
  }
  const anybody = approvers.map(({ name }): Selector => ({ by: "user", name }));
  for (const [i, side] of approve.from.entries()) {
    const meant = members(side);
    if (!approvers.some((person) => !meant.has(person))) continue;
    const several = approve.from.length > 1;
    const clause = several ? `approve.from.${i + 1}` : "approve.from";
    const wanted = several
      ? "a deny in which only this side did not agree"
      : "a deny approved by an approver who is not listed";
    change(clause, wanted, { ...approve, from: approve.from.map((other, at) => (at === i ? anybody : other)) });
  }
  return mutants;
}

function limitMutants(playbook: Playbook): readonly Mutant[] {
  const { limit, time } = playbook;
  const mutants: Mutant[] = [];
  const longer = { ...time, maxMs: YEAR_MS, capMs: YEAR_MS };
  mutants.push({
    clause: "time.max",
    wanted: "a deny with `for:` above time.max",
    playbook: { ...playbook, time: longer },
  });
  const without = (key: "uses" | "concurrent" | "cooldownMs", clause: string, wanted: string): void => {
    if (limit[key] === undefined) return;
    const rest = Object.fromEntries(Object.entries(limit).filter(([name]) => name !== key));
    mutants.push({ clause, wanted, playbook: { ...playbook, limit: rest } });
  };
  without("uses", "limit.uses", "a deny with `unsigned:` at the limit, and approvals for less than a quorum");
  without("concurrent", "limit.concurrent", "a deny with `open:` at the limit");
  without(
    "cooldownMs",
    "limit.cooldown",
    "a deny with a `sinceLast:` that is too short, and approvals for less than a quorum",
  );
  return mutants;
}

/** People whom group and user alternatives mean; who is on call is not known here. */
function peopleOf(
  selectors: readonly Selector[],
  inGroup: ReadonlyMap<string, readonly Person[]>,
  policy: Policy,
): ReadonlySet<Person> {
  return new Set(
    selectors.flatMap(({ by, name }) => {
      const person = by === "user" ? policy.person(name) : undefined;
      return by === "group" ? (inGroup.get(name) ?? []) : person === undefined ? [] : [person];
    }),
  );
}
