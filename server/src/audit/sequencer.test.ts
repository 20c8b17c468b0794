import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  createSigner,
  leafHash,
  openCheckpoint,
  parseVerifierKeys,
  signCheckpoint,
  verifyFolder,
  verifyProof,
} from "@glasskey/verify";
import { generateKeyPairSync, hash } from "node:crypto";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { afterEach, describe, expect, inject, test } from "vitest";
import { append } from "./append.ts";
import { exportLog } from "./export.ts";
import { createLogReader, type LogReader } from "./read.ts";
import { maySign, startSequencer } from "./sequencer.ts";
import { createLog, logSigner, someEvent, type LogFixture } from "./fixtures/log.ts";

const logs: LogFixture[] = [];
afterEach(async () => {
  await Promise.all(logs.splice(0).map((log) => log.dispose()));
});

const clusters = { "PostgreSQL 18": inject("pg18"), "PostgreSQL 15": inject("pg15") };

async function fixture(cluster = inject("pg18")): Promise<LogFixture & { reader: LogReader }> {
  const log = await createLog(cluster);
  logs.push(log);
  return { ...log, reader: createLogReader(log.store) };
}

/** Exports to a new folder and verifies it from outside. */
async function audit(log: LogFixture, name: string, since?: string) {
  const folder = join(log.folder, name);
  await exportLog({ store: log.store, folder, vkey: log.signer.vkey });
  return verifyFolder({ folder, vkey: log.signer.vkey, since });
}

async function numbers(reader: LogReader): Promise<unknown[]> {
  const all: unknown[] = [];
  for (let from = 0; ; from += 1_000) {
    const page = await reader.entries({ from, limit: 1_000 });
    all.push(...page.map(({ entry }) => (entry["data"] as { n: unknown }).n));
    if (page.length < 1_000) return all;
  }
}

async function until(what: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 30_000;
  while (!(await what())) {
    if (performance.now() > deadline) throw new Error("it did not happen");
    await new Promise((done) => setTimeout(done, 20));
  }
}

describe.each(Object.entries(clusters).filter(([, cluster]) => cluster !== undefined))("on %s", (_name, cluster) => {
  test("committed events become entries, in order, under a signed checkpoint, and the export verifies", async () => {
    const log = await fixture(cluster);
    await log.sequence();
    await log.append({ data: { n: 0 } }, { data: { n: 1 }, grant: "gr_0123456789ab" });
    expect(await log.reader.settled(20_000)).toBe(2);
    await log.append({ data: { n: 2 } });
    expect(await log.reader.settled(20_000)).toBe(3);
    expect(await numbers(log.reader)).toEqual([0, 1, 2]);
    expect((await log.reader.entries({ grant: "gr_0123456789ab", limit: 9 })).map((e) => e.index)).toEqual([1]);
    expect(await audit(log, "export")).toMatchObject({ ok: true, size: 3, problems: [] });
  });

  test("50 appenders, a third of which roll back: no gap, no duplicate, nothing of what was rolled back", async () => {
    const log = await fixture(cluster);
    await log.sequence();
    const committed = new Set<number>();
    const worker = async (w: number): Promise<void> => {
      for (let i = 0; i < 12; i += 1) {
        const n = w * 100 + i;
        const rollBack = n % 3 === 0;
        const done = log.store.transaction().execute(async (trx) => {
          await append(trx, someEvent(n));
          if (i % 4 === 0) await new Promise((resolve) => setTimeout(resolve, (n * 7) % 30)); // ids become visible out of order
          if (rollBack) throw new Error("rolled back");
        });
        const outcome = await done.then(() => "committed", String);
        expect(outcome).toBe(rollBack ? "Error: rolled back" : "committed");
        if (!rollBack) committed.add(n);
      }
    };
    await Promise.all(Array.from({ length: 50 }, (_, w) => worker(w)));
    await log.reader.settled(20_000);
    const logged = await numbers(log.reader);
    expect(logged).toHaveLength(committed.size);
    expect(new Set(logged)).toEqual(committed);
    for (let w = 0; w < 50; w += 1) {
      const own = logged.filter((n) => Math.floor(Number(n) / 100) === w).map(Number);
      expect(own, "one after the other stays so").toEqual(own.toSorted((a, b) => a - b));
    }
    expect(await audit(log, "export")).toMatchObject({ ok: true, size: committed.size });
  });

  test("several sequencers at once, whose leaders are killed again and again, never fork or lose an entry", async () => {
    const log = await fixture(cluster);
    const sequencers = [await log.sequence(), await log.sequence(), await log.sequence()];
    let appended = 0;
    const done = new AbortController();
    const appending = (async () => {
      while (!done.signal.aborted) await log.append({ data: { n: appended++ } }, { data: { n: appended++ } });
    })();
    for (let kill = 0; kill < 8; kill += 1) {
      await until(() => sequencers.filter((s) => s.leads()).length === 1);
      const before = await log.reader.size();
      await until(async () => (await log.reader.size()) > before);
      await log.query(
        "select pg_terminate_backend(l.pid) from pg_locks l where locktype = 'advisory' and granted and l.database = (select oid from pg_database where datname = current_database())",
      );
    }
    done.abort();
    await appending;
    await log.reader.settled(30_000);
    expect(await numbers(log.reader)).toEqual(Array.from({ length: appended }, (_, n) => n));
    expect(sequencers.flatMap((s) => s.broken)).toEqual([]);
    expect(await audit(log, "export")).toMatchObject({ ok: true, size: appended });
    const { rows } = await log.query("select note from log_checkpoints order by size");
    const keys = parseVerifierKeys(log.signer.vkey);
    const folder = join(log.folder, "export");
    for (const row of rows.slice(-40)) {
      const report = await verifyFolder({ folder, vkey: log.signer.vkey, since: String(row["note"]) });
      expect(report.ok, `grew from ${openCheckpoint(String(row["note"]), keys).size}`).toBe(true);
    }
  });

  test("entries and checkpoints cannot be updated, deleted or truncated, and tiles only grow", async () => {
    const log = await fixture(cluster);
    await log.sequence();
    await log.append({}, {});
    await log.reader.settled(20_000);
    for (const sql of [
      "update log_entries set entry = '\\x7b7d'",
      "delete from log_entries",
      "truncate log_entries",
      "update log_checkpoints set note = ''",
      "delete from log_checkpoints",
      "truncate log_checkpoints",
      "delete from log_tiles",
      "truncate log_tiles",
      "update log_tiles set hashes = sha256('') || sha256('')",
      "update log_tiles set hashes = substring(hashes from 1 for 32)",
      "update log_head set size = 1",
      "delete from log_head",
      "truncate log_head",
    ]) {
      await expect(log.query(sql), sql).rejects.toMatchObject({ code: "42501" });
    }
    expect(await audit(log, "export")).toMatchObject({ ok: true });
  });
});

