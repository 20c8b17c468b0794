import type { ColumnType, Generated } from "kysely";

/** Tables of migrations/0008_archive.sql. */
export interface ArchiveTables {
  archives: ArchivesTable;
  archive_objects: ArchiveObjectsTable;
}

type Timestamp = ColumnType<Date | null, Date | string | null | undefined, Date | string | null>;

/** One row for each place; the cursor of whoever copies there. */
export interface ArchivesTable {
  place: string;
  size: Generated<number>;
  dated_at: Timestamp;
  next_index: Generated<number>;
  witnessed: Generated<number>;
  claimed_by: string | null;
  claimed_until: Timestamp;
  failures: Generated<number>;
  failed_at: Timestamp;
  retry_at: Timestamp;
  last_error: string | null;
  refused: Generated<boolean>;
}

export interface ArchiveObjectsTable {
  place: string;
  path: string;
  version: Generated<string>;
  sha256: Buffer;
  bytes: number | null;
  locked_until: Timestamp;
  stored_at: Timestamp;
  checked_at: Timestamp;
  fault: string | null;
}
