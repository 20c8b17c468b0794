import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { GrantView, LogPage, StandingView } from "@glasskey/contract";
import { afterEach, expect, inject, test } from "vitest";
import { startTestSystem, type Client, type TestSystem } from "../../testing/system.ts";
import { GlassError } from "../core/errors.ts";
import { createDoors } from "./doors.ts";
import { extendGrant } from "./extend.ts";
import { vote } from "./approve.ts";
import { openSession } from "./sessions.ts";
import { book, startTestAccess } from "./testing/access.ts";
import { openUnanswered } from "./unanswered.ts";

const undo: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

async function system(): Promise<TestSystem> {
  const made = await startTestSystem(inject("pg15") ?? inject("pg18"));
  undo.push(() => made.dispose());
  return made;
}

/** Changes one entry's text in the store, as somebody who is superuser there can. @returns what puts it back. */
async function tamper(made: TestSystem): Promise<() => Promise<void>> {
  const [row] = await made.storeQuery<{ idx: string; entry: Buffer }>(
    "select idx, entry from log_entries order by idx desc limit 1",
  );
  const write = async (entry: Buffer): Promise<void> => {
    await made.storeQuery("alter table log_entries disable trigger user");
    await made.storeQuery("update log_entries set entry = $1 where idx = $2", [entry, row?.idx]);
    await made.storeQuery("alter table log_entries enable trigger user");
  };
  await write(Buffer.from(row?.entry.toString("utf8").replace('"v":1', '"v":2') ?? ""));
  return () => write(row?.entry ?? Buffer.alloc(0));
}

const standing = (client: Client): Promise<StandingView> => client.call("GET", "/v1/health");

