import fc from "fast-check";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { EVENTS, isEventType } from "@glasskey/contract/events";
import { append, encodeEvent, MAX_ENTRY_BYTES, type LogEvent } from "./append.ts";
import { createLog, someEvent, type LogFixture } from "./fixtures/log.ts";

let log: LogFixture;
beforeAll(async () => {
  log = await createLog(inject("pg18"));
});
afterAll(() => log.dispose());

const waiting = async (): Promise<number> =>
  Number((await log.query("select count(*) as n from log_queue")).rows[0]?.["n"]);
const text = (event: Partial<LogEvent>): string => encodeEvent({ ...someEvent(0), ...event }).toString("utf8");

test("an entry is RFC 8785 canonical JSON: sorted keys, no spaces, shortest numbers and escapes", () => {
  const data = { z: 1e-7, a: [true, null, 0.1, -0], "€": '\u20ac\u0007\n"', "\ud83d\ude00": "x", "\ufb33": 1 };
  expect(text({ data, grant: "gr_0123456789ab", target: "orders-prod" })).toBe(
    '{"actor":"pe_0123456789ab","at":"2026-01-01T00:00:00.000Z","data":{"a":[true,null,0.1,0],"z":1e-7,' +
      '"€":"€\\u0007\\n\\"","😀":"x","\ufb33":1},"grant":"gr_0123456789ab","target":"orders-prod","type":"login.succeeded","v":1}',
  );
});

test("entries of any JSON survive a round trip unchanged", () => {
  const json = fc.jsonValue({ maxDepth: 3, stringUnit: "binary" });
  fc.assert(
    fc.property(fc.dictionary(fc.string(), json), (raw) => {
      const data = JSON.parse(JSON.stringify(raw)) as NonNullable<LogEvent["data"]>;
      fc.pre(JSON.stringify(data).isWellFormed() && !/\\ud[89a-f]|\d{16}|e\+/i.test(JSON.stringify(data)));
      const decoded = JSON.parse(encodeEvent({ ...someEvent(0), data }).toString("utf8")) as { data: unknown };
      expect(decoded.data).toEqual(data);
    }),
  );
});

test("what JSON would drop, round or change in silence is refused, with its place", () => {
  const bad: Record<string, [Partial<Record<keyof LogEvent, unknown>>, RegExp]> = {
    "an unknown type": [{ type: "grant.forgotten" }, /closed list/],
    "a type from the prototype": [{ type: "constructor" }, /closed list/],
    "no actor": [{ actor: "" }, /actor/],
    "a person's name": [{ actor: "ann" }, /actor/],
    "a grant's id for a lease": [{ lease: "gr_0123456789ab" }, /lease/],
    "an invalid time": [{ at: new Date(NaN) }, /time/],
    "a time that RFC 3339 cannot write": [{ at: new Date(8e15) }, /RFC 3339/],
    undefined: [{ data: { a: { b: undefined } } }, /data\.a\.b` is undefined/],
    "a hole": [{ data: { a: Array(2) } }, /data\.a\[0\]` is undefined/],
    "not a number": [{ data: { n: NaN } }, /finite/],
    "an integer beyond 2^53": [{ data: { n: 2 ** 53 } }, /round/],
    "a big integer": [{ data: { n: 1n } }, /bigint/],
    "a date": [{ data: { at: new Date() } }, /not plain JSON/],
    bytes: [{ data: { b: Buffer.from("x") } }, /not plain JSON/],
    "a map": [{ data: { m: new Map() } }, /not plain JSON/],
    "half a surrogate pair": [{ data: { s: "\ud800" } }, /surrogate/],
    "half a surrogate pair in a key": [{ data: { "\udc00": 1 } }, /surrogate/],
    "half a surrogate pair in a name": [{ target: "a\ud800" }, /surrogate/],
    "an array as data": [{ data: [] }, /not an object/],
    "data that is too deep": [{ data: JSON.parse('{"a":'.repeat(40) + "1" + "}".repeat(40)) as unknown }, /deeply/],
  };
  for (const [why, [change, message]] of Object.entries(bad)) {
    expect(() => encodeEvent({ ...someEvent(0), ...change } as LogEvent), why).toThrow(message);
  }
});

test("an entry has at most 65,535 bytes, to the byte", () => {
  const empty = encodeEvent({ ...someEvent(0), data: { s: "" } }).length;
  expect(encodeEvent({ ...someEvent(0), data: { s: "x".repeat(MAX_ENTRY_BYTES - empty) } })).toHaveLength(65_535);
  expect(() => encodeEvent({ ...someEvent(0), data: { s: "x".repeat(MAX_ENTRY_BYTES - empty + 1) } })).toThrow(/65535/);
});

test("an event is there exactly when its transaction commits", async () => {
  await log.store.transaction().execute((trx) => append(trx, someEvent(1)));
  expect(await waiting()).toBe(1);
  await expect(
    log.store.transaction().execute(async (trx) => {
      await append(trx, someEvent(2));
      throw new Error("the change failed");
    }),
  ).rejects.toThrow("the change failed");
  expect(await waiting()).toBe(1);
});

test("outside a transaction nothing is appended", async () => {
  await expect(append(log.store as Parameters<typeof append>[0], someEvent(3))).rejects.toThrow(/in the transaction/);
});

test("every event type is a name of the form noun.verb, with a sentence", () => {
  for (const [type, sentence] of Object.entries(EVENTS)) {
    expect(type).toMatch(/^[a-z]+\.[a-z_]+$/);
    expect(sentence).toMatch(/^[A-Z].*\.$/);
    expect(isEventType(type)).toBe(true);
  }
});
