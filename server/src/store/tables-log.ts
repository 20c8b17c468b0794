import type { Generated } from "kysely";

/** Tables of migrations/0002_log.sql. */
export interface LogTables {
  log_queue: LogQueueTable;
  log_entries: LogEntriesTable;
  log_tiles: LogTilesTable;
  log_head: LogHeadTable;
  log_checkpoints: LogCheckpointsTable;
}

/** Committed events that have no index yet. */
export interface LogQueueTable {
  id: Generated<number>;
  entry: Buffer;
  grant_id: string | null;
}

/** The leaves. `grant_id` repeats what the entry says, for look-ups only. */
export interface LogEntriesTable {
  idx: number;
  entry: Buffer;
  leaf_hash: Buffer;
  grant_id: string | null;
}

/** Up to 256 hashes of 32 bytes each. */
export interface LogTilesTable {
  level: number;
  idx: number;
  hashes: Buffer;
}

/** Exactly one row: how much is integrated, which may be a moment ahead of the newest checkpoint. */
export interface LogHeadTable {
  only_one: Generated<boolean>;
  size: number;
  root: Buffer;
}

export interface LogCheckpointsTable {
  size: number;
  root: Buffer;
  note: string;
  signed_at: Generated<Date>;
}
