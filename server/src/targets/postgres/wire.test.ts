import fc from "fast-check";
import { expect, test } from "vitest";
import * as wire from "./wire.ts";

const bytes = fc.uint8Array({ maxLength: 400 }).map((b) => Buffer.from(b));

test("no decoder does anything but answer or throw ProtocolViolation, on arbitrary bytes", () => {
  const decoders = [wire.decodeParse, wire.decodeBind, wire.decodeExecute, wire.decodeNamed, wire.decodeFunctionCall];
  fc.assert(
    fc.property(bytes, fc.nat(20), (body, offset) => {
      const start = Math.min(offset, body.length);
      for (const decode of decoders) expect(fails(() => decode(body, start, body.length))).toBe(false);
      for (const decode of [wire.decodeFirstPacket, wire.decodeSaslInitial]) {
        expect(fails(() => decode(body))).toBe(false);
      }
      wire.decodeError(body, start, body.length);
      wire.soleText(body, start, body.length);
    }),
    { numRuns: 2_000 },
  );
});

test("a decoder never reads beyond the end it was given", () => {
  const bind = wire.message(
    wire.FRONTEND.bind,
    "p",
    "s",
    int16(0),
    int16(1),
    wire.int32(5),
    Buffer.from("12345"),
    int16(0),
  );
  const padded = Buffer.concat([bind, Buffer.alloc(50)]);
  for (let end = 5; end < bind.length; end += 1) {
    expect(() => wire.decodeBind(padded, 5, end), `cut at ${end}`).toThrow(wire.ProtocolViolation);
  }
  expect(wire.decodeBind(padded, 5, bind.length).parameters).toEqual(["12345"]);
});

const parameter = fc.oneof(
  fc.record({ format: fc.constant(0), value: fc.string().map((s) => Buffer.from(s.replaceAll("\0", ""))) }),
  fc.record({ format: fc.constant(1), value: bytes }),
  fc.record({ format: fc.constantFrom(0, 1), value: fc.constant(null) }),
);

test("a Bind's parameters come back as sent: text, binary and NULL", () => {
  fc.assert(
    fc.property(fc.array(parameter, { maxLength: 20 }), (sent) => {
      const message = bindMessage(
        "portal",
        "name",
        sent.map((p) => p.format),
        sent.map((p) => p.value),
      );
      const decoded = wire.decodeBind(message, 5, message.length);
      expect(decoded.portal).toBe("portal");
      expect(decoded.statement).toBe("name");
      expect(decoded.parameters).toEqual(
        sent.map(({ format, value }) => (value === null || format === 1 ? value : value.toString())),
      );
    }),
  );
});

test("lesson 4: a Bind whose counts disagree is refused, not read with its fields swapped", () => {
  const one = Buffer.from("1");
  // Two formats for one parameter, a format that does not exist, a length beyond the message, bytes left over.
  expect(() => decode(bindMessage("", "", [0, 1], [one]))).toThrow(wire.ProtocolViolation);
  expect(() => decode(bindMessage("", "", [7], [one]))).toThrow(wire.ProtocolViolation);
  const long = wire.message(wire.FRONTEND.bind, "", "", int16(0), int16(1), wire.int32(1000), one, int16(0));
  expect(() => decode(long)).toThrow(wire.ProtocolViolation);
  const negative = wire.message(wire.FRONTEND.bind, "", "", int16(0), int16(1), wire.int32(-2), one, int16(0));
  expect(() => decode(negative)).toThrow(wire.ProtocolViolation);
  const more = wire.message(wire.FRONTEND.bind, "", "", int16(0), int16(0), int16(0), one);
  expect(() => decode(more)).toThrow(wire.ProtocolViolation);
  expect(decode(bindMessage("", "", [1], [one, one])).parameters).toEqual([one, one]); // one format is for all
});

test("a text parameter that is not UTF-8 stays bytes", () => {
  const latin1 = Buffer.from([0x63, 0x61, 0x66, 0xe9]);
  expect(decode(bindMessage("", "", [0], [latin1])).parameters).toEqual([latin1]);
});

