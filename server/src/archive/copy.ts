import {
  appendHashes,
  emptyRange,
  HASH_BYTES,
  hashesInLevel,
  partialTiles,
  rootOf,
  rootOfHashes,
  TILE_WIDTH,
  tilePath,
  type Checkpoint,
  type TileName,
} from "@glasskey/verify";
import type { LogReader } from "../audit/read.ts";
import { GlassError } from "../core/errors.ts";
import { leavesOf } from "./fitting.ts";
import { chunksIn, type SealedChunk } from "./layout.ts";

/** A file of the log that is to be somewhere else, with the bytes it must have there. */
export interface LogPart {
  readonly path: string;
  readonly bytes: Uint8Array;
}

/** What one step of a copy found: the parts, the chunks that its entries tell of, and the index after its last entry. */
export interface Step {
  readonly parts: readonly LogPart[];
  readonly chunks: readonly SealedChunk[];
  readonly next: number;
}

/** The log up to one signed checkpoint. Whatever it gives fits that checkpoint: a store that was tampered with is not copied. */
export interface Copy {
  /**
   * What there is beyond `from`, in order, one bundle to a step: full tiles and bundles, each once it is full, and chunks
   * as soon as their entry is there.
   */
  stepsFrom(from: number): AsyncGenerator<Step>;
  /** The partial tiles of the checkpoint, and the partial bundle. */
  partialParts(): Promise<LogPart[]>;
}

/**
 * @param head is authentic: its signature was checked.
 * @throws GlassError `integrity`, here and in what it gives, where the store does not have what was signed.
 */
export async function openCopy(reader: LogReader, head: Checkpoint): Promise<Copy> {
  const { size } = head;
  const edge = new Map<number, { name: TileName; bytes: Buffer }>();
  for (const name of partialTiles(size)) edge.set(Number(name.level), { name, bytes: await read(reader, name) });
  const range = emptyRange();
  for (const [level, { bytes }] of [...edge].toReversed()) appendHashes(range, 8 * level, bytes);
  if (!rootOf(range).equals(head.root)) throw tampered(`the tiles of its ${size} entries do not have the signed root`);

  /** Full tiles that were read last and verified, one to a level. */
  const last = new Map<number, { index: number; bytes: Buffer }>();
  const verified = async (level: number, index: number): Promise<Buffer> => {
    const known = last.get(level);
    if (known?.index === index) return known.bytes;
    const atEdge = edge.get(level);
    if (atEdge !== undefined && index === atEdge.name.index) return atEdge.bytes;
    const name = { level, index, width: TILE_WIDTH };
    const bytes = await read(reader, name);
    const above = await verified(level + 1, Math.floor(index / TILE_WIDTH));
    const slot = (index % TILE_WIDTH) * HASH_BYTES;
    if (!rootOfHashes(bytes).equals(above.subarray(slot, slot + HASH_BYTES))) {
      throw tampered(`${tilePath(name)} does not have the hash of the tile above it`);
    }
    last.set(level, { index, bytes });
    return bytes;
  };
  const bundleOf = async (index: number, width: number): Promise<LogPart> => {
    const name = { level: "entries", index, width } as const;
    const bytes = await read(reader, name);
    if (leavesOf(bytes, width)?.equals(await verified(0, index)) !== true) {
      throw tampered(`${tilePath(name)} does not have the hashes of its tile`);
    }
    return { path: tilePath(name), bytes };
  };

  return {
    async *stepsFrom(from) {
      for (let next = from; next < size;) {
        const index = Math.floor(next / TILE_WIDTH);
        const first = index * TILE_WIDTH;
        const width = Math.min(TILE_WIDTH, size - first);
        const bundle = await bundleOf(index, width);
        const parts: LogPart[] = [];
        if (width === TILE_WIDTH) {
          parts.push(bundle);
          // The tile, and of those above it the ones that are full with it.
          for (let level = 0, at = index; ; level += 1, at = Math.floor(at / TILE_WIDTH)) {
            parts.push({ path: tilePath({ level, index: at, width: TILE_WIDTH }), bytes: await verified(level, at) });
            if (at % TILE_WIDTH !== TILE_WIDTH - 1) break;
          }
        }
        yield { parts, chunks: chunksIn(bundle.bytes, width, next - first), next: first + width };
        next = first + width;
      }
    },
    async partialParts() {
      const parts = [...edge.values()].map(({ name, bytes }) => ({ path: tilePath(name), bytes }));
      const width = hashesInLevel(0, size) % TILE_WIDTH;
      return width === 0 ? parts : [await bundleOf(Math.floor(size / TILE_WIDTH), width), ...parts];
    },
  };
}

async function read(reader: LogReader, name: TileName): Promise<Buffer> {
  const file = await reader.file(tilePath(name));
  if (file === undefined) throw tampered(`${tilePath(name)} is missing`);
  return file.bytes;
}

function tampered(what: string): GlassError {
  return new GlassError("integrity", `the log in the store is not what was signed, and is not copied: ${what}`, {
    next: "What is archived already is sound. Keep the store as it is, and find out who changed it.",
  });
}
