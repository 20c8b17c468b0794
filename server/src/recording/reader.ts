import { constants } from "node:fs";
import { type FileHandle, open, readdir } from "node:fs/promises";
import { join } from "node:path";
import { sleep, within } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import {
  claimedBytes,
  claimedSequence,
  decodeFileHeader,
  FILE_HEADER_BYTES,
  type FileHeader,
  type FileKey,
  fileKey,
  type Frame,
  FRAME_ALIGN,
  frameBytes,
  MAX_FRAME_BYTES,
  openFrame,
  wholeButForHead,
} from "./frame.ts";
import { isGivenUp } from "./journal-mirror.ts";
import { decodeRecords, type StoredRecord } from "./record.ts";

/** A journal file's name: its number, so that names sort as numbers. */
export function journalFileName(number: number): string {
  return `${String(number).padStart(12, "0")}.gkj`;
}

/** Undefined for a name that is no journal file's. */
export function journalFileNumber(name: string): number | undefined {
  const match = /^(\d{12})\.gkj$/.exec(name);
  return match === null ? undefined : Number(match[1]);
}

export interface JournalFrame {
  readonly file: string;
  readonly offset: number;
  /** Its length in the file. */
  readonly bytes: number;
  readonly sequence: number;
  /** The last frame that was known to be on the disk when this one was written. */
  readonly synced: number;
  /** Of the file's header, as hexadecimal text: no two files have the same, whatever they are called. */
  readonly fileId: string;
  readonly records: readonly StoredRecord[];
}

/** Where the good frames end. `torn`: bytes of an unfinished write follow, which nobody was told of. */
export interface Tail {
  readonly file: string;
  readonly offset: number;
  readonly torn: boolean;
  /** Later files, which hold nothing that was ever acknowledged as durable. */
  readonly later: readonly string[];
}

export interface JournalReader {
  /**
   * The next frame, or undefined while there is none. While a process is writing, an unfinished frame counts as none;
   * ask again later.
   * @throws GlassError `integrity` naming file and offset.
   */
  next(): Promise<JournalFrame | undefined>;
  /** After `next` gave undefined and nobody is writing: the end. @throws GlassError `integrity` for damage at the end. */
  tail(): Promise<Tail | undefined>;
  /**
   * For a journal that is being written, when `next` has given undefined for a while: whether that is the end or damage.
   * @throws GlassError `integrity` naming file and offset.
   */
  stalled(): Promise<void>;
  /** Of the last frame read; 0 before the first. */
  readonly sequence: number;
  readonly journalId: Buffer | undefined;
  /**
   * Syncs the files that frames were read from since the last call, so that what follows from them cannot outlive them.
   * With a mirror, also waits until its copy has the last of them, or is lost.
   */
  sync(): Promise<void>;
  close(): Promise<void>;
}

interface OpenFile {
  readonly name: string;
  readonly handle: FileHandle;
  readonly header: FileHeader;
  readonly key: FileKey;
}

const WINDOW_BYTES = 1 << 20;
const SECTOR_BYTES = 512;
const LAST_BYTES = 4_096; // of a frame that is written whole or not acknowledged, its end is looked at
const COPY_POLL_MS = 10;
const NOTE_WAIT_MS = 2_000;
const COPY_WAIT_MS = 10_000; // twice as long as the writer waits before it gives a copy up

/**
 * Reads a journal folder from its first file, verifying every frame: checksum, tag, and sequences without a gap. Used
 * both while the journal grows and at start. Memory: one window of 1 MiB, or one frame.
 * @param mirror the journal's second folder, which has the same bytes: reading goes on there, at the same place, when
 * the first cannot be read, does not verify, or was given up by the writer.
 */
