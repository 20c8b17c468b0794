import { describe, expect, test } from "vitest";
import { emptyFacts } from "./facts.ts";
import { policyOf, SMALL } from "./fixtures/folder.ts";
import type { Decision, Facts, IncidentFact, Policy, Question } from "./policy.ts";

const FRIDAY_NOON = Date.UTC(2026, 10, 20, 12);
const MINUTE = 60_000;
const PEOPLE = `${SMALL["people.yaml"]}- { name: dora, roles: [approver], groups: [duty] }
- { name: eric, roles: [approver], groups: [leads] }
- { name: max, roles: [requester, approver, admin, security_officer, auditor], groups: [payments, leads], aliases: [max@shop.example, m.ax] }
- { name: con, roles: [requester], groups: [payments, contractors] }
`;

/** A playbook of people in the group payments, with these lines in place of, or beside, the usual ones. */
function playbook(name: string, change: Readonly<Record<string, string>> = {}): Record<string, string> {
  const lines = {
    ...{ playbook: name, summary: "Repair", target: "orders", scope: "{ role: rw }", who: "{ group: payments }" },
    ...{ when: "{ reason: [outage] }", approve: "{ need: 1, from: { group: leads }, within: 20m }" },
    ...{ time: "{ max: 45m, extend: 2x30m }", notify: "[slack:incidents]", ...change },
  };
  return {
    [`playbooks/${name}.yaml`]: Object.entries(lines)
      .map(([key, value]) => `${key}: ${value}\n`)
      .join(""),
  };
}

async function world(...files: Readonly<Record<string, string>>[]): Promise<Policy> {
  return policyOf(Object.assign({ "people.yaml": PEOPLE }, ...files) as Record<string, string>);
}

const facts = (change: Partial<Facts> = {}): Facts => ({ ...emptyFacts(FRIDAY_NOON), ...change });
const usage = (change: Partial<Facts["usage"]>): Facts => facts({ usage: { ...facts().usage, ...change } });

type Request = Extract<Question, { action: "request" | "open" }>;
function use(policy: Policy, name: string, change: Partial<Request> = {}): Decision {
  const question: Request = {
    ...{ action: "request", person: "ann", playbook: name, reason: "outage", durationMs: 10 * MINUTE, facts: facts() },
    ...change,
  };
  return policy.decide(question);
}
const open = (policy: Policy, name: string, approvedBy: readonly string[], change: Partial<Request> = {}): Decision =>
  use(policy, name, { action: "open", approvedBy, ...change });

const failed = (decision: Decision): string[] =>
  decision.clauses.filter(({ held }) => !held).map(({ clause }) => clause);

describe("when.incident", () => {
  const severe = playbook("severe", { when: "{ reason: [outage], incident: [SEV1, SEV2] }" });
  const incident = (fact: IncidentFact): Facts => facts({ incident: fact });

  test("asks for an open incident of one of the severities, compared exactly", async () => {
    const policy = await world(severe);
    expect(use(policy, "severe", { facts: incident({ state: "open", severity: "SEV2" }) }).allow).toBe(true);
    for (const severity of ["SEV3", "sev2", "SEV2 ", "", "__proto__"]) {
      expect(failed(use(policy, "severe", { facts: incident({ state: "open", severity }) }))).toEqual([
        "when.incident",
      ]);
    }
    expect(use(policy, "severe")).toMatchObject({
      ...{
        allow: false,
        reasons: ["severe asks for an open incident that is SEV1 or SEV2, and there is none that was named."],
      },
      wouldHold: ["Allowed with --incident REF of an open incident that is SEV1 or SEV2."],
    });
  });

  test("that is unknown, or told oddly, turns an automatic opening into one that needs a human", async () => {
    const when = "{ reason: [outage], incident: [SEV1] }";
    const policy = await world(
      playbook("auto", { when, approve: "{ need: 0, from: { group: leads } }" }),
      playbook("alone", { when, approve: "{ need: 0 }" }),
    );
    for (const fact of [{ state: "unknown" }, { state: "closed" }, { state: "open" }] as IncidentFact[]) {
      expect(use(policy, "auto", { facts: incident(fact) })).toMatchObject({ allow: true, need: 1, missing: 1 });
      expect(open(policy, "auto", [], { facts: incident(fact) })).toMatchObject({ allow: false, need: 1 });
      expect(open(policy, "auto", ["ann"], { facts: incident(fact) })).toMatchObject({ allow: false, missing: 1 });
      expect(open(policy, "auto", ["bob"], { facts: incident(fact) })).toMatchObject({ allow: true, missing: 0 });
      const clause = use(policy, "auto", { facts: incident(fact) }).clauses.find((c) => c.clause === "when.incident");
      expect(clause).toMatchObject({ held: false, unknown: true });
      // where nobody could answer in its place, unknown is not yes
      expect(use(policy, "alone", { facts: incident(fact) }).reasons).toEqual([
        "Whether the incident is open is unknown, and alone names nobody who could approve instead.",
      ]);
    }
    expect(use(policy, "auto", { facts: incident({ state: "open", severity: "SEV1" }) })).toMatchObject({ need: 0 });
  });

  test("is not asked for by glass ls, which knows of no incident yet", async () => {
    expect((await world(severe)).canRequest("ann", "severe", facts()).allow).toBe(true);
  });
});

