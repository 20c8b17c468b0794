import { sql } from "kysely";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import type { Store } from "../store/database.ts";

const FAULTS_AGAIN_MS = 10 * 60_000; // somebody may have mended it
const ROUNDED_MS = 2_000; // services keep whole seconds

interface Row {
  readonly path: string;
  readonly version: string;
  readonly sha256: Buffer;
  readonly bytes: number | null;
  readonly locked_until: Date | null;
}

/**
 * Looks again at objects that nobody has looked at for `recheckMs`, and at those that were found wrong, by the version
 * that was recorded; writes down what is wrong. Restoring does not depend on this: it goes by the hashes in the log.
 * @returns how many were looked at.
 */
export async function recheck(options: {
  store: Store;
  objects: ObjectStore;
  recheckMs: number;
  limit: number;
}): Promise<number> {
  const { store, objects } = options;
  const rows = await store
    .selectFrom("archive_objects")
    .select(["path", "version", "sha256", "bytes", "locked_until"])
    .where("place", "=", objects.place)
    .where("stored_at", "is not", null)
    .where((eb) =>
      eb.or([
        eb("checked_at", "<=", sql<Date>`clock_timestamp() - ${options.recheckMs} * interval '1 millisecond'`),
        eb.and([
          eb("fault", "is not", null),
          eb("checked_at", "<=", sql<Date>`clock_timestamp() - ${FAULTS_AGAIN_MS} * interval '1 millisecond'`),
        ]),
      ]),
    )
    .orderBy("checked_at")
    .limit(options.limit)
    .execute();
  for (const row of rows) {
    const fault = await faultOf(objects, row);
    await store
      .updateTable("archive_objects")
      .set({ checked_at: sql<Date>`clock_timestamp()`, fault: fault ?? null })
      .where("place", "=", objects.place)
      .where("path", "=", row.path)
      .where("version", "=", row.version)
      .execute();
  }
  return rows.length;
}

/** What is wrong with an object; undefined: nothing, or its time is over and it may be gone. */
async function faultOf(objects: ObjectStore, row: Row): Promise<string | undefined> {
  const { path, version, locked_until: lockedUntil } = row;
  const over = lockedUntil !== null && lockedUntil.getTime() < Date.now();
  let bytes: Buffer | undefined;
  try {
    bytes = await objects.get(path, row.bytes ?? 0, version);
  } catch (error) {
    if (!(error instanceof GlassError && error.code === "integrity")) throw error;
    return "has other bytes";
  }
  if (bytes === undefined) return over ? undefined : version === "" ? "is gone" : `is gone, version ${version}`;
  if (!sha256(bytes).equals(row.sha256)) return "has other bytes";
  if (version === "") return undefined; // a folder has neither versions nor locks that could be asked for
  const lock = (await objects.head(path, version))?.lock;
  if (lockedUntil !== null && !over) {
    if (lock === undefined) return "is not locked any more";
    if (lock.mode !== "COMPLIANCE") return `is locked in ${lock.mode} mode by now`;
    if (lock.until.getTime() < lockedUntil.getTime() - ROUNDED_MS)
      return `is locked until ${lock.until.toISOString()} only`;
  }
  const latest = (await objects.versions(path)).find((one) => one.latest);
  if (latest?.version === version) return undefined;
  return latest?.deleted === true
    ? `is hidden by a mark of deletion, version ${latest.version}`
    : `is covered by another version, ${latest?.version ?? "unknown"}`;
}
