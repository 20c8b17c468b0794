import { sql } from "kysely";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { Access, SessionCutter } from "./access.ts";
import { beginClosing, cutSessions, endGrant } from "./close.ts";
import { extendGrant } from "./extend.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";

let house: TestAccess;
beforeAll(async () => {
  house = await startTestAccess(inject("pg18"), book("longer", { time: "{ max: 30m, extend: 2x10m }" }));
});
afterAll(() => house[Symbol.asyncDispose]());

async function active(): Promise<string> {
  const grant = await house.break("longer");
  await house.until(grant, "active");
  return grant;
}

const leaseOf = (grant: string) =>
  house.store.selectFrom("leases").selectAll().where("grant_id", "=", grant).executeTakeFirstOrThrow();

/** Whoever had the lease in hand gave it back; else its claim would keep everybody from it for a minute and a half. */
async function closesAtOnce(grant: string): Promise<void> {
  const closed = await house.until(grant, "closed");
  const lease = await leaseOf(grant);
  expect(lease).toMatchObject({ state: "dead", claimed_by: null, attempts: 0 });
  expect((closed.closed_at?.getTime() ?? 0) - (closed.closing_at?.getTime() ?? 0)).toBeLessThan(60_000);
}

test("a grant that is ended while its extension is on the way to the target is closed at once", async () => {
  const grant = await active();
  const [asked, answer] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  house.target.extending = () => {
    asked.resolve();
    return answer.promise;
  };
  const extended = extendGrant(house.access, "ann", grant);
  await asked.promise;
  const ended = endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
  await house.until(grant, "closing");
  answer.resolve();
  house.target.extending = () => {};
  expect(await extended).toEqual({ extended: true });
  await ended;
  await closesAtOnce(grant);
});

test("a grant that somebody ends at the very moment at which it expires is closed at once", async () => {
  const grant = await active();
  await house.store.transaction().execute(async (tx) => {
    await tx.selectFrom("grants").select("id").where("id", "=", grant).forUpdate().execute();
    const past = { ends_at: sql<Date>`clock_timestamp() - interval '1 second'` };
    await house.store
      .updateTable("leases")
      .set({ ...past, next_at: past.ends_at })
      .where("grant_id", "=", grant)
      .execute();
    while ((await leaseOf(grant)).claimed_by === null) await sleep(10); // it wants to expire it, and waits for the row
    await tx.updateTable("grants").set(past).where("id", "=", grant).execute();
    await beginClosing(house.access, tx, { grant, actor: "glasskey", cause: "ended", text: "ended by ann" });
  });
  await closesAtOnce(grant);
  expect(await house.grant(grant)).toMatchObject({ end_cause: "ended" });
});

test("a data plane that fails in the middle of a cut is said so, and takes nothing else with it", async () => {
  const warnings: string[] = [];
  const broken: Pick<SessionCutter, "cut"> = { cut: () => Promise.reject(new Error("the data plane is gone")) };
  const access = { cutter: () => broken, warn: (line: string) => warnings.push(line) } as unknown as Access;
  const reason = { code: "expired", text: "over" } as const;
  await expect(cutSessions(access, "gr_000000000000", reason)).resolves.toBe(0);
  expect(warnings).toEqual(["cutting the sessions of gr_000000000000: the data plane is gone"]);
});
