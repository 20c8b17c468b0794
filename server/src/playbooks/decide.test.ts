import { describe, expect, test } from "vitest";
import { emptyFacts } from "./facts.ts";
import { policyOf, SMALL } from "./fixtures/folder.ts";
import type { Decision, Facts, Policy, Question } from "./policy.ts";
import { ROLES } from "./policy.ts";
import { GRANT_VERBS, INSTALLATION_VERBS } from "./verbs.ts";

const WRITE = `playbook: write
summary: Repair
target: orders
scope: { role: rw }
who: { oncall: payments, group: leads }
when: { reason: [outage, data-loss] }
approve: { need: 1, from: { group: [leads, duty] }, within: 10m }
time: { max: 45m, extend: 2x30m }
`;
const QUORUM = WRITE.replace("playbook: write", "playbook: quorum").replace("need: 1", "need: 2");
const known = (oncall: Facts["oncall"]): Facts => ({ ...emptyFacts(Date.UTC(2026, 10, 20, 12)), oncall });
const ANN_ON_CALL = known({ payments: "true" });

async function small(more: Record<string, string> = {}): Promise<Policy> {
  return policyOf({ "playbooks/write.yaml": WRITE, ...more });
}

function request(policy: Policy, change: Partial<Extract<Question, { action: "request" | "open" }>> = {}): Decision {
  const question = {
    action: "request",
    person: "ann",
    playbook: "write",
    reason: "outage",
    durationMs: 60_000,
  } as const;
  return policy.decide({ ...question, facts: ANN_ON_CALL, ...change });
}

function consent(policy: Policy, change: Partial<Extract<Question, { action: "approve" | "deny" }>> = {}): Decision {
  const question = { action: "approve", person: "bob", playbook: "write", requester: "ann", ageMs: 1_000 } as const;
  return policy.decide({ ...question, approvedBy: [], ...change });
}

function failed(decision: Decision): string[] {
  return decision.clauses.filter(({ held }) => !held).map(({ clause }) => clause);
}

describe("a request", () => {
  test("within every clause is allowed, and says how many approvals it needs", async () => {
    const policy = await small();
    expect(request(policy)).toMatchObject({ allow: true, need: 1, missing: 1, reasons: [], wouldHold: [] });
    expect(request(policy, { playbook: "read" })).toMatchObject({ allow: true, need: 0, missing: 0 });
  });

  test("is refused with each clause that failed, why, and what would have to be true", async () => {
    const decision = request(await small(), {
      ...{ person: "sam", reason: "curiosity", durationMs: 46 * 60_000, facts: known({ payments: "false" }) },
    });
    expect(decision.allow).toBe(false);
    expect(failed(decision)).toEqual([
      ...["glasskey.role.requester", "who.oncall:payments", "who.group:leads", "when.reason", "time.max"],
    ]);
    expect(decision.reasons).toEqual([
      "sam does not have the role requester.",
      "sam is not on call for payments or in group leads.",
      '"curiosity" is not a reason that write accepts.',
      "46m is longer than the 45m that write gives at most.",
    ]);
    expect(decision.wouldHold).toEqual([
      "Allowed for people with the role requester; no other role implies it.",
      "Allowed if sam is on call for payments or in group leads.",
      "Allowed with a reason of: outage, data-loss.",
      "Allowed for 45m or less.",
    ]);
  });

  test("of exactly the cap is allowed; a millisecond more, nothing, less than nothing and fractions are not", async () => {
    const policy = await small();
    expect(request(policy, { durationMs: 45 * 60_000 }).allow).toBe(true);
    for (const durationMs of [45 * 60_000 + 1, 0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60]) {
      expect(failed(request(policy, { durationMs })), String(durationMs)).toEqual(["who.group:leads", "time.max"]);
    }
  });

  test("by somebody who is not there, or who is not enabled, is refused", async () => {
    const policy = await small({
      "people.yaml": `${SMALL["people.yaml"]}- { name: eve, roles: [requester], groups: [leads], enabled: false }\n`,
    });
    expect(failed(request(policy, { person: "mallory" }))).toEqual(["glasskey.person"]);
    expect(request(policy, { person: "mal\u202Elory\n" }).reasons).toEqual(['There is no person "mal?lory?".']);
    expect(failed(request(policy, { person: "eve" }))).toContain("glasskey.enabled");
    expect(request(policy, { person: "eve" }).allow).toBe(false);
  });

  test("for a playbook that does not exist is refused", async () => {
    expect(failed(request(await small(), { playbook: "constructor" }))).toEqual(["glasskey.playbook"]);
  });

  test("that could never be approved is refused at once", async () => {
    const policy = await small({ "playbooks/quorum.yaml": QUORUM });
    expect(request(policy, { playbook: "quorum" })).toMatchObject({ allow: true, need: 2 });
    // bob is one of the two who may approve, so for his own request one is left
    const decision = request(policy, { playbook: "quorum", person: "bob" });
    expect(failed(decision)).toContain("approve.reach");
    expect(decision.reasons).toEqual(["2 must approve, and only 1 other than bob could."]);
  });
});

