import { sql, type TransactionBuilder } from "kysely";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, inject, test, vi } from "vitest";
import { newId } from "../core/ids.ts";
import type { Database } from "../store/tables.ts";
import type { Tx } from "../store/database.ts";
import type { Access, CutReason } from "./access.ts";
import { raiseAlarm } from "./alarms.ts";
import { vote } from "./approve.ts";
import { beginClosing, endGrant } from "./close.ts";
import { closeDrifted } from "./drift.ts";
import { extendGrant } from "./extend.ts";
import { orphanAlarm } from "./lease-row.ts";
import { signReview, tellOverdue } from "./review.ts";
import { openSession, sessionClosed } from "./sessions.ts";
import { sweepGrants, sweepOrphans } from "./sweep.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";

// Two things that are each right alone, at the same moment. Locks in the store put them into the order that hurts.

let house: TestAccess;
beforeAll(async () => {
  house = await startTestAccess(inject("pg18"), {
    ...book("longer", { time: "{ max: 60m, extend: 2x10m }", review: "{ by: { group: leads }, within: 2d }" }),
    ...book("oncall", { who: "{ oncall: payments }", time: "{ max: 60m, extend: 3x5m }" }),
  });
});
afterAll(() => house[Symbol.asyncDispose]());

async function active(playbook = "longer"): Promise<string> {
  const grant = await house.break(playbook, { forMs: 600_000 });
  await house.until(grant, "active");
  return grant;
}

const leaseOf = (grant: string) =>
  house.store.selectFrom("leases").selectAll().where("grant_id", "=", grant).executeTakeFirstOrThrow();

const openAlarm = (key: string) =>
  house.store
    .selectFrom("alarms")
    .select("text")
    .where("key", "=", key)
    .where("cleared_at", "is", null)
    .executeTakeFirst();

async function until(holds: () => Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await holds()); tries += 1) {
    if (tries > 1_200) throw new Error("it never came to that");
    await sleep(25);
  }
}

/** Somebody waits in this store for what somebody else holds. */
const untilWaiting = () =>
  until(async () => {
    const { rows } = await sql`select from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock'`.execute(house.store);
    return rows.length > 0;
  });

