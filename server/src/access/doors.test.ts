import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { once } from "node:events";
import { createServer, type AddressInfo } from "node:net";
import type { ConnectAnswer, GrantView, LogPage, StandingView } from "@glasskey/contract";
import pg from "pg";
import { afterEach, expect, inject, test } from "vitest";
import { startTestSystem, type Client, type Reachable, type TestSystem } from "../../testing/system.ts";
import { GlassError } from "../core/errors.ts";
import { startServer } from "../main.ts";
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

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
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

test("nobody gets in while it is not known yet whether the journal is the one that was sealed from", async () => {
  const made = await startTestSystem(
    inject("pg18"),
    {},
    { gateway: { postgres: { host: "127.0.0.1", port: await freePort() } } },
  );
  undo.push(() => made.dispose());
  const ann = await made.as("ann");
  const { grant } = await ann.break("repair");
  const { port, user, secret, ca } = await ann.call<ConnectAnswer>("POST", `/v1/grants/${grant}/connect`);
  const client = (): pg.Client => {
    const one = new pg.Client({ host: "127.0.0.1", port, user, password: secret, database: "postgres", ssl: { ca } });
    one.on("error", () => {});
    return one;
  };
  const before = client();
  await before.connect();
  await before.query("select 1");
  await before.end();
  await until(
    () => made.storeQuery("select 1 from journals"),
    (rows) => rows.length === 1,
  );
  await made.stop();

  // Somebody is slow in the store just where the journal is compared with it; an impatient client dials again and again.
  const { host, database } = made.config.database ?? { host: "", database: "" };
  const { superuser, password, port: storePort } = inject("pg18");
  const slow = new pg.Client({ host, port: storePort, user: superuser, password, database });
  await slow.connect();
  undo.push(() => slow.end());
  await slow.query("begin; select from journals for update");
  const starting = made.start();
  const answer = await until(
    async () => {
      const one = client();
      try {
        await one.connect();
        return "in";
      } catch (error) {
        return String(error);
      } finally {
        await one.end().catch(() => {});
      }
    },
    (said) => !/ECONNREFUSED|ECONNRESET|terminated/.test(said),
  );
  await slow.query("commit");
  await starting;
  expect(answer).toContain("Glasskey is starting");
  const after = client();
  await after.connect();
  await after.query("select 1");
  await after.end();
  expect(await standing(await made.as("ann"))).toMatchObject({ opening: true, shut: [] });
});

test("where one login does everything in the store, people and probes are told, and nothing is refused for it", async () => {
  const made = await system();
  const anybody = (server?: Reachable) => made.as("", server);
  expect(await (await anybody()).call("GET", "/readyz")).toEqual({ ok: true, reasons: [] });
  await made.stop();
  const { database } = made.config;
  if (database?.owner === undefined) throw new Error("the tests have an owner");
  const { owner, ...rest } = database;
  const server = await startServer({ ...made.config, database: { ...rest, ...owner, owner: undefined } }, () => {});
  undo.push(() => server.stop());
  expect(await (await anybody(server)).call("GET", "/readyz")).toEqual({
    ok: true,
    reasons: [],
    notes: ["store_owner"],
  });
  expect(await (await anybody(server)).call("GET", "/healthz")).toEqual({ ok: true, reasons: [] });
  const ann = await made.as("ann", server);
  expect(await standing(ann)).toMatchObject({
    opening: true,
    store: { separate: false, detail: expect.stringContaining("owner:") },
  });
  expect((await ann.break("repair")).state).toBe("active");
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

test("a door that is shut while the sources are asked is shut for more time, too", async () => {
  await using rig = await startTestAccess(inject("pg18"), {
    ...book("self", { time: "{ max: 30m, extend: 2x30m }" }),
    ...book("consent", { approve: "{ need: 1, from: { group: leads } }", time: "{ max: 30m, extend: 2x30m }" }),
  });
  const { doors, access } = rig;
  const [alone, asked] = [await rig.break("self"), await rig.break("consent")];
  await vote(access, "bob", asked, "approve");
  for (const grant of [alone, asked]) await rig.until(grant, "active");
  expect(await extendGrant(access, "ann", asked)).toEqual({ extended: false });
  const slow: typeof access = {
    ...access,
    evidence: {
      ...access.evidence,
      async observe(about) {
        doors.shut("log", new GlassError("integrity", "entry 7 is not the one in its tree"));
        return access.evidence.observe(about);
      },
    },
  };
  const ends = async (): Promise<unknown[]> =>
    Promise.all([alone, asked].map(async (grant) => (await rig.grant(grant)).ends_at));
  const before = await ends();
  await expect(extendGrant(slow, "ann", alone)).rejects.toMatchObject({ code: "integrity" });
  doors.reopen("log");
  await expect(vote(slow, "bob", asked, "approve")).rejects.toMatchObject({ code: "integrity" });
  expect(await ends()).toEqual(before);
  doors.reopen("log");
  await vote(access, "bob", asked, "approve"); // that yes was not counted, and can be given again
  expect(await ends()).not.toEqual(before);
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
