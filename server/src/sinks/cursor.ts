import { sql } from "kysely";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import type { Store } from "../store/database.ts";
import type { SinkConfig } from "./config.ts";

/** Which row of table `sinks`: its name, and the process where each has its own. */
export interface SinkKey {
  readonly name: string;
  readonly node: string;
}

/** A sink that this process works on now. */
export interface Claim extends SinkKey {
  readonly next: number;
  /** Where the newest acknowledged batch began. */
  readonly before: number;
  readonly failures: number;
  /** The newest checkpoint's size: what lies beyond it is not delivered. */
  readonly size: number;
  /** Whether a person wants a parked entry to be tried again. */
  readonly retry: boolean;
}

/** Longer than the pauses of a healthy process between two renewals; a dead one holds a sink up no longer than this. */
const CLAIM_MS = 30_000;
/** No pause is longer, whatever a receiver asks for and however the store's clock was set. */
const MAX_PAUSE_MS = 10 * 60_000;
const MAX_ERROR_LENGTH = 300;

const ms = (count: number) => sql<Date>`clock_timestamp() + ${count} * interval '1 millisecond'`;

export function keyOf({ name, kind }: SinkConfig, node: string): SinkKey {
  return { name, node: kind === "file" ? node : "" }; // a file is on one machine
}

/** Makes the row of a sink that is new. One that was there goes on where it was, whatever it was configured as. */
export async function ensureSink(store: Store, sink: SinkConfig, key: SinkKey): Promise<void> {
  const size = await signedSize(store);
  const first = sink.from === "start" ? 0 : size;
  await store
    .insertInto("sinks")
    .values({ ...key, kind: sink.kind, next_index: first, before_index: first })
    .onConflict((c) => c.columns(["name", "node"]).doUpdateSet({ kind: sink.kind }))
    .execute();
}

async function signedSize(store: Store): Promise<number> {
  const row = await store
    .selectFrom("log_checkpoints")
    .select((eb) => eb.fn.max("size").as("size"))
    .executeTakeFirst();
  return row?.size ?? 0;
}

/**
 * Takes the sink for `CLAIM_MS`, if there is something to do and nobody else has it. Times are the store's; where its
 * clock was set back, a time that lies further ahead than any of ours can is over.
 */
export async function claimSink(store: Store, key: SinkKey, by: string): Promise<Claim | undefined> {
  const { rows } = await sql<{ next: number; before: number; failures: number; size: number; retry: boolean }>`
    with signed as (select coalesce(max(size), 0) as size from log_checkpoints),
    due as (
      select name, node, signed.size,
        exists (select from sink_parked p where p.sink = sinks.name and p.node = sinks.node and p.retry) as retry
      from sinks, signed
      where name = ${key.name} and node = ${key.node}
        and (claimed_by is null or claimed_by = ${by} or claimed_until < clock_timestamp() or claimed_until > ${ms(CLAIM_MS)})
        and (retry_at <= clock_timestamp() or retry_at > ${ms(MAX_PAUSE_MS)})
        and (next_index < signed.size
          or exists (select from sink_parked p where p.sink = sinks.name and p.node = sinks.node and p.retry))
      for update of sinks skip locked)
    update sinks set claimed_by = ${by}, claimed_until = ${ms(CLAIM_MS)}
    from due where sinks.name = due.name and sinks.node = due.node
    returning next_index as next, before_index as before, failures, due.size, due.retry`.execute(store);
  const row = rows[0];
  return row === undefined ? undefined : { ...key, ...row };
}

/** @returns whether the claim still holds. */
export async function renewClaim(store: Store, key: SinkKey, by: string): Promise<boolean> {
  const row = await held(store, key, by)
    .set({ claimed_until: ms(CLAIM_MS) })
    .returning("name")
    .executeTakeFirst();
  return row !== undefined;
}

export async function releaseClaim(store: Store, key: SinkKey, by: string): Promise<void> {
  await held(store, key, by).set({ claimed_by: null, claimed_until: null }).execute();
}

/**
 * The receiver has acknowledged everything below `to`. Only who has the claim moves a cursor, and only from where it
 * was: a process that was held up and lost its claim may have delivered twice, and skips nothing.
 * @returns whether it moved.
 */
export async function moveCursor(
  store: Store,
  claim: Claim,
  by: string,
  { from, to }: { from: number; to: number },
): Promise<boolean> {
  const row = await held(store, claim, by)
    .where("next_index", "=", claim.next)
    .set({
      ...{ next_index: to, before_index: Math.min(from, to), claimed_until: ms(CLAIM_MS) },
      ...{ failures: 0, failing_since: null, last_error: null, delivered_at: sql<Date>`clock_timestamp()` },
    })
    .returning("name")
    .executeTakeFirst();
  return row !== undefined;
}

