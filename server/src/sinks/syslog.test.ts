import type { ChildProcess } from "node:child_process";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import { afterEach, expect, inject, test } from "vitest";
import type { Item } from "./sink.ts";
import { frame, message } from "./syslog.ts";
import { ownRules } from "./testing/ocsf-rules.ts";
import { validate } from "./testing/ocsf-schema.ts";
import { ORIGIN, startRig, tagsOf, until, type Rig } from "./testing/rig.ts";
import { freePort, hasRsyslog, startRsyslog, written } from "./testing/rsyslog.ts";

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

const header = { host: "gk1", enterprise: 32_473, speaker: { origin: ORIGIN, version: "0.1.0" } };
const item = (changes: Partial<Item> = {}): Item => ({
  ...{ index: 7, leafHash: "ab".repeat(32), type: "login.failed", at: "2026-11-20T02:14:09.120Z", severity: "medium" },
  json: '{"a":1}',
  ...changes,
});

test("a message is RFC 5424: facility log audit, severity, time, type, and where in the log it stands", () => {
  expect(message(item(), header)).toBe(
    `<108>1 2026-11-20T02:14:09.120Z gk1 glasskey - login.failed [glasskey@32473 index="7" leafHash="${"ab".repeat(32)}" origin="glasskey.test/log"] {"a":1}`,
  );
  expect(frame("abc").toString()).toBe("3 abc");
});

test("nothing that an entry says ends a line, begins another message or hides text in a syslog message", () => {
  const hostile = "x\n<34>1 - evil - - - - \r\u0000\u001b[2J\u2028\u202e\ufeff\u0085 ö 😀";
  const text = message(item({ json: JSON.stringify({ hostile }), type: 'a b"]\n', at: "now\n" }), {
    ...header,
    speaker: { ...header.speaker, origin: 'o"]\\\n' },
  });
  expect(text).toMatch(/^[\x20-\x7E]+$/);
  expect(text).toContain('origin="o\\"\\]\\\\?"');
  expect(text.split(" ").slice(1, 6)).toEqual(["-", "gk1", "glasskey", "-", 'a?b"]?']);
  expect(JSON.parse(text.slice(text.indexOf("{")))).toEqual({ hostile });
});

