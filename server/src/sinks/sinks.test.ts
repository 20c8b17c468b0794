import { spawn } from "node:child_process";
import { join } from "node:path";
import { afterEach, expect, inject, test } from "vitest";
import { fakeReceiver, startFake, type Fake } from "../notify/testing/fakes.ts";
import type { SinkDriver } from "./sink.ts";
import { startRig, tagsOf, until, WEBHOOK_SECRET, type Rig } from "./testing/rig.ts";
import { startWorker } from "./worker.ts";

const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

async function rigWithHook(): Promise<{ rig: Rig; hook: Fake; siem: object }> {
  const rig = await startRig(inject("pg18"));
  undo.push(async () => rig[Symbol.asyncDispose]());
  const hook = await fakeReceiver(rig.identity, WEBHOOK_SECRET);
  undo.push(async () => hook.stop());
  return { rig, hook, siem: { kind: "webhook", url: hook.url, secret: "${env:HOOK}", ca: rig.ca, from: "start" } };
}

const received = (hook: Fake) => tagsOf(hook.taken().flatMap(({ text }) => text.split("\n")));
const indexes = (hook: Fake): readonly number[] => received(hook).map(({ index }) => index);
const upTo = (size: number): readonly number[] => Array.from({ length: size }, (_, i) => i);
const reached = (rig: Rig, size: number, name = "siem") => until(async () => (await rig.next(name)) >= size);

/** Each index with its leaf hash as in the log, each at its first arrival after all before it. */
async function expectComplete(rig: Rig, hook: Fake, size: number): Promise<void> {
  const hashes = await rig.hashes();
  let next = 0;
  for (const { index, leafHash } of received(hook)) {
    expect(leafHash).toBe(hashes[index]);
    expect(index, "nothing comes before what is before it").toBeLessThanOrEqual(next);
    next = Math.max(next, index + 1);
  }
  expect(next).toBe(size);
}

test("a sink gets every entry once, in order, with its index and leaf hash", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await rig.add(3);
  await rig.sinks({ siem });
  const size = await rig.add(40);
  await reached(rig, size);
  expect(indexes(hook)).toEqual(upTo(size));
  await expectComplete(rig, hook, size);
});

test("a sink that is down while thousands of entries come catches up without loss or reordering", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await rig.sinks({ siem });
  await reached(rig, await rig.add(20));
  hook.broken = { status: 503 };
  const size = await rig.add(5_000);
  await until(() => hook.seen.length > hook.taken().length + 2);
  expect(await rig.next("siem")).toBe(20);
  hook.broken = undefined;
  await reached(rig, size);
  expect(indexes(hook)).toEqual(upTo(size));
  await expectComplete(rig, hook, size);
});

test("a process that is killed between a delivery and the cursor leaves a repetition, never a gap", async () => {
  const { rig, hook, siem } = await rigWithHook();
  const size = await rig.add(300);
  const script = join(import.meta.dirname, "testing/worker-child.ts");
  const argv = [script, JSON.stringify(rig.log.address), JSON.stringify({ siem }), "nd_child"];
  hook.broken = { status: 204, hang: true }; // it is taken, and the answer never comes
  const child = spawn(process.execPath, argv, { stdio: "ignore" });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  undo.push(async () => child.kill("SIGKILL"));
  await until(() => hook.taken().length > 0);
  child.kill("SIGKILL");
  await ended;
  expect(await rig.next("siem")).toBe(0);
  hook.broken = undefined;
  // Its claim runs out after a while; here that while is over.
  await rig.log.query("update sinks set claimed_until = clock_timestamp() - interval '1 second'");
  await rig.sinks({ siem });
  await reached(rig, size);
  expect(indexes(hook).length).toBeGreaterThan(size);
  await expectComplete(rig, hook, size);
});

test("two processes on one store deliver each entry once and in order, whichever has the sink", async () => {
  const { rig, hook, siem } = await rigWithHook();
  const first = await rig.sinks({ siem }, { node: "nd_1" });
  await rig.sinks({ siem }, { node: "nd_2" });
  for (let i = 0; i < 10; i += 1) await rig.add(100);
  await reached(rig, 1_000);
  expect(indexes(hook)).toEqual(upTo(1_000));
  await first.stop();
  const size = await rig.add(100);
  await reached(rig, size);
  expect(indexes(hook)).toEqual(upTo(size));
});