test("a transaction that commits late, behind ids that are already in the log, is taken all the same", async () => {
  const log = await fixture();
  await log.sequence();
  const [appended, mayCommit] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const late = log.store.transaction().execute(async (trx) => {
    await append(trx, someEvent(1)); // has the smaller id
    appended.resolve();
    await mayCommit.promise;
  });
  await appended.promise;
  await log.append({ data: { n: 2 } });
  await log.reader.settled(20_000);
  expect(await numbers(log.reader)).toEqual([2]);
  mayCommit.resolve();
  await late;
  await log.reader.settled(20_000);
  expect(await numbers(log.reader)).toEqual([2, 1]);
});

test("thousands of entries fill tiles of two levels, every file is served as it is exported, and proofs verify", async () => {
  const log = await fixture();
  await log.query(
    `insert into log_queue (entry) select convert_to('{"n":' || n || '}', 'UTF8') from generate_series(0, 69999) n`,
  );
  await log.sequence();
  await log.reader.settled(60_000);
  const folder = join(log.folder, "export");
  await exportLog({ store: log.store, folder, vkey: log.signer.vkey });
  const report = await verifyFolder({ folder, vkey: log.signer.vkey });
  expect(report).toMatchObject({ ok: true, size: 70_000, problems: [] });
  for (const path of [
    "checkpoint",
    "tile/0/272",
    "tile/0/273.p/112",
    "tile/1/001.p/17",
    "tile/2/000.p/1",
    "tile/entries/273.p/112",
  ]) {
    const file = await log.reader.file(path);
    expect(file?.bytes.equals(await readFile(join(folder, path))), path).toBe(true);
    expect(file?.immutable).toBe(path !== "checkpoint");
  }
  const earlier = await log.reader.file("tile/0/273.p/5"); // of an earlier checkpoint, perhaps
  expect(earlier?.bytes).toHaveLength(5 * 32);
  for (const path of [
    "tile/0/274",
    "tile/0/273",
    "tile/0/273.p/113",
    "tile/3/000.p/1",
    "tile/0/000.p/256",
    "../checkpoint",
    "",
  ]) {
    expect(await log.reader.file(path), path).toBeUndefined();
  }
  for (const index of [0, 255, 256, 65_535, 65_536, 69_999]) {
    const { proof, entry } = await log.reader.prove(index);
    expect(entry.toString()).toBe(`{"n":${index}}`);
    expect(verifyProof({ proof, entry, vkey: log.signer.vkey }).index).toBe(index);
  }
  await expect(log.reader.prove(70_000)).rejects.toMatchObject({ code: "not_found" });
  await expect(log.reader.prove(-1)).rejects.toMatchObject({ code: "not_found" });
});