export function openReader(primary: string, key: Uint8Array, mirror?: string): JournalReader {
  let dir = primary;
  let current: OpenFile | undefined;
  let offset = FILE_HEADER_BYTES;
  let sequence = 0;
  let lastFile = ""; // of the last frame taken
  let lastEnd = 0;
  let journalId: Buffer | undefined;
  let window = Buffer.alloc(0);
  let windowAt = 0;
  const unsynced: OpenFile[] = [];

  const files = async (): Promise<string[]> =>
    (await readdir(dir)).filter((name) => journalFileNumber(name) !== undefined).toSorted();

  const openFile = async (name: string, from = dir): Promise<OpenFile> => {
    const handle = await open(join(from, name), constants.O_RDONLY);
    try {
      const page = Buffer.alloc(FILE_HEADER_BYTES);
      const { bytesRead } = await handle.read(page, 0, FILE_HEADER_BYTES, 0);
      const header = named(name, 0, () => decodeFileHeader(key, page.subarray(0, bytesRead)));
      if (journalFileName(header.number) !== name) throw damage(name, 0, `its header says file ${header.number}`);
      if (journalId !== undefined && !journalId.equals(header.journalId))
        throw damage(name, 0, "it belongs to another journal");
      return { name, handle, header, key: fileKey(key, header.fileId) };
    } catch (error) {
      await handle.close();
      throw error;
    }
  };

  /** Bytes of the current file from `at`; the view is valid until the next call. */
  const bytesAt = async (file: OpenFile, at: number, atLeast: number, fresh: boolean): Promise<Buffer> => {
    const have = windowAt + window.length - at;
    if (!fresh && at >= windowAt && have >= atLeast) return window.subarray(at - windowAt);
    const wanted = Buffer.allocUnsafe(Math.min(Math.max(WINDOW_BYTES, atLeast), await bytesBehind(file.handle, at)));
    let filled = 0;
    while (filled < wanted.length) {
      const { bytesRead } = await file.handle.read(wanted, filled, wanted.length - filled, at + filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    window = wanted.subarray(0, filled);
    windowAt = at;
    return window;
  };

  const frameAt = async (file: OpenFile, at: number, fresh: boolean): Promise<ReturnType<typeof openFrame>> => {
    const bytes = await bytesAt(file, at, FRAME_ALIGN * 2, fresh);
    const opened = openFrame(file.key, bytes, 0);
    if (opened.ok || opened.why !== "short" || opened.bytes <= bytes.length) return opened;
    return openFrame(file.key, await bytesAt(file, at, opened.bytes, true), 0);
  };

  const take = (file: OpenFile, frame: Frame): JournalFrame => {
    if (sequence !== 0 && frame.sequence !== sequence + 1) {
      throw damage(
        file.name,
        offset,
        `frame ${frame.sequence} follows frame ${sequence}: frames between them are missing`,
      );
    }
    const records = named(file.name, offset, () => decodeRecords(frame.plain));
    const { bytes, synced } = frame;
    const fileId = file.header.fileId.toString("hex");
    const found = { file: file.name, offset, bytes, sequence: frame.sequence, synced, fileId, records };
    sequence = frame.sequence;
    offset += frame.bytes;
    [lastFile, lastEnd] = [file.name, offset];
    if (unsynced.at(-1) !== file) unsynced.push(file);
    return found;
  };

  const moveTo = async (file: OpenFile): Promise<void> => {
    if (current !== undefined && !unsynced.includes(current)) await current.handle.close();
    current = file;
    offset = FILE_HEADER_BYTES;
    window = Buffer.alloc(0);
    windowAt = 0;
  };

  /**
   * The first file after the current one that has a frame: at its beginning, or with `anywhere` in any place. While the
   * journal grows only the beginning is looked at, for the next file is mostly 64 MiB of zeros that were prepared ahead.
   */
  const laterFrame = async (
    anywhere: boolean,
  ): Promise<{ file: OpenFile; frame: Frame; offset: number } | undefined> => {
    for (const name of await files()) {
      if (current !== undefined && name <= current.name) continue;
      const file = await openFile(name).catch(unlessAbsent);
      if (file === undefined) continue; // prepared ahead, and removed by a journal that was closed just now
      const found = anywhere ? await searchFrame(file, FILE_HEADER_BYTES) : await firstFrame(file);
      if (found !== undefined) return { file, ...found };
      await file.handle.close();
    }
    return undefined;
  };

  const nextHere = async (): Promise<JournalFrame | undefined> => {
    if (current === undefined) {
      const [first] = await files();
      if (first === undefined) return undefined;
      const file = await openFile(first);
      journalId = file.header.journalId;
      await moveTo(file);
    }
    for (;;) {
      const file = current as OpenFile;
      const opened = await frameAt(file, offset, false);
      if (opened.ok) return take(file, opened.frame);
      // The window may be older than the file; and the file may have grown before a later one began.
      const later = await laterFrame(false);
      const again = await frameAt(file, offset, true);
      if (again.ok) {
        await later?.file.handle.close();
        return take(file, again.frame);
      }
      if (later === undefined) return undefined;
      const follows = later.offset === FILE_HEADER_BYTES && later.frame.sequence === sequence + 1;
      if (again.why === "empty" || (again.why === "short" && (await bytesAt(file, offset, 1, true)).length === 0)) {
        if (follows || sequence === 0) {
          await moveTo(later.file);
          continue;
        }
      }
      await later.file.handle.close();
      if (later.frame.synced <= sequence) return undefined; // the end, after a power cut in mode `written`
      throw damage(
        file.name,
        offset,
        `frame ${sequence + 1} is not there or does not verify (${again.why}), and frame ${later.frame.sequence} in ${later.file.name} does`,
      );
    }
  };

  /** Goes on in the other folder, at the same place. @throws whatever keeps it from being read. */
  const changeSides = async (to: string): Promise<void> => {
    const currentName = current?.name;
    const unsyncedNames = unsynced.map(({ name }) => name);
    const opened = new Map<string, OpenFile>();
    try {
      for (const name of new Set([...unsyncedNames, ...(currentName === undefined ? [] : [currentName])]))
        opened.set(name, await openFile(name, to));
    } catch (error) {
      for (const { handle } of opened.values()) await handle.close();
      throw error; // all is as it was
    }
    await closeAll();
    dir = to;
    current = currentName === undefined ? undefined : opened.get(currentName);
    unsynced.push(...unsyncedNames.map((name) => opened.get(name) as OpenFile));
    window = Buffer.alloc(0);
    windowAt = 0;
  };

  let alone = false; // the other folder was given up: nothing is asked of its disk any more
  const otherSide = (): string | undefined =>
    mirror === undefined || alone ? undefined : dir === primary ? mirror : primary;

  /** Whether the folder that is read says that it goes on without the other one. @throws whatever keeps it from being read. */
  const leftAlone = async (other: string): Promise<boolean> => (alone ||= await isGivenUp(other, dir));

  /**
   * What is asked of the other folder, within a time: its disk may answer nothing. The question is not asked again before
   * the first is answered, for each one holds a thread.
   */
  const unanswered = new Set<string>();
  const askOther = async (what: string, ms: number, ask: () => Promise<boolean>, failed: boolean): Promise<boolean> => {
    if (unanswered.has(what)) return failed;
    unanswered.add(what);
    const answer = ask()
      .catch(() => failed)
      .finally(() => unanswered.delete(what));
    return within(ms, answer, () => failed);
  };

  const closeAll = async (): Promise<void> => {
    const open = new Set([...unsynced, ...(current === undefined ? [] : [current])]);
    unsynced.length = 0;
    current = undefined;
    for (const file of open) await file.handle.close();
  };

  /**
   * Whether the other copy has the last frame that was read here, on its disk: the writer waits for both, and readers may
   * be quicker. @throws whatever keeps it from being read.
   */
  const alsoIn = async (other: string): Promise<boolean> => {
    const from = unsynced.find(({ name }) => name === lastFile);
    if (from === undefined) return true; // nothing was read since the last call
    const here = Buffer.alloc(LAST_BYTES);
    const there = Buffer.alloc(LAST_BYTES);
    const file = await open(join(other, lastFile), constants.O_RDONLY);
    try {
      const at = Math.max(0, lastEnd - LAST_BYTES);
      const { bytesRead } = await from.handle.read(here, 0, LAST_BYTES, at);
      await file.datasync();
      await file.read(there, 0, LAST_BYTES, at);
      return here
        .subarray(0, Math.min(bytesRead, lastEnd - at))
        .equals(there.subarray(0, Math.min(bytesRead, lastEnd - at)));
    } finally {
      await file.close();
    }
  };

  const reader: JournalReader = {
    get sequence() {
      return sequence;
    },
    get journalId() {
      return journalId;
    },

    async next() {
      const other = otherSide();
      if (other === undefined) return nextHere();
      try {
        const frame = await nextHere();
        if (frame !== undefined || (await leftAlone(other))) return frame;
        if (!(await askOther("its note", NOTE_WAIT_MS, () => isGivenUp(dir, other), false))) return frame;
      } catch (error) {
        // Where this disk cannot say so itself, the other copy is all there is. What it has is right, if perhaps not all.
        if (await leftAlone(other).catch(() => false)) throw error;
        await changeSides(other).catch(() => {
          throw error; // the copy is no better
        });
        return nextHere();
      }
      await changeSides(other);
      return nextHere();
    },

    async tail() {
      if (current === undefined) return undefined;
      const file = current;
      const inFile = await searchFrame(file, offset + FRAME_ALIGN);
      const later = await laterFrame(true);
      await later?.file.handle.close();
      for (const found of [inFile === undefined ? undefined : { ...inFile, file }, later]) {
        if (found !== undefined && found.frame.synced > sequence) {
          throw damage(
            file.name,
            offset,
            `frame ${sequence + 1} does not verify, and frame ${found.frame.sequence} at offset ${found.offset} of ${found.file.name}, written later, does`,
          );
        }
      }
      const names = (await files()).filter((name) => name > file.name);
      const rest = await restOf(file.handle, offset);
      if (!rest.anything) return { file: file.name, offset, torn: false, later: names };
      const opened = await frameAt(file, offset, true);
      if (!opened.ok && !(await looksTorn(file, offset, opened.bytes))) {
        throw damage(
          file.name,
          offset,
          `the last frame does not verify (${opened.why}), although all of it was written`,
        );
      }
      return { file: file.name, offset, torn: true, later: names };
    },

    async stalled() {
      if (current === undefined) return;
      const file = current;
      if ((await bytesAt(file, offset, 4, true)).subarray(0, 4).every((byte) => byte === 0)) return;
      const found = await searchFrame(file, offset + FRAME_ALIGN);
      if (found === undefined || found.frame.synced <= sequence) return;
      if ((await frameAt(file, offset, true)).ok) return; // it was finished in the meantime
      throw damage(
        file.name,
        offset,
        `frame ${sequence + 1} does not verify, and frame ${found.frame.sequence}, written later, does`,
      );
    },

    async sync() {
      const other = otherSide();
      for (
        let waitedMs = 0;
        other !== undefined && !(await leftAlone(other).catch(() => false));
        waitedMs += COPY_POLL_MS
      ) {
        // A copy that cannot be read is as good as given up: the writer will find out at its next frame.
        if (await askOther("its last frame", COPY_WAIT_MS, () => alsoIn(other), true)) break;
        if (waitedMs >= COPY_WAIT_MS) throw new GlassError("recording_unavailable", `${other} lags behind ${dir}`);
        await sleep(COPY_POLL_MS);
      }
      while (unsynced.length > 0) {
        const file = unsynced[0] as OpenFile;
        await file.handle.datasync();
        unsynced.shift();
        if (file !== current) await file.handle.close();
      }
    },

    close: closeAll,
  };
  return reader;
}

/** Every frame that is in the folder now, oldest first. */
export async function* readJournal(dir: string, key: Uint8Array): AsyncGenerator<JournalFrame> {
  const reader = openReader(dir, key);
  try {
    for (let frame = await reader.next(); frame !== undefined; frame = await reader.next()) yield frame;
  } finally {
    await reader.close();
  }
}

/**
 * The highest sequence that any frame in the folder claims, whatever is wrong with the others: what a damaged journal once
 * held. Only checksums are looked at, for the header may be what is damaged. 0 where there is none.
 */
export async function highestSequence(dir: string): Promise<number> {
  let highest = 0;
  for (const name of await readdir(dir)) {
    if (journalFileNumber(name) === undefined) continue;
    const handle = await open(join(dir, name), constants.O_RDONLY);
    try {
      const buffer = Buffer.allocUnsafe(WINDOW_BYTES + MAX_FRAME_BYTES);
      for (let base = 0; ; base += WINDOW_BYTES) {
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, base);
        if (bytesRead === 0) break;
        const bytes = buffer.subarray(0, bytesRead);
        if (isZero(bytes)) continue;
        for (let i = 0; i < Math.min(WINDOW_BYTES, bytesRead); i += FRAME_ALIGN)
          highest = Math.max(highest, claimedSequence(bytes, i) ?? 0);
      }
    } finally {
      await handle.close();
    }
  }
  return highest;
}

function damage(file: string, offset: number, why: string): GlassError {
  return new GlassError("integrity", `the journal is damaged in ${file} at offset ${offset}: ${why}`, {
    next: "Keep a copy of the journal folder, find out what changed it, and put back the file from a copy of the disk.",
    details: { file, offset },
  });
}

function named<T>(file: string, offset: number, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof GlassError) throw damage(file, offset, error.message);
    throw error;
  }
}

