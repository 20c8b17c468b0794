import { journalFileNumber, openReader } from "./reader.ts";
import type { JournalFiles } from "./journal-files.ts";

/** The frames of one file. */
export interface JournalSpan {
  /** The file's id, as hexadecimal text: what a later file is called is no proof that it is the same. */
  readonly id: string;
  readonly first: number;
  readonly last: number;
}

export interface Recovered {
  /** Undefined for an empty folder. */
  readonly journalId: Buffer | undefined;
  /** Of the last good frame; 0 if there is none. */
  readonly sequence: number;
  /** Files with frames, oldest first. */
  readonly spans: readonly JournalSpan[];
  /** The number of the next file. */
  readonly nextNumber: number;
  /** An unfinished write at the very end that was cut off; nobody was told that any of it was recorded. */
  readonly torn: { readonly file: string; readonly offset: number } | undefined;
}

/** Suffix of a file that is still being prepared; what a dead process left under it holds nothing. */
export const UNFINISHED = ".preparing";

/**
 * Verifies every frame in the folder, then cuts off an unfinished write at the very end, and files that were prepared
 * and never used. The caller holds the folder's lock. Safe to repeat after a crash in the middle.
 * @throws GlassError `integrity` naming file and offset where the journal was damaged; then nothing was changed.
 */
export async function recoverJournal(dir: string, key: Uint8Array, files: JournalFiles): Promise<Recovered> {
  const reader = openReader(dir, key);
  try {
    const spans: { id: string; first: number; last: number }[] = [];
    for (let frame = await reader.next(); frame !== undefined; frame = await reader.next()) {
      const [id, at, last] = [frame.fileId, frame.sequence, spans.at(-1)];
      if (last?.id === id) last.last = at;
      else spans.push({ id, first: at, last: at });
    }
    const tail = await reader.tail();
    const found = await files.list(dir);
    const numbers = found.flatMap(({ name }) => journalFileNumber(name) ?? []);

    for (const { name } of found) if (name.endsWith(UNFINISHED)) await files.remove(dir, name);
    if (tail !== undefined) {
      for (const name of tail.later.toReversed()) await files.remove(dir, name);
      const bytes = found.find(({ name }) => name === tail.file)?.bytes ?? tail.offset;
      if (bytes > tail.offset) await files.truncate(dir, tail.file, tail.offset);
      if (reader.sequence === 0) await files.remove(dir, tail.file);
    }
    await files.syncFolder(dir);
    return {
      journalId: reader.journalId,
      sequence: reader.sequence,
      spans,
      nextNumber: Math.max(0, ...numbers) + 1,
      torn: tail?.torn === true ? { file: tail.file, offset: tail.offset } : undefined,
    };
  } finally {
    await reader.close();
  }
}