test("a startup packet round-trips, and a broken one is refused", () => {
  const packet = wire.encodeStartup({ user: "gr_7kq2m9x4tbzc", database: "orders", application_name: "psql é" });
  const decoded = wire.decodeFirstPacket(packet.subarray(4));
  expect(decoded).toMatchObject({ kind: "startup", minor: 0 });
  expect(decoded.kind === "startup" ? [...decoded.parameters] : []).toEqual([
    ["user", "gr_7kq2m9x4tbzc"],
    ["database", "orders"],
    ["application_name", "psql é"],
  ]);
  for (let end = 5; end < packet.length; end += 1) {
    expect(() => wire.decodeFirstPacket(packet.subarray(4, end)), `cut at ${end}`).toThrow(wire.ProtocolViolation);
  }
  expect(() => wire.decodeFirstPacket(Buffer.concat([packet.subarray(4), Buffer.from("x")]))).toThrow(/terminator/);
  expect(() => wire.decodeFirstPacket(Buffer.from([0, 2, 0, 0]))).toThrow(/2\.0/);
});

test("requests for TLS, GSSAPI and cancelling are told apart", () => {
  expect(wire.decodeFirstPacket(wire.SSL_REQUEST.subarray(4))).toEqual({ kind: "tls" });
  expect(wire.decodeFirstPacket(wire.encodeFirstPacket(80_877_104).subarray(4))).toEqual({ kind: "gss" });
  const key = Buffer.alloc(32, 9);
  expect(wire.decodeFirstPacket(wire.encodeCancel(77, key).subarray(4))).toEqual({ kind: "cancel", pid: 77, key });
  expect(() => wire.decodeFirstPacket(wire.encodeCancel(77, Buffer.alloc(257)).subarray(4))).toThrow(/cancel/);
});

test("startup options are taken apart as PostgreSQL does", () => {
  expect(wire.decodeOptions(String.raw`-c geqo=off -cwork_mem=4MB --search-path=a\ b,\\c`)).toEqual([
    ["geqo", "off"],
    ["work_mem", "4MB"],
    ["search_path", String.raw`a b,\c`],
  ]);
  for (const bad of ["-c", "-d 5", "geqo=off", "-c geqo", "--=x", "-c a b=c"]) {
    expect(() => wire.decodeOptions(bad), bad).toThrow(/-c name=value/);
  }
});

test("a statement must be one UTF-8 text up to the message's end", () => {
  const text = (body: Buffer): string | undefined => wire.soleText(body, 0, body.length);
  expect(text(Buffer.from("select 'é'\0"))).toBe("select 'é'");
  expect(text(Buffer.from("\0"))).toBe("");
  expect(text(Buffer.from("select 1"))).toBeUndefined();
  expect(text(Buffer.from("select 1\0; drop table t\0"))).toBeUndefined();
  expect(text(Buffer.from([0x27, 0xe9, 0x27, 0]))).toBeUndefined();
  expect(text(Buffer.alloc(0))).toBeUndefined();
});

test("a report carries its fields, and text with a zero cannot forge one", () => {
  const report = wire.encodeReport({
    severity: "FATAL",
    sqlstate: "57P01",
    message: "over\0C00000",
    hint: "ask again",
  });
  expect(report.readUInt32BE(1)).toBe(report.length - 1);
  expect(wire.decodeError(report, 5, report.length)).toMatchObject({ severity: "FATAL", sqlstate: "57P01" });
});

function int16(value: number): Buffer {
  return Buffer.from([value >> 8, value & 255]);
}

function bindMessage(portal: string, name: string, formats: number[], values: (Buffer | null)[]): Buffer {
  return wire.message(
    wire.FRONTEND.bind,
    ...[portal, name, int16(formats.length), ...formats.map(int16), int16(values.length)],
    ...values.flatMap((value) => (value === null ? [wire.int32(-1)] : [wire.int32(value.length), value])),
    int16(0),
  );
}

function decode(message: Buffer): wire.BindMessage {
  return wire.decodeBind(message, 5, message.length);
}

/** Whether it throws anything but ProtocolViolation. */
function fails(work: () => unknown): boolean {
  try {
    work();
    return false;
  } catch (error) {
    return !(error instanceof wire.ProtocolViolation);
  }
}
