import { sql } from "kysely";
import { GlassError } from "../core/errors.ts";
import type { Store, Tx } from "../store/database.ts";
import type { SealedChunk } from "./chunk.ts";
import type { JournalSpan } from "./recovery.ts";

/** How far a session's recording is sealed, as the store has it. */
export interface Progress {
  readonly grant: string;
  readonly sealedSeq: number;
  /** Also the number of the next chunk. */
  readonly chunks: number;
  readonly complete: boolean;
  /** Journal frame of the last sealed record. */
  readonly frame: number;
}

/** The journal as this process opened it. */
export interface OpenedJournal {
  readonly id: string;
  readonly sequence: number;
  /** Its files with frames at that moment, the last one this opening's own; undefined where that is not known. */
  readonly spans?: readonly JournalSpan[] | undefined;
}

export interface Committed {
  readonly chunk: SealedChunk;
  readonly frame: number;
  readonly complete: boolean;
}

/**
 * Compares the journal with what the store says was sealed from it, then takes notice of this opening.
 * @returns the frame through which everything is sealed.
 * @throws GlassError `integrity` for a journal that is another, or shorter, or an older copy that went on by itself.
 */
export async function enterJournal(store: Store, name: string, opened: OpenedJournal): Promise<number> {
  return store.transaction().execute(async (trx) => {
    const row = await trx.selectFrom("journals").selectAll().where("name", "=", name).forUpdate().executeTakeFirst();
    if (row === undefined) {
      await trx
        .insertInto("journals")
        .values({ name, journal: opened.id, ...openingOf(opened) })
        .execute();
      return 0;
    }
    if (row.journal !== opened.id) {
      const left = await trx
        .selectFrom("sessions")
        .select("id")
        // Also those of which nothing was sealed yet: all that they had was in that folder.
        .where((eb) =>
          eb.or([eb("journal", "=", row.journal), eb.and([eb("journal", "is", null), eb("node", "=", name)])]),
        )
        .where("recording_complete", "=", false)
        .orderBy("id")
        .execute();
      if (left.length > 0) {
        throw new GlassError(
          "integrity",
          `the journal folder is another than before, and recordings of ${left.length} sessions are not sealed to their end, such as ${left[0]?.id}`,
          {
            next: 'Put the former journal folder back. If it is lost for good, see "A lost journal" in docs/recording.md.',
          },
        );
      }
      const fresh = {
        journal: opened.id,
        ...openingOf(opened),
        sealed_sequence: 0,
        sealed_file: null,
        complete_sequence: 0,
      };
      await trx.updateTable("journals").set(fresh).where("name", "=", name).execute();
      return 0;
    }
    const opening = { sequence: row.opened_sequence, file: row.opened_file };
    const noted = openingOf(opened);
    const again = noted.opened_sequence === opening.sequence && (noted.opened_file ?? opening.file) === opening.file;
    if (!again) {
      const sealed = { sequence: row.sealed_sequence, file: row.sealed_file };
      mustHold(opened, sealed, `recordings were sealed from it up to frame ${sealed.sequence}`);
      mustHold(opened, opening, `it was opened with frame ${opening.sequence} before`);
    }
    await trx.updateTable("journals").set(noted).where("name", "=", name).execute();
    return row.complete_sequence;
  });
}

function openingOf({ sequence, spans }: OpenedJournal): { opened_sequence: number; opened_file: string | null } {
  return { opened_sequence: sequence, opened_file: spans?.at(-1)?.id ?? null };
}

/**
 * A journal that lacks what the store knows of is an older copy of it. Each start makes it a frame longer; so it is the
 * file with that frame that counts. Files before the first one were sealed, and removed.
 */
