import { beforeAll, describe, expect, test } from "vitest";
import { policyOf } from "./fixtures/folder.ts";
import type { Policy } from "./policy.ts";
import { explain, type WhatIf } from "./what-if.ts";

const NOW_MS = Date.UTC(2026, 10, 20, 2, 14);
let policy: Policy;

beforeAll(async () => {
  policy = await policyOf({
    "oncall.yaml": "payments: [ann]\nplatform: { source: pagerduty:main, schedule: P1 }\nnight: unknown\n",
    "playbooks/read.yaml": `playbook: read
summary: Look
target: orders
scope: { role: ro }
who: { oncall: [payments, platform] }
when: { reason: [outage, data-loss] }
approve: { need: 1, from: { group: leads } }
time: { max: 30m }
limit: { uses: 1, per: 7d, concurrent: 1, cooldown: 1h }
`,
  });
});

const asked = (more: Partial<WhatIf> = {}) =>
  explain(policy, { playbook: "read", person: "ann", unknown: [], approvedBy: ["bob"], ...more }, NOW_MS);

describe("a question that is not asked in earnest", () => {
  test("assumes the first reason, the longest time, the rotas as oncall.yaml has them, and now", () => {
    expect(asked()).toMatchObject({
      answer: "yes",
      asked: {
        ...{ reason: "outage", durationMs: 1_800_000, atMs: NOW_MS, oncall: ["payments"], unknown: ["platform"] },
        assumed: ["reason", "duration", "oncall", "at"],
      },
    });
  });

  test("takes what is given, and then assumes no rota", () => {
    const given = asked({ reason: "data-loss", duration: "10m", oncall: [], at: "2026-11-20T10:00+01:00" });
    expect(given).toMatchObject({
      answer: "no",
      asked: { reason: "data-loss", durationMs: 600_000, atMs: Date.UTC(2026, 10, 20, 9), oncall: [], assumed: [] },
    });
  });

  test("counts approvals of different people who may, and says whose would still count", () => {
    expect(asked({ approvedBy: [] })).toMatchObject({ answer: "waits", missing: 1, couldApprove: ["bob", "carla"] });
    expect(asked({ approvedBy: ["ann", "sam"] })).toMatchObject({ answer: "waits", missing: 1 });
    const quorum = { unsigned: "1", approvedBy: ["bob", "bob@shop.example"] };
    expect(asked(quorum)).toMatchObject({ answer: "waits", need: 2, missing: 1, couldApprove: ["carla"] });
  });

  test.each([{ unsigned: "1" }, { overdue: "2" }, { sinceLast: "59m" }])("knows what makes a quorum: %j", (usage) => {
    expect(asked(usage)).toMatchObject({ answer: "waits", need: 2, missing: 1, quorum: [expect.any(String)] });
  });

  test("is denied, and does not wait, while as many grants are open as there may be", () => {
    expect(asked({ open: "1" })).toMatchObject({ answer: "no", reasons: [expect.stringContaining("(1)")] });
  });

  test.each<[Partial<WhatIf>, RegExp]>([
    [{ playbook: "raed" }, /Did you mean "read"/],
    [{ person: "nan" }, /Did you mean "ann"/],
    [{ reason: "outrage" }, /Did you mean "outage"/],
    [{ oncall: ["payment"] }, /Did you mean "payments"/],
    [{ unknown: ["incidents"] }, /Did you mean "incident"/],
    [{ approvedBy: ["bobb"] }, /Did you mean "bob"/],
    [{ duration: "soon" }, /Write it as 30m/],
    [{ at: "noon" }, /Write it as 2026-11-20T02:14Z/],
    [{ unsigned: "-1" }, /--unsigned 2/],
    [{ open: "1e3" }, /--open 2/],
    [{ overdue: "9999999" }, /--overdue 2/],
  ])("refuses a slip and helps: %j", (slip, next) => {
    const attempt = (): unknown => asked(slip);
    expect(attempt).toThrow(
      expect.objectContaining({ code: "usage", next: expect.stringMatching(next) as string }) as Error,
    );
  });

  test("shows a name that was given as a text, cut to a length that can be read", () => {
    const attempt = (): unknown => asked({ person: `\u001B[2J${"x".repeat(500)}` });
    expect(attempt).toThrow(/^there is no person "\\u001b\[2Jx{60}" in this policy$/);
  });
});
