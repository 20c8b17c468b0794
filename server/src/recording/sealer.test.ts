import { cp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { append } from "../audit/append.ts";
import { abandonJournal } from "./abandon.ts";
import type { Clock } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { RECORD, type Recorder } from "../targets/target.ts";
import { type ChunkStore, folderChunkStore } from "./chunk-store.ts";
import type { Journal } from "./journal.ts";
import { nodeFiles } from "./journal-files.ts";
import type { StoredRecord } from "./record.ts";
import { createRecordings } from "./replay.ts";
import { readSession } from "./sealed.ts";
import { openSealer, type Sealer, type SealerOptions } from "./sealer.ts";
import { destroySessionKey } from "./session-keys.ts";
import { committed, KEY, type TestJournal, testFolder, testJournal } from "./testing/journal.ts";
import { type TestStore, testStore } from "./testing/store.ts";

let base: TestStore;
beforeAll(async () => {
  base = await testStore(inject("pg18"));
});
afterAll(() => base[Symbol.asyncDispose]());

interface Place {
  readonly dir: string;
  readonly chunks: ChunkStore;
  readonly name: string;
}

function placeIn(path: string): Place {
  return {
    dir: join(path, "journal"),
    chunks: folderChunkStore(join(path, "chunks")),
    name: `nd_${newId("session").slice(3)}`,
  };
}

function sealerOf(
  place: Place,
  journal: Pick<Journal, "id" | "openedSequence" | "spans">,
  options: Partial<SealerOptions> = {},
): Promise<Sealer> {
  return openSealer({
    ...{ dir: place.dir, key: KEY, name: place.name },
    opened: { id: journal.id, sequence: journal.openedSequence, spans: journal.spans },
    ...{ store: base.store, keyring: base.keyring, chunks: place.chunks, append },
    onError: () => {},
    ...options,
  });
}

/** A clock that a test moves by hand. */
function handClock(): Clock & { ms: number } {
  const clock = { ms: 0, now: () => new Date(), monotonicMs: () => clock.ms };
  return clock;
}

async function recordsOf(place: Place, session: string): Promise<{ records: StoredRecord[]; complete: boolean }> {
  const records: StoredRecord[] = [];
  const reading = readSession(base.store, base.keyring, place.chunks, session);
  for (;;) {
    const { value, done } = await reading.next();
    if (done === true) return { records, complete: value.complete };
    records.push(value);
  }
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

async function events(
  session: string,
): Promise<{ data: { chunk: number; sha256: string; bytes: number; firstSeq: number; lastSeq: number } }[]> {
  const rows = await base.store.selectFrom("log_queue").select("entry").orderBy("id").execute();
  return rows.map(({ entry }) => JSON.parse(entry.toString("utf8"))).filter((event) => event.session === session);
}

test("a chunk is sealed at its size, at its age, at the session's end and on request, each with row, entry and file", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  const clock = handClock();
  const sealer = await sealerOf(place, journal, { clock });
  const session = await base.session();
  const recorder = journal.recorder(session);
  const chunksNow = async (): Promise<number> => {
    while (await sealer.round());
    return (await base.store.selectFrom("chunks").select("chunk").where("session", "=", session).execute()).length;
  };
  await committed(recorder, RECORD.sessionStarted, '{"grant":"gr"}');
  expect(await chunksNow()).toBe(0);
  clock.ms += 1_999;
  expect(await chunksNow()).toBe(0);
  clock.ms += 1;
  expect(await chunksNow()).toBe(1);
  for (let i = 0; i < 5; i++) await committed(recorder, RECORD.data, Buffer.alloc(20_000, i));
  expect(await chunksNow()).toBe(2); // three of them fit into 64 KiB
  await sealer.sealNow(session);
  expect(await chunksNow()).toBe(3);
  await committed(recorder, RECORD.data, Buffer.alloc(200_000));
  expect(await chunksNow()).toBe(4); // a single longer record makes a longer chunk
  await committed(recorder, RECORD.sessionEnded, '{"cause":"client"}');
  expect(await chunksNow()).toBe(5);

  const { records, complete } = await recordsOf(place, session);
  expect(complete).toBe(true);
  expect(records.map(({ kind }) => kind)).toEqual([1, 6, 6, 6, 6, 6, 6, 2]);
  const rows = await base.store
    .selectFrom("chunks")
    .selectAll()
    .where("session", "=", session)
    .orderBy("chunk")
    .execute();
  expect((await events(session)).map(({ data }) => data)).toEqual(
    rows.map((row) => ({
      chunk: row.chunk,
      sha256: row.sha256.toString("hex"),
      bytes: row.bytes,
      firstSeq: row.first_seq,
      lastSeq: row.last_seq,
    })),
  );
  expect(rows.map(({ first_seq, last_seq }) => [first_seq, last_seq])).toEqual([
    [1, 1],
    [2, 4],
    [5, 6],
    [7, 7],
    [8, 8],
  ]);
  await sealer.close();
});

test("a journal file goes once all in it is sealed, and not before", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  const clock = handClock();
  const sealer = await sealerOf(place, journal, { clock });
  const [slow, busy] = [await base.session(), await base.session()];
  await committed(journal.recorder(slow), RECORD.notice, "{}");
  const recorder = journal.recorder(busy);
  for (let i = 0; i < 20; i++) await committed(recorder, RECORD.data, Buffer.alloc(16_000));
  while (await sealer.round());
  const files = async (): Promise<string[]> =>
    (await readdir(place.dir)).filter((name) => name.endsWith(".gkj")).toSorted();
  expect((await files())[0]).toBe("000000000001.gkj"); // the slow session's record is in it
  expect(sealer.stats().completeSequence).toBe(1);
  await sealer.sealNow();
  expect(await files()).not.toContain("000000000001.gkj");
  expect((await files()).length).toBeLessThanOrEqual(2);
  expect(sealer.stats()).toMatchObject({ bufferedBytes: 0, completeSequence: journal.stats().sequence });
  await sealer.close();
});

