import { createPrivateKey, hash } from "node:crypto";
import { join } from "node:path";
import {
  createSigner,
  openCheckpoint,
  parseNote,
  parseVerifierKeys,
  verifyFolder,
  type NoteSigner,
} from "@glasskey/verify";
import pg from "pg";
import { afterEach, expect, inject, test } from "vitest";
import { clientConfig } from "../store/database.ts";
import { exportLog } from "./export.ts";
import { createLog, type LogFixture } from "./fixtures/log.ts";
import { MAX_IN_FORCE, openLogKeys, type LogKeys } from "./keys.ts";
import { createLogReader, type LogReader } from "./read.ts";
import { startSequencer, type Sequencer } from "./sequencer.ts";

const ADMIN = "pe_0123456789ab";
const logs: LogFixture[] = [];
const running: Sequencer[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((sequencer) => sequencer.stop()));
  await Promise.all(logs.splice(0).map((log) => log.dispose()));
});

/** Derived by generation, as main.ts does it from the keyring. */
function signerOf(generation: number, origin = "glasskey.test/log", secret = "own"): NoteSigner {
  const seed = hash("sha256", `${secret} ${generation}`, "buffer");
  const der = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), seed]);
  return createSigner(origin, createPrivateKey({ key: der, format: "der", type: "pkcs8" }));
}

interface Fixture extends LogFixture {
  readonly reader: LogReader;
  readonly keys: LogKeys;
  readonly broken: Error[];
  start(headFile?: string): Promise<Sequencer>;
}

async function fixture(): Promise<Fixture> {
  const log = await createLog(inject("pg18"));
  logs.push(log);
  const broken: Error[] = [];
  return {
    ...log,
    broken,
    reader: createLogReader(log.store),
    keys: await openLogKeys(log.store, signerOf),
    async start(headFile = log.headFile) {
      const sequencer = await startSequencer({
        ...{ address: log.address, signerOf, headFile },
        onProblem: () => {},
        onIntegrityError: (error) => broken.push(error),
      });
      running.push(sequencer);
      return sequencer;
    },
  };
}

const signedBy = (note: string): number[] => {
  const ids = parseNote(note).signatures.map(({ keyId }) => keyId);
  return [1, 2, 3, 4].filter((generation) => ids.includes(signerOf(generation).keyId));
};

async function newest({ reader }: Fixture): Promise<string> {
  await reader.settled(30_000);
  return (await reader.checkpoint()) ?? "";
}

test("a key is added: its entry is logged, and from then on every checkpoint has both signatures", async () => {
  const log = await fixture();
  await log.start();
  await log.append({});
  expect(signedBy(await newest(log))).toEqual([1]);
  const added = await log.keys.add(ADMIN);
  expect(added).toMatchObject({ generation: 2, vkey: signerOf(2).vkey, retiredAt: null });
  const both = await newest(log);
  expect(signedBy(both)).toEqual([1, 2]);
  for (const generation of [1, 2])
    expect(openCheckpoint(both, parseVerifierKeys(signerOf(generation).vkey)).size).toBe(2);
  const [entry] = await log.reader.entries({ from: 1, limit: 1 });
  expect(entry?.entry).toMatchObject({
    type: "log.key_added",
    actor: ADMIN,
    data: { generation: 2, vkey: signerOf(2).vkey },
  });
});

