import { existsSync, promises } from "node:fs";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { verifyFolder } from "@glasskey/verify";
import { expect, inject, test } from "vitest";
import { append } from "../audit/append.ts";
import { exportLog } from "../audit/export.ts";
import { createLog } from "../audit/fixtures/log.ts";
import { createLogReader } from "../audit/read.ts";
import { openHeadFile } from "../audit/head-file.ts";
import { sha256 } from "../core/bytes.ts";
import { newId } from "../core/ids.ts";
import { RECORD } from "../targets/target.ts";
import { MAX_CHUNK_BYTES } from "./chunk.ts";
import { folderChunkStore } from "./chunk-store.ts";
import { readSession } from "./sealed.ts";
import { openReader } from "./reader.ts";
import { openSealer } from "./sealer.ts";
import { disks, type Fault } from "./testing/disks.ts";
import { withFailingDisk } from "./testing/failing-fs.ts";
import { committed, KEY, quickRoot, recordsIn, testFolder, testJournal, turn } from "./testing/journal.ts";
import { testStore } from "./testing/store.ts";

const CODES = ["EIO", "ENOSPC"] as const;

/** Enough for two changes of the file, and no more: each operation gets a life of its own. */
const [RECORDS, RECORD_BYTES] = [16, 8_500];

/** One life of a journal on a disk that fails at that operation; then the disk is a good one again. @returns operations. */
async function life(dir: string, mode: "durable" | "written", fault: Fault | undefined): Promise<number> {
  const files = disks(fault);
  const session = newId("session");
  let acknowledged = 0;
  let journal: Awaited<ReturnType<typeof testJournal>> | undefined;
  try {
    journal = await testJournal(dir, { files, mode });
  } catch (error) {
    expect(error, "the start says what is wrong").toHaveProperty("message");
  }
  if (journal !== undefined) {
    const failed = (): boolean => (journal?.failures.length ?? 0) > 0;
    const recorder = journal.unavailable() === undefined ? journal.recorder(session) : undefined;
    for (let i = 1; i <= RECORDS && recorder !== undefined && !failed(); i++) {
      recorder.write(RECORD.data, Buffer.alloc(RECORD_BYTES, i), () => {
        expect(failed(), "nothing is acknowledged after the failure was told").toBe(false);
        acknowledged = i;
      });
      while (acknowledged < i && !failed()) await turn();
    }
    if (fault === undefined) expect(acknowledged).toBe(RECORDS);
    const before = acknowledged;
    if (failed()) {
      for (let i = 0; i < 3; i++) recorder?.write(RECORD.data, Buffer.alloc(10), () => acknowledged++);
      await turn();
    }
    await journal.close();
    expect(acknowledged).toBe(before);
    expect(journal.failures.length).toBeLessThan(2);
  }
  await using again = await testJournal(dir);
  await committed(again.recorder(newId("session")), RECORD.notice, "{}");
  const found = (await recordsIn(dir)).filter((record) => record.session === session && record.kind === RECORD.data);
  expect(found.map(({ seq }) => seq)).toEqual(found.map((_, i) => i + 1));
  expect(found.length).toBeGreaterThanOrEqual(acknowledged);
  expect(found.length).toBeLessThanOrEqual(acknowledged + 1); // one may be there that nobody was told of
  for (const { seq, payload } of found) expect(payload.equals(Buffer.alloc(RECORD_BYTES, seq))).toBe(true);
  return files.count(dir);
}

test.for([
  ["EIO", "durable"],
  ["EIO", "written"],
  ["ENOSPC", "durable"],
  ["ENOSPC", "written"],
  ["short", "durable"],
  ["once", "durable"],
] as const)(
  "%s at each operation of the journal in turn, mode %s: what was acknowledged is there, and nothing is acknowledged after it",
  { timeout: 300_000 },
  async ([how, mode]) => {
    await using folder = await testFolder(quickRoot());
    const operations = await life(join(folder.path, "good"), mode, undefined);
    expect(operations).toBeGreaterThan(35);
    for (let at = 1; at <= operations; at++) {
      const dir = join(folder.path, `${at}`);
      await mkdir(dir);
      await life(dir, mode, { dir, at, how });
      await rm(dir, { recursive: true });
    }
  },
);

