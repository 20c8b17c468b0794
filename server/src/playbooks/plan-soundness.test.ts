import fc from "fast-check";
import { expect, test } from "vitest";
import { createPolicy } from "./decide.ts";
import { planPolicies } from "./plan.ts";
import type { Denial, Evidence, Hours, Person, Playbook, Policy, Question, Rota, Selector, Target } from "./policy.ts";
import { ROLES } from "./policy.ts";

/*
 * `widened: false` is a promise: no question is allowed by the new version that the old one refused. Random versions, and
 * versions with a few random edits, are asked random questions; one that was gained without the plan saying so is a defect.
 */

const NAMES = ["ann", "bob", "cyd", "dan", "eve"];
const GROUPS = ["g", "h", "i"];
const ROTAS = ["r", "s"];
const PLAYBOOKS = ["p", "q"];
const REASONS = ["outage", "theft"];
const SEVERITIES = ["SEV1", "SEV2"];
const ZONES = ["UTC", "Europe/Berlin"];
const MONDAY = Date.UTC(2026, 2, 2);

const SLOW_MS = 300_000; // ten seconds by itself; other tests run at the same time

type Content = Parameters<typeof createPolicy>[0];

const selector = (kinds: readonly Selector["by"][]): fc.Arbitrary<Selector> =>
  fc.constantFrom(...kinds).chain((by) => {
    const names = by === "oncall" ? ROTAS : by === "group" ? GROUPS : NAMES;
    return fc.constantFrom(...names).map((name) => ({ by, name }));
  });
const selectors = (kinds: readonly Selector["by"][], minLength: number): fc.Arbitrary<Selector[]> =>
  fc.uniqueArray(selector(kinds), { minLength, maxLength: 3, selector: ({ by, name }) => `${by} ${name}` });
const maybe = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> => fc.option(arbitrary, { nil: undefined });

const hours: fc.Arbitrary<Hours> = fc.record({
  days: fc.constantFrom([1, 2, 3, 4, 5], [6, 7], [1, 2, 3, 4, 5, 6, 7]),
  fromMinute: fc.constantFrom(0, 480, 1_200),
  toMinute: fc.constantFrom(360, 600, 1_440),
});

const person = (name: string): fc.Arbitrary<Person> =>
  fc.record({
    name: fc.constant(name),
    enabled: fc.constantFrom(true, true, true, true, true, true, true, false),
    roles: fc.oneof(fc.subarray([...ROLES]), {
      weight: 3,
      arbitrary: fc.constant(["requester" as const, "approver" as const]),
    }),
    groups: fc.subarray(GROUPS),
    aliases: fc.constantFrom([], [`${name}@x`]),
    notify: fc.constantFrom([], [`slack:${name}`]),
  });

const playbook = (name: string): fc.Arbitrary<Playbook> =>
  fc
    .record({
      target: fc.constantFrom("t", "u"),
      scope: fc.constantFrom({ allow: ["read"] }, { allow: ["read", "write"] }, { allow: ["read"], never: ["drop"] }),
      who: selectors(["oncall", "group", "user"], 1),
      when: fc
        .record({
          reasons: fc.subarray(REASONS, { minLength: 1 }),
          incident: maybe(fc.subarray(SEVERITIES, { minLength: 1 })),
          hours: maybe(fc.array(hours, { minLength: 1, maxLength: 2 })),
          zone: fc.constantFrom(...ZONES),
        })
        .map(({ reasons, incident, hours: times, zone }) => ({
          ...{ reasons, zone },
          ...(incident === undefined ? {} : { incident }),
          ...(times === undefined ? {} : { hours: times }),
        })),
      need: fc.integer({ min: 0, max: 2 }),
      from: fc.array(selectors(["group", "user"], 1), { maxLength: 2 }),
      withinMs: fc.constantFrom(40, 50),
      unanswered: maybe(fc.record({ afterMs: fc.constantFrom(10, 20), forMs: fc.constantFrom(5, 10) })),
      maxMs: fc.constantFrom(10, 20),
      extend: maybe(fc.record({ times: fc.integer({ min: 1, max: 2 }), byMs: fc.constantFrom(5, 10) })),
      limit: fc.record(
        {
          uses: fc.record({ count: fc.integer({ min: 1, max: 2 }), perMs: fc.constantFrom(100, 200) }),
          concurrent: fc.integer({ min: 1, max: 2 }),
          cooldownMs: fc.constantFrom(10, 20),
        },
        { requiredKeys: [] },
      ),
      review: fc.record({ by: selectors(["group", "user"], 0), withinMs: fc.constantFrom(100, 200) }),
    })
    .map(({ need, from, withinMs, unanswered, maxMs, extend, ...rest }) => ({
      ...{ name, summary: "", notify: [], hash: "", ...rest },
      approve: {
        need: from.length === 0 ? 0 : need === 0 ? 0 : Math.max(need, from.length),
        ...{ from, withinMs, ...(unanswered === undefined ? {} : { unanswered }) },
      },
      time: {
        maxMs,
        capMs: maxMs + (extend?.times ?? 0) * (extend?.byMs ?? 0),
        ...(extend === undefined ? {} : { extend }),
      },
    }));

