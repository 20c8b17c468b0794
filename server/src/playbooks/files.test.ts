import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readDocument } from "./document.ts";
import { readPolicyFiles } from "./files.ts";
import { FAKE_KINDS, SMALL } from "./fixtures/folder.ts";
import { compilePolicy, loadPolicy } from "./load.ts";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-files-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

async function write(name: string, files: Readonly<Record<string, string>>): Promise<string> {
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(folder, name, path)), { recursive: true });
    await writeFile(join(folder, name, path), text);
  }
  return join(folder, name);
}

const GOOD = Object.fromEntries(Object.entries(SMALL).map(([path, text]) => [path, String(text)]));
const kinds = FAKE_KINDS;
const WITH_CA = {
  ...GOOD,
  "targets/orders.yaml":
    "target: orders\nkind: fake\nconfig: { tls: { ca: ../ca/orders.pem }, password: '${file:../secrets/orders}' }\n",
  "ca/orders.pem": "-----BEGIN CERTIFICATE-----\n",
};

function messages(result: ReturnType<typeof compilePolicy>): readonly string[] {
  return result.ok ? [] : result.problems.map(({ file, message }) => `${file}: ${message}`);
}

describe("a bundle", () => {
  test("is what a folder's policy is made of: its YAML, and the certificates that targets name", async () => {
    const there = await write("whole", {
      ...WITH_CA,
      "README.md": "read me",
      "ca/other.pem": "x",
      ".git/config.yaml": "x",
    });
    const { files, problems } = await readPolicyFiles(there);
    expect(problems).toEqual([]);
    expect([...files.keys()].toSorted()).toEqual(Object.keys(WITH_CA).toSorted());
  });

  test("gives the same policy and hash in memory, from any folder, on any machine", async () => {
    const one = await loadPolicy({ folder: await write("one", WITH_CA), kinds });
    const two = await loadPolicy({ folder: await write("deep/er/two", WITH_CA), kinds });
    const memory = compilePolicy({ files: new Map(Object.entries(WITH_CA).toReversed()), kinds });
    expect(messages(memory)).toEqual([]);
    const hashes = [one, two, memory].map((loaded) => (loaded.ok ? loaded.policy.hash : ""));
    expect(new Set(hashes).size).toBe(1);
    expect(memory.ok && memory.policy.target("orders")?.config).toEqual({
      ...{ tls: { ca: "-----BEGIN CERTIFICATE-----\n" }, password: "${file:secrets/orders}" },
    });
  });

  test("in memory reaches for nothing outside: a certificate that is not in it is missing", () => {
    const target = (ca: string): string => `target: orders\nkind: fake\nconfig: { tls: { ca: ${ca} } }\n`;
    for (const ca of ["orders.pem", "../../../etc/hostname", "/etc/hostname", "./orders.yaml/../x"]) {
      const files = new Map(Object.entries({ ...GOOD, "targets/orders.yaml": target(ca) }));
      expect(messages(compilePolicy({ files, kinds })), ca).toEqual([
        "targets/orders.yaml: config.tls.ca: there is no such file, or it cannot be read",
      ]);
    }
  });
});

describe("files that would be silently no rule", () => {
  test("are told: misspelt names and folders, other endings, folders below", () => {
    const odd = {
      ...GOOD,
      ...{ "polcy.yaml": "x", "playbook/x.yaml": "x", "playbook/y.yaml": "x", "targets/a.yml": "x" },
      ...{
        "playbooks/team/deep.yaml": "x",
        "docs/notes.yaml": "x",
        ".github/policy.yaml": "x",
        "targets/.x.yaml": "x",
      },
    };
    expect(messages(compilePolicy({ files: new Map(Object.entries(odd)), kinds }))).toEqual([
      "playbook: this name means nothing in a policy folder",
      "playbooks/team/deep.yaml: files in folders below playbooks/ are not read",
      "polcy.yaml: this name means nothing in a policy folder",
      "targets/a.yml: policy files end in .yaml",
    ]);
  });

  test("are told from a folder too, and what cannot be read is not also called missing", async () => {
    const there = await write("odd", {
      ...GOOD,
      "playbooks/team/deep.yaml": "x",
      "policy.yaml": "#".repeat(300 * 1024),
    });
    expect(messages(await loadPolicy({ folder: there, kinds }))).toEqual([
      "playbooks/team/deep.yaml: files in folders below playbooks/ are not read",
      "policy.yaml: larger than 256 KiB",
    ]);
    const nowhere = join(folder, "nowhere");
    expect(messages(await loadPolicy({ folder: nowhere, kinds }))).toEqual([`.: there is no folder ${nowhere}`]);
  });
});