function mustHold(opened: OpenedJournal, mark: { sequence: number; file: string | null }, known: string): void {
  const holder = opened.spans?.find(({ first, last }) => first <= mark.sequence && mark.sequence <= last);
  const short = opened.sequence <= mark.sequence;
  const another = holder !== undefined && mark.file !== null && holder.id !== mark.file;
  if (!short && !another) return;
  const what = another ? `has another frame ${mark.sequence}` : `ends before frame ${opened.sequence}`;
  throw new GlassError("integrity", `the journal ${what}, and ${known}: it was cut, or is an older copy`, {
    next: 'Put back the journal folder that was in use last, which may be the mirror; keep the present one to find out what happened. If it is lost for good, see "A lost journal" in docs/recording.md.',
  });
}

/** Sessions that this journal holds the end of. */
export async function unfinishedSessions(store: Store, journal: string): Promise<Map<string, Progress>> {
  const rows = await selectProgress(store)
    .where("journal", "=", journal)
    .where("recording_complete", "=", false)
    .execute();
  return new Map(rows.map((row) => [row.id, toProgress(row)]));
}

/** What the store knows of these sessions; those it does not know are missing from the result. */
export async function readProgress(store: Store, sessions: readonly string[]): Promise<Map<string, Progress>> {
  if (sessions.length === 0) return new Map();
  const rows = await selectProgress(store).where("id", "in", sessions).execute();
  return new Map(rows.map((row) => [row.id, toProgress(row)]));
}

/**
 * Moves one session's progress over one chunk and adds the chunk's row, by compare-and-set.
 * @throws GlassError `conflict` when somebody else sealed this session meanwhile; nothing may be committed then.
 */
export async function commitChunk(
  trx: Tx,
  journal: string,
  before: number,
  { chunk, frame, complete }: Committed,
): Promise<void> {
  const moved = await trx
    .updateTable("sessions")
    .set({
      sealed_seq: chunk.lastSeq,
      sealed_chunks: chunk.chunk + 1,
      journal,
      journal_sequence: frame,
      recording_complete: sql<boolean>`recording_complete or ${complete}`,
    })
    .where("id", "=", chunk.session)
    .where("sealed_seq", "=", before)
    .where("sealed_chunks", "=", chunk.chunk)
    .executeTakeFirst();
  if (moved.numUpdatedRows !== 1n)
    throw new GlassError("conflict", `somebody else sealed the recording of ${chunk.session} at the same time`);
  await trx
    .insertInto("chunks")
    .values({
      session: chunk.session,
      chunk: chunk.chunk,
      sha256: chunk.sha256,
      bytes: chunk.file.length,
      first_seq: chunk.firstSeq,
      last_seq: chunk.lastSeq,
    })
    .execute();
}

/** Moves the journal's own marks forward; they never go back. */
export async function commitJournal(
  trx: Store | Tx,
  name: string,
  journal: string,
  marks: { sealed: number; file: string | undefined; complete: number },
): Promise<void> {
  const moved = await trx
    .updateTable("journals")
    .set({
      sealed_sequence: sql<number>`greatest(sealed_sequence, ${marks.sealed})`,
      sealed_file: sql<string>`case when sealed_sequence < ${marks.sealed} then ${marks.file ?? null} else sealed_file end`,
      complete_sequence: sql<number>`greatest(complete_sequence, ${marks.complete})`,
    })
    .where("name", "=", name)
    .where("journal", "=", journal)
    .executeTakeFirst();
  if (moved.numUpdatedRows !== 1n) throw new GlassError("conflict", `another process took over the journal ${name}`);
}

function selectProgress(store: Store) {
  return store
    .selectFrom("sessions")
    .select(["id", "grant_id", "sealed_seq", "sealed_chunks", "recording_complete", "journal_sequence"]);
}

interface ProgressRow {
  id: string;
  grant_id: string;
  sealed_seq: number;
  sealed_chunks: number;
  recording_complete: boolean;
  journal_sequence: number;
}

function toProgress(row: ProgressRow): Progress {
  return {
    grant: row.grant_id,
    sealedSeq: row.sealed_seq,
    chunks: row.sealed_chunks,
    complete: row.recording_complete,
    frame: row.journal_sequence,
  };
}
