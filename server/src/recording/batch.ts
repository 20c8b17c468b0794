import { MAX_FRAME_PLAIN_BYTES } from "./frame.ts";
import { decodeRecords, RECORD_HEAD_BYTES, writeRecordHead } from "./record.ts";
import { RECORD } from "../targets/target.ts";

/** One session's place in the journal. */
export interface Writer {
  readonly id: Uint8Array;
  /** Of the last record queued. */
  seq: number;
  /** Bytes queued and not yet committed. */
  pending: number;
}

/**
 * Records that will become one frame. Reused from frame to frame, with parallel arrays in place of an object per record:
 * this is the hot path of every statement.
 */
export interface Batch {
  plain: Buffer;
  length: number;
  count: number;
  readonly writers: Writer[];
  readonly seqs: number[];
  readonly sizes: number[];
  readonly committed: ((() => void) | undefined)[];
}

const FIRST_BYTES = 64 << 10;
const PADDING_BYTES = 16;
const UTF8_MOST = 3; // bytes of UTF-8 for one UTF-16 unit, at most

export function emptyBatch(): Batch {
  return {
    plain: Buffer.allocUnsafe(FIRST_BYTES),
    length: 0,
    count: 0,
    writers: [],
    seqs: [],
    sizes: [],
    committed: [],
  };
}

/** Adds one record. Returns the bytes that it takes, or 0 if it does not fit into this batch; it always fits an empty one. */
export function queueRecord(
  batch: Batch,
  writer: Writer,
  kind: number,
  timeUs: number,
  payload: Uint8Array | string,
  committed: (() => void) | undefined,
): number {
  const at = batch.length;
  let most = typeof payload === "string" ? payload.length * UTF8_MOST : payload.length;
  if (at + RECORD_HEAD_BYTES + most + PADDING_BYTES > batch.plain.length) {
    if (typeof payload === "string") most = Buffer.byteLength(payload);
    const needed = at + RECORD_HEAD_BYTES + most;
    if (needed > MAX_FRAME_PLAIN_BYTES) return 0;
    if (needed + PADDING_BYTES > batch.plain.length) grow(batch, needed + PADDING_BYTES);
  }
  let bytes: number;
  if (typeof payload === "string") bytes = batch.plain.write(payload, at + RECORD_HEAD_BYTES, "utf8");
  else {
    batch.plain.set(payload, at + RECORD_HEAD_BYTES);
    bytes = payload.length;
  }
  const size = RECORD_HEAD_BYTES + bytes;
  const seq = ++writer.seq;
  writeRecordHead(batch.plain, at, writer.id, seq, kind, timeUs, bytes);
  writer.pending += size;

  const index = batch.count++;
  batch.writers[index] = writer;
  batch.seqs[index] = seq;
  batch.sizes[index] = size;
  batch.committed[index] = committed;
  batch.length = at + size;
  return size;
}

/** What {@link queueRecord} returned for its records, in sum. */
export function batchBytes(batch: Batch): number {
  return batch.length;
}

/** Empties it for the next frame; callbacks stay in `committed` for the caller to run and remove. */
export function clearBatch(batch: Batch): void {
  for (let i = 0; i < batch.count; i++) (batch.writers[i] as Writer).pending -= batch.sizes[i] as number;
  batch.length = 0;
  batch.count = 0;
}

function grow(batch: Batch, needed: number): void {
  const greater = Buffer.allocUnsafe(
    Math.min(MAX_FRAME_PLAIN_BYTES + PADDING_BYTES, Math.max(needed, batch.plain.length * 2)),
  );
  batch.plain.copy(greater, 0, 0, batch.length);
  batch.plain = greater;
}

export interface QueuedEnd {
  readonly writer: Writer;
  readonly payload: Buffer;
  readonly committed: (() => void) | undefined;
}

/** Copies of the sessionEnded records in it. */
export function takeSessionEnds(batch: Batch): QueuedEnd[] {
  const records = decodeRecords(batch.plain.subarray(0, batch.length));
  return records.flatMap((record, i) =>
    record.kind === RECORD.sessionEnded
      ? [{ writer: batch.writers[i] as Writer, payload: Buffer.from(record.payload), committed: batch.committed[i] }]
      : [],
  );
}
