import { compareIdentities } from "./plan-identity.ts";
import { both, byText, type Census, keyOf, type PeopleSet, takeCensus } from "./plan-people.ts";
import { comparePlaybooks, type Finding, newPlaybook } from "./plan-playbook.ts";
import type { Effect } from "./plan-rules.ts";
import { textOf } from "./plan-scope.ts";
import { type Aim, findWitness, type Witness } from "./plan-witness.ts";
import type { Policy } from "./policy.ts";
import type { KindChecks } from "./targets.ts";

/** One difference between two versions of a policy, told once for all playbooks and people whom it concerns alike. */
export interface Change {
  /** The place in {@link Plan.changes}, from 1. */
  readonly id: number;
  readonly effect: Effect;
  /** The rule that differs, in the words of the files: `who.group:contractors`, `time.max`, `forbid.no-contractors`. */
  readonly rule: string;
  readonly what: string;
  /** Sorted; empty where no playbook is concerned. */
  readonly playbooks: readonly string[];
  /** Who gains or loses by name, sorted; empty where it is whoever these playbooks let in. */
  readonly people: readonly string[];
  /** For what widens; undefined where no question to the policy can show it, or where none was found. */
  readonly witness?: Witness;
}

/** Who gains and who loses between two versions of a policy. Plain data. */
export interface Plan {
  /** Hashes of the two versions. */
  readonly old: string;
  readonly next: string;
  /** False only where every difference is proved to allow nothing that was not allowed. */
  readonly widened: boolean;
  /** What widens first. */
  readonly changes: readonly Change[];
  /** People who gain and lose by the same changes, told together. Numbers are ids of changes. */
  readonly people: readonly {
    readonly people: readonly string[];
    readonly gains: readonly number[];
    readonly losses: readonly number[];
  }[];
  /** Widening changes for which no witness was looked for, because there are so many. */
  readonly unwitnessed: number;
}

interface Draft {
  readonly effect: Effect;
  readonly rule: string;
  readonly what: string;
  readonly playbooks: Set<string>;
  readonly people: PeopleSet | undefined;
  readonly aims: Aim[];
}

const MAX_AIMS = 3; // playbooks tried for one change that many have
const MAX_DECISIONS = 8_000; // for witnesses; two or three seconds
const EFFECTS: readonly Effect[] = ["widens", "unproved", "narrows", "neutral"];

/**
 * Compares two versions of a policy by their rules and by sets of people; the decisions are asked only for the witnesses.
 * Both are trusted to have been checked by the loader. Deterministic and pure; never throws for a policy that was loaded.
 *
 * The comparison is sound, not complete: it says `widened` whenever a question is allowed that was not, and may say it
 * where two changes make up for each other. Without `kinds`, a scope that differs needs eyes. docs/playbook-plan.md lists what is compared and how.
 */
export function planPolicies(old: Policy, next: Policy, kinds: ReadonlyMap<string, KindChecks> = new Map()): Plan {
  const drafts = new Map<string, Draft>();
  const add = (found: Finding): void => {
    const { effect, rule, what, people, playbook, aims = [] } = found;
    const key = [effect, rule, what, people === undefined ? "" : keyOf(people)].join("\0");
    const draft = drafts.get(key) ?? { effect, rule, what, people, playbooks: new Set(), aims: [] };
    drafts.set(key, draft);
    if (playbook !== undefined) draft.playbooks.add(playbook);
    if (draft.aims.length < MAX_AIMS) draft.aims.push(...aims);
  };
  const census = takeCensus(old, next);
  const [anyPlaybook = ""] = next.playbooks.map(({ name }) => name).filter((name) => old.playbook(name) !== undefined);
  for (const { aim, ...found } of compareIdentities(census)) {
    add({ ...found, aims: aim === undefined ? [] : [{ ...aim, playbook: anyPlaybook }] });
  }
  for (const playbook of next.playbooks) {
    const before = old.playbook(playbook.name);
    if (before === undefined) add(newPlaybook(census, playbook));
    else
      for (const found of comparePlaybooks(census, before, playbook, kinds)) add({ ...found, playbook: playbook.name });
  }
  for (const { name, who } of old.playbooks) {
    if (next.playbook(name) !== undefined) continue;
    const people = both(census.old.among(who), census.old.able("requester"));
    add({ effect: "narrows", rule: "playbook", what: "does not exist any more", playbook: name, people });
  }
  for (const found of [...compareTargets(old, next), ...compareTexts(old, next)]) add(found);
  return finish(census, [...drafts.values()]);
}

