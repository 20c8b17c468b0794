import { readdir, readFile } from "node:fs/promises";
import type { ClientRequest, IncomingMessage } from "node:http";
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

/** Sends a request, and leaves while the server waits for its store. */
async function leaveEarly(asked: ClientRequest): Promise<void> {
  const lock = new pg.Client(address);
  await lock.connect();
  try {
    await lock.query("begin; lock table sessions in access exclusive mode");
    asked.end();
    const waiting = "select 1 from pg_locks where not granted and relation = 'sessions'::regclass";
    await expect.poll(async () => (await system.storeQuery(waiting)).length, { timeout: 30_000 }).toBeGreaterThan(0);
    const left = new Promise((resolve) => {
      asked.once("close", resolve);
    });
    asked.destroy();
    await left;
    await lock.query("commit");
  } finally {
    await lock.end();
  }
}

/** A request as that person, on a connection of its own. */
async function ask(token: string, path: string, method = "GET"): Promise<ClientRequest> {
  const { url, caFile } = system.server();
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const asked = request(new URL(path, url), { method, ca: await readFile(caFile, "utf8"), agent: false, headers });
  asked.on("error", () => {});
  return asked;
}

async function answerTo(token: string, path: string): Promise<IncomingMessage> {
  const asked = await ask(token, path);
  asked.end();
  return new Promise((resolve, reject) => {
    asked.once("response", resolve);
    asked.once("error", reject);
  });
}

/** A recording of so many MiB of a terminal's output, which begins with it. */
async function terminal(mib: number): Promise<string> {
  const take = await studio.session();
  await take.resize(80, 24);
  for (let i = 0; i < mib * 4; i++) await take.output(`${"x".repeat(126)}\r\n`.repeat(2_048));
  await take.end();
  await studio.sealer.sealNow();
  return take.session;
}

test("whoever leaves before their watch begins takes no place from anybody", { timeout: 120_000 }, async () => {
  const session = await terminal(0);
  const token = await tokenOf("sam");
  for (let i = 0; i < 4; i++) await leaveEarly(await ask(token, `/v1/sessions/${session}/watch`));
  // Each of them would have taken one of four.
  const watched = await answerTo(token, `/v1/sessions/${session}/watch`);
  expect(watched.statusCode).toBe(200);
  watched.destroy();
});

test("a reading that cannot be noted shows nothing, and leaves no screen behind", { timeout: 120_000 }, async () => {
  const session = await terminal(1);
  const ida = await system.as("ida");
  const threads = async (): Promise<number> => (await readdir("/proc/self/task")).length;
  const before = await threads();
  await system.storeQuery("create function refuse() returns trigger language plpgsql as 'begin raise ''full''; end'");
  await system.storeQuery("create trigger unwritable before insert on log_queue execute function refuse()");
  try {
    for (let i = 0; i < 5; i++)
      expect(await ida.refused("GET", `/v1/sessions/${session}/export?format=text`)).toMatchObject({ status: 500 });
  } finally {
    await system.storeQuery("drop trigger unwritable on log_queue");
  }
  await expect.poll(threads, { timeout: 30_000 }).toBeLessThan(before + 3);
});

test("a person reads four recordings at once, and no more; a free place can be taken again", async () => {
  const session = await terminal(16);
  const token = await tokenOf("ida");
  const path = `/v1/sessions/${session}/export?format=raw`;
  const stalled = await Promise.all(Array.from({ length: 4 }, async () => answerTo(token, path)));
  const refused = await (await system.as("ida")).refused("GET", `/v1/sessions/${session}/replay`);
  expect(refused).toMatchObject({ status: 429, code: "too_many_attempts" });
  for (const one of stalled) one.destroy();
  await expect
    .poll(
      async () => {
        const again = await answerTo(token, path);
        again.destroy();
        return again.statusCode;
      },
      { timeout: 30_000 },
    )
    .toBe(200);
});

test("a reader who loses the right in the middle gets no more of the recording", { timeout: 120_000 }, async () => {
  const session = await terminal(32);
  const token = await tokenOf("ida");
  const answer = await answerTo(token, `/v1/sessions/${session}/export?format=raw`);
  let bytes = 0;
  answer.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    answer.pause(); // slowly, as who replays
    setTimeout(() => answer.resume(), 20);
  });
  await expect.poll(() => bytes, { timeout: 30_000 }).toBeGreaterThan(0);
  await system.storeQuery("delete from tokens where person = 'ida'");
  await new Promise((resolve) => {
    answer.once("end", resolve);
  });
  const end = JSON.parse(Buffer.from(answer.trailers["glass-end"] ?? "", "base64url").toString()) as object;
  expect(end).toMatchObject({ code: "unauthenticated" });
});

test("whoever leaves during a search is no defect that the server warns of", async () => {
  const token = await tokenOf("ida");
  const asked = await ask(token, "/v1/recordings/search", "POST");
  asked.write('{"text":"x"}');
  await leaveEarly(asked);
  const ida = await system.as("ida");
  await expect
    .poll(
      () =>
        ida.call("POST", "/v1/recordings/search", { text: "x" }).then(
          () => "found",
          () => "busy",
        ),
      {
        timeout: 30_000,
      },
    )
    .toBe("found");
  expect(system.warnings.filter((line) => line.includes("search"))).toEqual([]);
});

test("numbers, names and cursors that the store cannot hold are the caller's mistake, not the server's", async () => {
  const ida = await system.as("ida");
  const session = await terminal(0);
  expect(await ida.refused("GET", `/v1/sessions/${session}/chunks/9999999999`)).toMatchObject({ code: "usage" });
  expect(await ida.refused("GET", `/v1/sessions/${session}/chunks/1e3`)).toMatchObject({ code: "not_found" });
  for (const key of ["person", "target", "playbook", "cursor"])
    expect(await ida.refused("POST", "/v1/recordings/search", { text: "x", [key]: "\0" })).toMatchObject({
      code: "usage",
    });
  const forged = Buffer.from(JSON.stringify([-8.64e15, session, 0])).toString("base64url");
  expect(await ida.refused("POST", "/v1/recordings/search", { text: "x", cursor: forged })).toMatchObject({
    code: "usage",
  });
});
