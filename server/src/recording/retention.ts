import { type RawBuilder, sql } from "kysely";
import pg from "pg";
import type { LogEvent } from "../audit/append.ts";
import { sha256 } from "../core/bytes.ts";
import { type Clock, systemClock } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { clientConfig, type Store, type StoreAddress, type Tx } from "../store/database.ts";
import { DAMAGED } from "./damage.ts";
import { destroySessionKey, type Wrapping } from "./session-keys.ts";

export interface RetentionOptions {
  readonly store: Store;
  readonly keyring: Wrapping;
  /** Of this process: what is erased for its age is old by this clock and by the store's. */
  readonly clock?: Clock | undefined;
  /** `append` of audit/append.ts. */
  readonly append: (trx: Tx, event: LogEvent) => Promise<void>;
}

/** A person who was allowed to do this: by name for the store, by pseudonym for the log. */
export interface Doer {
  readonly person: string;
  readonly actor: string;
}

export interface Hold {
  readonly hold: string;
  readonly grant: string;
  /** Null: every session of the grant, also those that are still to come. */
  readonly session: string | null;
  readonly why: string;
  readonly heldBy: string;
  readonly heldAt: Date;
  readonly releasedBy: string | null;
  readonly releasedAt: Date | null;
}

const MAX_HOLDS_PER_GRANT = 100;
const MAX_LISTED = 1_000;
/** So many in one round, each in a transaction of its own: the rest comes with the next. */
const ERASED_A_ROUND = 200;
const LOCK_TIMEOUT_MS = 2_000; // a writing-anew that waits makes every new session wait behind it
const SCRUB_TIMEOUT_MS = 120_000;

/** Whether an open hold keeps this session, for a query that has `sessions`. */
const HELD: RawBuilder<boolean> = sql<boolean>`exists (select from holds where holds.released_at is null
  and holds.grant_id = sessions.grant_id and (holds.session is null or holds.session = sessions.id))`;

/**
 * Keeps a session's recording, or those of all sessions of a grant, from being erased, whatever their age.
 * @throws GlassError `erased` for a session whose recording is gone already, `conflict` for too many holds.
 */
export async function placeHold(
  { store, keyring, append }: RetentionOptions,
  { person, actor }: Doer,
  on: { grant: string; session?: string | undefined; why: string },
): Promise<string> {
  const id = newId("hold");
  await store.transaction().execute(async (tx) => {
    await lockGrant(tx, on.grant);
    const { count } = await tx
      .selectFrom("holds")
      .select((eb) => eb.fn.countAll<number>().as("count"))
      .where("grant_id", "=", on.grant)
      .where("released_at", "is", null)
      .executeTakeFirstOrThrow();
    if (count >= MAX_HOLDS_PER_GRANT)
      throw new GlassError("conflict", `${on.grant} has ${MAX_HOLDS_PER_GRANT} holds, the most it may have`, {
        next: "Lift some of them: glass holds",
      });
    const gone =
      on.session === undefined
        ? undefined
        : await tx
            .selectFrom("session_keys")
            .select("destroyed_at")
            .where("session", "=", on.session)
            .executeTakeFirst();
    if (on.session !== undefined && gone !== undefined && gone.destroyed_at !== null) throw erased(on.session);
    const why = keyring.seal(place("holds", id), Buffer.from(on.why, "utf8"));
    await tx
      .insertInto("holds")
      .values({ id, grant_id: on.grant, session: on.session ?? null, why, held_by: person })
      .execute();
    await append(tx, {
      ...{ type: "recording.held", at: new Date(), actor, grant: on.grant },
      ...(on.session === undefined ? {} : { session: on.session }),
      data: { hold: id, whySha256: sha256(why).toString("hex") },
    });
  });
  return id;
}

/** Lifts a hold. @throws GlassError `conflict` where it is lifted already. */
export async function releaseHold(
  { store, append }: RetentionOptions,
  { person, actor }: Doer,
  hold: string,
): Promise<void> {
  await store.transaction().execute(async (tx) => {
    const row = await tx
      .updateTable("holds")
      .set({ released_by: person, released_at: sql`clock_timestamp()` })
      .where("id", "=", hold)
      .where("released_at", "is", null)
      .returning(["grant_id", "session"])
      .executeTakeFirst();
    if (row === undefined) throw new GlassError("conflict", `hold ${hold} is lifted already`);
    await append(tx, {
      ...{ type: "recording.released", at: new Date(), actor, grant: row.grant_id },
      ...(row.session === null ? {} : { session: row.session }),
      data: { hold },
    });
  });
}

