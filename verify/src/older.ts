import { equalBytes } from "./encoding.ts";
import { HASH_BYTES, rootOfHashes } from "./merkle.ts";
import type { Findings } from "./report.ts";
import { ReadError, type LogSource } from "./source.ts";
import {
  bundleLeafHashes,
  FULL_TILE_BYTES,
  hashesInLevel,
  MAX_BUNDLE_BYTES,
  splitBundle,
  TILE_WIDTH,
  tilePath,
  type TileName,
} from "./tiles.ts";

/** What a file that the replay did not read is held against. */
export interface Surroundings {
  readonly source: LogSource;
  /** Entries that the checkpoint covers. */
  readonly size: number;
  readonly findings: Findings;
  /** Paths that the replay read and found wrong. */
  readonly unsound: ReadonlySet<string>;
}

/**
 * Checks a partial tile or bundle of an earlier checkpoint. Such a file may stay (tlog-tiles), and must then be the
 * beginning of what it became. It is only held against what verified: where the file that it became is wrong itself, its
 * hashes are held against those of the bundle or tiles beside it, and where these are wrong too it is counted, not blamed.
 */
export async function checkOlder(options: Surroundings, name: TileName): Promise<void> {
  const { source, size, findings, unsound } = options;
  const path = tilePath(name);
  const isBundle = name.level === "entries";
  let old: Uint8Array | undefined;
  try {
    old = await source.read(path, isBundle ? MAX_BUNDLE_BYTES : FULL_TILE_BYTES);
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    return findings.add(path, error.message);
  }
  if (old === undefined) return; // removed since it was listed
  const { entries, problem } = isBundle ? splitBundle(old, name.width) : { entries: [] };
  if (isBundle ? problem !== undefined : old.length !== name.width * HASH_BYTES) {
    return findings.add(path, `is damaged: it is not ${name.width} ${isBundle ? "entries" : "hashes"} long`);
  }
  const became = { ...name, width: widthNow(name, size) };
  const whole = unsound.has(tilePath(became)) ? undefined : await readSound(source, became);
  const fits =
    whole === undefined
      ? await fitsBeside(options, became, isBundle ? bundleLeafHashes(entries) : old)
      : equalBytes(old, whole.subarray(0, old.length));
  if (fits === undefined) findings.totals.unchecked += 1;
  else if (!fits) findings.add(path, "is not the beginning of the tile that it became");
}

/** Whether the hashes are the first of a tile, as other files have them; undefined when none that verified does. */
async function fitsBeside(options: Surroundings, name: TileName, hashes: Uint8Array): Promise<boolean | undefined> {
  const count = hashes.length / HASH_BYTES;
  const known = await hashesBeside(options, name, count);
  return known === undefined ? undefined : equalBytes(hashes, known);
}

/** The first `count` hashes of a tile, from its own file, else from the files below it. */
async function hashesOf(options: Surroundings, name: TileName, count: number): Promise<Uint8Array | undefined> {
  const tile = options.unsound.has(tilePath(name)) ? undefined : await readSound(options.source, name);
  return tile?.subarray(0, count * HASH_BYTES) ?? hashesBeside(options, name, count);
}

/** The same, from the files beside it alone: the bundle of a tile, the tile of a bundle, the tiles below a higher one. */
async function hashesBeside(options: Surroundings, name: TileName, count: number): Promise<Uint8Array | undefined> {
  const { source, unsound } = options;
  const { level, index, width } = name;
  if (level === "entries") {
    const tile = { level: 0, index, width };
    const bytes = unsound.has(tilePath(tile)) ? undefined : await readSound(source, tile);
    return bytes?.subarray(0, count * HASH_BYTES);
  }
  if (level === 0) {
    const bundle = { level: "entries", index, width } as const;
    const bytes = unsound.has(tilePath(bundle)) ? undefined : await readSound(source, bundle);
    return bytes === undefined ? undefined : bundleLeafHashes(splitBundle(bytes, width).entries.slice(0, count));
  }
  const roots: Uint8Array[] = [];
  for (let slot = 0; slot < count; slot += 1) {
    const below = { level: level - 1, index: index * TILE_WIDTH + slot, width: TILE_WIDTH };
    const hashes = await hashesOf(options, below, TILE_WIDTH);
    if (hashes === undefined) return undefined;
    roots.push(rootOfHashes(hashes));
  }
  return Buffer.concat(roots);
}

function widthNow({ level, index }: TileName, size: number): number {
  return Math.min(TILE_WIDTH, hashesInLevel(level === "entries" ? 0 : level, size) - index * TILE_WIDTH);
}

/** The bytes of a tile or bundle with all it must have; what is wrong with another is named by the replay. */
async function readSound(source: LogSource, name: TileName): Promise<Uint8Array | undefined> {
  const isBundle = name.level === "entries";
  try {
    const bytes = await source.read(tilePath(name), isBundle ? MAX_BUNDLE_BYTES : FULL_TILE_BYTES);
    if (bytes === undefined) return undefined;
    const complete = isBundle
      ? splitBundle(bytes, name.width).problem === undefined
      : bytes.length === name.width * HASH_BYTES;
    return complete ? bytes : undefined;
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    return undefined;
  }
}
