import { equalBytes } from "./encoding.ts";
import {
  appendHashes,
  appendSubtree,
  copyRange,
  emptyRange,
  HASH_BYTES,
  rootOf,
  rootOfHashes,
  type CompactRange,
} from "./merkle.ts";
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

/** Enough to see that nothing is right: whoever signs a size without end must not make us count without end. */
const MAX_PROBLEMS = 100_000;

/** A root that the log must have had at some size. */
export interface ExpectedRoot {
  readonly where: string;
  readonly size: number;
  readonly root: Uint8Array;
}

export interface Bundle {
  readonly firstIndex: number;
  readonly bytes: Uint8Array;
  readonly entries: readonly Uint8Array[];
  /** Whether the bytes of its i-th entry are those in the tree. */
  readonly sound: (i: number) => boolean;
}

export interface ReplayOptions {
  readonly source: LogSource;
  readonly size: number;
  readonly findings: Findings;
  /** By ascending size; the last is the checkpoint itself. */
  readonly expected: readonly ExpectedRoot[];
  /** Called for every bundle that could be read, in order. */
  onBundle(bundle: Bundle): Promise<void> | void;
}

/** The tile of a higher level that is being filled from below, with what the file says of it. */
interface OpenTile {
  readonly name: TileName;
  readonly file: Uint8Array | undefined;
  readonly hashes: Buffer;
  filled: number;
}

/**
 * Reads every bundle and tile once, from left to right, and holds them against each other and against the expected
 * roots. Memory is one bundle and one tile for each level, whatever the size. Where a bundle and its tile disagree, the
 * tile above (or the signed root) tells which of the two was changed, so one edit gives one finding.
 * @returns the paths of tiles and bundles that were read and are not what the tree has: nothing is held against these.
 */
export async function replay(options: ReplayOptions): Promise<ReadonlySet<string>> {
  const { source, size, findings, expected } = options;
  const unsound = new Set<string>();
  const range = emptyRange();
  const open: OpenTile[] = [];
  let next = 0; // in expected
  next = checkRoots(expected, next, 0, Buffer.alloc(0), range, findings);
  for (let index = 0; index * TILE_WIDTH < size; index += 1) {
    if (findings.count() > MAX_PROBLEMS) {
      findings.add("tile", `not looked at after entry ${index * TILE_WIDTH}: there are too many problems already`);
      return unsound;
    }
    const start = index * TILE_WIDTH;
    const width = Math.min(TILE_WIDTH, size - start);
    const parent = width === TILE_WIDTH ? await parentSlot(index, 1) : undefined;
    const leaves = await readLeaves(index, width, (candidate) => {
      if (width === TILE_WIDTH) return parent !== undefined && equalBytes(rootOfHashes(candidate), parent);
      const whole = copyRange(range);
      appendHashes(whole, 0, candidate);
      return equalBytes(rootOf(whole), expected.at(-1)?.root ?? Buffer.alloc(0));
    });
    next = checkRoots(expected, next, start + width, leaves, range, findings);
    if (width === TILE_WIDTH) {
      const subtree = leaves === undefined ? parent : rootOfHashes(leaves);
      if (subtree === undefined) return unsound; // both files and the tile above are missing, and named
      appendSubtree(range, 8, subtree);
      await push(1, index, subtree);
    }
  }
  return unsound;

  /** What the tile above says of tile `index` of the level below `level`. */
  async function parentSlot(index: number, level: number): Promise<Uint8Array | undefined> {
    const slot = index % TILE_WIDTH;
    const { file } = await openTile(level, Math.floor(index / TILE_WIDTH));
    return file?.subarray(slot * HASH_BYTES, (slot + 1) * HASH_BYTES);
  }

  async function openTile(level: number, index: number): Promise<OpenTile> {
    const current = open[level];
    if (current !== undefined && current.name.index === index) return current;
    const width = Math.min(TILE_WIDTH, hashesInLevel(level, size) - index * TILE_WIDTH);
    const name = { level, index, width };
    const tile = {
      name,
      file: await readTile(source, name, findings),
      hashes: Buffer.alloc(FULL_TILE_BYTES),
      filled: 0,
    };
    open[level] = tile;
    return tile;
  }

  /** Enters the hash of a full tile of the level below, and of every tile that this fills. */
  async function push(level: number, index: number, subtree: Uint8Array): Promise<void> {
    const tile = await openTile(level, Math.floor(index / TILE_WIDTH));
    const slot = index % TILE_WIDTH;
    const said = tile.file?.subarray(slot * HASH_BYTES, (slot + 1) * HASH_BYTES);
    if (said !== undefined && !equalBytes(said, subtree)) {
      const below = tilePath({ level: level - 1, index, width: TILE_WIDTH });
      unsound.add(tilePath(tile.name));
      findings.add(tilePath(tile.name), `was changed: its hash ${slot} is not that of ${below}`);
    }
    tile.hashes.set(subtree, slot * HASH_BYTES);
    tile.filled += 1;
    if (tile.filled === TILE_WIDTH) await push(level + 1, tile.name.index, rootOfHashes(tile.hashes));
  }

  /** The leaf hashes of one bundle: from the bundle, or from its tile where only that one fits into the tree. */
  async function readLeaves(
    index: number,
    width: number,
    fits: (candidate: Uint8Array) => boolean,
  ): Promise<Uint8Array | undefined> {
    const [tileName, bundleName] = [
      { level: 0, index, width },
      { level: "entries", index, width },
    ] as const;
    const [tileFile, bundleFile] = [tilePath(tileName), tilePath(bundleName)];
    const tile = await readTile(source, tileName, findings);
    const bytes = await readFile(source, bundleFile, MAX_BUNDLE_BYTES, findings);
    const { entries, problem } = bytes === undefined ? { entries: [] } : splitBundle(bytes, width);
    const hashed = bundleLeafHashes(entries);
    const whole = bytes !== undefined && problem === undefined;
    const firstIndex = index * TILE_WIDTH;

    const bad = tile === undefined ? [] : differing(hashed, tile);
    const trustTile = tile !== undefined && (!whole || (bad.length > 0 && fits(tile) && !fits(hashed)));
    if (whole && tile !== undefined && bad.length > 0) {
      const trustBundle = !trustTile && fits(hashed);
      if (!trustBundle) unsound.add(bundleFile);
      if (!trustTile) unsound.add(tileFile);
      for (const i of bad) {
        if (trustTile)
          findings.add(bundleFile, `was changed: the tree has another hash for this entry`, firstIndex + i);
        else if (trustBundle)
          findings.add(tileFile, `was changed: its hash ${i} is not that of the entry`, firstIndex + i);
        else findings.add(bundleFile, `does not have the hash that ${tileFile} has for it`, firstIndex + i);
      }
    } else if (problem !== undefined) {
      unsound.add(bundleFile);
      const at = bad[0] ?? entries.length;
      findings.add(bundleFile, `is damaged: ${problem}`, at < width ? firstIndex + at : undefined);
    }
    const sound = (i: number): boolean => (whole && !trustTile) || (tile !== undefined && !bad.includes(i));
    for (let i = 0; i < entries.length; i += 1) if (sound(i)) findings.totals.entries += 1;
    if (bytes !== undefined) await options.onBundle({ firstIndex, bytes, entries, sound });
    if (trustTile) return tile;
    return whole ? hashed : undefined;
  }
}

