import { mkdir, readdir } from "node:fs/promises";
import {
  FormatError,
  HASH_BYTES,
  openCheckpoint,
  parseCheckpointText,
  parseNote,
  TILE_WIDTH,
  tilePath,
  VerifyError,
  type Checkpoint,
  type NoteVerifier,
} from "@glasskey/verify";
import { describe, GlassError } from "../core/errors.ts";
import { folderStore } from "../objects/folder.ts";
import { sha256Hex, type ObjectStore } from "../objects/object-store.ts";
import { fitting, leavesOf } from "./fitting.ts";
import { CHECKPOINTS, chunksIn, MAX_BUNDLE_BYTES, MAX_NOTE_BYTES, sizeInPath, WITNESSED } from "./layout.ts";
import { createTreeSource } from "./tree-source.ts";

export interface RestoreOptions {
  readonly source: ObjectStore;
  /** A folder that is not there yet, or empty. */
  readonly folder: string;
  /** The log's keys; undefined: the newest checkpoint that fits its own tree is taken, whoever signed it. */
  readonly keys: readonly NoteVerifier[] | undefined;
  readonly say: (line: string) => void;
}

export interface Restored {
  readonly size: number;
  readonly chunks: number;
  /** What the log has and the archive does not, or not with the right bytes; each with what it holds. */
  readonly missing: readonly string[];
  /** What was passed over: checkpoints that are not this log's, and tiles that were made again from what lies below. */
  readonly notes: readonly string[];
}

const MAX_CHUNK_BYTES = 16 * 1024 * 1024;
const AT_ONCE = 8;
const SAID_EVERY = 100;
const MAX_NOTES = 1_000;

/**
 * Makes a folder in the public layout from an archive and nothing else. It begins with the newest dated checkpoint, and
 * takes of each path the oldest version whose hash is the one that the checkpoint, through the tree, asks for. So what
 * was hidden, covered or added later changes nothing. The result is for `glass verify`; `checkpoint` is written last.
 * @throws GlassError `not_found` where no checkpoint fits; `conflict` where the folder is not empty.
 */
export async function restore(options: RestoreOptions): Promise<Restored> {
  const { source, keys, say } = options;
  await emptyFolder(options.folder);
  const target = folderStore(options.folder);
  const missing: string[] = [];
  const notes: string[] = [];
  const note = (line: string): void => {
    if (notes.length < MAX_NOTES) notes.push(line); // whoever can write there can write a great deal
  };
  const write = (path: string, bytes: Uint8Array): Promise<void> => target.replace(path, bytes);

  let chunks = 0;
  let bundles = 0;

  const tree = createTreeSource(source, (path) => note(`${path} was made again from what lies below it`));
  const dated = await checkpointsIn(source, CHECKPOINTS, keys, note);
  let head: Dated | undefined;
  for (const candidate of dated) {
    const edge = await tree.edge(candidate.checkpoint);
    if (edge !== undefined) {
      head = candidate;
      say(`Checkpoint of ${candidate.size} entries, dated by the archive. Fetching …`);
      for (const tile of edge) {
        await write(tilePath(tile), tile.hashes);
        await below(tile.level, tile.index, tile.hashes);
      }
      break;
    }
    missing.push(
      `the newest tiles of ${CHECKPOINTS}/${candidate.size}, and so what it has and older checkpoints have not`,
    );
  }
  if (head === undefined) {
    const next =
      keys !== undefined && dated.length === 0 && notes.length > 0
        ? "Its checkpoints are not signed by this key. Is it the key of this log?"
        : "Is it the place that `archive:` in glasskey.yaml named?";
    throw new GlassError("not_found", `${source.place} has no checkpoint that a log could be restored from`, { next });
  }

  /** Everything below a tile whose hashes are known to be right. */
  async function below(level: number, index: number, hashes: Uint8Array): Promise<void> {
    if (level === 0) return bundle(index, hashes);
    const child = async (slot: number): Promise<void> => {
      const wanted = hashes.subarray(slot * HASH_BYTES, (slot + 1) * HASH_BYTES);
      const name = { level: level - 1, index: index * TILE_WIDTH + slot, width: TILE_WIDTH };
      const tile = await tree.tile(name, wanted);
      if (tile === undefined) missing.push(`${tilePath(name)}: ${rangeOf(name.level, name.index)}`);
      else {
        await write(tilePath(name), tile);
        await below(name.level, name.index, tile);
      }
    };
    const slots = Array.from({ length: hashes.length / HASH_BYTES }, (_, slot) => slot);
    await some(slots, level === 1 ? AT_ONCE : 1, child); // each of them has a bundle, and that its chunks
  }

  async function bundle(index: number, hashes: Uint8Array): Promise<void> {
    const width = hashes.length / HASH_BYTES;
    const path = tilePath({ level: "entries", index, width });
    const bytes = await fitting(
      source,
      path,
      MAX_BUNDLE_BYTES,
      (found) => leavesOf(found, width)?.equals(hashes) === true,
    );
    if (bytes === undefined) {
      missing.push(`${path}: entries ${index * TILE_WIDTH} to ${index * TILE_WIDTH + width - 1}`);
      return;
    }
    await write(path, bytes);
    await some(chunksIn(bytes, width, 0), AT_ONCE, async (chunk) => {
      const found = await fitting(source, chunk.path, MAX_CHUNK_BYTES, (file) => sha256Hex(file) === chunk.sha256);
      if (found === undefined) missing.push(`${chunk.path}: part of the recording of ${chunk.session}`);
      else {
        await write(chunk.path, found);
        chunks += 1;
      }
    });
    bundles += 1;
    if (bundles % SAID_EVERY === 0) say(`  ${bundles * TILE_WIDTH} entries, ${chunks} chunks`);
  }

  for (const older of dated) if (older.size <= head.size) await write(`${CHECKPOINTS}/${older.size}`, older.note);
  const witnessed = (await checkpointsIn(source, WITNESSED, keys, note)).find(({ size }) => size <= (head?.size ?? 0));
  if (witnessed !== undefined) await write("checkpoint.witnessed", witnessed.note);
  if (keys !== undefined) await write("log.vkey", Buffer.from(keys.map(({ vkey }) => `${vkey}\n`).join("")));
  await write("checkpoint", head.note);
  return { size: head.size, chunks, missing, notes };
}

