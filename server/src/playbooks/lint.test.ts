import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { FAKE_KINDS } from "./fixtures/folder.ts";
import { lintPolicy, SMELLS, type Smell } from "./lint.ts";
import { compilePolicy } from "./load.ts";
import { formatProblems } from "./problem.ts";

/** A folder without a smell; every test names only what it changes. */
const CLEAN: Readonly<Record<string, string>> = {
  "policy.yaml": `reasons: { outage: Something does not work }
forbid:
  - rule: no-contractors
    why: They never reach it
    who: { group: contractors }
    target: { tag: pci }
`,
  "people.yaml": `- { name: ann, roles: [requester], groups: [payments] }
- { name: bob, roles: [requester, approver], groups: [payments, leads] }
- { name: carla, roles: [approver], groups: [leads] }
- { name: dora, roles: [approver], groups: [leads] }
- { name: eve, roles: [approver], groups: [others] }
- { name: fay, roles: [approver], groups: [others] }
- { name: con, roles: [requester], groups: [contractors] }
- { name: off, enabled: false, roles: [requester, approver], groups: [gone] }
- { name: sam, roles: [security_officer] }
`,
  "oncall.yaml": "payments: [ann, bob]\nplatform: { source: pagerduty:main, schedule: P1 }\n",
  "targets/orders.yaml": "target: orders\nkind: fake\ntags: [pci]\nconfig: { host: db }\n",
  "targets/staging.yaml": "target: staging\nkind: fake\nconfig: { host: db }\n",
  "playbooks/write.yaml": `playbook: write
summary: Repair
target: orders
scope: { role: orders_rw }
who: { oncall: payments }
when: { reason: [outage] }
approve:
  need: 1
  from: { group: leads }
time: { max: 45m, idle: 10m }
notify: [slack:incidents]
review: { by: { group: leads }, within: 2d }
drill: { every: 30d, on: staging }
tests:
  - allow: { who: ann, oncall: [payments], reason: outage, for: 30m, approvedBy: [carla] }
  - deny: { who: ann, oncall: [payments], reason: outage, for: 30m }
`,
};

type Edit = readonly [file: string, from: string, to: string];

/** The clean folder with some texts replaced. A text that is not there is a mistake of the test. */
function smellsOf(...edits: readonly Edit[]): readonly Smell[] {
  const files = new Map(Object.entries(CLEAN));
  for (const [file, from, to] of edits) {
    const before = files.get(file) ?? "";
    if (!before.includes(from)) throw new Error(`${file} does not have ${from}`);
    files.set(file, before.replace(from, to));
  }
  const compiled = compilePolicy({ files, kinds: FAKE_KINDS });
  if (!compiled.ok) throw new Error(formatProblems(compiled.problems));
  return lintPolicy(compiled.policy, files);
}

const WRITE = "playbooks/write.yaml";
/** `GK003 playbooks/write.yaml:10 write: …`, in the order of the report. */
const told = (smells: readonly Smell[]): readonly string[] =>
  smells.map(({ code, file, line, message }) => `${code} ${file}:${line} ${message}`);
const write = (from: string, to: string): Edit => [WRITE, from, to];

test("a careful policy has no smell", () => {
  expect(told(smellsOf())).toEqual([]);
});

