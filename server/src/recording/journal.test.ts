import { randomBytes } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { newId } from "../core/ids.ts";
import { RECORD } from "../targets/target.ts";
import { openJournal } from "./journal.ts";
import { nodeFiles } from "./journal-files.ts";
import { committed, FILE_BYTES, KEY, recordsIn, testFolder, testJournal, turn } from "./testing/journal.ts";
import { diskError, faultyFiles } from "./testing/files.ts";

test.for(["durable", "written"] as const)(
  "mode %s: committed runs after write has returned, in call order, across sessions",
  async (mode) => {
    await using folder = await testFolder();
    await using journal = await testJournal(folder.path, { mode });
    const recorders = Array.from({ length: 5 }, () => journal.recorder(newId("session")));
    const calls: number[] = [];
    for (let i = 0; i < 200; i++) {
      let returned = false;
      recorders[i % 5]?.write(RECORD.statementStarted, `{"n":${i}}`, () => {
        expect(returned).toBe(true);
        calls.push(i);
      });
      returned = true;
    }
    await journal.flush();
    expect(calls).toEqual(Array.from({ length: 200 }, (_, i) => i));
    expect(recorders.map(({ pendingBytes }) => pendingBytes)).toEqual([0, 0, 0, 0, 0]);
  },
);

test("mode written: a start that fails leaves nothing behind that would later sync a file that is closed", async () => {
  await using folder = await testFolder();
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    const sync: typeof nodeFiles.sync = (_fd, done) => void setImmediate(done, diskError("EIO"));
    await expect(testJournal(folder.path, { mode: "written", files: { ...nodeFiles, sync } })).rejects.toThrow("EIO");
    expect(vi.getTimerCount()).toBe(0);
  } finally {
    vi.useRealTimers();
  }
});

test("what queues during one write goes into the next one, together", async () => {
  await using folder = await testFolder();
  const files = faultyFiles();
  await using journal = await testJournal(folder.path, { files });
  const recorder = journal.recorder(newId("session"));
  const before = { writes: files.writes, frames: journal.stats().frames };
  files.hold();
  recorder.write(RECORD.notice, "{}", () => {});
  await turn();
  await turn();
  for (let i = 0; i < 50; i++) recorder.write(RECORD.notice, "{}");
  expect(recorder.pendingBytes).toBe(51 * 34);
  files.release();
  await journal.flush();
  expect(files.writes - before.writes).toBe(2);
  expect(journal.stats().frames - before.frames).toBe(2);
});

test("a record that nobody waits for goes with the next that somebody does, and is written without one too", async () => {
  await using folder = await testFolder();
  const files = faultyFiles();
  await using journal = await testJournal(folder.path, { files });
  const recorder = journal.recorder(newId("session"));
  const before = files.writes;
  recorder.write(RECORD.statementCompleted, "{}");
  await committed(recorder, RECORD.notice, "{}");
  expect(files.writes - before).toBe(1);
  recorder.write(RECORD.statementCompleted, "{}");
  while (recorder.pendingBytes > 0) await turn();
  expect(files.writes - before).toBe(2);
});

test("records, rotation and restart: everything is there, once, in order, in one growing sequence", async () => {
  await using folder = await testFolder();
  const session = newId("session");
  const sent: Buffer[] = [];
  for (let run = 0; run < 3; run++) {
    await using journal = await testJournal(folder.path);
    const recorder = journal.recorder(run === 0 ? session : newId("session"));
    for (let i = 0; i < 40; i++) {
      const payload = randomBytes(1 + ((i * 997) % 9_000));
      if (run === 0) sent.push(payload);
      await committed(recorder, RECORD.data, payload);
    }
    expect(journal.failures).toEqual([]);
  }
  const found = (await recordsIn(folder.path)).filter((record) => record.session === session);
  expect(found.map(({ seq }) => seq)).toEqual(sent.map((_, i) => i + 1));
  expect(found.map(({ payload }) => payload.toString("hex"))).toEqual(sent.map((payload) => payload.toString("hex")));
  expect((await readdir(folder.path)).filter((name) => name.endsWith(".gkj")).length).toBeGreaterThan(6);
});

test("a record of 1 MiB passes, also where a file is smaller; a longer one is the caller's defect", async () => {
  await using folder = await testFolder();
  await using journal = await testJournal(folder.path);
  const recorder = journal.recorder(newId("session"));
  const big = randomBytes(1 << 20);
  await Promise.all([
    committed(recorder, RECORD.data, big),
    committed(recorder, RECORD.data, "é".repeat(1 << 19)),
    committed(recorder, RECORD.notice, "{}"),
  ]);
  const found = await recordsIn(folder.path);
  expect(found[0]?.payload.equals(big)).toBe(true);
  expect(found[1]?.payload.toString("utf8")).toBe("é".repeat(1 << 19));
  expect(() => recorder.write(RECORD.data, Buffer.alloc((1 << 20) + 1))).toThrow("more than 1048576 bytes");
  expect(() => recorder.write(RECORD.data, "é".repeat((1 << 19) + 1))).toThrow("more than 1048576 bytes");
});