test("an export is brought up to date, keeps its checkpoints, and refuses a folder of another history", async () => {
  const log = await fixture();
  const sequencer = await log.sequence();
  const folder = join(log.folder, "export");
  for (const count of [3, 250, 10, 600]) {
    await log.query(
      `insert into log_queue (entry) select convert_to('{"n":' || n || '}', 'UTF8') from generate_series(1, ${count}) n`,
    );
    await log.reader.settled(20_000);
    await exportLog({ store: log.store, folder, vkey: log.signer.vkey });
    await exportLog({ store: log.store, folder, vkey: log.signer.vkey }); // again, with no news
    expect(await verifyFolder({ folder, vkey: log.signer.vkey })).toMatchObject({ ok: true, problems: [] });
  }
  const report = await verifyFolder({ folder, vkey: log.signer.vkey });
  expect(report).toMatchObject({ size: 863, totals: { checkpoints: 5 } });
  const forged = signCheckpoint({ origin: log.signer.name, size: 100, root: Buffer.alloc(32) }, [log.signer]);
  await writeFile(join(folder, "checkpoint"), forged);
  await expect(exportLog({ store: log.store, folder, vkey: log.signer.vkey })).rejects.toMatchObject({
    code: "integrity",
  });
  await writeFile(join(folder, "checkpoint"), "not a checkpoint\n");
  await expect(exportLog({ store: log.store, folder, vkey: log.signer.vkey })).rejects.toMatchObject({
    code: "integrity",
  });
  await sequencer.stop();
});

test("a folder that is kept up to date while the log grows verifies at any moment, and holds all of it in the end", async () => {
  const log = await fixture();
  const sequencer = await log.sequence();
  const folder = join(log.folder, "export");
  let appended = 0;
  await log.append({ data: { n: appended++ } });
  await log.reader.settled(20_000);
  const done = new AbortController();
  const appending = (async () => {
    while (!done.signal.aborted) {
      await log.append(...Array.from({ length: 40 }, () => ({ data: { n: appended++ } })));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  })();
  const exporting = (async () => {
    while (!done.signal.aborted) {
      await exportLog({ store: log.store, folder, vkey: log.signer.vkey, keepCheckpoint: false });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  })();
  await until(() =>
    readFile(join(folder, "checkpoint")).then(
      () => true,
      () => false,
    ),
  );
  for (let i = 0; i < 12; i += 1) {
    const report = await verifyFolder({ folder, vkey: log.signer.vkey, settleMs: 20_000 });
    expect(report).toMatchObject({ ok: true, problems: [] });
    await new Promise((resolve) => setTimeout(resolve, 130));
  }
  done.abort();
  await Promise.all([appending, exporting]);
  await sequencer.stop();
  await exportLog({ store: log.store, folder, vkey: log.signer.vkey });
  expect(await verifyFolder({ folder, vkey: log.signer.vkey })).toMatchObject({ ok: true, size: appended });
});

test("recordings are exported beside the log, and what is gone is named by export and verifier alike", async () => {
  const log = await fixture();
  await log.sequence();
  const chunks = new Map([0, 1].map((n) => [n, Buffer.from(`chunk ${n}`)]));
  const session = "se_0123456789ab";
  const sealed = (chunk: number, bytes: Buffer) =>
    ({
      type: "recording.sealed",
      session,
      data: { chunk, bytes: bytes.length, sha256: hash("sha256", bytes) },
    }) as const;
  await log.append(...[...chunks].map(([n, bytes]) => sealed(n, bytes)), sealed(2, Buffer.from("gone")));
  await log.reader.settled(20_000);
  const folder = join(log.folder, "export");
  const result = await exportLog({
    ...{ store: log.store, folder, vkey: log.signer.vkey },
    readChunk: ({ chunk }) => Promise.resolve(chunks.get(chunk)),
  });
  expect(result).toMatchObject({ chunks: 2, missingChunks: [`chunks/${session}/2.gkc`] });
  expect((await verifyFolder({ folder, vkey: log.signer.vkey })).problems).toEqual([
    { where: `chunks/${session}/2.gkc`, entry: 2, what: "is missing" },
  ]);
});

test("a store that was restored from an old backup is refused at the start: the signed head in the folder is ahead", async () => {
  const log = await fixture();
  const backup = await fixture();
  const first = await log.sequence();
  await log.append({ data: { n: 1 } });
  await log.reader.settled(20_000);
  await first.stop();
  const second = await backup.sequence(); // the same log up to here, as a backup would be
  await backup.append({ data: { n: 1 } });
  await backup.reader.settled(20_000);
  await second.stop();
  const third = await log.sequence();
  await log.append({ data: { n: 2 } });
  await log.reader.settled(20_000);
  await third.stop();
  await expect(backup.sequence({ headFile: log.headFile })).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringMatching(/the signed head in the data folder covers 2 entries, and the store has 1/),
  });
});