describe("when.hours", () => {
  const at = (text: string): Facts => facts({ atMs: Date.parse(text) });

  test("hold in the playbook's zone, through summer time", async () => {
    const when = '{ reason: [outage], hours: { days: [mon-fri], from: "08:00", to: "18:00" }, zone: Europe/Berlin }';
    const policy = await world(playbook("daytime", { when }));
    const allowed = (text: string): boolean => use(policy, "daytime", { facts: at(text) }).allow;
    expect(allowed("2026-11-20T06:59:59Z")).toBe(false);
    expect(allowed("2026-11-20T07:00:00Z")).toBe(true);
    expect(allowed("2026-11-20T16:59:59Z")).toBe(true);
    expect(allowed("2026-11-20T17:00:00Z")).toBe(false);
    expect(allowed("2026-11-21T12:00:00Z")).toBe(false); // Saturday
    expect(allowed("2026-07-20T06:00:00Z")).toBe(true); // an hour earlier in summer
    expect(allowed("2026-07-20T16:00:00Z")).toBe(false);
    expect(use(policy, "daytime", { facts: at("2026-11-21T12:05:00Z") })).toMatchObject({
      reasons: ["It is sat 13:05 in Europe/Berlin, and daytime is for mon-fri 08:00-18:00 (Europe/Berlin)."],
      wouldHold: ["Allowed mon-fri 08:00-18:00 (Europe/Berlin)."],
    });
  });

  test("pass midnight, and the end of the week", async () => {
    const when = '{ reason: [outage], hours: { days: [sun], from: "22:00", to: "06:00" } }';
    const policy = await world(playbook("night", { when }));
    const allowed = (text: string): boolean => use(policy, "night", { facts: at(text) }).allow;
    expect(allowed("2026-11-22T21:59:00Z")).toBe(false);
    expect(allowed("2026-11-22T22:00:00Z")).toBe(true);
    expect(allowed("2026-11-23T05:59:00Z")).toBe(true); // Monday morning
    expect(allowed("2026-11-23T06:00:00Z")).toBe(false);
    expect(allowed("2026-11-22T05:00:00Z")).toBe(false); // Sunday morning belongs to Saturday's night
  });

  test("are asked again at opening and extension; a moment that is none is a no", async () => {
    const when = "{ reason: [outage], hours: { days: [mon-fri] } }";
    const policy = await world(playbook("weekdays", { when }));
    expect(failed(open(policy, "weekdays", ["bob"], { facts: at("2026-11-21T12:00:00Z") }))).toEqual(["when.hours"]);
    for (const atMs of [Number.NaN, Number.POSITIVE_INFINITY, 1e17, 1.5]) {
      expect(failed(use(policy, "weekdays", { facts: facts({ atMs }) }))).toEqual(["glasskey.evaluation"]);
    }
  });
});

