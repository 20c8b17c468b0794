import { appendFileSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, expect, inject, test } from "vitest";
import { startRig, tagsOf, until, type Rig } from "./testing/rig.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

async function rigOf(): Promise<{ rig: Rig; dir: string; copy: object }> {
  const rig = await startRig(inject("pg18"));
  undo.push(() => rig[Symbol.asyncDispose]());
  const dir = join(rig.folder, "copy");
  return { rig, dir, copy: { kind: "file", folder: dir, from: "start" } };
}
const upTo = (size: number): readonly number[] => Array.from({ length: size }, (_, i) => i);
const reached = (rig: Rig, size: number) => until(async () => (await rig.next("copy")) >= size);
const indexesOf = (...paths: string[]): readonly number[] =>
  tagsOf(paths.flatMap((path) => readFileSync(path, "utf8").split("\n"))).map(({ index }) => index);
const names = (dir: string): readonly string[] => readdirSync(dir).toSorted();

test("a file that is taken away or renamed while it is written to gets nothing more; a new one goes on where it ended", async () => {
  const { rig, dir, copy } = await rigOf();
  await rig.sinks({ copy });
  await reached(rig, await rig.add(5));
  const [first = ""] = names(dir);
  rmSync(join(dir, first));
  await reached(rig, await rig.add(5));
  expect(names(dir)).toEqual(["glasskey-000000000005.jsonl"]);
  const moved = join(dir, "glasskey-000000000005.jsonl.1"); // as logrotate does
  renameSync(join(dir, "glasskey-000000000005.jsonl"), moved);
  await reached(rig, await rig.add(5));
  expect(indexesOf(moved, join(dir, "glasskey-000000000010.jsonl"))).toEqual(upTo(15).slice(5));
});

test("an empty file whose name says that it is further on skips nothing", async () => {
  const { rig, dir, copy } = await rigOf();
  const sinks = await rig.sinks({ copy });
  await reached(rig, await rig.add(5));
  await sinks.stop();
  const planted = join(dir, "glasskey-000000999999.jsonl");
  writeFileSync(planted, "");
  const again = await rig.sinks({ copy });
  const size = await rig.add(5);
  await until(async () => (await again.status())[0]?.lastError?.includes("glasskey-000000999999.jsonl is empty"));
  expect(await rig.next("copy")).toBe(5);
  rmSync(planted);
  await reached(rig, size);
  expect(indexesOf(join(dir, "glasskey-000000000000.jsonl"))).toEqual(upTo(size));
});

test("a crash between a new file and its first line leaves nothing out", async () => {
  const { rig, dir, copy } = await rigOf();
  const sinks = await rig.sinks({ copy });
  await reached(rig, await rig.add(5));
  await sinks.stop();
  await rig.log.query("update sinks set next_index = 2, before_index = 0"); // the cursor was not moved in time
  writeFileSync(join(dir, "glasskey-000000000005.jsonl"), "");
  await rig.sinks({ copy });
  const size = await rig.add(5);
  await until(() => indexesOf(...names(dir).map((name) => join(dir, name))).length === size);
  expect(indexesOf(...names(dir).map((name) => join(dir, name)))).toEqual(upTo(size));
});

test("a file in its place that is not Glasskey's is not cut, and a link is not followed", async () => {
  const { rig, dir, copy } = await rigOf();
  await mkdir(dir);
  const other = join(rig.folder, "other");
  const text = "somebody's secret, without an end of line";
  writeFileSync(other, text);
  symlinkSync(other, join(dir, "glasskey-000000000000.jsonl"));
  const sinks = await rig.sinks({ copy });
  const size = await rig.add(3);
  await until(async () => (await sinks.status())[0]?.failures);
  rmSync(join(dir, "glasskey-000000000000.jsonl"));
  appendFileSync(join(dir, "glasskey-000000000000.jsonl"), readFileSync(other));
  await until(async () => (await sinks.status())[0]?.lastError?.includes("not one of Glasskey's"));
  for (const path of [other, join(dir, "glasskey-000000000000.jsonl")]) expect(readFileSync(path, "utf8")).toBe(text);
  expect(await rig.next("copy")).toBe(0);
  rmSync(join(dir, "glasskey-000000000000.jsonl"));
  await reached(rig, size);
});