describe("on call that nobody knows", () => {
  const unknowns = [known({ payments: "unknown" }), known({}), known({ payments: "maybe" as "unknown" })];
  const automatic = WRITE.replace("need: 1", "need: 0").replace(", group: leads }\nwhen", " }\nwhen");

  test("turns an automatic opening into one that needs a human, and is not an approval", async () => {
    const policy = await small({ "playbooks/write.yaml": automatic });
    expect(request(policy)).toMatchObject({ allow: true, need: 0 });
    for (const facts of unknowns) {
      expect(request(policy, { facts })).toMatchObject({ allow: true, need: 1, missing: 1 });
      expect(request(policy, { facts, action: "open" })).toMatchObject({ allow: false, need: 1, missing: 1 });
      expect(request(policy, { facts, action: "open", approvedBy: ["ann"] })).toMatchObject({
        allow: false,
        missing: 1,
      });
      expect(request(policy, { facts, action: "open", approvedBy: ["bob"] })).toMatchObject({
        allow: true,
        missing: 0,
      });
    }
  });

  test("lets nobody in where the playbook names nobody who could approve, and says so", async () => {
    const decision = request(await small(), { playbook: "read", facts: known({}) });
    expect(decision.allow).toBe(false);
    expect(decision.clauses.find(({ clause }) => clause === "who.oncall:payments")).toMatchObject({
      held: false,
      unknown: true,
    });
    expect(decision.reasons).toEqual([
      "Whether ann is on call for payments is unknown, and read names nobody who could approve instead.",
    ]);
  });

  test("is no matter for a person whom another alternative lets in", async () => {
    const policy = await small({ "playbooks/write.yaml": WRITE.replace("need: 1", "need: 0") });
    expect(request(policy, { person: "bob", facts: known({}) })).toMatchObject({ allow: true, need: 0 });
  });

  test("is not taken from an inherited property of the facts", async () => {
    const files = {
      "oncall.yaml": "constructor: [ann]\n",
      "playbooks/read.yaml": `${SMALL["playbooks/read.yaml"]}`.replace("payments", "constructor"),
    };
    const policy = await policyOf(files);
    expect(request(policy, { playbook: "read", facts: known({}) })).toMatchObject({ allow: false });
    expect(request(policy, { playbook: "read", facts: known({ constructor: "true" as const }) })).toMatchObject({
      allow: true,
    });
  });

  test("never stands for no: what is known to be false stays refused", async () => {
    const policy = await small({ "playbooks/write.yaml": automatic });
    expect(request(policy, { facts: known({ payments: "false" }) })).toMatchObject({ allow: false, need: 0 });
  });
});

