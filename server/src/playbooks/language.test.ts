import { describe, expect, test } from "vitest";
import { complaint, FAKE_KINDS, loadFiles, policyOf, SMALL } from "./fixtures/folder.ts";

const POLICY = String(SMALL["policy.yaml"]);
const READ = String(SMALL["playbooks/read.yaml"]);
const with_ = (change: Record<string, string>): Record<string, string> => {
  let text = READ;
  for (const [key, value] of Object.entries(change)) {
    const line = new RegExp(`^${key}: .*$`, "m");
    text = line.test(text) ? text.replace(line, `${key}: ${value}`) : `${text}${key}: ${value}\n`;
  }
  return { "playbooks/read.yaml": text };
};

describe("a playbook", () => {
  test("may say everything that the language has", async () => {
    const files = with_({
      when: "{ reason: [outage], incident: [SEV1, major], hours: { days: sat-sun } }",
      approve:
        "{ need: 2, from: [{ group: leads }, { user: carla }], within: 20m, unanswered: { after: 10m, then: open, for: 15m } }",
      time: "{ max: 45m, idle: 15m, extend: 2x30m }",
      limit: "{ uses: 2, per: 7d, concurrent: 3, cooldown: 12h }",
      notify: "[slack:incidents, pagerduty:duty-manager]",
      review: "{ by: { group: leads, user: bob }, within: 1d }",
      drill: "{ every: 30d, on: orders }",
      record: "{ mask: all, keep: 30d }",
    });
    expect((await policyOf(files)).playbook("read")).toMatchObject({
      when: {
        reasons: ["outage"],
        incident: ["SEV1", "major"],
        hours: [{ days: [6, 7], fromMinute: 0, toMinute: 1_440 }],
      },
      approve: {
        ...{ need: 2, withinMs: 1_200_000, unanswered: { afterMs: 600_000, forMs: 900_000 } },
        from: [[{ by: "group", name: "leads" }], [{ by: "user", name: "carla" }]],
      },
      limit: { uses: { count: 2, perMs: 604_800_000 }, concurrent: 3, cooldownMs: 43_200_000 },
      notify: ["slack:incidents", "pagerduty:duty-manager"],
      review: {
        by: [
          { by: "group", name: "leads" },
          { by: "user", name: "bob" },
        ],
        withinMs: 86_400_000,
      },
      drill: { everyMs: 2_592_000_000, on: "orders" },
      record: { mask: "all", keepMs: 2_592_000_000 },
    });
  });

  test("says what its recordings hold: a word that is not known masks nothing in silence, but is an error", async () => {
    const of = async (record: string) => (await policyOf(with_({ record }))).playbook("read")?.record;
    expect(await of("{ mask: parameters }")).toEqual({ mask: "parameters" });
    expect(await of("{ keep: 7d }")).toEqual({ keepMs: 604_800_000 });
    expect(await of("{ mask: none }")).toBeUndefined();
    for (const wrong of ["everything", "[parameters]", "true", "1"]) {
      expect(await complaint(with_({ record: `{ mask: ${wrong} }` })), wrong).toMatch(
        /read\.yaml:9:\d+: record\.mask must be/,
      );
    }
    expect(await complaint(with_({ record: "{}" }))).toContain("record is empty");
    expect(await complaint(with_({ record: "{ masks: all }" }))).toContain('record has no key "masks"');
    expect(await complaint(with_({ record: "{ keep: long }" }))).toContain("record.keep is not a duration");
  });

  test("names people by one name, whichever alias its file uses", async () => {
    const by = (id: string): Record<string, string> => ({
      ...with_({ who: `{ user: [ann, ${id}] }`, tests: `[{ deny: { who: ${id}, approvedBy: ${id} } }]` }),
      "oncall.yaml": `payments: [${id}]\n`,
    });
    const [name, alias] = [await policyOf(by("bob")), await policyOf(by("BOB@shop.example"))];
    expect(alias.playbooks).toEqual(name.playbooks); // with the same hash
    expect(alias.rotas).toEqual([{ name: "payments", people: ["bob"] }]);
    expect(alias.tests.get("read")).toMatchObject([{ who: "bob", approvedBy: ["bob"] }]);
  });

  test("only names reasons that policy.yaml declares", async () => {
    const text = await complaint(with_({ when: "{ reason: [outage, dataloss] }" }));
    expect(text).toMatch(/read\.yaml:6:26: there is no reason "dataloss"\n[^]*Did you mean "data-loss"\?/);
  });

  test("counts strictly: no fractions, texts, zeros, signs or numbers without end", async () => {
    for (const wrong of ["0", "-1", "1.5", "'2'", "two", "~", "[2]", "1e9", "true", "1001"]) {
      for (const limit of [`{ uses: ${wrong}, per: 7d }`, `{ concurrent: ${wrong} }`]) {
        expect(await complaint(with_({ limit })), limit).toMatch(/read\.yaml:9:\d+: limit\.\w+ must be a whole number/);
      }
    }
    for (const wrong of ["7", "7 days", "0s", "1w", "-1d", "1h30", "30m1h", "400d", "~", "1.5h", "٣d"]) {
      expect(await complaint(with_({ limit: `{ uses: 2, per: ${wrong} }` })), wrong).toContain(
        "limit.per is not a duration",
      );
    }
    expect(await complaint(with_({ limit: "{ per: 7d }" }))).toContain("limit.per means nothing without limit.uses");
  });
});