function finish(census: Census, drafts: readonly Draft[]): Plan {
  const order = ({ effect, rule, what, playbooks }: Draft): string =>
    [EFFECTS.indexOf(effect), rule, what, ...playbooks].join("\0");
  let left = MAX_DECISIONS;
  const counted = (policy: Policy): Policy => ({
    ...policy,
    decide: (question) => {
      left--;
      return policy.decide(question);
    },
  });
  const [old, next] = [counted(census.old.policy), counted(census.next.policy)];
  let unwitnessed = 0;
  const found = drafts
    .map((draft) => ({ draft, key: order(draft) }))
    .toSorted((a, b) => byText(a.key, b.key))
    .map(({ draft }, i) => {
      const { effect, rule, what, people, playbooks, aims } = draft;
      const wanted = effect === "widens" && aims.length > 0;
      if (wanted && left <= 0) unwitnessed++;
      const witness = wanted && left > 0 ? firstWitness(old, next, aims) : undefined;
      const change: Change = {
        ...{ id: i + 1, effect, rule, what, playbooks: [...playbooks].toSorted(byText) },
        people: people === undefined ? [] : census.list(people),
        ...(witness === undefined ? {} : { witness }),
      };
      return change;
    });
  return {
    ...{ old: old.hash, next: next.hash },
    widened: found.some(({ effect }) => effect === "widens" || effect === "unproved"),
    ...{ changes: found, people: classesOf(found), unwitnessed },
  };
}

function firstWitness(old: Policy, next: Policy, aims: readonly Aim[]): Witness | undefined {
  for (const aim of aims) {
    const witness = findWitness(old, next, aim);
    if (witness !== undefined) return witness;
  }
  return undefined;
}

/** People for whom exactly the same changes count. */
function classesOf(changes: readonly Change[]): Plan["people"] {
  const ofPerson = new Map<string, { gains: number[]; losses: number[] }>();
  for (const { id, effect, people } of changes) {
    if (effect === "neutral") continue;
    for (const name of people) {
      const known = ofPerson.get(name) ?? { gains: [], losses: [] };
      ofPerson.set(name, known);
      (effect === "narrows" ? known.losses : known.gains).push(id);
    }
  }
  const classes = new Map<string, { people: string[]; gains: readonly number[]; losses: readonly number[] }>();
  for (const [name, { gains, losses }] of ofPerson) {
    const key = `${gains.join(",")}/${losses.join(",")}`;
    const known = classes.get(key);
    if (known === undefined) classes.set(key, { people: [name], gains, losses });
    else known.people.push(name);
  }
  return [...classes.values()]
    .map((known) => ({ ...known, people: known.people.toSorted(byText) }))
    .toSorted((a, b) => b.gains.length - a.gains.length || byText(a.people[0] ?? "", b.people[0] ?? ""));
}

/** Targets that stayed. What leads to a new one is a new playbook, or one with another target. */
function compareTargets(old: Policy, next: Policy): readonly Finding[] {
  return next.targets.flatMap((target): readonly Finding[] => {
    const before = old.target(target.name);
    if (before === undefined) return [{ effect: "neutral", rule: `targets.${target.name}`, what: "new" }];
    const using = next.playbooks.filter((playbook) => playbook.target === target.name).map(({ name }) => name);
    const found: Finding[] = [];
    const add = (effect: Effect, rule: string, what: string): void => {
      const finding = { effect, rule: `targets.${target.name}.${rule}`, what };
      found.push(...(using.length === 0 ? [finding] : using.map((playbook) => ({ ...finding, playbook }))));
    };
    const effect = using.length === 0 ? "neutral" : "unproved";
    if (before.kind !== target.kind) add(effect, "kind", `${before.kind} → ${target.kind}`);
    if (textOf(before.config) !== textOf(target.config))
      add(effect, "config", changedKeys(before.config, target.config));
    const [was, is] = [before.tags, target.tags].map((tags) => tags.toSorted(byText).join(", ") || "none");
    // What denials make of tags is compared playbook by playbook.
    if (was !== is) add("neutral", "tags", `${was} → ${is}`);
    if (before.summary !== target.summary) add("neutral", "summary", "another text");
    return found;
  });
}

/** Names of keys only: the values may be anything that a kind takes. */
function changedKeys(old: Policy["targets"][number]["config"], next: typeof old): string {
  const keys = [...new Set([...Object.keys(old), ...Object.keys(next)])].toSorted(byText);
  return `changed: ${keys.filter((key) => textOf(old[key]) !== textOf(next[key])).join(", ")}`;
}

/** Texts that change nobody's access. */
function compareTexts(old: Policy, next: Policy): readonly Finding[] {
  const found: Finding[] = [];
  const texts = (policy: Policy): ReadonlyMap<string, string> =>
    new Map([
      ...[...policy.reasons].map(([code, text]): [string, string] => [`reasons.${code}`, text]),
      ...policy.denials.map(({ name, why }): [string, string] => [`forbid.${name}.why`, why]),
    ]);
  const [before, after] = [texts(old), texts(next)];
  for (const rule of [...new Set([...before.keys(), ...after.keys()])].toSorted(byText)) {
    const [was, is] = [before.get(rule), after.get(rule)];
    if (was === is) continue;
    const what = was === undefined ? "declared" : is === undefined ? "not declared any more" : "another text";
    found.push({ effect: "neutral", rule, what });
  }
  return found;
}
