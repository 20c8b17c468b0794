import { execFile } from "node:child_process";
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const glass = join(import.meta.dirname, "../bin/glass.mjs");

const FILES: Readonly<Record<string, string>> = {
  "policy.yaml": "reasons: { outage: Something does not work, data-loss: Data is being lost }\n",
  "people.yaml": `- { name: ann, roles: [requester], groups: [payments], aliases: [ann@shop.example] }
- { name: bob, roles: [approver], groups: [leads] }
- { name: carla, roles: [approver], groups: [leads] }
- { name: dora, roles: [approver] }
- { name: zoe, roles: [requester] }
`,
  "oncall.yaml": "payments: [ann]\nplatform: { source: pagerduty:main, schedule: P1 }\n",
  "targets/orders.yaml": `target: orders
kind: postgres
config:
  host: orders.example
  databases: [orders]
  tls: { ca: system }
  admin: { user: glasskey, password: "\${file:secret}" }
`,
  "playbooks/write.yaml": `playbook: write
summary: Repair
target: orders
scope: { role: orders_rw }
who: { oncall: [payments, platform] }
when: { reason: [outage], incident: [SEV1, SEV2] }
approve:
  need: 1
  from: { group: leads }
time: { max: 45m }
tests:
  - allow: { who: ann, oncall: [payments], incident: SEV1, reason: outage, for: 45m, approvedBy: [bob] }
  - deny: { who: ann, oncall: [payments], incident: SEV1, reason: outage, for: 46m, approvedBy: [bob] }
`,
};

let home: string;
let folder: string;

interface Run {
  code: number;
  stdout: string;
  stderr: string;
}

/** `glass playbook …` in the folder above the policy's, without a terminal. */
function run(...args: readonly string[]): Promise<Run> {
  return new Promise((resolve) => {
    const options = { cwd: home, env: { ...process.env, NO_COLOR: undefined, FORCE_COLOR: undefined } };
    const command = ["--disable-warning=ExperimentalWarning", glass, "playbook", ...args];
    execFile(process.execPath, command, options, (error, stdout, stderr) => {
      resolve({ code: typeof error?.code === "number" ? error.code : error === null ? 0 : -1, stdout, stderr });
    });
  });
}

const tooWide = ({ stdout, stderr }: Run): readonly string[] =>
  `${stdout}${stderr}`.split("\n").filter((line) => line.length > 80);

/** The policy under another name, with some texts replaced. */
async function variant(
  name: string,
  edits: readonly (readonly [file: string, from: string, to: string])[],
): Promise<string> {
  const other = join(home, name);
  await cp(folder, other, { recursive: true });
  for (const [file, from, to] of edits) {
    const before = await readFile(join(other, file), "utf8");
    if (!before.includes(from)) throw new Error(`${file} does not have ${from}`);
    await writeFile(join(other, file), before.replace(from, to));
  }
  return name;
}

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "glasskey-playbook-"));
  folder = join(home, "policy");
  for (const sub of ["targets", "playbooks"]) await mkdir(join(folder, sub), { recursive: true });
  for (const [path, content] of Object.entries(FILES)) await writeFile(join(folder, path), content);
});
afterAll(async () => {
  await rm(home, { recursive: true, force: true });
});

describe("glass playbook lint", () => {
  test("finds the folder, tells smells with their place, and fails only with --strict", async () => {
    const plain = await run("lint");
    expect(plain.code).toBe(0);
    expect(plain.stdout).toContain("playbooks/write.yaml:1:11 GK006 no-drill\n  write: is never practised\n");
    expect(tooWide(plain)).toEqual([]);
    const strict = await run("lint", "policy", "--strict", "--json");
    expect(strict.code).toBe(1);
    const { ok, smells } = JSON.parse(strict.stdout) as { ok: boolean; smells: { code: string; line: number }[] };
    expect(ok).toBe(false);
    expect(smells.find(({ code }) => code === "GK006")).toMatchObject({ line: 1, file: "playbooks/write.yaml" });
  });

  test("tells mistakes first, of all files, with exit code 2", async () => {
    const broken = await variant("broken", [
      ["playbooks/write.yaml", "need: 1", "ned: 1"],
      ["people.yaml", "roles: [requester]", "roles: [requestor]"],
    ]);
    const told = await run("lint", broken);
    expect(told).toMatchObject({ code: 2, stdout: "" });
    expect(told.stderr).toContain('playbooks/write.yaml:8:3: approve has no key "ned"');
    expect(told.stderr).toContain('there is no role "requestor"');
    const json = await run("lint", broken, "--json");
    expect(JSON.parse(json.stdout)).toMatchObject({
      error: { code: "config_invalid", details: { problems: [{}, {}] } },
    });
  });
});