test("lesson 3: the store or the disk being away loses nothing; sealing goes on where it was", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  let away: "put" | "append" | undefined = "put";
  const sealer = await sealerOf(place, journal, {
    chunks: {
      ...place.chunks,
      put: (...args) => (away === "put" ? Promise.reject(new Error("disk away")) : place.chunks.put(...args)),
    },
    append: async (...args) => {
      await append(...args);
      if (away === "append") throw new Error("store away");
    },
  });
  const session = await base.session();
  const recorder = journal.recorder(session);
  for (const state of ["put", "append", undefined] as const) {
    away = state;
    for (let i = 0; i < 3; i++) await committed(recorder, RECORD.data, Buffer.alloc(30_000));
    const error = await sealer.sealNow().catch((thrown: unknown) => thrown);
    expect(error).toEqual(state === undefined ? undefined : new Error(state === "put" ? "disk away" : "store away"));
  }
  const { records } = await recordsOf(place, session);
  expect(records.map(({ seq }) => seq)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const rows = await base.store.selectFrom("chunks").select("chunk").where("session", "=", session).execute();
  expect(await events(session)).toHaveLength(rows.length);
  await sealer.close();
});

test("lesson 19: a session that died with its process is closed as lost, and its recording is there", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  const [sealedBefore, unsealed, ended] = [await base.session(), await base.session(), await base.session()];
  const first = await testJournal(place.dir);
  const before = await sealerOf(place, first);
  for (const session of [sealedBefore, ended]) await committed(first.recorder(session), RECORD.sessionStarted, "{}");
  await before.sealNow();
  await committed(first.recorder(unsealed), RECORD.sessionStarted, "{}");
  const third = await base.session();
  const recorder = first.recorder(third);
  await committed(recorder, RECORD.sessionStarted, "{}");
  await committed(recorder, RECORD.sessionEnded, '{"cause":"client"}');
  await first.close(); // the sealer never saw the last three

  await using second = await testJournal(place.dir);
  const live = await base.session();
  await committed(second.recorder(live), RECORD.sessionStarted, "{}");
  const after = await sealerOf(place, second);
  await after.sealNow();
  for (const session of [sealedBefore, unsealed, ended]) {
    const { records, complete } = await recordsOf(place, session);
    expect(complete).toBe(true);
    expect(records.map(({ kind, seq }) => [kind, seq])).toEqual([
      [RECORD.sessionStarted, 1],
      [RECORD.sessionEnded, 2],
    ]);
    expect(JSON.parse(String(records[1]?.payload))).toEqual({ cause: "lost", detail: "session lost with the process" });
  }
  expect((await recordsOf(place, third)).records.map(({ payload }) => String(payload))).toEqual([
    "{}",
    '{"cause":"client"}',
  ]);
  expect(await recordsOf(place, live)).toMatchObject({ complete: false, records: [{ seq: 1 }] });
  // A sealer that begins again in the same process does not end sessions that are alive.
  const again = await sealerOf(place, second);
  await again.sealNow();
  expect((await recordsOf(place, live)).complete).toBe(false);
  for (const sealer of [before, after, again]) await sealer.close();
});