describe("consent", () => {
  test("GK001: a quorum that could never be met", () => {
    expect(told(smellsOf(write("need: 1", "need: 2")))).toEqual([
      "GK001 playbooks/write.yaml:9 write: when bob asks, a quorum of 3 cannot be met: only carla, dora could approve",
    ]);
  });

  test("GK001: one of the requesters has too few approvers beside him, though others have enough", () => {
    const found = smellsOf(write("need: 1", "need: 3"));
    expect(told(found)).toEqual([
      "GK001 playbooks/write.yaml:9 write: when bob asks, 3 must approve, and only carla, dora could",
    ]);
  });

  test("GK001: sides that one requester leaves without a person of their own", () => {
    const sides = "from: [{ user: bob }, { user: [carla, dora] }]";
    expect(told(smellsOf(write("from: { group: leads }", sides), write("need: 1", "need: 2")))).toEqual([
      "GK001 playbooks/write.yaml:9 write: when bob asks, the sides of approve.from cannot each find a person of their own",
    ]);
  });

  test("GK002: those who ask and those who approve are the same people", () => {
    const same: readonly Edit[] = [
      write("who: { oncall: payments }", "who: { group: team }"),
      write("from: { group: leads }", "from: { group: team }"),
      ["people.yaml", "- { name: ann", "- { name: x1, roles: [requester, approver], groups: [team] }\n- { name: ann"],
      ["people.yaml", "- { name: ann", "- { name: x2, roles: [requester, approver], groups: [team] }\n- { name: ann"],
      ["people.yaml", "- { name: ann", "- { name: x3, roles: [requester, approver], groups: [team] }\n- { name: ann"],
      write("who: ann, oncall: [payments], reason: outage, for: 30m, approvedBy: [carla]", "who: x1"),
    ];
    expect(told(smellsOf(...same))).toEqual([
      "GK002 playbooks/write.yaml:9 write: the people who may ask and the people who may approve are the same: x1, x2, x3",
    ]);
  });

  test("GK009: what opens by itself and names nobody for the day on which a fact is unknown", () => {
    const found = smellsOf(
      write("need: 1\n  from: { group: leads }", "need: 0"),
      write("notify", "limit: { uses: 2, per: 7d }\nnotify"),
    );
    expect(told(found)).toEqual([
      "GK009 playbooks/write.yaml:7 write: opens by itself, and nobody can approve when a fact is unknown, or a review is overdue; it then stays shut",
    ]);
  });

  test("GK011: one person asleep keeps it shut; with sides, each side is looked at", () => {
    expect(told(smellsOf(write("from: { group: leads }", "from: { user: [bob, carla] }")))).toEqual([
      "GK011 playbooks/write.yaml:9 write: when bob asks, only carla can approve",
    ]);
    const sides = "from: [{ group: leads }, { user: eve }]";
    const found = smellsOf(write("from: { group: leads }", sides), write("need: 1", "need: 2"));
    expect(told(found)).toEqual(["GK011 playbooks/write.yaml:9 write: when bob asks, only eve can approve for side 2"]);
  });
});

describe("clauses that change nothing", () => {
  test("GK004: an alternative that is nobody, where another one is somebody", () => {
    expect(
      told(smellsOf(write("who: { oncall: payments }", "who: { oncall: payments, group: [payments, gone] }"))),
    ).toEqual([
      "GK004 playbooks/write.yaml:5 write: who.group:gone is nobody: no one it means is enabled and has the role requester",
    ]);
  });

  test("GK004: a rota that a source of evidence keeps is never nobody", () => {
    expect(told(smellsOf(write("who: { oncall: payments }", "who: { oncall: [payments, platform] }")))).toEqual([]);
  });

  test("GK004: a person who is in a group that is listed too", () => {
    expect(told(smellsOf(write("by: { group: leads }", "by: { group: leads, user: carla }")))).toEqual([
      "GK004 playbooks/write.yaml:12 write: review.by.user:carla changes nothing: carla is in group leads, which is listed too",
    ]);
  });

  test("GK004: an alternative that a rule forbids to all of its people", () => {
    expect(told(smellsOf(write("who: { oncall: payments }", "who: { oncall: payments, group: contractors }")))).toEqual(
      [
        "GK004 playbooks/write.yaml:5 write: who.group:contractors lets nobody in: the rule no-contractors forbids it to all of them",
      ],
    );
  });

  test("GK004: an idle time that is longer than any grant", () => {
    expect(told(smellsOf(write("idle: 10m", "idle: 45m")))).toEqual([
      "GK004 playbooks/write.yaml:10 write: time.idle (45m) never cuts: a grant ends after 45m",
    ]);
    expect(told(smellsOf(write("max: 45m, idle: 10m", "max: 45m, idle: 45m, extend: 1x30m")))).toEqual([]);
  });

  test("GK004: a rule that forbids something to nobody", () => {
    expect(told(smellsOf(["policy.yaml", "group: contractors", "group: gone"]))).toEqual([
      "GK004 policy.yaml:5 the rule no-contractors forbids nothing: no enabled requester is in its who",
    ]);
  });

  test("GK015: a playbook that a rule forbids to everybody, or in all of its hours", () => {
    const everybody: Edit = ["policy.yaml", "    who: { group: contractors }\n", ""];
    const message = "write: can never be used: the rule no-contractors forbids it to everybody";
    expect(told(smellsOf(everybody))).toEqual([`GK015 playbooks/write.yaml:1 ${message}`]);
    const hours = (denied: string): readonly Edit[] => [
      ["policy.yaml", "    who: { group: contractors }", `    hours: { days: [${denied}] }`],
      write("when: { reason: [outage] }", "when: { reason: [outage], hours: { days: [sat] } }"),
    ];
    expect(told(smellsOf(...hours("sat, sun")))).toEqual([`GK015 playbooks/write.yaml:1 ${message}`]);
    expect(told(smellsOf(...hours("sun")))).toEqual([]);
  });

  test("GK012 and GK013: reasons that nothing takes, templates that nothing extends", () => {
    const template = "template: base\ntime: { max: 45m }\n";
    const found = smellsOf(["policy.yaml", "work }", "work, other: Else }"]);
    expect(told(found)).toEqual(["GK012 policy.yaml:1 no playbook takes the reason other"]);
    const files = new Map([...Object.entries(CLEAN), ["playbooks/base.yaml", template]]);
    const compiled = compilePolicy({ files, kinds: FAKE_KINDS });
    if (!compiled.ok) throw new Error(formatProblems(compiled.problems));
    expect(told(lintPolicy(compiled.policy, files))).toEqual([
      "GK013 playbooks/base.yaml:1 no playbook extends the template base",
    ]);
  });
});