test("a store with another history at the signed size is refused at the start", async () => {
  const [log, other] = [await fixture(), await fixture()];
  for (const [l, n] of [
    [log, 1],
    [other, 2],
  ] as const) {
    const sequencer = await l.sequence();
    await l.append({ data: { n } });
    await l.reader.settled(20_000);
    await sequencer.stop();
  }
  await expect(other.sequence({ headFile: log.headFile })).rejects.toThrow(/has another root at size 1/);
  await expect(log.sequence({ signer: logSigner("another key") })).rejects.toThrow(/no signature by/);
});

// The insider is the superuser of the store, and takes the triggers away first.
test.each([
  [
    "edits the last entry",
    "update log_entries set entry = '\\x7b7d' where idx = 2",
    /entry 2 is not the one in its tree/,
  ],
  ["deletes the last entry", "delete from log_entries where idx = 2", /just the entries of its head/],
  [
    "adds an entry",
    "insert into log_entries select 3, entry, leaf_hash, grant_id from log_entries where idx = 0",
    /just the entries/,
  ],
  ["lowers the head", "update log_head set size = 2", /does not have the 2 hashes/],
  [
    "edits a tile",
    "update log_tiles set hashes = sha256('x') || substring(hashes from 33)",
    /do not have the root of its head/,
  ],
  ["edits the head's root", "update log_head set root = sha256('x')", /do not have the root of its head/],
  ["edits a checkpoint", "update log_checkpoints set root = sha256('x')", /row is not what its note says/],
  [
    "empties the log",
    "delete from log_entries; delete from log_tiles; delete from log_checkpoints; update log_head set size = 0, root = sha256('')",
    /covers 3 entries, and the store has 0/,
  ],
])("insider who %s: the next start is refused", async (_what, sql, message) => {
  const log = await fixture();
  const sequencer = await log.sequence();
  await log.append({ data: { n: 0 } }, { data: { n: 1 } }, { data: { n: 2 } });
  await log.reader.settled(20_000);
  await sequencer.stop();
  await log.query(`set session_replication_role = replica; ${sql}`);
  await expect(log.sequence()).rejects.toMatchObject({ code: "integrity", message: expect.stringMatching(message) });
});

test("insider at work while sequencers run: the next one to lead stops, says why, and signs nothing more", async () => {
  const log = await fixture();
  const sequencer = await log.sequence();
  await log.append({ data: { n: 0 } }, { data: { n: 1 } });
  await log.reader.settled(20_000);
  const signed = await log.reader.checkpoint();
  await log.query("set session_replication_role = replica; update log_entries set entry = '\\x7b7d' where idx = 1");
  await log.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'glasskey log' and datname = current_database()",
  );
  await until(() => sequencer.broken.length > 0);
  expect(sequencer.broken[0]).toMatchObject({
    code: "integrity",
    message: expect.stringMatching(/entry 1 is not the one/),
  });
  await log.append({ data: { n: 2 } });
  await expect(log.reader.settled(300)).rejects.toMatchObject({ code: "store_unavailable" });
  expect(await log.reader.checkpoint()).toBe(signed);
});

test("insider who edits an entry deep in the store is named by the verifier", async () => {
  const log = await fixture();
  await log.sequence();
  await log.query(
    `insert into log_queue (entry) select convert_to('{"n":' || n || '}', 'UTF8') from generate_series(0, 999) n`,
  );
  await log.reader.settled(20_000);
  await log.query(
    `set session_replication_role = replica; update log_entries set entry = convert_to('{"n":-7}', 'UTF8') where idx = 7`,
  );
  const report = await audit(log, "export");
  expect(report.problems).toEqual([
    { where: "tile/entries/000", entry: 7, what: "was changed: the tree has another hash for this entry" },
  ]);
});

