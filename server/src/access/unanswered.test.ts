import { sql } from "kysely";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { vote } from "./approve.ts";
import { endGrant } from "./close.ts";
import { extendGrant } from "./extend.ts";
import { sweepGrants } from "./sweep.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";
import { openUnanswered } from "./unanswered.ts";
import { waitingFor } from "./waiting.ts";

const AFTER_MS = 600_000;
const changes = {
  who: "{ oncall: payments }",
  approve: "{ need: 1, from: { group: leads }, within: 15m, unanswered: { after: 10m, then: open, for: 5m } }",
  time: "{ max: 30m, extend: 2x10m }",
  notify: "[pagerduty:duty]",
};

let rig: TestAccess;
beforeAll(async () => {
  rig = await startTestAccess(inject("pg18"), {
    ...book("siren", changes),
    ...book("limited", { ...changes, limit: "{ uses: 1, per: 7d }" }),
    ...book("open", { time: "{ max: 30m, idle: 1m }" }),
    ...book("patient", { ...changes, approve: "{ need: 1, from: { group: leads } }" }),
  });
});
afterAll(() => rig[Symbol.asyncDispose]());

/** A request that waited for so long, after a page that was delivered or not. */
async function waited(playbook: string, { ms = AFTER_MS + 1_000, paged = true } = {}): Promise<string> {
  const id = await rig.break(playbook);
  if (paged) await rig.delivered(id);
  await rig.age(id, ms);
  return id;
}

const state = async (id: string): Promise<string> => (await rig.grant(id)).state;

async function end(id: string): Promise<void> {
  await endGrant(rig.access, "ann", await rig.grant(id), "done");
}

test("what nobody answered opens after a page that was delivered: shorter, loudly, once, and the log says that nobody did", async () => {
  const id = await waited("siren");
  expect(await waitingFor(rig.access, await rig.grant(id))).toMatchObject({ paged: true, missing: 1 });
  await Promise.all([openUnanswered(rig.access), openUnanswered(rig.second()), openUnanswered(rig.access)]);
  const grant = await rig.until(id, "active");
  expect(grant).toMatchObject({ opened_unanswered: true, duration_ms: 300_000 });
  expect((grant.ends_at?.getTime() ?? 0) - (grant.approved_at?.getTime() ?? 0)).toBe(300_000);
  const approved = (await rig.entries(id)).filter(({ type }) => type === "grant.approved");
  expect(approved).toMatchObject([{ actor: "glasskey", data: { unanswered: true, forMs: 300_000 } }]);
  const told = await rig.notices(id);
  expect(told.map(({ event }) => event)).toEqual(["approval_wanted", "opened_unanswered"]);
  expect(told[1]).toMatchObject({ channels: ["pagerduty:duty"], deciders: ["amy", "bob", "cas"] });
  expect(told[1]?.text).toContain("for 5m without approval");
  expect(await rig.store.selectFrom("leases").select("id").where("grant_id", "=", id).execute()).toHaveLength(1);
  await end(id);
});

test("a shorter request stays as short as it was asked for", async () => {
  const id = await rig.break("siren", { forMs: 60_000 });
  await rig.delivered(id);
  await rig.age(id, AFTER_MS + 1_000);
  await openUnanswered(rig.access);
  expect(await rig.until(id, "active")).toMatchObject({ duration_ms: 60_000 });
  await end(id);
});

test("too early, without a delivered page, or where the playbook does not opt in, nothing opens by itself", async () => {
  const early = await waited("siren", { ms: AFTER_MS - 60_000 });
  const silent = await waited("siren", { paged: false });
  const patient = await waited("patient");
  // A notice of another event, or on a channel that wakes nobody, is no call.
  await rig.store
    .updateTable("notices")
    .set({ delivered_at: sql`clock_timestamp()` })
    .where("grant_id", "=", silent)
    .execute();
  await rig.store
    .updateTable("notices")
    .set({ page: true, event: "extension_wanted" })
    .where("grant_id", "=", silent)
    .execute();
  const asked = rig.evidence.asked;
  await openUnanswered(rig.access);
  expect([await state(early), await state(silent), await state(patient)]).toEqual(["pending", "pending", "pending"]);
  expect(rig.evidence.asked).toBe(asked); // and no source was bothered
  for (const id of [early, silent, patient]) await end(id);
});