/** Dies, by throwing for ever, before its n-th step: a file's put, the moment after it, an entry's append, a file's removal. */
function mortal(place: Place, steps: number): Partial<SealerOptions> {
  let left = steps;
  const step = (): void => {
    if (left-- <= 0) throw new Error("killed here");
  };
  return {
    chunks: {
      ...place.chunks,
      async put(name, bytes) {
        step();
        await place.chunks.put(name, bytes);
        step();
      },
    },
    async append(trx, event) {
      step();
      await append(trx, event);
      step();
    },
    files: {
      async remove(dir, name) {
        step();
        await nodeFiles.remove(dir, name);
      },
    },
  };
}

test("killed at any step, again and again: every acknowledged record is in exactly one chunk, and every chunk has one entry", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.array(fc.tuple(fc.nat(2), fc.nat(50_000)), { maxLength: 8 }), fc.nat(14), fc.boolean()), {
        minLength: 1,
        maxLength: 5,
      }),
      async (lives) => {
        await using folder = await testFolder();
        const place = placeIn(folder.path);
        const all: string[] = [];
        const sent = new Map<string, number[]>();
        let journal: TestJournal | undefined;
        let current: string[] = [];
        let recorders: Recorder[] = [];
        for (const [writes, steps, newProcess] of lives) {
          if (journal === undefined || newProcess) {
            await journal?.close();
            const started = await testJournal(place.dir);
            journal = started;
            current = await Promise.all([base.session(), base.session(), base.session()]);
            recorders = current.map((session) => started.recorder(session));
            all.push(...current);
          }
          for (const [which, size] of writes) {
            const session = current[which] as string;
            await committed(recorders[which] as Recorder, RECORD.data, Buffer.alloc(size, which));
            sent.set(session, [...(sent.get(session) ?? []), size]);
          }
          const sealer = await sealerOf(place, journal, mortal(place, steps));
          const error = await sealer.sealNow().catch((thrown: unknown) => thrown);
          expect([undefined, new Error("killed here")]).toContainEqual(error);
          await sealer.close(); // it does nothing more: every step fails
        }
        await journal?.close();
        await using last = await testJournal(place.dir);
        const sealer = await sealerOf(place, last);
        await sealer.sealNow();
        for (const session of all) {
          const sizes = sent.get(session) ?? [];
          const { records, complete } = await recordsOf(place, session);
          expect(complete).toBe(sizes.length > 0);
          expect(records.filter(({ kind }) => kind === RECORD.data).map(({ payload }) => payload.length)).toEqual(
            sizes,
          );
          expect(records.length).toBe(sizes.length === 0 ? 0 : sizes.length + 1);
          const rows = await base.store
            .selectFrom("chunks")
            .select("sha256")
            .where("session", "=", session)
            .orderBy("chunk")
            .execute();
          expect((await events(session)).map(({ data }) => data.sha256)).toEqual(
            rows.map(({ sha256 }) => sha256.toString("hex")),
          );
        }
        await sealer.close();
      },
    ),
    { numRuns: 25 },
  );
}, 180_000);

test("a crash between file and row: the same chunk is made again and its file is used", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  const session = await base.session();
  const recorder = journal.recorder(session);
  await committed(recorder, RECORD.notice, '{"a":1}');
  const dying = await sealerOf(place, journal, { append: () => Promise.reject(new Error("killed here")) });
  await expect(dying.sealNow()).rejects.toThrow("killed here");
  await dying.close();
  const [orphan] = await place.chunks.list(session);
  await committed(recorder, RECORD.notice, '{"b":2}'); // more has come when the next one begins
  const next = await sealerOf(place, journal);
  await next.sealNow();
  const names = await place.chunks.list(session);
  expect(names).toHaveLength(2);
  expect(names[0]).toBe(orphan);
  expect((await recordsOf(place, session)).records).toHaveLength(2);
  await next.close();
});

test("a commit whose answer was lost is not made twice", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  const session = await base.session();
  await committed(journal.recorder(session), RECORD.notice, "{}");
  const one = await sealerOf(place, journal);
  const other = await sealerOf(place, journal); // stands for the commit that came through
  await one.round();
  await other.sealNow();
  await expect(one.sealNow()).rejects.toMatchObject({ code: "conflict" });
  await one.sealNow();
  expect(await base.store.selectFrom("chunks").select("chunk").where("session", "=", session).execute()).toHaveLength(
    1,
  );
  expect(await events(session)).toHaveLength(1);
  await one.close();
  await other.close();
});