/** A receiver over TLS of the test's own, which does with a connection what it is told. */
async function tlsReceiver(identity: { key: string; cert: string }, on: (socket: Socket) => void): Promise<number> {
  const server = createTlsServer({ ...identity, allowHalfOpen: true }, on);
  server.on("tlsClientError", () => {});
  const open = new Set<Socket>();
  server.on("connection", (socket: Socket) => open.add(socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  undo.push(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** Frames of a whole connection. */
function frames(bytes: Buffer): readonly string[] {
  const found: string[] = [];
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(0x20, at);
    const length = Number(bytes.subarray(at, space).toString());
    found.push(bytes.subarray(space + 1, space + 1 + length).toString());
    at = space + 1 + length;
  }
  return found;
}
const bodies = (messages: readonly string[]): readonly string[] =>
  messages.map((text) => text.slice(text.indexOf("] {") + 2));

test("a batch counts only when the receiver has closed after all of it, and the batch before comes again", async () => {
  const rig = await rigOf();
  const connections: Buffer[] = [];
  let reset = false;
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    const chunks: Buffer[] = [];
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => {
      if (reset) socket.resetAndDestroy();
      else chunks.push(chunk);
    });
    socket.once("end", () => {
      connections.push(Buffer.concat(chunks));
      socket.end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  undo.push(() => server.close());
  const { port } = server.address() as AddressInfo;
  await rig.sinks({ siem: { kind: "syslog", host: "127.0.0.1", port, transport: "tcp", from: "start" } });
  const first = await rig.add(3);
  await reached(rig, first);
  const before = tagsOf(bodies(connections.flatMap(frames))).map(({ index }) => index);
  expect(before).toEqual(upTo(first));
  const lastBatch = tagsOf(bodies(frames(connections.at(-1) ?? Buffer.alloc(0)))).map(({ index }) => index);

  reset = true;
  const size = await rig.add(4);
  await until(() => rig.warnings.some((line) => line.includes("is tried again")));
  expect(await rig.next("siem")).toBe(first);
  reset = false;
  await reached(rig, size);
  const got = tagsOf(bodies(connections.flatMap(frames))).map(({ index }) => index);
  // What was acknowledged last before the receiver broke is sent once more: it may have died with it.
  expect(got).toEqual([...before, ...lastBatch, ...upTo(size).slice(first)]);
});

test("a receiver with another name in its certificate, or without our CA, gets nothing", async () => {
  const rig = await rigOf();
  const got: Buffer[] = [];
  const port = await tlsReceiver(rig.stranger, (socket) => {
    socket.on("data", (chunk: Buffer) => got.push(chunk)).on("error", () => {});
  });
  const sink = { kind: "syslog", host: "127.0.0.1", port, from: "start" };
  const sinks = await rig.sinks({ wrongname: { ...sink, ca: rig.ca }, unknown: sink });
  await rig.add(2);
  const failing = await until(async () => {
    const all = await sinks.status();
    return all.every(({ failures }) => failures > 1) ? all : undefined;
  });
  for (const { lastError, nextIndex } of failing) {
    expect(lastError).toMatch(/^(its certificate does not hold|the connection failed) \([A-Z_]+\)$/);
    expect(nextIndex).toBe(0);
  }
  expect(got).toEqual([]);
  // The name that glasskey.yaml gives counts, whatever host is dialled.
  const good = await tlsReceiver(rig.stranger, (socket) => {
    socket
      .resume()
      .on("error", () => {})
      .once("end", () => socket.end());
  });
  await rig.sinks({ siem: { ...sink, port: good, ca: rig.ca, server_name: "elsewhere.example" } });
  await reached(rig, 2);
});

test("plain TCP works on this machine, and a receiver that never closes has got nothing", async () => {
  const rig = await rigOf();
  const server = createServer({ allowHalfOpen: true }, (socket) => socket.resume().on("error", () => {}));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  undo.push(() => server.close());
  const { port } = server.address() as AddressInfo;
  const sockets: Socket[] = [];
  server.on("connection", (socket) => sockets.push(socket));
  undo.push(() => sockets.forEach((socket) => socket.destroy()));
  await rig.sinks({ siem: { kind: "syslog", host: "127.0.0.1", port, transport: "tcp", from: "start" } });
  await rig.add(1);
  const [held] = await until(() => (sockets.length > 0 ? sockets : undefined));
  expect(await rig.next("siem")).toBe(0);
  held?.end();
  await reached(rig, 1);
});

test.skipIf(!hasRsyslog)(
  "a real rsyslog over TLS that is killed in the middle has every entry in the end, compared index by index",
  async () => {
    const rig = await rigOf();
    const port = await freePort();
    const rsyslog = (): Promise<ChildProcess> => startRsyslog(rig, port, (step) => undo.push(step));
    const first = await rsyslog();
    await rig.sinks({ siem: { kind: "syslog", host: "127.0.0.1", port, ca: rig.ca, from: "start" } });
    await rig.add(200);
    await until(() => written(rig).length >= 50);
    const ended = new Promise((resolve) => first.once("exit", resolve));
    first.kill("SIGKILL");
    await ended;
    await rig.add(2_000);
    await until(() => rig.warnings.some((line) => line.includes("is tried again")));
    await rsyslog();
    await reached(rig, await rig.add(3, "alarm.raised"));

    const size = 2_203;
    const hashes = await rig.hashes();
    const rules = ownRules();
    let next = 0;
    for (const [structured = "", priority, type, body = ""] of written(rig)) {
      const event = JSON.parse(body.trim()) as Record<string, unknown>;
      const [tag] = tagsOf([body]);
      expect(structured).toBe(`[glasskey@32473 index="${tag?.index}" leafHash="${tag?.leafHash}" origin="${ORIGIN}"]`);
      expect(tag?.leafHash).toBe(hashes[tag?.index ?? -1]);
      expect(tag?.index, "nothing comes before what is before it").toBeLessThanOrEqual(next);
      next = Math.max(next, (tag?.index ?? -1) + 1);
      expect(validate(rules, event)).toEqual([]);
      expect(priority).toBe(type === "alarm.raised" ? "107" : "110");
    }
    expect(next).toBe(size);
    expect(hashes).toHaveLength(size);
  },
);