describe("what is too wide", () => {
  test("GK003: longer than four hours, at the key that makes it so", () => {
    expect(told(smellsOf(write("max: 45m", "max: 5h")))).toEqual([
      "GK003 playbooks/write.yaml:10 write: stays open for up to 5h",
    ]);
    expect(told(smellsOf(write("idle: 10m", "idle: 10m, extend: 7x30m")))).toEqual([
      "GK003 playbooks/write.yaml:10 write: stays open for up to 4h15m with its extensions",
    ]);
    expect(told(smellsOf(write("max: 45m", "max: 4h")))).toEqual([]);
  });

  test("GK003: what a template or a default says is shown where it stands", () => {
    const bare = write("time: { max: 45m, idle: 10m }\n", "");
    const found = smellsOf(bare, ["policy.yaml", "forbid:", "defaults:\n  time: { max: 6h }\nforbid:"]);
    expect(told(found)).toEqual(["GK003 policy.yaml:3 write: stays open for up to 6h"]);
  });

  test.each(["postgres", "root", "orders_admin", "rds_superuser", "cluster-admin", "dba"])(
    "GK005: %s sounds like a role that can do everything",
    (role) => {
      expect(told(smellsOf(write("orders_rw", role)))).toEqual([
        `GK005 playbooks/write.yaml:4 write: scope.role is "${role}", which sounds like a role that can do everything`,
      ]);
    },
  );

  test.each(["administration_ro", "rooted", "orders_owner", "postgres_ro"])("GK005: %s does not", (role) => {
    expect(told(smellsOf(write("orders_rw", role)))).toEqual([]);
  });

  test("GK005: a list that gives everything, or lets it be given", () => {
    for (const word of ["all", "'*'", "privileges"]) {
      const found = smellsOf(write("role: orders_rw", `role: orders_rw, allow: [read, ${word}]`));
      expect(found.map(({ code, line }) => `${code}:${line}`)).toEqual(["GK005:4"]);
    }
    expect(told(smellsOf(write("role: orders_rw", "role: orders_rw, never: [all, privileges]")))).toEqual([]);
  });

  test("GK008: opening without an answer where the tags say that it must not leak", () => {
    const silent = write("need: 1", "need: 1\n  unanswered: { after: 5m, then: open, for: 10m }");
    expect(told(smellsOf(silent))).toEqual([
      "GK008 playbooks/write.yaml:9 write: opens without an answer on orders, which is tagged pci",
    ]);
    const tags: readonly Edit[] = [
      ["targets/orders.yaml", "pci", "shop"],
      ["policy.yaml", "tag: pci", "tag: shop"],
    ];
    expect(told(smellsOf(silent, ...tags))).toEqual([]);
  });

  test("GK017: what opens by itself as often as anybody likes", () => {
    expect(told(smellsOf(write("need: 1", "need: 0")))).toEqual([
      "GK017 playbooks/write.yaml:8 write: opens by itself as often as anybody likes",
    ]);
  });
});

