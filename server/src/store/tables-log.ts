import type { Generated } from "kysely";

/** Tables of migrations/0002_log.sql and 0005_log_keys.sql. */
export interface LogTables {
  log_queue: LogQueueTable;
  log_entries: LogEntriesTable;
  log_tiles: LogTilesTable;
  log_head: LogHeadTable;
  log_checkpoints: LogCheckpointsTable;
  log_keys: LogKeysTable;
  witnessed_checkpoints: WitnessedCheckpointsTable;
  witness_claim: WitnessClaimTable;
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

/** Which generations of the log's key sign, and which did. */
export interface LogKeysTable {
  generation: number;
  vkey: string;
  added_at: Generated<Date>;
  retired_at: Date | null;
}

/** `note` has the cosignature lines. Nothing vouches for a row but the signatures in it. */
export interface WitnessedCheckpointsTable {
  size: number;
  root: Buffer;
  note: string;
  witnessed_at: Generated<Date>;
}

/** Exactly one row: the process that asks the witnesses. */
export interface WitnessClaimTable {
  only_one: Generated<boolean>;
  claimed_by: string | null;
  claimed_until: Date | null;
}
