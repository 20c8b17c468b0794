import { sql } from "kysely";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { vote } from "./approve.ts";
import { endGrant } from "./close.ts";
import { extendGrant } from "./extend.ts";
import { sweepGrants } from "./sweep.ts";
import { book, startTestAccess, TEAM, type TestAccess } from "./testing/access.ts";
import { waitingFor } from "./waiting.ts";

const CROWD = 100;

const BOOKS = {
  ...book("consent", { approve: "{ need: 1, from: { group: leads } }", time: "{ max: 30m, extend: 2x10m }" }),
  ...book("two", { approve: "{ need: 2, from: { group: [leads, seniors] } }" }),
  ...book("sides", { approve: "{ need: 2, from: [{ group: leads }, { group: seniors }] }" }),
  ...book("short", { approve: "{ need: 1, from: { group: leads }, within: 1s }" }),
  ...book("crowd", { approve: "{ need: 3, from: { group: crowd } }" }),
  ...book("free", { approve: "{ need: 0, from: { group: leads } }" }),
};

const people = (): string =>
  `${String(TEAM["people.yaml"])}${Array.from({ length: 2 * CROWD }, (_, n) => `- { name: p${n}, roles: [approver], groups: [crowd] }\n`).join("")}`;

let rig: TestAccess;
beforeAll(async () => {
  rig = await startTestAccess(inject("pg18"), { ...BOOKS, "people.yaml": people() });
});
afterAll(() => rig[Symbol.asyncDispose]());

const yes = (person: string, grant: string) => vote(rig.access, person, grant, "approve");
const no = (person: string, grant: string) => vote(rig.access, person, grant, "deny");

async function close(grant: string): Promise<void> {
  await endGrant(rig.access, "ann", await rig.grant(grant), "ended by ann");
}

test("lesson 7: nobody approves their own request: not as an admin and security officer, not under an alias, not with many hats", async () => {
  const grant = await rig.break("consent", { person: "amy.admin" });
  expect((await rig.grant(grant)).requester).toBe("amy");
  for (const id of ["amy", "amy.admin", "AMY"]) {
    await expect(yes(id, grant), id).rejects.toMatchObject({ code: "policy_denied" });
  }
  // Nor does a yes that got into the table by another way count.
  await rig.store
    .insertInto("approvals")
    .values({ grant_id: grant, person: "amy.admin", verdict: "approve" })
    .execute();
  const waiting = await waitingFor(rig.access, await rig.grant(grant));
  expect(waiting).toMatchObject({ need: 1, missing: 1 });
  const [call] = await rig.notices(grant);
  expect(call).toMatchObject({ event: "approval_wanted", deciders: ["bob", "cas"] });
  expect((await rig.grant(grant)).state).toBe("pending");
  await no("bob", grant);
});

test("lesson 7: who has no role approver, is in no group that may, or does not exist, has no vote; nor has an empty name", async () => {
  const grant = await rig.break("consent");
  for (const person of ["dot", "sam", "ida", "zoe", "nobody", ""]) {
    await expect(yes(person, grant), person).rejects.toMatchObject({ code: "policy_denied" });
  }
  expect(await rig.types(grant)).toEqual(["grant.requested"]);
  await no("bob", grant);
});

test("lesson 8: a person in two groups is one approver, and says yes once", async () => {
  const grant = await rig.break("two");
  expect(await yes("bob", grant)).toEqual({ decided: false });
  await expect(yes("bob", grant)).rejects.toMatchObject({ code: "policy_denied" });
  expect((await rig.grant(grant)).state).toBe("pending");
  expect(await yes("dot", grant)).toEqual({ decided: true });
  await rig.until(grant, "active");
  await close(grant);
});

test("lesson 8: more yeses than needed, at the same moment, do not overshoot: the grant opens, once", async () => {
  const grant = await rig.break("crowd");
  const votes = await Promise.allSettled(Array.from({ length: 20 }, (_, n) => yes(`p${n}`, grant)));
  expect(votes.filter((vote) => vote.status === "fulfilled")).toHaveLength(3);
  await rig.until(grant, "active");
  const counted = await rig.store.selectFrom("approvals").select("person").where("grant_id", "=", grant).execute();
  expect(counted).toHaveLength(3);
  await close(grant);
});

test("several sides must agree, each by a person of its own: who belongs to both speaks for one", async () => {
  const grant = await rig.break("sides");
  await yes("bob", grant); // of both
  expect(await waitingFor(rig.access, await rig.grant(grant))).toMatchObject({ need: 2, missing: 1 });
  await yes("cas", grant); // leads: then bob speaks for the seniors
  await rig.until(grant, "active");
  await close(grant);
  const other = await rig.break("sides");
  await yes("cas", other);
  const waiting = await waitingFor(rig.access, await rig.grant(other));
  expect(waiting?.sidesMissing).toHaveLength(1);
  expect(waiting?.sidesMissing[0]).toContain("seniors");
  await no("bob", other);
});

