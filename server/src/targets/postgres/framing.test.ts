import fc from "fast-check";
import { expect, test } from "vitest";
import {
  createClientReader,
  createServerReader,
  DROP,
  KEEP,
  MAX_STATEMENT_BYTES,
  type ClientSink,
  type Outcome,
} from "./framing.ts";
import * as wire from "./wire.ts";

/** Everything that came out of a reader, in a form that does not depend on how the input was cut. */
interface Heard {
  passed: Buffer;
  messages: string[];
  copied: Buffer;
  rows: number;
  rowBytes: number;
  error: string | undefined;
}

type Decide = (type: number, body: Buffer) => Outcome;
const keepAll: Decide = () => KEEP;

function hearClient(chunks: readonly Buffer[], decide = keepAll, keepCopy = true): Heard {
  const heard: Heard = {
    passed: Buffer.alloc(0),
    messages: [],
    copied: Buffer.alloc(0),
    rows: 0,
    rowBytes: 0,
    error: undefined,
  };
  const reader = createClientReader({
    message(type, bytes, start, end) {
      const body = Buffer.from(bytes.subarray(start + 5, end));
      heard.messages.push(`${type}:${body.toString("hex")}`);
      return decide(type, body);
    },
    copyData(bytes, start, end) {
      heard.copied = Buffer.concat([heard.copied, bytes.subarray(start, end)]);
      return keepCopy;
    },
    pass: (bytes) => void (heard.passed = Buffer.concat([heard.passed, bytes])),
  });
  feed(reader, chunks, heard);
  return heard;
}

function hearServer(chunks: readonly Buffer[], decide = keepAll): Heard {
  const heard: Heard = {
    passed: Buffer.alloc(0),
    messages: [],
    copied: Buffer.alloc(0),
    rows: 0,
    rowBytes: 0,
    error: undefined,
  };
  const reader = createServerReader({
    message(type, bytes, start, end, length) {
      heard.messages.push(`${type}:${length}`);
      return decide(type, bytes.subarray(start + 5, end));
    },
    rows(messages, contentBytes) {
      heard.rows += messages;
      heard.rowBytes += contentBytes;
    },
    pass: (bytes) => void (heard.passed = Buffer.concat([heard.passed, bytes])),
  });
  feed(reader, chunks, heard);
  return heard;
}

function feed(reader: { feed(chunk: Buffer): void }, chunks: readonly Buffer[], heard: Heard): void {
  try {
    for (const chunk of chunks) reader.feed(chunk);
  } catch (error) {
    if (!(error instanceof wire.ProtocolViolation)) throw error;
    heard.error = error.message;
  }
}

function cut(bytes: Buffer, at: readonly number[]): Buffer[] {
  const points = [0, ...at.map((point) => point % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return points.slice(1).map((point, i) => bytes.subarray(points[i] ?? 0, point));
}

const body = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes));
const { sync, flush, copyDone, terminate, password: _, ...withBody } = wire.FRONTEND;
const clientMessage = fc.oneof(
  fc.constantFrom(sync, flush, copyDone, terminate).map((type) => wire.message(type)),
  fc.tuple(fc.constantFrom(...Object.values(withBody)), body).map(([type, bytes]) => wire.message(type, bytes)),
);
const serverMessage = fc
  .tuple(fc.constantFrom(...Object.values(wire.BACKEND)), body)
  .map(([type, bytes]) => wire.message(type, bytes));
const cuts = fc.array(fc.nat(), { maxLength: 12 });

test("however a client's stream is cut, the same messages and the same bytes come out", () => {
  fc.assert(
    fc.property(fc.array(clientMessage, { maxLength: 12 }), cuts, (messages, at) => {
      const stream = Buffer.concat(messages);
      const whole = hearClient([stream]);
      expect(hearClient(cut(stream, at))).toEqual(whole);
      expect(whole.passed.equals(stream)).toBe(true);
      expect(whole.error).toBeUndefined();
    }),
  );
});

test("however a target's stream is cut, the same messages, rows and bytes come out", () => {
  fc.assert(
    fc.property(fc.array(serverMessage, { maxLength: 12 }), cuts, (messages, at) => {
      const stream = Buffer.concat(messages);
      const whole = hearServer([stream]);
      expect(hearServer(cut(stream, at))).toEqual(whole);
      expect(whole.passed.equals(stream)).toBe(true);
    }),
  );
});

test("a stream split at every single offset comes out whole", () => {
  const client = Buffer.concat([
    wire.message(wire.FRONTEND.parse, "s", "select $1", Buffer.alloc(2)),
    wire.message(wire.FRONTEND.copyData, Buffer.from("1\t2\n")),
    wire.SYNC,
    wire.message(wire.FRONTEND.query, "select 1"),
  ]);
  const server = Buffer.concat([
    wire.message(wire.BACKEND.dataRow, Buffer.alloc(40)),
    wire.message(wire.BACKEND.commandComplete, "SELECT 1"),
    wire.encodeReport({ severity: "ERROR", sqlstate: "42P01", message: "no" }),
    wire.encodeReadyForQuery(wire.STATUS.idle),
  ]);
  for (let i = 0; i <= client.length; i += 1) {
    expect(hearClient([client.subarray(0, i), client.subarray(i)])).toEqual(hearClient([client]));
  }
  for (let i = 0; i <= server.length; i += 1) {
    expect(hearServer([server.subarray(0, i), server.subarray(i)])).toEqual(hearServer([server]));
  }
  expect(hearClient(cut(client, [...client.keys()]))).toEqual(hearClient([client]));
  expect(hearServer(cut(server, [...server.keys()]))).toEqual(hearServer([server]));
});

