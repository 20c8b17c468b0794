import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LogKeyList, LogPage, LogStatus } from "@glasskey/contract";
import { parseNote, parseProof } from "@glasskey/verify";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { addLog, openWitnessFolder, serveWitness } from "../../witness/src/index.ts";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";
import { runGlass, type Run } from "../testing/run.ts";

const PATIENCE = { timeout: 30_000, interval: 200 };
let system: TestSystem | undefined;
let homes = "";
let cleanUp = async (): Promise<void> => {};
const run = (person: string, ...args: string[]): Promise<Run> => runGlass(homes, person, args);

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-log-"));
  const folder = join(homes, "witness");
  const witness = openWitnessFolder({ folder, name: "witness.example/w" });
  const server = await serveWitness({ witness, host: "127.0.0.1", port: 0, onProblem: () => {} });
  cleanUp = async () => {
    await server.stop();
    witness.close();
  };
  const of = [{ key: witness.signer.vkey, url: `http://127.0.0.1:${server.port}` }];
  system = await startTestSystem(inject("pg18"), {}, { witnesses: { need: 1, of } });
  const { vkey, url, caFile } = system.server();
  addLog(folder, vkey);
  for (const person of ["ann", "ida", "sam"]) {
    await runGlass(homes, person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  }
});
afterAll(async () => {
  await system?.dispose();
  await cleanUp();
  await rm(homes, { recursive: true, force: true });
});

test("glass log marks how far each entry came, and says what the marks mean", async () => {
  await expect
    .poll(async () => (JSON.parse((await run("ida", "log", "--json")).stdout) as LogPage).entries[0]?.state, PATIENCE)
    .toBe("witnessed");
  const { code, stdout } = await run("ida", "log");
  expect(code).toBe(0);
  expect(stdout).toMatch(/^ {5}0 {2}w {2}\S+ +\S+/m);
  expect(stdout.trimEnd().split("\n").at(-1)).toBe("c checkpointed  w witnessed");
});

test("glass log status says on a few lines what is signed, witnessed and waiting", async () => {
  await expect
    .poll(async () => (await run("ida", "log", "status")).stdout, PATIENCE)
    .toMatch(
      /^Log glasskey\.local\/\w+\n {2}signed +\d+ {2}last \d+\w* ago; nothing waits\n {2}witnessed +\d+ {2}all\n {2}archived +- {2}no archive\n {2}keys +1 {2}1 since \S+\n$/,
    );
  const { stdout } = await run("ida", "log", "status", "--json");
  expect((JSON.parse(stdout) as LogStatus).archived).toBeNull();
  expect((await run("ann", "log", "status")).code).toBe(3);
});

test("glass log prove says whether witnesses vouch for the checkpoint in the proof", async () => {
  const { code, stdout, stderr } = await run("ida", "log", "prove", "0");
  expect(code).toBe(0);
  expect(parseNote(parseProof(stdout).checkpoint).signatures).toHaveLength(2);
  expect(stderr).toMatch(/covers \d+ entries, and has its witnesses' cosignatures/);
});

test("glass log key add prints the new key and who must learn it; retire ends the old one, for an admin alone", async () => {
  const refused = await run("sam", "log", "key", "add");
  expect(refused.code).toBe(3);
  expect(refused.stderr).toContain("change the log's keys");
  const last = await run("ida", "log", "key", "retire", "1");
  expect(last.code).toBe(1);
  expect(last.stderr).toContain("glass log key add");

  const added = await run("ida", "log", "key", "add");
  expect(added.code).toBe(0);
  const { keys } = JSON.parse((await run("ida", "log", "keys", "--json")).stdout) as LogKeyList;
  expect(keys.map((key) => key.generation)).toEqual([1, 2]);
  expect(added.stdout.split("\n")).toContain(keys[1]?.vkey);
  expect(added.stdout).toMatch(/Auditors and witnesses must learn it by another way/);

  await expect.poll(async () => (await run("ida", "log", "key", "retire", "1")).code, PATIENCE).toBe(0);
  const listed = await run("ida", "log", "keys");
  expect(listed.stdout).toMatch(/^ {2}1 {2}retired [^\n]+\n {5}\S+\n {2}2 {2}signs, added [^\n]+\n {5}\S+\n$/);
  const status = await run("ida", "log", "status");
  expect(status.stdout).toMatch(/keys +1 {2}2 since/);
});

test("what is no generation, and a verb that is not finished, are usage errors that say what is meant", async () => {
  expect(await run("ida", "log", "key", "retire", "first")).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("Generations are the numbers of `glass log keys`"),
  });
  expect(await run("ida", "log", "key", "retire")).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("glass log key retire needs more"),
  });
  expect((await run("ida", "log", "key")).code).toBe(2);
});
