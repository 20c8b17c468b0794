import { appendFile, cp, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { newId } from "../core/ids.ts";
import { RECORD } from "../targets/target.ts";
import { FILE_HEADER_BYTES } from "./frame.ts";
import type { JournalOptions } from "./journal.ts";
import { type JournalFiles, nodeFiles } from "./journal-files.ts";
import { isGivenUp, readNote } from "./journal-mirror.ts";
import { openReader } from "./reader.ts";
import { JOURNAL_SESSION } from "./record.ts";
import { disks, type Fault } from "./testing/disks.ts";
import {
  committed,
  KEY,
  quickRoot,
  recordsIn,
  testFolder,
  testJournal,
  type TestJournal,
  turn,
} from "./testing/journal.ts";

interface Pair extends AsyncDisposable {
  readonly one: string;
  readonly two: string;
}

async function pair(root?: string): Promise<Pair> {
  const folder = await testFolder(root);
  return {
    one: join(folder.path, "one"),
    two: join(folder.path, "two"),
    [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose](),
  };
}

function open({ one, two }: Pair, options: Partial<JournalOptions> = {}): Promise<TestJournal> {
  return testJournal(one, { mirror: two, ...options });
}

/** Writes until `count` records are committed or recording has failed. @returns what was committed. */
async function write(journal: TestJournal, session: string, count: number, bytes = 3_000): Promise<number> {
  const recorder = journal.recorder(session);
  let acknowledged = 0;
  for (let i = 1; i <= count; i++) {
    recorder.write(RECORD.data, Buffer.alloc(bytes, i), () => (acknowledged = i));
    while (acknowledged < i && journal.failures.length === 0) await turn();
    if (acknowledged < i) break;
  }
  return acknowledged;
}

async function sizes(dir: string): Promise<Record<string, string>> {
  const names = (await readdir(dir)).filter((name) => name.endsWith(".gkj"));
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, (await readFile(join(dir, name))).toString("latin1")])),
  );
}

async function seqs(dir: string, session: string): Promise<number[]> {
  return (await recordsIn(dir)).filter((record) => record.session === session).map(({ seq }) => seq);
}

const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i + 1);

test.for(["durable", "written"] as const)(
  "mode %s: both folders have the same bytes, also over rotation and restart",
  async (mode) => {
    await using folders = await pair();
    const sessions = [newId("session"), newId("session")];
    for (const session of sessions) {
      await using journal = await open(folders, { mode });
      expect(await write(journal, session, 40)).toBe(40);
      expect(journal.degraded()).toBeUndefined();
      expect(journal.rebuilt).toBeUndefined();
    }
    expect(await sizes(folders.two)).toEqual(await sizes(folders.one));
    for (const session of sessions) expect(await seqs(folders.two, session)).toEqual(upTo(40));
  },
);

test("a record is committed only when both disks have it", async () => {
  await using folders = await pair();
  const files = disks();
  await using journal = await open(folders, { files, slowDiskMs: 100 });
  const session = newId("session");
  await write(journal, session, 3);
  files.hang(folders.two);
  let done = false;
  journal.recorder(newId("session")).write(RECORD.notice, "{}", () => (done = true));
  for (let i = 0; i < 20; i++) await turn();
  expect(done).toBe(false);
  await expect.poll(() => done, { timeout: 10_000 }).toBe(true); // then the hanging disk is given up
  expect(journal.degraded()).toContain(`without its copy in ${folders.two}`);
  expect(await isGivenUp(folders.two, folders.one)).toBe(true);
});

/** Runs one life of a journal with that fault, and whatever comes after it. */
async function life(folders: Pair, fault: Fault | undefined, mode: "durable" | "written"): Promise<number> {
  const files = disks(fault);
  const session = newId("session");
  let acknowledged = 0;
  const journal = await open(folders, { files, mode, slowDiskMs: 60_000 });
  try {
    acknowledged = await write(journal, session, 16, 8_500); // two changes of the file
    if (fault !== undefined) expect(journal.failures, "one bad disk stops nobody").toEqual([]);
    expect(acknowledged).toBe(16);
  } finally {
    await journal.close();
  }
  const operations = files.count(fault?.dir ?? folders.one);
  // The copy that is left is enough, and so is what the next start makes of both.
  const good = fault?.dir === folders.one ? folders.two : folders.one;
  expect(await seqs(good, session)).toEqual(upTo(acknowledged));
  await using again = await open(folders);
  expect(again.degraded()).toBeUndefined();
  for (const dir of [folders.one, folders.two]) expect(await seqs(dir, session)).toEqual(upTo(acknowledged));
  return operations;
}

