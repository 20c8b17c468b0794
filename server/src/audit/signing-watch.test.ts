import pg from "pg";
import { afterEach, expect, inject, test } from "vitest";
import { clientConfig } from "../store/database.ts";
import { startTestSystem } from "../../testing/system.ts";
import { createLogReader } from "./read.ts";
import { watchSigning } from "./signing-watch.ts";
import { openStore } from "../store/database.ts";

const NOTHING = {
  ...{ witnessed: undefined, archived: undefined, signedAt: undefined },
  ...{ waitingSince: undefined, unwitnessedSince: undefined },
};

const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

test("insider who holds the lock of the log's leader stops the signing: nothing is lost, and somebody is told", async () => {
  const system = await startTestSystem(inject("pg18"));
  undo.push(() => system.dispose());
  const { port, superuser, password } = inject("pg18");
  const database = system.config.database?.database ?? "";
  const address = { host: "127.0.0.1", port, user: superuser, password, database };
  const store = openStore(address);
  undo.push(() => store.destroy());
  // With the application's rights: any session of the database may take any advisory lock.
  const insider = new pg.Client(clientConfig(address));
  insider.on("error", () => {});
  await insider.connect();
  undo.push(() => insider.end());
  await insider.query(`set role ${system.config.database?.user}`);
  const taken = insider.query("select pg_advisory_lock(1735159655)"); // 0x676c6f67
  await system.storeQuery(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'glasskey log' and datname = current_database()",
  );
  await taken;
  await (await system.as("ann")).break("repair");

  let nowMs = 0;
  let explained = false;
  const open = new Map<string, string>();
  const look = watchSigning({
    reader: createLogReader(store),
    ...{ explained: () => explained, monotonicMs: () => nowMs },
    alarms: {
      raise: (key, text) => Promise.resolve(open.set(key, text)),
      clear: (key) => Promise.resolve(open.delete(key)),
    },
  });
  await look();
  nowMs = 59_000;
  await look();
  expect([...open.keys()]).toEqual([]);
  nowMs = 61_000;
  explained = true; // the log does not verify: that is an alarm of its own
  await look();
  expect([...open.keys()]).toEqual([]);
  explained = false;
  await look();
  expect(open.get("log waits")).toMatch(/^nothing was signed for 1m, and \d+ events wait/);

  await insider.query("select pg_advisory_unlock_all()");
  await createLogReader(store).settled(20_000);
  await look();
  expect([...open.keys()]).toEqual([]);
  const told = await system.storeQuery(
    "select 1 from log_entries where convert_from(entry, 'UTF8') like '%grant.requested%'",
  );
  expect(told).toHaveLength(1);
}, 120_000);

test("an alarm that another process raised is not ended while nothing is signed, and is ended once something is", async () => {
  let nowMs = 0;
  let progress = { size: 7, waiting: 3 };
  const open = new Map<string, string>([["log waits", "raised by another process"]]);
  const start = (): (() => Promise<void>) =>
    watchSigning({
      reader: { progress: () => Promise.resolve({ ...NOTHING, ...progress }) },
      ...{ explained: () => false, monotonicMs: () => nowMs },
      alarms: {
        raise: (key, text) => Promise.resolve(open.set(key, text)),
        clear: (key) => Promise.resolve(open.delete(key)),
      },
    });
  const look = start();
  await look();
  expect(open.size, "it has only begun to look").toBe(1);
  nowMs = 61_000;
  await look();
  expect(open.get("log waits")).toMatch(/^nothing was signed for 1m/);
  open.clear(); // one that begins to look may be wrong about it, whatever it is
  await look();
  expect(open.size).toBe(1);

  const later = start(); // which was never late itself
  await later();
  progress = { size: 9, waiting: 1 };
  await later();
  expect(open.size).toBe(0);
});
