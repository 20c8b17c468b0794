import { copyFile, type FileHandle, mkdir, open, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { newId } from "../core/ids.ts";
import { RECORD } from "../targets/target.ts";
import { FILE_HEADER_BYTES } from "./frame.ts";
import { nodeFiles } from "./journal-files.ts";
import { openReader, readJournal } from "./reader.ts";
import { recoverJournal } from "./recovery.ts";
import { committed, KEY, quickRoot, recordsIn, testFolder, testJournal } from "./testing/journal.ts";

const FILE = "000000000001.gkj";
const SLACK_BYTES = 4_096;

interface Image {
  readonly bytes: Buffer;
  /** Where each frame begins, and the end of the last. */
  readonly edges: number[];
}

/** One journal file with a frame for each of `sizes`, as it is after a crash: zeros to the end. */
async function image(dir: string, sizes: readonly number[]): Promise<Image> {
  const journal = await testJournal(dir);
  const recorder = journal.recorder(newId("session"));
  for (const size of sizes) await committed(recorder, RECORD.data, Buffer.alloc(size, 1));
  await journal.close();
  const used = await readFile(join(dir, FILE));
  const edges: number[] = [];
  for await (const frame of readJournal(dir, KEY)) edges.push(frame.offset);
  edges.push(used.length);
  return { bytes: Buffer.concat([used, Buffer.alloc(SLACK_BYTES)]), edges };
}

async function verdict(dir: string): Promise<{ frames: number; torn: boolean }> {
  const reader = openReader(dir, KEY);
  try {
    let frames = 0;
    while ((await reader.next()) !== undefined) frames++;
    return { frames, torn: (await reader.tail())?.torn ?? false };
  } finally {
    await reader.close();
  }
}

test("a tail torn or zeroed at any offset of the last page loses the frames it touches, and no other", async () => {
  await using folder = await testFolder(quickRoot());
  const { bytes, edges } = await image(folder.path, [300, 10, 1_000, 600, 40, 1_500, 5, 700, 900]);
  const end = edges.at(-1) as number;
  expect(end - FILE_HEADER_BYTES).toBeGreaterThan(4_096);
  /** Backwards, so that each step is one small change of the file. */
  const backwards = async (what: string, change: (file: FileHandle, at: number) => Promise<unknown>): Promise<void> => {
    const dir = join(folder.path, what);
    await mkdir(dir);
    await writeFile(join(dir, FILE), bytes);
    const file = await open(join(dir, FILE), "r+");
    for (let at = end; at >= end - 4_096; at--) {
      await change(file, at);
      const whole = edges.filter((edge) => edge <= at).length - 1;
      const torn = bytes.subarray(edges[whole], at).some((byte) => byte !== 0); // a length begins with zeros: no trace of it
      expect(await verdict(dir), `${what} at ${at}`).toEqual({ frames: whole, torn });
    }
    await file.close();
  };
  const zero = Buffer.alloc(1);
  await Promise.all([
    backwards("zeroed", (file, at) => file.write(zero, 0, 1, at)),
    backwards("cut", (file, at) => file.truncate(at)),
  ]);
}, 300_000);

test("after a torn tail the journal goes on where the good frames end, and stays readable", async () => {
  await using folder = await testFolder();
  const { bytes, edges } = await image(folder.path, [300, 2_000, 400]);
  const at = (edges.at(-2) as number) + 100;
  bytes.fill(0, at);
  await writeFile(join(folder.path, FILE), bytes);
  for (let run = 0; run < 2; run++) {
    await using journal = await testJournal(folder.path);
    expect(journal.torn).toEqual(run === 0 ? { file: FILE, offset: edges.at(-2) } : undefined);
    await committed(journal.recorder(newId("session")), RECORD.notice, "{}");
  }
  expect((await recordsIn(folder.path)).map(({ kind }) => kind)).toEqual([
    RECORD.data,
    RECORD.data,
    RECORD.notice,
    RECORD.notice,
  ]);
});

test("sectors of the last write that never reached the disk, in any pattern, are a torn tail", async () => {
  await using folder = await testFolder();
  const { bytes, edges } = await image(folder.path, [300, 6_000]);
  const [start, end] = [edges.at(-2) as number, edges.at(-1) as number];
  const sectors = Array.from(
    { length: Math.ceil(end / 512) - Math.floor(start / 512) },
    (_, i) => Math.floor(start / 512) + i,
  );
  await fc.assert(
    fc.asyncProperty(fc.subarray(sectors, { minLength: 1 }), async (lost) => {
      const torn = Buffer.from(bytes);
      for (const sector of lost) torn.fill(0, Math.max(start, sector * 512), (sector + 1) * 512);
      await writeFile(join(folder.path, FILE), torn);
      const found = await verdict(folder.path);
      expect(found.frames).toBe(2);
    }),
    { numRuns: 150 },
  );
});

test("one changed byte anywhere is found, and named by file and offset, in the last frame too", async () => {
  await using folder = await testFolder(quickRoot());
  const { bytes, edges } = await image(folder.path, [300, 10, 700, 40]);
  const path = join(folder.path, FILE);
  const end = edges.at(-1) as number;
  for (const [length, flip, step] of [
    [end, 0x01, 1],
    [bytes.length, 0x80, 3],
  ] as const) {
    for (let at = 0; at < end; at += at < FILE_HEADER_BYTES - 64 && at > 64 ? 61 : step) {
      const changed = Buffer.from(bytes.subarray(0, length));
      changed[at] = (changed[at] as number) ^ flip;
      await writeFile(path, changed);
      const offset = at < FILE_HEADER_BYTES ? 0 : edges.findLast((edge) => edge <= at);
      await expect(verdict(folder.path), `byte ${at} of ${length}`).rejects.toMatchObject({
        code: "integrity",
        message: expect.stringContaining(`damaged in ${FILE} at offset ${offset}:`),
        details: { file: FILE, offset },
      });
    }
  }
}, 120_000);

test("a damaged journal stops the start and is left exactly as it was", async () => {
  await using folder = await testFolder();
  const { bytes, edges } = await image(folder.path, [300, 300, 300]);
  bytes[(edges[1] as number) + 50] = (bytes[(edges[1] as number) + 50] as number) ^ 1;
  await writeFile(join(folder.path, FILE), bytes);
  await expect(testJournal(folder.path)).rejects.toMatchObject({ code: "integrity" });
  await expect(recoverJournal(folder.path, KEY, nodeFiles)).rejects.toMatchObject({ code: "integrity" });
  expect((await readFile(join(folder.path, FILE))).equals(bytes)).toBe(true);
});

test("a missing file, a swapped file and a cut file are found", async () => {
  await using folder = await testFolder();
  {
    await using journal = await testJournal(folder.path);
    const recorder = journal.recorder(newId("session"));
    for (let i = 0; i < 40; i++) await committed(recorder, RECORD.data, Buffer.alloc(6_000));
  }
  const files = (await readdir(folder.path)).filter((name) => name.endsWith(".gkj")).toSorted();
  expect(files.length).toBeGreaterThan(3);
  const [first, second, third] = files.map((name) => join(folder.path, name)) as [string, string, string];
  const saved = await readFile(second);

  await rm(second);
  await expect(verdict(folder.path)).rejects.toMatchObject({ code: "integrity" });
  await copyFile(third, second);
  await expect(verdict(folder.path)).rejects.toThrow(`in ${files[1]} at offset 0: its header says file 3`);
  await writeFile(second, saved);
  await truncate(second, saved.length - 6_000);
  await expect(verdict(folder.path)).rejects.toThrow(`damaged in ${files[1]}`);
  await truncate(second, FILE_HEADER_BYTES);
  await expect(verdict(folder.path)).rejects.toMatchObject({ code: "integrity" });
  await writeFile(second, saved);
  await expect(verdict(folder.path)).resolves.toMatchObject({ torn: false });
  await truncate(first, 100);
  await expect(verdict(folder.path)).rejects.toThrow("has 100 of 4096 bytes");
});

test("what a process left half prepared is removed at the next start", async () => {
  await using folder = await testFolder();
  await image(folder.path, [100]);
  await writeFile(join(folder.path, "000000000002.gkj.preparing"), Buffer.alloc(100));
  await using journal = await testJournal(folder.path);
  await committed(journal.recorder(newId("session")), RECORD.notice, "{}");
  expect(await readdir(folder.path)).not.toContain("000000000002.gkj.preparing");
});

test("a reader that follows the journal sees every frame once, while it grows and rotates", async () => {
  await using folder = await testFolder();
  await using journal = await testJournal(folder.path);
  const reader = openReader(folder.path, KEY);
  const session = newId("session");
  const recorder = journal.recorder(session);
  const seen: number[] = [];
  const follow = async (): Promise<void> => {
    while (seen.length < 300) {
      const frame = await reader.next();
      if (frame === undefined) await new Promise((resolve) => setTimeout(resolve, 1));
      else seen.push(...frame.records.filter((record) => record.session === session).map(({ seq }) => seq));
    }
  };
  const write = async (): Promise<void> => {
    for (let i = 0; i < 300; i++) {
      const done = committed(recorder, RECORD.data, Buffer.alloc((i * 311) % 4_000));
      if (i % 7 === 0) await done;
    }
  };
  await Promise.all([follow(), write()]);
  expect(seen).toEqual(Array.from({ length: 300 }, (_, i) => i + 1));
  await reader.stalled();
  await reader.close();
});

test("mode written: what a power cut took of frames that were never synced is a torn tail, even with later ones there", async () => {
  await using folder = await testFolder();
  const journal = await testJournal(folder.path, { mode: "written" });
  const recorder = journal.recorder(newId("session"));
  for (let i = 0; i < 4; i++) await committed(recorder, RECORD.data, Buffer.alloc(1_000));
  await journal.close();
  const edges: number[] = [];
  for await (const frame of readJournal(folder.path, KEY)) edges.push(frame.offset);
  const path = join(folder.path, FILE);
  const bytes = await readFile(path);
  bytes.fill(0, edges[2], (edges[2] as number) + 700); // a page of the third frame is lost, the fourth and fifth are there
  await writeFile(path, bytes);
  expect(await verdict(folder.path)).toEqual({ frames: 2, torn: true });
});