describe("opening", () => {
  test("asks again: who, reason and duration, with approvals counted now", async () => {
    const policy = await small();
    expect(request(policy, { action: "open", approvedBy: ["bob"] }).allow).toBe(true);
    expect(request(policy, { action: "open", approvedBy: ["bob"], facts: known({ payments: "false" }) }).allow).toBe(
      false,
    );
    expect(request(policy, { action: "open", approvedBy: [] })).toMatchObject({
      ...{ allow: false, missing: 1, reasons: ["0 of 1 approval given; 1 missing."] },
    });
  });

  test("lesson 8: more approvals than needed are enough, not too many", async () => {
    expect(request(await small(), { action: "open", approvedBy: ["bob", "carla"] })).toMatchObject({
      allow: true,
      missing: 0,
    });
  });

  test("lesson 8: one approver in two groups, or under two names, is one person", async () => {
    const policy = await small({ "playbooks/quorum.yaml": QUORUM });
    const open = { action: "open", playbook: "quorum" } as const;
    // carla is in both groups of approve.from
    expect(request(policy, { ...open, approvedBy: ["carla", "carla"] })).toMatchObject({ allow: false, missing: 1 });
    expect(request(policy, { ...open, approvedBy: ["bob", "bob@shop.example", "BOB"] })).toMatchObject({
      allow: false,
      missing: 1,
    });
    expect(request(policy, { ...open, approvedBy: ["bob", "carla"] })).toMatchObject({ allow: true, missing: 0 });
    expect(policy.eligibleApprovers("quorum", "ann").map(({ name }) => name)).toEqual(["bob", "carla"]);
  });

  test("does not count a yes of somebody who may not approve any more", async () => {
    const gone = `${SMALL["people.yaml"]}`.replace(
      "carla, roles: [approver], groups: [leads, duty]",
      "carla, roles: [approver], groups: [other]",
    );
    const policy = await small({
      "people.yaml": gone,
      "playbooks/write.yaml": WRITE.replace("[leads, duty]", "leads"),
    });
    expect(request(policy, { action: "open", approvedBy: ["carla"] })).toMatchObject({ allow: false, missing: 1 });
    expect(request(policy, { action: "open", approvedBy: ["sam", "mallory", ""] })).toMatchObject({
      allow: false,
      missing: 1,
    });
  });
});

describe("an approval", () => {
  test("counts from an approver whom the playbook names, before the deadline, once", async () => {
    const policy = await small();
    expect(consent(policy).allow).toBe(true);
    expect(failed(consent(policy, { ageMs: 10 * 60_000 }))).toEqual(["approve.from.group:duty", "approve.within"]);
    expect(consent(policy, { ageMs: 10 * 60_000 - 1 }).allow).toBe(true);
    expect(consent(policy, { ageMs: -1 }).allow).toBe(false);
    expect(consent(policy, { approvedBy: ["BOB@shop.example"] }).reasons).toEqual(["bob has approved already."]);
    expect(consent(policy, { person: "ann" }).reasons).toContain("ann does not have the role approver.");
    expect(consent(policy, { person: "sam" }).allow).toBe(false);
  });

  test("lesson 7: is never the requester's own, under no alias and in no case of letters", async () => {
    const policy = await small();
    for (const person of ["bob", "bob@shop.example", "BOB", "Bob@Shop.Example"]) {
      for (const requester of ["bob", "bob@shop.example", "BOB"]) {
        const decision = consent(policy, { person, requester });
        expect(failed(decision)).toContain("glasskey.not-requester");
        expect(decision).toMatchObject({
          allow: false,
          reasons: ["bob made this request, and nobody decides about their own."],
        });
      }
      expect(request(policy, { person: "bob", action: "open", approvedBy: [person] })).toMatchObject({
        allow: false,
        missing: 1,
      });
    }
    expect(policy.eligibleApprovers("write", "bob@shop.example").map(({ name }) => name)).toEqual(["carla"]);
  });

  test("lesson 7: an admin, and a person with every role, cannot approve his own request", async () => {
    const people = `${SMALL["people.yaml"]}- { name: root, roles: [${ROLES.join(", ")}], groups: [leads] }\n- { name: max, roles: [admin], groups: [leads] }\n`;
    const policy = await small({ "people.yaml": people });
    expect(consent(policy, { person: "root", requester: "root" }).allow).toBe(false);
    expect(consent(policy, { person: "root", requester: "ann" }).allow).toBe(true);
    // admin is no approver, even in the right group
    expect(failed(consent(policy, { person: "max" }))).toContain("glasskey.role.approver");
    expect(failed(request(policy, { person: "max" }))).toContain("glasskey.role.requester");
  });

  test("is refused when nobody can tell any more who asked", async () => {
    expect(failed(consent(await small(), { requester: "someone-who-left" }))).toEqual(["glasskey.requester"]);
  });

  test("a no has the same rules, but may follow a yes", async () => {
    const policy = await small();
    expect(consent(policy, { action: "deny", approvedBy: ["bob"] }).allow).toBe(true);
    expect(consent(policy, { action: "deny", requester: "bob" }).allow).toBe(false);
  });
});

