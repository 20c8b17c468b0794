import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const root = dirname(import.meta.dirname);
const example = join(root, "examples/policy");
const WORKFLOW = ".github/workflows/policy.yml";

interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

async function execute(command: string, args: readonly string[], cwd: string): Promise<Ran> {
  const env = { ...process.env, NO_COLOR: "1", GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_NOSYSTEM: "1" };
  const child = spawn(command, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
  let [out, err] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => (out += chunk.toString("utf8")));
  child.stderr.on("data", (chunk: Buffer) => (err += chunk.toString("utf8")));
  const [code] = (await once(child, "close")) as [number | null];
  return { code, out, err };
}

async function glass(folder: string, ...args: readonly string[]): Promise<Ran> {
  return await execute(process.execPath, [join(root, "cli/bin/glass.mjs"), "playbook", ...args], folder);
}

async function git(folder: string, ...args: readonly string[]): Promise<void> {
  const ran = await execute("git", ["-c", "user.name=t", "-c", "user.email=t@t.example", ...args], folder);
  expect(ran, args.join(" ")).toMatchObject({ code: 0 });
}

describe("the example policy, as a repository of its own", () => {
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "glasskey-example-"));
    await cp(example, folder, { recursive: true });
    await git(folder, "init", "--quiet");
    await git(folder, "add", "--all");
    await git(folder, "commit", "--quiet", "--message", "The example");
  });
  afterAll(async () => await rm(folder, { recursive: true, force: true }));

  test("has no mistake and no smell", async () => {
    expect(await glass(folder, "lint", ".", "--strict")).toMatchObject({ code: 0 });
  });

  test("passes its own tests, and they exercise every clause", async () => {
    const ran = await glass(folder, "test", ".", "--cover", "--min", "100");
    expect(ran).toMatchObject({ code: 0 });
    expect(ran.out).toContain("all passed");
  });

  test("is formatted", async () => {
    expect(await glass(folder, "fmt", "--check", ".")).toMatchObject({ code: 0 });
  });

  test("gives an empty plan against itself", async () => {
    const ran = await glass(folder, "plan", "HEAD:.", ".", "--markdown");
    expect(ran).toMatchObject({ code: 0, out: "**Access stays the same: no difference.**\n" });
  });

  test("gives a plan that says who gains, with a witness, when a branch widens it", async () => {
    const file = join(folder, "playbooks/orders-db-write.yaml");
    const text = await readFile(file, "utf8");
    await writeFile(file, text.replace("who: { oncall: payments }", "who: { oncall: payments, group: platform }"));
    const ran = await glass(folder, "plan", "HEAD:.", ".", "--markdown");
    await writeFile(file, text);
    expect(ran.code, ran.err).toBe(4);
    expect(ran.out).toMatch(/^\*\*Access widens: 1 widening change\.\*\*/);
    expect(ran.out).toContain("| `who.group:platform` | `named now` | `orders-db-write` | `dev`, `eli` |");
    expect(ran.out).toMatch(/now yes to `dev opens orders-db-write /);
  });

  test("gives a plan that says what a command more and a path more let people do on a host", async () => {
    const file = join(folder, "playbooks/shop-web-restart.yaml");
    const text = await readFile(file, "utf8");
    const plan = async (from: string, to: string): Promise<Ran> => {
      expect(text).toContain(from);
      await writeFile(file, text.replace(from, to));
      const ran = await glass(folder, "plan", "HEAD:.", ".");
      await writeFile(file, text);
      return ran;
    };
    const narrower = await plan("read: [/var/log/shop/**]", "read: [/var/log/shop/*.log]");
    expect(narrower).toMatchObject({ code: 0, out: expect.stringMatching(/^Access does not widen/) as string });
    const wider = await plan("read: [/var/log/shop/**]", "read: [/var/log/**]");
    expect([wider.code, wider.out]).toEqual([4, expect.stringMatching(/such as \/var\/log\/x/)]);
    expect((await plan("status --no-pager shop*", "status ...")).out).toMatch(/^Access widens/);
  });

  test("has a workflow that runs these commands and no others, and cannot be made to write by a fork", async () => {
    const workflow = await readFile(join(folder, WORKFLOW), "utf8");
    const commands = [...workflow.matchAll(/glass\.mjs playbook (.+?)(?: > |$)/gm)].map(([, command]) => command);
    expect(commands).toEqual([
      "lint . --strict",
      "fmt --check .",
      "test . --cover --min 90",
      'plan "$BASE:." . --markdown',
    ]);
    expect(workflow).toMatch(/^on: pull_request\b(?!_)/m);
    expect(workflow).not.toMatch(/\bsecrets\./);
    // What GitHub puts into a script before the shell reads it, such as a branch's name, would be run.
    const scripts = [...workflow.matchAll(/^ {8}run: (?:\|\n((?: {10}.*\n)+)|(.*)\n)/gm)].map(([script]) => script);
    expect(scripts).toHaveLength(6);
    expect(scripts.filter((script) => script.includes("${{"))).toEqual([]);
  });
});
