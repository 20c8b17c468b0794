import { existsSync } from "node:fs";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { RECORD } from "../targets/target.ts";
import { asciicast } from "./asciicast.ts";
import type { ExportFormat } from "./export.ts";
import type { StoredRecord } from "./record.ts";
import { testFolder } from "./testing/journal.ts";
import { type TestStore, testStore } from "./testing/store.ts";
import { numbered, openStudio, programOutput, type Studio } from "./testing/terminal.ts";

let base: TestStore;
beforeAll(async () => {
  base = await testStore(inject("pg18"));
});
afterAll(() => base[Symbol.asyncDispose]());

const never = new AbortController().signal;
const START_US = Date.UTC(2026, 0, 2, 3, 4, 5) * 1000;

async function exported({ recordings }: Studio, session: string, format: ExportFormat): Promise<string> {
  let whole = "";
  for await (const piece of recordings.export(session, format, never)) whole += piece;
  return whole;
}

/** Bytes and texts are of terminal 1. */
const record = (seq: number, kind: number, payload: Buffer | object | string, ms: number): StoredRecord => ({
  ...{ session: "se_0123456789ab", seq, kind, timeUs: START_US + ms * 1000 },
  payload:
    Buffer.isBuffer(payload) || typeof payload === "string" ? numbered(payload) : Buffer.from(JSON.stringify(payload)),
});

async function cast(records: readonly StoredRecord[]): Promise<unknown[]> {
  const lines: unknown[] = [];
  const source = async function* (): AsyncGenerator<StoredRecord> {
    yield* records;
  };
  for await (const line of asciicast("se_0123456789ab", source())) lines.push(JSON.parse(line));
  return lines;
}

test("a terminal as asciicast v3: header, intervals, output, input, resizes and markers", async () => {
  expect(
    await cast([
      record(1, RECORD.sessionStarted, { person: "ann" }, 0),
      record(2, RECORD.terminalResize, { n: 1, cols: 100, rows: 40 }, 10),
      record(3, RECORD.terminalOutput, "$ ", 500),
      record(4, RECORD.terminalInput, "ls\r", 1_500),
      record(5, RECORD.terminalResize, { n: 1, cols: 0, rows: 1e9 }, 1_750),
      record(6, RECORD.notice, { what: "warning", text: "5 minutes left" }, 2_000),
      record(7, RECORD.terminalOutput, "bye\u001b[0m", 2_000.5),
      record(8, RECORD.statementCompleted, { n: 1, tag: "exit 3", us: 1 }, 3_000),
      record(9, RECORD.sessionEnded, { cause: "client", detail: "closed" }, 3_500),
    ]),
  ).toEqual([
    { version: 3, term: { cols: 100, rows: 40 }, timestamp: START_US / 1_000_000, title: "se_0123456789ab" },
    [0.5, "o", "$ "],
    [1, "i", "ls\r"],
    [0.25, "r", "2x200"],
    [0.25, "m", "Glasskey: 5 minutes left"],
    [0.0005, "o", "bye\u001b[0m"],
    [0.9995, "x", "3"],
  ]);
});

test("UTF-8 that is cut between records is put together, bytes that are none are replaced, and nothing is dropped", async () => {
  const euro = Buffer.from("€");
  const lines = await cast([
    record(1, RECORD.terminalOutput, Buffer.concat([Buffer.from("\uFEFFa"), euro.subarray(0, 1)]), 0),
    record(2, RECORD.terminalOutput, euro.subarray(1, 2), 1),
    record(3, RECORD.terminalInput, Buffer.from("é").subarray(0, 1), 2),
    record(4, RECORD.terminalOutput, Buffer.concat([euro.subarray(2), Buffer.from([0xff, 0x62])]), 3),
    record(5, RECORD.terminalOutput, euro.subarray(0, 2), 4),
    record(6, RECORD.sessionEnded, { cause: "lost" }, 5),
  ]);
  expect(lines.slice(1)).toEqual([
    [0, "o", "\uFEFFa"],
    [0.003, "o", "€\uFFFDb"],
    [0.002, "o", "\uFFFD"],
    [0, "i", "\uFFFD"],
    [0, "m", "session ended: lost"],
  ]);
});

test("a clock that was set back gives no negative interval, and does not stretch the next one", async () => {
  const lines = await cast([
    record(1, RECORD.terminalOutput, "a", 10_000),
    record(2, RECORD.terminalOutput, "b", 2_000),
    record(3, RECORD.terminalOutput, "c", 2_100),
  ]);
  expect(lines.slice(1)).toEqual([
    [0, "o", "a"],
    [0, "o", "b"],
    [0.1, "o", "c"],
  ]);
});

test("a session without a terminal is refused as asciicast, with what to do", async () => {
  const statement = record(1, RECORD.statementStarted, { n: 1, text: "select 1" }, 0);
  await expect(cast([statement])).rejects.toMatchObject({
    code: "usage",
    next: expect.stringContaining("--format json"),
  });
  await expect(cast([])).rejects.toMatchObject({ code: "usage" });
});

