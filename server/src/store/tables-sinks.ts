import type { ColumnType, Generated } from "kysely";

/** Tables of migrations/0007_sinks.sql. */
export interface SinkTables {
  sinks: SinksTable;
  sink_parked: SinkParkedTable;
}

type Timestamp = ColumnType<Date, Date | string | undefined, Date | string>;

export interface SinksTable {
  name: string;
  /** Empty for a sink that all processes share. */
  node: Generated<string>;
  kind: string;
  next_index: number;
  before_index: number;
  claimed_by: Generated<string | null>;
  claimed_until: Timestamp | null;
  failures: Generated<number>;
  failing_since: Timestamp | null;
  retry_at: Timestamp;
  last_error: Generated<string | null>;
  delivered_at: Timestamp | null;
  created_at: Generated<Date>;
}

export interface SinkParkedTable {
  sink: string;
  node: Generated<string>;
  idx: number;
  error: string;
  parked_at: Generated<Date>;
  retry: Generated<boolean>;
}
