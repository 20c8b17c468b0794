import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { runGlass, type Run } from "../testing/run.ts";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";
import { sinksSchema } from "../../server/src/sinks/config.ts";

let system: TestSystem;
let folder: string;
const run = (person: string, args: readonly string[], input?: string): Promise<Run> =>
  runGlass(folder, person, args, input);

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-cli-sinks-"));
  const sinks = sinksSchema.parse({
    copy: { kind: "file", folder: join(folder, "copy") },
    // Nobody listens there: the port is one that is never given out.
    away: { kind: "syslog", host: "127.0.0.1", port: 1, transport: "tcp", from: "start" },
  });
  system = await startTestSystem(inject("pg18"), {}, { sinks });
  const { url, caFile } = system.server();
  for (const person of ["ann", "ida"]) {
    await run(person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  }
});
afterAll(async () => {
  await system.dispose();
  await rm(folder, { recursive: true, force: true });
});

test("glass sinks says how far each sink is and why one fails, and glass sinks retry has it try at once", async () => {
  let shown = await run("ida", ["sinks"]);
  for (let tries = 0; tries < 100 && !/away .*fails/.test(shown.stdout); tries += 1)
    shown = await run("ida", ["sinks"]);
  expect(shown).toMatchObject({ code: 0, stderr: "" });
  expect(shown.stdout).toMatch(
    /✗ {2}away +syslog +\d+ behind, .+ at entry 0; fails since .+: the connection failed \(ECONNREFUSED\)/,
  );
  expect(shown.stdout).toMatch(/✓ {2}copy \(nd_\w+\) +file /);
  expect(await run("ida", ["sinks", "retry", "away"])).toMatchObject({
    code: 0,
    stdout: expect.stringContaining("away is tried now."),
  });
  const json = await run("ida", ["sinks", "--json"]);
  expect(JSON.parse(json.stdout)).toMatchObject({ sinks: [{ sink: "away", nextIndex: 0 }, { sink: "copy" }] });
  expect(await run("ann", ["sinks"])).toMatchObject({ code: 3 });
  expect(await run("ida", ["sinks", "retry", "nosuch"])).toMatchObject({
    code: 1,
    stderr: expect.stringContaining("glass sinks"),
  });
});
