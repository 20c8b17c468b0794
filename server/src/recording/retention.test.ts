import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { sql } from "kysely";
import pg from "pg";
import { afterEach, beforeEach, expect, inject, test } from "vitest";
import { append } from "../audit/append.ts";
import { systemClock } from "../core/clock.ts";
import { startCluster } from "../store/cluster.ts";
import { damageAlarm } from "./damage.ts";
import { clientConfig } from "../store/database.ts";
import {
  deadRowsLeft,
  eraseExpired,
  eraseRecording,
  listHolds,
  placeHold,
  releaseHold,
  scrubKeys,
} from "./retention.ts";
import { makeSessionKey, readSessionKey } from "./session-keys.ts";
import { testFolder } from "./testing/journal.ts";
import { testStore } from "./testing/store.ts";

const DAY_MS = 86_400_000;
const MIGRATIONS = new URL("../store/migrations/", import.meta.url);
const SAM = { person: "sam", actor: "pe_000000000001" };
const SUE = { person: "sue", actor: "pe_000000000002" };

let base: Awaited<ReturnType<typeof testStore>>;
let deps: Parameters<typeof placeHold>[0];
let grant: string;
beforeEach(async () => {
  base = await testStore(inject("pg18"));
  deps = { store: base.store, keyring: base.keyring, append };
  grant = (await base.store.selectFrom("grants").select("id").executeTakeFirstOrThrow()).id;
});
afterEach(() => base[Symbol.asyncDispose]());

/** A session whose recording is complete and whose end lies so far back. */
async function ended(agoMs: number): Promise<string> {
  const session = await base.session();
  await makeSessionKey(base.store, base.keyring, session);
  await base.store
    .updateTable("sessions")
    .set({ recording_complete: true, closed_at: sql<Date>`clock_timestamp() - ${agoMs} * interval '1 millisecond'` })
    .where("id", "=", session)
    .execute();
  return session;
}

const keyOf = async (session: string): Promise<"there" | "destroyed"> =>
  (await readSessionKey(base.store, base.keyring, session)) === "destroyed" ? "destroyed" : "there";

async function events(): Promise<{ type: string; session?: string; actor: string; data: Record<string, unknown> }[]> {
  const { rows } = await sql<{ entry: Buffer }>`select entry from log_queue order by id`.execute(base.store);
  return rows.map(({ entry }) => JSON.parse(entry.toString("utf8")) as Awaited<ReturnType<typeof events>>[number]);
}

test("a recording is erased when its time is over, not a moment before, and the log has it in the same transaction", async () => {
  const [old, young] = [await ended(400 * DAY_MS + 1_000), await ended(400 * DAY_MS - 60_000)];
  expect(await eraseExpired(deps, 400 * DAY_MS)).toEqual([old]);
  expect([await keyOf(old), await keyOf(young)]).toEqual(["destroyed", "there"]);
  expect(await events()).toMatchObject([
    { type: "recording.erased", session: old, actor: "glasskey", data: { cause: "retention", keepMs: 400 * DAY_MS } },
  ]);
  expect(await eraseExpired(deps, 400 * DAY_MS)).toEqual([]);
});

test("a clock that jumped ahead, the store's or the process's, erases nothing by itself", async () => {
  const [old, young] = [await ended(2 * DAY_MS), await ended(0)];
  const at = (ms: number) => ({ ...deps, clock: { ...systemClock, now: () => new Date(Date.now() + ms) } });
  // The process's clock says next year; the store's does not.
  expect(await eraseExpired(at(365 * DAY_MS), DAY_MS)).toEqual([old]);
  // The store's clock is a year ahead of the process's: to it everything is old.
  expect(await eraseExpired(at(-365 * DAY_MS), DAY_MS)).toEqual([]);
  expect(await keyOf(young)).toBe("there");
});

