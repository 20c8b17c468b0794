import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { StandingView } from "@glasskey/contract";
import { verifyFolder } from "@glasskey/verify";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { openStore } from "../store/database.ts";
import { folderChunkStore } from "./chunk-store.ts";
import { damageAlarm, watchDamage } from "./damage.ts";
import { testFolder } from "./testing/journal.ts";
import { testStore } from "./testing/store.ts";

let system: TestSystem;
beforeAll(async () => {
  system = await startTestSystem(inject("pg18"));
});
afterAll(() => system.dispose());

async function until<T>(ask: () => Promise<T>, holds: (value: T) => boolean): Promise<T> {
  for (let tries = 0; ; tries += 1) {
    const value = await ask();
    if (holds(value)) return value;
    if (tries > 900) throw new Error(`it never came to that: ${JSON.stringify(value)}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

const open = (): Promise<{ key: string; text: string }[]> =>
  system.storeQuery("select key, text from alarms where cleared_at is null and key like 'damaged %' order by key");

/** A session with a statement, sealed to its end. @returns its id and the folder of its chunks. */
async function recorded(): Promise<{ session: string; folder: string }> {
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  const client = await ann.connect(grant);
  await client.query("select 'spoken in confidence'");
  await client.end();
  await ann.end(grant);
  const [row] = await until(
    () =>
      system.storeQuery<{ id: string; done: boolean }>(
        "select id, recording_complete and closed_at is not null as done from sessions where grant_id = $1",
        [grant],
      ),
    ([one]) => one?.done === true,
  );
  const session = row?.id ?? "";
  return { session, folder: join(system.config.dataDir, "chunks", session) };
}

test("a chunk that was changed or is missing: the reader is refused, people are told, nothing is closed, and once it is back the alarm is over", async () => {
  const { session, folder } = await recorded();
  const [name = ""] = await readdir(folder);
  const file = join(folder, name);
  const bytes = await readFile(file);
  const sam = await system.as("sam");
  const changed = Buffer.from(bytes);
  changed[90] = (changed[90] ?? 0) ^ 1;
  await writeFile(file, changed);

  const refusal = { status: 500, code: "integrity", message: expect.stringContaining(`chunk 0 of ${session}`) };
  for (const how of ["replay", "export", "chunks/0"])
    expect(await sam.refused("GET", `/v1/sessions/${session}/${how}`), how).toMatchObject(refusal);
  expect(await sam.refused("GET", `/log/chunks/${session}/0.gkc`)).toMatchObject({ status: 404 }); // for a verifier
  const told = await until(open, (alarms) => alarms.length > 0);
  expect(told).toMatchObject([{ key: `damaged ${session}`, text: expect.stringContaining("Put the file back") }]);
  expect(await sam.call<StandingView>("GET", "/v1/health")).toMatchObject({ opening: true, shut: [] });
  const found = await sam.call<{ problems: { session: string }[] }>("POST", "/v1/recordings/search", {
    text: "spoken",
  });
  expect(found.problems).toMatchObject([{ session }]);
  await recorded(); // work goes on
  expect((await open()).map(({ key }) => key)).toEqual([`damaged ${session}`]);

  await writeFile(file, bytes);
  await until(open, (alarms) => alarms.length === 0);
}, 120_000);

test("a chunk that only the export misses is told, and is exported once it is back: then the log verifies", async () => {
  const { session, folder } = await recorded();
  await system.stop();
  const [name = ""] = await readdir(folder);
  const bytes = await readFile(join(folder, name));
  await rm(join(folder, name));
  await rm(join(system.config.dataDir, "log"), { recursive: true }); // written again from store and chunks
  await system.start();
  await until(open, (alarms) => alarms.some(({ key }) => key === `damaged ${session}`));
  const { logDir, vkey } = system.server();
  const chunk = join(logDir, "chunks", session, "0.gkc");
  const report = await until(
    () => verifyFolder({ folder: logDir, vkey, settleMs: 20_000 }),
    ({ size }) => size > 0,
  );
  expect(report.problems).toContainEqual(expect.objectContaining({ where: `chunks/${session}/0.gkc` }));

  await writeFile(join(folder, name), bytes);
  await until(open, (alarms) => alarms.length === 0);
  expect(await readFile(chunk)).toEqual(bytes);
  expect(await verifyFolder({ folder: logDir, vkey, settleMs: 20_000 })).toMatchObject({ ok: true, problems: [] });
}, 120_000);

test("somebody who writes to the store cannot cut the end off a recording: the log tells of it", async () => {
  const { session } = await recorded();
  const [row] = await system.storeQuery<{ sealed_seq: string; sealed_chunks: string }>(
    "select sealed_seq, sealed_chunks from sessions where id = $1",
    [session],
  );
  const rows = await system.storeQuery<{ chunk: number; sha256: Buffer }>(
    "select chunk, sha256 from chunks where session = $1 order by chunk",
    [session],
  );
  const sam = await system.as("sam");
  const refused = async (): Promise<string> => (await sam.refused("GET", `/v1/sessions/${session}/replay`)).message;
  await system.storeQuery("update sessions set sealed_seq = 0 where id = $1", [session]);
  expect(await refused()).toMatch(/the log tells of \d+ records of se_\w+, and the store has only 0/);
  await system.storeQuery("update sessions set sealed_seq = $2 where id = $1", [session, row?.sealed_seq]);
  await system.storeQuery("update chunks set sha256 = sha256('other') where session = $1 and chunk = 0", [session]);
  expect(await refused()).toBe(`chunk 0 of ${session} is not the one that the log tells of`);
  await system.storeQuery("update chunks set sha256 = $2 where session = $1 and chunk = 0", [session, rows[0]?.sha256]);
  await until(open, (alarms) => alarms.length === 0);
}, 120_000);

test("where a whole folder is gone, twenty recordings are named and one alarm speaks for all others", async () => {
  const keys = new Set<string>();
  const raise = async (key: string): Promise<void> => {
    if (keys.has(key)) return;
    keys.add(key);
    await system.storeQuery("insert into alarms (id, key, text) values ($1, $2, '') on conflict do nothing", [
      `al_${keys.size}`,
      key,
    ]);
  };
  const { port, superuser, password } = inject("pg18");
  const store = openStore({
    ...{ host: "127.0.0.1", port, user: superuser, password },
    database: system.config.database?.database ?? "",
  });
  try {
    const damage = watchDamage({
      ...{ store, node: "nd_other", shared: true, onMended: () => Promise.resolve() },
      keyring: { seal: () => Buffer.alloc(0), open: () => Buffer.alloc(0) },
      chunks: { put: () => Promise.resolve(), get: () => Promise.resolve(undefined), list: () => Promise.resolve([]) },
      alarms: { raise, clear: () => Promise.resolve() },
    });
    for (let n = 0; n < 60; n += 1)
      damage.found(
        `se_${String(n).padStart(12, "0")}`,
        new GlassError("integrity", "gone", { details: { missing: true } }),
      );
    await damage.look(AbortSignal.abort()).catch(() => {});
    expect([...keys].filter((key) => key.startsWith("damaged se_"))).toHaveLength(20);
    expect(keys).toContain("damaged more");
  } finally {
    await system.storeQuery("delete from alarms where id like 'al\\_%' and text = ''");
    await store.destroy();
  }
});

test("damage that is found while a recording is read again keeps its alarm open", async () => {
  await using base = await testStore(inject("pg18"));
  const session = await base.session();
  const key = damageAlarm(session);
  await base.store
    .insertInto("alarms")
    .values({ id: newId("alarm"), key, text: "damaged" })
    .execute();
  await using folder = await testFolder();
  const cleared: string[] = [];
  let again = true;
  const watch = watchDamage({
    ...{ store: base.store, keyring: base.keyring, chunks: folderChunkStore(folder.path), node: "nd_1", shared: true },
    alarms: { raise: async () => {}, clear: async (one) => cleared.push(one) },
    // What was read first is gone by now, and whoever copies it finds that.
    onMended: async (one) => {
      if (again) watch.found(one, new GlassError("integrity", "chunk 0 is missing"));
    },
  });
  await watch.look(new AbortController().signal);
  expect(cleared).toEqual([]);
  again = false;
  await until(
    async () => {
      await watch.look(new AbortController().signal);
      return cleared;
    },
    (keys) => keys.length > 0,
  );
  expect(cleared).toEqual([key]);
});
