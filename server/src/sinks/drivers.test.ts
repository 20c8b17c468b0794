import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { afterEach, expect, inject, test } from "vitest";
import { fakeReceiver, startFake, type FakeAnswer } from "../notify/testing/fakes.ts";
import { anyValue, otelDriver } from "./otel.ts";
import { DeliveryError, type Item } from "./sink.ts";
import { splunkDriver } from "./splunk.ts";
import { fakeCollector, fakeSplunk } from "./testing/fakes.ts";
import { configOf, ORIGIN, startRig, tagsOf, until, WEBHOOK_SECRET, type Rig } from "./testing/rig.ts";
import { webhookDriver } from "./webhook.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

async function rigOf(): Promise<Rig> {
  const rig = await startRig(inject("pg18"));
  undo.push(() => rig[Symbol.asyncDispose]());
  return rig;
}
const upTo = (size: number): readonly number[] => Array.from({ length: size }, (_, i) => i);
const reached = (rig: Rig, size: number) => until(async () => (await rig.next("siem")) >= size);
const speaker = { origin: ORIGIN, version: "0.1.0" };
const items = (count: number): readonly Item[] =>
  upTo(count).map((index) => ({
    ...{ index, leafHash: "ab".repeat(32), type: "login.failed", at: "2026-11-20T02:14:09.120Z", severity: "medium" },
    json: `{"index":${index}}`,
  }));
const never = new AbortController().signal;

test("Splunk: an entry counts when the indexers acknowledge it, and each event has time, index and leaf hash", async () => {
  const rig = await rigOf();
  const splunk = await fakeSplunk(rig.identity, "t0p-secret-token");
  undo.push(() => splunk.stop());
  const siem = { kind: "splunk_hec", url: splunk.url, token: "${env:TOKEN}", ca: rig.ca, from: "start", index: "sec" };
  splunk.set({ acknowledges: false });
  await rig.sinks({ siem });
  const size = await rig.add(30);
  await until(() => splunk.seen.filter(({ path }) => path.endsWith("/ack")).length > 1);
  expect(await rig.next("siem")).toBe(0);
  splunk.set({ acknowledges: true });
  await reached(rig, size);
  const events = splunk.indexed();
  expect(events.map((event) => (event["fields"] as Record<string, string>)["log_index"])).toEqual(
    upTo(size).map(String),
  );
  expect(events[0]).toMatchObject({ index: "sec", source: ORIGIN, sourcetype: "glasskey:ocsf" });
  expect(events[0]?.["time"]).toBe(1_767_225_600);
  const hashes = await rig.hashes();
  expect(events.map((event) => (event["fields"] as Record<string, string>)["leaf_hash"])).toEqual(hashes);
});

test("Splunk: what the indexers do not acknowledge in time is sent again, and a token without acknowledgement takes nothing", async () => {
  const rig = await rigOf();
  const splunk = await fakeSplunk(rig.identity, "t0p-secret-token");
  undo.push(() => splunk.stop());
  const [sink] = configOf({ siem: { kind: "splunk_hec", url: splunk.url, token: "${env:TOKEN}", ca: rig.ca } });
  if (sink?.kind !== "splunk_hec") throw new Error("not Splunk");
  const reveal = (text: string) => () => ({ reveal: () => text });
  const times = { pollMs: 10, withinMs: 50 };
  const driver = splunkDriver(sink, speaker, reveal("t0p-secret-token"), times);
  splunk.set({ acknowledges: false });
  await expect(driver.deliver(items(2), never)).rejects.toThrow("did not acknowledge");
  splunk.set({ useAck: false });
  await expect(driver.deliver(items(2), never)).rejects.toThrow("no indexer acknowledgement");
  splunk.set({ useAck: true, acknowledges: true });
  const wrong = splunkDriver(sink, speaker, reveal("another"), times);
  await expect(wrong.deliver(items(1), never)).rejects.toMatchObject({
    refused: false,
    message: "answered 403: it does not accept the secret, code 4",
  });
  // 200 with a code that is not success is not success.
  splunk.breaks({ status: 200, body: JSON.stringify({ text: "Server is busy", code: 9 }) });
  await expect(driver.deliver(items(1), never)).rejects.toMatchObject({
    refused: false,
    message: "answered 200, code 9",
  });
  splunk.breaks({ status: 400, body: JSON.stringify({ text: "Incorrect index", code: 7 }) });
  await expect(driver.deliver(items(1), never)).rejects.toMatchObject({ refused: false });
  splunk.breaks({ status: 400, body: JSON.stringify({ text: "Invalid data format", code: 6 }) });
  await expect(driver.deliver(items(1), never)).rejects.toMatchObject({ refused: true });
  splunk.breaks(undefined);
  await driver.deliver(items(2), never);
});

