import { type JournalFiles, nodeFiles } from "../journal-files.ts";
import { diskError } from "./files.ts";

/** How a disk fails from one of its operations on. */
export interface Fault {
  /** Which folder's disk. */
  readonly dir: string;
  /** The operation on it that fails, counted from 1. */
  readonly at: number;
  /** `EIO`: this and all later operations. `once`: this one alone. `short`: half of the bytes are written, then as `EIO`. `ENOSPC`: whatever needs room. */
  readonly how: "EIO" | "once" | "short" | "ENOSPC";
}

export interface Disks extends JournalFiles {
  /** Operations so far on that folder's disk. */
  count(dir: string): number;
  /** The disk of this folder fails from now on. */
  break(dir: string): void;
  /** Operations on this folder's disk do not end any more. */
  hang(dir: string): void;
}

const NEEDS_ROOM = new Set(["makeFolder", "prepare", "write", "writeSync"]);

/** Real files in real folders; each folder is a disk of its own, and one of them may fail. */
export function disks(fault?: Fault): Disks {
  const counts = new Map<string, number>();
  const broken = new Set<string>();
  const hanging = new Set<string>();
  const folders = new Map<number, string>();
  const check = (dir: string, what: string): Error | undefined => {
    const count = (counts.get(dir) ?? 0) + 1;
    counts.set(dir, count);
    if (broken.has(dir)) return diskError("EIO");
    if (fault === undefined || fault.dir !== dir || count < fault.at) return undefined;
    if (fault.how === "ENOSPC") return NEEDS_ROOM.has(what) ? diskError("ENOSPC") : undefined;
    return fault.how !== "once" || count === fault.at ? diskError("EIO") : undefined;
  };
  const act = async <T>(dir: string, what: string, work: () => Promise<T>): Promise<T> => {
    if (hanging.has(dir)) return new Promise(() => {});
    const error = check(dir, what);
    if (error !== undefined) throw error;
    return work();
  };
  const dirOf = (fd: number): string => folders.get(fd) ?? "";
  return {
    count: (dir) => counts.get(dir) ?? 0,
    break: (dir) => void broken.add(dir),
    hang: (dir) => void hanging.add(dir),
    makeFolder: (dir) => act(dir, "makeFolder", () => nodeFiles.makeFolder(dir)),
    list: (dir) => act(dir, "list", () => nodeFiles.list(dir)),
    prepare: (dir, ...args) => act(dir, "prepare", () => nodeFiles.prepare(dir, ...args)),
    rename: (dir, ...args) => act(dir, "rename", () => nodeFiles.rename(dir, ...args)),
    remove: (dir, name) => act(dir, "remove", () => nodeFiles.remove(dir, name)),
    syncFolder: (dir) => act(dir, "syncFolder", () => nodeFiles.syncFolder(dir)),
    truncate: (dir, ...args) => act(dir, "truncate", () => nodeFiles.truncate(dir, ...args)),
    open: (dir, ...args) =>
      act(dir, "open", async () => {
        const fd = await nodeFiles.open(dir, ...args);
        folders.set(fd, dir);
        return fd;
      }),
    write(fd, bytes, length, position, done) {
      if (hanging.has(dirOf(fd))) return;
      const error = check(dirOf(fd), "write");
      if (error === undefined) return nodeFiles.write(fd, bytes, length, position, done);
      const some = fault?.how === "short" ? length >> 1 : 0;
      nodeFiles.write(fd, bytes, some, position, () => done(error));
    },
    writeSync(fd, bytes, length, position) {
      const error = check(dirOf(fd), "writeSync");
      if (error === undefined) return nodeFiles.writeSync(fd, bytes, length, position);
      if (fault?.how === "short") nodeFiles.writeSync(fd, bytes, length >> 1, position);
      throw error;
    },
    sync(fd, done) {
      if (hanging.has(dirOf(fd))) return;
      const error = check(dirOf(fd), "sync");
      if (error === undefined) nodeFiles.sync(fd, done);
      else setImmediate(done, error);
    },
    close: (fd) => nodeFiles.close(fd),
    mark(dir, name, text) {
      const error = check(dir, "mark");
      if (error !== undefined) throw error;
      nodeFiles.mark(dir, name, text);
    },
  };
}