test("what VACUUM says of rows that it could not remove is understood in other languages, too", () => {
  expect(deadRowsLeft("0 dead row versions cannot be removed yet.\nCPU: user: 0.00 s")).toBe(0);
  expect(deadRowsLeft("12 tote Zeilenversionen können noch nicht entfernt werden.\nCPU: Benutzer: 0,00 s")).toBe(12);
  expect(deadRowsLeft("3 versions de lignes mortes ne peuvent pas encore être supprimées.\n")).toBe(3);
  expect(deadRowsLeft(undefined)).toBeUndefined();
});

test("an entry that cannot be written keeps the key", async () => {
  const old = await ended(2 * DAY_MS);
  const failing = { ...deps, append: () => Promise.reject(new Error("the store is full")) };
  await expect(eraseExpired(failing, DAY_MS)).rejects.toThrow("the store is full");
  await expect(eraseRecording(failing, SAM, { session: old, why: "asked for" })).rejects.toThrow("the store is full");
  expect(await keyOf(old)).toBe("there");
});

test("without a time recordings stay for ever; a playbook's own time wins, longer or shorter, as the grant pinned it", async () => {
  const old = await ended(50 * DAY_MS);
  const said = (content: string) =>
    base.store.updateTable("playbook_versions").set({ content }).where("hash", "=", "h").execute();
  expect(await eraseExpired(deps, undefined)).toEqual([]);
  await said(JSON.stringify({ playbook: { record: { keepMs: 60 * DAY_MS } } }));
  expect(await eraseExpired(deps, DAY_MS)).toEqual([]);
  await said(JSON.stringify({ playbook: { record: { keepMs: "1" } } })); // somebody edited the row: it says nothing
  expect(await eraseExpired(deps, undefined)).toEqual([]);
  await said(JSON.stringify({ playbook: { record: { keepMs: 30 * DAY_MS } } }));
  expect(await eraseExpired(deps, undefined)).toEqual([old]);
});

test("what is not complete, or whose session is not over, is never erased, however old", async () => {
  const [running, open] = [await ended(9 * DAY_MS), await ended(9 * DAY_MS)];
  await base.store.updateTable("sessions").set({ recording_complete: false }).where("id", "=", running).execute();
  await sql`update sessions set closed_at = null where id = ${open}`.execute(base.store);
  expect(await eraseExpired(deps, DAY_MS)).toEqual([]);
  await expect(eraseRecording(deps, SAM, { session: running, why: "asked for" })).rejects.toMatchObject({
    code: "conflict",
    message: expect.stringContaining("not complete"),
  });
});

test("a held recording outlives its time until every hold is lifted; a hold on a grant covers all its sessions, also later ones", async () => {
  const [one, other] = [await ended(9 * DAY_MS), await ended(9 * DAY_MS)];
  const onSession = await placeHold(deps, SAM, { grant, session: one, why: "case 7" });
  expect(await eraseExpired(deps, DAY_MS)).toEqual([other]);
  const onGrant = await placeHold(deps, SAM, { grant, why: "case 8" });
  const later = await ended(9 * DAY_MS);
  expect(await eraseExpired(deps, DAY_MS)).toEqual([]);
  await releaseHold(deps, SUE, onGrant);
  expect(await eraseExpired(deps, DAY_MS)).toEqual([later]);
  await releaseHold(deps, SUE, onSession);
  expect(await eraseExpired(deps, DAY_MS)).toEqual([one]);
  await expect(releaseHold(deps, SUE, onSession)).rejects.toMatchObject({ code: "conflict" });
  expect((await events()).map(({ type, session }) => `${type} ${session === one ? "one" : ""}`)).toEqual(
    expect.arrayContaining(["recording.held one", "recording.released one", "recording.held "]),
  );
});

test("retention leaves a recording alone that does not verify, whatever its age: it may be evidence", async () => {
  const [damaged, other] = [await ended(9 * DAY_MS), await ended(9 * DAY_MS)];
  const alarm = { id: "al_1", key: damageAlarm(damaged), text: "a chunk is gone" };
  await base.store.insertInto("alarms").values(alarm).execute();
  expect(await eraseExpired(deps, DAY_MS)).toEqual([other]);
  await base.store.updateTable("alarms").set({ cleared_at: new Date() }).execute();
  expect(await eraseExpired(deps, DAY_MS)).toEqual([damaged]);
});