test("a process that stops waits a little for the answer to what it has sent, so that nothing comes twice", async () => {
  const { rig, hook, siem } = await rigWithHook();
  const size = await rig.add(50);
  hook.broken = { status: 204, delayMs: 500 };
  const sinks = await rig.sinks({ siem });
  await until(() => hook.taken().length > 0);
  await sinks.stop();
  expect(await rig.next("siem")).toBe(size);
  hook.broken = { status: 204, hang: true };
  const late = await rig.sinks({ siem }, { node: "nd_2" });
  const more = await rig.add(10);
  await until(() => hook.taken().length > 1);
  await late.stop(); // no answer: it is not waited for long, and comes once more
  expect(await rig.next("siem")).toBe(size);
  hook.broken = undefined;
  await rig.sinks({ siem }, { node: "nd_3" });
  await reached(rig, more);
  await expectComplete(rig, hook, more);
});

test("a claim of a dead process runs out, and a clock that was set back does not prolong it", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await (await rig.sinks({ siem })).stop();
  const size = await rig.add(5);
  const claim = (until: string) =>
    rig.log.query(`update sinks set claimed_by = 'nd_dead', claimed_until = clock_timestamp() + interval '${until}'`);
  await claim("20 seconds");
  const sinks = await rig.sinks({ siem }, { node: "nd_2" });
  await until(async () => (await sinks.status())[0]?.lag.entries === size);
  expect(hook.seen).toEqual([]);
  await claim("2 hours"); // what the clock said before it was set back
  await reached(rig, size);
  await rig.log.query("update sinks set retry_at = clock_timestamp() + interval '2 hours'");
  await reached(rig, await rig.add(1));
});

test("whoever lost the claim moves no cursor, so nothing is skipped", async () => {
  const { rig, hook, siem } = await rigWithHook();
  const size = await rig.add(5);
  hook.broken = { status: 204, hang: true };
  await rig.sinks({ siem }, { node: "nd_1" });
  await until(() => hook.seen.length > 0);
  await rig.log.query(
    "update sinks set claimed_by = 'nd_2', claimed_until = clock_timestamp() + interval '20 seconds'",
  );
  // The next renewal finds that the claim is gone, and lets go of the delivery.
  await until(async () => {
    const { rows } = await rig.log.query("select failures, claimed_by from sinks");
    return rows[0]?.["claimed_by"] === "nd_2" && rows[0]["failures"] === 0;
  });
  expect(await rig.next("siem")).toBe(0);
  hook.broken = undefined;
  await rig.log.query("update sinks set claimed_by = null, claimed_until = null");
  await reached(rig, size);
  await expectComplete(rig, hook, size);
});

test("only what a signed checkpoint covers goes out", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await rig.sinks({ siem });
  const size = await rig.add(3);
  await reached(rig, size);
  const leaf = "sha256('\\x00'::bytea || '{}'::bytea)";
  await rig.log.query(`insert into log_entries (idx, entry, leaf_hash) values (${size}, '{}', ${leaf})`);
  await rig.sinks({ other: siem });
  await reached(rig, size, "other");
  expect(indexes(hook).filter((index) => index >= size)).toEqual([]);
});

test("an entry that a receiver refuses is found, put aside with an alarm, and the others go on", async () => {
  const { rig, siem } = await rigWithHook();
  const picky = await pickyReceiver(rig, new Set([37]));
  const sinks = await rig.sinks({ siem: { ...siem, url: picky.url } });
  const size = await rig.add(100);
  await reached(rig, size);
  expect(picky.indexes).toEqual(upTo(size).filter((index) => index !== 37));
  const [status] = await sinks.status();
  expect(status?.parked.map(({ index, error }) => ({ index, error }))).toEqual([{ index: 37, error: "answered 400" }]);
  await until(() => rig.alarms.get("sink siem parked")?.includes("entry 37"));

  expect(await sinks.retry("siem")).toBe(1);
  await until(async () => (await rig.log.query("select from sink_parked where retry")).rowCount === 0);
  expect((await sinks.status())[0]?.parked).toHaveLength(1); // refused again
  picky.refused.clear();
  await sinks.retry("siem");
  await until(async () => (await sinks.status())[0]?.parked.length === 0);
  expect(picky.indexes.at(-1)).toBe(37);
  await until(() => !rig.alarms.has("sink siem parked"));
});

test("a receiver that refuses everything has three entries put aside, and then it is waited for", async () => {
  const { rig, siem } = await rigWithHook();
  const picky = await pickyReceiver(rig, new Set(upTo(1_000)));
  const sinks = await rig.sinks({ siem: { ...siem, url: picky.url } });
  const size = await rig.add(50);
  await until(async () => ((await sinks.status())[0]?.failures ?? 0) > 3);
  const [status] = await sinks.status();
  expect(status?.parked.map(({ index }) => index)).toEqual([0, 1, 2]);
  expect(status).toMatchObject({ nextIndex: 3, lastError: expect.stringContaining("one entry after another") });
  picky.refused.clear();
  await reached(rig, size);
  expect(picky.indexes).toEqual(upTo(size).slice(3));
});

