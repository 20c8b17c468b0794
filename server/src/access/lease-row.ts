import { sql, type Selectable } from "kysely";
import { deriveSecret } from "../core/derive.ts";
import type { JsonObject } from "../core/json.ts";
import type { Store } from "../store/database.ts";
import type { LeasesTable } from "../store/tables.ts";
import type { LeasePlan, LeaseSecrets } from "../targets/target.ts";
import type { Access } from "./access.ts";

export type LeaseRow = Selectable<LeasesTable>;

/** One step on a target; slower is "not known". */
export const REMOTE_TIMEOUT_MS = 20_000;
/** Seconds, minutes, at most hourly, for ever. */
const BACKOFF_MS = [500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 900_000, 3_600_000] as const;

/** Key of the alarm about a credential that is not proved gone in time. */
export const lateAlarm = (lease: string): string => `lease ${lease}`;

/** Key of the alarm about a credential that no grant accounts for. */
export function orphanAlarm(install: string, lease: string): string {
  return `orphan gk_${install}_${lease.slice(3)}`;
}

export function readPlan(access: Access, row: Pick<LeaseRow, "id" | "plan">): LeasePlan {
  return JSON.parse(
    access.keyring.open({ table: "leases", row: row.id, column: "plan" }, row.plan).toString("utf8"),
  ) as JsonObject;
}

export function sealPlan(access: Access, lease: string, plan: LeasePlan): Buffer {
  return access.keyring.seal({ table: "leases", row: lease, column: "plan" }, Buffer.from(JSON.stringify(plan)));
}

export function leaseKey(access: Pick<Access, "keyring">, lease: string): Buffer {
  return access.keyring.derive("lease", lease);
}

export function secretsOf(access: Pick<Access, "keyring">, lease: string): LeaseSecrets {
  const key = leaseKey(access, lease);
  return { derive: (purpose) => deriveSecret(key, purpose) };
}

/** An attempt failed: the claim is given back, and the next attempt comes after a pause. */
export async function release(access: Access, lease: string, error: string): Promise<void> {
  // By the attempts that the row has then: whoever asks for the proof at this moment begins to count anew.
  const waitMs = sql`(${[...BACKOFF_MS]}::bigint[])[least(attempts, ${BACKOFF_MS.length - 1}::integer) + 1]`;
  const due = sql`clock_timestamp() + ${waitMs} * interval '1 millisecond'`;
  await access.store
    .updateTable("leases")
    .set((eb) => ({
      claimed_by: null,
      claimed_until: null,
      attempts: eb("attempts", "+", 1),
      last_error: error,
      // What lives is looked at again at its end, however long the pause.
      next_at: sql`case state when 'live' then least(ends_at, ${due}) else ${due} end`,
    }))
    .where("id", "=", lease)
    .where("state", "<>", "dead")
    .execute();
}

/** The claim is given back, and the row stays due when it was. */
export async function unclaim(store: Store, lease: string): Promise<void> {
  await store.updateTable("leases").set({ claimed_by: null, claimed_until: null }).where("id", "=", lease).execute();
}