interface Dated {
  readonly size: number;
  readonly note: Buffer;
  readonly checkpoint: Checkpoint;
}

/** The checkpoints of a folder that are this log's, the newest first. */
async function checkpointsIn(
  source: ObjectStore,
  folder: string,
  keys: readonly NoteVerifier[] | undefined,
  passOver: (line: string) => void,
): Promise<Dated[]> {
  const found: Dated[] = [];
  const look = async (path: string): Promise<void> => {
    const size = sizeInPath(path);
    let why = "its name is not a size";
    let checkpoint: Checkpoint | undefined;
    const note = await fitting(source, path, MAX_NOTE_BYTES, (bytes) => {
      try {
        checkpoint = keys === undefined ? parseCheckpointText(parseNote(bytes).text) : openCheckpoint(bytes, keys);
      } catch (error) {
        if (!(error instanceof FormatError || error instanceof VerifyError)) throw error;
        why = error.message;
        return false;
      }
      why = "it is of another size";
      return checkpoint.size === size;
    });
    if (size === undefined || note === undefined || checkpoint === undefined)
      passOver(`${path} is passed over: ${why}`);
    else found.push({ size, note, checkpoint });
  };
  let paths: string[] = [];
  for await (const path of source.list(folder)) {
    paths.push(path);
    if (paths.length < AT_ONCE) continue;
    await some(paths, AT_ONCE, look);
    paths = [];
  }
  await some(paths, AT_ONCE, look);
  return found.toSorted((a, b) => b.size - a.size);
}

/** Does it with each, so many at a time. */
async function some<T>(items: readonly T[], atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  for (let i = 0; i < items.length; i += atOnce) await Promise.all(items.slice(i, i + atOnce).map(work));
}

function rangeOf(level: number, index: number): string {
  const span = TILE_WIDTH ** (level + 1);
  return `entries ${index * span} to ${(index + 1) * span - 1}`;
}

async function emptyFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    if ((await readdir(folder)).length === 0) return;
  } catch (cause) {
    throw new GlassError("conflict", `${folder} cannot be written to: ${describe(cause)}`, { cause });
  }
  throw new GlassError("conflict", `${folder} is not empty`, { next: "Name a folder that is not there yet." });
}
