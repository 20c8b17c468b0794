import { mkdir, readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { sql } from "kysely";
import { GlassError } from "../core/errors.ts";
import { RECORD } from "../targets/target.ts";
import { chunkName, sealChunk } from "./chunk.ts";
import { encodeRecord } from "./record.ts";
import type { SealerOptions } from "./sealer.ts";
import { sealedEvent } from "./sealer-waiting.ts";
import { commitChunk, type Progress, readProgress, unfinishedSessions } from "./sealer-progress.ts";
import { makeSessionKey } from "./session-keys.ts";

export type AbandonOptions = Pick<SealerOptions, "name" | "store" | "keyring" | "chunks" | "append"> & {
  now: Date;
  /** Called once nothing speaks against it, before anything is given up: a crash later leaves no folder that looks like new. */
  putAside?: (() => Promise<void>) | undefined;
};

/**
 * For an operator whose journal folder is lost for good: ends every recording that was not sealed to its end with a record
 * that says so, each with its chunk and log entry, and lets the process begin a new journal under the old name. What was
 * in the folder and not sealed is gone, at most the last two seconds of each session while the store answered.
 * Safe to repeat after a crash. The process that had the journal must not run; one that was seen lately is refused.
 * @param options.name the process's id (`nd_…`), by which its journal is known.
 * @returns the sessions that were ended so.
 * @throws GlassError `not_found` where no journal of that name is known, `conflict` while its process is alive.
 */
export async function abandonJournal({
  name,
  store,
  keyring,
  chunks,
  append,
  now,
  putAside,
}: AbandonOptions): Promise<readonly string[]> {
  const row = await store.selectFrom("journals").select("journal").where("name", "=", name).executeTakeFirst();
  if (row === undefined) {
    const known = (await store.selectFrom("journals").select("name").orderBy("name").execute()).map((one) => one.name);
    throw new GlassError("not_found", `no journal is known under the name ${name}`, {
      next: known.length === 0 ? "None is known at all." : `Known are: ${known.join(", ")}`,
    });
  }
  await refuseAlive(store, name);
  await putAside?.();
  const unfinished = new Map([
    ...(await unfinishedSessions(store, row.journal)),
    ...(await unsealedSessions(store, name)),
  ]);
  for (const [session, progress] of unfinished) {
    const payload = Buffer.from(
      JSON.stringify({ cause: "lost", detail: "the journal with the rest of the recording was lost" }),
    );
    const timeUs = now.getTime() * 1000;
    const seq = progress.sealedSeq + 1;
    const header = { session, chunk: progress.chunks, firstSeq: seq, lastSeq: seq, firstUs: timeUs, lastUs: timeUs };
    const plain = encodeRecord({ session, seq, kind: RECORD.sessionEnded, timeUs, payload });
    const chunk = sealChunk(await makeSessionKey(store, keyring, session), header, plain);
    await chunks.put(chunkName(session, chunk.chunk, chunk.sha256), chunk.file);
    await store.transaction().execute(async (trx) => {
      await commitChunk(trx, row.journal, progress.sealedSeq, { chunk, frame: progress.frame, complete: true });
      await append(trx, sealedEvent(chunk, progress.grant, now));
    });
  }
  await store.transaction().execute(async (trx) => {
    const gone = await trx
      .deleteFrom("journals")
      .where("name", "=", name)
      .where("journal", "=", row.journal)
      .executeTakeFirst();
    if (gone.numDeletedRows !== 1n) throw new GlassError("conflict", `somebody else abandons the journal of ${name}`);
    const data = { node: name, journal: row.journal, sessions: unfinished.size };
    await append(trx, { type: "recording.journal_lost", at: now, actor: "glasskey", data });
  });
  return [...unfinished.keys()];
}

/**
 * Moves what is left of a journal folder out of the way, beside it; where the folder is a disk of its own, which cannot be
 * renamed, into a folder on it. @returns where it is now.
 */
export async function setAside(folder: string, now: Date): Promise<string> {
  const stamp = now.toISOString().replaceAll(/[:.]/g, "");
  const beside = `${folder}.lost-${stamp}`;
  try {
    await rename(folder, beside);
    return beside;
  } catch (error) {
    if (!(error instanceof Error && "code" in error && IMMOVABLE.has(String(error.code)))) throw error;
  }
  const inside = join(folder, `lost-${stamp}`);
  await mkdir(inside, { mode: 0o700 });
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    if (!entry.isDirectory()) await rename(join(folder, entry.name), join(inside, entry.name));
  }
  return inside;
}

/** A mount point; or a folder whose parent is not ours. */
const IMMOVABLE: ReadonlySet<string> = new Set(["EBUSY", "EXDEV", "EACCES", "EPERM", "EROFS"]);

const ALIVE_MS = 30_000; // twice as long as after which others take a silent process for dead

async function refuseAlive(store: SealerOptions["store"], node: string): Promise<void> {
  const alive = await store
    .selectFrom("nodes")
    .select("id")
    .where("id", "=", node)
    .where(sql<boolean>`seen_at > clock_timestamp() - ${ALIVE_MS} * interval '1 millisecond'`)
    .executeTakeFirst();
  if (alive !== undefined)
    throw new GlassError("conflict", `${node} is alive, or was within the last ${ALIVE_MS / 1_000} seconds`, {
      next: "Stop that Glasskey first. Its journal is not lost while it writes it.",
    });
}

/** Sessions of that process of which not even the first chunk was sealed: all that they had was in the journal. */
async function unsealedSessions(store: SealerOptions["store"], node: string): Promise<Map<string, Progress>> {
  const rows = await store
    .selectFrom("sessions")
    .select("id")
    .where("node", "=", node)
    .where("journal", "is", null)
    .where("recording_complete", "=", false)
    .execute();
  return readProgress(
    store,
    rows.map(({ id }) => id),
  );
}
