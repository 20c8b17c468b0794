import { readFile } from "node:fs/promises";
import { writeAtomically } from "../objects/files.ts";

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