test("a crash between commit, head file and publication is taken up: the same head is signed once, and news goes on", async () => {
  const log = await fixture();
  const sequencer = await log.sequence();
  await log.append({ data: { n: 0 } });
  await log.reader.settled(20_000);
  await sequencer.stop();
  const published = await log.reader.checkpoint();
  await log.query("set session_replication_role = replica; delete from log_checkpoints"); // the file was written, the row was not
  const again = await log.sequence();
  await until(async () => (await log.reader.checkpoint()) !== undefined);
  expect(await log.reader.checkpoint()).toBe(published);
  await log.append({ data: { n: 1 } });
  expect(await log.reader.settled(20_000)).toBe(2);
  expect(again.broken).toEqual([]);
});

test("a stop takes what is committed with it", async () => {
  const log = await fixture();
  const sequencer = await log.sequence();
  await until(() => sequencer.leads());
  await log.append({ data: { n: 0 } });
  await sequencer.stop();
  expect(await log.reader.size()).toBe(1);
});

test("while no process sequences, waiting for the log ends with a reason", async () => {
  const log = await fixture();
  await log.append({});
  await expect(log.reader.settled(60)).rejects.toMatchObject({ code: "store_unavailable" });
});

test("a second root at one size, or a smaller tree, is never signed", () => {
  const at = (size: number, fill: number) => ({ origin: "o", size, root: Buffer.alloc(32, fill) });
  expect(maySign(undefined, at(0, 0))).toBe(false);
  expect(maySign(undefined, at(1, 1))).toBe(true);
  expect(maySign(at(1, 1), at(1, 1))).toBe(false);
  expect(maySign(at(1, 1), at(2, 2))).toBe(true);
  expect(() => maySign(at(2, 2), at(2, 3))).toThrow(/second root/);
  expect(() => maySign(at(2, 2), at(1, 1))).toThrow(/2 were signed/);
});

test("a key is replaced: both sign, the old checkpoint is still known, and either key verifies", async () => {
  const log = await fixture();
  const first = await log.sequence();
  await log.append({ data: { n: 0 } });
  await log.reader.settled(20_000);
  await first.stop();
  const { startSequencer } = await import("./sequencer.ts");
  const next = createSigner(log.signer.name, generateKeyPairSync("ed25519").privateKey);
  const both = await startSequencer({
    ...{ address: log.address, headFile: log.headFile, signers: [next, log.signer] },
    onProblem: () => {},
    onIntegrityError: () => {},
  });
  await log.append({ type: "log.key_added", data: { n: 1, vkey: next.vkey } });
  await log.reader.settled(20_000);
  await both.stop();
  const note = (await log.reader.checkpoint()) ?? "";
  for (const signer of [log.signer, next]) expect(openCheckpoint(note, parseVerifierKeys(signer.vkey)).size).toBe(2);
  expect(
    (await log.reader.entries({ limit: 1 }))[0]?.leafHash.equals(leafHash((await log.reader.prove(0)).entry)),
  ).toBe(true);
});

/** What lies between this machine and the store, and may fall silent without a word: no end, no reset. */
async function network(port: number): Promise<{ port: number; silent: (yes: boolean) => void; close: () => void }> {
  let silent = false;
  const ends = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(port, "127.0.0.1");
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      ends.add(from);
      from.on("error", () => {});
      from.on("data", (bytes) => void (silent || to.write(bytes)));
      from.on("close", () => to.destroy());
    }
  });
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    silent: (yes) => void (silent = yes),
    close() {
      for (const end of ends) end.destroy();
      server.close();
    },
  };
}

test("a store that falls silent is waited for no longer than any answer takes: the log goes on when it is back, and a stop ends", async () => {
  const log = await fixture();
  const between = await network(log.address.port);
  const problems: unknown[] = [];
  try {
    const sequencer = await startSequencer({
      ...{ address: { ...log.address, port: between.port }, headFile: log.headFile, signers: [log.signer] },
      ...{
        answerMs: 500,
        onProblem: (error) => problems.push(error),
        onIntegrityError: (error) => problems.push(error),
      },
    });
    await until(() => sequencer.leads());
    between.silent(true);
    await until(() => problems.length > 0 && !sequencer.leads());
    between.silent(false);
    await log.append({ data: { n: 0 } });
    await until(async () => (await log.reader.size()) === 1);
    between.silent(true);
    await sequencer.stop();
    expect(await log.reader.size()).toBe(1);
  } finally {
    between.close();
  }
});
