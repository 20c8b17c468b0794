import type { ColumnType, Generated } from "kysely";

/** Tables of migrations/0003_recording.sql, with the columns of 0010_journal_marks.sql. */
export interface RecordingTables {
  journals: JournalsTable;
}

/** How far one process's journal is sealed; sequences are frame numbers, and each has the id of the file with that frame. */
export interface JournalsTable {
  name: string;
  journal: string;
  opened_sequence: Generated<number>;
  opened_file: ColumnType<string | null, string | null | undefined>;
  sealed_sequence: Generated<number>;
  sealed_file: ColumnType<string | null, string | null | undefined>;
  complete_sequence: Generated<number>;
}