/** Writes down that it failed, and lets others try after the pause. */
export async function noteFailure(
  store: Store,
  claim: SinkKey,
  by: string,
  failure: { text: string; waitMs: number },
): Promise<void> {
  await held(store, claim, by)
    .set((eb) => ({
      ...{ failures: eb("failures", "+", 1), last_error: failure.text.slice(0, MAX_ERROR_LENGTH) },
      failing_since: sql<Date>`coalesce(failing_since, clock_timestamp())`,
      retry_at: ms(Math.min(failure.waitMs, MAX_PAUSE_MS)),
      ...{ claimed_by: null, claimed_until: null },
    }))
    .execute();
}

/**
 * Puts the entry at the cursor aside and moves on, in one transaction.
 * @returns false when the `atMost` entries before it were put aside too: then nothing is, for it is the receiver that is
 *   at fault, or its configuration, and not one entry after the other.
 */
export async function parkEntry(
  store: Store,
  claim: Claim,
  by: string,
  { index, error, atMost }: { index: number; error: string; atMost: number },
): Promise<boolean> {
  return store.transaction().execute(async (tx) => {
    const { count } = await tx
      .selectFrom("sink_parked")
      .select((eb) => eb.fn.countAll<number>().as("count"))
      .where("sink", "=", claim.name)
      .where("node", "=", claim.node)
      .where("idx", ">=", index - atMost)
      .where("idx", "<", index)
      .executeTakeFirstOrThrow();
    if (count >= atMost) return false;
    const moved = await tx
      .updateTable("sinks")
      .set({ next_index: index + 1, before_index: index + 1, claimed_until: ms(CLAIM_MS) })
      .where("name", "=", claim.name)
      .where("node", "=", claim.node)
      .where("claimed_by", "=", by)
      .where("next_index", "=", claim.next)
      .returning("name")
      .executeTakeFirst();
    if (moved === undefined) return true; // somebody else has the sink now, and finds out for itself
    await tx
      .insertInto("sink_parked")
      .values({ sink: claim.name, node: claim.node, idx: index, error: error.slice(0, MAX_ERROR_LENGTH) })
      .onConflict((c) => c.columns(["sink", "node", "idx"]).doUpdateSet({ error: error.slice(0, MAX_ERROR_LENGTH) }))
      .execute();
    return true;
  });
}

/** The first parked entry that a person wants to be tried again. */
export async function parkedToRetry(store: Store, { name, node }: SinkKey): Promise<number | undefined> {
  const row = await store
    .selectFrom("sink_parked")
    .select("idx")
    .where("sink", "=", name)
    .where("node", "=", node)
    .where("retry", "=", true)
    .orderBy("idx")
    .limit(1)
    .executeTakeFirst();
  return row?.idx;
}

/** It was taken after all, or refused again. */
export async function settleParked(
  store: Store,
  { name, node }: SinkKey,
  index: number,
  refused: string | undefined,
): Promise<void> {
  const one = <T extends { where: (column: "sink" | "node" | "idx", op: "=", value: string | number) => T }>(q: T): T =>
    q.where("sink", "=", name).where("node", "=", node).where("idx", "=", index);
  if (refused === undefined) await one(store.deleteFrom("sink_parked")).execute();
  else {
    const error = refused.slice(0, MAX_ERROR_LENGTH);
    await one(store.updateTable("sink_parked")).set({ retry: false, error }).execute();
  }
}

export interface StoredEntry {
  readonly index: number;
  readonly leafHash: string;
  readonly bytes: Buffer;
}

/**
 * Entries from `from` on, as many as the limits allow, and always one. Their leaf hashes are checked: what was changed in
 * the store goes nowhere.
 * @throws GlassError `integrity` that names the first entry that is missing or changed.
 */
export async function readEntries(
  store: Store,
  { from, to, entries, bytes }: { from: number; to: number; entries: number; bytes: number },
): Promise<readonly StoredEntry[]> {
  const { rows } = await sql<{ idx: number; entry: Buffer; leaf_hash: Buffer }>`
    select idx, entry, leaf_hash from (
      select idx, entry, leaf_hash, sum(octet_length(entry)) over (order by idx) as total from log_entries
      where idx >= ${from} and idx < ${Math.min(to, from + entries)}) as candidates
    where total <= ${bytes} or idx = ${from}
    order by idx`.execute(store);
  if (rows.length === 0) throw missing(from);
  return rows.map(({ idx, entry, leaf_hash: stored }, i) => {
    if (idx !== from + i) throw missing(from + i);
    const hash = sha256(Buffer.of(0), entry);
    if (!hash.equals(stored)) throw new GlassError("integrity", `entry ${idx} is not what its leaf hash says`);
    return { index: idx, leafHash: hash.toString("hex"), bytes: entry };
  });
}

function missing(index: number): GlassError {
  return new GlassError("integrity", `entry ${index} is missing from the store, and a checkpoint covers it`);
}

/** An update of the row, if this process still has the claim. */
function held(store: Store, { name, node }: SinkKey, by: string) {
  return store.updateTable("sinks").where("name", "=", name).where("node", "=", node).where("claimed_by", "=", by);
}