test("the wait begins when somebody was called: a pager that comes back opens nothing that moment", async () => {
  const id = await waited("siren", { paged: false });
  await rig.delivered(id);
  await openUnanswered(rig.access);
  expect(await state(id)).toBe("pending");
  await rig.age(id, AFTER_MS + 1_000);
  await openUnanswered(rig.access);
  await rig.until(id, "active");
  await end(id);
});

test("it never opens after the deadline, after a no, or once it was withdrawn", async () => {
  const late = await waited("siren");
  await rig.store
    .updateTable("grants")
    .set({ decide_by: sql`clock_timestamp()` })
    .where("id", "=", late)
    .execute();
  const refused = await waited("siren");
  await vote(rig.access, "bob", refused, "deny");
  const withdrawn = await waited("siren");
  await end(withdrawn);
  // A no that is on the books, however it came there, is a no.
  const marked = await waited("siren");
  await rig.store.insertInto("approvals").values({ grant_id: marked, person: "cas", verdict: "deny" }).execute();
  await openUnanswered(rig.access);
  expect([await state(late), await state(refused), await state(withdrawn), await state(marked)]).toEqual([
    ...["pending", "denied", "withdrawn", "pending"],
  ]);
  await sweepGrants(rig.access);
  expect(await state(late)).toBe("timed_out");
  await end(marked);
});

test("a source that hangs holds up this request alone, and nothing that another sweep does", async () => {
  const [slow, late] = [await waited("siren"), await rig.break("patient")];
  await rig.age(late, 3_600_000);
  await rig.store
    .updateTable("grants")
    .set({ decide_by: sql`clock_timestamp()` })
    .where("id", "=", late)
    .execute();
  const held = Promise.withResolvers<void>();
  rig.evidence.during = () => held.promise;
  const opening = openUnanswered(rig.access);
  await sweepGrants(rig.access); // would wait for ever
  expect([await state(slow), await state(late)]).toEqual(["pending", "timed_out"]);
  rig.evidence.during = () => {};
  held.resolve();
  await opening;
  await rig.until(slow, "active");
  await end(slow);
});

test("a request that cannot be timed out keeps no other from its end, and a pass that fails no other pass", async () => {
  const [broken, late] = [await rig.break("patient"), await rig.break("patient")];
  const due = { decide_by: sql<Date>`clock_timestamp()` };
  await rig.store.updateTable("grants").set(due).where("id", "in", [broken, late]).execute();
  const damaged = { hash: "damaged", playbook: "x", content: "null" };
  await rig.store.insertInto("playbook_versions").values(damaged).execute();
  await rig.store.updateTable("grants").set({ playbook_hash: "damaged" }).where("id", "=", broken).execute();
  const failing = {
    ...rig.access,
    cutter: () => {
      throw new Error("the data plane is gone");
    },
  };
  const idle = await rig.break("open");
  await rig.until(idle, "active");
  await rig.store
    .updateTable("grants")
    .set({ active_at: sql`clock_timestamp() - interval '1 hour'` })
    .where("id", "=", idle)
    .execute();
  await rig.store
    .updateTable("reviews")
    .set({ due_at: sql`clock_timestamp()` })
    .where("grant_id", "=", idle)
    .execute();
  await expect(sweepGrants(failing)).rejects.toThrow("the data plane is gone");
  expect([await state(broken), await state(late)]).toEqual(["pending", "timed_out"]);
  expect(rig.warnings.join()).toContain(broken);
  expect(await rig.types(idle)).toContain("review.overdue"); // a later pass than the one that failed
  await end(idle);
  await rig.store.deleteFrom("notices").where("grant_id", "=", broken).execute();
  await rig.store.deleteFrom("grants").where("id", "=", broken).execute();
});