describe("sides of approve.from", () => {
  const sides = "{ need: 2, from: [{ group: leads }, { group: duty }] }"; // bob, carla, eric, max; carla, dora

  test("must all agree, each by a person of its own", async () => {
    const policy = await world(playbook("both", { approve: sides }));
    expect(use(policy, "both")).toMatchObject({ allow: true, need: 2, missing: 2 });
    expect(open(policy, "both", ["bob", "dora"])).toMatchObject({ allow: true, missing: 0 });
    expect(open(policy, "both", ["bob", "eric"])).toMatchObject({ allow: false, need: 2, missing: 1 });
    expect(open(policy, "both", ["bob", "eric"]).reasons).toEqual([
      "2 of 2 approvals given; 1 missing.",
      "Nobody has spoken for: in group duty. One person speaks for one side.",
    ]);
    expect(failed(open(policy, "both", ["bob", "eric"]))).toEqual(["approve.from.2"]);
  });

  test("lesson 8: one person in two groups speaks once, for whichever side needs it", async () => {
    const policy = await world(playbook("both", { approve: sides }));
    // carla is in both groups
    expect(open(policy, "both", ["carla"])).toMatchObject({ allow: false, missing: 1 });
    expect(open(policy, "both", ["carla", "CARLA", "carla"])).toMatchObject({ allow: false, missing: 1 });
    expect(open(policy, "both", ["carla", "bob"])).toMatchObject({ allow: true });
    expect(open(policy, "both", ["bob", "carla"])).toMatchObject({ allow: true });
    expect(open(policy, "both", ["carla", "dora"])).toMatchObject({ allow: true });
  });

  test("that could never all be spoken for refuse the request at once", async () => {
    const policy = await world(
      playbook("narrow", {
        who: "{ user: [ann, max] }",
        approve: "{ need: 2, from: [{ user: [max, bob] }, { user: bob }] }",
      }),
    );
    expect(use(policy, "narrow")).toMatchObject({ allow: true });
    const decision = use(policy, "narrow", { person: "max@shop.example" });
    expect(failed(decision)).toContain("approve.reach");
    expect(decision.allow).toBe(false);
  });

  test("must all agree where an unknown fact asks for a human, although the playbook asks for none", async () => {
    const policy = await world(
      playbook("auto", {
        who: "{ oncall: payments }",
        approve: "{ need: 0, from: [{ group: leads }, { group: duty }] }",
      }),
    );
    expect(use(policy, "auto", { facts: facts({ oncall: { payments: "true" } }) })).toMatchObject({ need: 0 });
    expect(use(policy, "auto")).toMatchObject({ allow: true, need: 2 });
    expect(open(policy, "auto", ["bob"])).toMatchObject({ allow: false, missing: 1 });
    expect(open(policy, "auto", ["bob", "dora"])).toMatchObject({ allow: true });
  });
});

