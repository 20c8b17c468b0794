import { sql, type Selectable } from "kysely";
import type { Store } from "../store/database.ts";
import type { ArchivesTable } from "../store/tables-archive.ts";

export type Cursor = Selectable<ArchivesTable>;

/** Longer than one step of a copy may take: a put with all its attempts, and reading back. */
const CLAIM_MS = 10 * 60_000;
const PAUSES_MS = [2_000, 5_000, 15_000, 60_000, 300_000] as const;

/** How far one place is, in the store: one process at a time moves it, and a dead one's claim runs out. */
export interface Cursors {
  /** Makes the row when there is none. */
  read(): Promise<Cursor>;
  /** Takes the place for this process. Undefined while another one has it, or until the time to try again. */
  claim(evenIfResting: boolean): Promise<Cursor | undefined>;
  /** Writes progress and holds the claim on. @returns whether it is still this process's. */
  advance(
    trx: Pick<Store, "updateTable">,
    progress: Partial<Pick<Cursor, "size" | "next_index" | "witnessed">> & { dated?: boolean },
  ): Promise<boolean>;
  /** Gives the place back in the middle of work, and leaves everything else as it is. */
  letGo(): Promise<void>;
  /** Gives the place back after good work. */
  release(): Promise<void>;
  /** Gives it back after bad work, with a pause before anybody tries again. */
  fail(why: string, refused: boolean): Promise<void>;
}

export function createCursors(store: Store, place: string, node: string): Cursors {
  const until = sql<Date>`clock_timestamp() + ${CLAIM_MS} * interval '1 millisecond'`;
  const row = async (): Promise<Cursor | undefined> =>
    store.selectFrom("archives").selectAll().where("place", "=", place).executeTakeFirst();
  return {
    async read() {
      await store
        .insertInto("archives")
        .values({ place, claimed_by: null, last_error: null })
        .onConflict((conflict) => conflict.doNothing())
        .execute();
      const found = await row();
      if (found === undefined) throw new Error(`no row for ${place}`);
      return found;
    },

    async claim(evenIfResting) {
      return store
        .updateTable("archives")
        .set({ claimed_by: node, claimed_until: until })
        .where("place", "in", (eb) => {
          const free = eb
            .selectFrom("archives")
            .select("place")
            .where("place", "=", place)
            .where((or) =>
              or.or([
                or("claimed_until", "is", null),
                or("claimed_until", "<", sql<Date>`clock_timestamp()`),
                or("claimed_by", "=", node),
              ]),
            )
            .forUpdate()
            .skipLocked();
          if (evenIfResting) return free;
          return free.where((or) =>
            or.or([or("retry_at", "is", null), or("retry_at", "<=", sql<Date>`clock_timestamp()`)]),
          );
        })
        .returningAll()
        .executeTakeFirst();
    },

    async advance(trx, { dated = false, ...progress }) {
      const moved = await trx
        .updateTable("archives")
        .set({ ...progress, ...(dated ? { dated_at: sql<Date>`clock_timestamp()` } : {}), claimed_until: until })
        .where("place", "=", place)
        .where("claimed_by", "=", node)
        .returning("place")
        .executeTakeFirst();
      return moved !== undefined;
    },

    async letGo() {
      await store
        .updateTable("archives")
        .set({ claimed_by: null, claimed_until: null })
        .where("place", "=", place)
        .where("claimed_by", "=", node)
        .execute();
    },

    async release() {
      await store
        .updateTable("archives")
        .set({
          claimed_by: null,
          claimed_until: null,
          failures: 0,
          failed_at: null,
          retry_at: null,
          last_error: null,
          refused: false,
        })
        .where("place", "=", place)
        .where("claimed_by", "=", node)
        .execute();
    },

    async fail(why, refused) {
      const failures = (await row())?.failures ?? 0;
      const pauseMs = PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)] ?? 0;
      await store
        .updateTable("archives")
        .set({
          ...{ claimed_by: null, claimed_until: null, failures: failures + 1, last_error: why.slice(0, 500), refused },
          failed_at: sql<Date>`clock_timestamp()`,
          retry_at: sql<Date>`clock_timestamp() + ${pauseMs} * interval '1 millisecond'`,
        })
        .where("place", "=", place)
        .where("claimed_by", "=", node)
        .execute();
    },
  };
}
