import {
  appendHashes,
  emptyRange,
  FULL_TILE_BYTES,
  HASH_BYTES,
  hashesInLevel,
  rootOf,
  rootOfHashes,
  subtreeRoot,
  TILE_WIDTH,
  type CompactRange,
  type NodeReader,
} from "@glasskey/verify";
import { GlassError } from "../core/errors.ts";

/** Reads the hashes that the store has of a tile, or undefined when it has none. */
export type TileReader = (level: number, index: number) => Promise<Uint8Array | undefined>;

export interface Tile {
  level: number;
  idx: number;
  hashes: Buffer;
}

/** The growing edge of the tree: its compact range, and the rightmost tile of each level that is not full. */
export interface Edge {
  readonly range: CompactRange;
  readonly open: Tile[];
}

/**
 * Reads the edge of a tree of `size` from its stored tiles, and checks that they fit each other.
 * @throws GlassError `integrity` when a tile is missing, has another width, or is not what the tiles below it add up to.
 */
export async function readEdge(size: number, readTile: TileReader): Promise<Edge> {
  const open: Tile[] = [];
  for (let level = 0; hashesInLevel(level, size) > 0; level += 1) {
    const count = hashesInLevel(level, size);
    const [idx, width] = [Math.floor(count / TILE_WIDTH), count % TILE_WIDTH];
    const stored = width === 0 ? Buffer.alloc(0) : await readTile(level, idx);
    if (stored === undefined || stored.length !== width * HASH_BYTES) {
      throw integrity(`tile ${idx} of level ${level} does not have the ${width} hashes of a tree of ${size}`);
    }
    open[level] = { level, idx, hashes: Buffer.from(stored) };
    if (level > 0) {
      const full = await readTile(level - 1, count - 1); // the last hash here stands for that tile
      const last = width > 0 ? stored.subarray(-HASH_BYTES) : (await readTile(level, idx - 1))?.subarray(-HASH_BYTES);
      if (full?.length !== FULL_TILE_BYTES || last === undefined || !rootOfHashes(full).equals(last)) {
        throw integrity(`tile ${idx} of level ${level} does not have the hash of tile ${count - 1} below it`);
      }
    }
  }
  const range = emptyRange();
  for (const tile of open.toReversed()) appendHashes(range, 8 * tile.level, tile.hashes);
  return { range, open };
}

/** Appends leaf hashes to the edge, in place; returns every tile that changed, full ones and partial ones. */
export function growEdge(edge: Edge, leaves: Buffer): Tile[] {
  appendHashes(edge.range, 0, leaves);
  const changed: Tile[] = [];
  let hashes = leaves;
  for (let level = 0; hashes.length > 0; level += 1) {
    const above: Buffer[] = [];
    let tile = edge.open[level] ?? { level, idx: 0, hashes: Buffer.alloc(0) };
    for (let offset = 0; offset < hashes.length;) {
      const take = Math.min(hashes.length - offset, FULL_TILE_BYTES - tile.hashes.length);
      tile = { ...tile, hashes: Buffer.concat([tile.hashes, hashes.subarray(offset, offset + take)]) };
      offset += take;
      if (tile.hashes.length < FULL_TILE_BYTES) continue;
      changed.push(tile);
      above.push(rootOfHashes(tile.hashes));
      tile = { level, idx: tile.idx + 1, hashes: Buffer.alloc(0) };
    }
    if (tile.hashes.length > 0) changed.push(tile);
    edge.open[level] = tile;
    hashes = Buffer.concat(above);
  }
  return changed;
}

/** Nodes of the tree, computed from its tiles; for proofs, and for the root at an earlier size. */
export function nodesOf(readTile: TileReader): NodeReader {
  const cache = new Map<string, Uint8Array | undefined>();
  return async (height, index) => {
    const level = Math.floor(height / 8);
    const span = 2 ** (height % 8);
    const first = index * span;
    const tileIndex = Math.floor(first / TILE_WIDTH);
    const key = `${level}/${tileIndex}`;
    if (!cache.has(key)) cache.set(key, await readTile(level, tileIndex));
    const from = (first % TILE_WIDTH) * HASH_BYTES;
    const hashes = cache.get(key)?.subarray(from, from + span * HASH_BYTES);
    if (hashes?.length !== span * HASH_BYTES) throw integrity(`tile ${tileIndex} of level ${level} is missing hashes`);
    return rootOfHashes(hashes);
  };
}

export async function rootAt(size: number, readTile: TileReader): Promise<Buffer> {
  return size === 0 ? rootOf(emptyRange()) : subtreeRoot(0, size, nodesOf(readTile));
}

export function integrity(what: string): GlassError {
  return new GlassError("integrity", `the log in the store is not what was signed: ${what}`, {
    next: "Stop here. Keep the store as it is, verify the last export, and find out who changed it or which backup was restored.",
  });
}
