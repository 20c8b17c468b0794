import { open, readFile, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";

/**
 * The second copy of the last signed checkpoint, outside the database: a store that was restored from an old backup, or
 * rewritten, no longer fits it.
 */
export interface HeadFile {
  /** The signed note, or undefined when nothing was signed yet on this machine. */
  read(): Promise<string | undefined>;
  /** Durable when it returns. Replaces the file as a whole, or not at all. */
  write(note: string): Promise<void>;
}

export function openHeadFile(path: string): HeadFile {
  return {
    async read() {
      try {
        return await readFile(path, "utf8");
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
        throw error;
      }
    },
    write: (note) => writeAtomically(path, note),
  };
}

/** Writes beside the file, syncs, renames, and syncs the folder. */
export async function writeAtomically(path: string, content: string | Uint8Array): Promise<void> {
  const beside = `${path}.${process.pid}.new`;
  try {
    const file = await open(beside, "w", 0o644);
    try {
      await file.writeFile(content);
      await file.datasync();
    } finally {
      await file.close();
    }
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true }).catch(() => {}); // the first error is the one to tell
    throw error;
  }
  const folder = await open(dirname(path), "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