describe("an extension", () => {
  const ask = (
    policy: Policy,
    change: Partial<Extract<Question, { action: "request_extension" | "extend" }>>,
  ): Decision =>
    policy.decide({
      ...{
        action: "request_extension",
        person: "ann",
        playbook: "write",
        requester: "ann",
        reason: "outage",
        facts: ANN_ON_CALL,
      },
      ...{ byMs: 30 * 60_000, totalMs: 75 * 60_000, extensions: 0, ...change },
    });

  test("is a new decision: by the requester, still on call, so often, by so much, with approvals of its own", async () => {
    const policy = await small();
    expect(ask(policy, {})).toMatchObject({ allow: true, need: 1 });
    expect(ask(policy, { action: "extend" })).toMatchObject({ allow: false, missing: 1 });
    expect(ask(policy, { action: "extend", approvedBy: ["carla"] })).toMatchObject({ allow: true });
    expect(failed(ask(policy, { extensions: 2 }))).toContain("time.extend");
    expect(failed(ask(policy, { byMs: 31 * 60_000 }))).toContain("time.extend");
    expect(ask(policy, { facts: known({ payments: "false" }) }).allow).toBe(false);
    expect(failed(ask(policy, { person: "bob", requester: "ann" }))).toContain("glasskey.own");
  });

  test("never passes the cap, and is impossible where the playbook does not speak of it", async () => {
    const policy = await small();
    expect(policy.playbook("write")?.time.capMs).toBe(105 * 60_000);
    expect(ask(policy, { totalMs: 105 * 60_000 }).allow).toBe(true);
    expect(failed(ask(policy, { totalMs: 105 * 60_000 + 1 }))).toContain("time.cap");
    expect(ask(policy, { playbook: "read" }).reasons).toContain("read cannot be extended.");
  });
});