test("Splunk: a collector that is restarted between two requests of a batch is not believed when it counts from the start again", async () => {
  const rig = await rigOf();
  const indexed: string[] = [];
  let [waiting, restarted]: [string | undefined, boolean] = [undefined, false];
  const collector = await startFake(rig.identity, "", ({ path, text }) => {
    if (path.endsWith("/ack")) {
      indexed.push(waiting ?? "");
      return { status: 200, body: JSON.stringify({ acks: { 0: true } }) };
    }
    restarted = waiting !== undefined; // what the first request brought is lost with it
    waiting = text;
    return { status: 200, body: JSON.stringify({ code: 0, ackId: 0 }) };
  });
  undo.push(() => collector.stop());
  const [sink] = configOf({ siem: { kind: "splunk_hec", url: collector.url, token: "${env:TOKEN}", ca: rig.ca } });
  if (sink?.kind !== "splunk_hec") throw new Error("not Splunk");
  const driver = splunkDriver(sink, speaker, () => ({ reveal: () => "t0p-secret-token" }), { pollMs: 10 });
  const big = items(2).map((item) => ({ ...item, json: JSON.stringify("x".repeat(400_000)) }));
  await expect(driver.deliver(big, never)).rejects.toThrow("one acknowledgement number twice");
  expect([restarted, indexed]).toEqual([true, []]);
});

test("OpenTelemetry: a receiver that says 204, or 200 and nothing, has taken it; one that says something else has not", async () => {
  const rig = await rigOf();
  const collector = await fakeCollector(rig.identity);
  undo.push(() => collector.stop());
  const [sink] = configOf({ siem: { kind: "otel", url: collector.url, ca: rig.ca } });
  if (sink?.kind !== "otel") throw new Error("not OpenTelemetry");
  const driver = otelDriver(sink, speaker, () => ({ reveal: () => "" }));
  for (const answer of [{ status: 204 }, { status: 200 }, { status: 200, body: "{}" }]) {
    collector.breaks(answer);
    await driver.deliver(items(1), never);
  }
  collector.breaks({ status: 200, body: "<html>log in first</html>" });
  await expect(driver.deliver(items(1), never)).rejects.toMatchObject({ refused: false });
  collector.breaks({ status: 202, body: JSON.stringify({ partialSuccess: { rejectedLogRecords: 1 } }) });
  await expect(driver.deliver(items(1), never)).rejects.toMatchObject({ refused: true });
});

test("OpenTelemetry: records have time, severity, index and leaf hash; of a partial success only the refused one is left out", async () => {
  const rig = await rigOf();
  const collector = await fakeCollector(rig.identity);
  undo.push(() => collector.stop());
  collector.refuse(5);
  const siem = {
    kind: "otel",
    url: collector.url,
    headers: { Authorization: "${env:TOKEN}" },
    ca: rig.ca,
    from: "start",
  };
  const sinks = await rig.sinks({ siem });
  const size = await rig.add(20);
  await reached(rig, size);
  const indexes = collector
    .records()
    .map(({ attributes }) => Number(attributes.find(({ key }) => key === "glasskey.log.index")?.value["intValue"]));
  // Some twice, none missing but the one that was refused.
  expect([...new Set(indexes)].toSorted((a, b) => a - b)).toEqual(upTo(size).filter((index) => index !== 5));
  expect((await sinks.status())[0]?.parked).toMatchObject([{ index: 5, error: "took only some of the records" }]);
  expect(collector.records()[0]).toMatchObject({ timeUnixNano: "1767225600000000000", eventName: "login.succeeded" });
  expect(collector.seen[0]?.headers.authorization).toBe("t0p-secret-token");
});

test("a JSON value becomes an AnyValue of the same meaning", () => {
  expect(anyValue({ a: ["x", 1, 1.5, true, null] })).toEqual({
    kvlistValue: {
      values: [
        {
          key: "a",
          value: {
            arrayValue: {
              values: [{ stringValue: "x" }, { intValue: "1" }, { doubleValue: 1.5 }, { boolValue: true }, {}],
            },
          },
        },
      ],
    },
  });
});

