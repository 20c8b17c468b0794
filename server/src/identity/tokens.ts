import { randomBytes } from "node:crypto";
import { sql } from "kysely";
import { sha256 } from "../core/bytes.ts";
import { Secret } from "../core/secret.ts";
import type { Store } from "../store/database.ts";

/**
 * A new token for a person: `gkt_` and 256 random bits. Only its SHA-256 is stored; looking a hash up by index gives
 * nothing away about the token.
 */
export async function issueToken(
  store: Store,
  person: string,
  ttlMs: number,
): Promise<{ token: Secret; expiresAt: Date }> {
  const token = `gkt_${randomBytes(32).toString("base64url")}`;
  const row = await store
    .insertInto("tokens")
    .values({ hash: sha256(token), person, expires_at: sql`clock_timestamp() + ${ttlMs} * interval '1 millisecond'` })
    .returning("expires_at")
    .executeTakeFirstOrThrow();
  return { token: new Secret(token), expiresAt: row.expires_at };
}

/** Whose token this is, or undefined when it is unknown or over. */
export async function personOfToken(
  store: Store,
  token: string,
): Promise<{ person: string; expiresAt: Date } | undefined> {
  if (!/^gkt_[\w-]{43}$/.test(token)) return undefined;
  const row = await store
    .selectFrom("tokens")
    .select(["person", "expires_at"])
    .where("hash", "=", sha256(token))
    .where("expires_at", ">", sql<Date>`clock_timestamp()`)
    .executeTakeFirst();
  return row === undefined ? undefined : { person: row.person, expiresAt: row.expires_at };
}

/** Ends one token. Absent is success. */
export async function revokeToken(store: Store, token: string): Promise<void> {
  await store.deleteFrom("tokens").where("hash", "=", sha256(token)).execute();
}

/** Deletes tokens that are over. */
export async function sweepTokens(store: Store): Promise<void> {
  await store
    .deleteFrom("tokens")
    .where("expires_at", "<=", sql<Date>`clock_timestamp()`)
    .execute();
}
