import {
  appendHashes,
  emptyRange,
  FULL_TILE_BYTES,
  HASH_BYTES,
  partialTiles,
  rootOf,
  rootOfHashes,
  TILE_WIDTH,
  tilePath,
  type Checkpoint,
  type TileName,
} from "@glasskey/verify";
import type { ObjectStore } from "../objects/object-store.ts";
import { bounded, fitting, leavesOf, olderVersions } from "./fitting.ts";
import { MAX_BUNDLE_BYTES } from "./layout.ts";

/** Tiles of a tree from an archive that anybody may have written to: each is held against what is signed. */
export interface TreeSource {
  /** The partial tiles of a checkpoint's tree, the lowest first, that have its root; undefined where they are not there. */
  edge(checkpoint: Checkpoint): Promise<EdgeTile[] | undefined>;
  /** A full tile with that root; made from what lies below it where its own file is gone or wrong. */
  tile(name: TileName & { level: number }, root: Uint8Array): Promise<Buffer | undefined>;
}

export interface EdgeTile {
  readonly level: number;
  readonly index: number;
  readonly width: number;
  readonly hashes: Buffer;
}

const CANDIDATES = 4; // of one partial tile: its versions, and what lies below it

/** @param onRebuilt hears of each tile that was made from what lies below it. */
export function createTreeSource(source: ObjectStore, onRebuilt: (path: string) => void): TreeSource {
  /** Hashes of a tile as the files below it have them, right or wrong; undefined where they are not all there. */
  async function fromBelow(level: number, index: number, width: number): Promise<Buffer | undefined> {
    if (level === 0) {
      const bundle = await bounded(source, tilePath({ level: "entries", index, width }), MAX_BUNDLE_BYTES);
      return bundle === undefined ? undefined : leavesOf(bundle, width);
    }
    const roots: Buffer[] = [];
    for (let slot = 0; slot < width; slot += 1) {
      const child = { level: level - 1, index: index * TILE_WIDTH + slot, width: TILE_WIDTH };
      const whole = (bytes: Buffer): boolean => bytes.length === FULL_TILE_BYTES;
      const stored = await fitting(source, tilePath(child), FULL_TILE_BYTES, whole);
      const hashes = stored ?? (await fromBelow(child.level, child.index, TILE_WIDTH));
      if (hashes === undefined) return undefined;
      roots.push(rootOfHashes(hashes));
    }
    return Buffer.concat(roots);
  }

  async function candidatesFor(name: TileName & { level: number }): Promise<{ hashes: Buffer; rebuilt: boolean }[]> {
    const bytes = name.width * HASH_BYTES;
    const found: { hashes: Buffer; rebuilt: boolean }[] = [];
    const add = (hashes: Buffer | undefined, rebuilt: boolean): void => {
      if (hashes?.length !== bytes || found.some((one) => one.hashes.equals(hashes))) return;
      found.push({ hashes, rebuilt });
    };
    add(await bounded(source, tilePath(name), bytes), false);
    for await (const hashes of olderVersions(source, tilePath(name), bytes)) {
      add(hashes, false);
      if (found.length >= CANDIDATES - 1) break;
    }
    add(await fromBelow(name.level, name.index, name.width), true);
    return found;
  }

  return {
    async edge({ size, root }) {
      const names = partialTiles(size).map((name) => ({ ...name, level: Number(name.level) }));
      const choices: { hashes: Buffer; rebuilt: boolean }[][] = [];
      for (const name of names) choices.push(await candidatesFor(name));
      const combinations = choices.reduce((count, some) => count * some.length, 1);
      for (let n = 0; n < combinations; n += 1) {
        let rest = n;
        const chosen = choices.map((some) => {
          const one = some[rest % some.length];
          rest = Math.floor(rest / some.length);
          return one;
        });
        const tiles = names.map((name, i) => ({ ...name, hashes: chosen[i]?.hashes ?? Buffer.alloc(0) }));
        const range = emptyRange();
        for (const tile of tiles.toReversed()) appendHashes(range, 8 * tile.level, tile.hashes);
        if (!rootOf(range).equals(root)) continue;
        for (const [i, tile] of tiles.entries()) if (chosen[i]?.rebuilt === true) onRebuilt(tilePath(tile));
        return tiles;
      }
      return undefined;
    },

    async tile(name, root) {
      const fits = (hashes: Buffer): boolean => hashes.length === FULL_TILE_BYTES && rootOfHashes(hashes).equals(root);
      const stored = await fitting(source, tilePath(name), FULL_TILE_BYTES, fits);
      if (stored !== undefined) return stored;
      const made = await fromBelow(name.level, name.index, name.width);
      if (made === undefined || !fits(made)) return undefined;
      onRebuilt(tilePath(name));
      return made;
    },
  };
}
