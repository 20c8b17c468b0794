import { createHash } from "node:crypto";
import { afterEach, expect, inject, test } from "vitest";
import { fakeReceiver, startFake, type Fake, type FakeAnswer } from "../notify/testing/fakes.ts";
import { ownRules } from "./testing/ocsf-rules.ts";
import { validate } from "./testing/ocsf-schema.ts";
import { startRig, tagsOf, until, WEBHOOK_SECRET, type Rig } from "./testing/rig.ts";

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
const upTo = (size: number): readonly number[] => Array.from({ length: size }, (_, i) => i);
const linesOf = (seen: readonly { text: string }[]) =>
  seen.flatMap(({ text }) => text.split("\n")).filter((line) => line !== "");
const reached = (rig: Rig, size: number, name = "siem") => until(async () => (await rig.next(name)) >= size);

/** Bytes that Glasskey's own role can put into the queue, as somebody with its password would. */
const POISON: readonly Buffer[] = [
  Buffer.from("no JSON"),
  Buffer.from("null"),
  Buffer.from("[1]"),
  Buffer.of(0xff, 0xfe, 0x00),
  Buffer.from('{"type":"login.succeeded","a":\n{"index":0,"leafHash":"00","origin":"x","entry":{}}\n}'),
  Buffer.from(`{"a":${"[".repeat(30_000)}${"]".repeat(30_000)}}`),
  Buffer.from('{"type":"login.succeeded","at":5,"actor":{},"data":[],"log_index":0}'),
];

test("an entry that is none of ours blinds no receiver: it goes out as bytes with its index, and breaks no line", async () => {
  const { rig, hook, siem } = await rigWithHook();
  await rig.add(1);
  for (const bytes of POISON) await rig.log.query("insert into log_queue (entry) values ($1)", [bytes]);
  const size = await rig.add(1);
  await rig.sinks({ siem });
  await reached(rig, size);
  const events = linesOf(hook.taken());
  expect(tagsOf(events).map(({ index }) => index)).toEqual(upTo(size));
  for (const line of events) expect(validate(ownRules(), JSON.parse(line) as Record<string, unknown>)).toEqual([]);
  expect(JSON.parse(events[1] ?? "")).toMatchObject({
    ...{ class_uid: 0, severity: "High", unmapped: { entryBase64: POISON[0]?.toString("base64") } },
  });

  const at = hook.seen.length;
  await rig.sinks({ whole: { ...siem, format: "entry" } });
  await reached(rig, size, "whole");
  const lines = linesOf(hook.taken().slice(at));
  expect(tagsOf(lines).map(({ index }) => index)).toEqual(upTo(size));
  for (const line of lines) {
    const { entryBase64, leafHash } = JSON.parse(line) as { entryBase64?: string; leafHash: string };
    const standing = line.slice(line.indexOf('"entry":') + '"entry":'.length, -1);
    const bytes = entryBase64 === undefined ? Buffer.from(standing) : Buffer.from(entryBase64, "base64");
    expect(createHash("sha256").update(Buffer.of(0)).update(bytes).digest("hex")).toBe(leafHash);
  }
});

/** A receiver that answers as `answer` says for the indexes of a batch. */
async function receiver(rig: Rig, answer: (indexes: readonly number[]) => FakeAnswer | undefined) {
  const taken: number[] = [];
  const fake = await startFake(rig.identity, "/hook", ({ text }) => {
    const got = tagsOf(text.split("\n")).map(({ index }) => index);
    const how = answer(got) ?? { status: 204 };
    if (how.status === 204) taken.push(...got);
    return how;
  });
  undo.push(() => fake.stop());
  return { url: fake.url, taken };
}

test("a receiver that is too slow for a whole batch gets smaller ones, instead of the same one for ever", async () => {
  const { rig, siem } = await rigWithHook();
  // What takes more than a few is not answered in time, however often it is asked.
  const slow = await receiver(rig, (indexes) => (indexes.length > 10 ? { status: 200, hang: true } : undefined));
  const size = await rig.add(40);
  const sinks = await rig.sinks({ siem: { ...siem, url: slow.url } }, { timeoutMs: 300 });
  await reached(rig, size);
  expect(slow.taken).toEqual(upTo(size));
  expect((await sinks.status())[0]?.parked).toEqual([]);
});

test("a parked entry that breaks its receiver when it is tried again holds up nothing that comes", async () => {
  const { rig, siem } = await rigWithHook();
  const state = { status: 400 };
  const picky = await receiver(rig, (indexes) => (indexes.includes(3) ? state : undefined));
  const sinks = await rig.sinks({ siem: { ...siem, url: picky.url } });
  await reached(rig, await rig.add(10));
  state.status = 500;
  await sinks.retry("siem");
  await until(async () => (await sinks.status())[0]?.lastError === "answered 500");
  const size = await rig.add(10);
  await reached(rig, size);
  expect(picky.taken).toEqual(upTo(size).filter((index) => index !== 3));
});

test("the alarm about refused entries comes although the process died before it, and is over when the sink is gone", async () => {
  const { rig, siem } = await rigWithHook();
  const sinks = await rig.sinks({ siem });
  await reached(rig, await rig.add(10));
  await rig.log.query(
    "insert into sink_parked (sink, idx, error) values ('siem', 3, 'answered 400'), ('siem', 4, 'x')",
  );
  const text = await until(() => rig.alarms.get("sink siem parked"));
  expect(text).toBe("sink siem does not take entry 3 and 1 more: answered 400");
  await sinks.stop();
  await rig.sinks({});
  await until(() => !rig.alarms.has("sink siem parked"));
});

test("what a living process has for itself is its own to tell of; of a dead one an alarm is over", async () => {
  const { rig } = await rigWithHook();
  await rig.log.query(
    `insert into sinks (name, node, kind, next_index, before_index) values ('copy', 'nd_2', 'file', 0, 0)`,
  );
  await rig.log.query("insert into nodes (id) values ('nd_2')");
  await rig.add(3);
  rig.alarms.set("sink copy nd_2 behind", "raised by nd_2");
  rig.alarms.set("sink siem parked", "raised by a process that had it");
  await rig.log.query(`insert into sinks (name, kind, next_index, before_index) values ('siem', 'webhook', 0, 0)`);
  await rig.sinks({});
  await until(() => !rig.alarms.has("sink siem parked"));
  expect(rig.alarms.has("sink copy nd_2 behind")).toBe(true);
  await rig.log.query("update nodes set seen_at = clock_timestamp() - interval '1 hour'");
  await until(() => !rig.alarms.has("sink copy nd_2 behind"));
});