async function until<T>(ask: () => Promise<T>, holds: (value: T) => boolean): Promise<T> {
  for (let tries = 0; ; tries += 1) {
    const value = await ask();
    if (holds(value)) return value;
    if (tries > 600) throw new Error(`it never came to that: ${JSON.stringify(value)}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

const rolesOf = async (made: TestSystem): Promise<number> => {
  const { rows } = await made.target.query(String.raw`select 1 from pg_roles where rolname like 'gk\_______\_%'`);
  return rows.length;
};

test("a log that does not verify at the start: what is open is still revoked and proved, nothing new is opened, and after the repair a restart works", async () => {
  const made = await system();
  const before = await made.as("ann");
  const [first, second] = [await before.break("repair"), await before.break("repair")];
  const waiting = await before.break("consent");
  await made.stop();
  const repair = await tamper(made);
  await made.start();

  const [ann, bob, ida, sam] = await Promise.all(["ann", "bob", "ida", "sam"].map((name) => made.as(name)));
  if (ann === undefined || bob === undefined || ida === undefined || sam === undefined) throw new Error("nobody");
  const seen = await standing(ann);
  expect(seen).toMatchObject({ opening: false, store: { separate: true, detail: null } });
  expect(seen.shut[0]).toMatchObject({
    reason: "log",
    code: "integrity",
    next: expect.stringContaining("start Glasskey again"),
  });

  // Nothing new, by any way in.
  const no = { status: 500, code: "integrity", message: expect.stringContaining("nothing new is opened") };
  expect(
    await ann.refused("POST", "/v1/grants", { playbook: "repair", reason: "outage", why: "it is down" }),
  ).toMatchObject(no);
  expect(await bob.refused("POST", `/v1/grants/${waiting.grant}/approve`, {})).toMatchObject(no);
  expect(await ann.refused("POST", `/v1/grants/${first.grant}/connect`)).toMatchObject(no);
  expect(await ann.refused("POST", `/v1/grants/${first.grant}/extend`, {})).toMatchObject(no);
  const { playbooks } = await ann.call<{ playbooks: { may: boolean; reasons: string[] }[] }>("GET", "/v1/playbooks");
  expect(playbooks.every(({ may }) => !may)).toBe(true);

  // What ends and proves goes on.
  expect(await ann.end(first.grant)).toMatchObject({ state: "closed", proof: { leases: [{}] } });
  const killed = await sam.call<{ grant: GrantView }>("POST", "/v1/kill", { id: second.grant, why: "not sound" });
  expect(killed.grant.grant).toBe(second.grant);
  await ann.until(second.grant, ["closed"]);
  expect(await rolesOf(made)).toBe(0);
  expect((await bob.call<GrantView>("POST", `/v1/grants/${waiting.grant}/deny`, {})).state).toBe("denied");
  const { alarms } = await ida.call<{ alarms: { text: string }[] }>("GET", "/v1/alarms");
  expect(alarms).toContainEqual(expect.objectContaining({ text: expect.stringContaining("nothing new is opened") }));
  const { size } = await ida.call<LogPage>("GET", "/v1/log?from=0&limit=5");
  expect(size).toBeGreaterThan(0);

  // Its events wait, and nothing was signed over them.
  const queued = async (): Promise<string[]> =>
    (await made.storeQuery<{ entry: Buffer }>("select entry from log_queue order by id")).map(
      ({ entry }) => (JSON.parse(entry.toString()) as { type: string }).type,
    );
  expect(await queued()).toEqual(
    expect.arrayContaining(["alarm.raised", "grant.closed", "lease.confirmed", "grant.denied"]),
  );
  await made.stop();
  await repair();
  await made.start();
  const after = await made.as("ann");
  expect(await standing(after)).toMatchObject({ opening: true, shut: [] });
  expect((await after.break("repair")).state).toBe("active");
  await until(queued, (types) => types.length === 0);
  const open = await (await made.as("ida")).call<{ alarms: unknown[] }>("GET", "/v1/alarms");
  expect(open.alarms).toEqual([]);
});

test("a log that is changed while it runs is found by whoever leads it next: new sessions and grants are refused, the running session goes on and ends", async () => {
  const made = await system();
  const ann = await made.as("ann");
  const grant = await ann.break("repair");
  const session = await ann.connect(grant.grant);
  await until(
    () => made.storeQuery("select 1 from log_queue"),
    (rows) => rows.length === 0,
  );
  await tamper(made);
  // Its own connection is lost, as it is when the store restarts: then it looks before it signs.
  await made.storeQuery(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'glasskey log' and datname = current_database()",
  );
  await until(
    () => standing(ann),
    ({ opening }) => !opening,
  );
  expect((await session.query("select 1 as one")).rows).toEqual([{ one: 1 }]);
  const secret = ann.connect(grant.grant);
  await expect(secret).rejects.toThrow(/nothing new is opened/);
  expect(
    await ann.refused("POST", "/v1/grants", { playbook: "repair", reason: "outage", why: "it is down" }),
  ).toMatchObject({
    code: "integrity",
  });
  expect((await ann.end(grant.grant)).state).toBe("closed");
  expect(made.warnings.filter((line) => line.startsWith("ALARM")).length).toBeGreaterThan(0);
});

test("while one process finds the log unsound, no other opens anything; once it is gone, they look for themselves", async () => {
  const made = await system();
  const second = await made.startSecond();
  const ann = await made.as("ann", second);
  expect((await standing(ann)).opening).toBe(true);
  // The first one's second copy of the head says more than the store has: only that process can know.
  const head = join(made.config.dataDir, "log-head");
  await made.stop();
  const note = await readFile(head, "utf8");
  await writeFile(head, note.replace(/\n(\d+)\n/, "\n99$1\n"));
  await made.start();
  await until(
    () => standing(ann),
    ({ shut }) => shut.some(({ reason }) => reason === "log of another process"),
  );
  expect(
    await ann.refused("POST", "/v1/grants", { playbook: "repair", reason: "outage", why: "it is down" }),
  ).toMatchObject({
    code: "integrity",
    message: expect.stringContaining("says:"),
  });
  await made.stop();
  await until(
    () => standing(ann),
    ({ opening }) => opening,
  );
});

test("a journal that was damaged opens no session and no grant, and what is open is revoked and proved", async () => {
  const made = await system();
  const ann = await made.as("ann");
  const grant = await ann.break("repair");
  const session = await ann.connect(grant.grant);
  await session.query("select 1");
  await session.end();
  await made.stop();
  const folder = join(made.config.dataDir, "journal");
  for (const name of await readdir(folder)) {
    const bytes = await readFile(join(folder, name));
    if (!name.endsWith(".gkj") && bytes.length < 200) continue;
    for (let at = 100; at < 140; at += 1) bytes[at] = (bytes[at] ?? 0) ^ 0xff;
    await writeFile(join(folder, name), bytes);
  }
  await made.start();
  const again = await made.as("ann");
  expect((await standing(again)).shut).toMatchObject([{ reason: "journal", code: "integrity" }]);
  expect(await again.refused("POST", `/v1/grants/${grant.grant}/connect`)).toMatchObject({ code: "integrity" });
  expect((await again.end(grant.grant)).state).toBe("closed");
  expect(await rolesOf(made)).toBe(0);
  // Its events are signed as always: the log itself is sound.
  await until(
    () => made.storeQuery("select 1 from log_queue"),
    (rows) => rows.length === 0,
  );
});

test("every way in asks the same door, and a no can always be said", async () => {
  await using rig = await startTestAccess(inject("pg18"), {
    ...book("free"),
    ...book("consent", { approve: "{ need: 1, from: { group: leads } }", time: "{ max: 30m, extend: 2x30m }" }),
    ...book("alone", {
      approve: "{ need: 1, from: { group: leads }, within: 30m, unanswered: { after: 5m, then: open, for: 10m } }",
      notify: "[pagerduty:duty]",
    }),
  });
  const { access, doors } = rig;
  const [wanted, open, silent] = [await rig.break("consent"), await rig.break("consent"), await rig.break("alone")];
  await vote(access, "bob", open, "approve");
  await rig.until(open, "active");
  await rig.delivered(silent);
  await rig.store
    .updateTable("notices")
    .set({ delivered_at: new Date(Date.now() - 600_000) })
    .where("grant_id", "=", silent)
    .execute();
  doors.shut("disk", new GlassError("recording_unavailable", "the disk is nearly full", { next: "Make room." }));
  const shut = {
    code: "recording_unavailable",
    message: "nothing new is opened: the disk is nearly full",
    next: "Make room.",
  };
  await expect(rig.break("free")).rejects.toMatchObject(shut);
  await expect(vote(access, "bob", wanted, "approve")).rejects.toMatchObject(shut);
  await expect(extendGrant(access, "ann", open)).rejects.toMatchObject(shut);
  await expect(openSession(access, { user: open, remoteAddress: "127.0.0.1", client: {} })).rejects.toMatchObject(shut);
  await openUnanswered(access);
  expect((await rig.grant(silent)).state).toBe("pending");
  await vote(access, "bob", wanted, "deny");
  expect((await rig.grant(wanted)).state).toBe("denied");
  doors.reopen("disk");
  await openUnanswered(access);
  await rig.until(silent, "active");
});

test("what was planned before the door was shut is not minted behind it", async () => {
  await using rig = await startTestAccess(inject("pg18"), book("free"));
  rig.target.down = true; // so that the plan is stored and nothing is there yet
  const { doors, target } = rig;
  const asked = rig.break("free");
  await asked;
  target.down = false;
  const minted = target.minted.length;
  doors.shut("log", new GlassError("integrity", "entry 7 is not the one in its tree"));
  await rig.store.transaction().execute(async (tx) => {
    const lease = await tx.selectFrom("leases").selectAll().executeTakeFirstOrThrow();
    await tx
      .updateTable("grants")
      .set({ state: "opening", end_cause: null, end_text: null, closing_at: null, closed_at: null, proof: null })
      .where("id", "=", lease.grant_id ?? "")
      .execute();
    await tx
      .updateTable("leases")
      .set({
        state: "planned",
        claimed_by: null,
        claimed_until: null,
        next_at: new Date(),
        evidence: null,
        dead_at: null,
      })
      .where("id", "=", lease.id)
      .execute();
  });
  const closed = await rig.until(await asked, "closed");
  expect(closed.end_text).toContain("nothing new is opened");
  expect(target.minted).toHaveLength(minted);
});

test("of several reasons an integrity error speaks first, and each is over by itself", () => {
  const doors = createDoors();
  expect(doors.mayOpen()).toBeUndefined();
  doors.shut("disk", new GlassError("recording_unavailable", "full"));
  doors.shut("log", new GlassError("integrity", "changed"));
  expect(doors.mayOpen()).toMatchObject({ code: "integrity", message: "nothing new is opened: changed" });
  doors.shut("log", new GlassError("integrity", "changed again"));
  expect(doors.reasons().map(({ reason }) => reason)).toEqual(["disk", "log"]);
  doors.reopen("log");
  expect(doors.mayOpen()).toMatchObject({ code: "recording_unavailable" });
  doors.reopen("log");
  doors.reopen("disk");
  expect(doors.mayOpen()).toBeUndefined();
});
