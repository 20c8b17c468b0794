import fc from "fast-check";
import { expect, test } from "vitest";
import { createPolicy } from "./decide.ts";
import type { Evidence, Person, Playbook, Question, Selector } from "./policy.ts";
import { ROLES } from "./policy.ts";

/*
 * A second, plain and slow reading of the same rules, written from docs/playbooks.md without Cedar. The property below
 * holds the compiled policies against it.
 */

const NAMES = ["ann", "bob", "cyd", "dan"];
const GROUPS = ["g", "h"];
const ROTAS = ["r", "s"];
const REASONS = ["outage", "theft"];

interface World {
  people: readonly Person[];
  playbook: Playbook;
}

function human(world: World, id: string): Person | undefined {
  return world.people.find((person) => person.name === id || person.aliases.includes(id));
}

function mayApprove(world: World, person: Person, requester: Person): boolean {
  if (!person.enabled || !person.roles.includes("approver") || person === requester) return false;
  return world.playbook.approve.from.some(({ by, name }) =>
    by === "group" ? person.groups.includes(name) : by === "user" && human(world, name) === person,
  );
}

function reference(world: World, question: Question): { allow: boolean; need: number; missing: number } {
  const { playbook } = world;
  const no = { allow: false, need: 0, missing: 0 };
  const person = human(world, question.person);
  if (person === undefined) return no;
  if (question.action === "approve" || question.action === "deny") {
    const requester = human(world, question.requester);
    if (requester === undefined || !mayApprove(world, person, requester)) return no;
    if (question.ageMs < 0 || question.ageMs >= playbook.approve.withinMs) return no;
    const again = question.approvedBy.some((id) => human(world, id) === person);
    return { ...no, allow: question.action === "deny" || !again };
  }
  if (!("facts" in question)) {
    if (!person.enabled || !("requester" in question)) return no;
    const own = human(world, question.requester) === person;
    const overseer = playbook.approve.from.some(({ by, name }) =>
      by === "group" ? person.groups.includes(name) : human(world, name) === person,
    );
    const asApprover = overseer && person.roles.includes("approver");
    const officer = person.roles.includes("security_officer");
    const auditor = person.roles.includes("auditor");
    switch (question.action) {
      case "read_grant":
        return { ...no, allow: own || asApprover || officer || auditor };
      case "end":
        return { ...no, allow: own || asApprover || officer };
      case "withdraw":
        return { ...no, allow: own };
      case "connect":
        return { ...no, allow: own && person.roles.includes("requester") };
      case "kill":
        return { ...no, allow: officer };
      case "read_recording":
      case "watch_session":
        return { ...no, allow: officer || auditor };
    }
  }
  const others = world.people.filter((other) => mayApprove(world, other, person));
  const acting = question.action === "open" || question.action === "extend";
  const yes = new Set(
    (question.approvedBy ?? []).map((id) => human(world, id)).filter((other) => other && others.includes(other)),
  );
  const given = acting ? yes.size : 0;
  let sure = false;
  let perhaps = false;
  for (const { by, name } of playbook.who) {
    if (by === "group" && person.groups.includes(name)) sure = true;
    if (by === "user" && human(world, name) === person) sure = true;
    if (by === "oncall" && question.facts.oncall[name] === "true") sure = true;
    if (by === "oncall" && (question.facts.oncall[name] ?? "unknown") === "unknown" && others.length > 0)
      perhaps = true;
  }
  const need = !sure && perhaps ? Math.max(1, playbook.approve.need) : playbook.approve.need;
  const missing = Math.max(0, need - given);
  let allow = person.enabled && person.roles.includes("requester") && (sure || perhaps);
  allow &&= playbook.reasons.includes(question.reason);
  if (question.action === "request" || question.action === "open") {
    allow &&= question.durationMs > 0 && question.durationMs <= playbook.time.maxMs;
  } else if (question.action === "request_extension" || question.action === "extend") {
    allow &&= human(world, question.requester) === person;
    const extend = playbook.time.extend;
    allow &&= extend !== undefined && question.byMs > 0 && question.byMs <= extend.byMs;
    allow &&= question.extensions >= 0 && question.extensions < (extend?.times ?? 0);
    allow &&= question.totalMs > 0 && question.totalMs <= playbook.time.capMs;
  }
  allow &&= acting ? missing === 0 : others.length >= need;
  return { allow, need, missing };
}

const selector = (kinds: readonly Selector["by"][]): fc.Arbitrary<Selector> =>
  fc.constantFrom(...kinds).chain((by) => {
    const names = by === "oncall" ? ROTAS : by === "group" ? GROUPS : NAMES;
    return fc.constantFrom(...names).map((name) => ({ by, name }));
  });

/** Often the value that is within limits, so that other clauses decide. */
function mostly(usual: number, min: number, max: number): fc.Arbitrary<number> {
  return fc.oneof({ arbitrary: fc.constant(usual), weight: 2 }, { arbitrary: fc.integer({ min, max }), weight: 1 });
}

const arbitraryPeople = fc
  .tuple(
    ...NAMES.map((name) =>
      fc.record({
        name: fc.constant(name),
        enabled: fc.constantFrom(true, true, true, true, true, true, false),
        roles: fc.oneof(
          { arbitrary: fc.subarray([...ROLES]), weight: 1 },
          { arbitrary: fc.constant(["requester" as const, "approver" as const]), weight: 3 },
        ),
        groups: fc.constantFrom(["g"], ["g", "h"], ["h"], []),
        aliases: fc.constant([`${name}@x`]),
      }),
    ),
  )
  .chain((people) => fc.subarray(people, { minLength: 3 }));

