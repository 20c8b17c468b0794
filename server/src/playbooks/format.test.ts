import fc from "fast-check";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { parse, stringify } from "yaml";
import { FAKE_KINDS, SMALL } from "./fixtures/folder.ts";
import { formatFile } from "./format.ts";
import { compilePolicy, readPolicyFiles } from "./load.ts";
import { formatProblems } from "./problem.ts";
import { commentsOf } from "./sources.ts";

const root = join(import.meta.dirname, "../../..");

/** The formatted text; formatting it once more must change nothing. */
function formatted(source: string, path = "playbooks/a.yaml"): string {
  const result = formatFile(path, source);
  if (!result.ok) throw new Error(formatProblems(result.problems));
  expect(formatFile(path, result.text)).toEqual(result);
  return result.text;
}

const remarksOf = (source: string): readonly string[] =>
  commentsOf(source)
    .map(({ text }) => text)
    .toSorted();

describe("a playbook", () => {
  test("has its keys in the order of the docs, whatever the order in the file", () => {
    const source = `time: {idle: 10m, max: 45m}
tests:
- deny: {reason: outage, who: ann}
approve:
    from: {user: bob,   group: [leads]}
    need: 1
who: {group: payments, oncall: payments}
playbook: a
`;
    expect(formatted(source)).toBe(`playbook: a
who: { oncall: payments, group: payments }
approve:
  need: 1
  from: { group: [leads], user: bob }
time: { max: 45m, idle: 10m }
tests:
  - deny: { who: ann, reason: outage }
`);
  });

  test("keeps the order within scope, which belongs to the target's kind", () => {
    const source = "playbook: a\nscope: { role: rw, never: [drop], allow: [read] }\n";
    expect(formatted(source)).toBe(source);
  });

  test("keeps the writer's choice between brackets and lines, while brackets fit", () => {
    const source = "playbook: a\ntime:\n  max: 45m\nlimit: { uses: 2, per: 7d }\n";
    expect(formatted(source)).toBe(source);
  });

  test("breaks what is wider than 100 columns, from the outside", () => {
    const names = Array.from({ length: 8 }, (_, i) => `person-${i}`).join(", ");
    const source = `playbook: a\napprove: { need: 1, from: { user: [${names}] }, within: 10m }\n`;
    expect(formatted(source)).toBe(`playbook: a
approve:
  need: 1
  from: { user: [${names}] }
  within: 10m
`);
    const exact = (width: number): string => `playbook: ab\nnotify: [${"x".repeat(width - 10)}]\n`;
    expect(formatted(exact(100))).toBe(exact(100));
    expect(formatted(exact(101))).toBe(`playbook: ab\nnotify:\n  - ${"x".repeat(91)}\n`);
  });

  test("keeps quotes where they were, and texts that only look like something else", () => {
    const source = `playbook: a\nsummary: 'No: "x" # y'\nwhen: { hours: { from: "08:00", to: "18:00" } }\n`;
    expect(formatted(source)).toBe(source);
  });

  test("takes Windows line ends", () => {
    expect(formatted("time: { max: 5m }\r\nplaybook: a\r\n")).toBe("playbook: a\ntime: { max: 5m }\n");
  });
});

