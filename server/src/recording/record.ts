import { GlassError } from "../core/errors.ts";
import { isId } from "../core/ids.ts";
import type { JsonValue } from "../core/json.ts";

/**
 * One record, the same bytes in the journal and in a chunk. All numbers are big-endian.
 *
 * | bytes | what |
 * |---|---|
 * | 4 | length of what follows: 28 + payload |
 * | 15 | session id, ASCII; fifteen zero bytes for the journal's own records |
 * | 4 | sequence within the session, from 1, without gaps |
 * | 1 | kind, see RECORD in targets/target.ts; 0 for the journal's own |
 * | 8 | time, µs since 1970-01-01 UTC |
 * | n | payload |
 */
export interface StoredRecord {
  readonly session: string;
  readonly seq: number;
  readonly kind: number;
  readonly timeUs: number;
  readonly payload: Buffer;
}

export const SESSION_BYTES = 15;
export const RECORD_HEAD_BYTES = 32;
export const MAX_PAYLOAD_BYTES = 1 << 20;
/** The journal's own records: kind 0 under this id. Its only one says that a process opened the journal. */
export const JOURNAL_SESSION = "\0".repeat(SESSION_BYTES);
export const JOURNAL_OPENED = 0;

const U32 = 2 ** 32;
const BODY_HEAD_BYTES = RECORD_HEAD_BYTES - 4;

/** The session id as the 15 bytes that each of its records carries. @throws GlassError `internal` for any other text. */
export function sessionBytes(session: string): Buffer {
  if (session !== JOURNAL_SESSION && !isId("session", session)) {
    throw new GlassError("internal", `not a session id: ${JSON.stringify(session)}`);
  }
  return Buffer.from(session, "latin1");
}

/** Writes the 32 bytes ahead of a payload at `into[at]`. `id` is what {@link sessionBytes} gave. */
export function writeRecordHead(
  into: Buffer,
  at: number,
  id: Uint8Array,
  seq: number,
  kind: number,
  timeUs: number,
  payloadBytes: number,
): void {
  put32(into, at, BODY_HEAD_BYTES + payloadBytes);
  for (let i = 0; i < SESSION_BYTES; i++) into[at + 4 + i] = id[i] as number; // faster than a call of set() at this length
  put32(into, at + 19, seq);
  into[at + 23] = kind;
  put32(into, at + 24, Math.floor(timeUs / U32));
  put32(into, at + 28, timeUs % U32);
}

export function encodeRecord(record: StoredRecord): Buffer {
  const bytes = Buffer.allocUnsafe(RECORD_HEAD_BYTES + record.payload.length);
  writeRecordHead(
    bytes,
    0,
    sessionBytes(record.session),
    record.seq,
    record.kind,
    record.timeUs,
    record.payload.length,
  );
  record.payload.copy(bytes, RECORD_HEAD_BYTES);
  return bytes;
}

/** The records in a frame's or a chunk's plaintext, up to zero padding. Payloads are views into `plain`.
 * @throws GlassError `integrity` when a length does not fit; after decryption that is a defect of the writer. */
export function decodeRecords(plain: Buffer): StoredRecord[] {
  const found: StoredRecord[] = [];
  let at = 0;
  while (at + 4 <= plain.length) {
    const length = plain.readUInt32BE(at);
    if (length === 0) break;
    const end = at + 4 + length;
    if (length < BODY_HEAD_BYTES || end > plain.length) {
      throw new GlassError(
        "integrity",
        `a record of ${length} bytes at ${at} does not fit into its ${plain.length} bytes`,
      );
    }
    found.push({
      session: plain.toString("latin1", at + 4, at + 4 + SESSION_BYTES),
      seq: plain.readUInt32BE(at + 19),
      kind: plain[at + 23] as number,
      timeUs: plain.readUInt32BE(at + 24) * U32 + plain.readUInt32BE(at + 28),
      payload: plain.subarray(at + RECORD_HEAD_BYTES, end),
    });
    at = end;
  }
  if (plain.subarray(at).some((byte) => byte !== 0)) {
    throw new GlassError("integrity", `bytes after the last record at ${at} are not zero`);
  }
  return found;
}

/** What a JSON payload holds. */
export type Content = Readonly<Record<string, JsonValue>>;

/** The payload of a record whose kind says JSON. @throws GlassError `integrity` where it is none. */
export function contentOf(record: StoredRecord): Content {
  let content: JsonValue;
  try {
    content = JSON.parse(record.payload.toString("utf8")) as JsonValue;
  } catch {
    throw malformed(record, "is not JSON");
  }
  if (!isContent(content)) throw malformed(record, "is not a JSON object");
  return content;
}

/** A payload that begins with the number of the statement that it belongs to. @throws GlassError `integrity` where it is too short. */
export function numberedPayload(record: StoredRecord): { readonly n: number; readonly bytes: Buffer } {
  const { payload } = record;
  if (payload.length < 4) throw malformed(record, "has no statement number");
  return { n: payload.readUInt32BE(0), bytes: payload.subarray(4) };
}

export function isContent(value: JsonValue | undefined): value is Content {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function malformed(record: StoredRecord, why: string): GlassError {
  return new GlassError("integrity", `record ${record.seq} of ${record.session}, kind ${record.kind}, ${why}`);
}

function put32(into: Buffer, at: number, value: number): void {
  into[at] = value >>> 24;
  into[at + 1] = value >>> 16;
  into[at + 2] = value >>> 8;
  into[at + 3] = value;
}