test("lesson 3: a sync that failed is never tried again: the journal is over until the process starts anew", async () => {
  await using folder = await testFolder();
  let broken = false;
  const inner = disks();
  const sync: typeof inner.sync = (fd, done) => {
    if (broken) setImmediate(done, Object.assign(new Error("EIO: made by a test"), { code: "EIO" }));
    else inner.sync(fd, done);
  };
  await using journal = await testJournal(folder.path, { files: { ...inner, sync }, mode: "written" });
  broken = true;
  journal.recorder(newId("session")).write(RECORD.notice, "{}");
  await expect.poll(() => journal.failures.length, { timeout: 10_000 }).toBe(1);
  broken = false; // the disk says that all is well again: the kernel may have dropped what it could not write
  expect(journal.stats().state).toBe("failed");
  expect(() => journal.recorder(newId("session"))).toThrow("could not be written to the disk");
});

test.for(CODES)(
  "%s at each write and sync of a chunk's file: it is there whole, or not at all, and putting it again succeeds",
  async (code) => {
    await using folder = await testFolder();
    const bytes = Buffer.alloc(50_000, 7);
    const name = `${newId("session")}/00000000-${sha256(bytes).toString("hex")}.gkc`;
    for (let at = 1; ; at++) {
      const root = join(folder.path, `${at}`);
      const chunks = folderChunkStore(root);
      let failed = false;
      const count = await withFailingDisk(root, at, code, async () => {
        await chunks.put(name, bytes).catch(() => (failed = true));
      });
      if (!failed && at > count) break;
      const there = await chunks.get(name, MAX_CHUNK_BYTES);
      expect(there === undefined || there.equals(bytes)).toBe(true);
      expect((await chunks.list(name.slice(0, 15))).filter((one) => one !== name)).toEqual([]);
      await chunks.put(name, bytes);
      expect((await chunks.get(name, MAX_CHUNK_BYTES))?.equals(bytes)).toBe(true);
      expect(at).toBeLessThan(50);
    }
  },
);

test.for(CODES)(
  "%s at each write and sync while a session is sealed: every record is in one chunk, and every chunk has one entry",
  { timeout: 300_000 },
  async (code) => {
    await using base = await testStore(inject("pg18"));
    await using folder = await testFolder();
    const root = join(folder.path, "chunks");
    const chunks = folderChunkStore(root);
    await using journal = await testJournal(join(folder.path, "journal"), { fileBytes: 1 << 20 });
    const sealer = await openSealer({
      ...{
        dir: join(folder.path, "journal"),
        key: KEY,
        name: "nd_000000000001",
        opened: { id: journal.id, sequence: journal.openedSequence },
      },
      ...{ store: base.store, keyring: base.keyring, chunks, append, onError: () => {} },
    });
    let errors = 0;
    for (let at = 1, done = false; !done; at++) {
      const session = await base.session();
      const recorder = journal.recorder(session);
      for (let i = 1; i <= 5; i++) await committed(recorder, RECORD.data, Buffer.alloc(40_000, i));
      await committed(recorder, RECORD.sessionEnded, "{}");
      const count = await withFailingDisk(root, at, code, async () => {
        await sealer.sealNow(session).catch(() => errors++);
      });
      done = at > count;
      await sealer.sealNow(session);
      const seqs: number[] = [];
      for await (const { seq } of readSession(base.store, base.keyring, chunks, session)) seqs.push(seq);
      expect(seqs).toEqual([1, 2, 3, 4, 5, 6]);
      const rows = await base.store.selectFrom("chunks").select("sha256").where("session", "=", session).execute();
      const entries = (await base.store.selectFrom("log_queue").select("entry").execute())
        .map(({ entry }) => JSON.parse(entry.toString("utf8")) as { session?: string; data?: { sha256?: string } })
        .filter((entry) => entry.session === session);
      expect(entries.map(({ data }) => data?.sha256 ?? "").toSorted()).toEqual(
        rows.map(({ sha256: hash }) => Buffer.from(hash).toString("hex")).toSorted(),
      );
      const files = await readdir(join(root, session));
      expect(files.filter((name) => name.endsWith(".gkc"))).toHaveLength(rows.length); // made again with the same bytes
    }
    expect(errors).toBeGreaterThan(3);
    await sealer.close();
  },
);

