import { HASH_BYTES } from "./merkle.ts";
import { ReadError, type LogSource } from "./source.ts";
import {
  encodeBundle,
  FULL_TILE_BYTES,
  MAX_BUNDLE_BYTES,
  parseTilePath,
  partialTiles,
  splitBundle,
  TILE_WIDTH,
  tilePath,
  type TileName,
} from "./tiles.ts";

/**
 * Reads the partial tiles ahead of everything else: in a folder that grows they are replaced soon after their
 * checkpoint, and a long replay would come to them last. Where one is gone already, the beginning of the full tile that
 * it became stands in for it, as tlog-tiles provides for.
 */
export async function withPartialTiles(source: LogSource, size: number): Promise<LogSource> {
  const ahead = new Map<string, Uint8Array>();
  for (const name of partialTiles(size)) {
    for (const level of name.level === 0 ? ([0, "entries"] as const) : [name.level]) {
      const partial = { ...name, level };
      try {
        const bytes = (await readTileFile(source, partial)) ?? (await beginningOfFull(source, partial));
        if (bytes !== undefined) ahead.set(tilePath(partial), bytes);
      } catch (error) {
        if (!(error instanceof ReadError)) throw error; // it is read again, and named then
      }
    }
  }
  return { ...source, read: (path, maxBytes) => ahead.get(path) ?? source.read(path, maxBytes) };
}

async function readTileFile(source: LogSource, name: TileName): Promise<Uint8Array | undefined> {
  return source.read(tilePath(name), name.level === "entries" ? MAX_BUNDLE_BYTES : FULL_TILE_BYTES);
}

async function beginningOfFull(source: LogSource, name: TileName): Promise<Uint8Array | undefined> {
  const full = await readTileFile(source, { ...name, width: TILE_WIDTH });
  if (full === undefined) return undefined;
  if (name.level !== "entries") return full.subarray(0, name.width * HASH_BYTES);
  return encodeBundle(splitBundle(full, TILE_WIDTH).entries.slice(0, name.width));
}

/**
 * Has the next tiles and bundles of the lowest level on their way while one is worked on. Memory is that of
 * `source.parallel` bundles. A source without it is handed back as it is.
 */
export function withReadAhead(source: LogSource, size: number): LogSource {
  const pairs = Math.floor((source.parallel ?? 1) / 2); // a tile and its bundle
  if (pairs === 0) return source;
  const full = Math.floor(size / TILE_WIDTH);
  const underWay = new Map<string, Promise<Uint8Array | undefined>>();
  let next = 0; // the first index that was not asked for
  const askUpTo = (end: number): void => {
    for (; next < Math.min(end, full); next += 1) {
      for (const level of [0, "entries"] as const) {
        const name = { level, index: next, width: TILE_WIDTH };
        const asked = readTileFile(source, name);
        asked.catch(() => {}); // told to whoever reads it
        underWay.set(tilePath(name), asked);
      }
    }
  };
  return {
    ...source,
    read(path, maxBytes) {
      const name = parseTilePath(path);
      const lowest = name !== undefined && (name.level === 0 || name.level === "entries") && name.width === TILE_WIDTH;
      if (lowest) askUpTo(name.index + 1 + pairs);
      const asked = underWay.get(path);
      underWay.delete(path);
      return asked ?? source.read(path, maxBytes);
    },
  };
}
