import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { runGlass, type Run } from "../testing/run.ts";
import { playbook, startTestSystem, type TestSystem } from "../../server/testing/system.ts";

let system: TestSystem;
let homes: string;

const run = (person: string, args: readonly string[], input?: string): Promise<Run> =>
  runGlass(homes, person, args, input);

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-cli-"));
  system = await startTestSystem(inject("pg18"));
  for (const person of ["ann", "ida"]) {
    const { url, caFile } = system.server();
    await run(person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  }
});
afterAll(async () => {
  await system.dispose();
  await rm(homes, { recursive: true, force: true });
});

test("glass policy tells what is in force; reload puts the folder into force; history tells who gained", async () => {
  const first = await run("ida", ["policy"]);
  expect(first).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/is in force since[^]*source +folder [^]*number 1,/),
  });
  await system.writePolicy({ "playbooks/repair.yaml": playbook("repair", { time: "{ max: 45m }" }) });
  const reloaded = await run("ida", ["policy", "reload"]);
  expect(reloaded).toMatchObject({ code: 0, stdout: expect.stringMatching(/^In force: policy [0-9a-f]{12}\./) });
  const history = await run("ida", ["policy", "history"]);
  expect(history.stdout).toMatch(/\n2 +\S+ +[0-9a-f]{12} +wider +ida\n1 .* first /);
  const one = await run("ida", ["policy", "history", "2"]);
  expect(one.stdout).toMatch(/Change 2[^]*widens: time\.max[^]*\(repair\)/);
  const json = JSON.parse((await run("ida", ["policy", "--json"])).stdout) as { generation: number };
  expect(json.generation).toBe(2);
});

test("a policy that does not load is exit code 2 with every mistake, and whoever may not ask is told so with 3", async () => {
  await system.writePolicy({ "playbooks/repair.yaml": playbook("repair", { time: "{ max: soon }" }) });
  const bad = await run("ida", ["policy", "reload"]);
  expect(bad).toMatchObject({ code: 2, stderr: expect.stringMatching(/repair\.yaml:\d+:\d+[^]*stays so/) });
  expect((await run("ann", ["policy"])).code).toBe(3);
  expect((await run("ida", ["policy", "history", "zero"])).code).toBe(2);
  expect((await run("ida", ["policy", "history", "999"])).code).toBe(1);
});