describe("glass playbook test", () => {
  test("passes, and with --cover lists what no test exercises", async () => {
    expect(await run("test")).toMatchObject({ code: 0, stderr: "" });
    const cover = await run("test", "--cover");
    expect(cover.code).toBe(0);
    expect(cover.stdout).toMatch(/^ {4}approve\.need +a deny without an approval$/m);
    expect(cover.stdout).toMatch(/^\d+% covered/m);
    expect(tooWide(cover)).toEqual([]);
  });

  test("fails below --min, and refuses a --min that is no percentage", async () => {
    const { stdout } = await run("test", "--cover", "--json");
    const { percent } = (JSON.parse(stdout) as { coverage: { percent: number } }).coverage;
    expect((await run("test", "--min", String(percent))).code).toBe(0);
    expect((await run("test", "--min", String(percent + 1))).code).toBe(1);
    expect((await run("test", "--min", "most")).code).toBe(2);
    expect((await run("test", "--min", "101")).code).toBe(2);
  });

  test("fails with the place, the facts and the clause of a test that does not hold", async () => {
    const wrong = await variant("wrong", [["playbooks/write.yaml", "deny: { who: ann", "allow: { who: ann"]]);
    const failed = await run("test", wrong);
    expect(failed.code).toBe(1);
    expect(failed.stdout).toContain("playbooks/write.yaml:13\n");
    expect(failed.stdout).toContain("allow ann, reason outage, for 46m, incident SEV1, approved by bob");
    expect(failed.stdout).toMatch(/✗ {2}time\.max/);
    expect(failed.stdout).not.toMatch(/✗ {2}who/);
    expect(tooWide(failed)).toEqual([]);
  });

  test("fails where there is no test: nothing was checked", async () => {
    const tests = (FILES["playbooks/write.yaml"] ?? "").replace(/^[^]*(?=^tests:)/m, "");
    const none = await variant("none", [["playbooks/write.yaml", tests, ""]]);
    expect((await run("test", none)).code).toBe(1);
  });
});

