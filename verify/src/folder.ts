import { constants, closeSync, fstatSync, openSync, opendirSync, readSync } from "node:fs";
import { join } from "node:path";
import { ReadError, type LogSource } from "./source.ts";

/**
 * A log in a folder of the local machine. Links are not followed and devices not opened: a folder from somebody else
 * may hold anything. Reads are synchronous, which takes a third of the time for many small files; a program that does
 * other things meanwhile gives verification a worker thread.
 */
export function openFolder(folder: string): Required<Pick<LogSource, "list">> & LogSource {
  return {
    read: (path, maxBytes) => readPlainFile(join(folder, path), maxBytes),
    *list(path) {
      let dir;
      try {
        dir = opendirSync(join(folder, path));
      } catch (error) {
        if (errorCode(error) === "ENOENT") return;
        throw new ReadError(`cannot be listed (${errorCode(error)})`, { cause: error });
      }
      try {
        for (let entry = dir.readSync(); entry !== null; entry = dir.readSync()) {
          yield { name: entry.name, kind: entry.isFile() ? "file" : entry.isDirectory() ? "folder" : "other" };
        }
      } finally {
        dir.closeSync();
      }
    },
  };
}

function readPlainFile(path: string, maxBytes: number): Uint8Array | undefined {
  let fd;
  try {
    // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    const code = errorCode(error);
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new ReadError(code === "ELOOP" ? "is a link, not a file" : `cannot be read (${code})`, { cause: error });
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new ReadError("is not a file");
    if (stat.size > maxBytes) throw new ReadError(`has ${stat.size} bytes, more than the ${maxBytes} it can have`);
    const bytes = Buffer.allocUnsafeSlow(stat.size);
    let length = 0;
    while (length < bytes.length) {
      const count = readSync(fd, bytes, length, bytes.length - length, length);
      if (count === 0) throw new ReadError("became shorter while it was read");
      length += count;
    }
    return bytes;
  } catch (error) {
    if (error instanceof ReadError) throw error;
    throw new ReadError(`cannot be read (${errorCode(error)})`, { cause: error });
  } finally {
    closeSync(fd);
  }
}

function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}