test.for([
  ["EIO", "one"],
  ["EIO", "two"],
  ["ENOSPC", "one"],
  ["ENOSPC", "two"],
  ["short", "two"],
  ["once", "one"],
] as const)(
  "one disk fails at each operation in turn: recording goes on, and nothing acknowledged is missing from the other (%s, disk %s)",
  { timeout: 300_000 },
  async ([how, side]) => {
    const mode = side === "one" && how === "EIO" ? "written" : "durable";
    await using healthy = await pair(quickRoot());
    const operations = await life(healthy, undefined, mode);
    expect(operations).toBeGreaterThan(40);
    const step = how === "EIO" ? 1 : 3;
    for (let at = 1; at <= operations; at += step) {
      await using folders = await pair(quickRoot());
      await life(folders, { dir: folders[side], at, how }, mode);
    }
  },
);

test("an error on both disks is a failure as with one: told once, nothing acknowledged after it", async () => {
  await using folders = await pair();
  const files = disks();
  await using journal = await open(folders, { files });
  const session = newId("session");
  const before = await write(journal, session, 5);
  files.break(folders.one);
  files.break(folders.two);
  expect(await write(journal, newId("session"), 5)).toBe(0);
  expect(journal.failures).toHaveLength(1);
  expect(journal.stats().state).toBe("failed");
  await journal.close();
  await using again = await open(folders);
  expect(again.degraded()).toBeUndefined();
  expect(await seqs(folders.two, session)).toEqual(upTo(before));
});

test("the one disk that is left fails too: recording stops, and says so", async () => {
  await using folders = await pair();
  const files = disks();
  await using journal = await open(folders, { files });
  const session = newId("session");
  files.break(folders.one);
  const acknowledged = await write(journal, session, 5);
  expect(acknowledged).toBe(5);
  files.break(folders.two);
  expect(await write(journal, newId("session"), 5)).toBe(0);
  expect(journal.failures).toHaveLength(1);
  await journal.close();
  await using _again = await open(folders);
  expect(await seqs(folders.one, session)).toEqual(upTo(acknowledged));
});

test("a loss that cannot be noted on the disk that is left is a failure: a stale copy must never look like the right one", async () => {
  await using folders = await pair();
  const inner = disks();
  let full = false;
  const mark: typeof inner.mark = (...args) => {
    if (full) throw new Error("EROFS: made by a test");
    inner.mark(...args);
  };
  await using journal = await open(folders, { files: { ...inner, mark } });
  expect(await write(journal, newId("session"), 3)).toBe(3);
  full = true;
  inner.break(folders.one);
  expect(await write(journal, newId("session"), 3)).toBe(0);
  expect(journal.failures).toHaveLength(1);
});

test("a disk that was replaced by an empty one, or lost its latest files, is made equal at the next start", async () => {
  for (const side of ["one", "two"] as const) {
    await using folders = await pair();
    const session = newId("session");
    {
      await using journal = await open(folders);
      await write(journal, session, 60);
    }
    await rm(folders[side], { recursive: true, maxRetries: 100, retryDelay: 10 });
    {
      await using journal = await open(folders);
      expect(journal.rebuilt).toContain(folders[side]);
    }
    expect(await seqs(folders[side], session)).toEqual(upTo(60));
    const names = Object.keys(await sizes(folders[side])).toSorted();
    await rm(join(folders[side], names.at(-1) as string));
    await rm(join(folders[side], names.at(-2) as string));
    await using _journal = await open(folders);
    expect(await sizes(folders.one)).toEqual(await sizes(folders.two));
    expect(await seqs(folders[side], session)).toEqual(upTo(60));
  }
});

test("a stale copy that comes back does not win over the one that went on", async () => {
  await using folders = await pair();
  const [first, second] = [newId("session"), newId("session")];
  {
    await using journal = await open(folders);
    await write(journal, first, 10);
  }
  await cp(folders.one, `${folders.one}.stale`, { recursive: true });
  {
    await using journal = await open(folders);
    await write(journal, second, 30);
  }
  await rm(folders.one, { recursive: true, maxRetries: 100, retryDelay: 10 });
  await cp(`${folders.one}.stale`, folders.one, { recursive: true });
  await using journal = await open(folders);
  expect(journal.rebuilt).toContain(folders.one);
  expect(await seqs(folders.one, second)).toEqual(upTo(30));
});

