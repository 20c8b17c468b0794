import { readdir, readFile } from "node:fs/promises";
import { request } from "node:https";
import { join } from "node:path";
import pg from "pg";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";
import { newId } from "../core/ids.ts";
import { openStudio, type Studio } from "../recording/testing/terminal.ts";
import { openStore, type Store, type StoreAddress } from "../store/database.ts";
import { openKeyring } from "../store/keyring.ts";

let system: TestSystem;
let store: Store;
let studio: Studio;
let address: StoreAddress;

beforeAll(async () => {
  system = await startTestSystem(inject("pg18"));
  const { host, port, database } = system.config.database ?? { host: "", port: 0, database: "" };
  const { superuser, password } = inject("pg18");
  address = { host, port, database, user: superuser, password };
  store = openStore(address);
  const ann = await system.as("ann");
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  await client.query("select 1");
  await client.end();
  await ann.end(grant);
  const model = await store.selectFrom("sessions").selectAll().executeTakeFirstOrThrow();
  studio = await openStudio(
    system.config.dataDir,
    {
      ...{ store, address, keyring: await openKeyring(store, Buffer.alloc(32, 7)) },
      async session() {
        const id = newId("session");
        const { journal: _journal, journal_sequence: _sequence, ...row } = model;
        const fresh = {
          sealed_seq: 0,
          sealed_chunks: 0,
          recording_complete: false,
          client: JSON.stringify(row.client),
        };
        await store
          .insertInto("sessions")
          .values({ ...row, ...fresh, id })
          .execute();
        return id;
      },
      [Symbol.asyncDispose]: () => store.destroy(),
    },
    { dir: join(system.config.dataDir, "../studio") },
  );
});
afterAll(async () => {
  await studio?.[Symbol.asyncDispose]();
  await store?.destroy();
  await system?.dispose();
});

async function tokenOf(person: string): Promise<string> {
  const { token } = await (
    await system.as("")
  ).call<{ token: string }>("POST", "/v1/login", { name: person, secret: "a-secret-of-the-tests" });
  return token;
}

/** Sends a request and leaves while the server still asks its store whether it is allowed. */
async function leaveEarly(token: string, path: string): Promise<void> {
  const lock = new pg.Client({ ...address, user: address.user });
  await lock.connect();
  try {
    await lock.query("begin; lock table sessions in access exclusive mode");
    const { url, caFile } = system.server();
    const asked = request(new URL(path, url), {
      ...{ ca: await readFile(caFile, "utf8"), agent: false, headers: { authorization: `Bearer ${token}` } },
    });
    asked.on("error", () => {});
    asked.end();
    await expect
      .poll(
        async () =>
          (await lock.query("select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%grants%'"))
            .rowCount,
        { timeout: 20_000 },
      )
      .toBeGreaterThan(0);
    asked.destroy();
    await new Promise((done) => setTimeout(done, 300));
    await lock.query("commit");
  } finally {
    await lock.end();
  }
}

test("whoever leaves before their watch begins takes no place from anybody", { timeout: 120_000 }, async () => {
  const take = await studio.session();
  await take.begin();
  await take.end();
  await studio.sealer.sealNow();
  const token = await tokenOf("sam");
  for (let i = 0; i < 4; i++) await leaveEarly(token, `/v1/sessions/${take.session}/watch`);
  await new Promise((done) => setTimeout(done, 500));
  await (await system.as("sam")).refused("GET", `/v1/sessions/${take.session}/watch`).then(
    (x) => console.log(x),
    (e) => console.log(String(e)),
  );
});

test("threads", { timeout: 120_000 }, async () => {
  const take = await studio.session();
  await take.begin();
  await take.resize(80, 24);
  for (let i = 0; i < 50; i++) await take.output(`line ${i}\r\n`.repeat(1000));
  await take.end();
  await studio.sealer.sealNow();
  const token = await tokenOf("ida");
  const threads = async (): Promise<number> => (await readdir("/proc/self/task")).length;
  console.log("before", await threads());
  for (let i = 0; i < 5; i++) await leaveEarly(token, `/v1/sessions/${take.session}/replay?terminal=frames`);
  await new Promise((done) => setTimeout(done, 3000));
  console.log("after", await threads());
});
