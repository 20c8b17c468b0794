import { GlassError } from "../core/errors.ts";
import { RECORD } from "../targets/target.ts";
import { chunkName, sealChunk } from "./chunk.ts";
import { encodeRecord } from "./record.ts";
import type { SealerOptions } from "./sealer.ts";
import { sealedEvent } from "./sealer-waiting.ts";
import { commitChunk, unfinishedSessions } from "./sealer-progress.ts";
import { makeSessionKey } from "./session-keys.ts";

export type AbandonOptions = Pick<SealerOptions, "name" | "store" | "keyring" | "chunks" | "append"> & { now: Date };

/**
 * For an operator whose journal folder is lost for good: ends every recording that was not sealed to its end with a record
 * that says so, each with its chunk and log entry, and lets the process begin a new journal under the old name. What was
 * in the folder and not sealed is gone, at most the last two seconds of each session while the store answered.
 * Safe to repeat after a crash. The process that had the journal must not run.
 * @returns the sessions that were ended so.
 * @throws GlassError `not_found` where no journal of that name is known.
 */
export async function abandonJournal({
  name,
  store,
  keyring,
  chunks,
  append,
  now,
}: AbandonOptions): Promise<readonly string[]> {
  const row = await store.selectFrom("journals").select("journal").where("name", "=", name).executeTakeFirst();
  if (row === undefined) throw new GlassError("not_found", `no journal is known under the name ${name}`);
  const unfinished = await unfinishedSessions(store, row.journal);
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
  await store.deleteFrom("journals").where("name", "=", name).where("journal", "=", row.journal).execute();
  return [...unfinished.keys()];
}
