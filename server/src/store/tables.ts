import type { ColumnType, Generated } from "kysely";
import type { JsonObject, JsonValue } from "../core/json.ts";
import type { ArchiveTables } from "./tables-archive.ts";
import type { LogTables } from "./tables-log.ts";
import type { PolicyTables } from "./tables-policy.ts";
import type { RecordingTables } from "./tables-recording.ts";
import type { SinkTables } from "./tables-sinks.ts";
import type { RetentionTables } from "./tables-retention.ts";

/** Rows of migrations/*.sql as Kysely sees them. `bigint` columns come as numbers: none of ours passes 2^53. */
export interface Database extends LogTables, RecordingTables, PolicyTables, RetentionTables, SinkTables, ArchiveTables {
  installation: InstallationTable;
  keyring: KeyringTable;
  pseudonyms: PseudonymsTable;
  nodes: NodesTable;
  tokens: TokensTable;
  playbook_versions: PlaybookVersionsTable;
  grants: GrantsTable;
  approvals: ApprovalsTable;
  leases: LeasesTable;
  sessions: SessionsTable;
  session_keys: SessionKeysTable;
  chunks: ChunksTable;
  alarms: AlarmsTable;
}

type Timestamp = ColumnType<Date, Date | string, Date | string>;
type Default<T> = Generated<T>;
/** Written as text that JSON.stringify made, read as the value: `pg` would take a JavaScript array for a PostgreSQL one. */
type Json<T> = ColumnType<T, string, string>;
type JsonDefault<T> = ColumnType<T, string | undefined, string>;

export type GrantState =
  | "pending"
  | "approved"
  | "opening"
  | "active"
  | "closing"
  | "closed"
  | "reviewed"
  | "denied"
  | "withdrawn"
  | "timed_out"
  | "failed";

export type LeaseState = "planned" | "minting" | "live" | "closing" | "dead";

interface InstallationTable {
  only_one: Default<boolean>;
  install: string;
  created_at: Default<Date>;
}

interface KeyringTable {
  version: number;
  wrapped: Buffer;
  created_at: Default<Date>;
}

interface PseudonymsTable {
  id: string;
  person: string;
}

interface NodesTable {
  id: string;
  started_at: Default<Date>;
  seen_at: Default<Date>;
}

interface TokensTable {
  hash: Buffer;
  person: string;
  created_at: Default<Date>;
  expires_at: Timestamp;
}

interface PlaybookVersionsTable {
  hash: string;
  playbook: string;
  content: Json<JsonObject>;
  first_used_at: Default<Date>;
}

export interface GrantsTable {
  id: string;
  state: GrantState;
  playbook: string;
  playbook_hash: string;
  target: string;
  kind: string;
  requester: string;
  reason: string;
  why: Buffer;
  incident: string | null;
  need: number;
  duration_ms: number;
  max_ms: number;
  idle_ms: number | null;
  extensions_used: Default<number>;
  extension_round: number | null;
  decision: Json<JsonValue>;
  /** The bundle's hash at the request; null before bundles were kept. */
  bundle: string | null;
  evidence: JsonDefault<JsonValue>;
  quorum: JsonDefault<JsonValue>;
  opened_unanswered: Default<boolean>;
  created_at: Default<Date>;
  decide_by: Timestamp;
  approved_at: Timestamp | null;
  ends_at: Timestamp | null;
  active_at: Timestamp | null;
  last_busy_at: Timestamp | null;
  closing_at: Timestamp | null;
  closed_at: Timestamp | null;
  end_cause: string | null;
  ended_by: string | null;
  end_text: string | null;
  proof: Json<JsonValue> | null;
}

interface ApprovalsTable {
  grant_id: string;
  round: Default<number>;
  person: string;
  verdict: "approve" | "deny";
  at: Default<Date>;
}

export interface LeasesTable {
  id: string;
  grant_id: string | null;
  target: string;
  kind: string;
  state: LeaseState;
  plan: Buffer;
  install: string;
  ends_at: Timestamp;
  worst_case_revoke_ms: number;
  created_at: Default<Date>;
  next_at: Default<Date>;
  claimed_by: string | null;
  claimed_until: Timestamp | null;
  attempts: Default<number>;
  last_error: string | null;
  fenced_at: Timestamp | null;
  revoked_at: Timestamp | null;
  dead_at: Timestamp | null;
  paged_at: Timestamp | null;
  before: Buffer | null;
  evidence: Json<JsonValue> | null;
  /** The grant's end moved, and the target's own expiry has not followed yet. */
  extend_due: Default<boolean>;
}

export interface SessionsTable {
  id: string;
  grant_id: string;
  lease_id: string;
  node: string;
  person: string;
  remote_address: string;
  client: Json<JsonObject>;
  opened_at: Default<Date>;
  kill_asked_at: Timestamp | null;
  kill_asked_by: string | null;
  closed_at: Timestamp | null;
  cause: string | null;
  detail: string | null;
  statements: Default<number>;
  refused: Default<number>;
  bytes_in: Default<number>;
  bytes_out: Default<number>;
  sealed_seq: Default<number>;
  sealed_chunks: Default<number>;
  recording_complete: Default<boolean>;
  journal: Default<string | null>;
  journal_sequence: Default<number>;
}

interface SessionKeysTable {
  session: string;
  wrapped: Buffer | null;
  destroyed_at: Timestamp | null;
}

interface ChunksTable {
  session: string;
  chunk: number;
  sha256: Buffer;
  bytes: number;
  first_seq: number;
  last_seq: number;
  sealed_at: Default<Date>;
}

interface AlarmsTable {
  id: string;
  key: string;
  text: string;
  raised_at: Default<Date>;
  cleared_at: Timestamp | null;
}