describe("sides that must all agree", () => {
  const twoSides = (need: number, from: string, people = String(SMALL["people.yaml"])): Record<string, string> => ({
    ...with_({ approve: `{ need: ${need}, from: ${from} }` }),
    "people.yaml": people,
  });

  test("lesson 8: one person in all groups speaks for one side, so two sides need two people", async () => {
    // carla alone is in duty and in leads; bob is in leads.
    expect(
      (await policyOf(twoSides(2, "[{ group: leads }, { group: duty }]"))).playbook("read")?.approve.from,
    ).toHaveLength(2);
    const alone = String(SMALL["people.yaml"]).replace("groups: [payments, leads]", "groups: [payments]");
    const text = await complaint(twoSides(2, "[{ group: leads }, { group: duty }]", alone));
    expect(text).toContain("2 must approve, but only 1 could beside the requester, of: carla");
  });

  test("no count of people makes up for a side that has nobody of its own", async () => {
    const people = `${String(SMALL["people.yaml"])}- { name: dora, roles: [approver], groups: [leads] }\n`;
    const text = await complaint(twoSides(3, "[{ group: leads }, { user: carla }, { group: duty }]", people));
    expect(text).toContain("3 sides must agree, but not each by a person of its own beside the requester");
    expect(await complaint(twoSides(2, "[{ group: leads }, { user: sam }]"))).toMatch(
      /read\.yaml:7:\d+: nobody could ever speak for this side/,
    );
  });

  test("the requester speaks for no side of their own request", async () => {
    const files = { ...twoSides(2, "[{ user: bob }, { group: duty }]"), "oncall.yaml": "payments: [bob]\n" };
    expect(await complaint(files)).toContain("2 must approve, but only 1 could beside the requester");
  });

  test("need is 0, or counts every side at least once", async () => {
    expect(await complaint(twoSides(1, "[{ group: leads }, { group: duty }]"))).toContain(
      "approve.need is 1, but approve.from has 2 sides",
    );
    expect(await policyOf(twoSides(0, "[{ group: leads }, { group: duty }]"))).toBeDefined();
  });

  test("lesson 7: an empty side is nobody, and refused", async () => {
    for (const from of [
      "[]",
      "[{}]",
      "[{ group: leads }, {}]",
      "[{ group: leads }, ~]",
      "[{ group: [] }]",
      "[leads]",
      "[[]]",
    ]) {
      expect(await complaint(twoSides(2, from)), from).toContain("playbooks/read.yaml:7:");
    }
    expect(await complaint(twoSides(5, `[${"{ group: leads }, ".repeat(6)}]`))).toContain("more than 5 sides");
  });
});