const denial = (name: string): fc.Arbitrary<Denial> =>
  fc.record(
    {
      name: fc.constant(name),
      why: fc.constant("no"),
      who: selectors(["oncall", "group", "user"], 0),
      targets: fc.subarray(["t", "u"]),
      tags: fc.subarray(["pci"]),
      hours: fc.array(hours, { minLength: 1, maxLength: 1 }),
      zone: fc.constantFrom(...ZONES),
    },
    { requiredKeys: ["name", "why", "who", "targets", "tags", "zone"] },
  );

const target = (name: string): fc.Arbitrary<Target> =>
  fc.record({
    ...{ name: fc.constant(name), kind: fc.constant("k"), summary: fc.constant(""), hash: fc.constant("") },
    ...{ tags: fc.constantFrom([], ["pci"]), config: fc.constantFrom({ host: "a" }, { host: "b" }) },
  });

const rota = (name: string): fc.Arbitrary<Rota> =>
  fc.oneof(
    fc.subarray(NAMES).map((people) => ({ name, people })),
    fc.constant({ name, unknown: true as const }),
    fc.constant({ name, source: "pagerduty:main", ref: "P1" }),
  );

const content: fc.Arbitrary<Content> = fc.record({
  hash: fc.constant(""),
  people: fc.tuple(...NAMES.map(person)).chain((people) => fc.subarray(people, { minLength: 3 })),
  rotas: fc.tuple(...ROTAS.map(rota)),
  targets: fc.tuple(target("t"), target("u")),
  playbooks: fc.tuple(...PLAYBOOKS.map(playbook)).chain((all) => fc.subarray(all, { minLength: 1 })),
  reasons: fc.constant(new Map(REASONS.map((code) => [code, code]))),
  denials: fc.constantFrom([], [], ["d"], ["d", "e"]).chain((names) => fc.tuple(...names.map(denial))),
  tests: fc.constant(new Map<string, never>()),
});

/** The second version: the first with one thing taken from another, so that nothing else can be what widens. */
const versions: fc.Arbitrary<readonly [Content, Content]> = fc
  .record({
    ...{ old: content, other: content, one: fc.nat() },
    change: fc.constantFrom(
      ...(["people", "rotas", "targets", "playbooks", "denials", "person", "side"] as const),
      ...(["target", "who", "when", "when", "approve", "approve", "time", "limit", "limit", "review"] as const),
    ),
  })
  .map(({ old, other, one, change }) => {
    const next = (part: Partial<Content>): readonly [Content, Content] => [old, { ...old, ...part }];
    switch (change) {
      case "people":
      case "rotas":
      case "targets":
      case "playbooks":
      case "denials":
        return next({ [change]: other[change] });
      case "person":
        return next({
          people: old.people.map((known, i) =>
            i === one % old.people.length ? (other.people.find(({ name }) => name === known.name) ?? known) : known,
          ),
        });
      case "side":
        return next({
          playbooks: old.playbooks.map((known) => {
            const all = known.approve.from.flat();
            const from = one % 2 === 0 ? known.approve.from.slice(0, 1) : all.length === 0 ? [] : [all];
            return { ...known, approve: { ...known.approve, from } };
          }),
        });
      default:
        return next({
          playbooks: old.playbooks.map((known) => {
            const source = other.playbooks.find(({ name }) => name === known.name) ?? known;
            return { ...known, [change]: source[change] };
          }),
        });
    }
  });