describe("what is left undone", () => {
  test("GK006, GK007, GK018: nothing is said of drills, reviews and channels", () => {
    const gone = [
      write("drill: { every: 30d, on: staging }\n", ""),
      write("review: { by: { group: leads }, within: 2d }\n", ""),
      write("notify: [slack:incidents]\n", ""),
    ];
    expect(smellsOf(...gone).map(({ code, severity }) => `${code} ${severity}`)).toEqual([
      "GK006 warning",
      "GK007 warning",
      "GK018 note",
    ]);
  });

  test("GK010: no tests, or only tests of one kind", () => {
    const only = write("  - deny: { who: ann, oncall: [payments], reason: outage, for: 30m }\n", "");
    expect(told(smellsOf(only))).toEqual(["GK010 playbooks/write.yaml:14 write: has no deny test"]);
    const files = CLEAN[WRITE] ?? "";
    expect(told(smellsOf(write(files.slice(files.indexOf("tests:")), "")))).toEqual([
      "GK010 playbooks/write.yaml:1 write: has no tests",
    ]);
  });

  test("GK014: a person whose own use nobody else can review", () => {
    const lone: readonly Edit[] = [
      ["people.yaml", "- { name: sam, roles: [security_officer] }\n", ""],
      write("by: { group: leads }", "by: { user: bob }"),
    ];
    expect(told(smellsOf(...lone))).toEqual([
      "GK014 playbooks/write.yaml:12 write: when bob uses it, nobody else can sign the review: it becomes overdue",
    ]);
  });
});

describe("an exception", () => {
  const long = write("max: 45m", "max: 5h");
  const comment = (text: string): Edit => write("playbook: write\n", `${text}\nplaybook: write\n`);

  test("with a reason takes the smell out of the count, and keeps the reason", () => {
    const found = smellsOf(long, comment("# glasskey-lint: allow GK003 because the migration takes five hours"));
    expect(found).toMatchObject([{ code: "GK003", because: "the migration takes five hours" }]);
  });

  test("holds for several codes, and for what the playbook inherits from another file", () => {
    const found = smellsOf(
      write("time: { max: 45m, idle: 10m }\n", ""),
      write("need: 1", "need: 0"),
      ["policy.yaml", "forbid:", "defaults:\n  time: { max: 6h }\nforbid:"],
      comment("# glasskey-lint: allow GK003, GK017 because the migration is long"),
    );
    expect(found.map(({ code, because }) => [code, because])).toEqual([
      ["GK017", "the migration is long"],
      ["GK003", "the migration is long"],
    ]);
  });

  test.each([
    ["# glasskey-lint: allow GK003", "an exception says why"],
    ["# glasskey-lint: allow GK003 because", "this is not a lint exception"],
    ["# glasskey-lint: allow GK999 because of me", "this code cannot be excepted"],
    ["# glasskey-lint: allow GK016 because of me", "this code cannot be excepted"],
    ["# glasskey-lint: allow all because of me", "this is not a lint exception"],
    ["# glasskey_lint: allow GK003 because of a slip", "this is not a lint exception"],
  ])("that is not right excepts nothing and is told: %s", (text, message) => {
    const found = smellsOf(long, comment(text));
    expect(found.map(({ code, because }) => [code, because])).toEqual([
      ["GK016", undefined],
      ["GK003", undefined],
    ]);
    expect(found[0]?.message).toBe(message);
  });

  test("that excepts nothing is told", () => {
    expect(told(smellsOf(comment("# glasskey-lint: allow GK003 because of old times")))).toEqual([
      "GK016 playbooks/write.yaml:1 the exception for GK003 has nothing to except",
    ]);
  });

  test("in another playbook's file, or within a text, is none", () => {
    const other = smellsOf(long, [
      "people.yaml",
      "- { name: ann",
      "# glasskey-lint: allow GK003 because I say so\n- { name: ann",
    ]);
    expect(other.map(({ code, because }) => [code, because])).toEqual([
      ["GK016", undefined],
      ["GK003", undefined],
    ]);
    const quoted = smellsOf(
      long,
      write("summary: Repair", 'summary: "# glasskey-lint: allow GK003 because of quotes"'),
    );
    expect(quoted.map(({ code, because }) => [code, because])).toEqual([["GK003", undefined]]);
  });
});

test("docs/playbook-lint.md has one section for each code with its severity, and no other", async () => {
  const page = await readFile(join(import.meta.dirname, "../../../docs/playbook-lint.md"), "utf8");
  const sections = [...page.matchAll(/^## (GK\d{3}): (\S+)\n\n_(\w+)\._/gm)].map(([, code, name, severity]) => [
    code,
    { name, severity },
  ]);
  expect(Object.fromEntries(sections)).toEqual(SMELLS);
  expect(sections).toHaveLength(Object.keys(SMELLS).length);
  expect(page.match(/^## GK/gm)).toHaveLength(sections.length);
});