test("dropped and replaced messages leave their neighbours untouched, wherever the stream is cut", () => {
  const replacement = wire.message(wire.FRONTEND.query, "other");
  const decide: Decide = (type) =>
    type === wire.FRONTEND.query ? replacement : type === wire.FRONTEND.describe ? DROP : KEEP;
  fc.assert(
    fc.property(fc.array(clientMessage, { maxLength: 12 }), cuts, (messages, at) => {
      const expected = Buffer.concat(
        messages.map((m) => (m[0] === wire.FRONTEND.query ? replacement : m[0] === wire.FRONTEND.describe ? DROP : m)),
      );
      expect(hearClient(cut(Buffer.concat(messages), at), decide).passed.equals(expected)).toBe(true);
    }),
  );
  const onServer: Decide = (type) => (type === wire.BACKEND.errorResponse ? replacement : KEEP);
  fc.assert(
    fc.property(fc.array(serverMessage, { maxLength: 12 }), cuts, (messages, at) => {
      const expected = Buffer.concat(messages.map((m) => (m[0] === wire.BACKEND.errorResponse ? replacement : m)));
      expect(hearServer(cut(Buffer.concat(messages), at), onServer).passed.equals(expected)).toBe(true);
    }),
  );
});

test("COPY data that is not wanted is dropped whole, also over chunks", () => {
  const stream = Buffer.concat([wire.message(wire.FRONTEND.copyData, Buffer.alloc(100, 7)), wire.SYNC]);
  for (let i = 0; i <= stream.length; i += 1) {
    const heard = hearClient([stream.subarray(0, i), stream.subarray(i)], keepAll, false);
    expect(heard.passed.equals(wire.SYNC)).toBe(true);
  }
});

test("arbitrary bytes never do more than end the stream, and never hold more than was sent", () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 8 }), (parts) => {
      const chunks = parts.map((part) => Buffer.from(part));
      const sent = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
      for (const heard of [hearClient(chunks), hearServer(chunks)])
        expect(heard.passed.length).toBeLessThanOrEqual(sent);
    }),
  );
});

test("a statement that announces 1 GB is refused by its length, before a byte of it is held", () => {
  const head = Buffer.from([wire.FRONTEND.query, 0x40, 0, 0, 0]);
  const sink: ClientSink = { message: () => KEEP, copyData: () => true, pass: () => {} };
  const reader = createClientReader(sink);
  expect(() => reader.feed(Buffer.concat([head, Buffer.alloc(1000)]))).toThrow(/1073741824 bytes is longer/);
  expect(reader.heldBytes).toBe(0);
  const most = createClientReader(sink);
  const announced = Buffer.alloc(5);
  announced[0] = wire.FRONTEND.query;
  announced.writeUInt32BE(MAX_STATEMENT_BYTES, 1);
  most.feed(announced);
  expect(most.heldBytes).toBe(5);
});

test.each([
  ["a length below itself", [wire.FRONTEND.query, 0, 0, 0, 3]],
  ["a negative length", [wire.FRONTEND.query, 0xff, 0xff, 0xff, 0xff]],
  ["a Sync with content", [wire.FRONTEND.sync, 0, 0, 0, 5, 0]],
  ["a password after the login", [wire.FRONTEND.password, 0, 0, 0, 5, 0]],
  ["a type that does not exist", [0, 0, 0, 0, 4]],
])("%s ends the client's stream", (_, bytes) => {
  expect(hearClient([Buffer.from(bytes)]).error).toBeDefined();
});

test.each([
  ["a length below itself", [wire.BACKEND.dataRow, 0, 0, 0, 3]],
  ["a negative length", [wire.BACKEND.dataRow, 0x80, 0, 0, 0]],
  ["a type that does not exist", [0x21, 0, 0, 0, 4]],
])("%s ends the target's stream, after the whole messages before it", (_, bytes) => {
  const before = wire.message(wire.BACKEND.dataRow, Buffer.alloc(10));
  const heard = hearServer([Buffer.concat([before, Buffer.from(bytes)])]);
  expect(heard.error).toBeDefined();
  expect(heard.passed.equals(before)).toBe(true);
});

test("our own message is put between two of the target's, never inside one", () => {
  const notice = wire.encodeReport({ severity: "WARNING", sqlstate: "01000", message: "5 minutes left" });
  const row = wire.message(wire.BACKEND.dataRow, Buffer.alloc(50, 1));
  const stream = Buffer.concat([row, row]);
  for (let i = 0; i <= stream.length; i += 1) {
    let passed = Buffer.alloc(0);
    const reader = createServerReader({
      ...{ message: () => KEEP, rows: () => {} },
      pass: (bytes) => void (passed = Buffer.concat([passed, bytes])),
    });
    reader.feed(stream.subarray(0, i));
    reader.insert(notice);
    reader.feed(stream.subarray(i));
    const at = passed.indexOf(notice);
    expect([0, row.length, 2 * row.length]).toContain(at);
    expect(Buffer.concat([passed.subarray(0, at), passed.subarray(at + notice.length)]).equals(stream)).toBe(true);
  }
});

test("an error of a megabyte is judged by its beginning and passes or vanishes whole", () => {
  const huge = wire.message(wire.BACKEND.errorResponse, "SERROR", "VERROR", "C42601", `M${"x".repeat(1_000_000)}`, "");
  const stream = Buffer.concat([huge, wire.encodeReadyForQuery(wire.STATUS.idle)]);
  const chunks = cut(stream, [3, 70_000, 140_000, 900_000]);
  expect(hearServer(chunks).passed.equals(stream)).toBe(true);
  const dropped = hearServer(chunks, (type) => (type === wire.BACKEND.errorResponse ? DROP : KEEP));
  expect(dropped.passed.equals(wire.encodeReadyForQuery(wire.STATUS.idle))).toBe(true);
});
