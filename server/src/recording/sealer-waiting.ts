import type { LogEvent } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import { CHUNK_PLAIN_BYTES, readChunkHeader, type SealedChunk } from "./chunk.ts";
import type { Progress } from "./sealer-progress.ts";

export interface Item {
  readonly bytes: Buffer;
  readonly seq: number;
  readonly timeUs: number;
  readonly frame: number;
  readonly ends: boolean;
}

/** One session's records that are not sealed yet. */
export interface Waiting {
  readonly session: string;
  items: Item[];
  bytes: number;
  sinceMs: number;
  ended: boolean;
  /** Undefined until the store was asked. */
  progress: Progress | undefined;
  /** The store does not know this session: the first frame that has to stay in the journal. */
  pinned: number | undefined;
  /** A chunk file from before a crash that no row tells of ends with this record. */
  boundary: number | undefined;
}

export interface Due {
  readonly waiting: Waiting;
  readonly chunk: SealedChunk;
  readonly before: number;
  readonly items: number;
  readonly frame: number;
  readonly complete: boolean;
}

/** The end of the next chunk: as many items as fit, at least one; or exactly up to a boundary that was there before. */
export function cut(items: readonly Item[], from: number, boundary: number | undefined): number {
  let end = from;
  let bytes = 0;
  while (end < items.length) {
    const item = items[end] as Item;
    if (end > from && bytes + item.bytes.length > CHUNK_PLAIN_BYTES) break;
    bytes += item.bytes.length;
    end++;
    if (item.seq === boundary) break;
  }
  return end;
}

export function fresh(session: string, progress: Progress | undefined): Waiting {
  return {
    session,
    items: [],
    bytes: 0,
    sinceMs: 0,
    ended: progress?.complete ?? false,
    progress,
    pinned: undefined,
    boundary: undefined,
  };
}

export function tryHeader(bytes: Buffer): ReturnType<typeof readChunkHeader> | undefined {
  try {
    return readChunkHeader(bytes);
  } catch (error) {
    if (error instanceof GlassError) return undefined; // no chunk; it is not referred to and will not be
    throw error;
  }
}

/** The log's entry for a chunk that is committed in the same transaction. */
export function sealedEvent(chunk: SealedChunk, grant: string | undefined, at: Date): LogEvent {
  return {
    type: "recording.sealed",
    at,
    actor: "glasskey",
    grant,
    session: chunk.session,
    data: {
      chunk: chunk.chunk,
      sha256: chunk.sha256.toString("hex"),
      bytes: chunk.file.length,
      firstSeq: chunk.firstSeq,
      lastSeq: chunk.lastSeq,
    },
  };
}
