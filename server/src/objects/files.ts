import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";

/** A file's bytes, or a folder's names, to the disk: without it a power cut takes them, whatever came after. */
export async function syncPath(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
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
  await syncPath(dirname(path));
}
