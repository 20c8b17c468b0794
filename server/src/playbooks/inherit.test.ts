import { describe, expect, test } from "vitest";
import { complaint, policyOf, SMALL } from "./fixtures/folder.ts";
import type { Playbook } from "./policy.ts";

const POLICY = String(SMALL["policy.yaml"]);
const TEMPLATE = `template: careful
summary: Look, with care
target: orders
scope: { role: ro }
who: { oncall: payments }
when: { reason: [outage], incident: [SEV1] }
approve: { need: 1, from: { group: leads }, within: 20m, unanswered: { after: 10m, then: open, for: 15m } }
time: { max: 30m, extend: 2x10m }
limit: { uses: 2, per: 7d, concurrent: 1 }
notify: [pager:duty]
review: { by: { group: leads }, within: 1d }
`;

async function whole(text: string, files: Record<string, string> = {}): Promise<Playbook | undefined> {
  const policy = await policyOf({ "playbooks/careful.yaml": TEMPLATE, "playbooks/whole.yaml": text, ...files });
  return policy.playbook("whole");
}
async function refusal(text: string, files: Record<string, string> = {}): Promise<string> {
  return complaint({ "playbooks/careful.yaml": TEMPLATE, "playbooks/whole.yaml": text, ...files });
}

describe("a playbook that extends a template", () => {
  test("has everything of it, and is nothing else than the same keys written out", async () => {
    const short = await whole("playbook: whole\nextends: careful\n");
    const long = await whole(TEMPLATE.replace("template: careful", "playbook: whole"));
    expect(short).toMatchObject({
      target: "orders",
      approve: { need: 1, withinMs: 1_200_000 },
      notify: ["pager:duty"],
    });
    expect(short).toEqual(long); // with the same hash
  });

  test("replaces keys whole, and those of when, approve, time and limit one by one", async () => {
    const text = `playbook: whole
extends: careful
who: { user: ann }
when: { reason: [data-loss] }
approve: { within: 40m }
time: { max: 1h }
limit: { cooldown: 1h }
review: { by: { user: sam } }
`;
    expect(await whole(text)).toMatchObject({
      who: [{ by: "user", name: "ann" }],
      when: { reasons: ["data-loss"], incident: ["SEV1"] },
      approve: { need: 1, from: [[{ by: "group", name: "leads" }]], withinMs: 2_400_000 },
      time: { maxMs: 3_600_000, extend: { times: 2, byMs: 600_000 }, capMs: 4_800_000 },
      limit: { uses: { count: 2, perMs: 604_800_000 }, concurrent: 1, cooldownMs: 3_600_000 },
      review: { by: [{ by: "user", name: "sam" }], withinMs: 172_800_000 }, // as a whole: not the template's day
    });
  });

  test("takes away with the word none what may be left out", async () => {
    const text = `playbook: whole
extends: careful
when: { incident: none }
approve: { unanswered: none }
time: { extend: none }
limit: { uses: none, concurrent: none }
notify: none
`;
    const playbook = await whole(text);
    expect(playbook?.when).toEqual({ reasons: ["outage"], zone: "UTC" });
    expect(playbook?.approve).not.toHaveProperty("unanswered");
    expect(playbook?.time).toEqual({ maxMs: 1_800_000, capMs: 1_800_000 });
    expect([playbook?.limit, playbook?.notify]).toEqual([{}, []]);
    for (const needed of [
      "who: none",
      "approve: { from: none }",
      "approve: { need: none }",
      "when: { reason: none }",
    ]) {
      expect(await refusal(`playbook: whole\nextends: careful\n${needed}\n`), needed).toContain("whole.yaml:3:");
    }
  });

  test("comes after policy.yaml's defaults and before nothing: defaults, template, playbook", async () => {
    const policy = `${POLICY}defaults:
  approve: { within: 1m }
  time: { max: 5m, idle: 5m, extend: 9x1m }
  limit: { uses: 9, per: 1d }
  notify: chat:all
  review: { by: { user: sam } }
  drill: { every: 30d, on: orders }
`;
    expect(await whole("playbook: whole\nextends: careful\n", { "policy.yaml": policy })).toMatchObject({
      approve: { withinMs: 1_200_000 },
      time: { maxMs: 1_800_000, idleMs: 300_000, extend: { times: 2, byMs: 600_000 } },
      ...{ limit: { uses: { count: 2 } }, notify: ["pager:duty"], drill: { everyMs: 2_592_000_000, on: "orders" } },
    });
    const plain = (await policyOf({ "policy.yaml": policy })).playbook("read");
    expect(plain).toMatchObject({
      approve: { need: 0, withinMs: 60_000 },
      time: { maxMs: 1_800_000, idleMs: 300_000 },
    });
    expect(plain).toMatchObject({ notify: ["chat:all"], limit: { uses: { count: 9, perMs: 86_400_000 } } });
  });

  test("is told of mistakes where they are written: in the template, once, however many extend it", async () => {
    const text = await complaint({
      "playbooks/careful.yaml": TEMPLATE.replace("group: leads", "group: leeds").replace("max: 30m", "max: 30"),
      "playbooks/one.yaml": "playbook: one\nextends: careful\n",
      "playbooks/two.yaml": "playbook: two\nextends: careful\n",
    });
    expect(text.match(/^playbooks\/\w+\.yaml.*$/gm)).toEqual([
      'playbooks/careful.yaml:7:36: nobody is in a group "leeds"',
      "playbooks/careful.yaml:8:14: time.max is not a duration",
    ]);
  });

  test("is named where the template is right by itself, and the two together are not", async () => {
    const text = await refusal("playbook: whole\nextends: careful\napprove: { within: 5m }\nscope: { rol: ro }\n");
    expect(text).toContain(
      "playbooks/careful.yaml:7:72: for playbook whole: approve.unanswered.after is not before the end of approve.within",
    );
    expect(text).toContain("playbooks/whole.yaml:4:10: scope.role: must name a role");
  });

  test("must still have, its own or inherited, all that a playbook must have", async () => {
    const thin = "template: careful\nsummary: Look\nwhen: { reason: [outage] }\ntime: { idle: 5m }\n";
    const text = await refusal("playbook: whole\nextends: careful\napprove: {}\n", { "playbooks/careful.yaml": thin });
    expect(text).toMatch(/whole\.yaml:1:1: a playbook lacks target, scope, who, time\n/);
    expect(text).toMatch(/whole\.yaml:3:\d+: approve lacks need\n/);
  });
});