test("lesson 3: a journal that was cut below what was sealed, or replaced, stops the start", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  const first = await testJournal(place.dir);
  const session = await base.session();
  const recorder = first.recorder(session);
  const sealer = await sealerOf(place, first);
  await committed(recorder, RECORD.sessionStarted, "{}");
  const early = await readFile(join(place.dir, "000000000001.gkj"));
  for (let i = 0; i < 5; i++) await committed(recorder, RECORD.notice, "{}");
  await sealer.sealNow();
  await sealer.close();
  await first.close();

  await writeFile(join(place.dir, "000000000001.gkj"), early);
  const cut = await testJournal(place.dir);
  await expect(sealerOf(place, cut)).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("it was cut"),
  });
  await cut.close();

  await rm(place.dir, { recursive: true });
  await using other = await testJournal(place.dir);
  await expect(sealerOf(place, other)).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("another than before"),
  });

  // Only an explicit decision goes on from here; every recording then says what became of it.
  const { store, keyring } = base;
  const given = { name: place.name, store, keyring, chunks: place.chunks, append, now: new Date() };
  expect(await abandonJournal(given)).toEqual([session]);
  await expect(abandonJournal(given)).rejects.toMatchObject({ code: "not_found" });
  const { records, complete } = await recordsOf(place, session);
  expect(complete).toBe(true);
  expect(records).toHaveLength(7);
  expect(String(records[6]?.payload)).toContain("the journal with the rest of the recording was lost");
  expect((await events(session)).at(-1)?.data).toMatchObject({ firstSeq: 7, lastSeq: 7 });
  await (await sealerOf(place, other)).close();
});

/** Starts with the journal as it is. @returns why it is refused, or undefined. */
async function refusal(place: Place, mirror?: string): Promise<string | undefined> {
  await using journal = await testJournal(place.dir, { mirror });
  try {
    await (await sealerOf(place, journal, { mirror })).close();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

test("a second disk that answers nothing holds up neither sealing nor the removal of what is sealed", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  const mirror = join(folder.path, "mirror");
  await using journal = await testJournal(place.dir, { mirror });
  let asked = 0;
  const files: SealerOptions["files"] = {
    remove(dir, name) {
      if (dir !== mirror) return nodeFiles.remove(dir, name);
      asked++;
      return new Promise(() => {});
    },
  };
  const sealer = await sealerOf(place, journal, { mirror, files });
  const recorder = journal.recorder(await base.session());
  for (let i = 0; i < 60; i++) await committed(recorder, RECORD.data, Buffer.alloc(5_000, i));
  await sealer.sealNow();
  const left = (await readdir(place.dir)).filter((name) => name.endsWith(".gkj"));
  expect(left.length).toBeLessThan((await readdir(mirror)).filter((name) => name.endsWith(".gkj")).length);
  expect(asked).toBe(1);
  await sealer.close();
});

test("an older copy of the journal stays refused, however often it is started: each start makes it longer", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  expect(await refusal(place)).toBeUndefined();
  await cp(place.dir, `${place.dir}.old`, { recursive: true });
  {
    await using journal = await testJournal(place.dir);
    const sealer = await sealerOf(place, journal);
    const recorder = journal.recorder(await base.session());
    for (let i = 0; i < 4; i++) await committed(recorder, RECORD.notice, "{}");
    await sealer.sealNow();
    await sealer.close();
  }
  await cp(place.dir, `${place.dir}.new`, { recursive: true });
  await rm(place.dir, { recursive: true });
  await cp(`${place.dir}.old`, place.dir, { recursive: true });
  for (let start = 1; start <= 10; start++) {
    expect(await refusal(place), `start ${start}`).toContain("it was cut, or is an older copy");
  }
  await rm(place.dir, { recursive: true });
  await cp(`${place.dir}.new`, place.dir, { recursive: true });
  expect(await refusal(place)).toBeUndefined();
});

test("a disk that was away at the last start does not stand in for the one that went on, even if nothing was sealed since", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  const mirror = join(folder.path, "mirror");
  expect(await refusal(place, mirror)).toBeUndefined();
  const session = await base.session();
  await rename(mirror, `${mirror}.away`);
  await writeFile(mirror, ""); // nothing that a journal could be in
  {
    await using journal = await testJournal(place.dir, { mirror });
    await (await sealerOf(place, journal, { mirror })).close();
    await committed(journal.recorder(session), RECORD.notice, "{}"); // the store is away: not sealed
  }
  await rename(place.dir, `${place.dir}.away`);
  await rm(mirror);
  await rename(`${mirror}.away`, mirror);
  for (let start = 1; start <= 4; start++) expect(await refusal(place, mirror)).toContain("is an older copy");

  await rm(place.dir, { recursive: true });
  await rename(`${place.dir}.away`, place.dir);
  expect(await refusal(place, mirror)).toBeUndefined();
  expect((await recordsOf(place, session)).records.map(({ kind }) => kind)).toContain(RECORD.notice);
});

