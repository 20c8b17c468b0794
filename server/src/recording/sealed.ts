import { equalSecret, sha256 } from "../core/bytes.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { Store } from "../store/database.ts";
import { type ChunkHeader, chunkName, MAX_CHUNK_BYTES, openChunk, readChunkHeader } from "./chunk.ts";
import type { ChunkStore } from "./chunk-store.ts";
import type { StoredRecord } from "./record.ts";
import { loggedChunks } from "./logged.ts";
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
  /** Hears of what was refused to a reader because something of that recording is gone or changed. Must not throw. */
  readonly onDamage?: OnDamage | undefined;
}

export type OnDamage = (session: string, error: GlassError) => void;

/** In the details of an error about a chunk that is not there, which may only mean that it is on another machine. */
export const CHUNK_MISSING = { missing: true } as const;

const ROWS_AT_ONCE = 256;

/**
 * Every sealed record of a session, in order. Each chunk's hash is compared with its row and with its entry in the
 * log before it is decrypted, and chunks must follow each other without a gap, up to the last that the log tells of.
 * Memory: one chunk, and the hashes of all.
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
  sealed: Sealed,
  session: string,
  from: { readonly afterSeq?: number; readonly chunk?: number } = {},
): AsyncGenerator<StoredRecord, RecordingState> {
  try {
    return yield* readVerified(sealed, session, from);
  } catch (error) {
    if (error instanceof GlassError && error.code === "integrity") sealed.onDamage?.(session, error);
    throw error;
  }
}

async function* readVerified(
  { store, keyring, chunks }: Sealed,
  session: string,
  from: { readonly afterSeq?: number; readonly chunk?: number },
): AsyncGenerator<StoredRecord, RecordingState> {
  // Rows can be changed by whoever may write to the store; what the log tells cannot. Asked before the row: it is never ahead.
  const whole = from.afterSeq === undefined && from.chunk === undefined;
  let logged = whole ? await loggedChunks(store, session) : undefined;
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
  const told = logged?.values().reduce((most, { lastSeq }) => Math.max(most, lastSeq), 0) ?? 0;
  if (told > row.sealed_seq)
    throw new GlassError(
      "integrity",
      `the log tells of ${told} records of ${session}, and the store has only ${row.sealed_seq}`,
    );
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
      if (logged !== undefined) {
        if (!logged.has(one.chunk)) logged = await loggedChunks(store, session); // sealed since
        if (logged.get(one.chunk)?.sha256 !== Buffer.from(one.sha256).toString("hex"))
          throw new GlassError("integrity", `chunk ${one.chunk} of ${session} is not the one that the log tells of`);
      }
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
  const file = await readChunkFile(chunks, session, row);
  // What the file says of itself is compared first: an error in opening it would name the recording that it is of.
  const header = headerOf(file, where);
  if (
    header.session !== session ||
    header.chunk !== row.chunk ||
    header.firstSeq !== expected.seq ||
    header.firstSeq !== row.firstSeq ||
    header.lastSeq !== row.lastSeq
  ) {
    throw new GlassError(
      "integrity",
      `${where} was swapped: its file holds records ${header.firstSeq} to ${header.lastSeq} of ${header.session}, chunk ${header.chunk}`,
    );
  }
  return openChunk(dataKey, file).records;
}

/**
 * The bytes of one committed chunk, which are those that its row has the hash of.
 * @throws GlassError `integrity` where they are missing ({@link CHUNK_MISSING}) or others.
 */
export async function readChunkFile(
  chunks: ChunkStore,
  session: string,
  { chunk, sha256: hash }: Pick<ChunkRow, "chunk" | "sha256">,
): Promise<Buffer> {
  const where = `chunk ${chunk} of ${session}`;
  const file = await chunks.get(chunkName(session, chunk, hash), MAX_CHUNK_BYTES);
  if (file === undefined)
    throw new GlassError("integrity", `the file of ${where} is missing`, { details: CHUNK_MISSING });
  if (!equalSecret(sha256(file), hash))
    throw new GlassError("integrity", `the file of ${where} was changed: its hash is not the one that was sealed`);
  return file;
}

function headerOf(file: Buffer, where: string): ChunkHeader {
  try {
    return readChunkHeader(file);
  } catch (cause) {
    throw new GlassError("integrity", `${where}: ${describe(cause)}`, { cause });
  }
}
