import { equalSecret, sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import type { Store } from "../store/database.ts";
import { RECORD } from "../targets/target.ts";
import { chunkName, MAX_CHUNK_BYTES, openChunk } from "./chunk.ts";
import type { ChunkStore } from "./chunk-store.ts";
import { contentOf, type StoredRecord } from "./record.ts";
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

/**
 * Every sealed record of a session, in order. Each chunk's hash is compared with its row before it is decrypted, and
 * chunks must follow each other without a gap. Memory: one chunk.
 * @throws GlassError `not_found` for an unknown session, `integrity` naming the chunk that is missing or was changed, or
 * saying that the recording was erased.
 */
export async function* readSession(
  store: Store,
  keyring: Wrapping,
  chunks: ChunkStore,
  session: string,
): AsyncGenerator<StoredRecord, RecordingState> {
  const row = await store
    .selectFrom("sessions")
    .select(["sealed_seq", "recording_complete"])
    .where("id", "=", session)
    .executeTakeFirst();
  if (row === undefined) throw new GlassError("not_found", `no session ${session}`);
  const key = await readSessionKey(store, keyring, session);
  if (key === "destroyed") {
    throw new GlassError("integrity", `the recording of ${session} was erased: its key is destroyed`, {
      next: "The log still shows that it was there, and its chunks still match their entries.",
    });
  }
  const rows = await store
    .selectFrom("chunks")
    .select(["chunk", "sha256", "first_seq as firstSeq", "last_seq as lastSeq"])
    .where("session", "=", session)
    .orderBy("chunk")
    .execute();
  if (key === undefined && rows.length > 0) throw new GlassError("integrity", `the key of ${session} is missing`);
  let last = 0;
  if (key !== undefined) {
    for await (const record of readChunks(chunks, key, session, rows)) {
      last = record.seq;
      yield record;
    }
  }
  if (last !== row.sealed_seq)
    throw new GlassError(
      "integrity",
      `the recording of ${session} ends with record ${last}, and ${row.sealed_seq} were sealed`,
    );
  return { complete: row.recording_complete, records: last };
}

/** The records of these chunks, verified as {@link readSession} says. */
async function* readChunks(
  chunks: ChunkStore,
  dataKey: Uint8Array,
  session: string,
  rows: Iterable<ChunkRow>,
): AsyncGenerator<StoredRecord> {
  let chunk = 0;
  let seq = 0;
  for (const row of rows) {
    const where = `chunk ${row.chunk} of ${session}`;
    if (row.chunk !== chunk)
      throw new GlassError("integrity", `chunk ${chunk} of ${session} is missing from the store`);
    const file = await chunks.get(chunkName(session, row.chunk, row.sha256), MAX_CHUNK_BYTES);
    if (file === undefined) throw new GlassError("integrity", `the file of ${where} is missing`);
    if (!equalSecret(sha256(file), row.sha256))
      throw new GlassError("integrity", `the file of ${where} was changed: its hash is not the one that was sealed`);
    const { header, records } = openChunk(dataKey, file);
    if (
      header.session !== session ||
      header.chunk !== chunk ||
      header.firstSeq !== seq + 1 ||
      header.firstSeq !== row.firstSeq ||
      header.lastSeq !== row.lastSeq
    ) {
      throw new GlassError(
        "integrity",
        `${where} holds records ${header.firstSeq} to ${header.lastSeq} of ${header.session}, chunk ${header.chunk}`,
      );
    }
    yield* records;
    chunk++;
    seq = header.lastSeq;
  }
}

/** What the API gives of recordings. Who may see them is decided before. */
export interface Recordings {
  /**
   * Seals what is still in the journal, then gives every record as JSON: `seq`, `at`, `kind` and the payload's own fields,
   * or its raw bytes as base64 in `bytes`. Where sealing fails, what is sealed comes first and then the error.
   */
  records(session: string, signal: AbortSignal): AsyncIterable<Record<string, unknown>>;
  /** A sealed chunk as it is stored; undefined where there is none. */
  chunk(session: string, chunk: number): Promise<Uint8Array | undefined>;
}

export interface RecordingsOptions {
  store: Store;
  keyring: Wrapping;
  chunks: ChunkStore;
  sealNow: (session: string) => Promise<void>;
}

export function createRecordings({ store, keyring, chunks, sealNow }: RecordingsOptions): Recordings {
  return {
    async *records(session, signal) {
      const sealing = await sealNow(session).then(
        () => undefined,
        (error: unknown) => ({ error }),
      );
      for await (const record of readSession(store, keyring, chunks, session)) {
        signal.throwIfAborted();
        yield recordJson(record);
      }
      if (sealing !== undefined) throw sealing.error;
    },
    async chunk(session, chunk) {
      const row = await store
        .selectFrom("chunks")
        .select("sha256")
        .where("session", "=", session)
        .where("chunk", "=", chunk)
        .executeTakeFirst();
      return row === undefined ? undefined : chunks.get(chunkName(session, chunk, row.sha256), MAX_CHUNK_BYTES);
    },
  };
}

const KIND_NAMES = new Map<number, string>(Object.entries(RECORD).map(([name, kind]) => [kind, name]));
const RAW_KINDS: ReadonlySet<number> = new Set([RECORD.terminalInput, RECORD.terminalOutput]);

/** A record as the API shows it. @throws GlassError `integrity` for a payload that is not what its kind says. */
export function recordJson(record: StoredRecord): Record<string, unknown> {
  const { seq, kind, timeUs, payload } = record;
  const known = { seq, at: new Date(timeUs / 1000).toISOString(), kind: KIND_NAMES.get(kind) ?? String(kind) };
  if (kind === RECORD.data && payload.length >= 4)
    return { ...known, n: payload.readUInt32BE(0), bytes: payload.toString("base64", 4) };
  if (RAW_KINDS.has(kind) || !KIND_NAMES.has(kind)) return { ...known, bytes: payload.toString("base64") };
  return { ...contentOf(record), ...known };
}