describe("what is too much", () => {
  test("a 10 MB file is refused without being parsed, wherever it comes from", async () => {
    const large = `# ${"x".repeat(10 * 1024 * 1024)}\n`;
    for (const path of ["policy.yaml", "people.yaml", "oncall.yaml", "targets/orders.yaml", "playbooks/read.yaml"]) {
      const files = new Map(Object.entries({ ...GOOD, [path]: large }));
      const limit = path === "people.yaml" ? "4096" : "256";
      expect(messages(compilePolicy({ files, kinds })), path).toContain(`${path}: larger than ${limit} KiB`);
    }
    const there = await write("large", { ...GOOD, "playbooks/read.yaml": large });
    expect(messages(await loadPolicy({ folder: there, kinds }))).toEqual(["playbooks/read.yaml: larger than 256 KiB"]);
  });

  test("many files, and much in all of them together, are refused", () => {
    const many = Array.from({ length: 4_001 }, (_, i): [string, string] => [`playbooks/p${i}.yaml`, "x"]);
    expect(messages(compilePolicy({ files: new Map(many), kinds }))).toContain(
      ".: 4001 files; a policy has 4000 at most",
    );
    const much = Array.from({ length: 160 }, (_, i): [string, string] => [`notes/n${i}.pem`, "x".repeat(256 * 1024)]);
    const files = new Map([...Object.entries(GOOD), ...much]);
    expect(messages(compilePolicy({ files, kinds }))).toEqual([
      ".: the policy's files are larger than 32 MiB together",
    ]);
  });

  test("a folder that leads back to itself is not followed", async () => {
    const there = await write("circle", GOOD);
    await symlink(there, join(there, "playbooks", "again"));
    expect(messages(await loadPolicy({ folder: there, kinds }))).toEqual([]);
  });

  test("of a line of a hundred thousand characters, only what is around each mistake is shown, with the mark on the word", () => {
    const people = Array.from(
      { length: 5_000 },
      (_, i) => `{name: p${i}, roles: [${i % 100 === 0 ? "admn" : "admin"}]}`,
    );
    const loaded = compilePolicy({
      files: new Map(Object.entries({ ...GOOD, "people.yaml": `[${people.join(", ")}]\n` })),
      kinds,
    });
    const problems = loaded.ok ? [] : loaded.problems.filter(({ message }) => message === 'there is no role "admn"');
    expect(problems).toHaveLength(50);
    for (const { source = "", mark } of problems) {
      expect(source.length).toBeLessThan(2_100);
      expect(source.slice(mark?.at ?? 0, (mark?.at ?? 0) + (mark?.length ?? 0))).toBe("admn");
    }
    expect(problems.at(25)?.source).toMatch(/^….*…$/);
  });

  test("thousands of names that do not exist end in 50 messages, and a suggestion is looked for no oftener than that", () => {
    const names = Array.from({ length: 15_000 }, (_, i) => `persn-${i}`).join(", ");
    const files = new Map(Object.entries({ ...GOOD, "oncall.yaml": `payments: [${names}]\n` }));
    const told = messages(compilePolicy({ files, kinds }));
    expect(told.filter((text) => text.startsWith("oncall.yaml: there is no person"))).toHaveLength(50);
    expect(told).toContain("oncall.yaml: and 14950 more problems in this file");
    const document = readDocument("x.yaml", "- x\n".repeat(400));
    let asked = 0;
    for (let start = 0; start < 1_000; start++) document.report({ start, end: start + 1 }, "no", () => String(asked++));
    expect(asked).toBeLessThanOrEqual(50);
    expect(asked).toBeGreaterThan(0);
  });
});