test.for(CODES)(
  "%s at each write and sync of the signed head's second copy: the file is the old one or the new one",
  async (code) => {
    await using folder = await testFolder();
    const path = join(folder.path, "log-head");
    const head = openHeadFile(path);
    await head.write("first\n");
    for (let at = 1; ; at++) {
      const next = `note ${at}\n`;
      const before = await head.read();
      let failed = false;
      const count = await withFailingDisk(folder.path, at, code, async () => {
        await head.write(next).catch(() => (failed = true));
      });
      expect(await head.read()).toSatisfy((note) => note === next || (failed && note === before));
      if (!failed && at > count) break;
      await head.write(next);
      expect(at).toBeLessThan(20);
    }
  },
);

test.for(CODES)(
  "%s at each write and sync of the log's export: what its checkpoint covers verifies, and the next run brings it up to date",
  { timeout: 300_000 },
  async (code) => {
    const log = await createLog(inject("pg18"));
    try {
      await log.sequence();
      let n = 0;
      for (let at = 1, done = false; !done; at++) {
        const folder = join(log.folder, `export-${code}`);
        await log.append(...Array.from({ length: 20 }, () => ({ data: { n: n++ } })));
        await createLogReader(log.store).settled(20_000);
        const options = { store: log.store, folder, vkey: log.signer.vkey };
        const count = await withFailingDisk(folder, at, code, async () => {
          await exportLog(options).then(
            () => {},
            (error: unknown) => expect(String(error)).toContain(code),
          );
        });
        done = at > count;
        const there = await readFile(join(folder, "checkpoint")).catch(() => undefined);
        if (there !== undefined) {
          const report = await verifyFolder({ folder, vkey: log.signer.vkey });
          expect(
            report.problems.filter(({ what }) => !what.includes("goes beyond the checkpoint")),
            `fault at ${at}`,
          ).toEqual([]);
        }
        await exportLog(options);
        expect(await verifyFolder({ folder, vkey: log.signer.vkey })).toMatchObject({ ok: true, size: n });
      }
    } finally {
      await log.dispose();
    }
  },
);

test("an export's checkpoint comes after everything that it covers is on the disk, so that a power cut leaves no hole", async () => {
  const log = await createLog(inject("pg18"));
  const { open, rename } = promises;
  try {
    await log.sequence();
    const folder = join(log.folder, "export");
    const options = { store: log.store, folder, vkey: log.signer.vkey };
    const synced = new Set<string>();
    promises.open = async (...args: Parameters<typeof open>) => {
      const handle = await open(...args);
      const sync = handle.sync.bind(handle);
      return Object.assign(handle, { sync: () => sync().finally(() => synced.add(String(args[0]))) });
    };
    let lost: readonly string[] | undefined;
    promises.rename = async (from, to) => {
      if (to === join(folder, "checkpoint")) {
        const all = await readdir(folder, { recursive: true });
        const owed = all.map((name) => join(folder, name)).filter((path) => !/checkpoint|log\.vkey/.test(path));
        lost = [folder, ...owed].filter((path) => !synced.has(path));
      }
      return rename(from, to);
    };
    syncBuiltinESMExports();
    for (const count of [700, 3]) {
      await log.append(...Array.from({ length: count }, (_, n) => ({ data: { n } })));
      await createLogReader(log.store).settled(20_000);
      await exportLog(options);
      expect(lost).toEqual([]);
      expect(synced.size).toBeGreaterThan(6);
      // Full tiles are written once; what was synced for an earlier checkpoint stays so.
    }
  } finally {
    Object.assign(promises, { open, rename });
    syncBuiltinESMExports();
    await log.dispose();
  }
});

test("a file that was prepared ahead and vanishes while it is looked at, as at a clean stop, is no error", async () => {
  await using folder = await testFolder();
  const session = newId("session");
  await using journal = await testJournal(folder.path);
  await committed(journal.recorder(session), RECORD.notice, "{}");
  const next = join(folder.path, "000000000002.gkj");
  await expect.poll(() => existsSync(next), { timeout: 10_000 }).toBe(true);
  const whole = promises.open;
  let vanished = 0;
  promises.open = async (...args: Parameters<typeof whole>) => {
    if (args[0] === next) {
      await rm(next, { force: true }); // after the folder was listed
      vanished++;
    }
    return whole(...args);
  };
  syncBuiltinESMExports();
  const reader = openReader(folder.path, KEY);
  try {
    let records = 0;
    for (let frame = await reader.next(); frame !== undefined; frame = await reader.next())
      records += frame.records.length;
    expect(records).toBe(2); // the journal's own, and the notice
    expect(vanished).toBeGreaterThan(0);
  } finally {
    promises.open = whole;
    syncBuiltinESMExports();
    await reader.close();
  }
});
