import type { JournalFiles } from "../journal-files.ts";
import { nodeFiles } from "../journal-files.ts";

/** Real files whose writes and syncs can be held back, or fail. */
export interface FaultyFiles extends JournalFiles {
  /** The next write, sync or preparation fails with this. */
  failNext(what: "write" | "sync" | "prepare", error: Error): void;
  /** Every preparation from now on fails with this; undefined: none does. */
  failPreparing(error: Error | undefined): void;
  /** From now on writes wait for `release`. */
  hold(): void;
  release(): void;
  readonly writes: number;
  readonly syncs: number;
}

export function diskError(code: string): Error {
  return Object.assign(new Error(`${code}: made by a test`), { code });
}

export function faultyFiles(): FaultyFiles {
  const next = new Map<string, Error>();
  let preparing: Error | undefined;
  let held: (() => void)[] | undefined;
  let writes = 0;
  let syncs = 0;
  const fault = (what: string): Error | undefined => {
    const error = next.get(what);
    next.delete(what);
    return error;
  };
  return {
    ...nodeFiles,
    get writes() {
      return writes;
    },
    get syncs() {
      return syncs;
    },
    failNext: (what, error) => void next.set(what, error),
    failPreparing: (error) => {
      preparing = error;
    },
    hold() {
      held ??= [];
    },
    release() {
      const waiting = held ?? [];
      held = undefined;
      for (const go of waiting) go();
    },
    async prepare(...args) {
      const error = preparing ?? fault("prepare");
      if (error !== undefined) throw error;
      await nodeFiles.prepare(...args);
    },
    write(fd, bytes, length, position, done) {
      writes++;
      const error = fault("write");
      const go = (): void => {
        if (error !== undefined) setImmediate(done, error);
        else nodeFiles.write(fd, bytes, length, position, done);
      };
      if (held === undefined) go();
      else held.push(go);
    },
    writeSync(...args) {
      writes++;
      const error = fault("write");
      if (error !== undefined) throw error;
      nodeFiles.writeSync(...args);
    },
    sync(fd, done) {
      syncs++;
      const error = fault("sync");
      if (error !== undefined) setImmediate(done, error);
      else nodeFiles.sync(fd, done);
    },
  };
}