/** @param hold only this one. @param lifted also those that are lifted. Newest first. */
export async function listHolds(
  { store, keyring }: Pick<RetentionOptions, "store" | "keyring">,
  { hold, lifted = false }: { hold?: string; lifted?: boolean } = {},
): Promise<readonly Hold[]> {
  let query = store.selectFrom("holds").selectAll().orderBy("held_at", "desc").limit(MAX_LISTED);
  if (hold !== undefined) query = query.where("id", "=", hold);
  if (!lifted) query = query.where("released_at", "is", null);
  return (await query.execute()).map((row) => ({
    ...{ hold: row.id, grant: row.grant_id, session: row.session, heldBy: row.held_by, heldAt: row.held_at },
    why: readable(keyring, row.id, row.why),
    ...{ releasedBy: row.released_by, releasedAt: row.released_at },
  }));
}

/**
 * Erases one recording because a person says so: its key is destroyed, its chunks stay and still match the log.
 * @throws GlassError `conflict` while it is held, not complete yet, or where this person lifted the last hold on it
 *   (another one erases then); `erased` where it is gone already; `not_found` where nothing was recorded.
 */
export async function eraseRecording(
  { store, keyring, append }: RetentionOptions,
  { person, actor }: Doer,
  { session, why }: { session: string; why: string },
): Promise<void> {
  await store.transaction().execute(async (tx) => {
    const grant = await grantOf(tx, session);
    await lockGrant(tx, grant);
    await refuseHeld(tx, grant, session, person);
    const sealed = keyring.seal(place("erasures", session), Buffer.from(why, "utf8"));
    if (!(await destroySessionKey(tx, session))) throw erased(session);
    await tx.insertInto("erasures").values({ session, cause: "person", erased_by: person, why: sealed }).execute();
    const data = { cause: "person", whySha256: sha256(sealed).toString("hex") };
    await append(tx, { type: "recording.erased", at: new Date(), actor, grant, session, data });
  });
}

/**
 * One round of retention: destroys the keys of complete recordings whose session ended longer ago than their playbook
 * keeps them (`record: { keep }`, as the grant pinned it), or else than `keepMs`. Never of a held one, nor of one that does
 * not verify: it may be evidence. A clock that jumped ahead, here or in the store, erases nothing by itself: what is gone
 * does not come back. Any number of processes may do this at once.
 * @param keepMs undefined: recordings whose playbook says nothing are kept for ever. @returns what was erased.
 */
export async function eraseExpired(
  { store, append, clock = systemClock }: Pick<RetentionOptions, "store" | "append" | "clock">,
  keepMs: number | undefined,
): Promise<readonly string[]> {
  const now = clock.now();
  const due = await expired(store, keepMs, now).limit(ERASED_A_ROUND).execute();
  const done: string[] = [];
  for (const { id, grant_id } of due) {
    const gone = await store.transaction().execute(async (tx) => {
      await lockGrant(tx, grant_id);
      // Held since it was listed, or erased by another process: the lock came in between.
      const still = await expired(tx, keepMs, now).where("sessions.id", "=", id).executeTakeFirst();
      if (still === undefined || !(await destroySessionKey(tx, id))) return false;
      await tx.insertInto("erasures").values({ session: id, cause: "retention" }).execute();
      const data = { cause: "retention", keepMs: still.keep_ms };
      await append(tx, {
        type: "recording.erased",
        at: new Date(),
        actor: "glasskey",
        grant: grant_id,
        session: id,
        data,
      });
      return true;
    });
    if (gone) done.push(id);
  }
  return done;
}

function expired(db: Store | Tx, keepMs: number | undefined, now: Date) {
  // What a playbook says is pinned with the grant; a row that somebody edited into something else counts as nothing said.
  const said = sql`playbook_versions.content #> '{playbook,record,keepMs}'`;
  const keep = sql<number>`coalesce(case when jsonb_typeof(${said}) = 'number' then (${said})::bigint end, ${keepMs ?? null}::bigint)`;
  return db
    .selectFrom("session_keys")
    .innerJoin("sessions", "sessions.id", "session_keys.session")
    .innerJoin("grants", "grants.id", "sessions.grant_id")
    .innerJoin("playbook_versions", "playbook_versions.hash", "grants.playbook_hash")
    .select(["sessions.id", "sessions.grant_id", keep.as("keep_ms")])
    .where("session_keys.wrapped", "is not", null)
    .where("sessions.recording_complete", "=", true)
    .where(
      sql<boolean>`sessions.closed_at + ${keep} * interval '1 millisecond' <= least(clock_timestamp(), ${now}::timestamptz)`,
    )
    .where(sql<boolean>`not ${HELD}`)
    .where(sql<boolean>`not ${DAMAGED}`)
    .orderBy("sessions.closed_at");
}