test("lesson 3: an error of the disk is told once, and nothing is acknowledged after it", async () => {
  for (const [mode, what] of [
    ["durable", "write"],
    ["written", "write"],
    ["written", "sync"],
  ] as const) {
    await using folder = await testFolder();
    const files = faultyFiles();
    await using journal = await testJournal(folder.path, { files, mode });
    const recorder = journal.recorder(newId("session"));
    await committed(recorder, RECORD.notice, "{}");
    files.failNext(what, diskError("EIO"));
    let acknowledged = 0;
    recorder.write(RECORD.notice, "{}", () => acknowledged++);
    await expect.poll(() => journal.failures.length, { timeout: 10_000 }).toBe(1);
    const atFailure = acknowledged;
    expect(atFailure).toBe(what === "sync" ? 1 : 0); // in mode written, the kernel had it before its sync failed
    for (let i = 0; i < 5; i++) recorder.write(RECORD.sessionEnded, "{}", () => acknowledged++);
    await turn();
    await expect(journal.flush()).rejects.toMatchObject({ code: "recording_unavailable" });
    expect(() => journal.recorder(newId("session"))).toThrow("could not be written to the disk: EIO");
    expect(acknowledged).toBe(atFailure);
    expect(journal.failures).toHaveLength(1);
    expect(journal.stats().state).toBe("failed");
  }
});

test("a callback that throws costs nobody else their acknowledgement", async () => {
  await using folder = await testFolder();
  await using journal = await testJournal(folder.path);
  const recorder = journal.recorder(newId("session"));
  const thrown: unknown[] = [];
  const listeners = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.once("uncaughtException", (error) => thrown.push(error));
  try {
    recorder.write(RECORD.notice, "{}", () => {
      throw new Error("the caller's defect");
    });
    await committed(recorder, RECORD.notice, "{}");
    await turn();
  } finally {
    for (const listener of listeners) process.on("uncaughtException", listener);
  }
  expect(thrown).toMatchObject([{ message: "the caller's defect" }]);
});

test("disk full ahead of need: no new sessions; then, at the reserve, sessions end, and only their ends are still recorded", async () => {
  await using folder = await testFolder();
  const files = faultyFiles();
  await using journal = await testJournal(folder.path, { files });
  const [one, two] = [newId("session"), newId("session")];
  const recorders = [journal.recorder(one), journal.recorder(two)];
  await expect.poll(() => journal.stats().unsealedBytes).toBe(2 * FILE_BYTES);
  files.failPreparing(diskError("ENOSPC"));
  let acknowledged = 0;
  const refusals: string[] = [];
  const total = (): number => acknowledged;
  // The file that was prepared ahead is used up too; from then on there is only the reserve.
  while (journal.failures.length === 0) {
    const before = acknowledged;
    recorders[0]?.write(RECORD.data, Buffer.alloc(1_000), () => acknowledged++);
    while (total() === before && journal.failures.length === 0) await turn();
    if (journal.failures.length === 0) refusals.push(journal.unavailable()?.message ?? "");
  }
  expect(refusals.at(-1)).toContain("no room for the recording"); // said before anything had to be cut
  expect(() => journal.recorder(newId("session"))).toThrow("no room for the recording");
  expect(journal.failures[0]).toMatchObject({
    code: "recording_unavailable",
    message: expect.stringContaining("ENOSPC"),
  });
  const atFailure = acknowledged;
  recorders[0]?.write(RECORD.data, Buffer.alloc(10), () => acknowledged++);
  await committed(recorders[0] as never, RECORD.sessionEnded, '{"cause":"cut"}');
  await committed(recorders[1] as never, RECORD.sessionEnded, '{"cause":"cut"}');
  expect(acknowledged).toBe(atFailure);

  files.failPreparing(undefined);
  await expect.poll(() => journal.unavailable(), { timeout: 10_000 }).toBeUndefined();
  recorders[0]?.write(RECORD.data, Buffer.alloc(10), () => acknowledged++); // a session that was cut stays cut
  const after = journal.recorder(newId("session"));
  await committed(after, RECORD.notice, "{}");
  await journal.flush();
  expect(acknowledged).toBe(atFailure);
  const found = await recordsIn(folder.path);
  const first = found.filter(({ session }) => session === one);
  expect(first).toHaveLength(atFailure + 1);
  expect(first.map(({ seq }) => seq)).toEqual(first.map((_, i) => i + 1)); // no gap where records were refused
  expect(found.filter(({ session }) => session === two).map(({ kind }) => kind)).toEqual([RECORD.sessionEnded]);
});