test("a session of statements, exported as JSON lines, as text and raw", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.statement(1, "select '\u001b[2J\u009b\u202e'", { tag: "SELECT 1", rows: 1, us: 1_500 });
  await take.statement(2, "drop table t", { error: { sqlstate: "42501", message: "permission\u001b denied" }, us: 9 });
  await take.notice("5 minutes left");
  await take.started(3, "select pg_sleep(99)");
  await take.end();

  const json = (await exported(studio, take.session, "json"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as object);
  expect(json).toMatchObject([
    { what: "started", content: { person: "ann" } },
    { what: "statement", n: 1, outcome: "done", rows: 1, text: "select '\u001b[2J\u009b\u202e'" },
    { what: "statement", n: 2, outcome: "failed", error: { sqlstate: "42501" } },
    { what: "notice", content: { text: "5 minutes left" } },
    { what: "statement", n: 3, outcome: "unknown" },
    { what: "ended" },
  ]);
  for (const format of ["json", "raw", "text"] as const) {
    // Nothing that drives a terminal.
    expect((await exported(studio, take.session, format)).replaceAll("\n", "")).not.toMatch(/[\p{Cc}\p{Cf}]/u);
  }
  const readable = await exported(studio, take.session, "text");
  expect(readable).toContain("#3  select pg_sleep(99)");
  const raw = (await exported(studio, take.session, "raw")).trimEnd().split("\n");
  expect(raw.map((line) => (JSON.parse(line) as { seq: number }).seq)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
});

test("a statement too long for one record is put together, and one too long for that is told by its length", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const session = await base.session();
  const recorder = studio.journal.recorder(session);
  const long = (n: number, bytes: Buffer): void => {
    recorder.write(RECORD.statementStarted, JSON.stringify({ n, overflow: bytes.length }));
    for (let at = 0; at < bytes.length; at += 1_000_000) {
      const head = Buffer.alloc(4);
      head.writeUInt32BE(n);
      recorder.write(RECORD.data, Buffer.concat([head, bytes.subarray(at, at + 1_000_000)]));
    }
    recorder.write(RECORD.statementCompleted, JSON.stringify({ n, tag: "SELECT 1" }));
  };
  long(1, Buffer.from(JSON.stringify({ n: 1, via: "simple", text: `select '${"y".repeat(2_500_000)}'` })));
  long(2, Buffer.from(JSON.stringify({ n: 2, via: "simple", text: "z".repeat(17 << 20) })));
  await new Promise<void>((resolve) => {
    recorder.write(RECORD.sessionEnded, "{}", resolve);
  });
  const lines = (await exported(studio, session, "json"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(lines).toMatchObject([
    { n: 1, outcome: "done", sentBytes: 0 },
    { n: 2, outcome: "done", sentBytes: 0, text: "", leftOutBytes: expect.any(Number) },
    { what: "ended" },
  ]);
  expect(String(lines[0]?.["text"]).length).toBe(2_500_009);
});

test("binary garbage in a terminal is exported in every form, and its bytes are whole in the raw one", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.resize(0, 100_000);
  const garbage = Buffer.from(Array.from({ length: 50_000 }, (_, i) => (i * 7_919 + (i >> 3)) % 256));
  for (let at = 0; at < garbage.length; at += 7_001) await take.output(garbage.subarray(at, at + 7_001));
  await take.end();
  const raw = (await exported(studio, take.session, "raw"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as { kind: string; bytes: string });
  const bytes = raw.filter(({ kind }) => kind === "terminalOutput").map((line) => Buffer.from(line.bytes, "base64"));
  expect(Buffer.concat(bytes).equals(garbage)).toBe(true);
  for (const format of ["json", "asciicast"] as const) {
    for (const line of (await exported(studio, take.session, format)).trimEnd().split("\n")) JSON.parse(line);
  }
  expect((await exported(studio, take.session, "text")).replaceAll("\n", "")).not.toMatch(/[\p{Cc}\p{Cf}]/u);
});

test.skipIf(!existsSync("/usr/bin/vi") || !existsSync("/usr/bin/python3"))(
  "a real editor in a real pseudo-terminal goes through journal and sealer and comes out byte for byte",
  { timeout: 60_000 },
  async () => {
    await using folder = await testFolder();
    await using studio = await openStudio(folder.path, base);
    const take = await studio.session();
    const pieces = await programOutput(["vi", "-u", "NONE", "-n"], { cols: 70, rows: 12, input: "iwörld\x1b:q!\r" });
    await take.begin();
    await take.resize(70, 12);
    for (const piece of pieces) await take.output(piece);
    await take.end();
    const events = (await exported(studio, take.session, "asciicast"))
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as [number, string, string]);
    expect(events[0]).toMatchObject({ version: 3, term: { cols: 70, rows: 12 } });
    const out = events
      .slice(1)
      .filter(([, code]) => code === "o")
      .map(([, , text]) => text);
    expect(out.join("")).toBe(Buffer.concat(pieces).toString("utf8"));
    expect(await exported(studio, take.session, "text")).toContain("wörld");
  },
);
