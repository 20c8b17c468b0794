import type { ColumnType, Generated } from "kysely";

/** Tables of migrations/0006_retention.sql. */
export interface RetentionTables {
  holds: HoldsTable;
  erasures: ErasuresTable;
}

type Later = ColumnType<Date | null, Date | undefined, Date>;

/** What may not be erased. `session` null: every session of the grant. */
export interface HoldsTable {
  id: string;
  grant_id: string;
  session: string | null;
  why: Buffer;
  held_by: string;
  held_at: Generated<Date>;
  released_by: Generated<string | null>;
  released_at: Later;
}

/** What was erased, by which rule or whom. */
export interface ErasuresTable {
  session: string;
  cause: "retention" | "person";
  erased_by: Generated<string | null>;
  why: Generated<Buffer | null>;
  erased_at: Generated<Date>;
  /** When the table of keys was written anew without it. */
  scrubbed_at: Later;
}