test("a person's erasure is refused while held, to whoever lifted the hold, and a second time", async () => {
  const session = await ended(0);
  const hold = await placeHold(deps, SAM, { grant, session, why: "case 7" });
  const erase = (doer: typeof SAM) => eraseRecording(deps, doer, { session, why: "court order" });
  await expect(erase(SUE)).rejects.toMatchObject({ code: "conflict", next: expect.stringContaining(hold) });
  await releaseHold(deps, SAM, hold);
  await expect(erase(SAM)).rejects.toMatchObject({ code: "conflict", message: expect.stringContaining("another one") });
  await erase(SUE);
  expect(await keyOf(session)).toBe("destroyed");
  await expect(erase(SUE)).rejects.toMatchObject({ code: "erased" });
  await expect(placeHold(deps, SAM, { grant, session, why: "too late" })).rejects.toMatchObject({ code: "erased" });
  await expect(eraseRecording(deps, SUE, { session: "se_000000000000", why: "x" })).rejects.toMatchObject({
    code: "not_found",
  });
});

test("why is sealed in the store, and neither it nor a name is in the log; words that were changed hide no list", async () => {
  const session = await ended(0);
  const hold = await placeHold(deps, SAM, { grant, session, why: "matter of John Doe" });
  expect(await listHolds(deps)).toMatchObject([{ hold, session, why: "matter of John Doe", heldBy: "sam" }]);
  await releaseHold(deps, SUE, hold);
  await eraseRecording(deps, { ...SAM, person: "max" }, { session, why: "matter of Jane Roe" });
  const all = JSON.stringify(await events());
  const raw = await sql<{
    row: string;
  }>`select row(holds.*)::text as row from holds union all select row(erasures.*)::text from erasures`.execute(
    base.store,
  );
  for (const text of [all, ...raw.rows.map(({ row }) => Buffer.from(row).toString("latin1"))]) {
    expect(text).not.toMatch(/John Doe|Jane Roe/);
    expect(text).not.toContain(Buffer.from("John Doe").toString("hex"));
  }
  expect(all).not.toMatch(/"sam"|"sue"|"max"/);
  await base.store
    .updateTable("holds")
    .set({ why: Buffer.alloc(80) })
    .where("id", "=", hold)
    .execute();
  expect((await listHolds(deps, { lifted: true }))[0]?.why).toContain("do not open");
  expect(await listHolds(deps)).toEqual([]);
});

test("a hold and an erasure at the same moment, many times: whichever is first, no held recording is gone", async () => {
  for (let round = 0; round < 15; round += 1) {
    const session = await ended(9 * DAY_MS);
    const [held] = await Promise.allSettled([
      placeHold(deps, SAM, { grant, session, why: "case 7" }),
      eraseExpired(deps, DAY_MS),
      eraseExpired(deps, DAY_MS),
      eraseRecording(deps, SUE, { session, why: "court order" }),
    ]);
    expect(await keyOf(session)).toBe(held?.status === "fulfilled" ? "there" : "destroyed");
    if (held?.status === "fulfilled") await releaseHold(deps, SAM, held.value);
    await eraseExpired(deps, DAY_MS);
  }
  const erased = (await events()).filter(({ type }) => type === "recording.erased").map(({ session }) => session);
  expect(new Set(erased).size).toBe(erased.length); // once each, by whomever
  expect(erased).toHaveLength(15);
});

test("two processes that keep house at once erase each recording once", async () => {
  const sessions = await Promise.all(Array.from({ length: 12 }, () => ended(9 * DAY_MS)));
  const rounds = await Promise.all([1, 2, 3].map(() => eraseExpired(deps, DAY_MS)));
  expect(rounds.flat().toSorted()).toEqual(sessions.toSorted());
});