test("copies that went on apart, each without the other, are refused, and nothing is changed", async () => {
  await using folders = await pair();
  const { one, two } = folders;
  {
    await using journal = await open(folders);
    await write(journal, newId("session"), 5);
  }
  for (const dir of [one, two]) await cp(dir, `${dir}.base`, { recursive: true });
  const replace = async (dir: string, by: string): Promise<void> => {
    await rm(dir, { recursive: true, maxRetries: 100, retryDelay: 10 });
    await cp(by, dir, { recursive: true });
  };
  const alone = async (away: string): Promise<void> => {
    const files = disks();
    files.break(away);
    await using journal = await open(folders, { files });
    expect(journal.degraded()).toContain(away);
    expect(await write(journal, newId("session"), 5)).toBe(5);
  };
  await alone(two);
  expect(await isGivenUp(two, one)).toBe(true);
  await cp(one, `${one}.alone`, { recursive: true });
  for (const dir of [one, two]) await replace(dir, `${dir}.base`);
  await alone(one);
  await replace(one, `${one}.alone`);
  const before = [await sizes(one), await sizes(two)];
  await expect(open(folders)).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("differ in what each says"),
  });
  expect([await sizes(one), await sizes(two)]).toEqual(before);
});

test("kill -9 between the two writes of a frame: the longer copy is taken, whichever has it", async () => {
  for (const side of ["one", "two"] as const) {
    await using folders = await pair(quickRoot());
    const session = newId("session");
    {
      await using journal = await open(folders);
      await write(journal, session, 5);
    }
    const name = Object.keys(await sizes(folders.one))[0] as string;
    const whole = await readFile(join(folders.one, name));
    const reader = openReader(folders.one, KEY);
    const edges: number[] = [];
    for (let frame = await reader.next(); frame !== undefined; frame = await reader.next()) edges.push(frame.offset);
    await reader.close();
    const last = edges.at(-1) as number;
    for (let cut = last; cut <= whole.length; cut += 97) {
      for (const dir of [folders.one, folders.two]) {
        for (const old of await readdir(dir)) if (old.endsWith(".gkj")) await rm(join(dir, old));
        await writeFile(join(dir, name), Buffer.concat([whole, Buffer.alloc(4_096)]));
      }
      const torn = Buffer.concat([whole.subarray(0, cut), Buffer.alloc(whole.length - cut + 4_096)]);
      await writeFile(join(folders[side], name), torn);
      await (await open(folders)).close();
      expect(await seqs(folders.one, session), `cut at ${cut}`).toEqual(upTo(5));
      expect(await sizes(folders.two)).toEqual(await sizes(folders.one));
    }
  }
});

test("damage in one copy is mended from the other, and what was damaged is kept aside; damage in both stops the start", async () => {
  await using folders = await pair();
  const session = newId("session");
  {
    await using journal = await open(folders);
    await write(journal, session, 8);
  }
  const damage = async (dir: string): Promise<void> => {
    const path = join(dir, Object.keys(await sizes(dir)).toSorted()[0] as string);
    const bytes = await readFile(path);
    bytes[FILE_HEADER_BYTES + 300] = (bytes[FILE_HEADER_BYTES + 300] as number) ^ 1;
    await writeFile(path, bytes);
  };
  await damage(folders.one);
  {
    await using journal = await open(folders);
    expect(journal.rebuilt).toContain("was damaged");
    expect((await readdir(folders.one)).some((name) => name.startsWith("set-aside-"))).toBe(true);
    expect(await seqs(folders.one, session)).toEqual(upTo(8));
  }
  await damage(folders.one);
  await damage(folders.two);
  await expect(open(folders)).rejects.toMatchObject({ code: "integrity" });
});

