import {
  close,
  closeSync,
  constants,
  existsSync,
  fdatasync,
  fsyncSync,
  type NoParamCallback,
  open as openFile,
  openSync,
  write,
  writeSync,
} from "node:fs";
import { mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, GlassError } from "../core/errors.ts";

/**
 * What the journal asks of the file system. Its own interface so that tests can put a failing disk in its place; every
 * rejection or error counts as a failed disk.
 */
export interface JournalFiles {
  /** Makes the folder, open to this user only. */
  makeFolder(dir: string): Promise<void>;
  list(dir: string): Promise<{ name: string; bytes: number }[]>;
  /** Makes `name`, filled with zeros and synced, without a sync of the folder. `slice` says, before
   * each slice, how many bytes to write and sync next. */
  prepare(dir: string, name: string, head: Buffer, bytes: number, slice: () => Promise<number>): Promise<void>;
  rename(dir: string, from: string, to: string): Promise<void>;
  remove(dir: string, name: string): Promise<void>;
  syncFolder(dir: string): Promise<void>;
  /** Cuts a file to its length. One that is gone was sealed and removed meanwhile: that is no error. */
  truncate(dir: string, name: string, bytes: number): Promise<void>;
  open(dir: string, name: string, synced: boolean): Promise<number>;
  /** Writes all of `bytes[0, length)` at `position`; where the file was opened `synced`, to the disk. */
  write(fd: number, bytes: Buffer, length: number, position: number, done: (error: Error | null) => void): void;
  /** The same at once, into the kernel. */
  writeSync(fd: number, bytes: Buffer, length: number, position: number): void;
  sync(fd: number, done: NoParamCallback): void;
  close(fd: number): void;
  /**
   * Writes a note of one sector over whatever the file held, and syncs it, before it returns: what follows depends on it.
   * A file that is there already needs no room on the disk.
   */
  mark(dir: string, name: string, text: string): void;
}

const NOTE_BYTES = 512;
const MAX_SLICE_BYTES = 4 << 20;
const FOLDER_MODE = 0o700;
const FILE_MODE = 0o600;
/** Linux syncs within the write, which saves a second trip through the thread pool. Elsewhere fdatasync follows. */
const SYNCED_WRITE = process.platform === "linux" ? constants.O_DSYNC : 0;

export const nodeFiles: JournalFiles = {
  async makeFolder(dir) {
    await mkdir(dir, { recursive: true, mode: FOLDER_MODE });
  },
  async list(dir) {
    const names = await readdir(dir);
    const sized = await Promise.all(names.map(async (name) => ({ name, bytes: await sizeOf(join(dir, name)) })));
    return sized.filter((file) => file.bytes !== undefined).map(({ name, bytes }) => ({ name, bytes: bytes ?? 0 }));
  },
  async prepare(dir, name, head, bytes, slice) {
    const file = await open(join(dir, name), "wx", FILE_MODE);
    try {
      const zeros = Buffer.alloc(Math.min(MAX_SLICE_BYTES, bytes));
      await writeAll(file, head, head.length, 0);
      for (let at = head.length; at < bytes;) {
        const length = Math.min(zeros.length, bytes - at, await slice());
        await writeAll(file, zeros, length, at);
        await file.datasync(); // in slices, so that no great heap of dirty pages delays the syncs of live records
        at += length;
      }
      await file.sync();
    } finally {
      await file.close();
    }
  },
  rename: (dir, from, to) => rename(join(dir, from), join(dir, to)),
  remove: (dir, name) => rm(join(dir, name), { force: true }),
  async syncFolder(dir) {
    const folder = await open(dir, "r");
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  },
  async truncate(dir, name, bytes) {
    const file = await open(join(dir, name), "r+").catch(unlessAbsent);
    if (file === undefined) return;
    try {
      await file.truncate(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
  },
  open: (dir, name, synced) => openDescriptor(join(dir, name), constants.O_RDWR | (synced ? SYNCED_WRITE : 0)),
  write(fd, bytes, length, position, done) {
    const from = (at: number): void =>
      write(fd, bytes, at, length - at, position + at, (error, written) => {
        if (error !== null) done(error);
        else if (written === 0) done(new Error("the disk took no bytes"));
        else if (at + written < length) from(at + written);
        else done(null);
      });
    from(0);
  },
  writeSync(fd, bytes, length, position) {
    for (let at = 0; at < length;) {
      const written = writeSync(fd, bytes, at, length - at, position + at);
      if (written === 0) throw new Error("the disk took no bytes");
      at += written;
    }
  },
  sync: fdatasync,
  close(fd) {
    close(fd, () => {}); // everything in it was synced or is lost already
  },
  mark(dir, name, text) {
    const path = join(dir, name);
    const made = !existsSync(path);
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, FILE_MODE);
    try {
      writeSync(fd, text.slice(0, NOTE_BYTES).padEnd(NOTE_BYTES), 0, "latin1");
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    if (!made) return;
    const folder = openSync(dir, "r");
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  },
};

/** Whether a file opened `synced` still needs `sync` after each write to be durable. */
export const SYNC_AFTER_WRITE = SYNCED_WRITE === 0;

const SQLITE_BUSY = 5;

export interface Lock {
  release(): void;
}

/**
 * Takes the folder for this process, until `release` or death. SQLite's file lock is used because the kernel drops it
 * with the process, whichever way that ends, and because it holds across containers that share the folder: a file with
 * a process id in it does neither. The lock file stays empty.
 * @throws GlassError `conflict` when another process, or another journal in this one, has it; `config_invalid` where it cannot be
 * locked at all.
 */
export function lockFolder(dir: string, what = "the journal folder"): Lock {
  let database: DatabaseSync;
  try {
    database = new DatabaseSync(join(dir, "lock"));
  } catch (cause) {
    throw unusable(dir, what, cause);
  }
  try {
    database.exec("pragma busy_timeout = 0; pragma journal_mode = memory; begin exclusive");
  } catch (cause) {
    database.close();
    if (!(cause instanceof Error && "errcode" in cause && cause.errcode === SQLITE_BUSY))
      throw unusable(dir, what, cause);
    throw new GlassError("conflict", `${what} ${dir} is in use by another Glasskey process: ${describe(cause)}`, {
      next: "Stop the other process, or give this one a folder of its own.",
      cause,
    });
  }
  return { release: () => database.close() };
}

function unusable(dir: string, what: string, cause: unknown): GlassError {
  return new GlassError("config_invalid", `${what} ${dir} cannot be used: ${describe(cause)}`, {
    next: "Check the disk, and who may write there.",
    cause,
  });
}

async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(unlessAbsent))?.size; // else just sealed and deleted
}

function unlessAbsent(error: unknown): undefined {
  if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
  throw error;
}

interface Writable {
  write(bytes: Buffer, offset: number, length: number, position: number): Promise<{ bytesWritten: number }>;
}

async function writeAll(file: Writable, bytes: Buffer, length: number, position: number): Promise<void> {
  for (let at = 0; at < length;) {
    const { bytesWritten } = await file.write(bytes, at, length - at, position + at);
    if (bytesWritten === 0) throw new Error("the disk took no bytes");
    at += bytesWritten;
  }
}

function openDescriptor(path: string, flags: number): Promise<number> {
  return new Promise((resolve, reject) => {
    openFile(path, flags, (error, fd) => (error === null ? resolve(fd) : reject(error)));
  });
}