test("a key is retired: it signs no more, and what it alone signed still verifies in the export", async () => {
  const log = await fixture();
  const first = await log.start();
  await log.append({});
  const old = await newest(log);
  const folder = join(log.folder, "export");
  await exportLog({ store: log.store, folder, vkey: await log.keys.text() });
  await log.keys.add(ADMIN);
  await newest(log);
  const retired = await log.keys.retire(1, ADMIN);
  expect(retired.retiredAt).toBeInstanceOf(Date);
  expect(signedBy(await newest(log))).toEqual([2]);
  await first.stop();
  await log.start(); // whose last checkpoint has no signature of the first key, and whose kept ones have no other
  await log.append({});
  expect(signedBy(await newest(log))).toEqual([2]);
  expect(log.broken).toEqual([]);

  const text = await log.keys.text();
  expect(text).toBe(`${signerOf(2).vkey}\n${signerOf(1).vkey}\n`);
  const described = await log.keys.described();
  expect(described).toMatch(/^# Key 2, in force:.*\n\S+\n# Key 1, retired .*\n\S+\n$/);
  expect(
    parseVerifierKeys(described)
      .map(({ vkey }) => `${vkey}\n`)
      .join(""),
  ).toBe(text);
  await exportLog({ store: log.store, folder, vkey: text });
  expect(await verifyFolder({ folder, vkey: text, since: old })).toMatchObject({ ok: true, size: 4, problems: [] });
  expect(await verifyFolder({ folder, vkey: signerOf(2).vkey, since: old })).toMatchObject({ ok: false });
  const last = await log.reader.entries({ from: 2, to: 3, limit: 1 });
  expect(last[0]?.entry).toMatchObject({ type: "log.key_retired", data: { generation: 1, vkey: signerOf(1).vkey } });
});

test("the last key is never retired, a retired one not again, and there are no more than a few at once", async () => {
  const log = await fixture();
  await log.start();
  await log.append({});
  await newest(log);
  await expect(log.keys.retire(1, ADMIN)).rejects.toMatchObject({ code: "conflict", next: /glass log key add/ });
  await expect(log.keys.retire(2, ADMIN)).rejects.toMatchObject({ code: "not_found" });
  await log.keys.add(ADMIN);
  await newest(log);
  await log.keys.retire(1, ADMIN);
  await expect(log.keys.retire(1, ADMIN)).rejects.toMatchObject({ code: "conflict" });
  await expect(log.keys.retire(2, ADMIN)).rejects.toMatchObject({ code: "conflict" });
  for (let more = 1; more < MAX_IN_FORCE; more += 1) await log.keys.add(ADMIN);
  await expect(log.keys.add(ADMIN)).rejects.toMatchObject({ code: "conflict" });
  for (const sql of [
    "update log_keys set retired_at = null where generation = 1",
    "update log_keys set vkey = 'x' where generation = 2",
    "delete from log_keys",
    "truncate log_keys",
    "update log_keys set retired_at = now() where retired_at is null",
  ])
    await expect(log.query(sql), sql).rejects.toMatchObject({ code: "42501" });
});

test("a key that has signed nothing yet does not stand in for the one that is to be retired", async () => {
  const log = await fixture();
  const sequencer = await log.start();
  await log.append({});
  await newest(log);
  await sequencer.stop();
  await log.keys.add(ADMIN);
  await expect(log.keys.retire(1, ADMIN)).rejects.toMatchObject({
    code: "conflict",
    message: expect.stringContaining("no checkpoint has the signature"),
  });
  await log.start();
  await newest(log);
  await log.keys.retire(1, ADMIN);
});

test("additions and retirements at the same moment, many times, give one history and leave a key", async () => {
  const log = await fixture();
  await log.start();
  await log.append({});
  await newest(log);
  const tries = await Promise.allSettled(Array.from({ length: 12 }, () => log.keys.add(ADMIN)));
  expect(tries.filter(({ status }) => status === "fulfilled")).toHaveLength(MAX_IN_FORCE - 1);
  await newest(log);
  const ends = await Promise.allSettled([1, 2, 3, 1, 2, 3].map((generation) => log.keys.retire(generation, ADMIN)));
  expect(ends.filter(({ status }) => status === "fulfilled")).toHaveLength(MAX_IN_FORCE - 1);
  const keys = await log.keys.list();
  expect(keys.filter((key) => key.retiredAt === null)).toHaveLength(1);
  const entries = await log.reader.settled(30_000).then(() => log.reader.entries({ limit: 100 }));
  const changes = entries.filter(({ bytes }) => bytes.includes('"type":"log.key_'));
  expect(changes).toHaveLength(2 * (MAX_IN_FORCE - 1));
});

test("two processes: no checkpoint is signed by fewer keys than were in force when it was published", async () => {
  const log = await fixture();
  const sequencers = [await log.start(), await log.start(join(log.folder, "head of the other machine"))];
  const done = new AbortController();
  const appending = (async () => {
    while (!done.signal.aborted) await log.append({}, {});
  })();
  const kill = (): Promise<unknown> =>
    log.query(
      "select pg_terminate_backend(l.pid) from pg_locks l where locktype = 'advisory' and granted and objid = 1735159655 and l.database = (select oid from pg_database where datname = current_database())",
    );
  for (const change of [
    () => log.keys.add(ADMIN),
    () => log.keys.add(ADMIN),
    () => log.keys.retire(1, ADMIN),
    () => log.keys.add(ADMIN),
    () => log.keys.retire(3, ADMIN),
  ]) {
    const before = await log.reader.size();
    await expect.poll(() => log.reader.size(), { timeout: 30_000 }).toBeGreaterThan(before + 2);
    await kill();
    await expect
      .poll(
        () =>
          change().then(
            () => true,
            () => false,
          ),
        { timeout: 30_000 },
      )
      .toBe(true);
  }
  done.abort();
  await appending;
  await newest(log);
  await expect.poll(() => sequencers.filter((sequencer) => sequencer.leads())).toHaveLength(1); // who was cut off sees it soon
  expect(log.broken).toEqual([]);
  const { rows } = await log.query(
    `select c.note, array(select generation from log_keys k where added_at < c.signed_at
       and (retired_at is null or retired_at > c.signed_at) order by generation) as wanted
     from log_checkpoints c order by size`,
  );
  expect(rows.length).toBeGreaterThan(5);
  for (const row of rows)
    expect(signedBy(String(row["note"]))).toEqual(expect.arrayContaining(row["wanted"] as number[]));
  expect(signedBy(String(rows.at(-1)?.["note"]))).toEqual([2, 4]);
});

test("a key that is added while a checkpoint is being published waits until it is, and signs the next", async () => {
  const log = await fixture();
  await log.start();
  await log.append({});
  await newest(log);
  const blocker = new pg.Client(clientConfig(log.address));
  await blocker.connect();
  try {
    // The publisher has read the keys and signed, and cannot publish.
    await blocker.query("begin; lock table log_checkpoints in share row exclusive mode");
    await log.append({});
    const waiting = async (event: string): Promise<boolean> => {
      const { rows } = await log.query(
        "select from pg_stat_activity where datname = current_database() and wait_event = $1",
        [event],
      );
      return rows.length > 0;
    };
    await expect.poll(() => waiting("relation"), { timeout: 30_000 }).toBe(true);
    let added = false;
    const adding = log.keys.add(ADMIN).then(() => (added = true));
    await expect.poll(() => added || waiting("advisory"), { timeout: 30_000 }).toBe(true);
    expect(added).toBe(false);
    await blocker.query("rollback");
    await adding;
  } finally {
    await blocker.end();
  }
  await newest(log);
  const { rows } = await log.query("select size, note from log_checkpoints order by size");
  expect(rows.map((row) => [row["size"], signedBy(String(row["note"]))])).toEqual([
    [1, [1]],
    [2, [1]],
    [3, [1, 2]],
  ]);
});

test("a crash between the commit of a key and the next signature: the next to lead signs with both", async () => {
  const log = await fixture();
  const first = await log.start();
  await log.append({});
  const before = await newest(log);
  await first.stop();
  await log.keys.add(ADMIN); // and nobody signs
  await log.query("set session_replication_role = replica; delete from log_checkpoints"); // the head file alone has it
  await log.start();
  const after = await newest(log);
  expect(signedBy(after)).toEqual([1, 2]);
  expect(openCheckpoint(after, parseVerifierKeys(signerOf(1).vkey)).size).toBe(2);
  expect(signedBy(before)).toEqual([1]);
  expect(log.broken).toEqual([]);
});

test("insider who adds a key of their own to the table gets no signature believed: the log stops", async () => {
  const log = await fixture();
  const sequencer = await log.start();
  await log.append({});
  await newest(log);
  const own = signerOf(2, "glasskey.test/log", "the insider's");
  await log.query("insert into log_keys (generation, vkey) values (2, $1)", [own.vkey]);
  await log.append({});
  await expect.poll(() => log.broken.length, { timeout: 30_000 }).toBe(1);
  expect(log.broken[0]).toMatchObject({ code: "integrity", message: expect.stringContaining("key 2 in its table") });
  await sequencer.stop();
  expect(await (await openLogKeys(log.store, signerOf)).text()).not.toContain(own.vkey);
  await expect(log.keys.add(ADMIN)).rejects.toMatchObject({ code: "integrity" });
  await expect(log.start()).rejects.toMatchObject({ code: "integrity" });
  expect(await log.reader.size()).toBe(1);
});

test("a log from before the table of keys goes on: its key becomes the first generation", async () => {
  const log = await createLog(inject("pg18"));
  logs.push(log);
  const before = await log.sequence({ signer: signerOf(1) }); // one key, and no table
  await log.append({});
  const reader = createLogReader(log.store);
  await reader.settled(30_000);
  await before.stop();
  const old = await reader.checkpoint();
  const keys = await openLogKeys(log.store, signerOf);
  expect(await keys.text()).toBe(`${signerOf(1).vkey}\n`);
  const sequencer = await startSequencer({
    ...{ address: log.address, signerOf, headFile: log.headFile },
    onProblem: () => {},
    onIntegrityError: () => {},
  });
  running.push(sequencer);
  await log.append({});
  expect(await reader.settled(30_000)).toBe(2);
  const folder = join(log.folder, "export");
  await exportLog({ store: log.store, folder, vkey: signerOf(1).vkey });
  expect(await verifyFolder({ folder, vkey: signerOf(1).vkey, since: old })).toMatchObject({ ok: true, size: 2 });
});

test("a log is never continued under another origin: the start says which one it has", async () => {
  const log = await fixture();
  await expect(openLogKeys(log.store, (n) => signerOf(n, "glasskey.test/other"))).rejects.toMatchObject({
    code: "config_invalid",
    next: expect.stringContaining("origin: glasskey.test/log"),
  });
});
