import { compareDenials } from "./plan-denials.ts";
import { type Membership, newMembers, rotaChange } from "./plan-members.ts";
import { both, type Census, isEmpty, isWithin, type PeopleSet, union, type Version } from "./plan-people.ts";
import { compareRules, type Effect, type RuleChange } from "./plan-rules.ts";
import { type Aim, MAX_PEOPLE } from "./plan-witness.ts";
import type { Playbook, Selector, Side } from "./policy.ts";
import { sidesMet } from "./sides.ts";
import type { KindChecks } from "./targets.ts";

/** One difference, before equal ones are told together. */
export interface Finding {
  readonly effect: Effect;
  readonly rule: string;
  readonly what: string;
  readonly playbook?: string;
  readonly people?: PeopleSet;
  readonly aims?: readonly Aim[];
}

/** A playbook that the old version does not have: whoever it lets in gains. */
export function newPlaybook(census: Census, playbook: Playbook): Finding {
  const { name, target, approve } = playbook;
  const people = both(census.next.among(playbook.who), census.next.able("requester"));
  const need =
    approve.need === 0 ? "nobody's approval" : `${approve.need} of ${approversOf(census.next, playbook)} approvers`;
  return {
    ...{ effect: "widens", rule: "playbook", playbook: name, people },
    what: `new: opens ${target} with ${need}`,
    aims: [{ playbook: name, verb: "open" }],
  };
}

function approversOf(version: Version, { approve }: Playbook): number {
  const set = both(version.among(approve.from.flat()), version.able("approver"));
  return set.reduce((sum, word) => sum + bitsIn(word), 0);
}

function bitsIn(word: number): number {
  let bits = 0;
  for (let rest = word >>> 0; rest !== 0; rest = (rest & (rest - 1)) >>> 0) bits++;
  return bits;
}

/** Everything that differs between two versions of one playbook: its rules, its people, and what denies it. */
export function comparePlaybooks(
  census: Census,
  old: Playbook,
  next: Playbook,
  kinds: ReadonlyMap<string, KindChecks>,
): readonly Finding[] {
  const { name } = next;
  const rules = compareRules(old, next, kindOf(census, old, next, kinds)).map(
    ({ aim, ...found }: RuleChange): Finding => ({
      ...found,
      aims: aim === undefined ? [] : [{ ...aim, playbook: name }],
    }),
  );
  return [
    ...rules,
    ...compareRequesters(census, old, next),
    ...compareApprovers(census, old, next),
    ...compareReviewers(census, old, next),
    ...comparePlaybookDenials(census, old, next),
  ];
}

/** The kind of the playbook's target, where it is the same before and after. */
function kindOf(
  census: Census,
  old: Playbook,
  next: Playbook,
  kinds: ReadonlyMap<string, KindChecks>,
): KindChecks | undefined {
  const before = census.old.policy.target(old.target)?.kind;
  const after = census.next.policy.target(next.target)?.kind;
  return before === undefined || before !== after ? undefined : kinds.get(before);
}

function compareRequesters(census: Census, old: Playbook, next: Playbook): readonly Finding[] {
  const members = compareMembers(census, old.who, next.who, {
    ...{ rule: "who", role: "requester", verb: "open", playbook: next.name, already: union(census.old.everybody) },
  });
  const rotas = next.who.flatMap((selector): readonly Finding[] => {
    if (selector.by !== "oncall" || !old.who.some(({ by, name }) => by === "oncall" && name === selector.name))
      return [];
    const what = rotaChange(census, selector.name);
    // Whoever keeps the rota decides who is let in.
    return what === undefined ? [] : [{ effect: "unproved", rule: `oncall.${selector.name}`, what }];
  });
  return [...members, ...rotas];
}

function compareReviewers(census: Census, old: Playbook, next: Playbook): readonly Finding[] {
  const already = both(census.old.able("security_officer"), census.next.able("security_officer"));
  return compareMembers(census, old.review.by, next.review.by, {
    ...{ rule: "review.by", role: "approver", verb: "sign_review", playbook: next.name, already },
  });
}

