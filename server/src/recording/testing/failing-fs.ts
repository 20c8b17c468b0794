import { promises } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { diskError } from "./files.ts";

/**
 * Runs `work` while, in files below `folder`, the `at`-th write or sync (counted from 1) of node:fs/promises fails, and
 * each later one too: for code that writes files by itself. Nothing else may use that folder meanwhile.
 * @returns the number of writes and syncs that there were.
 */
export async function withFailingDisk(
  folder: string,
  at: number,
  code: "EIO" | "ENOSPC",
  work: () => Promise<void>,
): Promise<number> {
  let count = 0;
  const inside = new WeakSet<object>();
  const fail = (what: string): void => {
    if (++count < at) return;
    if (code === "EIO" || what === "write") throw diskError(code); // a full disk still syncs, and still renames
  };
  const whole = { ...promises };
  const handle = await promises.open("/dev/null");
  const prototype = Object.getPrototypeOf(handle) as Record<string, (...args: unknown[]) => unknown>;
  await handle.close();
  const methods = { write: "write", writeFile: "write", sync: "sync", datasync: "sync", truncate: "sync" } as const;
  const before = Object.fromEntries(Object.keys(methods).map((name) => [name, prototype[name]]));
  const isInside = (path: unknown): boolean => String(path).startsWith(folder);
  try {
    for (const [name, what] of Object.entries(methods)) {
      const real = before[name] as (...args: unknown[]) => unknown;
      prototype[name] = function (this: object, ...args: unknown[]): unknown {
        if (inside.has(this)) {
          try {
            fail(what);
          } catch (error) {
            return Promise.reject(error);
          }
        }
        return real.apply(this, args);
      };
    }
    promises.open = async (...args: Parameters<typeof whole.open>): Promise<FileHandle> => {
      const opened = await whole.open(...args);
      if (isInside(args[0])) inside.add(opened);
      return opened;
    };
    promises.writeFile = async (...args: Parameters<typeof whole.writeFile>): Promise<void> => {
      if (isInside(args[0])) {
        try {
          fail("write");
        } catch (error) {
          const bytes = typeof args[1] === "string" ? Buffer.from(args[1]) : (args[1] as Uint8Array);
          await whole.writeFile(args[0], bytes.subarray(0, bytes.length >> 1)); // some of it is there
          throw error;
        }
      }
      return whole.writeFile(...args);
    };
    promises.rename = async (...args: Parameters<typeof whole.rename>): Promise<void> => {
      if (isInside(args[0])) fail("rename");
      return whole.rename(...args);
    };
    promises.mkdir = (async (...args: Parameters<typeof whole.mkdir>) => {
      if (isInside(args[0])) fail("write");
      return whole.mkdir(...args);
    }) as typeof whole.mkdir;
    syncBuiltinESMExports();
    await work();
    return count;
  } finally {
    Object.assign(promises, { open: whole.open, writeFile: whole.writeFile, rename: whole.rename, mkdir: whole.mkdir });
    Object.assign(prototype, before);
    syncBuiltinESMExports();
  }
}