describe("comments", () => {
  test("go with their key, and the file's own stay on top", () => {
    const source = `# yaml-language-server: $schema=x.json
# The header.

# how long
time: { max: 5m } # short
# whose
who: { user: ann }
playbook: a
# the end
`;
    expect(formatted(source)).toBe(`# yaml-language-server: $schema=x.json
# The header.

playbook: a
# whose
who: { user: ann }
# how long
time: { max: 5m } # short

# the end
`);
  });

  test("for editors stay in the first line, next to what they stood next to", () => {
    const source = "# yaml-language-server: $schema=x.json\n# how long\ntime: { max: 5m }\nplaybook: a\n";
    expect(formatted(source)).toBe(
      "# yaml-language-server: $schema=x.json\nplaybook: a\n# how long\ntime: { max: 5m }\n",
    );
    const plain = "# yaml-language-server: $schema=x.json\nplaybook: a\ntime: { max: 5m }\n";
    expect(formatted(plain)).toBe(plain);
  });

  test("below a block stay with it; those that stand further out go with what follows", () => {
    const source = `playbook: a
approve:
  need: 1
  # still approve

# now time
time: { max: 5m }
when:
  reason:
    - x
    # of the list
  # of when
# of all
`;
    expect(formatted(source)).toBe(`playbook: a
when:
  reason:
    - x
    # of the list
  # of when
approve:
  need: 1
  # still approve

# now time
time: { max: 5m }

# of all
`);
  });

  test("above an entry of a list stay above it, in either style", () => {
    const source = "# Who there is.\n- name: ann\n  roles: [admin]\n# And she.\n- { roles: [admin], name: bea }\n";
    const wanted = "# Who there is.\n- name: ann\n  roles: [admin]\n# And she.\n- { name: bea, roles: [admin] }\n";
    expect(formatted(source, "people.yaml")).toBe(wanted);
    expect(formatted(wanted.replace("# And she.\n- {", "- # And she.\n  {"), "people.yaml")).toBe(wanted);
  });

  test("within brackets open them", () => {
    const source = `playbook: a\nwho: { group: [one, # first\n  two] }\n`;
    expect(formatted(source)).toBe("playbook: a\nwho:\n  group:\n    - one # first\n    - two\n");
  });
});

describe("a file", () => {
  test.each(["playbook: [", "a: 1\na: 2\n", "&x playbook: a\n", "", "playbook: !!str a\n", "\tplaybook: a\n"])(
    "with a mistake is refused: %j",
    (source) => {
      expect(formatFile("playbooks/a.yaml", source).ok).toBe(false);
    },
  );

  test("that could be anything is refused", () => {
    expect(formatFile("x.yaml", "a: 1\n")).toMatchObject({ ok: false, problems: [{ file: "x.yaml" }] });
  });

  test("is known by its name, its folder, or its keys", () => {
    expect(formatted("- { roles: [admin], name: ann }\n", "people.yaml")).toBe("- { name: ann, roles: [admin] }\n");
    expect(formatted("r: { schedule: S, source: a:b }\n", "x/oncall.yaml")).toBe("r: { source: a:b, schedule: S }\n");
    expect(formatted("kind: k\ntarget: t\n", "anything.yaml")).toBe("target: t\nkind: k\n");
    expect(formatted("zone: UTC\nreasons: { b: B, a: A }\n", "policy.yaml")).toBe(
      "reasons: { b: B, a: A }\nzone: UTC\n",
    );
  });

  test("of a secret is never shown in a refusal", () => {
    const refused = formatFile("people.yaml", "- name: ann\n  secret: hunter2-hunter2\n  secret: [\n");
    expect(JSON.stringify(refused)).not.toContain("hunter2");
  });
});

test("what the example policy means is the same afterwards, comments and all", async () => {
  const { files, problems } = await readPolicyFiles(join(root, "examples/policy"));
  expect(problems).toEqual([]);
  const yaml = [...files].filter(([path]) => path.endsWith(".yaml"));
  expect(yaml.length).toBeGreaterThan(5);
  for (const [path, source] of yaml) {
    const text = formatted(source, path);
    const remarks = (of: string): readonly string[] =>
      commentsOf(of)
        .map((comment) => comment.text)
        .toSorted();
    expect(remarks(text)).toEqual(remarks(source));
    expect(text.split("\n").filter((line) => line.length > 130)).toEqual([]);
  }
});

test("the example policy is in its canonical form", async () => {
  const { files } = await readPolicyFiles(join(root, "examples/policy"));
  const odd = [...files].filter(([path, source]) => path.endsWith(".yaml") && formatted(source, path) !== source);
  expect(odd.map(([path]) => path)).toEqual([]);
});

/** Shuffles the keys of every map, as another writer would have them. */
const shuffled = (value: unknown, random: () => number): unknown => {
  if (Array.isArray(value)) return value.map((item: unknown) => shuffled(item, random));
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).map(([key, item]) => ({ key, item: shuffled(item, random), rank: random() }));
  return Object.fromEntries(entries.toSorted((a, b) => a.rank - b.rank).map(({ key, item }) => [key, item]));
};

