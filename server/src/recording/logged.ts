import { sql } from "kysely";
import type { JsonObject } from "../core/json.ts";
import type { Store } from "../store/database.ts";

/** What an entry `recording.sealed` tells of a chunk. */
export interface LoggedChunk {
  /** Of the whole file, hex. */
  readonly sha256: string;
  readonly lastSeq: number;
}

/**
 * The chunks of a session that the log tells of, by their number: in one snapshot those that have an index and those that
 * wait for one. Of two entries about one chunk the first counts: the later one is not ours.
 */
export async function loggedChunks(store: Store, session: string): Promise<ReadonlyMap<number, LoggedChunk>> {
  // As the bytes of such an entry have it, whose keys are sorted: the others of the grant need not be decoded.
  const mark = Buffer.from(`"session":${JSON.stringify(session)},"type":"recording.sealed"`);
  const { rows } = await sql<{ entry: Buffer }>`
    with of_grant as (select grant_id from sessions where id = ${session})
    select entry from (
      select 0 as part, idx as n, entry from log_entries where grant_id = (select grant_id from of_grant)
      union all select 1, id, entry from log_queue where grant_id = (select grant_id from of_grant)) as entries
    where position(${mark}::bytea in entry) > 0 order by part, n`.execute(store);
  const chunks = new Map<number, LoggedChunk>();
  for (const { entry } of rows) {
    const { chunk, sha256, lastSeq } = dataOf(entry);
    if (typeof chunk !== "number" || typeof sha256 !== "string" || typeof lastSeq !== "number") continue;
    if (!chunks.has(chunk)) chunks.set(chunk, { sha256, lastSeq });
  }
  return chunks;
}

function dataOf(entry: Buffer): JsonObject {
  try {
    const { data } = JSON.parse(entry.toString("utf8")) as JsonObject;
    return typeof data === "object" && data !== null && !Array.isArray(data) ? (data as JsonObject) : {};
  } catch {
    return {}; // somebody put it there by hand
  }
}