describe("verbs", () => {
  const people = `${ROLES.map((role) => `- { name: ${role.replace("_", "-")}, roles: [${role}] }`).join("\n")}
- { name: ann, roles: [requester], groups: [payments] }
- { name: bob, roles: [approver], groups: [leads] }
- { name: loose, roles: [requester], groups: [leads] }
`;
  const about = { playbook: "write", requester: "ann" } as const;

  test("are open to the roles that name them, and to no other", async () => {
    const policy = await small({
      "people.yaml": people,
      "playbooks/write.yaml": WRITE.replace("[leads, duty]", "leads"),
    });
    const who = ["requester", "approver", "security-officer", "auditor", "admin", "ann", "bob", "loose"];
    const allowed = (question: (person: string) => Question): string =>
      who.filter((person) => policy.decide(question(person)).allow).join(" ");
    const grantVerbs = Object.keys(GRANT_VERBS) as (keyof typeof GRANT_VERBS)[];
    expect(
      Object.fromEntries(grantVerbs.map((action) => [action, allowed((person) => ({ action, person, ...about }))])),
    ).toEqual({
      read_grant: "security-officer auditor ann bob",
      withdraw: "ann",
      connect: "ann",
      end: "security-officer ann bob",
      kill: "security-officer",
      read_recording: "security-officer auditor",
      watch_session: "security-officer auditor",
      hold_recording: "security-officer",
      release_hold: "security-officer",
      erase_recording: "security-officer",
      sign_review: "security-officer",
    });
    const others = Object.keys(INSTALLATION_VERBS) as (keyof typeof INSTALLATION_VERBS)[];
    expect(Object.fromEntries(others.map((action) => [action, allowed((person) => ({ action, person }))]))).toEqual({
      list_playbooks: who.join(" "),
      list_grants: who.join(" "),
      read_log: "security-officer auditor",
      manage_log_keys: "admin",
      read_people: "security-officer auditor admin",
      read_targets: "security-officer auditor admin",
      check_target: "admin",
      read_alarms: "security-officer auditor admin",
      read_reports: "security-officer auditor admin",
      read_holds: "security-officer auditor",
      reload_policy: "admin",
    });
  });

  test("end and kill stay possible when the playbook or the requester is gone", async () => {
    const policy = await small();
    const gone = { playbook: "removed", requester: "left" } as const;
    expect(policy.decide({ action: "kill", person: "sam", ...gone }).allow).toBe(true);
    expect(policy.decide({ action: "end", person: "sam", ...gone }).allow).toBe(true);
    expect(policy.decide({ action: "end", person: "ann", playbook: "removed", requester: "ann" }).allow).toBe(true);
    expect(policy.decide({ action: "end", person: "bob", playbook: "removed", requester: "ann" }).allow).toBe(false);
    expect(policy.decide({ action: "kill", person: "left", ...gone }).allow).toBe(false);
    expect(policy.decide({ action: "connect", person: "(unknown)", ...gone }).allow).toBe(false);
  });

  test("say what would have to be true", async () => {
    expect(
      (await small()).decide({ action: "end", person: "carla", playbook: "removed", requester: "ann" }),
    ).toMatchObject({
      ...{
        reasons: ["carla may not end this grant."],
        wouldHold: ["Allowed for: the grant's requester or role security_officer."],
      },
    });
  });
});

test("glass ls: whether a playbook could be used, and why not, whatever the reason and duration", async () => {
  const policy = await small();
  const rows = (facts: Facts): unknown[] =>
    policy.playbooks.map(({ name }) => {
      const { allow, reasons } = policy.canRequest("ann", name, facts);
      return [name, allow, ...reasons];
    });
  expect(rows(known({ payments: "false" }))).toEqual([
    ["read", false, "ann is not on call for payments."],
    ["write", false, "ann is not on call for payments or in group leads."],
  ]);
  expect(rows(ANN_ON_CALL)).toEqual([
    ["read", true],
    ["write", true],
  ]);
});

test("names are found in any case of letters, and look-alikes are not", async () => {
  const policy = await small();
  expect(policy.person("Bob@Shop.Example")?.name).toBe("bob");
  expect(policy.playbook("WRITE")?.name).toBe("write");
  for (const name of ["bоb", "bob ", "bob\u200B", "bob@shop.example\u0000", "__proto__", ""])
    expect(policy.person(name), name).toBeUndefined();
  // U+212A KELVIN SIGN is lower-cased to k
  expect(
    (await policyOf({ "people.yaml": `${SMALL["people.yaml"]}- { name: kim, roles: [admin] }\n` })).person("\u212Aim"),
  ).toBeUndefined();
});

test("a clause in a decision names nobody, so that the log may keep it", async () => {
  const policy = await small({
    "playbooks/write.yaml": WRITE.replace(
      "{ oncall: payments, group: leads }",
      "{ user: [ann, bob@shop.example] }",
    ).replace("group: [leads, duty]", "user: [bob, carla]"),
  });
  const clauses = [...request(policy, { person: "sam" }).clauses, ...consent(policy, { person: "sam" }).clauses].map(
    ({ clause }) => clause,
  );
  expect(clauses).toContain("who.user.2");
  expect(clauses.join(" ")).not.toMatch(/ann|bob|carla|sam/);
  expect(request(policy, { person: "bob" }).allow).toBe(true);
});