/** The first valid frame behind `at` in `file`, whatever its place: proof that something was written after `at`. */
async function searchFrame(file: OpenFile, at: number): Promise<{ offset: number; frame: Frame } | undefined> {
  const buffer = Buffer.allocUnsafe(Math.min(WINDOW_BYTES + MAX_FRAME_BYTES, await bytesBehind(file.handle, at)));
  for (let base = at; buffer.length > 0; base += WINDOW_BYTES) {
    const { bytesRead } = await file.handle.read(buffer, 0, buffer.length, base);
    if (bytesRead === 0) return undefined;
    const bytes = buffer.subarray(0, bytesRead);
    if (isZero(bytes)) continue;
    for (let i = 0; i < Math.min(WINDOW_BYTES, bytesRead); i += FRAME_ALIGN) {
      if (i + 4 > bytesRead || claimedBytes(bytes, i) <= 0) continue;
      const opened = openFrame(file.key, bytes, i);
      if (opened.ok) return { offset: base + i, frame: opened.frame };
    }
  }
  return undefined;
}

function unlessAbsent(error: unknown): undefined {
  if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
  throw error;
}

async function firstFrame(file: OpenFile): Promise<{ offset: number; frame: Frame } | undefined> {
  const head = Buffer.alloc(FRAME_ALIGN);
  await file.handle.read(head, 0, head.length, FILE_HEADER_BYTES);
  const claimed = claimedBytes(head, 0);
  if (claimed <= 0) return undefined;
  const bytes = Buffer.alloc(claimed);
  await file.handle.read(bytes, 0, claimed, FILE_HEADER_BYTES);
  const opened = openFrame(file.key, bytes, 0);
  return opened.ok ? { offset: FILE_HEADER_BYTES, frame: opened.frame } : undefined;
}