describe("unanswered: open", () => {
  const unanswered = (rest: string, change: Record<string, string> = {}): Record<string, string> =>
    with_({ approve: `{ need: 1, from: { group: leads }, unanswered: ${rest} }`, notify: "pager:duty", ...change });

  test("is shorter, earlier than the deadline, after a wait, and loud, or it is refused", async () => {
    const good = "{ after: 10m, then: open, for: 30m }";
    expect((await policyOf(unanswered(good))).playbook("read")?.approve.unanswered).toEqual({
      afterMs: 600_000,
      forMs: 1_800_000,
    });
    expect(await complaint(unanswered("{ after: 15m, then: open, for: 30m }"))).toContain(
      "not before the end of approve.within",
    );
    expect(await complaint(unanswered("{ after: 10m, then: open, for: 31m }"))).toContain("longer than time.max");
    expect(await complaint(unanswered(good, { notify: "none" }))).toContain("the playbook lacks notify");
    expect(
      await complaint(unanswered(good, { approve: `{ need: 0, from: { group: leads }, unanswered: ${good} }` })),
    ).toContain("means nothing with need: 0");
  });

  test("can only be opt-in by its whole spelling", async () => {
    for (const wrong of [
      "open",
      "true",
      "{}",
      "{ then: open }",
      "{ after: 0s, then: open, for: 5m }",
      "{ after: 5m, then: opn, for: 5m }",
    ]) {
      expect(await complaint(unanswered(wrong)), wrong).toMatch(/read\.yaml:7:\d+: approve\.unanswered/);
    }
  });
});

describe("tests", () => {
  test("are read with what they leave out filled in, and are no part of what is pinned", async () => {
    const tests = `
  - allow: { who: ann, oncall: [payments], reason: data-loss, for: 10m, approvedBy: [bob], incident: SEV1, at: "2026-11-20T02:14+01:00" }
  - deny: { who: ann, unknown: [payments, incident], unsigned: 2, open: 1, overdue: 1, sinceLast: 1h }`;
    const policy = await policyOf(with_({ tests }));
    expect(policy.tests.get("read")).toEqual([
      {
        ...{ expect: "allow", who: "ann", oncall: ["payments"], unknown: [], incident: "SEV1", reason: "data-loss" },
        ...{ forMs: 600_000, approvedBy: ["bob"], atMs: Date.UTC(2026, 10, 20, 1, 14) },
        ...{ usage: { unsigned: 0, open: 0, overdue: 0 }, place: { file: "playbooks/read.yaml", line: 10 } },
      },
      {
        ...{ expect: "deny", who: "ann", oncall: [], unknown: ["payments", "incident"], reason: "outage" },
        ...{ forMs: 1_800_000, approvedBy: [], usage: { unsigned: 2, open: 1, overdue: 1, sinceLastMs: 3_600_000 } },
        place: { file: "playbooks/read.yaml", line: 11 },
      },
    ]);
    const without = await policyOf({});
    expect(policy.playbook("read")?.hash).toBe(without.playbook("read")?.hash);
    expect(policy.hash).not.toBe(without.hash);
  });

  test("that test nothing, or something else than they seem to, are refused", async () => {
    for (const wrong of [
      ...["[]", "~", "{ allow: { who: ann } }", "[{}]", "[{ allow: {} }]", "[{ allow: { who: nobody } }]"],
      ...["[{ allow: { who: ann }, deny: { who: ann } }]", "[{ allow: { who: ann, when: now } }]", "[allow]"],
      ...["[{ allow: { who: ann, at: 2026-11-20 } }]", "[{ allow: { who: ann, at: 2026-11-20T02:14 } }]"],
      "[{ allow: { who: ann, at: 2026-11-31T02:14Z } }]",
    ]) {
      expect(await complaint(with_({ tests: wrong })), wrong).toContain("playbooks/read.yaml:9:");
    }
  });
});

