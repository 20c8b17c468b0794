import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { DatabaseSync } from "node:sqlite";

/**
 * What the witness asks of the disk. All of it is synchronous: between reading the state and having the next one on the
 * disk nothing else runs, which makes the two one step. Its own interface so that tests can put a failing disk in its place.
 */
export interface Files {
  /** Undefined when there is no such file. */
  read(path: string): string | undefined;
  /** The file has the old text or the new one, whenever the machine stops; it has the new one on the disk on return. */
  replace(path: string, text: string, mode: number): void;
}

export const nodeFiles: Files = {
  read(path) {
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      if (errorCode(error) === "ENOENT") return undefined;
      throw error;
    }
  },
  replace(path, text, mode) {
    const next = `${path}.next`;
    const fd = openSync(next, "w", mode);
    try {
      writeAll(fd, Buffer.from(text, "utf8"));
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(next, path);
    syncFolder(dirname(path));
  },
};

export function syncFolder(folder: string): void {
  const fd = openSync(folder, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function writeAll(fd: number, bytes: Buffer): void {
  for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
}

export interface Lock {
  release(): void;
}

/**
 * Takes the folder for this process until `release` or death: two witnesses with one key could sign two histories.
 * SQLite's file lock is used because the kernel drops it with the process, however that ends. The file stays empty.
 * Undefined when another process has it.
 */
export function lockFolder(path: string): Lock | undefined {
  const database = new DatabaseSync(path);
  try {
    database.exec("pragma busy_timeout = 0; pragma journal_mode = memory; begin exclusive");
  } catch {
    database.close();
    return undefined;
  }
  return {
    release() {
      if (database.isOpen) database.close();
    },
  };
}

export function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}
