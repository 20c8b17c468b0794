import { hash } from "node:crypto";
import { mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { FormatError } from "./errors.ts";
import { leafHash } from "./merkle.ts";
import { chunkPath } from "./recordings.ts";
import { formatProblem, type Report } from "./report.ts";
import {
  buildLog,
  checkpointAt,
  memorySource,
  recordedSession,
  testSigner,
  writeFolder,
  type TestFolder,
  type TestLog,
  type TestLogOptions,
} from "../testing/log.ts";
import { encodeBundle } from "./tiles.ts";
import { verifyFolder, verifyLog } from "./verify.ts";

const cleanup: TestFolder[] = [];
afterEach(() => {
  for (const folder of cleanup.splice(0)) folder.dispose();
});

function write(log: TestLog): TestFolder {
  const folder = writeFolder(log.files);
  cleanup.push(folder);
  return folder;
}

const lines = (report: Report): string[] => report.problems.map(formatProblem);
const plain = (count: number): string[] => Array.from({ length: count }, (_, i) => `{"n":${i}}`);
const SESSION = "se_0123456789ab";

/** Two sessions between other entries: 9 entries in all. */
function smallLog(extra: Partial<TestLogOptions> = {}): TestLog {
  const [a, b] = [recordedSession(SESSION, 2), recordedSession("se_zzzzzzzzzzzz", 1)];
  const entries = [...plain(3), a.entries[0] ?? "", ...b.entries, ...plain(2), a.entries[1] ?? "", '{"last":true}'];
  return buildLog({ entries, chunks: new Map([...a.files, ...b.files]), kept: [4, 9], ...extra });
}

test("a sound log verifies, at every size around the borders of tiles", async () => {
  for (const size of [0, 1, 2, 255, 256, 257, 511, 512, 65_536, 65_537]) {
    const log = buildLog({ entries: plain(size), kept: [0, 1, 255, 256, 300, 512].filter((s) => s <= size) });
    const { folder } = write(log);
    const report = await verifyFolder({ folder, vkey: log.signer.vkey });
    expect(lines(report), `size ${size}`).toEqual([]);
    expect(report).toMatchObject({ ok: true, size, origin: "glasskey.test/log", totals: { entries: size } });
  }
  const log = smallLog();
  const report = await verifyFolder({ folder: write(log).folder, vkey: log.signer.vkey });
  expect(report).toMatchObject({ ok: true, totals: { entries: 9, chunks: 3, sessions: 2, checkpoints: 3 } });
});

test("editing any one byte of any file is found, and the file is named", async () => {
  const log = smallLog();
  const files = new Map<string, Buffer>(log.files);
  const source = memorySource(files);
  let edits = 0;
  for (const [path, bytes] of log.files) {
    for (let i = 0; i < bytes.length; i += 1) {
      for (const change of [0x01, 0x20, 0x80, 0xff]) {
        const edited = Buffer.from(bytes);
        edited[i] = (edited[i] ?? 0) ^ change;
        files.set(path, edited);
        const report = await verifyLog({ source, vkey: log.signer.vkey });
        expect(report.ok, `${path} byte ${i}`).toBe(false);
        expect(
          report.problems.map((p) => p.where),
          `${path} byte ${i}`,
        ).toContain(path);
        edits += 1;
      }
    }
    files.set(path, bytes);
  }
  expect(edits).toBe(4 * [...log.files.values()].reduce((sum, bytes) => sum + bytes.length, 0));
  expect((await verifyLog({ source, vkey: log.signer.vkey })).ok).toBe(true);
});

test("an edit in a log of several levels is one finding, with the file that was edited and the entry", async () => {
  const log = buildLog({ entries: plain(70_000), kept: [300, 69_000] });
  const { folder, write: put } = write(log);
  const check = async (path: string, at: number): Promise<string[]> => {
    const bytes = log.files.get(path) ?? Buffer.alloc(0);
    const edited = Buffer.from(bytes);
    edited[at] = (edited[at] ?? 0) ^ 1;
    put(path, edited);
    const report = await verifyFolder({ folder, vkey: log.signer.vkey });
    put(path, bytes);
    expect(report.ok).toBe(false);
    return lines(report);
  };
  expect(await check("tile/entries/100", 2)).toEqual([
    "tile/entries/100, entry 25600: was changed: the tree has another hash for this entry",
  ]);
  expect(await check("tile/0/100", 33)).toEqual([
    "tile/0/100, entry 25601: was changed: its hash 1 is not that of the entry",
  ]);
  expect(await check("tile/entries/273.p/112", 2)).toEqual([
    "tile/entries/273.p/112, entry 69888: was changed: the tree has another hash for this entry",
  ]);
  expect(await check("tile/0/273.p/112", 0)).toEqual([
    "tile/0/273.p/112, entry 69888: was changed: its hash 0 is not that of the entry",
  ]);
  expect(await check("tile/1/000", 64)).toEqual(["tile/1/000: was changed: its hash 2 is not that of tile/0/002"]);
  expect(await check("tile/1/001.p/17", 0)).toEqual([
    "tile/1/001.p/17: was changed: its hash 0 is not that of tile/0/256",
  ]);
  expect(await check("tile/2/000.p/1", 31)).toEqual([
    "tile/2/000.p/1: was changed: its hash 0 is not that of tile/1/000",
  ]);
  expect(await check("tile/entries/000", 0)).toEqual([
    expect.stringMatching(/^tile\/entries\/000, entry 0: is damaged: it ends in the middle of an entry$/),
  ]);
});

test("a file missing from a log of several levels is one finding, and everything else is still checked", async () => {
  const log = buildLog({ entries: plain(70_000), kept: [300, 65_536] });
  const { folder, write: put, remove } = write(log);
  const whole = (await verifyFolder({ folder, vkey: log.signer.vkey })).totals;
  const places = ["tile/0/000", "tile/0/255", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"];
  for (const path of [...places, "tile/entries/000", "tile/entries/272", "tile/entries/273.p/112"]) {
    remove(path);
    const report = await verifyFolder({ folder, vkey: log.signer.vkey });
    put(path, log.files.get(path) ?? Buffer.alloc(0));
    expect(lines(report)).toEqual([`${path}: is missing`]);
    expect([report.ok, report.totals.checkpoints]).toEqual([false, whole.checkpoints]);
  }
});

test("removing any one file is found and named, except those that are only there for convenience", async () => {
  const log = smallLog();
  const { folder, write: put, remove } = write(log);
  for (const [path, bytes] of log.files) {
    remove(path);
    const report = await verifyFolder({ folder, vkey: log.signer.vkey });
    put(path, bytes);
    // Without `checkpoint` a folder is an archive: its newest dated one, which is as new here, stands in.
    const archive = path === "checkpoint";
    expect(report.head).toBe(archive ? "checkpoints/9" : "checkpoint");
    const convenience = archive || path === "log.vkey" || path.startsWith("checkpoints/");
    const named = report.problems.some((problem) => problem.where === path && problem.what === "is missing");
    expect({ path, ok: report.ok, named }).toEqual({ path, ok: convenience, named: !convenience });
  }
});

test("truncating any file at any length is found and named", async () => {
  const log = smallLog();
  const { folder, write: put } = write(log);
  for (const [path, bytes] of log.files) {
    for (let length = 0; length < bytes.length; length += 1) {
      put(path, bytes.subarray(0, length));
      const report = await verifyFolder({ folder, vkey: log.signer.vkey });
      expect(
        report.problems.map((p) => p.where),
        `${path} to ${length}`,
      ).toContain(path);
    }
    put(path, Buffer.concat([bytes, Uint8Array.of(10)]));
    const longer = await verifyFolder({ folder, vkey: log.signer.vkey });
    expect(
      longer.problems.map((p) => p.where),
      `${path} longer`,
    ).toContain(path);
    put(path, bytes);
  }
});

test("a file that does not belong is found, wherever it lies", async () => {
  const log = smallLog();
  for (const path of [
    "extra",
    "checkpoint.bak",
    "tile/0/001",
    "tile/0/000",
    "tile/0/000.p/10",
    "tile/0/000.p/9.old",
    "tile/1/000.p/1",
    "tile/9/000",
    "tile/entries/000",
    "tile/entries/x001/000.p/3",
    "tile/readme",
    "checkpoints/004",
    "checkpoints/latest",
    "chunks/note.txt",
    `chunks/${SESSION}/2.gkc`,
    `chunks/${SESSION}/00.gkc`,
    `chunks/${SESSION}/0.gkc.tmp`,
    "chunks/se_aaaaaaaaaaaa/0.gkc",
    "tile/0/000.p/\u001b[31m",
  ]) {
    const { folder, write: put } = write(log);
    put(path, Buffer.from("x"));
    const report = await verifyFolder({ folder, vkey: log.signer.vkey });
    expect(report.ok, path).toBe(false);
    expect(
      report.problems.map((p) => p.where),
      path,
    ).toContain(path.replace("\u001b", "\uFFFD"));
  }
});

test("an older partial tile may stay, if it is the beginning of what it became", async () => {
  const log = smallLog();
  const { folder, write: put } = write(log);
  put("tile/0/000.p/4", Buffer.concat(log.entries.slice(0, 4).map(leafHash)));
  put("tile/entries/000.p/4", encodeBundle(log.entries.slice(0, 4)));
  expect((await verifyFolder({ folder, vkey: log.signer.vkey })).ok).toBe(true);
  put("tile/entries/000.p/4", encodeBundle(log.entries.slice(1, 5)));
  expect(lines(await verifyFolder({ folder, vkey: log.signer.vkey }))).toEqual([
    "tile/entries/000.p/4: is not the beginning of the tile that it became",
  ]);
});

test("an older partial tile is not blamed for an edit of the file that it became", async () => {
  const log = buildLog({ entries: plain(142), kept: [140] });
  const older = buildLog({ entries: plain(140) }).files;
  const kept = ["tile/0/000.p/140", "tile/entries/000.p/140"];
  for (const path of kept) log.files.set(path, older.get(path) ?? Buffer.alloc(0));
  const { folder, write: put } = write(log);
  const check = async (...paths: string[]): Promise<Report> => {
    for (const path of paths) {
      const edited = Buffer.from(log.files.get(path) ?? "");
      edited[70] = (edited[70] ?? 0) ^ 1;
      put(path, edited);
    }
    const report = await verifyFolder({ folder, vkey: log.signer.vkey });
    for (const path of paths) put(path, log.files.get(path) ?? Buffer.alloc(0));
    return report;
  };
  for (const path of ["tile/0/000.p/142", "tile/entries/000.p/142"]) {
    const report = await check(path);
    expect([report.problems.map((problem) => problem.where), report.totals.unchecked]).toEqual([[path], 0]);
    // What is wrong with the older one as well is found by what is beside the other.
    for (const second of kept) {
      expect((await check(path, second)).problems.map((problem) => problem.where)).toEqual([path, second]);
    }
  }
  const both = await check("tile/0/000.p/142", "tile/entries/000.p/142");
  expect(both.problems.map((problem) => problem.where)).toEqual([
    "tile/entries/000.p/142",
    "tile/entries/000.p/142",
    "checkpoints/140",
    "checkpoint",
  ]);
  expect(both.totals.unchecked).toBe(2);
  for (const path of kept) {
    expect((await check(path)).problems.map((problem) => problem.where)).toEqual([path]);
  }
});

test("an older partial tile of a higher level is held against the tiles below where the one it became is wrong", async () => {
  const log = buildLog({ entries: plain(800) });
  log.files.set("tile/1/000.p/2", buildLog({ entries: plain(512) }).files.get("tile/1/000.p/2") ?? Buffer.alloc(0));
  const { folder, write: put, remove } = write(log);
  const check = async (): Promise<string[]> => lines(await verifyFolder({ folder, vkey: log.signer.vkey }));
  expect(await check()).toEqual([]);
  const edited = Buffer.from(log.files.get("tile/1/000.p/3") ?? "");
  edited[40] = (edited[40] ?? 0) ^ 1;
  put("tile/1/000.p/3", edited);
  expect(await check()).toEqual(["tile/1/000.p/3: was changed: its hash 1 is not that of tile/0/001"]);
  remove("tile/1/000.p/3");
  put("tile/1/000.p/2", edited.subarray(0, 64));
  expect(await check()).toEqual([
    "tile/1/000.p/3: is missing",
    "tile/1/000.p/2: is not the beginning of the tile that it became",
  ]);
});

test("links and devices are not followed", async () => {
  const log = smallLog();
  const { folder, remove } = write(log);
  remove("tile/0/000.p/9");
  symlinkSync("../../entries/000.p/9", join(folder, "tile/0/000.p/9"));
  expect(lines(await verifyFolder({ folder, vkey: log.signer.vkey }))).toContain(
    "tile/0/000.p/9: is a link, not a file",
  );
  remove("checkpoint");
  mkdirSync(join(folder, "checkpoint"));
  expect(lines(await verifyFolder({ folder, vkey: log.signer.vkey }))).toEqual(["checkpoint: is not a file"]);
});

test("without a key it refuses, and never takes the one in the folder", async () => {
  const log = smallLog();
  const { folder } = write(log);
  for (const vkey of ["", "  \n", "# none\n", "log.vkey"]) {
    await expect(verifyFolder({ folder, vkey })).rejects.toThrow(FormatError);
  }
});

test("a wrong key, and a right key under a wrong origin, are refused", async () => {
  const log = smallLog();
  const { folder } = write(log);
  const wrong = await verifyFolder({ folder, vkey: testSigner("somebody else").vkey });
  expect(lines(wrong)).toEqual([
    expect.stringMatching(/^checkpoint: no signature by glasskey\.test\/log\+[0-9a-f]{8}$/),
  ]);
  const foreign = smallLog({ origin: "other.example/log" });
  const origin = await verifyFolder({ folder: write(foreign).folder, vkey: foreign.signer.vkey });
  expect(lines(origin)).toContain('checkpoint: the origin "other.example/log" is not the log that the key is for');
  expect(origin.ok).toBe(false);
});

test("an old and a new key verify a log whose key was replaced, and each checkpoint needs one of them", async () => {
  const [before, after] = [testSigner("before"), testSigner("after")];
  const log = smallLog({ signer: after });
  log.files.set("checkpoints/4", Buffer.from(checkpointAt(log.entries, 4, before)));
  log.files.delete("log.vkey");
  const { folder } = write(log);
  expect((await verifyFolder({ folder, vkey: `${before.vkey}\n${after.vkey}\n` })).ok).toBe(true);
  expect(lines(await verifyFolder({ folder, vkey: after.vkey }))).toEqual([
    expect.stringMatching(/^checkpoints\/4: no signature by/),
  ]);
});

// The insider holds the database, the folder and, in the last three, the signing key too.

test("insider: entries edited with all hashes above recomputed do not fit the signed root", async () => {
  const honest = smallLog();
  const forged = buildLog({ entries: honest.entries.with(1, Buffer.from('{"n":7}')) });
  const files = new Map([...honest.files, ...forged.files]);
  files.set("checkpoint", honest.files.get("checkpoint") ?? Buffer.alloc(0));
  const { folder } = write({ ...honest, files });
  const report = await verifyFolder({ folder, vkey: honest.signer.vkey });
  expect(report.problems.map((p) => p.where)).toEqual(["checkpoints/4", "checkpoints/9", "checkpoint"]);
  expect(report.problems[0]?.what).toMatch(/^signs another history: the first 4 entries/);
});

test("insider: two entries that change places are both named", async () => {
  const log = smallLog();
  const [a = Buffer.alloc(0), b = Buffer.alloc(0), ...rest] = log.entries;
  log.files.set("tile/entries/000.p/9", encodeBundle([b, a, ...rest]));
  const report = await verifyFolder({ folder: write(log).folder, vkey: log.signer.vkey });
  expect(report.problems.map((p) => p.entry)).toEqual([0, 1]);
});

test("insider: a tail that was cut off and signed anew is found by a remembered checkpoint", async () => {
  const honest = smallLog();
  const cut = buildLog({
    entries: honest.entries.slice(0, 7),
    chunks: new Map([...honest.files].filter(([p]) => p.startsWith("chunks/"))),
  });
  cut.files.delete(chunkPath(SESSION, 1));
  const { folder, write: put } = write(cut);
  expect((await verifyFolder({ folder, vkey: cut.signer.vkey })).ok).toBe(true); // the signer can lie to who forgets
  const since = honest.files.get("checkpoint")?.toString();
  expect(lines(await verifyFolder({ folder, vkey: cut.signer.vkey, since }))).toEqual([
    "remembered checkpoint: covers 9 entries, and the log has only 7 now: its tail was cut off",
  ]);
  put("checkpoints/9", Buffer.from(since ?? ""));
  expect(lines(await verifyFolder({ folder, vkey: cut.signer.vkey }))).toEqual([
    "checkpoints/9: covers 9 entries, and the log has only 7 now: its tail was cut off",
  ]);
});

test("insider: a forked history signed with the real key is found by a remembered checkpoint", async () => {
  const honest = smallLog();
  const fork = smallLog({ entries: [...honest.entries.with(0, Buffer.from('{"n":-1}')), '{"more":1}'], kept: [] });
  const { folder } = write(fork);
  const vkey = fork.signer.vkey;
  expect((await verifyFolder({ folder, vkey })).ok).toBe(true);
  const since = honest.files.get("checkpoint")?.toString();
  expect(lines(await verifyFolder({ folder, vkey, since }))).toEqual([
    expect.stringMatching(/^remembered checkpoint: signs another history: the first 9 entries/),
  ]);
});

test("a remembered checkpoint that is not the log's own is refused", async () => {
  const log = smallLog();
  const { folder } = write(log);
  const since = checkpointAt(log.entries, 4, testSigner("other"));
  expect(lines(await verifyFolder({ folder, vkey: log.signer.vkey, since }))).toEqual([
    expect.stringMatching(/^remembered checkpoint: no signature by/),
  ]);
  expect(
    (await verifyFolder({ folder, vkey: log.signer.vkey, since: checkpointAt(log.entries, 4, log.signer) })).ok,
  ).toBe(true);
});

test("insider: a recording that was swapped, and chunks that change places, are named", async () => {
  const log = smallLog();
  const { folder, write: put } = write(log);
  const [first, second] = [chunkPath(SESSION, 0), chunkPath(SESSION, 1)];
  put(first, log.files.get(second) ?? Buffer.alloc(0));
  put(second, log.files.get(first) ?? Buffer.alloc(0));
  const report = await verifyFolder({ folder, vkey: log.signer.vkey });
  expect(report.problems.map((p) => [p.where, p.entry])).toEqual([
    [first, 3],
    [second, 7],
  ]);
});

test("lesson 19: a recording that no signed entry vouches for is named, and so is an entry whose recording is gone", async () => {
  const log = smallLog();
  const { folder, write: put, remove } = write(log);
  put("chunks/se_bbbbbbbbbbbb/0.gkc", Buffer.from("unsigned"));
  remove(chunkPath(SESSION, 0));
  expect(lines(await verifyFolder({ folder, vkey: log.signer.vkey }))).toEqual([
    `chunks/${SESSION}/0.gkc, entry 3: is missing`,
    "chunks/se_bbbbbbbbbbbb/0.gkc: is not in the log",
  ]);
});

test("a gap, a repetition and a malformed entry in a session's chunks are named", async () => {
  const { entries, files } = recordedSession(SESSION, 5);
  const [e0 = "", e1 = "", , e3 = "", e4 = ""] = entries;
  const kept = new Map([...files].filter(([path]) => path !== chunkPath(SESSION, 2)));
  const log = buildLog({ entries: [e0, e1, e3, e4, e4, '{"type":"recording.sealed"}'], chunks: kept });
  expect(lines(await verifyFolder({ folder: write(log).folder, vkey: log.signer.vkey }))).toEqual([
    `chunks/${SESSION}, entry 2: chunk 2 is not in the log, which goes on with chunk 3`,
    `chunks/${SESSION}/4.gkc, entry 4: is sealed a second time or out of order`,
    "recording, entry 5: a recording.sealed entry does not say session, chunk, sha256 and bytes",
  ]);
});

test("a session id in an entry cannot reach a file outside the folder", async () => {
  const data = { bytes: 1, chunk: 0, sha256: hash("sha256", "x") };
  const entry = JSON.stringify({ data, session: "se_../../../etc", type: "recording.sealed" });
  const log = buildLog({ entries: [entry] });
  const report = await verifyFolder({ folder: write(log).folder, vkey: log.signer.vkey });
  expect(lines(report)).toEqual([
    "recording, entry 0: a recording.sealed entry does not say session, chunk, sha256 and bytes",
  ]);
});

test("a copy of the log alone verifies when recordings are left out on purpose, and only then", async () => {
  const log = smallLog({ chunks: new Map() });
  const { folder } = write(log);
  expect((await verifyFolder({ folder, vkey: log.signer.vkey, recordings: false })).ok).toBe(true);
  expect((await verifyFolder({ folder, vkey: log.signer.vkey })).problemCount).toBe(3);
});

test("a folder that is not there, or empty, is a finding and no crash", async () => {
  const report = await verifyFolder({ folder: "/nonexistent/glasskey", vkey: testSigner("log").vkey });
  expect(lines(report)).toEqual(["checkpoint: is missing"]);
  expect(report.ok).toBe(false);
});

test("entries and hashes missing in the middle are named, and what follows is still looked at", async () => {
  const log = buildLog({ entries: plain(1000), kept: [600] });
  const { folder, remove } = write(log);
  remove("tile/entries/001");
  remove("tile/0/001");
  const report = await verifyFolder({ folder, vkey: log.signer.vkey });
  expect(lines(report)).toEqual(["tile/0/001: is missing", "tile/entries/001: is missing"]);
  expect(report.totals.entries).toBe(1000 - 256);
  remove("tile/1/000.p/3");
  expect((await verifyFolder({ folder, vkey: log.signer.vkey })).ok).toBe(false);
});