test("a new sink begins with what comes from now on, unless it is to begin with the start of the log", async () => {
  const { rig, hook, siem } = await rigWithHook();
  const before = await rig.add(10);
  const sinks = await rig.sinks({ siem: { ...siem, from: "now" } });
  const size = await rig.add(5);
  await reached(rig, size);
  expect(indexes(hook)).toEqual(upTo(size).slice(before));
  await sinks.stop();
  const later = await rig.add(5);
  await rig.sinks({ siem }); // it is not new any more: it goes on where it was
  await reached(rig, later);
  expect(indexes(hook)).toEqual(upTo(later).slice(before));
});

test("a sink that is taken out of glasskey.yaml keeps its place, and is still named", async () => {
  const { rig, siem } = await rigWithHook();
  await (await rig.sinks({ siem })).stop();
  await rig.add(4);
  const without = await rig.sinks({});
  expect(await without.status()).toMatchObject([
    { name: "siem", configured: false, nextIndex: 0, lag: { entries: 4 } },
  ]);
  await expect(without.retry("nosuch")).rejects.toThrow("no such sink");
});

test("a sink that is behind for too long is an alarm, which is over when it has caught up", async () => {
  const { rig, hook, siem } = await rigWithHook();
  hook.broken = { status: 503 };
  const sinks = await rig.sinks({ siem }, { behindMs: 300 });
  const size = await rig.add(7);
  const text = await until(() => rig.alarms.get("sink siem behind"));
  expect(text).toContain("behind by 7 entries");
  expect(text).toContain("answered 503");
  expect((await sinks.status())[0]).toMatchObject({ lag: { entries: 7 }, lastError: "answered 503" });
  hook.broken = undefined;
  await reached(rig, size);
  await until(() => !rig.alarms.has("sink siem behind"));
  expect((await sinks.status())[0]).toMatchObject({ lag: { entries: 0, seconds: 0 }, failures: 0, lastError: null });
});

test("an entry that was removed or changed in the store goes nowhere, and nothing after it does", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await rig.add(10);
  const insider = (statement: string) =>
    rig.log.query(`set session_replication_role = replica; ${statement}; set session_replication_role = default`);
  await insider("update log_entries set entry = '{}' where idx = 4");
  const sinks = await rig.sinks({ siem });
  await until(async () => (await sinks.status())[0]?.lastError?.includes("entry 4 is not what its leaf hash says"));
  await insider("delete from log_entries where idx = 4");
  await until(async () => (await sinks.status())[0]?.lastError?.includes("entry 4 is missing"));
  expect(indexes(hook)).toEqual([]);
});

test("names of people stand beside their ids only where the sink asks for them", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await rig.sinks({ siem, named: { ...siem, names: true } });
  const size = await rig.add(2);
  await reached(rig, size);
  await reached(rig, size, "named");
  const texts = hook.taken().map(({ text }) => text);
  expect(texts.some((text) => text.includes("name of pe_0123456789ab"))).toBe(true);
  expect(texts.some((text) => !text.includes("name of"))).toBe(true);
});

/** A receiver that answers 400 to every batch with one of these indexes. */
async function pickyReceiver(rig: Rig, refused: Set<number>) {
  const taken: number[] = [];
  const fake = await startFake(rig.identity, "/hook", ({ text }) => {
    const got = tagsOf(text.split("\n")).map(({ index }) => index);
    if (got.some((index) => refused.has(index))) return { status: 400 };
    taken.push(...got);
    return { status: 204 };
  });
  undo.push(() => fake.stop());
  return { url: fake.url, indexes: taken, refused };
}

test("a receiver that heeds nothing, such as a disk that hangs, does not hold up the stop for ever, and its claim runs out", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await (await rig.sinks({ siem })).stop(); // its row is there from now on
  const size = await rig.add(5);
  let asked = 0;
  const driver: SinkDriver = {
    ...{ batch: { entries: 10, bytes: 1_000_000 }, doubtful: false },
    deliver: () => {
      asked += 1;
      return new Promise(() => {});
    },
  };
  const warnings: string[] = [];
  const stop = startWorker({
    ...{ store: rig.log.store, key: { name: "siem", node: "" }, driver, node: "nd_2", pollMs: 20 },
    ...{ render: async () => [], warn: (line) => warnings.push(line) },
  });
  await until(() => asked > 0);
  await stop();
  expect(warnings).toEqual([expect.stringContaining("sink siem: is left while it hangs")]);
  expect(await rig.next("siem")).toBe(0);
  const [claim] = (await rig.log.query("select claimed_by from sinks")).rows;
  expect(claim?.["claimed_by"], "nobody else may deliver while it may still do so").toBe("nd_2");
  await rig.log.query("update sinks set claimed_until = clock_timestamp() - interval '1 second'");
  await rig.sinks({ siem }, { node: "nd_3" });
  await reached(rig, size);
  await expectComplete(rig, hook, size);
}, 60_000);