async function bytesBehind(handle: FileHandle, at: number): Promise<number> {
  return Math.max(0, (await handle.stat()).size - at);
}

async function restOf(handle: FileHandle, from: number): Promise<{ anything: boolean }> {
  const buffer = Buffer.allocUnsafe(Math.min(WINDOW_BYTES, await bytesBehind(handle, from)));
  for (let at = from; buffer.length > 0; at += buffer.length) {
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, at);
    if (bytesRead === 0) return { anything: false };
    if (!isZero(buffer.subarray(0, bytesRead))) return { anything: true };
  }
  return { anything: false };
}

/**
 * Whether a frame that does not verify can be an unfinished write: it runs past the end of the file, its last byte was
 * never written, or one of its sectors was not. A write that is torn leaves the zeros that the file was made of.
 * `bytes`: the length that its head claims, 0 if none is possible.
 */
async function looksTorn(file: OpenFile, offset: number, bytes: number): Promise<boolean> {
  const rest = Buffer.alloc(Math.min(MAX_FRAME_BYTES, await bytesBehind(file.handle, offset)));
  const { bytesRead } = await file.handle.read(rest, 0, rest.length, offset);
  let used = bytesRead;
  while (used > 0 && rest[used - 1] === 0) used--;
  if (used < frameBytes(0)) return true; // less than any frame
  if (wholeButForHead(file.key, rest.subarray(0, used))) return false;

  const end = bytes === 0 ? used : bytes;
  if (bytesRead < end || rest[end - 1] === 0) return true;
  for (let at = 0; at < end;) {
    const next = Math.min(end, at + SECTOR_BYTES - ((offset + at) % SECTOR_BYTES));
    if (isZero(rest.subarray(at, next))) return true;
    at = next;
  }
  return bytes === 0 && get32IsZero(rest);
}

/** Nothing of the head was written, though later sectors were. */
function get32IsZero(bytes: Buffer): boolean {
  return isZero(bytes.subarray(0, 4));
}

const ZEROS = Buffer.alloc(WINDOW_BYTES + MAX_FRAME_BYTES);
function isZero(bytes: Uint8Array): boolean {
  return ZEROS.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;
}