test("what is unknown, or false, by now never opens without a human, whatever was true at the request", async () => {
  const id = await waited("siren");
  rig.evidence.down = true;
  await openUnanswered(rig.access);
  expect(await state(id)).toBe("pending");
  rig.evidence.down = false;
  rig.evidence.oncall = { payments: ["pat"] };
  await openUnanswered(rig.access);
  expect(await state(id)).toBe("pending");
  rig.evidence.oncall = { payments: ["ann"] };
  await openUnanswered(rig.access);
  expect((await rig.until(id, "active")).opened_unanswered).toBe(true);
  await end(id);
});

test("a request with a fact that nobody knows is not told that it opens by itself", async () => {
  rig.evidence.down = true;
  const dark = await rig.break("siren");
  rig.evidence.down = false;
  expect((await waitingFor(rig.access, await rig.grant(dark)))?.unansweredAt).toBeUndefined();
  await end(dark);
  const light = await rig.break("siren");
  expect((await waitingFor(rig.access, await rig.grant(light)))?.unansweredAt).toBeInstanceOf(Date);
  await end(light);
});

test("a playbook that has become a quorum never goes unanswered", async () => {
  const first = await rig.break("limited");
  await vote(rig.access, "bob", first, "approve");
  await rig.until(first, "active");
  await end(first);
  const id = await waited("limited");
  expect((await waitingFor(rig.access, await rig.grant(id)))?.unansweredAt).toBeUndefined();
  await openUnanswered(rig.access);
  expect(await state(id)).toBe("pending");
  await end(id);
});

test("a playbook that changed while it waited does not open by itself", async () => {
  const id = await waited("siren");
  await rig.policy(book("siren", { ...changes, scope: "{ role: superuser }" }));
  await openUnanswered(rig.access);
  expect(await state(id)).toBe("pending");
  await rig.policy({});
  await end(id);
});

test("a no at the same moment wins or loses cleanly: denied and nothing opened, or open and the no refused", async () => {
  // Between the sweeper's look and its transaction, while the sources are asked.
  const between = await waited("siren");
  rig.evidence.during = async () => {
    rig.evidence.during = () => {};
    expect(await vote(rig.access, "bob", between, "deny")).toEqual({ decided: true });
  };
  await openUnanswered(rig.access);
  expect(await rig.types(between)).toEqual(["grant.requested", "approval.denied", "grant.denied"]);
  // After it.
  const opened = await waited("siren");
  await openUnanswered(rig.access);
  await expect(vote(rig.access, "bob", opened, "deny")).rejects.toMatchObject({ code: "conflict" });
  await end(opened);
  // And as it comes.
  for (let round = 0; round < 12; round += 1) {
    const id = await waited("siren");
    const opening = openUnanswered(rig.access);
    for (let steps = 0; steps < round; steps += 1) await new Promise((done) => setImmediate(done));
    const denial = vote(rig.access, "bob", id, "deny").then(
      () => true,
      () => false,
    );
    const [said] = await Promise.all([denial, opening]);
    const settled = await rig.until(id, "denied", "active");
    expect(settled.state).toBe(said ? "denied" : "active");
    const types = await rig.types(id);
    expect(types.includes("approval.denied")).toBe(said);
    expect(types.includes("grant.approved")).toBe(!said);
    expect(types.includes("lease.planned")).toBe(!said);
    if (settled.state === "active") await end(id);
  }
});

test("what opened without an answer is never extended without one", async () => {
  const id = await waited("siren");
  await openUnanswered(rig.access);
  const before = await rig.until(id, "active");
  expect(await extendGrant(rig.access, "ann", id)).toEqual({ extended: false });
  await openUnanswered(rig.access);
  await sweepGrants(rig.access);
  expect((await rig.grant(id)).ends_at).toEqual(before.ends_at);
  expect(await vote(rig.access, "bob", id, "approve")).toEqual({ decided: true });
  expect((await rig.grant(id)).ends_at?.getTime()).toBe((before.ends_at?.getTime() ?? 0) + 600_000);
  await end(id);
});