test("an end that was queued when the disk turned out to be full is kept", async () => {
  await using folder = await testFolder();
  const files = faultyFiles();
  await using journal = await testJournal(folder.path, { files });
  const session = newId("session");
  const recorder = journal.recorder(session);
  await expect.poll(() => journal.stats().unsealedBytes).toBe(2 * FILE_BYTES);
  files.failPreparing(diskError("ENOSPC"));
  const done: string[] = [];
  recorder.write(RECORD.data, Buffer.alloc(FILE_BYTES - 8_192), () => done.push("first"));
  await journal.flush();
  recorder.write(RECORD.data, Buffer.alloc(FILE_BYTES - 16_384), () => done.push("second"));
  await journal.flush().catch(() => {});
  recorder.write(RECORD.data, Buffer.alloc(16_384), () => done.push("third"));
  recorder.write(RECORD.sessionEnded, "{}", () => done.push("end"));
  await expect.poll(() => done.at(-1)).toBe("end");
  expect(done).not.toContain("third");
  expect(journal.failures).toHaveLength(1);
  const found = await recordsIn(folder.path);
  expect(found.map(({ seq }) => seq)).toEqual(found.map((_, i) => i + 1));
});

test("what waits to be sealed has a bound, and recording stops at it with that reason", async () => {
  await using folder = await testFolder();
  await using journal = await testJournal(folder.path, { maxUnsealedBytes: 3 * FILE_BYTES });
  const recorder = journal.recorder(newId("session"));
  while (journal.failures.length === 0) {
    recorder.write(RECORD.data, Buffer.alloc(4_000));
    await turn();
  }
  expect(journal.failures[0]?.message).toMatch(/\d+ bytes wait to be sealed, and 196608 is the most that may/);
});

test("two journals in one folder are refused, in this process too; after close the folder is free", async () => {
  await using folder = await testFolder();
  {
    await using _first = await testJournal(folder.path);
    await expect(testJournal(folder.path)).rejects.toMatchObject({
      code: "conflict",
      message: expect.stringContaining("in use by another"),
    });
  }
  await using second = await testJournal(folder.path);
  expect(second.stats().state).toBe("open");
});

test("the journal keeps its id over restarts, and each opening is a frame after all before it", async () => {
  await using folder = await testFolder();
  const first = await testJournal(folder.path);
  await committed(first.recorder(newId("session")), RECORD.notice, "{}");
  const last = first.stats().sequence;
  await first.close();
  await first.close();
  await using second = await testJournal(folder.path);
  expect(second.id).toBe(first.id);
  expect(second.openedSequence).toBe(last + 1);
});

test("closing cuts the last file to its length and leaves no prepared file", async () => {
  await using folder = await testFolder();
  const journal = await testJournal(folder.path);
  await committed(journal.recorder(newId("session")), RECORD.notice, "{}");
  await journal.close();
  const names = (await readdir(folder.path)).filter((name) => name !== "lock");
  expect(names).toEqual(["000000000001.gkj"]);
  expect((await stat(join(folder.path, names[0] as string))).size).toBeLessThan(8_192);
});

test("a first file that cannot be made is an error of the start, and the folder is free again", async () => {
  await using folder = await testFolder();
  const files = faultyFiles();
  files.failNext("prepare", diskError("ENOSPC"));
  await expect(testJournal(folder.path, { files })).rejects.toMatchObject({ code: "recording_unavailable" });
  files.failNext("write", diskError("EIO"));
  await expect(testJournal(folder.path, { files })).rejects.toMatchObject({ code: "recording_unavailable" });
  await using _journal = await testJournal(folder.path, { files });
});

test("nothing of a record is on the disk in clear, and folder and files are the owner's alone", async () => {
  await using folder = await testFolder();
  const dir = join(folder.path, "journal");
  await using journal = await testJournal(dir);
  const session = newId("session");
  await committed(journal.recorder(session), RECORD.statementStarted, "alter role app password 'correct horse'");
  const bytes = await readFile(join(dir, "000000000001.gkj"));
  expect(bytes.includes("correct horse")).toBe(false);
  expect(bytes.includes(session)).toBe(false);
  expect((await stat(dir)).mode & 0o777).toBe(0o700);
  expect((await stat(join(dir, "000000000001.gkj"))).mode & 0o777).toBe(0o600);
});

test("a key of another length is refused", async () => {
  await using folder = await testFolder();
  await expect(
    openJournal({ dir: folder.path, key: KEY.subarray(1), mode: "durable", onFailure: () => {} }),
  ).rejects.toThrow("32 bytes");
});