test("webhook: a batch is signed, as lines or as one list, and has the same id when it comes again", async () => {
  const rig = await rigOf();
  const hook = await fakeReceiver(rig.identity, WEBHOOK_SECRET);
  undo.push(() => hook.stop());
  const base = { kind: "webhook", url: hook.url, secret: "${env:HOOK}", ca: rig.ca };
  const drivers = configOf({ lines: base, list: { ...base, body: "array", format: "entry" } }).map((sink) => {
    if (sink.kind !== "webhook") throw new Error("not a webhook");
    return webhookDriver(sink, () => ({ reveal: () => WEBHOOK_SECRET }));
  });
  for (const driver of drivers) await driver.deliver(items(2), never);
  await drivers[0]?.deliver(items(2), never);
  const [lines, list, again] = hook.taken();
  expect(lines?.text).toBe('{"index":0}\n{"index":1}\n');
  expect(list?.text).toBe('[{"index":0},{"index":1}]');
  expect(again?.headers["webhook-id"]).toBe(lines?.headers["webhook-id"]);
  expect(lines?.headers["webhook-id"]).toBe(`log_0_1_${"ab".repeat(16)}`);
});

test("in the format of entries, the leaf hash is that of the bytes that stand there", async () => {
  const rig = await rigOf();
  const hook = await fakeReceiver(rig.identity, WEBHOOK_SECRET);
  undo.push(() => hook.stop());
  const siem = { kind: "webhook", url: hook.url, secret: "${env:HOOK}", ca: rig.ca, from: "start", format: "entry" };
  await rig.sinks({ siem });
  await reached(rig, await rig.add(2));
  const { createHash } = await import("node:crypto");
  const lines = hook.taken().flatMap(({ text }) => text.split("\n").filter((line) => line !== ""));
  for (const line of lines) {
    const entry = line.slice(line.indexOf('"entry":') + '"entry":'.length, -1);
    const hash = createHash("sha256").update(Buffer.of(0)).update(entry).digest("hex");
    expect(tagsOf([line])[0]?.leafHash).toBe(hash);
  }
});

/** What a webhook's driver makes of a receiver that answers like this. */
async function answered(answer: FakeAnswer, timeoutMs = 20_000): Promise<DeliveryError> {
  const rig = await rigOf();
  const fake = await startFake(rig.identity, "/hook", () => answer);
  undo.push(() => fake.stop());
  return attempt(rig, fake.url, timeoutMs);
}

async function attempt(rig: Rig, url: string, timeoutMs = 20_000): Promise<DeliveryError> {
  const [sink] = configOf({ siem: { kind: "webhook", url, secret: "${env:HOOK}", ca: rig.ca } });
  if (sink?.kind !== "webhook") throw new Error("not a webhook");
  const driver = webhookDriver(sink, () => ({ reveal: () => WEBHOOK_SECRET }), timeoutMs);
  const error: unknown = await driver.deliver(items(1), never).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof DeliveryError)) throw new Error("it was delivered");
  return error;
}

test("a redirect is a failure, and nothing is sent to where it points", async () => {
  const rig = await rigOf();
  const elsewhere = await startFake(rig.identity, "/", () => ({ status: 204 }));
  undo.push(() => elsewhere.stop());
  for (const status of [301, 302, 307, 308]) {
    const error = await answered({ status, headers: { location: elsewhere.url } });
    expect(error).toMatchObject({ refused: false, message: `answered ${status}, a redirect, which is not followed` });
  }
  expect(elsewhere.seen).toEqual([]);
});

test("what a receiver writes into its answer is in no error, and how long it wants silence is bounded", async () => {
  const error = await answered({ status: 503, body: "hostile \u001b[2J", headers: { "retry-after": "999999" } });
  expect(error.message).toBe("answered 503");
  expect(error.retryAfterMs).toBe(600_000);
  expect((await answered({ status: 413 })).refused).toBe(true);
});

test("a receiver that never answers is given up in time", async () => {
  expect((await answered({ status: 200, hang: true }, 200)).message).toBe("no answer within 0.2 s");
});

test("a receiver that answers without end is cut off, and takes no memory", async () => {
  const rig = await rigOf();
  let sent = 0;
  const server = createServer({ key: rig.identity.key, cert: rig.identity.cert }, (request, response) => {
    request.resume();
    const more = (): void => {
      if (response.destroyed) return;
      sent += 65_536;
      if (response.write(Buffer.alloc(65_536, 32))) setImmediate(more);
      else response.once("drain", more);
    };
    response.writeHead(200);
    more();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  undo.push(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  expect((await attempt(rig, `https://127.0.0.1:${port}/hook`)).message).toBe("its answer is too long");
  expect(sent).toBeLessThan(64 * 1024 * 1024);
});

test("a receiver with another name in its certificate gets nothing over HTTPS", async () => {
  const rig = await rigOf();
  const fake = await startFake(rig.stranger, "/hook", () => ({ status: 204 }));
  undo.push(() => fake.stop());
  expect((await attempt(rig, fake.url)).message).toMatch(/certificate does not hold|connection failed/);
  expect(fake.seen).toEqual([]);
});