describe("glass playbook explain", () => {
  test("says that it waits, for whom, and what was assumed", async () => {
    const waits = await run("explain", "write", "--as", "ann@shop.example", "--incident", "SEV1");
    expect(waits.code).toBe(4);
    expect(waits.stdout).toContain("May ann open write? it waits for 1 more person to agree");
    expect(waits.stdout).toContain("outage (the playbook's first)");
    expect(waits.stdout).toContain("  bob, carla\n");
    expect(tooWide(waits)).toEqual([]);
  });

  test("says yes with approvals that count, and counts no other", async () => {
    const asked = ["explain", "write", "--as", "ann", "--incident", "SEV2", "--approved-by"];
    expect((await run(...asked, "carla")).code).toBe(0);
    expect((await run(...asked, "dora")).code).toBe(4);
    expect((await run(...asked, "ann,dora")).code).toBe(4);
  });

  test("says no, which clause failed, and what would have to be true", async () => {
    const no = await run("explain", "write", "--as", "zoe", "--oncall", "", "--for", "2h", "--json");
    expect(no.code).toBe(3);
    const found = JSON.parse(no.stdout) as {
      answer: string;
      clauses: { clause: string; held: boolean }[];
      wouldHold: string[];
    };
    expect(found.answer).toBe("no");
    expect(found.clauses.filter(({ held }) => !held).map(({ clause }) => clause)).toEqual([
      ...["who.oncall:payments", "who.oncall:platform", "when.incident", "time.max"],
    ]);
    expect(found.wouldHold.length).toBeGreaterThanOrEqual(3);
  });

  test("takes what nobody knows for what a human must decide, never for a yes", async () => {
    const asked = ["explain", "write", "--as", "zoe", "--unknown", "incident"];
    const waits = await run(...asked); // platform is kept elsewhere, so whether zoe is on call is unknown too
    expect(waits.code).toBe(4);
    expect(waits.stdout).toMatch(/^ {2}\? {2}when\.incident/m);
    expect((await run(...asked, "--approved-by", "bob")).code).toBe(0);
  });

  test("shows a quorum and its cause", async () => {
    const asked = ["explain", "write", "--as", "ann", "--incident", "SEV1", "--overdue", "1"];
    const quorum = await run(...asked, "--approved-by", "bob");
    expect(quorum.code).toBe(4);
    expect(quorum.stdout).toContain("A quorum decides, because\n  A review of write is overdue.");
    expect((await run(...asked, "--approved-by", "bob,carla")).code).toBe(0);
  });

  test("shows the Cedar text", async () => {
    const { stdout } = await run("explain", "write", "--as", "ann", "--cedar");
    expect(stdout).toMatch(/^\/\/ time\.max$/m);
    expect(stdout).toMatch(/^forbid \(/m);
  });

  test.each([
    [["wirte", "--as", "ann"], 'Did you mean "write"?'],
    [["write", "--as", "ann", "--aproved-by", "bob"], "Did you mean --approved-by?"],
    [["write", "--as", "ann", "--for", "soon"], "Write it as 30m"],
    [["write"], "--as ann"],
  ])("refuses a slip in the command and helps: %j", async (args, help) => {
    const refused = await run("explain", ...args);
    expect(refused).toMatchObject({ code: 2, stdout: "" });
    expect(refused.stderr.replaceAll(/\s+/g, " ")).toContain(help);
  });
});

describe("glass playbook plan", () => {
  test("tells by the exit code whether access was widened", async () => {
    const wider = await variant("wider", [["playbooks/write.yaml", "max: 45m", "max: 46m"]]);
    const widened = await run("plan", "policy", wider);
    expect(widened.code).toBe(4);
    expect(widened.stdout).toContain("time.max");
    expect((await run("plan", wider, "policy")).code).toBe(0);
    expect((await run("plan", "policy", "policy")).code).toBe(0);
    const json = await run("plan", "policy", wider, "--json");
    expect(JSON.parse(json.stdout)).toMatchObject({ widened: true });
    expect((await run("plan", "policy", wider, "--markdown")).stdout).toContain("| rule |");
  });

  test("refuses a version that is not there, or has mistakes", async () => {
    expect((await run("plan", "policy")).code).toBe(2);
    expect(await run("plan", "policy", "nowhere")).toMatchObject({ code: 2, stdout: "" });
    expect(await run("plan", "HEAD:policy", "policy")).toMatchObject({ code: 2, stdout: "" });
    const worse = await variant("worse", [["playbooks/write.yaml", "need: 1", "need: many"]]);
    const refused = await run("plan", "policy", worse);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain("playbooks/write.yaml:8");
  });
});

describe("glass playbook fmt", () => {
  test("with --check changes nothing; without, it changes the files and their meaning stays", async () => {
    const messy = await variant("messy", [
      ["playbooks/write.yaml", "playbook: write\nsummary: Repair\n", "summary:   Repair\nplaybook: write\n"],
    ]);
    const path = join(home, messy, "playbooks/write.yaml");
    const before = await readFile(path, "utf8");
    await chmod(path, 0o640);
    const checked = await run("fmt", "--check", messy);
    expect(checked).toMatchObject({
      code: 1,
      stdout: expect.stringContaining(`would change  ${messy}/playbooks/write.yaml`) as string,
    });
    expect(await readFile(path, "utf8")).toBe(before);
    expect((await run("fmt", messy)).code).toBe(0);
    expect(await readFile(path, "utf8")).toMatch(/^playbook: write\nsummary: Repair\n/);
    expect((await stat(path)).mode & 0o777).toBe(0o640);
    expect((await run("fmt", "--check", messy)).code).toBe(0);
    expect((await run("plan", "policy", messy)).code).toBe(0);
    expect((await readdir(join(home, messy, "playbooks"))).toSorted()).toEqual(["write.yaml"]);
  });

  test("writes nothing at all where one file has a mistake", async () => {
    const mixed = await variant("mixed", [
      ["people.yaml", "- { name: ann, roles", "- {roles"],
      ["policy.yaml", "reasons: {", "reasons: {   "],
      ["oncall.yaml", "payments: [ann]", "payments: [ann"],
    ]);
    const before = await readFile(join(home, mixed, "policy.yaml"), "utf8");
    const refused = await run("fmt", mixed);
    expect(refused).toMatchObject({ code: 2, stdout: "" });
    expect(refused.stderr).toContain("oncall.yaml:");
    expect(await readFile(join(home, mixed, "policy.yaml"), "utf8")).toBe(before);
  });

  test("leaves a symbolic link a link, and writes what it leads to", async () => {
    const linked = await variant("linked", []);
    const file = join(home, linked, "policy.yaml");
    await rm(file);
    await writeFile(join(home, "elsewhere.yaml"), "reasons: {outage: Out, data-loss: Lost}\n");
    await symlink("../elsewhere.yaml", file);
    expect((await run("fmt", join(linked, "policy.yaml"))).code).toBe(0);
    expect(await readlink(file)).toBe("../elsewhere.yaml");
    expect(await readFile(join(home, "elsewhere.yaml"), "utf8")).toBe("reasons: { outage: Out, data-loss: Lost }\n");
  });
});

describe("glass playbook", () => {
  test("without a verb tells them all; a wrong one is a mistake with a suggestion", async () => {
    const bare = await run();
    expect(bare.code).toBe(2);
    for (const verb of ["lint", "test", "plan", "explain", "fmt"])
      expect(bare.stdout).toContain(`glass playbook ${verb}`);
    expect(tooWide(bare)).toEqual([]);
    expect(await run("lnit")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("glass playbook lint?") as string,
    });
    expect((await run("lint", "one", "two")).code).toBe(2);
    expect((await run("lint", "nowhere")).code).toBe(2);
  });

  test.each(["lint", "test", "plan", "explain", "fmt"])(
    "%s has help with an example that fits the screen",
    async (verb) => {
      const help = await run(verb, "--help");
      expect(help).toMatchObject({ code: 0, stderr: "" });
      expect(help.stdout).toMatch(/Example: glass playbook \w+/);
      expect(tooWide(help)).toEqual([]);
    },
  );

  test("shows control characters of a file as text, and colours nothing without a terminal", async () => {
    const evil = await variant("evil", [
      ["playbooks/write.yaml", "summary: Repair", 'summary: "\u001B]0;gone\u0007\u001B[2J"'],
    ]);
    const told = await run("lint", evil);
    expect(told.code).toBe(2);
    expect(`${told.stdout}${told.stderr}`).not.toMatch(/[\u0000-\u0009\u000B-\u001F\u007F-\u009F]/);
  });
});