/** Whoever raises an alarm stops there, between two statements, until what this returns is called. */
async function holdRaising(): Promise<() => Promise<void>> {
  await sql`create or replace function hold() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock_shared(77); return null; end $$`.execute(house.store);
  await sql`create or replace trigger hold after insert on alarms for each statement execute function hold()`.execute(
    house.store,
  );
  const [held, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const done = house.store.transaction().execute(async (tx) => {
    await sql`select pg_advisory_xact_lock(77)`.execute(tx);
    held.resolve();
    await go.promise;
  });
  await held.promise;
  return async () => {
    go.resolve();
    await done;
    await sql`drop trigger if exists hold on alarms`.execute(house.store);
  };
}

test("who ends a grant while its half-done opening is taken over gets no deadlock", async () => {
  const grant = await active();
  await house.store.updateTable("grants").set({ state: "opening", active_at: null }).where("id", "=", grant).execute();
  await house.store.transaction().execute(async (tx) => {
    await sql`set local deadlock_timeout = '20ms'`.execute(tx); // whoever waits last is the one that would be refused
    await tx.selectFrom("grants").select("id").where("id", "=", grant).forUpdate().execute();
    // As a process leaves it that dies in mid-mint.
    await house.store
      .updateTable("leases")
      .set({ state: "minting", next_at: sql<Date>`clock_timestamp()` })
      .where("grant_id", "=", grant)
      .execute();
    await untilWaiting();
    await beginClosing(house.access, tx, { grant, actor: "glasskey", cause: "killed", text: "killed" });
  });
  expect(await house.until(grant, "closed")).toMatchObject({ end_cause: "killed" });
});

test("an extension that another process decides while this one looks whether the time is over reaches the target", async () => {
  const grant = await active();
  const lease = (await leaseOf(grant)).id;
  const past = { ends_at: sql<Date>`clock_timestamp() - interval '1 second'` };
  await house.store.updateTable("grants").set(past).where("id", "=", grant).execute();
  await house.store.transaction().execute(async (tx) => {
    await tx.selectFrom("grants").select("id").where("id", "=", grant).forUpdate().execute();
    await house.store
      .updateTable("leases")
      .set({ ...past, next_at: past.ends_at })
      .where("id", "=", lease)
      .execute();
    await untilWaiting(); // it wants to expire it
    const later = { ends_at: sql<Date>`clock_timestamp() + interval '10 minutes'` };
    await tx.updateTable("grants").set(later).where("id", "=", grant).execute();
    await tx
      .updateTable("leases")
      .set({ ...later, extend_due: true, next_at: sql<Date>`clock_timestamp()` })
      .where("id", "=", lease)
      .execute();
  });
  await until(async () => !(await leaseOf(grant)).extend_due);
  expect(await leaseOf(grant)).toMatchObject({ state: "live", claimed_by: null });
  await endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
});

test("an extension that is stored is told as one, also when the open sessions cannot be told at that moment", async () => {
  const grant = await active();
  const silent: Access = {
    ...house.access,
    cutter: () => ({ ...house.access.cutter(), extend: () => Promise.reject(new Error("the data plane is silent")) }),
  };
  expect(await extendGrant(silent, "ann", grant)).toEqual({ extended: true });
  expect(house.warnings.at(-1)).toContain(`the open sessions of ${grant} keep their end: the data plane is silent`);
  await until(async () => !(await leaseOf(grant)).extend_due); // the target is told all the same
  await endGrant(house.access, "ann", await house.grant(grant), "done");
  await house.until(grant, "closed");
});

test("a policy that comes into force while an extension is being stored closes what is longer than it allows", async () => {
  const grant = await active();
  let extended: Promise<unknown> | undefined;
  await house.store.transaction().execute(async (tx) => {
    await tx.selectFrom("leases").select("id").where("grant_id", "=", grant).forUpdate().execute();
    extended = extendGrant(house.access, "ann", grant); // decided, and waits for the lease
    await untilWaiting();
    await house.policy(book("longer", { time: "{ max: 15m }", review: "{ by: { group: leads }, within: 2d }" }));
    await closeDrifted(house.access, house.access.policy()); // ten minutes are fine
    expect((await house.grant(grant)).state).toBe("active");
  });
  await extended;
  expect(await house.until(grant, "closed")).toMatchObject({ end_cause: "drift" });
  await house.policy({});
});

test("a pause after a failure is as long as the attempts since somebody asked again say", async () => {
  const grant = await active();
  const lease = (await leaseOf(grant)).id;
  const driver = house.access.kinds.get("fake")?.driver;
  if (driver === undefined) throw new Error("there is no such kind");
  const [asked, answer] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const fence = vi.spyOn(driver, "fence").mockImplementation(async () => {
    asked.resolve();
    await answer.promise;
    throw new Error("the target does not answer");
  });
  const ended = endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
  await asked.promise;
  await house.store.updateTable("leases").set({ attempts: 10 }).where("id", "=", lease).execute();
  await house.store.transaction().execute(async (tx) => {
    await tx.selectFrom("leases").select("id").where("id", "=", lease).forUpdate().execute();
    answer.resolve();
    await untilWaiting();
    // Its last session is over: the proof is asked for now.
    await tx
      .updateTable("leases")
      .set({ attempts: 0, next_at: sql<Date>`clock_timestamp()` })
      .where("id", "=", lease)
      .execute();
  });
  fence.mockRestore();
  await ended;
  await house.until(grant, "closed"); // and not in an hour
  expect((await leaseOf(grant)).state).toBe("dead");
});

test("the alarm of a late proof is over with the proof, also when another process gets it at that moment", async () => {
  const grant = await active();
  const lease = (await leaseOf(grant)).id;
  await house.store.updateTable("leases").set({ worst_case_revoke_ms: 0 }).where("id", "=", lease).execute();
  const other = house.second();
  const go = await holdRaising();
  house.target.failure = new Error("the target does not answer");
  const ended = endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
  await untilWaiting();
  house.target.failure = undefined;
  await other.kick(lease);
  await go();
  await ended;
  await house.until(grant, "closed");
  await until(async () => (await openAlarm(`lease ${lease}`)) === undefined);
  expect((await leaseOf(grant)).state).toBe("dead");
});

test("a yes to one extension never counts for a later one, also when the first needed nobody in the end", async () => {
  const grant = await active("oncall");
  house.evidence.down = true;
  expect(await extendGrant(house.access, "ann", grant)).toEqual({ extended: false });
  const first = (await house.grant(grant)).extension_round ?? 0;
  house.evidence.down = false;
  expect(await extendGrant(house.access, "ann", grant)).toEqual({ extended: true });
  house.evidence.down = true;
  expect(await extendGrant(house.access, "ann", grant)).toEqual({ extended: false });
  house.evidence.down = false;
  await expect(vote(house.access, "bob", grant, "approve", first)).rejects.toMatchObject({ code: "conflict" });
  const second = (await house.grant(grant)).extension_round ?? 0;
  expect(second).toBeGreaterThan(first);
  expect(await vote(house.access, "bob", grant, "approve", second)).toEqual({ decided: true });
  await endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
});

/** The store fails once, at the moment at which an alarm would be cleared. */
async function failClearingOnce(): Promise<void> {
  await sql`create or replace function fail_once() returns trigger language plpgsql as
    $$ begin if nextval('once') = 1 then raise exception 'the store is away'; end if; return new; end $$`.execute(
    house.store,
  );
  await sql`drop sequence if exists once`.execute(house.store);
  await sql`create sequence once`.execute(house.store);
  await sql`create or replace trigger fail_once before update on alarms for each row execute function fail_once()`.execute(
    house.store,
  );
}

test("a store that fails just after the proof leaves no alarm open", async () => {
  const grant = await active();
  const lease = (await leaseOf(grant)).id;
  await raiseAlarm(house.store, () => {}, `lease ${lease}`, "not proved gone");
  await failClearingOnce();
  await endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
  await until(async () => (await leaseOf(grant)).state === "dead");
  await until(async () => (await openAlarm(`lease ${lease}`)) === undefined);
  expect(await house.until(grant, "closed")).toMatchObject({ end_cause: "ended" });
  await sql`drop trigger fail_once on alarms`.execute(house.store);
});

test("a store that fails just after the signature leaves no review overdue that is signed", async () => {
  const grant = await active();
  await endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
  await house.until(grant, "closed");
  await house.age(grant, 3 * 86_400_000);
  await tellOverdue(house.access);
  expect(await openAlarm(`review ${grant}`)).toBeDefined();
  await failClearingOnce();
  const sign = () => signReview(house.access, "bob", grant, { verdict: "justified", note: "looked at it" });
  await expect(sign()).rejects.toThrow("the store is away");
  await sign(); // the signer does it again
  expect(await openAlarm(`review ${grant}`)).toBeUndefined();
  expect((await house.grant(grant)).state).toBe("reviewed");
  await sql`drop trigger fail_once on alarms`.execute(house.store);
});

/** Sessions, or one, cannot be marked as closed until what this returns is called. */
async function refuseClosing(session = ""): Promise<() => Promise<unknown>> {
  await sql`create or replace function refuse() returns trigger language plpgsql as
    $$ begin if tg_argv[0] in ('', old.id) then raise exception 'the store is away'; end if; return new; end $$`.execute(
    house.store,
  );
  await sql`create or replace trigger refuse before update on sessions
    for each row execute function refuse(${sql.lit(session)})`.execute(house.store);
  return () => sql`drop trigger refuse on sessions`.execute(house.store);
}

/** The same access, whose store commits the next transaction and then does not answer. */
function losingOneAnswer(access: Access): Access {
  let lost = false;
  const lose = (answers: TransactionBuilder<Database>): TransactionBuilder<Database> =>
    new Proxy(answers, {
      get: (builder, name) =>
        name === "execute"
          ? async (work: (tx: Tx) => Promise<unknown>) => {
              const answer = await builder.execute(work);
              if (lost) return answer;
              lost = true;
              throw Object.assign(new Error("Connection terminated unexpectedly"), { code: "08006" });
            }
          : Reflect.get(builder, name),
    });
  const store = new Proxy(access.store, {
    get(real, name) {
      if (name === "transaction") return () => lose(real.transaction());
      const member: unknown = Reflect.get(real, name, real);
      return typeof member === "function" ? (member.bind(real) as unknown) : member;
    },
  });
  return { ...access, store };
}

const openSessions = (grant: string) =>
  house.store
    .selectFrom("sessions")
    .select("id")
    .where("grant_id", "=", grant)
    .where("closed_at", "is", null)
    .execute();

test("a session that nobody got, because the store's answer to its beginning was lost, keeps no grant from its proof", async () => {
  const grant = await active();
  const access = losingOneAnswer(house.access);
  await expect(openSession(access, { user: grant, remoteAddress: "127.0.0.1", client: {} })).rejects.toMatchObject({
    code: "store_unavailable",
  });
  expect(await openSessions(grant)).toHaveLength(1);
  await sweepGrants(access);
  expect(await openSessions(grant)).toEqual([]);
  await endGrant(access, "ann", await house.grant(grant), "ended by ann");
  await house.until(grant, "closed");
});

test("a session for which nothing was issued, with the store away at that moment, is closed when the store is back", async () => {
  const grant = await active();
  const back = await refuseClosing();
  house.target.issueFailure = new Error("no credential");
  const request = { user: grant, remoteAddress: "127.0.0.1", client: {} };
  await expect(openSession(house.access, request)).rejects.toThrow("no credential");
  house.target.issueFailure = undefined;
  await expect(sweepGrants(house.access)).rejects.toThrow("the store is away");
  expect(await openSessions(grant)).toHaveLength(1);
  await back();
  await sweepGrants(house.access);
  expect(await openSessions(grant)).toEqual([]);
  await endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
  await house.until(grant, "closed");
});

test("a grant whose end was stored by a process that died before it cut anything has its sessions cut by who removes its credential", async () => {
  house.target.cutsFirst = true;
  const grant = await active();
  const { session } = await openSession(house.access, { user: grant, remoteAddress: "127.0.0.1", client: {} });
  const cuts: [object, CutReason][] = [];
  const cutter = vi.spyOn(house.access, "cutter").mockReturnValue({
    async cut(filter, reason) {
      cuts.push([filter, reason]);
      const counts = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
      await sessionClosed(house.access, session, { cause: "cut", detail: reason.text, ...counts }, reason);
      return 1;
    },
    extend: () => Promise.resolve(),
    activity: () => Promise.resolve([]),
  });
  const end = { grant, actor: "glasskey", cause: "killed", text: "killed by a security officer" } as const;
  await house.store.transaction().execute((tx) => beginClosing(house.access, tx, end));
  await house.until(grant, "closed");
  expect(cuts).toEqual([[{ grant }, { code: "killed", text: "killed by a security officer" }]]);
  cutter.mockRestore();
  house.target.cutsFirst = false;
});

test("a session of a dead process that cannot be closed yet keeps no other from being closed", async () => {
  const grant = await active();
  const open = async (): Promise<string> => {
    const request = { user: grant, remoteAddress: "127.0.0.1", client: {} };
    return (await openSession({ ...house.access, node: "nd_gone" }, request)).session;
  };
  const [stuck, next] = [await open(), await open()];
  const back = await refuseClosing(stuck);
  await expect(sweepGrants(house.access)).rejects.toThrow("the store is away");
  expect(await openSessions(grant)).toEqual([{ id: stuck }]);
  expect(next).not.toBe(stuck);
  await back();
  await sweepGrants(house.access);
  expect(await openSessions(grant)).toEqual([]);
  await endGrant(house.access, "ann", await house.grant(grant), "ended by ann");
  await house.until(grant, "closed");
});

test("a process that dies just after it stored that a grant's time is over holds no claim on the credential", async () => {
  const grant = await active();
  const lease = (await leaseOf(grant)).id;
  // Looks at the row as the commit leaves it: what is closing by then is anybody's to remove.
  await sql`create function unclaimed() returns trigger language plpgsql as
    $$ begin if exists (select from leases where id = new.id and claimed_by is not null)
      then raise exception 'the claim would outlive its process'; end if; return null; end $$`.execute(house.store);
  await sql`create constraint trigger unclaimed after update on leases deferrable initially deferred
    for each row when (old.state = 'live' and new.state = 'closing') execute function unclaimed()`.execute(house.store);
  const past = { ends_at: sql<Date>`clock_timestamp() - interval '1 second'` };
  await house.store.updateTable("grants").set(past).where("id", "=", grant).execute();
  await house.store
    .updateTable("leases")
    .set({ ...past, next_at: past.ends_at })
    .where("id", "=", lease)
    .execute();
  await until(
    async () =>
      (await house.grant(grant)).state === "closed" || house.warnings.some((line) => line.includes("outlive")),
  );
  await sql`drop trigger unclaimed on leases`.execute(house.store);
  expect(house.warnings.filter((line) => line.includes("outlive"))).toEqual([]);
  expect(await house.until(grant, "closed")).toMatchObject({ end_cause: "expired" });
});

test("the alarm about an orphan is over with its proof, also when the proof is there before the alarm", async () => {
  const lease = newId("lease");
  const go = await holdRaising();
  house.target.live.add(lease);
  const swept = sweepOrphans(house.access);
  await untilWaiting();
  await until(async () => {
    const row = await house.store.selectFrom("leases").select("state").where("id", "=", lease).executeTakeFirst();
    return row === undefined || row.state === "dead";
  });
  await go();
  await swept;
  await until(async () => !house.target.live.has(lease));
  await until(async () => (await openAlarm(orphanAlarm("abc123", lease))) === undefined);
  expect(house.warnings.some((line) => line.startsWith("ALARM") && line.includes(lease))).toBe(true);
});
