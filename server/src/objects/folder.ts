import { constants } from "node:fs";
import { access, chmod, mkdir, open, opendir, rename, rm, type FileHandle } from "node:fs/promises";
import { dirname, join, relative, sep } from "node:path";
import { describe, GlassError } from "../core/errors.ts";
import { syncPath } from "./files.ts";
import { newId } from "../core/ids.ts";
import { checkedPath, isObjectPath, otherBytes, tooLong, type ObjectStore, type StoredObject } from "./object-store.ts";

const FOLDER_MODE = 0o755;
const UNFINISHED_MODE = 0o600;
const FINISHED_MODE = 0o444;
const REPLACED_MODE = 0o644;
const BESIDE = ".new";

/**
 * Objects as files of a folder. A file is created, written, synced, and only then made read-only (0444); after a crash in
 * between, the same bytes are put in again. Nothing is renamed or removed, so that folders may be append-only
 * (`chattr +a`), and a file system that turns read-only files into WORM files has its sign. Links are not followed.
 */
export function folderStore(root: string): ObjectStore {
  const made = new Set<string>();
  const makeFolder = async (folder: string): Promise<void> => {
    if (made.has(folder)) return;
    const first = await mkdir(folder, { recursive: true, mode: FOLDER_MODE });
    if (first !== undefined) {
      // Every folder between the first that was made and the last has a new name in it.
      for (let at = folder; at.length >= first.length; at = dirname(at)) await syncPath(dirname(at));
    }
    made.add(folder);
  };

  return {
    place: root,

    async preflight() {
      try {
        await makeFolder(root);
        await access(root, constants.W_OK);
      } catch (cause) {
        const isFile = cause instanceof Error && "code" in cause && ["EEXIST", "ENOTDIR"].includes(String(cause.code));
        const why = isFile ? "a file is in its place" : describe(cause);
        throw new GlassError("config_invalid", `the folder ${root} cannot be written to: ${why}`, {
          next: "Mount it, and let Glasskey's user create files in it.",
          cause,
        });
      }
    },

    async put(path, bytes) {
      const file = join(root, checkedPath(path));
      await makeFolder(dirname(file));
      const found = await look(root, path);
      const stored: StoredObject = { version: "", bytes: bytes.length, lock: undefined };
      if (found === undefined) {
        const created = await openNew(file);
        if (created !== undefined) {
          await finish(created, file, bytes);
          return stored;
        }
        return this.put(path, bytes); // another process was faster
      }
      if (found.bytes > bytes.length) throw otherBytes(root, path);
      const old = await readWhole(file, found.bytes);
      if (old === undefined) throw otherBytes(root, path);
      const same = old.equals(bytes);
      if (!same && (found.finished || !isTorn(old, bytes))) throw otherBytes(root, path);
      // A crash came between its creation and its last step. Whoever else repairs it now writes the same bytes.
      const mode = same ? constants.O_RDONLY : constants.O_WRONLY;
      await finish(await open(file, mode | constants.O_NOFOLLOW), file, same ? undefined : bytes, found.finished);
      return stored;
    },

    async replace(path, bytes) {
      const file = join(root, checkedPath(path));
      await makeFolder(dirname(file));
      const beside = `${file}.${newId("session")}${BESIDE}`;
      try {
        const handle = await open(beside, "wx", REPLACED_MODE);
        try {
          await handle.writeFile(bytes);
          await handle.sync();
        } finally {
          await handle.close();
        }
        await rename(beside, file);
      } catch (error) {
        await rm(beside, { force: true }).catch(() => {}); // the first error is the one to tell
        throw error;
      }
      await syncPath(dirname(file));
    },

    async get(path, maxBytes) {
      const found = await look(root, path);
      if (found === undefined) return undefined;
      if (found.bytes > maxBytes) throw tooLong(root, path, found.bytes, maxBytes);
      return readWhole(join(root, path), found.bytes);
    },

    async head(path) {
      const found = await look(root, path);
      return found === undefined ? undefined : { version: "", bytes: found.bytes, lock: undefined };
    },

    async versions(path) {
      return (await look(root, path)) === undefined ? [] : [{ version: "", deleted: false, latest: true }];
    },

    async *list(folder) {
      const start = join(root, checkedPath(folder));
      let dir;
      try {
        dir = await opendir(start, { recursive: true });
      } catch (error) {
        if (isAbsent(error)) return;
        throw error;
      }
      for await (const entry of dir) {
        if (!entry.isFile() || entry.name.endsWith(BESIDE)) continue;
        const path = relative(root, join(entry.parentPath, entry.name)).split(sep).join("/");
        if (isObjectPath(path)) yield path;
      }
    },

    close() {},
  };
}

async function openNew(file: string): Promise<FileHandle | undefined> {
  try {
    return await open(file, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, UNFINISHED_MODE);
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EEXIST") return undefined;
    throw error;
  }
}

/** Writes what is to be written, and makes the file durable and read-only. */
async function finish(
  handle: FileHandle,
  file: string,
  bytes: Uint8Array = new Uint8Array(0),
  readOnly = false,
): Promise<void> {
  try {
    let written = 0;
    while (written < bytes.length) {
      written += (await handle.write(bytes, written, bytes.length - written, written)).bytesWritten;
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  if (!readOnly) await chmod(file, FINISHED_MODE);
  await syncPath(dirname(file));
}

/** Whether `old` can be what a crash left of `bytes`: their beginning, and after it zeros. */
function isTorn(old: Buffer, bytes: Uint8Array): boolean {
  let at = 0;
  while (at < old.length && old[at] === bytes[at]) at += 1;
  return old.subarray(at).every((byte) => byte === 0);
}

async function look(root: string, path: string): Promise<{ bytes: number; finished: boolean } | undefined> {
  const file = join(root, checkedPath(path));
  let handle: FileHandle;
  try {
    handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (isAbsent(error)) return undefined;
    if (passes(error)) throw error; // nobody changed anything
    throw new GlassError("integrity", `${path} in ${root} cannot be read: ${describe(error)}`, { cause: error });
  }
  try {
    const stat = await handle.stat();
    if (!stat.isFile()) throw new GlassError("integrity", `${path} in ${root} is not a file`);
    return { bytes: stat.size, finished: (stat.mode & 0o222) === 0 };
  } finally {
    await handle.close();
  }
}

/** Exactly `length` bytes; undefined when the file has fewer by now, or is gone. */
async function readWhole(file: string, length: number): Promise<Buffer | undefined> {
  let handle: FileHandle;
  try {
    handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
  try {
    const bytes = Buffer.alloc(length);
    let at = 0;
    while (at < length) {
      const { bytesRead } = await handle.read(bytes, at, length - at, at);
      if (bytesRead === 0) return undefined;
      at += bytesRead;
    }
    return bytes;
  } finally {
    await handle.close();
  }
}

/** What has nothing to do with the file: a server of files that is away, or too much that is open. */
const PASSING: ReadonlySet<string> = new Set(["ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EMFILE", "ENFILE", "ENOMEM"]);

function passes(error: unknown): boolean {
  return error instanceof Error && "code" in error && PASSING.has(String(error.code));
}

function isAbsent(error: unknown): boolean {
  return error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR");
}