describe("policy.yaml", () => {
  const forbid = (rules: string): Record<string, string> => ({
    "policy.yaml": `${POLICY}zone: Europe/Berlin\nforbid:\n${rules}`,
    "targets/orders.yaml": `${String(SMALL["targets/orders.yaml"])}tags: [pci]\n`,
  });

  test("forbids whom, where and when: what is left out is everybody, every target, always", async () => {
    const policy = await policyOf(
      forbid(`  - { rule: none-at-all, why: Frozen for the audit }
  - { rule: no-leads, why: Not you, who: { group: leads, oncall: payments }, target: { tag: pci, name: orders }, hours: { days: sat }, zone: UTC }
`),
    );
    expect(policy.denials).toEqual([
      {
        ...{ name: "no-leads", why: "Not you", targets: ["orders"], tags: ["pci"], zone: "UTC" },
        who: [
          { by: "oncall", name: "payments" },
          { by: "group", name: "leads" },
        ],
        hours: [{ days: [6], fromMinute: 0, toMinute: 1_440 }],
      },
      { name: "none-at-all", why: "Frozen for the audit", who: [], targets: [], tags: [], zone: "Europe/Berlin" },
    ]);
  });

  test("has no rule that a slip of the fingers turns into one that denies nothing", async () => {
    for (const [rule, message] of [
      ["{ rule: r, why: w, target: { tag: pcl } }", 'no target has the tag "pcl"'],
      ["{ rule: r, why: w, target: { name: order } }", 'there is no target "order"'],
      ["{ rule: r, why: w, who: { group: contractors } }", 'nobody is in a group "contractors"'],
      ["{ rule: r, why: w, who: {} }", "who is empty"],
      ["{ rule: r, why: w, target: {} }", "target is empty"],
      ["{ rule: r, why: w, target: { tag: [] } }", "target.tag is an empty list"],
      ["{ rule: r, why: w, whom: { group: leads } }", 'has no key "whom"'],
      ["{ rule: r, who: { group: leads } }", "a rule of forbid lacks why"],
    ] as const) {
      expect(await complaint(forbid(`  - ${rule}\n`)), rule).toContain(message);
    }
    expect(await complaint(forbid("  - { rule: r, why: w }\n  - { rule: r, why: w }\n"))).toContain(
      'there are two rules "r"',
    );
    expect(await complaint(forbid("  {}\n"))).toContain("forbid must be a list of rules");
  });

  test("must be there, and must declare reasons that a person can read", async () => {
    expect(await complaint({ "policy.yaml": undefined })).toContain("policy.yaml is missing");
    for (const wrong of [
      "reasons: {}",
      "reasons: [outage]",
      "reasons: { outage: '' }",
      "reasons: { Outage: x }",
      "zone: UTC",
      "reasons:",
    ]) {
      expect(await complaint({ "policy.yaml": `${wrong}\n` }), wrong).toContain("policy.yaml:1:");
    }
  });
});

describe("people and rotas", () => {
  test("a person has channels, a rota has people, a source's schedule, or nobody who knows", async () => {
    const policy = await policyOf({
      "people.yaml": String(SMALL["people.yaml"]).replace(
        "groups: [leads, duty]",
        "groups: [leads, duty], notify: [slack:carla]",
      ),
      "oncall.yaml": "payments: [ann]\nnights: unknown\nduty: { source: pagerduty:main, schedule: PABC123 }\n",
    });
    expect(policy.person("carla")?.notify).toEqual(["slack:carla"]);
    expect(policy.rotas).toEqual([
      { name: "duty", source: "pagerduty:main", ref: "PABC123" },
      { name: "nights", unknown: true },
      { name: "payments", people: ["ann"] },
    ]);
    for (const wrong of [
      "{}",
      "{ source: pagerduty, schedule: P }",
      "{ source: pagerduty:main }",
      "{ source: p:m, schedule: 'a b' }",
      "[]",
    ]) {
      expect(await complaint({ "oncall.yaml": `payments: ${wrong}\n` }), wrong).toContain("oncall.yaml:1:");
    }
  });

  test("a review is signed by somebody who can: an approver, or a security officer", async () => {
    expect(await policyOf(with_({ review: "{ by: { user: sam } }" }))).toBeDefined();
    expect(await complaint(with_({ review: "{ by: { user: ann } }" }))).toMatch(
      /read\.yaml:9:\d+: nobody it names could sign/,
    );
  });

  test("a drill is on a target that exists and has the same kind", async () => {
    const files = {
      ...with_({ drill: "{ every: 30d, on: stage }" }),
      "targets/stage.yaml": "target: stage\nkind: fake\nconfig: {}\n",
    };
    expect((await policyOf(files)).playbook("read")?.drill?.on).toBe("stage");
    expect(await complaint(with_({ drill: "{ every: 30d, on: stage }" }))).toContain('there is no target "stage"');
    const kinds = new Map([...FAKE_KINDS, ...[...FAKE_KINDS.values()].map((checks) => ["other", checks] as const)]);
    const other = { ...files, "targets/stage.yaml": "target: stage\nkind: other\nconfig: {}\n" };
    const loaded = await loadFiles(other, kinds);
    expect(loaded.ok ? [] : loaded.problems.map(({ message }) => message)).toEqual([
      "drill.on is a target of kind other, but orders is of kind fake",
    ]);
  });
});