const anyone = fc.constantFrom(...NAMES, ...NAMES, ...NAMES.map((name) => `${name}@x`));
const several = fc.oneof(fc.constant(NAMES), fc.array(anyone, { maxLength: 3 }));
const facts = fc.record({
  oncall: fc.dictionary(fc.constantFrom(...ROTAS), fc.constantFrom<Evidence>("true", "true", "false", "unknown")),
  incident: fc.oneof(
    fc.constantFrom(...SEVERITIES).map((severity) => ({ state: "open" as const, severity })),
    fc.constantFrom({ state: "none" as const }, { state: "unknown" as const }),
  ),
  usage: fc.record(
    {
      ...{
        unsigned: fc.constantFrom(0, 0, 1, 2),
        open: fc.constantFrom(0, 0, 1, 2),
        overdue: fc.constantFrom(0, 0, 0, 1),
      },
      sinceLastMs: fc.constantFrom(5, 15, 25),
    },
    { requiredKeys: ["unsigned", "open", "overdue"] },
  ),
  atMs: fc.integer({ min: 0, max: 7 * 24 * 4 }).map((quarters) => MONDAY + quarters * 900_000),
});
const asker = { person: anyone, playbook: fc.constantFrom(...PLAYBOOKS), reason: fc.constantFrom(...REASONS), facts };
const use = { ...asker, durationMs: fc.constantFrom(5, 5, 10, 20) };
const grant = { person: anyone, playbook: fc.constantFrom(...PLAYBOOKS), requester: anyone };
const question: fc.Arbitrary<Question> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ ...use, action: fc.constantFrom("request", "open"), approvedBy: several }) },
  fc.record({
    ...{ ...use, action: fc.constant("open_unanswered" as const), waitedMs: fc.constantFrom(15, 25, 45) },
    ...{ paged: fc.constantFrom(true, true, false), denied: fc.constantFrom(false, false, true) },
  }),
  fc
    .record({
      ...{ ...asker, action: fc.constantFrom("request_extension", "extend"), approvedBy: several },
      ...{ byMs: fc.constantFrom(5, 10), totalMs: fc.constantFrom(10, 20, 40), extensions: fc.constantFrom(0, 1) },
    })
    .map((asked) => ({ ...asked, requester: asked.person })),
  fc.record({
    ...{ ...grant, action: fc.constantFrom("approve", "deny"), ageMs: fc.constantFrom(10, 45) },
    approvedBy: fc.array(anyone, { maxLength: 2 }),
  }),
  fc.record({
    ...grant,
    action: fc.constantFrom(
      ...([
        "read_grant",
        "withdraw",
        "connect",
        "end",
        "kill",
        "read_recording",
        "watch_session",
        "sign_review",
      ] as const),
    ),
  }),
  fc.record({ person: anyone, action: fc.constantFrom("list_playbooks", "read_log", "check_target", "reload_policy") }),
);

/** The question with what the playbook asks for, so that few clauses stand in the way; most random ones are refused by all. */
function fitting(asked: Question, { playbooks, people }: Content): Question {
  if (!("facts" in asked)) return asked;
  const found = playbooks.find(({ name }) => name === asked.playbook);
  const [severity] = found?.when.incident ?? [];
  const [reason = asked.reason] = found?.when.reasons ?? [];
  const users = people.filter(
    ({ enabled, roles, groups, name }) =>
      enabled &&
      roles.includes("requester") &&
      found?.who.some((one) => one.by === "oncall" || one.name === name || groups.includes(one.name)),
  );
  const user = users[(asked.facts.atMs / 900_000) % users.length]?.name ?? asked.person;
  return {
    ...{ ...asked, reason, person: user },
    ...("requester" in asked ? { requester: user } : {}),
    facts: {
      ...asked.facts,
      oncall: { r: "true", s: "true" },
      incident: severity === undefined ? { state: "none" } : { state: "open", severity },
    },
  };
}

test(
  "where the plan does not say that access widened, no random question is gained",
  () => {
    const seen = { quiet: 0, gained: 0, witnessed: 0 };
    const questions = fc.noBias(fc.array(fc.tuple(question, fc.nat(4)), { minLength: 100, maxLength: 100 }));
    fc.assert(
      fc.property(fc.noBias(versions), questions, ([before, after], asked) => {
        const [old, next] = [createPolicy(before), createPolicy(after)];
        const plan = planPolicies(old, next);
        if (!plan.widened) seen.quiet++;
        seen.witnessed += plan.changes.filter(({ witness }) => witness !== undefined).length;
        for (const [random, choice] of asked) {
          const one = choice === 0 ? random : fitting(random, choice === 1 ? before : after);
          if (!next.decide(one).allow || old.decide(one).allow) continue;
          seen.gained++;
          expect({ widened: plan.widened, one }).toEqual({ widened: true, one });
        }
      }),
      { numRuns: 120 },
    );
    // The property says nothing if nothing is ever gained, or if every plan cries.
    expect(seen.gained).toBeGreaterThan(10);
    expect(seen.quiet).toBeGreaterThan(10);
    expect(seen.witnessed).toBeGreaterThan(20);
  },
  SLOW_MS,
);

test("two versions that are the same give an empty plan", () => {
  fc.assert(
    fc.property(content, (one) => {
      const plan = planPolicies(createPolicy(one), createPolicy(structuredClone(one)));
      expect(plan).toMatchObject({ widened: false, changes: [], people: [] });
    }),
    { numRuns: 20 },
  );
});

test("every witness is refused by the old version and allowed by the new one", () => {
  let witnesses = 0;
  const pairs = fc.noBias(fc.tuple(content, content));
  fc.assert(
    fc.property(pairs, ([before, after]) => {
      const [old, next]: [Policy, Policy] = [createPolicy(before), createPolicy(after)];
      for (const { witness, effect } of planPolicies(old, next).changes) {
        if (witness === undefined) continue;
        expect(effect).toBe("widens");
        expect(next.decide(witness.question).allow).toBe(true);
        expect(old.decide(witness.before).allow).toBe(false);
        witnesses++;
      }
    }),
    { numRuns: 20 },
  );
  expect(witnesses).toBeGreaterThan(20);
});