/**
 * Writes the table of keys anew where keys were destroyed since the last time, so that the store's file does not hold
 * their bytes any longer than this. What backups and the write-ahead log hold is another matter (docs/retention.md).
 * @returns false where there was something to do and it could not be done now: somebody is at the table, or still sees
 *   what was there, or the store lets only its owner do this (PostgreSQL before 17). It is tried again.
 */
export async function scrubKeys(address: StoreAddress): Promise<boolean> {
  const client = new pg.Client({ ...clientConfig(address), statement_timeout: SCRUB_TIMEOUT_MS });
  client.on("error", () => {});
  await client.connect();
  try {
    const { rows } = await client.query<{ session: string }>("select session from erasures where scrubbed_at is null");
    if (rows.length === 0) return true;
    let left: number | undefined;
    client.on("notice", ({ detail }) => (left = deadRowsLeft(detail) ?? left));
    await client.query(`set lock_timeout = ${LOCK_TIMEOUT_MS}`);
    await client.query("vacuum (full, verbose) session_keys");
    if (left !== 0) return false;
    await client.query("update erasures set scrubbed_at = clock_timestamp() where session = any ($1)", [
      rows.map(({ session }) => session),
    ]);
    return true;
  } catch (error) {
    if (error instanceof pg.DatabaseError && error.code === "55P03") return false;
    throw error;
  } finally {
    await client.end().catch(() => {});
  }
}

/**
 * What VACUUM VERBOSE says in its details, in whatever language the store speaks: first how many dead rows could not be
 * removed, then how long it took. @returns undefined for details of something else.
 */
export function deadRowsLeft(detail: string | undefined): number | undefined {
  const found = /\d+/.exec(detail ?? "")?.[0];
  return found === undefined ? undefined : Number(found);
}

async function grantOf(tx: Tx, session: string): Promise<string> {
  const row = await tx.selectFrom("sessions").select("grant_id").where("id", "=", session).executeTakeFirst();
  if (row === undefined) throw new GlassError("not_found", `no session ${session}`);
  return row.grant_id;
}

/** A hold and an erasure of one grant's recordings come one after the other, whichever is first. */
async function lockGrant(tx: Tx, grant: string): Promise<void> {
  await tx.selectFrom("grants").select("id").where("id", "=", grant).forNoKeyUpdate().executeTakeFirstOrThrow();
}

async function refuseHeld(tx: Tx, grant: string, session: string, person: string): Promise<void> {
  const on = tx
    .selectFrom("holds")
    .select(["id", "held_by", "released_by"])
    .where("grant_id", "=", grant)
    .where((eb) => eb.or([eb("session", "is", null), eb("session", "=", session)]));
  const held = await on.where("released_at", "is", null).orderBy("held_at").executeTakeFirst();
  if (held !== undefined)
    throw new GlassError("conflict", `the recording of ${session} is held by ${held.held_by} (${held.id})`, {
      next: `\`glass holds\` says why. Lift it first: glass hold release ${held.id}`,
    });
  const lifted = await on.where("released_at", "is not", null).orderBy("released_at", "desc").executeTakeFirst();
  if (lifted?.released_by === person)
    throw new GlassError("conflict", `${person} lifted the last hold on this recording, so another one erases it`, {
      next: "Ask another security officer.",
    });
}

function readable(keyring: Wrapping, id: string, why: Buffer): string {
  try {
    return keyring.open(place("holds", id), why).toString("utf8");
  } catch {
    return "(these words do not open: they were changed in the store, or their key is lost)"; // one row hides no list
  }
}

function place(table: "holds" | "erasures", row: string): { table: string; row: string; column: string } {
  return { table, row, column: "why" };
}

function erased(session: string): GlassError {
  return new GlassError("erased", `the recording of ${session} is erased already`, {
    next: "The log still shows that it was there, and its chunks still match their entries.",
  });
}
