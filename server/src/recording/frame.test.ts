import fc from "fast-check";
import { expect, test } from "vitest";
import { GlassError } from "../core/errors.ts";
import {
  decodeFileHeader,
  encodeFileHeader,
  FILE_HEADER_BYTES,
  fileKey,
  FRAME_ALIGN,
  frameBytes,
  openFrame,
  sealFrame,
} from "./frame.ts";
import { decodeRecords, encodeRecord, JOURNAL_SESSION, sessionBytes, type StoredRecord } from "./record.ts";

const KEY = Buffer.alloc(32, 1);
const FILE = fileKey(KEY, Buffer.alloc(16, 2));
const SESSION = "se_0123456789ab";

const record = fc.record({
  session: fc.constantFrom(SESSION, "se_zzzzzzzzzzzz", JOURNAL_SESSION),
  seq: fc.integer({ min: 1, max: 2 ** 32 - 1 }),
  kind: fc.nat(255),
  timeUs: fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
  payload: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
});

function seal(plain: Buffer, sequence = 5, synced = 4): Buffer {
  const out = Buffer.alloc(frameBytes(plain.length));
  const roomy = Buffer.concat([plain, Buffer.alloc(16, 0xee)]);
  expect(sealFrame(FILE, sequence, synced, roomy, plain.length, out, 0)).toBe(out.length);
  return out;
}

test("records come out of a frame as they went in, whatever they hold", () => {
  fc.assert(
    fc.property(fc.array(record, { maxLength: 8 }), fc.nat(2 ** 40), (records: StoredRecord[], sequence) => {
      const frame = seal(Buffer.concat(records.map(encodeRecord)), sequence, sequence);
      expect(frame.length % FRAME_ALIGN).toBe(0);
      const opened = openFrame(FILE, frame, 0);
      if (!opened.ok) throw new Error(opened.why);
      expect(opened.frame).toMatchObject({ sequence, synced: sequence, bytes: frame.length });
      expect(decodeRecords(opened.frame.plain)).toEqual(records);
    }),
  );
});

test("any changed bit of a frame is refused", () => {
  const frame = seal(encodeRecord({ session: SESSION, seq: 1, kind: 3, timeUs: 1, payload: Buffer.from("select 1") }));
  for (let bit = 0; bit < frame.length * 8; bit++) {
    const changed = Buffer.from(frame);
    changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7));
    expect(openFrame(FILE, changed, 0).ok, `bit ${bit}`).toBe(false);
  }
});

test("a frame of another file, or at another place in the order, does not open", () => {
  const frame = seal(Buffer.alloc(40));
  expect(openFrame(fileKey(KEY, Buffer.alloc(16, 3)), frame, 0).ok).toBe(false);
  expect(openFrame(fileKey(Buffer.alloc(32, 9), FILE.fileId), frame, 0).ok).toBe(false);
});

test("arbitrary bytes neither open as a frame nor crash the parser", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), fc.nat(400), (bytes, at) => {
      expect(openFrame(FILE, Buffer.from(bytes), Math.min(at, bytes.length)).ok).toBe(false);
    }),
  );
  const announced = Buffer.alloc(64);
  announced.writeUInt32BE(0xffff_ffff, 0);
  expect(openFrame(FILE, announced, 0)).toMatchObject({ ok: false, why: "length" });
});

/** Bytes that the records in `plain` take; 0 where they are refused as they should be. */
function bytesOfRecords(plain: Buffer): number {
  try {
    return decodeRecords(plain).reduce((sum, { payload }) => sum + payload.length + 32, 0);
  } catch (error) {
    if (error instanceof GlassError && error.code === "integrity") return 0;
    throw error;
  }
}

test("arbitrary bytes as records are read or refused, never read past their end", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      expect(bytesOfRecords(Buffer.from(bytes))).toBeLessThanOrEqual(bytes.length);
    }),
  );
});

test("only the two forms of a session id are written into records", () => {
  expect(sessionBytes(SESSION)).toHaveLength(15);
  expect(() => sessionBytes("se_short")).toThrow("not a session id");
  expect(() => sessionBytes("gr_0123456789ab")).toThrow("not a session id");
});

test("a file header round-trips, and one changed byte of its page is refused", () => {
  const header = {
    number: 7,
    fileId: Buffer.alloc(16, 2),
    journalId: Buffer.alloc(16, 3),
    createdUs: 1_700_000_000_000_000,
  };
  const page = encodeFileHeader(KEY, header);
  expect(page).toHaveLength(FILE_HEADER_BYTES);
  expect(decodeFileHeader(KEY, page)).toEqual(header);
  expect(() => decodeFileHeader(Buffer.alloc(32), page)).toThrow("another journal key");
  for (let at = 0; at < page.length; at++) {
    const changed = Buffer.from(page);
    changed[at] = (changed[at] as number) ^ 0x10;
    expect(() => decodeFileHeader(KEY, changed), `byte ${at}`).toThrow("the header");
  }
});