describe("a quorum", () => {
  const limited = playbook("limited", { limit: "{ uses: 2, per: 7d, cooldown: 1h }" });
  const automatic = playbook("automatic", {
    approve: "{ need: 0, from: { group: leads } }",
    limit: "{ uses: 1, per: 1d }",
  });

  test("is asked for beyond the limit of uses, until somebody signs, and says why", async () => {
    const policy = await world(limited, automatic);
    expect(use(policy, "limited", { facts: usage({ unsigned: 1 }) })).toMatchObject({
      allow: true,
      need: 1,
      quorum: [],
    });
    const decision = use(policy, "limited", { facts: usage({ unsigned: 2 }) });
    expect(decision).toMatchObject({ allow: true, need: 2, missing: 2 });
    expect(decision.quorum).toEqual(["limited was used 2 times within 7d without a signed review; 2 is the limit."]);
    expect(open(policy, "limited", ["bob"], { facts: usage({ unsigned: 2 }) })).toMatchObject({
      allow: false,
      missing: 1,
    });
    expect(open(policy, "limited", ["bob"], { facts: usage({ unsigned: 2 }) }).wouldHold).toEqual([
      "Allowed once 1 more person approved.",
      "Back to 1 person once its reviews are signed: glass review.",
    ]);
    expect(open(policy, "limited", ["bob", "eric"], { facts: usage({ unsigned: 9 }) })).toMatchObject({ allow: true });
    // one that opens by itself needs two
    expect(open(policy, "automatic", [], { facts: usage({}) })).toMatchObject({ allow: true, need: 0 });
    expect(open(policy, "automatic", ["bob"], { facts: usage({ unsigned: 1 }) })).toMatchObject({
      allow: false,
      need: 2,
    });
    expect(open(policy, "automatic", ["bob", "eric"], { facts: usage({ unsigned: 1 }) })).toMatchObject({
      allow: true,
    });
  });

  test("is asked for while a review is overdue, and soon after the last use", async () => {
    const policy = await world(limited);
    expect(use(policy, "limited", { facts: usage({ overdue: 1 }) })).toMatchObject({
      need: 2,
      quorum: ["A review of limited is overdue."],
    });
    expect(use(policy, "limited", { facts: usage({ sinceLastMs: 59 * MINUTE }) })).toMatchObject({
      allow: true,
      need: 2,
    });
    expect(use(policy, "limited", { facts: usage({ sinceLastMs: 60 * MINUTE }) })).toMatchObject({
      allow: true,
      need: 1,
    });
  });

  test("is asked for where a count is no number: what is not known is not small", async () => {
    const policy = await world(limited);
    for (const odd of [
      { unsigned: Number.NaN },
      { unsigned: -1 },
      { overdue: Number.NaN },
      { overdue: -1 },
      { sinceLastMs: Number.NaN },
    ]) {
      expect(use(policy, "limited", { facts: usage(odd) }), JSON.stringify(odd)).toMatchObject({ need: 2 });
      expect(open(policy, "limited", ["bob"], { facts: usage(odd) }).allow).toBe(false);
    }
  });

  test("that not enough people could make refuses the request, with the way out", async () => {
    const policy = await world(
      playbook("pair", { approve: "{ need: 1, from: { user: bob } }", limit: "{ uses: 1, per: 1d }" }),
    );
    const decision = use(policy, "pair", { facts: usage({ unsigned: 1 }) });
    expect(decision.allow).toBe(false);
    expect(decision.reasons).toEqual([
      "pair was used once within 1d without a signed review; 1 is the limit.",
      "2 must approve, and only 1 other than ann could.",
    ]);
    expect(decision.wouldHold).toContain("Back to 1 person once its reviews are signed: glass review.");
  });

  test("of an extension is asked for by an overdue review alone: it is not another use", async () => {
    const policy = await world(limited);
    const extend = (change: Partial<Facts["usage"]>): Decision =>
      policy.decide({
        ...{ action: "extend", person: "ann", playbook: "limited", requester: "ann", reason: "outage" },
        ...{ byMs: MINUTE, totalMs: MINUTE, extensions: 0, facts: usage(change), approvedBy: ["bob"] },
      });
    expect(extend({ unsigned: 5, sinceLastMs: 0 })).toMatchObject({ allow: true, need: 1 });
    expect(extend({ overdue: 1 })).toMatchObject({ allow: false, need: 2 });
  });
});

test("limit.concurrent refuses one grant more, whatever is approved, and says what to do", async () => {
  const policy = await world(playbook("single", { limit: "{ concurrent: 1 }" }));
  expect(open(policy, "single", ["bob"]).allow).toBe(true);
  const decision = open(policy, "single", ["bob", "eric"], { facts: usage({ open: 1 }) });
  expect(failed(decision)).toEqual(["limit.concurrent"]);
  expect(decision.wouldHold).toEqual(["Allowed once one of them has ended; glass status shows them."]);
  expect(policy.canRequest("ann", "single", usage({ open: 1 })).allow).toBe(false);
  expect(use(policy, "single", { facts: usage({ open: Number.NaN }) }).allow).toBe(false);
});

