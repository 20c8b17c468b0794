import { execFileSync } from "node:child_process";
import { constants } from "node:fs";
import { cp, mkdir, open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { sleep } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { RECORD } from "../targets/target.ts";
import { FILE_HEADER_BYTES } from "./frame.ts";
import { isGivenUp, NOTE } from "./journal-mirror.ts";
import { journalFileName, type JournalReader, openReader } from "./reader.ts";
import { disks } from "./testing/disks.ts";
import { withFailingDisk } from "./testing/failing-fs.ts";
import { committed, KEY, quickRoot, recordsIn, testFolder, testJournal } from "./testing/journal.ts";

async function pair(root?: string): Promise<{ one: string; two: string } & AsyncDisposable> {
  const folder = await testFolder(root);
  return {
    one: join(folder.path, "one"),
    two: join(folder.path, "two"),
    [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose](),
  };
}

/** One life of the journal in which a session of its own gets that many records. @returns the session. */
async function life(dirs: { one: string; two: string }, records: number, away?: string): Promise<string> {
  const files = disks();
  if (away !== undefined) files.break(away);
  await using journal = await testJournal(dirs.one, { mirror: dirs.two, files });
  const session = newId("session");
  const recorder = journal.recorder(session);
  for (let i = 1; i <= records; i++) await committed(recorder, RECORD.data, Buffer.alloc(500, i));
  return session;
}

const replace = async (dir: string, by: string | undefined): Promise<void> => {
  await rm(dir, { recursive: true, force: true });
  if (by !== undefined) await cp(by, dir, { recursive: true });
};

test("a disk that went on alone, was away while the other was used, and is longer, does not take away what that one was given", async () => {
  await using folders = await pair();
  const { one, two } = folders;
  await life(folders, 5);
  await cp(two, `${two}.stale`, { recursive: true });
  await life(folders, 20, two); // one goes on alone
  await cp(one, `${one}.alone`, { recursive: true });
  await replace(one, undefined); // its disk is not mounted: an empty folder
  await replace(two, `${two}.stale`);
  const acknowledged = await life(folders, 4);
  await replace(one, `${one}.alone`);
  let refused = "";
  await (await testJournal(one, { mirror: two }).catch((error: Error) => void (refused = error.message)))?.close();
  expect((await recordsIn(two)).filter(({ session }) => session === acknowledged)).toHaveLength(4);
  expect(refused).toContain("differ in what each says");
});

/** What a sealer does that has sealed everything: all but the last file go. */
async function removeSealed(dir: string): Promise<void> {
  const names = (await readdir(dir)).filter((name) => name.endsWith(".gkj")).toSorted();
  for (const name of names.slice(0, -1)) await rm(join(dir, name));
}

async function setAsideIn(dir: string): Promise<string[]> {
  return (await readdir(dir)).filter((name) => name.startsWith("set-aside-")).map((name) => join(dir, name));
}

test("a disk that went on alone comes back after the other one's files of that time were sealed and removed: what it has is set aside, not deleted", async () => {
  for (const startedBeside of [0, 1, 2]) {
    await using folders = await pair();
    const { one, two } = folders;
    await life(folders, 2);
    await cp(two, `${two}.stale`, { recursive: true });
    const alone = await life(folders, 3, two);
    await cp(one, `${one}.alone`, { recursive: true });
    await replace(one, undefined);
    await replace(two, `${two}.stale`);
    await life(folders, 9);
    await life(folders, 1);
    await life(folders, 1);
    const later = await life(folders, 1);
    await removeSealed(two);
    await replace(one, `${one}.alone`);
    await rename(two, `${two}.away`);
    for (let i = 0; i < startedBeside; i++) await life(folders, 0); // and refused: what is beside it is below a mount point
    await replace(two, undefined);
    await rename(`${two}.away`, two);
    {
      await using journal = await testJournal(one, { mirror: two });
      expect(journal.rebuilt).toContain("set-aside-");
    }
    for (const dir of [one, two])
      expect((await recordsIn(dir)).filter(({ session }) => session === later)).toHaveLength(1);
    const [aside = ""] = await setAsideIn(one);
    expect((await recordsIn(aside)).filter(({ session }) => session === alone)).toHaveLength(3);
  }
});

test("files of a disk that was only started, and refused, are not mixed into the copy that went on, and a disk that was away for long is simply made equal", async () => {
  for (const [starts, idle] of [0, 1, 2, 3, 12].flatMap((n) => [[n, false] as const, [n, true] as const])) {
    await using folders = await pair(quickRoot());
    const { one, two } = folders;
    await life(folders, 2);
    await cp(one, `${one}.stale`, { recursive: true });
    await life(folders, 3, one); // two goes on alone
    const later = await life(folders, 3, one);
    if (idle) await life(folders, 0, one);
    await removeSealed(two);
    await cp(two, `${two}.alone`, { recursive: true });
    await replace(one, `${one}.stale`);
    for (let i = 0; i < starts; i++) {
      await replace(two, undefined);
      await life(folders, 0, two);
    }
    await replace(two, `${two}.alone`);
    const last = await life(folders, 2);
    for (const dir of [one, two]) {
      const found = (await recordsIn(dir)).filter(({ session }) => session === later || session === last);
      expect(found, `${dir}, ${starts} starts`).toHaveLength(idle ? 2 : 5);
    }
    expect(await setAsideIn(one), `${starts} starts`).toHaveLength(starts === 0 ? 0 : 1);
  }
});

test("copies that were each only started without the other are refused: the store may know either", async () => {
  for (const [first, second] of [
    [1, 1],
    [3, 1],
    [1, 3],
  ] as const) {
    await using folders = await pair(quickRoot());
    const { one, two } = folders;
    await life(folders, 2);
    await cp(two, `${two}.stale`, { recursive: true });
    for (let i = 0; i < first; i++) await life(folders, 0, two);
    await cp(one, `${one}.alone`, { recursive: true });
    await replace(two, `${two}.stale`);
    for (let i = 0; i < second; i++) {
      await replace(one, undefined);
      await life(folders, 0, one);
    }
    await replace(one, `${one}.alone`);
    await expect(testJournal(one, { mirror: two })).rejects.toMatchObject({ code: "integrity" });
    for (const dir of [one, two]) expect(await setAsideIn(dir)).toEqual([]);
  }
});

test.for(["EIO", "ENOSPC"] as const)(
  "%s at each write and sync while files that one copy lost are put back: there is never a gap in it",
  async (code) => {
    for (let at = 1, done = false; !done; at += at < 20 ? 1 : 19) {
      await using folders = await pair(quickRoot());
      const { one, two } = folders;
      const sessions: string[] = [];
      for (let i = 0; i < 5; i++) sessions.push(await life(folders, 1));
      sessions.push(await life(folders, 1, two));
      for (let i = 1; i <= 4; i++) await rm(join(one, journalFileName(i)));
      const count = await withFailingDisk(one, at, code, async () => {
        await (await testJournal(one, { mirror: two }).catch(() => undefined))?.close();
      });
      done = at > count;
      const last = await life(folders, 1);
      for (const dir of [one, two]) {
        const found = (await recordsIn(dir)).map(({ session }) => session);
        expect(found, `${dir}, fault at ${at}`).toEqual([...sessions, last]);
      }
    }
  },
);

test("a damaged copy that went on alone is not made good from the other, however long that is by now", async () => {
  await using folders = await pair();
  const { one, two } = folders;
  await life(folders, 2);
  await cp(two, `${two}.stale`, { recursive: true });
  await life(folders, 3, two);
  const path = join(one, "000000000001.gkj");
  const bytes = await readFile(path);
  bytes[FILE_HEADER_BYTES + 100] = (bytes[FILE_HEADER_BYTES + 100] as number) ^ 1;
  await writeFile(path, bytes);
  await cp(one, `${one}.alone`, { recursive: true });
  await replace(one, undefined);
  await replace(two, `${two}.stale`);
  await life(folders, 20);
  await replace(one, `${one}.alone`);
  await expect(testJournal(one, { mirror: two })).rejects.toMatchObject({ code: "integrity" });
  expect((await readFile(path)).equals(bytes)).toBe(true);
});

test("the note that a disk was given up holds whatever its folder is called, and a note that cannot be read is not taken for a broken disk", async () => {
  await using folder = await testFolder();
  const name = "запись-".repeat(17); // 510 bytes as a note would escape them are soon full
  const folders = { one: join(folder.path, "один", name), two: join(folder.path, "два", name, name) };
  await life(folders, 3);
  const alone = await life(folders, 6, folders.two);
  expect(await isGivenUp(folders.two, folders.one)).toBe(true);
  await life(folders, 0);
  expect((await recordsIn(folders.two)).filter(({ session }) => session === alone)).toHaveLength(6);

  const last = await life(folders, 2, folders.two);
  await writeFile(join(folders.one, NOTE), "without %D0%B".padEnd(512));
  await life(folders, 0);
  expect((await recordsIn(folders.two)).filter(({ session }) => session === last)).toHaveLength(2);
});

test("a disk that prepares files slowly, but does, is not given up: only one that gets no further is", async () => {
  await using folders = await pair();
  const inner = disks();
  let slices = 0;
  const prepare: typeof inner.prepare = async (dir, name, head, bytes, slice) => {
    if (dir === folders.two)
      for (; slices < 6; slices++) {
        await slice();
        await sleep(250); // as a slow disk's sync
      }
    await inner.prepare(dir, name, head, bytes, slice);
  };
  await using journal = await testJournal(folders.one, {
    mirror: folders.two,
    files: { ...inner, prepare },
    slowDiskMs: 1_000,
  });
  await committed(journal.recorder(newId("session")), RECORD.notice, "{}");
  expect(slices).toBe(6);
  expect(journal.degraded()).toBeUndefined();
});

/** Reads what there is, as the sealer does. @returns the records of that session. */
async function follow(reader: JournalReader, session: string): Promise<number> {
  let records = 0;
  for (let frame = await reader.next(); frame !== undefined; frame = await reader.next())
    records += frame.records.filter((record) => record.session === session).length;
  await reader.sync();
  return records;
}

test.for(["one", "two"] as const)(
  "who follows the journal is held up by no disk that answers with errors alone, neither before nor after it is given up (disk %s)",
  async (side) => {
    await using folders = await pair();
    const files = disks();
    await using journal = await testJournal(folders.one, { mirror: folders.two, files });
    const reader = openReader(folders.one, KEY, folders.two);
    const session = newId("session");
    const recorder = journal.recorder(session);
    await committed(recorder, RECORD.notice, "{}");
    expect(await follow(reader, session)).toBe(1);
    await rm(folders[side], { recursive: true, maxRetries: 100, retryDelay: 10 }); // a next file may be in the making
    await writeFile(folders[side], ""); // whatever is asked of the folder is an error, and not that it is not there
    expect(await follow(reader, session)).toBe(0);
    files.break(folders[side]);
    await committed(recorder, RECORD.notice, "{}");
    expect(journal.degraded()).toContain(folders[side]);
    expect(await follow(reader, session)).toBe(1);
    await committed(recorder, RECORD.notice, "{}");
    expect(await follow(reader, session)).toBe(1);
    await reader.close();
  },
);

test(
  "who follows the journal is not held up by a second disk that answers nothing at all",
  { timeout: 60_000 },
  async () => {
    await using folders = await pair();
    await using journal = await testJournal(folders.one, { mirror: folders.two });
    const reader = openReader(folders.one, KEY, folders.two);
    const session = newId("session");
    await committed(journal.recorder(session), RECORD.notice, "{}");
    const note = join(folders.two, NOTE);
    await rm(note);
    execFileSync("mkfifo", [note]); // who reads it waits for ever
    try {
      for (let i = 0; i < 8; i++) {
        expect(await follow(reader, session)).toBe(1);
        await committed(journal.recorder(session), RECORD.notice, "{}");
      }
    } finally {
      await reader.close();
      for (let i = 0; i < 8; i++) {
        const writer = await open(note, constants.O_WRONLY | constants.O_NONBLOCK).catch(() => undefined);
        await writer?.close();
      }
    }
  },
);

test.for(["EIO", "ENOSPC"] as const)(
  "%s at each write and sync while a copy is rebuilt: the other is used, and the next start makes them equal",
  async (code) => {
    for (let at = 1, done = false; !done; at++) {
      await using folders = await pair(quickRoot());
      const { one, two } = folders;
      await life(folders, 3);
      await cp(two, `${two}.stale`, { recursive: true });
      const later = await life(folders, 5);
      await replace(two, `${two}.stale`);
      let during = "";
      const count = await withFailingDisk(two, at, code, async () => {
        during = await life(folders, 2);
      });
      done = at > count;
      expect((await recordsIn(one)).map(({ session }) => session)).toEqual(expect.arrayContaining([later, during]));
      await life(folders, 0);
      for (const dir of [one, two]) {
        const found = (await recordsIn(dir)).filter(({ session }) => session === later || session === during);
        expect(found, `${dir}, fault at ${at}`).toHaveLength(7);
      }
    }
  },
);

/** What is found at a folder's path at a start: its disk; an empty folder, gone afterwards, as where a volume is not mounted; or nothing of use. */
type Found = "disk" | "empty" | "nothing";
type Scene = readonly [Found, Found, fails?: "one" | "two"];
const SCENES: readonly Scene[] = [
  ["disk", "disk"],
  ["disk", "disk", "one"],
  ["disk", "disk", "two"],
  ["empty", "disk"],
  ["disk", "empty"],
  ["nothing", "disk"],
  ["disk", "nothing"],
];
interface Life {
  readonly scene: Scene;
  /** After how many operations the disk fails, where one does. */
  readonly after: number;
  readonly records: number;
  readonly killed: boolean;
}
const lifeOf: fc.Arbitrary<Life> = fc.record({
  scene: fc.constantFrom(...SCENES),
  after: fc.integer({ min: 1, max: 60 }),
  records: fc.integer({ min: 0, max: 6 }),
  killed: fc.boolean(),
});

const livesOf = (lives: readonly (readonly [scene: number, records: number])[]): Life[] =>
  lives.map(([scene, records]) => ({ scene: SCENES[scene] as Scene, after: 1, killed: false, records }));

/** One goes on alone, further than the other does while one is not mounted; then both are there. */
const WENT_ON_APART = livesOf([
  [0, 2],
  [6, 6],
  [3, 2],
  [0, 0],
]);

/** While one is not mounted, the other is given a single record, the last that it has; then one goes on alone. */
const LAST_RECORD_APART = livesOf([
  [0, 0],
  [3, 1],
  [6, 0],
  [0, 0],
]);

test("whatever the order of disks that fail, are away and come back: what was acknowledged is never taken from the last folder that has it", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(lifeOf, { minLength: 3, maxLength: 7 }), async (lives) => {
      await using folder = await testFolder(quickRoot());
      const at = { one: join(folder.path, "one"), two: join(folder.path, "two") };
      const kept = (side: string): string => join(folder.path, `${side}.disk`);
      const acknowledged: string[] = [];
      for (const { scene, after, records, killed } of lives) {
        const [one, two, fails] = scene;
        const found = { one, two };
        for (const side of ["one", "two"] as const) {
          if (found[side] === "nothing") await writeFile(at[side], "");
          else if (found[side] === "empty") await mkdir(at[side]);
          else await rename(kept(side), at[side]).catch(() => mkdir(at[side]));
        }
        const files = disks(fails === undefined ? undefined : { dir: at[fails], at: after, how: "EIO" });
        let left = false;
        try {
          // No disk is given up for being slow: on a busy machine that could be the one that stays.
          const journal = await testJournal(at.one, { mirror: at.two, files, slowDiskMs: 60_000 });
          const session = newId("session");
          const recorder = journal.unavailable() === undefined ? journal.recorder(session) : undefined;
          for (let i = 1; i <= records && recorder !== undefined && journal.failures.length === 0; i++) {
            await new Promise<void>((resolve) => {
              recorder.write(RECORD.data, Buffer.alloc(2_000, i), () => {
                if (!left) acknowledged.push(`${session} ${i}`);
                resolve();
              });
              void journal.flush().catch(() => resolve());
            });
          }
          if (killed && recorder !== undefined) recorder.write(RECORD.data, Buffer.alloc(3_000, 9), () => {});
          left = true;
          await journal.close();
        } catch (error) {
          if (!(error instanceof GlassError)) throw error;
        }
        for (const side of ["one", "two"] as const) {
          if (found[side] === "disk") await rename(at[side], kept(side));
          else await rm(at[side], { recursive: true, maxRetries: 100, retryDelay: 10 });
        }
      }
      const there = new Set<string>();
      for (const side of ["one", "two"])
        for (const { session, seq } of await recordsIn(kept(side)).catch(() => [])) there.add(`${session} ${seq}`);
      expect(acknowledged.filter((record) => !there.has(record))).toEqual([]);
    }),
    { numRuns: 25, examples: [[WENT_ON_APART], [LAST_RECORD_APART]] },
  );
}, 300_000);