test("a whole copy that is older than a damaged one does not stand in for it", async () => {
  await using folders = await pair();
  {
    await using journal = await open(folders);
    await write(journal, newId("session"), 3);
  }
  await cp(folders.two, `${folders.two}.old`, { recursive: true });
  {
    await using journal = await open(folders);
    await write(journal, newId("session"), 3);
  }
  await rm(folders.two, { recursive: true, maxRetries: 100, retryDelay: 10 });
  await cp(`${folders.two}.old`, folders.two, { recursive: true });
  const path = join(folders.one, "000000000001.gkj");
  const bytes = await readFile(path);
  bytes[20] = (bytes[20] as number) ^ 1; // the header: nothing in this file verifies any more
  await writeFile(path, bytes);
  await expect(open(folders)).rejects.toMatchObject({ code: "integrity" });
  expect((await readFile(path)).equals(bytes)).toBe(true);
});

test("a copy of another journal is refused", async () => {
  await using folders = await pair();
  for (const dir of [folders.one, folders.two]) {
    await using journal = await testJournal(dir);
    await write(journal, newId("session"), 2);
  }
  await expect(open(folders)).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("differ in what each says"),
  });
});

test("a folder that cannot be used at the start is given up with a note; with neither, the start says why for both", async () => {
  await using folders = await pair();
  await mkdir(folders.one, { recursive: true });
  await writeFile(folders.two, "a file where the folder should be");
  const session = newId("session");
  {
    await using journal = await open(folders);
    expect(journal.degraded()).toContain(folders.two);
    expect(await write(journal, session, 3)).toBe(3);
  }
  await rm(folders.two);
  {
    await using journal = await open(folders);
    expect(journal.degraded()).toBeUndefined();
    expect(await readNote(folders.one)).toBeUndefined();
    expect(await seqs(folders.two, session)).toEqual(upTo(3));
  }
  for (const dir of [folders.one, folders.two]) {
    await rm(dir, { recursive: true, maxRetries: 100, retryDelay: 10 });
    await appendFile(dir, "");
  }
  await expect(open(folders)).rejects.toMatchObject({
    code: "recording_unavailable",
    message: expect.stringContaining(folders.two),
  });
  expect((await stat(folders.one)).isFile()).toBe(true);
});

test("both folders are locked, and a mirror that is the folder itself is refused", async () => {
  await using folders = await pair();
  {
    await using _journal = await open(folders);
    await expect(testJournal(folders.two)).rejects.toMatchObject({ code: "conflict" });
    await expect(open({ ...folders, one: `${folders.one}-other` })).rejects.toMatchObject({ code: "conflict" });
  }
  await expect(testJournal(folders.one, { mirror: folders.one })).rejects.toMatchObject({ code: "config_invalid" });
});

test.for(["one", "two"] as const)(
  "who follows the journal goes on in the other folder when a disk is given up or its copy vanishes (disk %s)",
  async (side) => {
    await using folders = await pair();
    const files = disks();
    await using journal = await open(folders, { files });
    const reader = openReader(folders.one, KEY, folders.two);
    const session = newId("session");
    const seen: number[] = [];
    const readAll = async (): Promise<void> => {
      for (let frame = await reader.next(); frame !== undefined; frame = await reader.next()) {
        seen.push(...frame.records.filter((record) => record.session !== JOURNAL_SESSION).map(({ seq }) => seq));
      }
      await reader.sync();
    };
    const recorder = journal.recorder(session);
    for (let i = 1; i <= 60; i++) {
      if (i === 20) files.break(folders[side]);
      if (i === 40) await rm(folders[side], { recursive: true, maxRetries: 100, retryDelay: 10 });
      await committed(recorder, RECORD.data, Buffer.alloc(3_000, i));
      if (i % 3 === 0) await readAll();
    }
    await readAll();
    await reader.close();
    expect(seen).toEqual(upTo(60));
  },
);

test.for(["durable", "written"] as const)(
  "mode %s: a file that sealing has removed from one disk already when it is cut to its length costs no disk",
  async (mode) => {
    await using folders = await pair();
    let removed = 0;
    const files: JournalFiles = {
      ...nodeFiles,
      async truncate(dir, name, bytes) {
        if (dir === folders.one) {
          await rm(join(dir, name)); // the sealer is quicker, and the other disk slower than this one
          removed++;
        }
        return nodeFiles.truncate(dir, name, bytes);
      },
    };
    await using journal = await open(folders, { mode, files });
    expect(await write(journal, newId("session"), 40)).toBe(40);
    await expect.poll(() => removed, { timeout: 10_000 }).toBeGreaterThan(0);
    expect(await write(journal, newId("session"), 40)).toBe(40);
    expect(journal.degraded()).toBeUndefined();
  },
);
