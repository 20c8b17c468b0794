import { parseDecimal } from "./encoding.ts";
import { FormatError } from "./errors.ts";
import { HASH_BYTES, hashLeafInto } from "./merkle.ts";

/** C2SP tlog-tiles (https://c2sp.org/tlog-tiles): hashes and entries in files of 256. */
export const TILE_WIDTH = 256;
export const FULL_TILE_BYTES = TILE_WIDTH * HASH_BYTES;
export const MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + 65_535);
const MAX_LEVEL = 63;

/** Which tile, and how many hashes or entries it has (256: a full one). `entries` is the bundle beside a level 0 tile. */
export interface TileName {
  readonly level: number | "entries";
  readonly index: number;
  readonly width: number;
}

/** `tile/0/x001/x234/067`, `tile/entries/000.p/12`. */
export function tilePath({ level, index, width }: TileName): string {
  return `tile/${level}/${encodeIndex(index)}${width === TILE_WIDTH ? "" : `.p/${width}`}`;
}

/** The inverse of `tilePath`, or undefined for a path that is none: another spelling is not the same tile. */
export function parseTilePath(path: string): TileName | undefined {
  const match = /^tile\/(entries|\d{1,2})\/((?:x\d{3}\/){0,5}\d{3})(?:\.p\/(\d{1,3}))?$/.exec(path);
  const [, level, index, width] = match ?? [];
  if (level === undefined || index === undefined) return undefined;
  const name = {
    level: level === "entries" ? level : Number(level),
    index: Number(index.replaceAll(/[x/]/g, "")),
    width: width === undefined ? TILE_WIDTH : Number(width),
  } as const;
  const inRange = (name.level === "entries" || name.level <= MAX_LEVEL) && name.width > 0 && name.width <= TILE_WIDTH;
  return inRange && tilePath(name) === path ? name : undefined;
}

function encodeIndex(index: number): string {
  const last = String(index % 1000).padStart(3, "0");
  let path = last;
  for (let rest = Math.floor(index / 1000); rest > 0; rest = Math.floor(rest / 1000)) {
    path = `x${String(rest % 1000).padStart(3, "0")}/${path}`;
  }
  return path;
}

/** How many hashes a level has in a tree of `size`: one for each full tile below, or each leaf. */
export function hashesInLevel(level: number, size: number): number {
  return Math.floor(size / TILE_WIDTH ** level);
}

/** The tiles of a tree of `size` that are not full: at most one for a level, rightmost. */
export function partialTiles(size: number): TileName[] {
  const tiles: TileName[] = [];
  for (let level = 0; hashesInLevel(level, size) > 0; level += 1) {
    const count = hashesInLevel(level, size);
    const width = count % TILE_WIDTH;
    if (width > 0) tiles.push({ level, index: Math.floor(count / TILE_WIDTH), width });
  }
  return tiles;
}

/** An entry bundle: each entry behind its length in two bytes, big-endian. */
export function encodeBundle(entries: readonly Uint8Array[]): Buffer {
  const parts: Uint8Array[] = [];
  for (const entry of entries) {
    if (entry.length > 65_535) throw new FormatError("an entry has at most 65,535 bytes");
    parts.push(Uint8Array.of(entry.length >> 8, entry.length & 0xff), entry);
  }
  return Buffer.concat(parts);
}

/** @throws FormatError unless the bytes are exactly `width` entries. The entries are views, not copies. */
export function parseBundle(bytes: Uint8Array, width: number): Uint8Array[] {
  const { entries, problem } = splitBundle(bytes, width);
  if (problem !== undefined) throw new FormatError(problem);
  return entries;
}

/** The same for bytes that may be damaged: the entries before the damage, and what is wrong, if anything. */
export function splitBundle(bytes: Uint8Array, width: number): { entries: Uint8Array[]; problem?: string } {
  const entries: Uint8Array[] = [];
  let offset = 0;
  while (offset < bytes.length) {
    if (entries.length === width) return { entries, problem: `it goes on after its ${width} entries` };
    const length = ((bytes[offset] ?? 0) << 8) | (bytes[offset + 1] ?? 0);
    const end = offset + 2 + length;
    if (end > bytes.length) return { entries, problem: "it ends in the middle of an entry" };
    entries.push(bytes.subarray(offset + 2, end));
    offset = end;
  }
  if (entries.length < width) return { entries, problem: `it has ${entries.length} entries and not ${width}` };
  return { entries };
}

/**
 * The leaf hashes of a bundle's entries, concatenated. The byte before an entry, the end of its length, is made the 0x00
 * that a leaf hash starts with and then put back: hashing in place is what makes verification fast.
 */
export function bundleLeafHashes(entries: readonly Uint8Array[]): Buffer {
  const out = Buffer.allocUnsafe(entries.length * HASH_BYTES);
  for (const [i, entry] of entries.entries()) {
    const prefixed = Buffer.from(entry.buffer, entry.byteOffset - 1, entry.length + 1);
    const [saved = 0] = prefixed;
    prefixed[0] = 0x00;
    hashLeafInto(prefixed, out, i * HASH_BYTES);
    prefixed[0] = saved;
  }
  return out;
}

/** A decimal file name such as that of a kept checkpoint or a chunk, or undefined. */
export function parseNumberName(name: string): number | undefined {
  try {
    return parseDecimal(name, "the name");
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}
