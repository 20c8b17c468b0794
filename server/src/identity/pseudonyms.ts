import { newId } from "../core/ids.ts";
import type { Store, Tx } from "../store/database.ts";

/** The id that stands for this person in the log; made at first sight. */
export async function pseudonymOf(db: Store | Tx, person: string): Promise<string> {
  const known = await db.selectFrom("pseudonyms").select("id").where("person", "=", person).executeTakeFirst();
  if (known !== undefined) return known.id;
  await db
    .insertInto("pseudonyms")
    .values({ id: newId("person"), person })
    .onConflict((c) => c.column("person").doNothing())
    .execute();
  const row = await db.selectFrom("pseudonyms").select("id").where("person", "=", person).executeTakeFirstOrThrow();
  return row.id;
}

/** Names behind the given ids, where they are still known. */
export async function namesOf(db: Store, ids: readonly string[]): Promise<Record<string, string>> {
  if (ids.length === 0) return {};
  const rows = await db.selectFrom("pseudonyms").selectAll().where("id", "in", ids).execute();
  return Object.fromEntries(rows.map((row) => [row.id, row.person]));
}
