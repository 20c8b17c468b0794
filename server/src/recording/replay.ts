import { GlassError } from "../core/errors.ts";
import { type ExportFormat, exportAs } from "./export.ts";
import { type Played, play } from "./play.ts";
import type { StoredRecord } from "./record.ts";
import { readChunkFile, readSealed, type Sealed } from "./sealed.ts";
import type { Sealer } from "./sealer.ts";
import { searchRecordings, type SearchedSession, type SearchPage, type SearchQuery } from "./search.ts";
import { type Watched, watchSession } from "./watch.ts";

/** What the API gives of recordings. Who may see them is decided before. */
export interface Recordings {
  /**
   * Seals what is still in the journal, then gives the recording in that form. Where sealing fails, what is sealed comes
   * first and then the error. `terminal`: of several, by the statement that opened it. @throws as {@link readSession}.
   */
  export(session: string, format: ExportFormat, signal: AbortSignal, terminal?: number): AsyncIterable<string>;
  /** The same as lines, and what a terminal showed as frames with their times, or as lines of text. */
  replay(session: string, form: "frames" | "lines", signal: AbortSignal, terminal?: number): AsyncIterable<Played>;
  /** What was last done in it, or its screen, and then what is done, until it ends. */
  watch(session: string, signal: AbortSignal, terminal?: number): AsyncIterable<Watched>;
  /** @param may whether the asker may read that session's recording. */
  search(query: SearchQuery, may: (session: SearchedSession) => boolean, signal: AbortSignal): Promise<SearchPage>;
  /**
   * A sealed chunk as it was sealed; undefined where none of that number was.
   * @throws GlassError `integrity` where its file is missing or was changed.
   */
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
    const records = readSealed(options, session);
    try {
      for (;;) {
        const { value, done } = await records.next();
        signal.throwIfAborted();
        if (done !== true) yield value;
        // Of what is complete nothing is left in any journal, whatever keeps this process from sealing.
        else if (sealing === undefined || value.complete) return;
        else throw sealing.error;
      }
    } finally {
      await records.return({ complete: false, records: 0 });
    }
  };
  return {
    export: (session, format, signal, terminal) => exportAs(format, session, whole(session, signal), terminal),
    replay: (session, form, signal, terminal) => play(whole(session, signal), form, terminal),
    watch: (session, signal, terminal) => watchSession({ ...options, terminal }, session, signal),
    search: (query, may, signal) => searchRecordings(options, query, may, signal),
    async chunk(session, chunk) {
      const row = await store
        .selectFrom("chunks")
        .select("sha256")
        .where("session", "=", session)
        .where("chunk", "=", chunk)
        .executeTakeFirst();
      if (row === undefined) return undefined;
      try {
        return await readChunkFile(chunks, session, { chunk, sha256: row.sha256 });
      } catch (error) {
        if (error instanceof GlassError && error.code === "integrity") options.onDamage?.(session, error);
        throw error;
      }
    },
  };
}