const people = fc.subarray(["ann", "bob"], { minLength: 1 });
const playbook = fc.record(
  {
    playbook: fc.constant("read"),
    summary: fc.stringMatching(/^[A-Za-z#:'"{}[\],&*!|>%@`?-][ -~]{0,60}[a-z]$/),
    target: fc.constant("orders"),
    scope: fc.record({
      role: fc.constant("ro"),
      never: fc.array(fc.stringMatching(/^[a-z]{1,9}$/), { maxLength: 30 }),
    }),
    who: fc.record(
      { oncall: fc.constant("payments"), user: people, group: fc.constant("payments") },
      { requiredKeys: ["oncall"] },
    ),
    when: fc.record(
      {
        reason: fc.constant(["outage"]),
        incident: fc.constantFrom("SEV1", ["SEV1", "SEV2"]),
        zone: fc.constant("UTC"),
      },
      { requiredKeys: ["reason"] },
    ),
    approve: fc.record({
      need: fc.constantFrom(0, 1),
      from: fc.constantFrom({ group: "leads" }, { user: ["carla", "bob"] }),
      within: fc.constantFrom("10m", "1h30m"),
    }),
    time: fc.record(
      { max: fc.constant("30m"), idle: fc.constant("5m"), extend: fc.constant("2x10m") },
      { requiredKeys: ["max"] },
    ),
    limit: fc.record({ uses: fc.constant(2), per: fc.constant("7d"), concurrent: fc.constant(1) }),
    notify: fc.constant(["slack:incidents"]),
  },
  { requiredKeys: ["playbook", "summary", "target", "scope", "who", "when", "approve", "time"] },
);

test("the hash of a playbook is the same before and after, for any playbook in any order and layout", () => {
  const hashOf = (text: string): string => {
    const files = Object.entries({ ...SMALL, "playbooks/read.yaml": text }).flatMap(([path, content]) =>
      typeof content === "string" ? [[path, content] as const] : [],
    );
    const compiled = compilePolicy({ files: new Map(files), kinds: FAKE_KINDS });
    if (!compiled.ok) throw new Error(`${text}\n${formatProblems(compiled.problems)}`);
    return compiled.policy.playbooks.map(({ hash }) => hash).join();
  };
  fc.assert(
    fc.property(
      playbook,
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 40, maxLength: 40 }),
      fc.constantFrom(0, 2, 9),
      (value, ranks, flowDepth) => {
        let at = 0;
        const random = (): number => ranks[at++ % ranks.length] ?? 0;
        const flow = stringify(shuffled(value, random), {
          collectionStyle: flowDepth === 9 ? "flow" : "any",
          lineWidth: flowDepth === 0 ? 40 : 0,
        });
        expect(hashOf(formatted(flow))).toBe(hashOf(flow));
      },
    ),
    { numRuns: 40 },
  );
});

test("no text makes it throw or loop, and what it takes keeps its meaning", () => {
  let accepted = 0;
  const lines = fc.array(
    fc.constantFrom(
      "a: 1",
      "  b: [1, 2]",
      "# x",
      "  # y",
      "",
      "- c",
      "    d: { e: f } # z",
      "playbook: p",
      "  - g: |",
      "      text # no",
      "key:",
      "]",
      "'q': \"r\"",
      "---",
      "?",
    ),
    { maxLength: 12 },
  );
  fc.assert(
    fc.property(lines, (parts) => {
      const source = `${parts.join("\n")}\n`;
      const result = formatFile("playbooks/a.yaml", source);
      if (!result.ok) return;
      accepted++;
      expect(parse(result.text)).toEqual(parse(source));
      expect(remarksOf(result.text)).toEqual(remarksOf(source));
      expect(formatFile("playbooks/a.yaml", result.text)).toEqual(result);
    }),
    { numRuns: 600 },
  );
  expect(accepted).toBeGreaterThan(20);
});