const PLAYBOOKS = ["p", "q", "r", "s", "t"];
const arbitraryPlaybook = (name: string): fc.Arbitrary<Playbook> =>
  fc
    .record({
      who: fc.uniqueArray(selector(["oncall", "oncall", "group", "user"]), {
        minLength: 1,
        maxLength: 3,
        selector: (s) => `${s.by} ${s.name}`,
      }),
      from: fc.oneof(
        { arbitrary: fc.constant([]), weight: 1 },
        { arbitrary: fc.constant<Selector[]>([{ by: "group", name: "g" }]), weight: 2 },
        {
          arbitrary: fc.uniqueArray(selector(["group", "user"]), {
            maxLength: 3,
            selector: (s) => `${s.by} ${s.name}`,
          }),
          weight: 2,
        },
      ),
      need: fc.integer({ min: 0, max: 2 }),
      reasons: fc.subarray(REASONS, { minLength: 1 }),
      extend: fc.option(fc.record({ times: fc.integer({ min: 1, max: 2 }), byMs: fc.constant(10) }), {
        nil: undefined,
      }),
    })
    .map(({ who, from, need, reasons, extend }): Playbook => ({
      ...{ name, summary: "", target: "t", scope: {}, hash: "", who, reasons },
      approve: { need: from.length === 0 ? 0 : need, from, withinMs: 50 },
      time: { maxMs: 20, capMs: 20 + 10 * (extend?.times ?? 0), ...(extend === undefined ? {} : { extend }) },
    }));

const arbitraryPlaybooks = fc.tuple(...PLAYBOOKS.map(arbitraryPlaybook));
const anyone = fc.constantFrom(...NAMES, ...NAMES, ...NAMES.map((name) => `${name}@x`), "nobody");
const facts = fc
  .dictionary(fc.constantFrom(...ROTAS), fc.constantFrom<Evidence>("true", "false", "unknown"))
  .map((oncall) => ({ oncall }));
const common = { person: anyone, playbook: fc.constantFrom(...PLAYBOOKS), reason: fc.constantFrom(...REASONS), facts };
const approvedBy = fc.oneof(fc.constant(NAMES), fc.array(anyone, { maxLength: 4 }));
const arbitraryQuestion: fc.Arbitrary<Question> = fc.oneof(
  fc.record({ ...common, approvedBy, action: fc.constantFrom("request", "open"), durationMs: mostly(10, -1, 25) }),
  fc.record({
    ...{ ...common, approvedBy, action: fc.constantFrom("request_extension", "extend"), requester: anyone },
    byMs: mostly(10, -1, 12),
    totalMs: mostly(30, -1, 45),
    extensions: mostly(0, -1, 3),
  }),
  fc.record({
    ...{
      action: fc.constantFrom("approve", "deny"),
      person: anyone,
      playbook: fc.constantFrom(...PLAYBOOKS),
      requester: anyone,
    },
    ...{ ageMs: mostly(10, -1, 55), approvedBy: fc.array(anyone, { maxLength: 2 }) },
  }),
  fc.record({
    action: fc.constantFrom("read_grant", "withdraw", "connect", "end", "kill", "read_recording", "watch_session"),
    ...{ person: anyone, playbook: fc.constantFrom(...PLAYBOOKS), requester: anyone },
  }),
);

test("the compiled Cedar policies and a plain reference agree on random playbooks, people and questions", () => {
  const seen = { allowed: 0, denied: 0, raised: 0 };
  // Without fast-check's bias to small values, which would make most people of each world alike.
  const worlds = fc.noBias(fc.tuple(arbitraryPeople, arbitraryPlaybooks));
  const questions = fc.noBias(fc.array(arbitraryQuestion, { minLength: 120, maxLength: 120 }));
  fc.assert(
    fc.property(worlds, questions, ([people, playbooks], asked) => {
      const policy = createPolicy({ hash: "", people, rotas: [], targets: [], playbooks });
      for (const question of asked) {
        const playbook = playbooks.find(({ name }) => "playbook" in question && name === question.playbook);
        if (playbook === undefined) throw new Error("every question here is about a playbook");
        const { allow, need, missing, reasons, wouldHold, clauses } = policy.decide(question);
        expect({ allow, need, missing }).toEqual(reference({ people, playbook }, question));
        expect(reasons.length === 0).toBe(allow);
        expect(wouldHold.length === 0).toBe(allow);
        expect(clauses.some(({ clause }) => clause === "glasskey.evaluation")).toBe(false);
        seen[allow ? "allowed" : "denied"]++;
        if (need > playbook.approve.need) seen.raised++;
      }
    }),
    { numRuns: 50 },
  );
  // The property says nothing if nearly all random questions are refused.
  expect(seen.allowed).toBeGreaterThan(200);
  expect(seen.denied).toBeGreaterThan(200);
  expect(seen.raised).toBeGreaterThan(10);
});

test("whom the policy lists as eligible approvers is exactly whom Cedar lets approve", () => {
  fc.assert(
    fc.property(arbitraryPeople, arbitraryPlaybooks, fc.constantFrom(...NAMES), (people, playbooks, requester) => {
      const policy = createPolicy({ hash: "", people, rotas: [], targets: [], playbooks });
      for (const playbook of PLAYBOOKS) {
        const consent = { action: "approve", playbook, requester, ageMs: 0, approvedBy: [] } as const;
        const allowed = people.filter(({ name }) => policy.decide({ ...consent, person: name }).allow);
        expect(policy.eligibleApprovers(playbook, requester)).toEqual(allowed);
      }
    }),
    { numRuns: 30 },
  );
});
