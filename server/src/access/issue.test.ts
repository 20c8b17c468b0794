import { sql } from "kysely";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { GlassError } from "../core/errors.ts";
import { beginClosing, endGrant } from "./close.ts";
import { openSession, sessionClosed, type OpenedGrant } from "./sessions.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";

let house: TestAccess;
beforeAll(async () => {
  house = await startTestAccess(inject("pg18"), book("repair"));
});
afterAll(() => house[Symbol.asyncDispose]());

const open = (grant: string): Promise<OpenedGrant> =>
  openSession(house.access, { user: grant, remoteAddress: "192.0.2.1", client: {} });

const sessionsOf = (grant: string) =>
  house.store.selectFrom("sessions").selectAll().where("grant_id", "=", grant).orderBy("opened_at").execute();

async function active(): Promise<string> {
  const grant = await house.break("repair");
  await house.until(grant, "active");
  return grant;
}

/** No gateway runs here, so whoever ends a grant tells what a gateway would. */
async function end(grant: string): Promise<void> {
  for (const { id, closed_at: closed } of await sessionsOf(grant)) if (closed === null) await leave(id);
  await endGrant(house.access, "ann", await house.grant(grant), "done");
  await house.until(grant, "closed");
}

const leave = (session: string): Promise<void> =>
  sessionClosed(house.access, session, { cause: "client", detail: "left", ...NOTHING });

const NOTHING = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };

test("what a driver issues counts from the session's start in the store, and is stored nowhere", async () => {
  const grant = await active();
  const opened = await open(grant);
  const [row] = await sessionsOf(grant);
  const { ends_at: endsAt } = await house.grant(grant);
  expect(opened.credential).toEqual({ token: opened.session });
  expect(house.target.issued.at(-1)).toEqual({ session: opened.session, at: row?.opened_at, endsAt });
  expect(JSON.stringify([row, await house.entries(grant)])).not.toContain("token");
  await end(grant);
});

test("a credential that cannot be issued opens no session: its row is closed, and the log says so", async () => {
  const grant = await active();
  house.target.issueFailure = new GlassError("target_unfit", "no address to bind the certificate to");
  await expect(open(grant)).rejects.toMatchObject({ code: "target_unfit" });
  house.target.issueFailure = undefined;
  expect(await sessionsOf(grant)).toMatchObject([{ closed_at: expect.any(Date), cause: "error" }]);
  expect(await house.types(grant)).toEqual(expect.arrayContaining(["session.opened", "session.closed"]));
  await end(grant);
});

test("the proof is asked with the last moment at which anything can have been issued", async () => {
  const grant = await active();
  await open(grant);
  const { session } = await open(grant);
  const rows = await sessionsOf(grant);
  await leave(session);
  house.target.lastIssues.length = 0;
  await end(grant);
  expect(house.target.lastIssues).toEqual([rows[1]?.opened_at]);
});

test("where a session may still begin something, the proof waits for the end of every session, wherever it is", async () => {
  const grant = await active();
  const { session } = await open(grant);
  house.target.lastIssues.length = 0;
  house.target.cutsFirst = true;
  try {
    await endGrant(house.access, "ann", await house.grant(grant), "done"); // no gateway here: as if another process were slow
    const lease = () => house.store.selectFrom("leases").selectAll().where("grant_id", "=", grant).executeTakeFirst();
    expect(await lease()).toMatchObject({ state: "closing", last_error: `session ${session} is not known to be cut` });
    expect(house.target.lastIssues).toEqual([]);
    await house.store
      .updateTable("leases")
      .set({ next_at: new Date(Date.now() + 3_600_000), attempts: 9 })
      .execute(); // after a long while
    await leave(session);
    await house.until(grant, "closed");
    expect(house.target.lastIssues).toHaveLength(1);
  } finally {
    house.target.cutsFirst = false;
  }
});

test("nobody's session begins once the end has begun: the row that ends a grant is the one that lets sessions in", async () => {
  const grant = await active();
  let entered: (() => void) | undefined;
  const inside = new Promise<void>((done) => (entered = done));
  let leaveIt: (() => void) | undefined;
  const held = new Promise<void>((done) => (leaveIt = done));
  // Somebody ends it: the row is locked, and not yet written.
  const ending = house.store.transaction().execute(async (tx) => {
    await tx.selectFrom("grants").select("id").where("id", "=", grant).forUpdate().execute();
    entered?.();
    await held;
    await beginClosing(house.access, tx, { grant, actor: "glasskey", cause: "ended", text: "done" });
  });
  await inside;
  const issued = house.target.issued.length;
  const opening = Promise.allSettled(Array.from({ length: 5 }, () => open(grant)));
  await expect
    .poll(async () => {
      const { rows } = await sql<{ n: number }>`
        select count(*)::int as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`.execute(
        house.store,
      );
      return rows[0]?.n;
    })
    .toBeGreaterThan(0);
  leaveIt?.();
  await ending;
  expect((await opening).map(({ status }) => status)).toEqual(Array.from({ length: 5 }, () => "rejected"));
  expect(house.target.issued).toHaveLength(issued);
  expect(await sessionsOf(grant)).toEqual([]);
  await house.until(grant, "closed");
});

test("without a session, nothing was issued after the grant became active", async () => {
  const grant = await active();
  house.target.lastIssues.length = 0;
  await end(grant);
  expect(house.target.lastIssues).toEqual([(await house.grant(grant)).active_at]);
});

test("where the opening failed, what the probe used is over by the fence", async () => {
  house.target.issued.length = 0;
  house.target.lastIssues.length = 0;
  house.target.failure = new GlassError("target_unreachable", "it does not answer");
  const grant = await house.break("repair");
  await house.until(grant, "closing");
  house.target.failure = undefined;
  await house.until(grant, "failed", "closed");
  const lease = await house.store.selectFrom("leases").selectAll().where("grant_id", "=", grant).executeTakeFirst();
  expect(house.target.issued).toEqual([]);
  expect(house.target.lastIssues.at(-1)).toEqual(lease?.fenced_at);
});

test("a target that is not the one in its file is refused with an alarm, which is over once the right one was reached", async () => {
  const open = () => house.store.selectFrom("alarms").select(["key", "text"]).where("cleared_at", "is", null).execute();
  const error = new GlassError("target_untrusted", "host key SHA256:new is not SHA256:old");
  house.target.failure = error;
  const failed = await house.break("repair");
  await house.until(failed, "closing");
  expect(await open()).toEqual([{ key: "untrusted orders", text: expect.stringContaining("SHA256:new") }]);
  house.target.failure = undefined;
  await house.until(failed, "failed", "closed");
  const grant = await active();
  expect(await open()).toEqual([]);

  // As a data plane tells it that met the wrong host at a session's beginning.
  const { session } = await openSession(house.access, { user: grant, remoteAddress: "192.0.2.1", client: {} });
  const said = { cause: "error", detail: error.message, code: error.code, ...NOTHING } as const;
  await sessionClosed(house.access, session, said);
  expect(await open()).toMatchObject([{ key: "untrusted orders" }]);
  await end(grant);
  expect(await open()).toEqual([]);
});