test("a destroyed key's bytes are in no file of its table after the table is written anew; while somebody still sees them, that is not claimed", async () => {
  await using folder = await testFolder();
  const { chmod } = await import("node:fs/promises");
  await chmod(folder.path, 0o755);
  const cluster = await startCluster({ dataDir: join(folder.path, "store"), superuser: "postgres" });
  try {
    await base[Symbol.asyncDispose]();
    base = await testStore(cluster);
    deps = { store: base.store, keyring: base.keyring, append };
    const [session, kept] = [await ended(9 * DAY_MS), await ended(0)];
    const wrapped = async (which: string): Promise<Buffer> =>
      (
        await base.store
          .selectFrom("session_keys")
          .select("wrapped")
          .where("session", "=", which)
          .executeTakeFirstOrThrow()
      ).wrapped ?? Buffer.alloc(0);
    const [secret, other] = [await wrapped(session), await wrapped(kept)];
    const reader = new pg.Client(clientConfig(base.address));
    await reader.connect();
    const file = async (): Promise<Buffer> => {
      await reader.query("checkpoint");
      const { rows } = await reader.query<{ path: string }>("select pg_relation_filepath('session_keys') as path");
      return readFile(join(folder.path, "store", rows[0]?.path ?? ""));
    };
    expect((await file()).includes(secret)).toBe(true);

    const old = new pg.Client(clientConfig(base.address));
    await old.connect();
    await old.query("begin isolation level repeatable read; select 1"); // sees the store as it is now
    expect(await eraseExpired(deps, DAY_MS)).toEqual([session]);
    expect((await file()).includes(secret)).toBe(true); // a dead row is still a row on the disk
    expect(await scrubKeys(base.address)).toBe(false);
    expect(await base.store.selectFrom("erasures").select("scrubbed_at").executeTakeFirst()).toEqual({
      scrubbed_at: null,
    });
    await old.query("commit; begin; lock table session_keys in row exclusive mode"); // somebody writes: it waits its turn, and not for long
    expect(await scrubKeys(base.address)).toBe(false);
    await old.query("commit");
    await old.end();

    expect(await scrubKeys(base.address)).toBe(true);
    expect((await file()).includes(secret)).toBe(false);
    expect((await file()).includes(other)).toBe(true);
    expect(
      (await base.store.selectFrom("erasures").select("scrubbed_at").executeTakeFirst())?.scrubbed_at,
    ).toBeInstanceOf(Date);
    await reader.end();
  } finally {
    await base.store.destroy();
    await cluster.stop();
    base = await testStore(inject("pg18"));
  }
});

for (const [name, find] of [
  ["PostgreSQL 18", () => inject("pg18")],
  ["PostgreSQL 15", () => inject("pg15")],
] as const) {
  test(`what the store's planner remembers of its tables has no key, also where an older Glasskey's did (${name})`, async () => {
    const cluster = find();
    if (cluster === undefined) return;
    await using made = await testStore(cluster);
    const secrets: Buffer[] = [];
    for (let i = 0; i < 60; i += 1) {
      const session = await made.session();
      await makeSessionKey(made.store, made.keyring, session);
      const row = await made.store
        .selectFrom("session_keys")
        .select("wrapped")
        .where("session", "=", session)
        .execute();
      secrets.push(row[0]?.wrapped ?? Buffer.alloc(0));
    }
    const remembered = async (): Promise<number> => {
      await sql`analyze session_keys`.execute(made.store);
      const { rows } = await sql<{ text: string }>`
        select coalesce(histogram_bounds::text, '') || coalesce(most_common_vals::text, '') as text
        from pg_stats where tablename = 'session_keys'`.execute(made.store);
      return secrets.filter((secret) => rows.some(({ text }) => text.includes(secret.toString("hex")))).length;
    };
    expect(await remembered()).toBe(0);
    // As it was: then the migration takes it away.
    await sql`alter table session_keys alter column wrapped set statistics -1`.execute(made.store);
    expect(await remembered()).toBeGreaterThan(0);
    const [migration] = (await readdir(MIGRATIONS)).filter((file) => file.includes("key_statistics"));
    await sql.raw(await readFile(new URL(migration ?? "", MIGRATIONS), "utf8")).execute(made.store);
    expect(await remembered()).toBe(0);
  });
}
