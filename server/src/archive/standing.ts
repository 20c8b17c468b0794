import { sql } from "kysely";
import type { StoredObject } from "../objects/object-store.ts";
import { chunkPath } from "@glasskey/verify";
import type { Store } from "../store/database.ts";
import type { Cursor } from "./cursor.ts";
import type { SealedChunk } from "./layout.ts";

/** How an archive stands: what people and metrics are told. */
export interface Standing {
  readonly place: string;
  /** Entries under the newest dated checkpoint there, and when it was written. */
  readonly size: number;
  readonly datedAt: Date | undefined;
  /** Entries of the log. */
  readonly logSize: number;
  readonly lagMs: number;
  readonly objects: number;
  readonly bytes: number;
  /** Chunks that could not be read when their turn came. */
  readonly owed: number;
  /** The first objects that were found changed or hidden. */
  readonly faults: readonly { path: string; fault: string }[];
  /** Whether the place is refused until somebody does something. */
  readonly refused: boolean;
  readonly lastError: string | undefined;
  readonly failedAt: Date | undefined;
}

export interface StoredNote {
  readonly path: string;
  readonly sha256: Buffer;
  readonly stored: StoredObject;
}

const FAULTS_SHOWN = 20;
const OWED_A_ROUND = 1_000;

type Writer = Pick<Store, "insertInto">;

/** Notes what is there now. What was owed or stood under another version before is that no more. */
export async function noteStored(trx: Writer, place: string, notes: readonly StoredNote[]): Promise<void> {
  if (notes.length === 0) return;
  const now = sql<Date>`clock_timestamp()`;
  await trx
    .insertInto("archive_objects")
    .values(
      notes.map(({ path, sha256, stored }) => ({
        ...{ place, path, version: stored.version, sha256, bytes: stored.bytes },
        ...{ locked_until: stored.lock?.until ?? null, stored_at: now, checked_at: now, fault: null },
      })),
    )
    .onConflict((conflict) =>
      conflict.columns(["place", "path"]).doUpdateSet((eb) => ({
        ...{ version: eb.ref("excluded.version"), sha256: eb.ref("excluded.sha256"), bytes: eb.ref("excluded.bytes") },
        ...{ locked_until: eb.ref("excluded.locked_until"), stored_at: now, checked_at: now, fault: null },
      })),
    )
    .execute();
}

/** Notes chunks that could not be read, and why. One that is there already stays as it is. */
export async function noteOwed(
  trx: Writer,
  place: string,
  chunks: readonly (SealedChunk & { why: string })[],
): Promise<void> {
  if (chunks.length === 0) return;
  await trx
    .insertInto("archive_objects")
    .values(
      chunks.map(({ path, sha256, why }) => ({
        ...{ place, path, sha256: Buffer.from(sha256, "hex"), bytes: null },
        fault: why,
      })),
    )
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}

/** Which of these paths are known to be there. */
export async function storedAmong(store: Store, place: string, paths: readonly string[]): Promise<ReadonlySet<string>> {
  if (paths.length === 0) return new Set();
  const rows = await store
    .selectFrom("archive_objects")
    .select("path")
    .where("place", "=", place)
    .where("path", "in", paths)
    .where("stored_at", "is not", null)
    .execute();
  return new Set(rows.map(({ path }) => path));
}

/** Chunks that are owed. */
export async function owed(store: Store, place: string): Promise<SealedChunk[]> {
  const rows = await store
    .selectFrom("archive_objects")
    .select(["path", "sha256"])
    .where("place", "=", place)
    .where("stored_at", "is", null)
    .orderBy("path")
    .limit(OWED_A_ROUND)
    .execute();
  return rows.flatMap(({ path, sha256 }) => {
    const [, session = "", number = ""] = /^chunks\/([^/]+)\/(\d+)\.gkc$/.exec(path) ?? [];
    const chunk = Number(number);
    return chunkPath(session, chunk) === path ? [{ session, chunk, path, sha256: sha256.toString("hex") }] : [];
  });
}

/** It is there now. */
export async function noteGiven(store: Store, place: string, path: string): Promise<void> {
  await store
    .deleteFrom("archive_objects")
    .where("place", "=", place)
    .where("path", "=", path)
    .where("stored_at", "is", null)
    .execute();
}

export async function faultsOf(
  store: Store,
  place: string,
  limit: number,
): Promise<readonly { path: string; fault: string }[]> {
  const rows = await store
    .selectFrom("archive_objects")
    .select(["path", "fault"])
    .where("place", "=", place)
    .where("fault", "is not", null)
    .orderBy("path")
    .limit(limit)
    .execute();
  return rows.map(({ path, fault }) => ({ path, fault: fault ?? "" }));
}

export async function standing(store: Store, cursor: Cursor, lagMs: number, logSize: number): Promise<Standing> {
  const { place } = cursor;
  const sums = await store
    .selectFrom("archive_objects")
    .select((eb) => [
      eb.fn.count<number>("stored_at").as("objects"),
      eb.fn.coalesce(sql<number>`sum(bytes)::bigint`, eb.lit(0)).as("bytes"),
      sql<number>`count(*) filter (where stored_at is null)`.as("owed"),
    ])
    .where("place", "=", place)
    .executeTakeFirstOrThrow();
  return {
    ...{ place, size: cursor.size, datedAt: cursor.dated_at ?? undefined, logSize, lagMs },
    ...{ objects: sums.objects, bytes: sums.bytes, owed: sums.owed },
    faults: await faultsOf(store, place, FAULTS_SHOWN),
    ...{ refused: cursor.refused, lastError: cursor.last_error ?? undefined, failedAt: cursor.failed_at ?? undefined },
  };
}
