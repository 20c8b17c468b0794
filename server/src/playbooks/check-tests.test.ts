import { describe, expect, test } from "vitest";
import { runTests } from "./check-tests.ts";
import { measureCoverage, percentOf } from "./coverage.ts";
import { policyOf } from "./fixtures/folder.ts";
import type { Policy } from "./policy.ts";

const PEOPLE = `- { name: ann, roles: [requester], groups: [payments] }
- { name: bob, roles: [requester, approver], groups: [payments, leads] }
- { name: carla, roles: [approver], groups: [leads] }
- { name: dora, roles: [approver], groups: [duty] }
- { name: eve, roles: [approver], groups: [others] }
- { name: rick, roles: [requester], groups: [repair] }
- { name: zoe, roles: [requester], groups: [guests] }
- { name: sam, roles: [security_officer] }
`;

const RULES = `playbook: write
summary: Repair
target: orders
scope: { role: rw }
who: { oncall: payments, group: repair }
when: { reason: [outage], incident: SEV1, hours: { days: [mon-fri], from: "08:00", to: "18:00" } }
approve: { need: 2, from: [{ group: leads }, { group: duty }] }
time: { max: 45m }
limit: { uses: 2, per: 7d, concurrent: 1, cooldown: 1h }
`;
const FORBID = `reasons: { outage: Something does not work, data-loss: Data is being lost }
forbid:
  - { rule: no-guests, why: They only look, who: { user: rick }, hours: { days: [tue] } }
`;
const ASKED = "who: ann, oncall: [payments], incident: SEV1, reason: outage, for: 30m, approvedBy: [bob, dora]";

function policyWith(tests: readonly string[], rules = RULES): Promise<Policy> {
  const text = tests.length === 0 ? "" : `tests:\n${tests.map((line) => `  - ${line}\n`).join("")}`;
  return policyOf({
    ...{ "policy.yaml": FORBID, "people.yaml": PEOPLE, "playbooks/write.yaml": rules + text },
    "playbooks/read.yaml": undefined,
  });
}

const changed = (from: string, to: string): string => {
  if (!ASKED.includes(from)) throw new Error(`the request does not have ${from}`);
  return ASKED.replace(from, to);
};

describe("a test of a playbook", () => {
  test("that allows passes when the request and the opening are allowed", async () => {
    const [outcome] = runTests(await policyWith([`allow: { ${ASKED} }`]));
    expect(outcome).toMatchObject({ playbook: "write", passed: true, asked: "open" });
  });

  test("that allows fails where the request is denied, and names the clause", async () => {
    const [outcome] = runTests(await policyWith([`allow: { ${changed("for: 30m", "for: 2h")} }`]));
    expect(outcome).toMatchObject({ passed: false, asked: "request" });
    expect(outcome?.decision.clauses).toContainEqual(expect.objectContaining({ clause: "time.max", held: false }));
    expect(outcome?.decision.reasons).toHaveLength(1);
  });

  test("that allows fails where approvals are missing", async () => {
    const [outcome] = runTests(await policyWith([`allow: { ${changed("[bob, dora]", "[bob]")} }`]));
    expect(outcome).toMatchObject({ passed: false, asked: "open", decision: { missing: 1 } });
  });

  test("that denies passes where the request is denied, and where only the opening is", async () => {
    const [request, opening] = runTests(
      await policyWith([
        `deny: { ${changed("who: ann, oncall: [payments]", "who: zoe")} }`,
        `deny: { ${changed("[bob, dora]", "[bob]")} }`,
      ]),
    );
    expect(request).toMatchObject({ passed: true, asked: "request" });
    expect(opening).toMatchObject({ passed: true, asked: "open" });
  });

  test("that denies fails where everything is allowed", async () => {
    const [outcome] = runTests(await policyWith([`deny: { ${ASKED} }`]));
    expect(outcome).toMatchObject({ passed: false, decision: { allow: true } });
  });

  test("assumes no fact that it does not give", async () => {
    const without = ["incident: SEV1, ", "oncall: [payments], "].map((fact) => `deny: { ${changed(fact, "")} }`);
    expect(runTests(await policyWith(without)).map(({ passed }) => passed)).toEqual([true, true]);
  });

  test("may say that nobody knows a fact: a human's yes takes its place, and nothing opens without it", async () => {
    const unknown = changed("incident: SEV1", "unknown: [incident]");
    const tests = [`allow: { ${unknown} }`, `deny: { ${unknown.replace("[bob, dora]", "[bob]")} }`];
    expect(runTests(await policyWith(tests)).map(({ passed }) => passed)).toEqual([true, true]);
  });

  test("without a moment is asked within the playbook's hours, and outside of those of forbid", async () => {
    const tuesday = RULES.replace("[mon-fri]", "[tue, wed]");
    const own = "who: rick, incident: SEV1, reason: outage, approvedBy: [bob, dora]";
    const [outcome, later] = runTests(
      await policyWith([`allow: { ${own} }`, `deny: { ${own}, at: "2026-01-06T10:00Z" }`], tuesday),
    );
    expect(outcome).toMatchObject({ passed: true });
    expect(new Date(outcome?.atMs ?? 0).getUTCDay()).toBe(3);
    expect(later).toMatchObject({ passed: true });
  });

  test("runs alone when one playbook is asked for", async () => {
    const policy = await policyWith([`allow: { ${ASKED} }`]);
    expect(runTests(policy, "write")).toHaveLength(1);
    expect(runTests(policy, "another")).toEqual([]);
  });
});