describe("extends is shallow", () => {
  test("a template extends nothing, a playbook is no template, and nothing extends itself: no cycle can be written", async () => {
    const text = await complaint({
      "playbooks/a.yaml": "template: a\nextends: b\n",
      "playbooks/b.yaml": "template: b\nextends: a\n",
      "playbooks/self.yaml": "playbook: self\nextends: self\n",
      "playbooks/other.yaml": "playbook: other\nextends: read\n",
      "playbooks/lost.yaml": "playbook: lost\nextends: carefull\n",
      "playbooks/careful.yaml": TEMPLATE,
      "playbooks/both.yaml": `${TEMPLATE}playbook: both\n`,
      "playbooks/list.yaml": "playbook: list\nextends: [careful]\n",
    });
    expect(text.match(/^playbooks\/\w+\.yaml.*$/gm)).toEqual([
      "playbooks/a.yaml:2:1: a template cannot extend another",
      "playbooks/b.yaml:2:1: a template cannot extend another",
      'playbooks/both.yaml:1:1: a playbook has no key "template"',
      "playbooks/list.yaml:2:10: extends must be text",
      'playbooks/lost.yaml:2:10: there is no template "carefull"',
      'playbooks/other.yaml:2:10: "read" is a playbook, not a template',
      'playbooks/self.yaml:2:10: "self" is a playbook, not a template',
    ]);
  });

  test("a template is no playbook: nobody can break it, and its tests would be nobody's", async () => {
    const policy = await policyOf({ "playbooks/careful.yaml": TEMPLATE });
    expect(policy.playbook("careful")).toBeUndefined();
    expect(await complaint({ "playbooks/careful.yaml": `${TEMPLATE}tests: [{ allow: { who: ann } }]\n` })).toContain(
      'a template has no key "tests"',
    );
  });

  test("who may open, and with how many approvals, is never a default of all playbooks", async () => {
    for (const key of [
      "who: { user: ann }",
      "scope: { role: rw }",
      "approve: { need: 0 }",
      "approve: { from: { user: bob } }",
    ]) {
      expect(await complaint({ "policy.yaml": `${POLICY}defaults: { ${key} }\n` }), key).toMatch(
        /policy\.yaml:2:.*no key/,
      );
    }
  });
});