test("200 approvals and denials of one grant at the same moment have exactly one outcome, and at most one lease", async () => {
  for (const round of [0, 1]) {
    const grant = await rig.break("crowd");
    const minted = rig.target.minted.length;
    const votes = await Promise.allSettled(
      Array.from({ length: 2 * CROWD }, (_, n) =>
        n % 100 < (round === 0 ? 99 : 50) ? yes(`p${n}`, grant) : no(`p${n}`, grant),
      ),
    );
    const settled = await rig.until(grant, "active", "denied");
    const types = await rig.types(grant);
    const outcomes = types.filter((type) => ["grant.approved", "grant.denied", "grant.failed"].includes(type));
    expect(outcomes).toEqual([settled.state === "active" ? "grant.approved" : "grant.denied"]);
    const given = types.filter((type) => type === "approval.given").length;
    const denied = types.filter((type) => type === "approval.denied").length;
    expect(votes.filter((vote) => vote.status === "fulfilled")).toHaveLength(given + denied);
    // A yes counts up to the one that opens it; a no is the last vote.
    if (settled.state === "active") expect({ given, denied }).toEqual({ given: 3, denied: 0 });
    else expect({ few: given < 3, denied }).toEqual({ few: true, denied: 1 });
    const leases = await rig.store.selectFrom("leases").select("id").where("grant_id", "=", grant).execute();
    expect(leases).toHaveLength(settled.state === "active" ? 1 : 0);
    expect(rig.target.minted.length - minted).toBe(leases.length);
    if (settled.state === "active") await close(grant);
  }
});

test("lesson 9: a late yes revives nothing: not what timed out, not what was withdrawn, not even before the sweeper came", async () => {
  const late = await rig.break("short");
  await new Promise((done) => setTimeout(done, 1_100));
  await expect(yes("bob", late)).rejects.toMatchObject({ code: "conflict" }); // the sweeper has not run
  expect((await rig.grant(late)).state).toBe("pending");
  await Promise.all([sweepGrants(rig.access), sweepGrants(rig.second())]);
  expect((await rig.grant(late)).state).toBe("timed_out");
  expect((await rig.types(late)).filter((type) => type === "grant.timed_out")).toHaveLength(1);
  await expect(yes("bob", late)).rejects.toMatchObject({ code: "conflict" });
  expect((await rig.notices(late)).map(({ event }) => event)).toEqual(["approval_wanted", "timed_out"]);

  const gone = await rig.break("short");
  await close(gone);
  await expect(yes("bob", gone)).rejects.toMatchObject({ code: "conflict" });
  await new Promise((done) => setTimeout(done, 1_100));
  await sweepGrants(rig.access);
  expect((await rig.grant(gone)).state).toBe("withdrawn");
});

test("lesson 10: the state, its entry in the log and the notice are one transaction: when one fails, none is there, and nothing is minted", async () => {
  const grant = await rig.break("consent");
  const minted = rig.target.minted.length;
  // A yes whose log entry cannot be written.
  await sql`create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$`.execute(
    rig.store,
  );
  await sql`create trigger refuse before insert on log_queue for each row execute function refuse()`.execute(rig.store);
  await expect(yes("bob", grant)).rejects.toThrow("no");
  await sql`drop trigger refuse on log_queue`.execute(rig.store);
  expect((await rig.grant(grant)).state).toBe("pending");
  expect(await rig.store.selectFrom("approvals").selectAll().where("grant_id", "=", grant).execute()).toEqual([]);
  // A notice that cannot be written.
  await sql`create trigger refuse before insert on notices for each row execute function refuse()`.execute(rig.store);
  await expect(no("bob", grant)).rejects.toThrow("no");
  await expect(rig.break("consent")).rejects.toThrow("no");
  await sql`drop trigger refuse on notices`.execute(rig.store);
  expect((await rig.grant(grant)).state).toBe("pending");
  expect(rig.target.minted).toHaveLength(minted);
  await yes("bob", grant);
  await rig.until(grant, "active");
  await close(grant);
});

test("lesson 17: an approver who left the group, or was disabled, between the click and the commit has no vote", async () => {
  const without = people().replace(
    "name: bob, roles: [approver], groups: [leads, seniors]",
    "name: bob, roles: [approver], groups: [seniors]",
  );
  for (const changed of [without, people().replace("name: bob,", "name: bob, enabled: false,")]) {
    const grant = await rig.break("consent");
    // The click is on its way, the sources are being asked, and the policy changes under it.
    rig.evidence.during = async () => {
      rig.evidence.during = () => {};
      await rig.policy({ "people.yaml": changed });
    };
    await expect(yes("bob", grant)).rejects.toMatchObject({ code: "policy_denied" });
    expect((await rig.grant(grant)).state).toBe("pending");
    await rig.policy({});
    await no("bob", grant);
  }
});

