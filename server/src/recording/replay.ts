import { type ExportFormat, exportAs } from "./export.ts";
import { chunkName, MAX_CHUNK_BYTES } from "./chunk.ts";
import { type Played, play } from "./play.ts";
import type { StoredRecord } from "./record.ts";
import { readSealed, type Sealed } from "./sealed.ts";
import type { Sealer } from "./sealer.ts";
import { searchRecordings, type SearchedSession, type SearchPage, type SearchQuery } from "./search.ts";
import { type Watched, watchSession } from "./watch.ts";

/** What the API gives of recordings. Who may see them is decided before. */
export interface Recordings {
  /**
   * Seals what is still in the journal, then gives the recording in that form. Where sealing fails, what is sealed comes
   * first and then the error. @throws as {@link readSession}.
   */
  export(session: string, format: ExportFormat, signal: AbortSignal): AsyncIterable<string>;
  /** The same as lines, and what a terminal showed as frames with their times, or as lines of text. */
  replay(session: string, terminal: "frames" | "lines", signal: AbortSignal): AsyncIterable<Played>;
  /** What was last done in it, or its screen, and then what is done, until it ends. */
  watch(session: string, signal: AbortSignal): AsyncIterable<Watched>;
  /** @param may whether the asker may read that session's recording. */
  search(query: SearchQuery, may: (session: SearchedSession) => boolean, signal: AbortSignal): Promise<SearchPage>;
  /** A sealed chunk as it is stored; undefined where there is none. */
  chunk(session: string, chunk: number): Promise<Uint8Array | undefined>;
}

export interface RecordingsOptions extends Sealed {
  sealNow: (session: string) => Promise<void>;
  /** This process's name, and the reader of its own sessions' journal. */
  node?: string;
  live?: Pick<Sealer, "follow">;
}

export function createRecordings(options: RecordingsOptions): Recordings {
  const { store, chunks, sealNow } = options;
  const whole = async function* (session: string, signal: AbortSignal): AsyncGenerator<StoredRecord> {
    const sealing = await sealNow(session).then(
      () => undefined,
      (error: unknown) => ({ error }),
    );
    for await (const record of readSealed(options, session)) {
      signal.throwIfAborted();
      yield record;
    }
    if (sealing !== undefined) throw sealing.error;
  };
  return {
    export: (session, format, signal) => exportAs(format, session, whole(session, signal)),
    replay: (session, terminal, signal) => play(whole(session, signal), terminal),
    watch: (session, signal) => watchSession(options, session, signal),
    search: (query, may, signal) => searchRecordings(options, query, may, signal),
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
