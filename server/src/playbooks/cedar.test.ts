import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, test } from "vitest";
import { parsedSets, prepare } from "./cedar.ts";
import { policyOf, SMALL } from "./fixtures/folder.ts";
import type { Question } from "./policy.ts";

const READ = String(SMALL["playbooks/read.yaml"]);

test("what nobody holds any more makes room in Cedar, and a policy that is held keeps deciding by its own text", async () => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  const held = await policyOf({});
  const before = parsedSets();
  for (let minutes = 31; minutes <= 40; minutes++) {
    await policyOf({ "playbooks/read.yaml": READ.replace("30m", `${minutes}m`) });
  }
  expect(parsedSets()).toBeGreaterThan(before);
  for (let tries = 0; parsedSets() > before && tries < 100; tries++) {
    gc();
    await new Promise((done) => setTimeout(done, 10));
  }
  expect(parsedSets()).toBeLessThanOrEqual(before);
  const wider = await policyOf({ "playbooks/read.yaml": READ.replace("30m", "8h") }); // takes over names that are free now
  const usage = { unsigned: 0, open: 0, overdue: 0 };
  const question: Question = {
    ...{ action: "request", person: "ann", playbook: "read", reason: "outage", durationMs: 60 * 60_000 },
    facts: { oncall: { payments: "true" }, incident: { state: "none" }, usage, atMs: 0 },
  };
  expect([held.decide(question).allow, wider.decide(question).allow]).toEqual([false, true]);
});

test("the same text is parsed once, however many hold it", () => {
  const policies = { x: 'permit (principal, action == Action::"list", resource);' };
  const first = prepare(policies);
  const before = parsedSets();
  const second = prepare(policies);
  expect(parsedSets()).toBe(before);
  expect([first, second]).toHaveLength(2);
});
