import { appendFileSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, inject, test } from "vitest";
import { fileDriver } from "./file.ts";
import type { Item } from "./sink.ts";
import { startRig, tagsOf, until, type Rig } from "./testing/rig.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

const SINK = { kind: "file", name: "copy", format: "entry", from: "start", names: false } as const;
const hashOf = (index: number): string => String(index).padStart(64, "0");
const leafHashOf = async (index: number): Promise<string> => hashOf(index);
const never = new AbortController().signal;
const upTo = (size: number): readonly number[] => Array.from({ length: size }, (_, i) => i);

async function rigOf(): Promise<Rig & { dir: string }> {
  const rig = await startRig(inject("pg18"));
  undo.push(() => rig[Symbol.asyncDispose]());
  return { ...rig, dir: join(rig.folder, "copy"), [Symbol.asyncDispose]: rig[Symbol.asyncDispose] };
}

function items(from: number, count: number): readonly Item[] {
  return Array.from({ length: count }, (_, i): Item => {
    const index = from + i;
    const json = JSON.stringify({ index, leafHash: hashOf(index), origin: "o", entry: {} });
    return { index, leafHash: hashOf(index), type: "login.failed", at: "", severity: "low", json };
  });
}
const names = (dir: string): readonly string[] => readdirSync(dir).toSorted();
const lines = (dir: string): readonly string[] =>
  names(dir).flatMap((name) =>
    readFileSync(join(dir, name), "utf8")
      .split("\n")
      .filter((line) => line !== ""),
  );
const indexes = (dir: string): readonly number[] => tagsOf(lines(dir)).map(({ index }) => index);
const reached = (rig: Rig, size: number) => until(async () => (await rig.next("copy")) >= size);

test("a file has one line for each entry, goes on after a restart, and is each process's own", async () => {
  const rig = await rigOf();
  const copy = { kind: "file", folder: rig.dir, from: "start" };
  const first = await rig.sinks({ copy });
  await reached(rig, await rig.add(10));
  await first.stop();
  await rig.sinks({ copy });
  const other = { ...copy, folder: join(rig.folder, "other") };
  const second = await rig.sinks({ copy: other }, { node: "nd_2" });
  const size = await rig.add(10);
  await until(() => indexes(rig.dir).length === size);
  await until(async () => (await second.status()).every(({ lag }) => lag.entries === 0));
  expect(indexes(rig.dir)).toEqual(upTo(size));
  expect(indexes(other.folder)).toEqual(upTo(size));
  expect(tagsOf(lines(rig.dir)).map(({ leafHash }) => leafHash)).toEqual(await rig.hashes());
});

test("a last line torn anywhere is cut, and written again whole", async () => {
  const rig = await rigOf();
  const first = fileDriver({ ...SINK, folder: rig.dir, rotateBytes: 2 ** 30 });
  await first.deliver(items(0, 3), never);
  await first.close?.();
  const path = join(rig.dir, names(rig.dir)[0] ?? "");
  const whole = readFileSync(path);
  const lastAt = whole.lastIndexOf(10, whole.length - 2) + 1;
  for (let cut = lastAt; cut < whole.length; cut += 1) {
    writeFileSync(path, whole.subarray(0, cut));
    const driver = fileDriver({ ...SINK, folder: rig.dir, rotateBytes: 2 ** 30 });
    expect(await driver.resume?.(3, leafHashOf), `cut at ${cut}`).toBe(2);
    await driver.deliver(items(2, 1), never);
    await driver.close?.();
    expect(readFileSync(path).equals(whole), `cut at ${cut}`).toBe(true);
  }
});

test("what was written before a crash and is behind the cursor is not written twice; what was lost is written again", async () => {
  const rig = await rigOf();
  const copy = { kind: "file", folder: rig.dir, from: "start", format: "entry" };
  const sinks = await rig.sinks({ copy });
  const size = await rig.add(20);
  await reached(rig, size);
  await sinks.stop();
  await rig.log.query("update sinks set next_index = 5, before_index = 0"); // killed before the cursor moved
  const again = await rig.sinks({ copy });
  await reached(rig, size);
  expect(indexes(rig.dir)).toEqual(upTo(size));
  await again.stop();
  const path = join(rig.dir, names(rig.dir)[0] ?? "");
  truncateSync(path, readFileSync(path, "utf8").split("\n").slice(0, 7).join("\n").length + 1); // a disk that lied
  await rig.sinks({ copy });
  const later = await rig.add(1);
  await until(() => indexes(rig.dir).length === later);
  expect(indexes(rig.dir)).toEqual(upTo(later));
});

test("files turn over by size, their names sort, and old ones may be taken away", async () => {
  const rig = await rigOf();
  const driver = fileDriver({ ...SINK, folder: rig.dir, rotateBytes: 1_000 });
  for (let at = 0; at < 60; at += 5) await driver.deliver(items(at, 5), never);
  const all = names(rig.dir);
  expect(all.length).toBeGreaterThan(3);
  expect(all[0]).toBe("glasskey-000000000000.jsonl");
  expect(indexes(rig.dir)).toEqual(upTo(60));
  await driver.close?.();
  for (const name of all.slice(0, -1)) rmSync(join(rig.dir, name));
  const next = fileDriver({ ...SINK, folder: rig.dir, rotateBytes: 1_000 });
  expect(await next.resume?.(60, leafHashOf)).toBe(60);
  rmSync(join(rig.dir, all.at(-1) ?? ""));
  await next.close?.();
  const empty = fileDriver({ ...SINK, folder: rig.dir, rotateBytes: 1_000 });
  expect(await empty.resume?.(60, leafHashOf)).toBe(60);
  await empty.deliver(items(60, 1), never);
  expect(names(rig.dir)).toEqual(["glasskey-000000000060.jsonl"]);
  await empty.close?.();
});

test("a file that somebody else writes to, or that is of another log, is not appended to", async () => {
  const rig = await rigOf();
  const open = () => fileDriver({ ...SINK, folder: rig.dir, rotateBytes: 2 ** 30 });
  const driver = open();
  await driver.deliver(items(0, 2), never);
  const path = join(rig.dir, names(rig.dir)[0] ?? "");
  appendFileSync(path, "another process\n");
  await expect(driver.deliver(items(2, 1), never)).rejects.toThrow("somebody else writes");
  await expect(driver.resume?.(2, leafHashOf)).rejects.toThrow("not one of Glasskey's");
  writeFileSync(path, `${items(1, 1)[0]?.json}\n`);
  await expect(open().resume?.(2, async () => "ff".repeat(32))).rejects.toThrow("not the log's");
  await expect(open().resume?.(2, async () => undefined)).rejects.toThrow("not the log's");
  expect(readFileSync(path, "utf8").split("\n")).toHaveLength(2);
  const nowhere = fileDriver({ ...SINK, folder: join(path, "below-a-file"), rotateBytes: 2 ** 30 });
  await expect(nowhere.deliver(items(0, 1), never)).rejects.toThrow(/its file cannot be written \(E[A-Z]+\)/);
});
