import { openCheckpoint } from "./checkpoint.ts";
import { equalBytes } from "./encoding.ts";
import { FormatError, VerifyError } from "./errors.ts";
import {
  consistencyProof,
  HASH_BYTES,
  rootOfHashes,
  subtreeRoot,
  verifyConsistency,
  type NodeReader,
} from "./merkle.ts";
import { MAX_NOTE_BYTES, parseNote, parseVerifierKeys } from "./note.ts";
import { newFindings, type Findings, type Problem } from "./report.ts";
import { ReadError, type LogSource } from "./source.ts";
import { FULL_TILE_BYTES, hashesInLevel, TILE_WIDTH, tilePath } from "./tiles.ts";
import { parseCheckpointText, type Checkpoint } from "./tree-head.ts";

export interface Growth {
  readonly ok: boolean;
  readonly origin: string | undefined;
  readonly oldSize: number;
  readonly size: number;
  readonly problems: readonly Problem[];
}

const TILE_BITS = 8;

/**
 * Verifies that the log grew from one signed checkpoint to another, by appending alone: from a few tiles, whatever the
 * size, without reading an entry. Says nothing of what the entries are.
 * @throws FormatError when no well-formed key is given. What is wrong otherwise is in the answer.
 */
export async function verifyGrowth(options: {
  readonly source: LogSource;
  readonly vkey: string;
  readonly since: string;
  readonly until: string;
}): Promise<Growth> {
  const { source } = options;
  const verifiers = parseVerifierKeys(options.vkey);
  const findings = newFindings();
  const open = (where: string, note: string): Checkpoint | undefined => {
    try {
      return openCheckpoint(note, verifiers);
    } catch (error) {
      if (!(error instanceof FormatError || error instanceof VerifyError)) throw error;
      findings.add(where, error.message);
      return undefined;
    }
  };
  const [older, newer] = [open("older checkpoint", options.since), open("newer checkpoint", options.until)];
  if (older !== undefined && newer !== undefined) await compare(source, older, newer, findings);
  return {
    ok: older !== undefined && newer !== undefined && findings.count() === 0,
    origin: newer?.origin,
    oldSize: older?.size ?? 0,
    size: newer?.size ?? 0,
    problems: findings.problems,
  };
}

async function compare(source: LogSource, older: Checkpoint, newer: Checkpoint, findings: Findings): Promise<void> {
  if (older.size > newer.size) {
    return findings.add("newer checkpoint", `covers ${newer.size} entries, and the older one ${older.size}`);
  }
  if (older.size === newer.size) {
    if (!equalBytes(older.root, newer.root)) {
      findings.add(
        "newer checkpoint",
        `has another root at the same ${newer.size} entries: the log signed two histories`,
      );
    }
    return;
  }
  const node = nodeReader(source, newer.size, await sizeNow(source));
  try {
    const proof = await consistencyProof(older.size, newer.size, node);
    if (verifyConsistency(older.size, newer.size, proof, older.root, newer.root)) return;
    // Which of the three is it that does not fit: the tiles, or one of the checkpoints?
    const root = await subtreeRoot(0, newer.size, node);
    if (equalBytes(root, newer.root)) {
      findings.add(
        "older checkpoint",
        `signs another history: the log of the newer one does not begin with its ${older.size} entries`,
      );
    } else {
      findings.add(
        "tile",
        `the tiles here do not have the root of the newer checkpoint: nothing can be told from them`,
      );
    }
  } catch (error) {
    if (!(error instanceof MissingTile)) throw error;
    findings.add(error.path, error.message);
  }
}

class MissingTile extends Error {
  readonly path: string;
  constructor(path: string, why: string) {
    super(why);
    this.path = path;
  }
}

/** What the source says of its size: only a hint of which tiles it has. */
async function sizeNow(source: LogSource): Promise<number> {
  try {
    const note = await source.read("checkpoint", MAX_NOTE_BYTES);
    return note === undefined ? 0 : parseCheckpointText(parseNote(note).text).size;
  } catch (error) {
    if (error instanceof ReadError || error instanceof FormatError) return 0;
    throw error;
  }
}

/** Nodes of the tree of `size`, from tiles as wide as that tree has them, or wider: what came later is cut off. */
function nodeReader(source: LogSource, size: number, now: number): NodeReader {
  const tiles = new Map<string, Uint8Array>();
  const readTile = async (level: number, index: number): Promise<Uint8Array> => {
    const width = Math.min(TILE_WIDTH, hashesInLevel(level, size) - index * TILE_WIDTH);
    const path = tilePath({ level, index, width });
    const known = tiles.get(path);
    if (known !== undefined) return known;
    const later = Math.min(TILE_WIDTH, hashesInLevel(level, now) - index * TILE_WIDTH);
    for (const candidate of new Set([width, Math.max(width, later), TILE_WIDTH])) {
      const bytes = await readOne(source, tilePath({ level, index, width: candidate }));
      if (bytes === undefined) continue;
      if (bytes.length !== candidate * HASH_BYTES) throw new MissingTile(path, "is damaged");
      tiles.set(path, bytes);
      return bytes;
    }
    throw new MissingTile(path, "is missing");
  };
  return async (height, index) => {
    const [level, within] = [Math.floor(height / TILE_BITS), height % TILE_BITS];
    const first = index * 2 ** within; // in the hashes of that level
    const tile = await readTile(level, Math.floor(first / TILE_WIDTH));
    const at = (first % TILE_WIDTH) * HASH_BYTES;
    return rootOfHashes(tile.subarray(at, at + 2 ** within * HASH_BYTES));
  };
}

async function readOne(source: LogSource, path: string): Promise<Uint8Array | undefined> {
  try {
    return await source.read(path, FULL_TILE_BYTES);
  } catch (error) {
    if (error instanceof ReadError) throw new MissingTile(path, error.message);
    throw error;
  }
}
