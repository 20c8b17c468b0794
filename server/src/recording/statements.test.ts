import fc from "fast-check";
import { expect, test } from "vitest";
import { GlassError } from "../core/errors.ts";
import { RECORD } from "../targets/target.ts";
import type { StoredRecord } from "./record.ts";
import { recordJson } from "./export.ts";
import { createFold, lineJson, type ReplayLine, statements, textLine } from "./statements.ts";

let seq = 0;
function record(kind: number, payload: object | Buffer): StoredRecord {
  const bytes = Buffer.isBuffer(payload) ? payload : Buffer.from(JSON.stringify(payload));
  return {
    session: "se_0123456789ab",
    seq: ++seq,
    kind,
    timeUs: Date.UTC(2026, 0, 2, 3, 4, 5, 678) * 1000,
    payload: bytes,
  };
}

async function fold(records: readonly StoredRecord[]): Promise<ReplayLine[]> {
  const lines: ReplayLine[] = [];
  for await (const line of statements(records)) lines.push(line);
  return lines;
}

const started = (n: number, text: string): StoredRecord => record(RECORD.statementStarted, { n, via: "simple", text });

test("a statement's beginning, data and end become one line, in the order of the ends", async () => {
  const data = Buffer.alloc(104);
  data.writeUInt32BE(2);
  const lines = await fold([
    record(RECORD.sessionStarted, { grant: "gr_1" }),
    started(1, "select 1"),
    started(2, "copy t from stdin"),
    record(RECORD.data, data),
    record(RECORD.statementCompleted, { n: 2, tag: "COPY 3", rows: 3, bytes: 0, us: 1_500 }),
    record(RECORD.statementRefused, { n: 3, via: "extended", text: "drop table t", reason: "drop is not in scope" }),
    record(RECORD.statementCompleted, { n: 1, error: { sqlstate: "57014", message: "canceled" }, us: 9 }),
    record(RECORD.sessionEnded, { cause: "client" }),
  ]);
  expect(
    lines.map((line) => (line.what === "statement" ? [line.statement.n, line.statement.outcome] : line.what)),
  ).toEqual(["started", [2, "done"], [3, "refused"], [1, "failed"], "ended"]);
  expect(lines[1]).toMatchObject({ statement: { tag: "COPY 3", rows: 3, us: 1_500, sentBytes: 100, via: "simple" } });
  expect(lineJson(lines[3] as ReplayLine)).toMatchObject({
    what: "statement",
    n: 1,
    at: "2026-01-02T03:04:05.678Z",
    error: { sqlstate: "57014" },
  });
  expect(textLine(lines[1] as ReplayLine)).toBe(
    "03:04:05.678  #2  copy t from stdin\n          COPY 3  1.5 ms  100 bytes sent",
  );
  expect(textLine(lines[2] as ReplayLine)).toContain("REFUSED drop is not in scope");
});

test("a long statement of which the rest was never recorded is shown with its length", async () => {
  const part = Buffer.concat([Buffer.from([0, 0, 0, 1]), Buffer.from('{"n":1,"via":"simple","text":"drop ')]);
  const lines = await fold([
    record(RECORD.statementStarted, { n: 1, overflow: 3_000_000 }),
    record(RECORD.data, part),
    record(RECORD.sessionEnded, { cause: "lost" }),
  ]);
  expect(lines).toMatchObject([
    { statement: { n: 1, outcome: "unknown", leftOutBytes: 3_000_000 } },
    { what: "ended" },
  ]);
});

test("who joins in the middle is told the answer to a statement that began before", () => {
  const answer = record(RECORD.statementCompleted, { n: 7, error: { sqlstate: "23505", message: "duplicate" }, us: 9 });
  expect(createFold(true).take(answer)).toMatchObject([
    { statement: { n: 7, text: "", outcome: "failed", error: { sqlstate: "23505" } } },
  ]);
});

test("a statement whose answer never came is shown before the end of its session", async () => {
  const lines = await fold([started(1, "select pg_sleep(99)"), record(RECORD.sessionEnded, { cause: "lost" })]);
  expect(lines).toMatchObject([{ statement: { n: 1, outcome: "unknown" } }, { what: "ended" }]);
  expect(textLine(lines[0] as ReplayLine)).toContain("no answer was recorded");
});

test("a client that begins statements without end does not grow the memory of the one who reads it", async () => {
  const lines: ReplayLine[] = [];
  const many = function* (): Generator<StoredRecord> {
    for (let n = 1; n <= 1_500; n++) yield started(n, "x");
  };
  for await (const line of statements(many())) lines.push(line);
  expect(lines.map((line) => (line.what === "statement" ? line.statement.n : 0))).toEqual(
    Array.from({ length: 1_500 }, (_, i) => i + 1),
  );
});

test("what a user typed cannot drive the terminal that replays it", async () => {
  const [line] = await fold([started(1, "select '\u001b]0;x\u0007\r\u202e\u009b31m'")]);
  const text = textLine(line as ReplayLine);
  expect(text.replaceAll("\n", "")).not.toMatch(/[\p{Cc}\p{Cf}]/u);
  expect(text).toContain("\\u{1b}");
});

test("payloads that are not what their kind says are an integrity error, never a crash", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.tuple(
          fc.integer({ min: 0, max: 20 }),
          fc.oneof(
            fc.uint8Array({ maxLength: 40 }),
            fc.json().map((text) => Buffer.from(text)),
          ),
        ),
      ),
      async (raw) => {
        const shown = fold(raw.map(([kind, bytes]) => record(kind, Buffer.from(bytes)))).then((lines) =>
          lines.map((line) => textLine(line) + JSON.stringify(lineJson(line))),
        );
        const error: unknown = await shown.then(
          () => undefined,
          (thrown: unknown) => thrown,
        );
        expect(error === undefined || (error instanceof GlassError && error.code === "integrity")).toBe(true);
      },
    ),
  );
});

test("the API's form of a record has its kind by name, and raw bytes as base64", () => {
  expect(recordJson(started(4, "select 1"))).toMatchObject({
    kind: "statementStarted",
    content: { n: 4, text: "select 1" },
    at: "2026-01-02T03:04:05.678Z",
  });
  // What the record itself calls its kind is not lost.
  expect(recordJson(record(RECORD.sessionStarted, { kind: "postgres" }))).toMatchObject({
    kind: "sessionStarted",
    content: { kind: "postgres" },
  });
  expect(recordJson(record(RECORD.data, Buffer.from("00000009ff", "hex")))).toMatchObject({
    kind: "data",
    n: 9,
    bytes: "/w==",
  });
  expect(recordJson(record(RECORD.terminalOutput, Buffer.from([0, 0, 0, 7, 1])))).toMatchObject({
    kind: "terminalOutput",
    bytes: "AQ==",
  });
  expect(recordJson(record(99, Buffer.from([1])))).toMatchObject({ kind: "99", bytes: "AQ==" });
});
