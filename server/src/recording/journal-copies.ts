import { createHash } from "node:crypto";
import { mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { describe, GlassError } from "../core/errors.ts";
import { syncPath } from "../objects/files.ts";
import { FILE_HEADER_BYTES } from "./frame.ts";
import { type JournalFiles, type Lock, lockFolder } from "./journal-files.ts";
import { type LostCopy, mirroredFiles, NOTE, noteText, readAlone, readNote } from "./journal-mirror.ts";
import { highestSequence, journalFileNumber, openReader } from "./reader.ts";
import { JOURNAL_SESSION } from "./record.ts";
import { UNFINISHED } from "./recovery.ts";

/** The journal's folder or folders, claimed for this process and equal. */
export interface JournalFolders {
  readonly files: JournalFiles;
  /** The one to read: it is whole. */
  readonly dir: string;
  /** The copy that was given up, if one was. */
  lost(): LostCopy | undefined;
  /** What was done to make the copies equal, for the operator; undefined where they were. */
  readonly rebuilt: string | undefined;
  release(): void;
}

export interface FoldersOptions {
  readonly dir: string;
  readonly mirror: string | undefined;
  readonly key: Uint8Array;
  readonly files: JournalFiles;
  readonly slowMs?: number | undefined;
}

/** What one folder holds. */
interface Copy {
  readonly dir: string;
  /** Files with frames, oldest first, and where their last good frame ends. */
  readonly ends: ReadonlyMap<string, number>;
  /** The sequence of that frame. */
  readonly lasts: ReadonlyMap<string, number>;
  readonly journalId: string | undefined;
  /** Of the first and last good frame; 0 where there is none. */
  readonly first: number;
  readonly last: number;
  /** It says that it went on without the other. */
  readonly claims: boolean;
  /**
   * Up to which frame it may have what the other disk never had: it went on alone, and has those files still. That it got
   * another folder beside it since is no matter, for it may be an empty one below a mount point. 0 for none.
   */
  readonly alone: number;
}

type Looked =
  | { readonly is: "whole"; readonly copy: Copy }
  | {
      readonly is: "damaged";
      readonly dir: string;
      readonly error: GlassError;
      readonly highest: number;
      readonly claims: boolean;
    }
  | { readonly is: "unusable"; readonly dir: string; readonly why: string };

const COPY_BYTES = 1 << 20;

/**
 * Claims the journal's folder. With a mirror, claims both and makes them equal: of two copies, one of which continues the
 * other, the longer is taken and the other rebuilt from it; so is an empty one, and one that is damaged where the other
 * is whole and holds as much. A folder that cannot be used is given up, with a note in the other one.
 * @throws GlassError `conflict` for a folder in use; `integrity` where the copies differ in what both claim to be right,
 * then nothing was changed; `recording_unavailable` where neither folder can be used.
 */
export async function openFolders(options: FoldersOptions): Promise<JournalFolders> {
  const { dir, mirror, files } = options;
  if (mirror === undefined) {
    await files.makeFolder(dir);
    const lock = lockFolder(dir);
    return { files, dir, lost: () => undefined, rebuilt: undefined, release: () => lock.release() };
  }
  if (resolve(mirror) === resolve(dir)) {
    throw new GlassError("config_invalid", "recordings.mirror is the journal's own folder", {
      next: "Give it a folder on another disk.",
    });
  }
  const locks: Lock[] = [];
  const release = (): void => {
    for (const lock of locks.splice(0)) lock.release();
  };
  try {
    const a = await look(dir, options, locks);
    const b = await look(mirror, options, locks);
    return { ...(await agree(a, b, { ...options, mirror })), release };
  } catch (error) {
    release();
    throw error;
  }
}

/** Whether two folders are on the same disk, as far as can be told: then one broken disk takes both. */
export async function onOneDisk(a: string, b: string): Promise<boolean> {
  try {
    return (await stat(a)).dev === (await stat(b)).dev;
  } catch {
    return false; // one of them cannot be used, which is said elsewhere
  }
}

async function look(dir: string, { key, files }: FoldersOptions, locks: Lock[]): Promise<Looked> {
  try {
    await files.makeFolder(dir);
    locks.push(lockFolder(dir));
    const claims = (await readNote(dir)) !== undefined;
    try {
      const found = await contents(dir, key);
      const until = claims ? found.last : await readAlone(dir);
      return { is: "whole", copy: { dir, claims, alone: until < found.first ? 0 : until, ...found } };
    } catch (error) {
      if (!(error instanceof GlassError && error.code === "integrity")) throw error;
      return { is: "damaged", dir, error, highest: await highestSequence(dir), claims };
    }
  } catch (error) {
    if (error instanceof GlassError && error.code === "conflict") throw error;
    return { is: "unusable", dir, why: describe(error) };
  }
}

async function contents(dir: string, key: Uint8Array): Promise<Omit<Copy, "dir" | "claims" | "alone">> {
  const reader = openReader(dir, key);
  try {
    const ends = new Map<string, number>();
    const lasts = new Map<string, number>();
    let first = 0;
    for (let frame = await reader.next(); frame !== undefined; frame = await reader.next()) {
      if (first === 0) first = frame.sequence;
      ends.set(frame.file, frame.offset + frame.bytes);
      lasts.set(frame.file, frame.sequence);
    }
    await reader.tail();
    return { ends, lasts, journalId: reader.journalId?.toString("hex"), first, last: reader.sequence };
  } finally {
    await reader.close();
  }
}

function dirOf(one: Looked): string {
  return one.is === "whole" ? one.copy.dir : one.dir;
}

type Agreed = Omit<JournalFolders, "release">;

async function agree(a: Looked, b: Looked, options: FoldersOptions & { mirror: string }): Promise<Agreed> {
  const { best, other, doubt } = await choose(a, b, options.key);
  let kept = best.dir;
  let lost: LostCopy | undefined;
  let rebuilt: string | undefined;
  if (other.is === "unusable") lost = { dir: other.dir, why: other.why };
  else {
    try {
      rebuilt = await makeEqual(best, other, doubt);
    } catch (error) {
      lost = { dir: dirOf(other), why: describe(error) };
    }
  }
  const note = (dir: string): void => options.files.mark(dir, NOTE, noteText(lost, dir === best.dir ? best.alone : 0));
  if (lost === undefined) {
    for (const [dir, left] of [
      [best.dir, dirOf(other)],
      [dirOf(other), best.dir],
    ] as const) {
      try {
        note(dir);
      } catch (error) {
        if (lost !== undefined) throw error; // neither can be written
        lost = { dir, why: describe(error) };
        kept = left;
      }
    }
  }
  if (lost !== undefined) note(kept);
  const files = mirroredFiles({
    dirs: [options.dir, options.mirror],
    files: options.files,
    lost,
    slowMs: options.slowMs,
  });
  return { files, dir: kept, lost: () => files.lost(), rebuilt };
}

/** Which copy is right. `doubt`: why what the other one has is not deleted, but set aside. Changes nothing. */
async function choose(
  a: Looked,
  b: Looked,
  key: Uint8Array,
): Promise<{ best: Copy; other: Looked; doubt?: string | undefined }> {
  if (a.is === "whole" && b.is === "whole") {
    const [longer, shorter] = b.copy.last > a.copy.last ? [b, a] : [a, b];
    if (await continues(longer.copy, shorter.copy)) {
      // What it has from before the longer one begins is not known to have been the same, and sealed, where it went on alone.
      const older = shorter.copy.last > 0 && shorter.copy.first < longer.copy.first;
      const unknown = older && shorter.copy.alone > 0 && !(await sameBefore(longer.copy, shorter.copy));
      return { best: longer.copy, other: shorter, doubt: unknown ? "went on alone, a long time ago" : undefined };
    }
    // One went on alone and says so, and has records of that, or has had some that were sealed. The other was merely started.
    const sides = longer.copy.journalId === shorter.copy.journalId ? [longer, shorter] : [];
    for (const [one, other] of [sides, sides.toReversed()]) {
      if (one === undefined || other === undefined) continue;
      if (!one.copy.claims || (await wentOn(other.copy, one.copy, key))) continue;
      if (one.copy.first > other.copy.first || (await wentOn(one.copy, other.copy, key)))
        return { best: one.copy, other, doubt: "was started without the other copy" };
    }
    throw new GlassError(
      "integrity",
      `the two copies of the journal, ${a.copy.dir} and ${b.copy.dir}, differ in what each says is recorded`,
      {
        next: "Keep both. See which of them was in use last, move the other one away, and start again.",
        details: { dirs: [a.copy.dir, b.copy.dir] },
      },
    );
  }
  const whole = a.is === "whole" ? a : b;
  const other = a.is === "whole" ? b : a;
  if (whole.is !== "whole") {
    for (const one of [a, b]) if (one.is === "damaged") throw one.error;
    const whys = [a, b].map((one) => (one.is === "unusable" ? `${one.dir}: ${one.why}` : ""));
    throw new GlassError("recording_unavailable", `no folder of the journal can be used: ${whys.join("; ")}`, {
      next: "Check the disks and who may write there.",
    });
  }
  if (other.is !== "damaged") return { best: whole.copy, other };
  // The whole one is older; or the damaged one went on without it, and what it had is not known.
  if (other.highest > whole.copy.last || other.claims) throw other.error;
  return { best: whole.copy, other, doubt: `was damaged (${other.error.message})` };
}

/** Whether all that `shorter` has is in `longer` too, or was sealed and removed there. */
async function continues(longer: Copy, shorter: Copy): Promise<boolean> {
  if (shorter.last === 0) return true;
  if (longer.journalId !== shorter.journalId) return false;
  for (const [name, end] of shorter.ends) {
    const there = longer.ends.get(name);
    if (there === undefined) {
      if (removedFrom(longer, shorter, name)) continue;
      return false;
    }
    const bytes = Math.min(end, there);
    if (end > bytes && name !== [...longer.ends.keys()].at(-1)) return false;
    if ((await digest(join(longer.dir, name), bytes)) !== (await digest(join(shorter.dir, name), bytes))) return false;
  }
  return true;
}

/** Whether `other` has the file that `copy` begins with, the very same one: then what came before it was the same too. */
async function sameBefore(copy: Copy, other: Copy): Promise<boolean> {
  const [first] = copy.ends.keys();
  return first !== undefined && (await partedAt(copy, other, first)) >= FILE_HEADER_BYTES;
}

/** Whether all that `copy` has in this file comes before what `other` begins with: that was sealed, and its file removed. */
function removedFrom(other: Copy, copy: Copy, name: string): boolean {
  return !other.ends.has(name) && (copy.lasts.get(name) ?? 0) < other.first;
}

/**
 * Whether `copy` has a session's record that it got after it parted from `other`. It counts though no later frame says
 * that it was on the disk: nothing need have come after the last record that somebody was told of. Openings of the
 * journal tell of nothing that was sent.
 */
async function wentOn(copy: Copy, other: Copy, key: Uint8Array): Promise<boolean> {
  const reader = openReader(copy.dir, key);
  let compared = { file: "", parted: 0 };
  try {
    for (let frame = await reader.next(); frame !== undefined; frame = await reader.next()) {
      if (frame.file !== compared.file)
        compared = { file: frame.file, parted: await partedAt(copy, other, frame.file) };
      const own = frame.offset + frame.bytes > compared.parted;
      if (own && frame.records.some(({ session }) => session !== JOURNAL_SESSION)) return true;
    }
    return false;
  } finally {
    await reader.close();
  }
}

/** Where the good frames of a file begin to differ in two copies; 0 where the other should have it and does not. */
async function partedAt(one: Copy, two: Copy, name: string): Promise<number> {
  if (removedFrom(two, one, name)) return Infinity;
  const both = Math.min(one.ends.get(name) ?? 0, two.ends.get(name) ?? 0);
  if (both === 0) return 0;
  await using left = await open(join(one.dir, name), "r");
  await using right = await open(join(two.dir, name), "r");
  const [here, there] = [Buffer.alloc(COPY_BYTES), Buffer.alloc(COPY_BYTES)];
  for (let at = 0; at < both; at += COPY_BYTES) {
    const bytes = Math.min(COPY_BYTES, both - at);
    await left.read(here, 0, bytes, at);
    await right.read(there, 0, bytes, at);
    if (here.compare(there, 0, bytes, 0, bytes) === 0) continue;
    let i = 0;
    while (here[i] === there[i]) i++;
    return at + i;
  }
  return both;
}

/**
 * Makes `other` a copy of `best`; with a `doubt`, its files are set aside, and none is deleted. Safe to repeat after a
 * crash at any point: stale files go from the newest, new ones come from the oldest.
 * @returns what was done, for the operator.
 */
async function makeEqual(best: Copy, other: Looked, doubt: string | undefined): Promise<string | undefined> {
  const to = dirOf(other);
  let done: string | undefined;
  if (other.is === "whole" && (await sameBefore(best, other.copy))) {
    // Whoever removed these from the better copy may not have been the sealer, who takes what it has sealed again.
    // From the newest, so that there is never a gap.
    const older = [...other.copy.ends].filter(([name]) => removedFrom(best, other.copy, name));
    for (const [name, end] of older.toReversed()) await copyFile(to, best.dir, name, end);
    await syncPath(best.dir);
  }
  if (doubt !== undefined) {
    const aside = join(to, `set-aside-${Date.now()}`);
    await mkdir(aside, { mode: 0o700 });
    for (const name of await journalFiles(to)) await rename(join(to, name), join(aside, name));
    await syncPath(to);
    done = `${to} ${doubt}; its files are in ${aside}, and it was rebuilt from ${best.dir}`;
  }
  const source = await journalFiles(best.dir);
  for (const name of (await journalFiles(to)).toReversed()) {
    if (source.includes(name) && (await sameContent(best.dir, to, name))) continue;
    await rm(join(to, name));
    await syncPath(to);
  }
  const present = new Set(await journalFiles(to));
  let copied = 0;
  for (const name of source) {
    if (present.has(name)) continue;
    await copyFile(best.dir, to, name, (await stat(join(best.dir, name))).size);
    copied++;
  }
  await syncPath(to);
  if (copied > 0) done ??= `${to} was behind ${best.dir} by ${copied} files, and was rebuilt from it`;
  return done;
}

async function copyFile(from: string, to: string, name: string, bytes: number): Promise<void> {
  const partial = join(to, name + UNFINISHED);
  const source = await open(join(from, name), "r");
  try {
    const target = await open(partial, "w", 0o600);
    try {
      const buffer = Buffer.allocUnsafe(COPY_BYTES);
      for (let at = 0; at < bytes;) {
        const { bytesRead } = await source.read(buffer, 0, Math.min(buffer.length, bytes - at), at);
        if (bytesRead === 0) break;
        for (let done = 0; done < bytesRead;) {
          const { bytesWritten } = await target.write(buffer, done, bytesRead - done, at + done);
          if (bytesWritten === 0) throw new Error("the disk took no bytes");
          done += bytesWritten;
        }
        at += bytesRead;
      }
      await target.sync();
    } finally {
      await target.close();
    }
  } finally {
    await source.close();
  }
  if ((await digest(partial, bytes)) !== (await digest(join(from, name), bytes)))
    throw new Error(`the copy of ${name} is not what was copied`);
  await rename(partial, join(to, name));
  await syncPath(to);
}

async function sameContent(a: string, b: string, name: string): Promise<boolean> {
  const [left, right] = await Promise.all([stat(join(a, name)), stat(join(b, name))]);
  if (left.size !== right.size) return false;
  return (await digest(join(a, name), left.size)) === (await digest(join(b, name), left.size));
}

async function digest(path: string, bytes: number): Promise<string> {
  const hash = createHash("sha256");
  const file = await open(path, "r");
  try {
    const buffer = Buffer.allocUnsafe(COPY_BYTES);
    for (let at = 0; at < bytes;) {
      const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, bytes - at), at);
      if (bytesRead === 0) break;
      hash.update(buffer.subarray(0, bytesRead));
      at += bytesRead;
    }
    return hash.digest("hex");
  } finally {
    await file.close();
  }
}

async function journalFiles(dir: string): Promise<string[]> {
  return (await readdir(dir)).filter((name) => journalFileNumber(name) !== undefined).toSorted();
}