function compareApprovers(census: Census, old: Playbook, next: Playbook): readonly Finding[] {
  const already = union(census.old.everybody);
  const found = compareMembers(census, distinct(old.approve.from), distinct(next.approve.from), {
    ...{ rule: "approve.from", role: "approver", verb: "approve", playbook: next.name, already },
  });
  const sets = (version: Version, sides: readonly Side[]): readonly PeopleSet[] =>
    sides.map((side) => both(version.among(side), version.able("approver")));
  const before = sets(census.old, old.approve.from);
  const known = union(already, ...before);
  // Who may approve only now was told above; here it is about who has to agree.
  const after = sets(census.next, next.approve.from).map((side) => both(side, known));
  const what = `${describeSides(old.approve.from)} → ${describeSides(next.approve.from)}`;
  if (after.length > 0 && !areHeld(before, after)) {
    // Whoever gets along without the people of a side shows that it need not agree any more.
    const lost = before.filter((side) => !after.some((other) => isWithin(other, side)));
    const aims = (lost.length > 0 ? lost : before).map((side): Aim => ({
      ...{ playbook: next.name, verb: "open", avoid: census.list(side) },
    }));
    return [...found, { effect: "widens", rule: "approve.from", what, aims }];
  }
  if (before.length > 0 && after.length > before.length)
    return [...found, { effect: "narrows", rule: "approve.from", what }];
  return found;
}

/** Whether every old side is still there: a new side of its own, of nobody else but its people, for each. */
function areHeld(before: readonly PeopleSet[], after: readonly PeopleSet[]): boolean {
  const standsFor = after.map((side) => [...before.keys()].filter((i) => isWithin(side, before[i] ?? side)));
  return sidesMet(standsFor).length === before.length;
}

function comparePlaybookDenials(census: Census, old: Playbook, next: Playbook): readonly Finding[] {
  const able = census.next.able("requester");
  const users = next.who.some(({ by }) => by === "oncall") ? able : both(census.next.among(next.who), able);
  return compareDenials(census, { old: old.target, next: next.target }, users).map((change): Finding => {
    const { effect, denial, what, people } = change;
    const named = isEmpty(people) ? {} : { people };
    const aim: Aim = {
      ...{ playbook: next.name, verb: "open" },
      ...(isEmpty(people) ? {} : { people: census.list(people, MAX_PEOPLE) }),
    };
    return { effect, rule: `forbid.${denial.name}`, what, ...named, aims: [aim] };
  });
}

/** Who is let in only now, and who only before. */
function compareMembers(
  census: Census,
  old: readonly Selector[],
  next: readonly Selector[],
  about: {
    readonly rule: "who" | "approve.from" | "review.by";
    readonly role: "requester" | "approver";
    readonly verb: Aim["verb"];
    readonly playbook: string;
    readonly already: PeopleSet;
  },
): readonly Finding[] {
  const [before, after] = [
    { version: census.old, selectors: old },
    { version: census.next, selectors: next },
  ];
  const told = (effect: Effect, words: Words, { cause, selector, people }: Membership): Finding => ({
    effect: cause === "same" ? "neutral" : effect,
    rule: `${about.rule}.${selector.by}:${selector.name}`,
    ...{ what: words[cause](selector, about.role), people },
    aims: [
      {
        playbook: about.playbook,
        verb: about.verb,
        ...(isEmpty(people) ? {} : { people: census.list(people, MAX_PEOPLE) }),
      },
    ],
  });
  return [
    ...newMembers(after, before, about.role, about.already).map((member) => told("widens", GAINED, member)),
    ...newMembers(before, after, about.role, union(about.already)).map((member) => told("narrows", LOST, member)),
  ];
}

type Words = Readonly<Record<Membership["cause"], (selector: Selector, role: string) => string>>;

const GAINED: Words = {
  named: () => "named now",
  joined: ({ by }) => (by === "user" ? "means this person now" : `joined the ${by === "group" ? "group" : "rota"}`),
  able: (_, role) => `got the role ${role}, or was enabled`,
  same: () => "named now, and nobody gains by it",
};

const LOST: Words = {
  named: () => "not named any more",
  joined: ({ by }) => (by === "user" ? "means this person no more" : `left the ${by === "group" ? "group" : "rota"}`),
  able: (_, role) => `lost the role ${role}, or is not enabled any more`,
  same: () => "not named any more, and nobody loses by it",
};

function distinct(sides: readonly Side[]): readonly Selector[] {
  return [...new Map(sides.flat().map((selector) => [`${selector.by} ${selector.name}`, selector])).values()];
}

function describeSides(sides: readonly Side[]): string {
  if (sides.length === 0) return "nobody";
  return sides.map((side) => side.map(({ by, name }) => `${by}:${name}`).join(" or ")).join(", and ");
}