/** One test for each clause; the name says which one it is about. */
const FULL: Readonly<Record<string, string>> = {
  "who.oncall:payments": `allow: { ${ASKED} }`,
  "who.group:repair": `allow: { ${changed("who: ann, oncall: [payments]", "who: rick")} }`,
  who: `deny: { ${changed("who: ann, oncall: [payments]", "who: zoe")} }`,
  "when.reason": `deny: { ${changed("reason: outage", "reason: data-loss")} }`,
  "when.incident": `deny: { ${changed("SEV1", "SEV2")} }`,
  "when.hours": `deny: { ${ASKED}, at: "2026-01-10T10:00Z" }`,
  "approve.from.1": `deny: { ${changed("[bob, dora]", "[eve, dora]")} }`,
  "approve.from.2": `deny: { ${changed("[bob, dora]", "[bob, eve]")} }`,
  "time.max": `deny: { ${changed("for: 30m", "for: 46m")} }`,
  "limit.uses": `deny: { ${ASKED}, unsigned: 2 }`,
  "limit.concurrent": `deny: { ${ASKED}, open: 1 }`,
  "limit.cooldown": `deny: { ${ASKED}, sinceLast: 30m }`,
  "forbid.no-guests": `deny: { ${changed("who: ann, oncall: [payments]", "who: rick")}, at: "2026-01-06T10:00Z" }`,
};

describe("coverage", () => {
  test("is whole where each clause has a test that it decides alone", async () => {
    const coverage = measureCoverage(await policyWith(Object.values(FULL)));
    expect(coverage.filter(({ covered }) => !covered)).toEqual([]);
    expect(coverage.map(({ clause }) => clause).toSorted()).toEqual(Object.keys(FULL).toSorted());
    expect(percentOf(coverage)).toBe(100);
  });

  test.each(Object.keys(FULL))("lacks %s, and nothing else, when its test is taken away", async (clause) => {
    const rest = Object.entries(FULL).flatMap(([name, text]) => (name === clause ? [] : [text]));
    const coverage = measureCoverage(await policyWith(rest));
    expect(coverage.filter(({ covered }) => !covered).map((missing) => missing.clause)).toEqual([clause]);
  });

  test("is not had by a denial that has two causes", async () => {
    const both = changed("for: 30m", "for: 2h").replace("reason: outage", "reason: data-loss");
    const coverage = measureCoverage(await policyWith([`deny: { ${both} }`]));
    expect(coverage.some(({ covered }) => covered)).toBe(false);
  });

  test("is not had by a test that fails", async () => {
    const coverage = measureCoverage(await policyWith([`deny: { ${ASKED} }`]));
    expect(coverage.some(({ covered }) => covered)).toBe(false);
  });

  test("leaves out clauses whose absence could change nothing", async () => {
    const everybody = `playbook: write
summary: Repair
target: orders
scope: { role: rw }
who: { group: [payments, repair, guests] }
when: { reason: [outage, data-loss] }
approve: { need: 0, from: { group: leads } }
time: { max: 45m }
`;
    const coverage = measureCoverage(await policyWith([], everybody));
    expect(coverage.map(({ clause }) => clause)).toEqual([
      ...["who.group:payments", "who.group:repair", "who.group:guests", "time.max", "forbid.no-guests"],
    ]);
  });

  test("counts one approval too few where the sides alone do not make the number", async () => {
    const three = RULES.replace("need: 2", "need: 3").replace("{ group: leads }", "{ group: [leads, others] }");
    const coverage = measureCoverage(await policyWith([`deny: { ${ASKED} }`], three));
    expect(coverage.filter(({ covered }) => covered).map(({ clause }) => clause)).toEqual(["approve.need"]);
  });

  test("of nothing is whole, and is rounded down", () => {
    const clause = (covered: boolean) => ({ clause: "who", covered, wanted: "" });
    expect(percentOf([])).toBe(100);
    expect(percentOf([clause(true), clause(true), clause(false)])).toBe(66);
  });
});
