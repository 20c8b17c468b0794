import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { newId } from "../core/ids.ts";
import { endGrant } from "./close.ts";
import { sweepOrphans } from "./sweep.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";

let house: TestAccess;
beforeAll(async () => {
  house = await startTestAccess(inject("pg18"), book("repair"));
});
afterAll(() => house[Symbol.asyncDispose]());

const alarms = () => house.store.selectFrom("alarms").select("key").where("cleared_at", "is", null).execute();
const leaseOf = (grant: string) =>
  house.store.selectFrom("leases").selectAll().where("grant_id", "=", grant).executeTakeFirstOrThrow();

async function over(): Promise<{ grant: string; lease: string }> {
  const grant = await house.break("repair");
  await house.until(grant, "active");
  await endGrant(house.access, "ann", await house.grant(grant), "done");
  await house.until(grant, "closed");
  const { id } = await leaseOf(grant);
  const long = new Date(Date.now() - 600_000);
  await house.store.updateTable("leases").set({ dead_at: long }).where("id", "=", id).execute();
  return { grant, lease: id };
}

test("something with the name of a lease that was proved dead is removed again, and its alarm is over then", async () => {
  const { grant, lease } = await over();
  const { proof } = await house.grant(grant);
  house.target.live.add(lease); // on a host anybody can give a process of his own such a mark
  await sweepOrphans(house.access);
  await expect.poll(async () => (await leaseOf(grant)).state, { timeout: 20_000 }).toBe("dead");
  expect(house.target.live).toEqual(new Set());
  await expect.poll(alarms, { timeout: 20_000 }).toEqual([]);
  expect(await house.grant(grant)).toMatchObject({ state: "closed", proof });
});

test("it is removed where it was found, also when the lease was one of another target", async () => {
  const { grant, lease } = await over();
  await house.store.updateTable("leases").set({ target: "elsewhere" }).where("id", "=", lease).execute();
  const before = (await leaseOf(grant)).plan;
  house.target.live.add(lease);
  await sweepOrphans(house.access);
  await expect.poll(async () => (await leaseOf(grant)).state, { timeout: 20_000 }).toBe("dead");
  const after = await leaseOf(grant);
  expect(after.target).toBe("orders");
  expect(after.plan).not.toEqual(before);
});

test("many names made up on one target hold up neither the others nor the people on call: some at a time", async () => {
  const made = Array.from({ length: 50 }, () => newId("lease"));
  for (const lease of made) house.target.live.add(lease);
  const count = async (): Promise<number> => (await house.notices()).filter(({ event }) => event === "alarm").length;
  const before = await count();
  await sweepOrphans(house.access);
  expect((await count()) - before).toBeLessThanOrEqual(20);
  for (let n = 0; n < 10 && house.target.live.size > 0; n += 1) await sweepOrphans(house.access);
  expect(house.target.live).toEqual(new Set());
});