test("records of a session that the store does not know stay in the journal, are told of, and hold up nobody", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  const clock = handClock();
  const told: unknown[] = [];
  const sealer = await sealerOf(place, journal, { clock, onError: (error) => told.push(error) });
  const session = await base.session();
  await committed(journal.recorder(newId("session")), RECORD.notice, "{}");
  await committed(journal.recorder(session), RECORD.notice, "{}");
  await sealer.sealNow();
  clock.ms += 31_000;
  await sealer.sealNow();
  expect(told).toMatchObject([
    { code: "integrity", message: expect.stringContaining("which the store does not know") },
  ]);
  expect((await recordsOf(place, session)).records).toHaveLength(1);
  const recorder = journal.recorder(session);
  expect(sealer.stats().completeSequence).toBe(journal.openedSequence);
  expect(recorder.pendingBytes).toBe(0);
  await sealer.close();
});

test("one changed byte of a chunk, a missing chunk and a removed row are found and named; an erased recording says so", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  const session = await base.session();
  const recorder = journal.recorder(session);
  for (let i = 0; i < 4; i++) await committed(recorder, RECORD.data, Buffer.alloc(40_000));
  await committed(recorder, RECORD.sessionEnded, "{}");
  const sealer = await sealerOf(place, journal);
  await sealer.sealNow();
  const names = await place.chunks.list(session);
  const path = join(folder.path, "chunks", names[1] as string);
  const bytes = await readFile(path);
  for (const at of [0, 30, 50, 2_000, bytes.length - 1]) {
    const changed = Buffer.from(bytes);
    changed[at] = (changed[at] as number) ^ 1;
    await writeFile(path, changed);
    await expect(recordsOf(place, session)).rejects.toThrow(`the file of chunk 1 of ${session} was changed`);
  }
  await rm(path);
  await expect(recordsOf(place, session)).rejects.toThrow(`the file of chunk 1 of ${session} is missing`);
  await writeFile(path, bytes);
  const api = createRecordings({
    store: base.store,
    keyring: base.keyring,
    chunks: place.chunks,
    sealNow: (one) => sealer.sealNow(one),
  });
  const raw = (await collect(api.export(session, "raw", new AbortController().signal))).join("");
  expect(raw.trimEnd().split("\n")).toHaveLength(5);
  expect(await api.chunk(session, 1)).toEqual(bytes);
  expect(await api.chunk(session, 99)).toBeUndefined();

  // A process that cannot seal any more, as its journal is damaged, still gives the whole of what is complete.
  const closed = createRecordings({
    ...{ store: base.store, keyring: base.keyring, chunks: place.chunks },
    sealNow: () => Promise.reject(new GlassError("integrity", "the journal is damaged")),
  });
  const left = (await collect(closed.export(session, "raw", new AbortController().signal))).join("");
  expect(left).toBe(raw);
  await base.store.updateTable("sessions").set({ recording_complete: false }).where("id", "=", session).execute();
  await expect(collect(closed.export(session, "raw", new AbortController().signal))).rejects.toThrow("is damaged");
  await base.store.updateTable("sessions").set({ recording_complete: true }).where("id", "=", session).execute();

  const row = await base.store
    .selectFrom("chunks")
    .selectAll()
    .where("session", "=", session)
    .where("chunk", "=", 1)
    .executeTakeFirstOrThrow();
  await base.store.deleteFrom("chunks").where("session", "=", session).where("chunk", "=", 1).execute();
  await expect(recordsOf(place, session)).rejects.toThrow(`chunk 1 of ${session} is missing`);
  await base.store.insertInto("chunks").values(row).execute();
  await base.store
    .deleteFrom("chunks")
    .where("session", "=", session)
    .where("chunk", "=", names.length - 1)
    .execute();
  await expect(recordsOf(place, session)).rejects.toThrow("ends with record");

  await base.store.transaction().execute((trx) => destroySessionKey(trx, session));
  await expect(recordsOf(place, session)).rejects.toMatchObject({ code: "erased", status: 410 });
  await sealer.close();
});

test("the key of a session that is still recorded cannot be destroyed", async () => {
  await using folder = await testFolder();
  const place = placeIn(folder.path);
  await using journal = await testJournal(place.dir);
  const session = await base.session();
  await committed(journal.recorder(session), RECORD.notice, "{}");
  const sealer = await sealerOf(place, journal);
  await sealer.sealNow();
  await expect(base.store.transaction().execute((trx) => destroySessionKey(trx, session))).rejects.toMatchObject({
    code: "conflict",
  });
  await sealer.close();
});
