import fc from "fast-check";
import { beforeAll, expect, test } from "vitest";
import { createPipe, type Pipe } from "./fixtures/pipe.ts";
import { say } from "./fixtures/raw-client.ts";
import { loadParser, parseSql } from "./scope-parser.ts";
import * as wire from "./wire.ts";

beforeAll(loadParser);

const name = fc.constantFrom("", "s", "p");
const clientMessage = fc.oneof(
  fc
    .constantFrom("select 1", "refuse me", "deallocate s", "discard all", "declare p cursor for select 1", "é")
    .chain((text) =>
      fc.oneof(
        fc.constant(say.query(text)),
        name.map((n) => say.parse(n, text)),
      ),
    ),
  fc.tuple(name, name).map(([portal, statement]) => say.bind(portal, statement, ["1", null])),
  name.map((n) => say.execute(n)),
  name.map((n) => say.describe("S", n)),
  fc.tuple(fc.constantFrom("S" as const, "P" as const), name).map(([what, n]) => say.close(what, n)),
  fc.constantFrom(say.sync, say.flush, say.copyData("data\n"), say.copyDone, say.copyFail("no"), say.terminate),
  fc.uint8Array({ maxLength: 20 }).map((bytes) => wire.message(wire.FRONTEND.bind, Buffer.from(bytes))),
);
const serverMessage = fc.oneof(
  fc.constantFrom(...Object.values(wire.BACKEND)).map((type) => wire.message(type, Buffer.from([0x49, 0]))),
  fc
    .constantFrom("ERROR" as const, "FATAL" as const)
    .map((severity) => wire.encodeReport({ severity, sqlstate: "XX000", message: "m" })),
);
const step = fc.oneof(
  { weight: 3, arbitrary: clientMessage.map((bytes) => ({ side: "client" as const, bytes })) },
  { weight: 3, arbitrary: serverMessage.map((bytes) => ({ side: "target" as const, bytes })) },
  {
    weight: 1,
    arbitrary: fc
      .uint8Array({ maxLength: 40 })
      .map((bytes) => ({ side: "client" as const, bytes: Buffer.from(bytes) })),
  },
);

/** True when it went well or ended in a ProtocolViolation. */
function run(pipe: Pipe, steps: readonly { side: "client" | "target"; bytes: Buffer }[]): boolean {
  try {
    for (const { side, bytes } of steps) {
      if (side === "client") pipe.fromClient(bytes);
      else pipe.fromTarget(bytes);
    }
    return true;
  } catch (error) {
    return error instanceof wire.ProtocolViolation;
  }
}

test("whatever both sides say, a session does its work or ends in a protocol violation", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const pipe = createPipe();
      expect(run(pipe, steps)).toBe(true);
      const fed = steps.reduce((sum, { bytes }) => sum + bytes.length, 0);
      expect(pipe.heldBytes).toBeLessThanOrEqual(fed);
    }),
    { numRuns: 2_000 },
  );
});

test("a refused text never reaches the target, in whatever company and however it is cut", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), fc.nat(50), (steps, at) => {
      const pipe = createPipe();
      const cut = steps.flatMap(({ side, bytes }) => [
        { side, bytes: bytes.subarray(0, at % (bytes.length + 1)) },
        { side, bytes: bytes.subarray(at % (bytes.length + 1)) },
      ]);
      run(pipe, cut);
      expect(Buffer.concat(pipe.toTarget).includes("refuse me")).toBe(false);
    }),
    { numRuns: 1_000 },
  );
});

test("every text that reaches the target is in the recording first", () => {
  fc.assert(
    fc.property(fc.array(clientMessage, { maxLength: 30 }), (messages) => {
      const pipe = createPipe();
      run(
        pipe,
        messages.map((bytes) => ({ side: "client" as const, bytes })),
      );
      const recorded = pipe.records
        .map((r) => (typeof r === "string" ? r : Buffer.from(r).toString("utf8")))
        .join("\n");
      const sent = Buffer.concat(pipe.toTarget);
      const forwarded = ["select 1", "deallocate s", "discard all", "declare p cursor", "é", "data\n"].filter((t) =>
        sent.includes(t),
      );
      expect(forwarded.filter((text) => !recorded.includes(text))).toEqual([]);
    }),
    { numRuns: 1_000 },
  );
});

test("an answer that nothing asked for is not passed on as if it were one", () => {
  const pipe = createPipe();
  expect(() => pipe.fromTarget(wire.message(wire.BACKEND.commandComplete, "DELETE 5"))).toThrow(wire.ProtocolViolation);
  const copyBoth = createPipe();
  copyBoth.fromClient(say.query("select 1"));
  expect(() => copyBoth.fromTarget(wire.message(wire.BACKEND.copyBothResponse, Buffer.alloc(3)))).toThrow(
    wire.ProtocolViolation,
  );
});

test("what is not text is searched as a whole before its beginning is recorded", () => {
  const notText = (text: string): Buffer => Buffer.concat([Buffer.from(text), Buffer.from([0xe9, 0])]);
  const secret = `insert into u values ('hunter2hunter2', '${"x".repeat(2_000)}') -- the passw`;
  const wide = Buffer.from("select 'hunter2' as password", "utf16le").toString("latin1");
  for (const text of [secret, wide]) {
    for (const message of [
      wire.message(wire.FRONTEND.query, notText(text)),
      wire.message(wire.FRONTEND.parse, Buffer.from([0]), notText(text), Buffer.alloc(2)),
    ]) {
      const pipe = createPipe();
      run(pipe, [{ side: "client", bytes: message }]);
      expect(pipe.records.join("\n")).toMatch(/masked: \d+ characters|invalid|malformed/i);
      expect(pipe.records.join("\n").replaceAll("\\u0000", "")).not.toContain("hunter2");
    }
  }
  const plain = createPipe();
  plain.fromClient(wire.message(wire.FRONTEND.query, notText("x".repeat(5_000))));
  expect((JSON.parse(String(plain.records[0])) as { text: string }).text).toBe("x".repeat(1_000));
});

test("a refusal's reason does not repeat a secret that is taken for a name too long", () => {
  const secret = "hunter2".repeat(10);
  const pipe = createPipe({
    ...{ parameter: () => ({ ok: true, classes: [] }), fastpath: () => ({ ok: true, classes: [] }) },
    ...{ startup: {}, cached: 0 },
    check: (sql) => {
      const parsed = parseSql(sql);
      return parsed.ok ? { ok: true, classes: [] } : { ok: false, reason: parsed.message, sqlstate: "54000" };
    },
  });
  pipe.fromClient(say.query(`update users set password = "${secret}"`));
  expect(pipe.records.join("\n")).toContain("masked");
  expect(pipe.records.join("\n")).not.toContain("hunter2");
});

test("COPY data that comes before its COPY was answered is masked, whatever was sent behind the COPY", () => {
  const pipe = createPipe();
  pipe.fromClient(Buffer.concat([say.query("copy t from stdin /* password */"), say.query("select 1")]));
  pipe.fromClient(say.copyData("hunter2\n"));
  expect(Buffer.concat(pipe.records.map((record) => Buffer.from(record))).toString()).not.toContain("hunter2");
  expect(Buffer.concat(pipe.toTarget).toString()).toContain("hunter2");
});
