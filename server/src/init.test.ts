import { spawnSync } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { readConfig } from "./config.ts";
import { initFolder, type InitResult } from "./init.ts";

const glass = join(import.meta.dirname, "../../cli/bin/glass.mjs");
let home: string;
let made: InitResult;

function run(...args: readonly string[]): { status: number | null; text: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [glass, ...args], { cwd: home, encoding: "utf8" });
  return { status, text: `${stdout}${stderr}` };
}

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "glasskey init "));
  made = await initFolder(join(home, "made"));
});
afterAll(async () => rm(home, { recursive: true, force: true }));

test("what init makes lints without a warning, is formatted, and its tests exercise every clause", () => {
  const policy = join(made.dir, "policy");
  expect(run("playbook", "lint", policy, "--strict")).toMatchObject({
    status: 0,
    text: expect.stringContaining(": 0 warnings, 4 excepted"),
  });
  expect(run("playbook", "test", policy, "--cover", "--min", "100")).toMatchObject({ status: 0 });
  expect(run("playbook", "fmt", "--check", policy)).toMatchObject({ status: 0 });
});

test("what init prints to run next is one word to a shell, also where the path has a space", () => {
  const { status, text } = run("init", "a folder");
  expect(status).toBe(0);
  expect(text).toContain("glass serve --config 'a folder/glasskey.yaml'\n");
});

test("what glasskey.yaml has behind # as examples is taken as it stands", async () => {
  const file = join(home, "uncommented.yaml");
  const text = await readFile(join(made.dir, "glasskey.yaml"), "utf8");
  const key = "witness.sec.example/w1+1559647c+BG6dK8Td2VO6XhGqmYVaHtiE/zT9jCn3L0hRJWasTtwc";
  await writeFile(file, text.replaceAll(/^# (?=[a-z]+:| )/gm, "").replace('key: "…"', `key: "${key}"`));
  expect(readConfig(file)).toMatchObject({ archive: {}, sinks: [{ name: "siem", kind: "syslog" }] });
});

test("a folder that is not empty is left alone", async () => {
  await expect(initFolder(made.dir)).rejects.toMatchObject({ code: "usage" });
});

test("help for a verb that is no client of the server is that verb's own", () => {
  expect(run("help", "playbook", "lint")).toMatchObject({ status: 0, text: expect.stringContaining("--strict") });
  expect(run("help", "serve")).toMatchObject({ status: 0, text: expect.stringContaining("--config FILE") });
});
