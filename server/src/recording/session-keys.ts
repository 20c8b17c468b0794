import { randomBytes } from "node:crypto";
import type { Kysely } from "kysely";
import { GlassError } from "../core/errors.ts";
import type { Keyring, Place } from "../store/keyring.ts";
import type { Tx } from "../store/database.ts";
import type { Database } from "../store/tables.ts";

/** What of the keyring a session's key needs. */
export type Wrapping = Pick<Keyring, "seal" | "open">;

const KEY_BYTES = 32;

/**
 * The data key of a session's recording, made on first use: 32 random bytes, wrapped by the keyring.
 * @throws GlassError `integrity` if it was destroyed.
 */
export async function makeSessionKey(store: Kysely<Database>, keyring: Wrapping, session: string): Promise<Buffer> {
  const key = await readSessionKey(store, keyring, session);
  if (key === "destroyed")
    throw new GlassError("integrity", `the key of ${session} was destroyed, and its recording goes on`);
  if (key !== undefined) return key;
  const wrapped = keyring.seal(place(session), randomBytes(KEY_BYTES));
  await store
    .insertInto("session_keys")
    .values({ session, wrapped, destroyed_at: null })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  return makeSessionKey(store, keyring, session); // what is in the table counts, whoever put it there
}

/** The key; `destroyed` once the recording was erased; undefined if nothing of the session was ever sealed. */
export async function readSessionKey(
  store: Kysely<Database>,
  keyring: Wrapping,
  session: string,
): Promise<Buffer | "destroyed" | undefined> {
  const row = await store
    .selectFrom("session_keys")
    .select("wrapped")
    .where("session", "=", session)
    .executeTakeFirst();
  if (row === undefined) return undefined;
  return row.wrapped === null ? "destroyed" : keyring.open(place(session), row.wrapped);
}

/**
 * Erases a recording: its chunks stay, and the log still verifies, but nobody reads them again. The caller appends the
 * log's entry in the same transaction. Idempotent.
 * @returns whether it was there: false once it is destroyed.
 * @throws GlassError `conflict` while the recording is not complete, `not_found` where there is no key.
 */
export async function destroySessionKey(trx: Tx, session: string): Promise<boolean> {
  const row = await trx
    .selectFrom("session_keys")
    .innerJoin("sessions", "sessions.id", "session_keys.session")
    .select(["sessions.recording_complete", "session_keys.destroyed_at"])
    .where("session_keys.session", "=", session)
    .forUpdate()
    .executeTakeFirst();
  if (row === undefined) throw new GlassError("not_found", `no recording of ${session}`);
  if (!row.recording_complete) throw new GlassError("conflict", `the recording of ${session} is not complete yet`);
  if (row.destroyed_at !== null) return false;
  await trx
    .updateTable("session_keys")
    .set({ wrapped: null, destroyed_at: new Date() })
    .where("session", "=", session)
    .execute();
  return true;
}

function place(session: string): Place {
  return { table: "session_keys", row: session, column: "wrapped" };
}