describe("forbid in policy.yaml", () => {
  const targets = {
    "targets/cards.yaml": "target: cards\nkind: fake\ntags: [pci]\nconfig: { host: db }\n",
    "policy.yaml": `${SMALL["policy.yaml"]}forbid:
- { rule: no-contractors, why: Contractors never reach cardholder data, who: { group: contractors }, target: { tag: pci } }
- { rule: no-weekends, why: Nobody changes orders at the weekend, target: { name: orders }, hours: { days: [sat, sun] } }
- { rule: not-nights, why: The night shift only looks, who: { oncall: nights }, target: { tag: pci } }
`,
    "oncall.yaml": "payments: [ann]\nnights: [dora]\n",
  };
  const cards = playbook("cards", { target: "cards" });
  const known = facts({ oncall: { nights: "false" } });

  test("cannot be overridden by a playbook, a role or any number of approvals", async () => {
    const policy = await world(targets, cards, playbook("orders"));
    expect(use(policy, "cards", { facts: known }).allow).toBe(true);
    const decision = open(policy, "cards", ["bob", "carla", "eric", "max"], { person: "con", facts: known });
    expect(failed(decision)).toEqual(["forbid.no-contractors"]);
    expect(decision).toMatchObject({
      reasons: ["no-contractors forbids it: Contractors never reach cardholder data."],
      wouldHold: ["No playbook can override no-contractors; it is written in policy.yaml."],
    });
    // elsewhere it says nothing
    expect(use(policy, "orders", { person: "con" }).allow).toBe(true);
    expect(policy.canRequest("con", "cards", known).allow).toBe(false);
  });

  test("holds in its hours, for everybody where it names nobody", async () => {
    const policy = await world(targets, playbook("orders"));
    const saturday = facts({ atMs: Date.UTC(2026, 10, 21, 12) });
    expect(failed(use(policy, "orders", { facts: saturday }))).toEqual(["forbid.no-weekends"]);
    expect(use(policy, "orders").allow).toBe(true);
  });

  test("counts an unknown rota as on call", async () => {
    const policy = await world(targets, cards);
    const decision = use(policy, "cards");
    expect(decision.clauses.find(({ clause }) => clause === "forbid.not-nights")).toMatchObject({
      held: false,
      unknown: true,
    });
    expect(decision.wouldHold).toContain("Allowed once it is known that ann is not on call for nights.");
  });
});

describe("approve.unanswered", () => {
  const lonely = playbook("lonely", {
    ...{ who: "{ oncall: payments, group: payments }", when: "{ reason: [outage], incident: [SEV1] }" },
    approve: "{ need: 1, from: { group: leads }, within: 20m, unanswered: { after: 10m, then: open, for: 15m } }",
    limit: "{ uses: 1, per: 1d }",
    notify: "[pagerduty:duty]",
  });
  const incident = { state: "open", severity: "SEV1" } as const;
  type Unanswered = Extract<Question, { action: "open_unanswered" }>;
  const ask = (policy: Policy, change: Partial<Unanswered> = {}): Decision =>
    policy.decide({
      ...{ action: "open_unanswered", person: "ann", playbook: "lonely", reason: "outage", durationMs: 15 * MINUTE },
      ...{ waitedMs: 10 * MINUTE, paged: true, denied: false, facts: facts({ incident }), ...change },
    });

  test("opens after the wait, for the shorter time, once a page was delivered and nobody said no", async () => {
    const policy = await world(lonely);
    expect(ask(policy)).toMatchObject({ allow: true, need: 0, missing: 0 });
    expect(failed(ask(policy, { waitedMs: 10 * MINUTE - 1 }))).toEqual([
      "who.oncall:payments",
      "approve.unanswered.after",
    ]);
    expect(failed(ask(policy, { waitedMs: 20 * MINUTE }))).toContain("approve.unanswered.after");
    expect(failed(ask(policy, { durationMs: 15 * MINUTE + 1 }))).toContain("approve.unanswered.for");
    expect(failed(ask(policy, { paged: false }))).toContain("approve.unanswered.paged");
    expect(failed(ask(policy, { denied: true }))).toContain("approve.unanswered.denied");
    expect(ask(policy, { denied: true }).reasons).toEqual(["Somebody said no."]);
    for (const change of [{ waitedMs: Number.NaN }, { paged: undefined }, { denied: undefined }, { durationMs: -1 }]) {
      expect(ask(policy, change as unknown as Partial<Unanswered>).allow, JSON.stringify(change)).toBe(false);
    }
  });

  test("never opens on a fact that is unknown, on a quorum, or where the playbook does not speak of it", async () => {
    const policy = await world(lonely, playbook("plain"));
    expect(failed(ask(policy, { facts: facts({ incident: { state: "unknown" } }) }))).toContain("when.incident");
    // the rota is unknown here: who is in the group needs no rota, and who is not has nothing else
    expect(ask(policy, { person: "bob", facts: facts({ incident }) }).allow).toBe(true);
    expect(ask(policy, { person: "dora", facts: facts({ incident }) }).allow).toBe(false);
    const overdue = { ...facts({ incident }), usage: { unsigned: 0, open: 0, overdue: 1 } };
    expect(ask(policy, { facts: overdue }).wouldHold).toEqual([
      "Allowed once it is approved: a quorum never goes unanswered.",
    ]);
    expect(ask(policy, { facts: { ...overdue, usage: { unsigned: 1, open: 0, overdue: 0 } } }).allow).toBe(false);
    expect(ask(policy, { playbook: "plain" }).reasons).toEqual(["plain never opens without an answer."]);
  });

  test("does not take an unknown rota for on call", async () => {
    const policy = await world(
      playbook("lonely", {
        ...{ who: "{ oncall: payments }", notify: "[pagerduty:duty]" },
        approve: "{ need: 1, from: { group: leads }, within: 20m, unanswered: { after: 10m, then: open, for: 15m } }",
      }),
    );
    expect(ask(policy, { facts: facts({ oncall: { payments: "true" } }) }).allow).toBe(true);
    expect(ask(policy)).toMatchObject({
      allow: false,
      reasons: ["Whether ann is on call for payments is unknown."],
    });
  });
});

