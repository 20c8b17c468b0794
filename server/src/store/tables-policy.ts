import type { ColumnType, Generated } from "kysely";
import type { JsonValue } from "../core/json.ts";

/** Tables of migrations/0004_policy.sql. */
export interface PolicyTables {
  bundles: BundlesTable;
  bundle_generations: BundleGenerationsTable;
  reviews: ReviewsTable;
  notices: NoticesTable;
  evidence_facts: EvidenceFactsTable;
  evidence_pushes: EvidencePushesTable;
}

type Timestamp = ColumnType<Date, Date | string, Date | string>;
type Json<T> = ColumnType<T, string, string>;

interface BundlesTable {
  hash: string;
  files: Buffer;
  created_at: Generated<Date>;
}

interface BundleGenerationsTable {
  generation: number;
  hash: string;
  source: string;
  commit_id: string | null;
  author: string | null;
  signer: string | null;
  plan: Json<JsonValue> | null;
  node: string;
  at: Generated<Date>;
}

export interface ReviewsTable {
  grant_id: string;
  playbook: string;
  requester: string;
  opened_at: Generated<Date>;
  due_at: Timestamp;
  overdue_at: Timestamp | null;
  signed_at: Timestamp | null;
  signed_by: string | null;
  verdict: "justified" | "not_justified" | null;
  note: Buffer | null;
}

export interface NoticesTable {
  id: string;
  grant_id: string | null;
  channel: string;
  event: string;
  round: Generated<number>;
  person: string | null;
  page: Generated<boolean>;
  content: Buffer;
  created_at: Generated<Date>;
  next_at: ColumnType<Date, Date | string | undefined, Date | string>;
  expires_at: Timestamp | null;
  claimed_by: string | null;
  claimed_until: Timestamp | null;
  attempts: Generated<number>;
  last_error: string | null;
  delivered_at: Timestamp | null;
  receipt: string | null;
  given_up_at: Timestamp | null;
}

interface EvidenceFactsTable {
  source: string;
  fact: string;
  value: "true" | "false" | "unknown";
  severity: string | null;
  people: Json<readonly string[]> | null;
  observed_at: Timestamp;
  expires_at: Timestamp;
  received_at: Generated<Date>;
}

interface EvidencePushesTable {
  source: string;
  id: string;
  received_at: Generated<Date>;
}
