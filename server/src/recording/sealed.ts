import { equalSecret, sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import type { Store } from "../store/database.ts";
import { chunkName, MAX_CHUNK_BYTES, openChunk } from "./chunk.ts";
import type { ChunkStore } from "./chunk-store.ts";
import type { StoredRecord } from "./record.ts";
import { readSessionKey, type Wrapping } from "./session-keys.ts";

/** A committed chunk, as its row and its log entry have it. */
export interface ChunkRow {
  readonly chunk: number;
  readonly sha256: Uint8Array;
  readonly firstSeq: number;
  readonly lastSeq: number;
}

/** Whether the end of the session is in its recording yet. */
export interface RecordingState {
  readonly complete: boolean;
  readonly records: number;
}

/** Where the sealed part of recordings is read from. */
export interface Sealed {
  readonly store: Store;
  readonly keyring: Wrapping;
  readonly chunks: ChunkStore;
}

const ROWS_AT_ONCE = 256;

/**
 * Every sealed record of a session, in order. Each chunk's hash is compared with its row before it is decrypted, and
 * chunks must follow each other without a gap. Memory: one chunk.
 * @throws GlassError `not_found` for an unknown session, `erased` for one whose key is destroyed, `integrity` naming the
 * chunk that is missing or was changed.
 */
export async function* readSession(
  store: Store,
  keyring: Wrapping,
  chunks: ChunkStore,
  session: string,
): AsyncGenerator<StoredRecord, RecordingState> {
  return yield* readSealed({ store, keyring, chunks }, session);
}

/**
 * The same from somewhere in the middle.
 * @param from the records above `afterSeq`; and not what lies in chunks before number `chunk`, which are skipped unread.
 */
export async function* readSealed(
  { store, keyring, chunks }: Sealed,
  session: string,
  from: { readonly afterSeq?: number; readonly chunk?: number } = {},
): AsyncGenerator<StoredRecord, RecordingState> {
  const row = await store
    .selectFrom("sessions")
    .select(["sealed_seq", "recording_complete"])
    .where("id", "=", session)
    .executeTakeFirst();
  if (row === undefined) throw new GlassError("not_found", `no session ${session}`);
  const key = await readSessionKey(store, keyring, session);
  if (key === "destroyed") {
    throw new GlassError("erased", `the recording of ${session} was erased: its key is destroyed`, {
      next: "The log still shows that it was there, and its chunks still match their entries.",
    });
  }
  if (key === undefined && row.sealed_seq > 0) throw new GlassError("integrity", `the key of ${session} is missing`);
  let seq = from.afterSeq ?? 0;
  let expected = seq === 0 && from.chunk === undefined ? { chunk: 0, seq: 1 } : undefined;
  while (key !== undefined && seq < row.sealed_seq) {
    // Not what was sealed since the row above was read: the two must agree.
    const rows: ChunkRow[] = await store
      .selectFrom("chunks")
      .select(["chunk", "sha256", "first_seq as firstSeq", "last_seq as lastSeq"])
      .where("session", "=", session)
      .where("last_seq", ">", seq)
      .where("first_seq", "<=", row.sealed_seq)
      .where("chunk", ">=", from.chunk ?? 0)
      .orderBy("chunk")
      .limit(ROWS_AT_ONCE)
      .execute();
    const [first] = rows;
    if (first === undefined) break;
    if (expected === undefined && from.chunk === undefined && first.firstSeq > seq + 1)
      throw new GlassError("integrity", `a chunk of ${session} before number ${first.chunk} is missing from the store`);
    expected ??= { chunk: from.chunk ?? first.chunk, seq: first.firstSeq };
    for (const one of rows) {
      const records: StoredRecord[] = await openRow(chunks, key, session, one, expected);
      yield* records.filter((record) => record.seq > seq);
      seq = one.lastSeq;
      expected = { chunk: one.chunk + 1, seq: seq + 1 };
    }
  }
  if (seq < row.sealed_seq)
    throw new GlassError(
      "integrity",
      `the recording of ${session} ends with record ${seq}, and ${row.sealed_seq} were sealed`,
    );
  return { complete: row.recording_complete, records: seq };
}

/** The records of one chunk, verified as {@link readSession} says. */
async function openRow(
  chunks: ChunkStore,
  dataKey: Uint8Array,
  session: string,
  row: ChunkRow,
  expected: { chunk: number; seq: number },
): Promise<StoredRecord[]> {
  const where = `chunk ${row.chunk} of ${session}`;
  if (row.chunk !== expected.chunk)
    throw new GlassError("integrity", `chunk ${expected.chunk} of ${session} is missing from the store`);
  const file = await chunks.get(chunkName(session, row.chunk, row.sha256), MAX_CHUNK_BYTES);
  if (file === undefined) throw new GlassError("integrity", `the file of ${where} is missing`);
  if (!equalSecret(sha256(file), row.sha256))
    throw new GlassError("integrity", `the file of ${where} was changed: its hash is not the one that was sealed`);
  const { header, records } = openChunk(dataKey, file);
  if (
    header.session !== session ||
    header.chunk !== row.chunk ||
    header.firstSeq !== expected.seq ||
    header.firstSeq !== row.firstSeq ||
    header.lastSeq !== row.lastSeq
  ) {
    throw new GlassError(
      "integrity",
      `${where} holds records ${header.firstSeq} to ${header.lastSeq} of ${header.session}, chunk ${header.chunk}`,
    );
  }
  return records;
}