describe("lesson 7: self-approval", () => {
  test("is impossible for a person with every role and group, under any alias, by any door", async () => {
    const policy = await world(
      playbook("own", { who: "{ group: [payments, leads] }" }),
      playbook("both", {
        who: "{ group: payments }",
        approve: "{ need: 2, from: [{ group: leads }, { user: [max, bob] }] }",
      }),
    );
    const ids = ["max", "MAX", "max@shop.example", "Max@Shop.Example", "m.ax"];
    for (const person of ids) {
      for (const requester of ids) {
        for (const action of ["approve", "deny"] as const) {
          const decision = policy.decide({ action, person, playbook: "own", requester, ageMs: 0, approvedBy: [] });
          expect(decision.allow, `${person} ${requester}`).toBe(false);
        }
        const sign = policy.decide({ action: "sign_review", person, playbook: "own", requester });
        expect(failed(sign)).toContain("glasskey.not-requester");
        expect(sign.allow).toBe(false);
      }
      expect(open(policy, "own", ids, { person })).toMatchObject({ allow: false, missing: 1 });
      expect(open(policy, "both", [...ids, "bob"], { person })).toMatchObject({ allow: false, missing: 1 });
    }
  });
});

describe("a review", () => {
  test("is signed by the playbook's reviewers who are approvers and by security officers, never by the requester", async () => {
    const policy = await world(playbook("write", { review: "{ by: { user: [dora, bob, ann] }, within: 1d }" }));
    const sign = (person: string, requester: string): boolean =>
      policy.decide({ action: "sign_review", person, playbook: "write", requester }).allow;
    expect(["ann", "bob", "carla", "dora", "sam", "max"].filter((person) => sign(person, "con"))).toEqual([
      "bob",
      "dora",
      "sam",
      "max",
    ]);
    expect(["bob", "dora", "sam", "max"].filter((person) => sign(person, "bob"))).toEqual(["dora", "sam", "max"]);
    // who asked is gone: only security officers, for it might be the same human under another name
    expect(["bob", "dora", "sam", "max"].filter((person) => sign(person, "left"))).toEqual(["sam", "max"]);
    expect(
      policy.decide({ action: "sign_review", person: "carla", playbook: "write", requester: "ann" }),
    ).toMatchObject({
      reasons: ["carla may not sign this review."],
      wouldHold: ["Allowed for: who signs its reviews or role security_officer."],
    });
  });
});
