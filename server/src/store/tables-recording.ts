import type { Generated } from "kysely";

/** Tables of migrations/0003_recording.sql. */
export interface RecordingTables {
  journals: JournalsTable;
}

/** How far one process's journal is sealed; sequences are frame numbers. */
export interface JournalsTable {
  name: string;
  journal: string;
  opened_sequence: Generated<number>;
  sealed_sequence: Generated<number>;
  complete_sequence: Generated<number>;
}