test("lesson 17: the yes of somebody who may not approve any more does not count at the opening; the grant waits for one more", async () => {
  const grant = await rig.break("two");
  await yes("bob", grant);
  const without = people().replace("name: bob,", "name: bob, enabled: false,");
  await rig.policy({ "people.yaml": without });
  expect(await yes("cas", grant)).toEqual({ decided: false });
  expect((await rig.grant(grant)).state).toBe("pending");
  expect(await waitingFor(rig.access, await rig.grant(grant))).toMatchObject({ need: 2, missing: 1 });
  expect(await yes("dot", grant)).toEqual({ decided: true });
  await rig.until(grant, "active");
  await rig.policy({});
  await close(grant);
});

test("a requester who lost what made them eligible does not get in by an approval that comes later", async () => {
  const grant = await rig.break("consent");
  await rig.policy({
    "people.yaml": people().replace(
      "name: ann, roles: [requester], groups: [payments]",
      "name: ann, roles: [requester], groups: [office]",
    ),
  });
  expect(await yes("bob", grant)).toEqual({ decided: true });
  expect(await rig.grant(grant)).toMatchObject({ state: "failed", end_cause: "not_eligible" });
  // Whoever was called is told that there is nothing to do any more.
  expect((await rig.notices(grant)).map(({ event }) => event)).toEqual(["approval_wanted", "failed"]);
  expect(await rig.store.selectFrom("leases").select("id").where("grant_id", "=", grant).execute()).toEqual([]);
  await rig.policy({});
});

test("a playbook that changed after the request is not what anybody agrees to", async () => {
  const grant = await rig.break("consent");
  await rig.policy(book("consent", { approve: "{ need: 1, from: { group: leads } }", scope: "{ role: superuser }" }));
  await expect(yes("bob", grant)).rejects.toMatchObject({ code: "conflict" });
  expect((await rig.grant(grant)).state).toBe("pending");
  await rig.policy({});
  await no("bob", grant);
});

test("an extension is a decision of its own: nobody extends for themselves, and a no leaves the end where it was", async () => {
  const grant = await rig.break("consent");
  await yes("bob", grant);
  const before = await rig.until(grant, "active");
  expect(await extendGrant(rig.access, "ann", grant)).toEqual({ extended: false });
  expect(await waitingFor(rig.access, await rig.grant(grant))).toMatchObject({ need: 1, missing: 1 });
  await expect(yes("ann", grant)).rejects.toMatchObject({ code: "policy_denied" });
  await no("cas", grant);
  expect((await rig.grant(grant)).ends_at).toEqual(before.ends_at);
  await expect(yes("bob", grant)).rejects.toMatchObject({ code: "conflict" });
  expect(await extendGrant(rig.access, "ann", grant)).toEqual({ extended: false });
  expect(await yes("bob", grant)).toEqual({ decided: true });
  expect((await rig.grant(grant)).ends_at?.getTime()).toBe((before.ends_at?.getTime() ?? 0) + 600_000);
  const events = (await rig.notices(grant)).map(({ event }) => event);
  expect(events).toEqual([
    ...["approval_wanted", "opened", "extension_wanted", "denied", "extension_wanted", "extended"],
  ]);
  await close(grant);
});

test("a reason that does not open any more, changed or under a lost key, keeps no grant from its end", async () => {
  const grant = await rig.break("consent");
  await rig.store
    .updateTable("grants")
    .set({ why: Buffer.alloc(80) })
    .where("id", "=", grant)
    .execute();
  await yes("bob", grant);
  await rig.until(grant, "active");
  await close(grant);
  expect((await rig.until(grant, "closed")).proof).not.toBeNull();
  expect((await rig.notices(grant)).at(-1)).not.toHaveProperty("why");
});

test("why is in its own column, encrypted: no row, no entry of the log and no notice in the store has it in clear", async () => {
  const secret = "the-cart-of-Mrs-Miller";
  const grant = await rig.break("consent", { why: `${secret} is lost` });
  await yes("bob", grant);
  await rig.until(grant, "active");
  await close(grant);
  expect((await rig.notices(grant))[0]?.why).toContain(secret);
  const { rows: tables } = await sql<{ name: string }>`select table_name as name from information_schema.tables
    where table_schema = 'public' and table_type = 'BASE TABLE'`.execute(rig.store);
  expect(tables.length).toBeGreaterThan(10);
  for (const { name } of tables) {
    const { rows } = await sql<{ n: number }>`select count(*)::int as n from ${sql.table(name)} t
      where position(${secret} in t::text) > 0 or position(encode(${Buffer.from(secret)}, 'hex') in t::text) > 0`.execute(
      rig.store,
    );
    expect(rows[0]?.n, name).toBe(0);
  }
  for (const why of ["", "  ", "ab", "x".repeat(2_001)]) {
    await expect(rig.break("free", { why })).rejects.toMatchObject({ code: "usage" });
  }
});
