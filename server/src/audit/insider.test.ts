import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { StandingView } from "@glasskey/contract";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { audit, backup, INSIDER, type InsiderWay, populate, type Remembered } from "../../testing/insider.ts";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";

let system: TestSystem;
let remembered: Remembered;
let restore: () => Promise<void>;
const folders: string[] = [];
beforeAll(async () => {
  system = await startTestSystem(inject("pg18"));
  remembered = await populate(system, 60);
  restore = await backup(system);
});
afterAll(async () => {
  for (const folder of [...folders, `${system.config.dataDir}.kept`])
    await rm(folder, { recursive: true, force: true });
  await system.dispose();
});

async function folder(): Promise<string> {
  const made = await mkdtemp(join(tmpdir(), "glasskey-auditor-"));
  folders.push(made);
  return made;
}

const opening = async (): Promise<StandingView> => (await system.as("ann")).call<StandingView>("GET", "/v1/health");

test("what nobody touched verifies, from the store as it is", async () => {
  expect(await audit(system, remembered, await folder())).toMatchObject({ ok: true, problems: [] });
});

/** Plays it, lets the auditor look, and puts everything back as from a good backup. @returns what the auditor was told. */
async function play(name: InsiderWay["name"]): Promise<string> {
  const way = INSIDER.find((one) => one.name === name);
  if (way === undefined) throw new Error(`there is no ${name}`);
  await way.act(system);
  const report = await audit(system, remembered, await folder());
  const found = report.problems.find(({ what, where }) => way.what.test(what) && way.where.test(where));
  if (report.ok || found === undefined) throw new Error(`it was not found: ${JSON.stringify(report.problems)}`);
  await restore();
  const after = await audit(system, remembered, await folder());
  if (!after.ok) throw new Error(`the repair is not one: ${JSON.stringify(after.problems)}`);
  return `${found.where}: ${found.what}`;
}

test("insider with the store's superuser: an entry that was edited, with its hash, is named with its file", async () => {
  expect(await play("edit")).toMatch(/^tile.*entr/);
});

test("insider with the store's superuser: an entry that was deleted, with the others moved up, is found and named", async () => {
  expect(await play("delete")).toMatch(/^tile/);
});

test("insider with the store's superuser: two entries that changed places, with their hashes, are found and named", async () => {
  expect(await play("reorder")).toMatch(/^tile/);
});

test("insider with the store's superuser: a tail that was cut off down to an older checkpoint is found by the remembered one", async () => {
  expect(await play("truncate")).toMatch(/^remembered checkpoint: .*tail was cut off/);
});

test("insider with the store's superuser and the data folder: a rewritten history that Glasskey itself signed on is found by the remembered checkpoint", async () => {
  expect(await play("fork")).toMatch(/^remembered checkpoint: .*another history/);
});

test("insider with the store's superuser and the data folder: a recording that was swapped, row and file, is named", async () => {
  expect(await play("swap")).toMatch(/^chunks.se_/);
});

test("Glasskey itself opens nothing new over a store that was edited, cut or put in another order, and opens again over the restored one", async () => {
  for (const way of INSIDER.filter(({ name }) => name !== "fork" && name !== "swap")) {
    await way.act(system);
    await system.start();
    const { shut } = await opening();
    expect(shut, way.name).toContainEqual(expect.objectContaining({ reason: "log", code: "integrity" }));
    await system.stop();
    await restore();
  }
  await system.start();
  expect(await opening()).toMatchObject({ opening: true, shut: [] });
  await system.stop();
  await restore(); // without the entries of this start
});

test("a recording that was swapped is refused to whoever replays it, and named", async () => {
  await INSIDER.find(({ name }) => name === "swap")?.act(system);
  const [victim] = await system.storeQuery<{ session: string }>(
    "select distinct on (session) session from chunks order by session limit 1",
  );
  await system.start();
  const sam = await system.as("sam");
  const refusal = await sam.refused("GET", `/v1/sessions/${victim?.session}/replay`);
  expect(refusal).toMatchObject({ code: "integrity", message: expect.stringMatching(/^chunk 0 of se_/) });
  await system.stop();
  await restore();
});
