import { randomBytes } from "node:crypto";
import { mkdir, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { GlassError } from "../core/errors.ts";
import { syncPath } from "../objects/files.ts";
import type { ObjectStore } from "../objects/object-store.ts";

/**
 * Where sealed chunks live. Names are two segments, `session/file`, and end in the hash of the content: a name is
 * written once and never with other bytes.
 */
export interface ChunkStore {
  /** Resolves once the bytes would survive a power cut. Again with the same bytes: the same. */
  put(name: string, bytes: Uint8Array): Promise<void>;
  /** Undefined where there is none. At most `maxBytes` are read. @throws GlassError `integrity` for a longer one. */
  get(name: string, maxBytes: number): Promise<Buffer | undefined>;
  /** Names of one session, sorted. */
  list(session: string): Promise<string[]>;
}

const FOLDER_MODE = 0o700;
const FILE_MODE = 0o600;
const PARTIAL = ".partial";

/** Chunks in a folder: written beside, synced, renamed, and the folder synced. */
export function folderChunkStore(root: string): ChunkStore {
  return {
    async put(name, bytes) {
      const path = join(root, checked(name));
      const folder = dirname(path);
      if ((await existing(path))?.equals(bytes) === true) return syncPath(folder); // a crash may have come before its sync
      const made = await mkdir(folder, { recursive: true, mode: FOLDER_MODE });
      const partial = `${path}.${randomBytes(6).toString("hex")}${PARTIAL}`;
      try {
        const file = await open(partial, "wx", FILE_MODE);
        try {
          await file.writeFile(bytes);
          await file.sync();
        } finally {
          await file.close();
        }
        await rename(partial, path);
      } catch (error) {
        await rm(partial, { force: true }).catch(() => {}); // the first error is the one to tell
        throw error;
      }
      await syncPath(folder);
      if (made !== undefined) {
        await syncPath(root);
        await syncPath(dirname(root));
      }
    },

    async get(name, maxBytes) {
      const path = join(root, checked(name));
      try {
        const { size } = await stat(path);
        if (size > maxBytes)
          throw new GlassError("integrity", `${name} has ${size} bytes, and a chunk has at most ${maxBytes}`);
        return await readFile(path);
      } catch (error) {
        if (isAbsent(error)) return undefined;
        throw error;
      }
    },

    async list(session) {
      try {
        const names = await readdir(join(root, checked(`${session}/x`), ".."));
        return names
          .filter((name) => !name.endsWith(PARTIAL))
          .toSorted()
          .map((name) => `${session}/${name}`);
      } catch (error) {
        if (isAbsent(error)) return [];
        throw error;
      }
    },
  };
}

/**
 * Chunks in an object store, such as S3: then any number of processes read and write the same ones. Names end in the hash
 * of the content, so a repetition after a crash finds its own bytes, and other bytes under a name are an error.
 */
export function objectChunkStore(objects: ObjectStore): ChunkStore {
  return {
    async put(name, bytes) {
      await objects.put(checked(name), bytes);
    },
    get: (name, maxBytes) => objects.get(checked(name), maxBytes),
    async list(session) {
      checked(`${session}/x`);
      const names: string[] = [];
      for await (const name of objects.list(session)) names.push(name);
      return names.toSorted();
    },
  };
}

async function existing(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
}

function checked(name: string): string {
  if (/^[a-z0-9_]+\/[a-z0-9][a-z0-9.-]*$/.test(name)) return name;
  throw new GlassError("internal", `not a chunk's name: ${JSON.stringify(name)}`);
}

function isAbsent(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}