/** Compares the tree so far, plus the first of `leaves`, with the roots expected up to `size`; returns the next to check. */
function checkRoots(
  expected: readonly ExpectedRoot[],
  from: number,
  size: number,
  leaves: Uint8Array | undefined,
  range: CompactRange,
  findings: Findings,
): number {
  let next = from;
  for (; ; next += 1) {
    const claim = expected[next];
    if (claim === undefined || claim.size > size) return next;
    if (leaves === undefined) {
      findings.add(claim.where, "could not be checked: entries and hashes that it covers are missing");
      continue;
    }
    const tree = copyRange(range);
    appendHashes(tree, 0, leaves.subarray(0, (claim.size - range.size) * HASH_BYTES));
    if (equalBytes(rootOf(tree), claim.root)) findings.totals.checkpoints += 1;
    else {
      findings.add(
        claim.where,
        `signs another history: the first ${claim.size} entries here have the root ${rootOf(tree).toString("base64")}, ` +
          `and it says ${Buffer.from(claim.root).toString("base64")}`,
      );
    }
  }
}

function differing(a: Uint8Array, b: Uint8Array): number[] {
  const out: number[] = [];
  const count = Math.min(a.length, b.length) / HASH_BYTES;
  if (a.length === b.length && equalBytes(a, b)) return out;
  for (let i = 0; i < count; i += 1) {
    const [from, to] = [i * HASH_BYTES, (i + 1) * HASH_BYTES];
    if (!equalBytes(a.subarray(from, to), b.subarray(from, to))) out.push(i);
  }
  return out;
}

async function readTile(source: LogSource, name: TileName, findings: Findings): Promise<Uint8Array | undefined> {
  const path = tilePath(name);
  const bytes = await readFile(source, path, FULL_TILE_BYTES, findings);
  if (bytes === undefined) return undefined;
  findings.totals.tiles += 1;
  if (bytes.length === name.width * HASH_BYTES) return bytes;
  findings.add(path, `is damaged: it has ${bytes.length} bytes and not ${name.width * HASH_BYTES}`);
  return undefined;
}

/** Reads a file that must be there; what is wrong with it is a finding. */
export async function readFile(
  source: LogSource,
  path: string,
  maxBytes: number,
  findings: Findings,
  entry?: number,
): Promise<Uint8Array | undefined> {
  try {
    const bytes = await source.read(path, maxBytes);
    if (bytes === undefined) findings.add(path, "is missing", entry);
    return bytes;
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    findings.add(path, error.message, entry);
    return undefined;
  }
}
