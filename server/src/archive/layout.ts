import { parseBundle, chunkPath } from "@glasskey/verify";
import { isId } from "../core/ids.ts";

/**
 * Paths of an archive: those of the public layout (docs/audit-log.md), except that nothing is ever replaced. So there is
 * no `checkpoint`, only dated ones, and a checkpoint that witnesses signed lies beside, under a name of its own.
 */
export const CHECKPOINTS = "checkpoints";
export const WITNESSED = "witnessed";

export const datedPath = (size: number): string => `${CHECKPOINTS}/${size}`;
export const witnessedPath = (size: number): string => `${WITNESSED}/${size}`;

export const MAX_NOTE_BYTES = 64 * 1024;
export const MAX_BUNDLE_BYTES = 256 * (2 + 65_535);

/** The size in a path that {@link datedPath} or {@link witnessedPath} made; undefined for any other. */
export function sizeInPath(path: string): number | undefined {
  const digits = /^(?:checkpoints|witnessed)\/(0|[1-9]\d{0,15})$/.exec(path)?.[1];
  const size = Number(digits);
  return digits !== undefined && Number.isSafeInteger(size) ? size : undefined;
}

/** A sealed chunk, as its entry in the log names it. */
export interface SealedChunk {
  readonly session: string;
  readonly chunk: number;
  readonly path: string;
  /** Hex. */
  readonly sha256: string;
}

/** The chunks that the entries of a bundle from position `from` on tell of. Entries are ours, and verified by whoever asks. */
export function chunksIn(bundle: Uint8Array, width: number, from: number): SealedChunk[] {
  return parseBundle(bundle, width)
    .slice(from)
    .map(sealedChunk)
    .filter((chunk) => chunk !== undefined);
}

function sealedChunk(entry: Uint8Array): SealedChunk | undefined {
  const text = Buffer.from(entry.buffer, entry.byteOffset, entry.length).toString("utf8");
  if (!text.includes('"recording.sealed"')) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null || !("type" in value) || value.type !== "recording.sealed")
    return undefined;
  if (!("session" in value) || typeof value.session !== "string" || !isId("session", value.session)) return undefined;
  if (!("data" in value) || typeof value.data !== "object" || value.data === null) return undefined;
  const data = value.data as Readonly<Record<string, unknown>>;
  const { chunk, sha256 } = data;
  if (typeof chunk !== "number" || !Number.isSafeInteger(chunk) || chunk < 0) return undefined;
  if (typeof sha256 !== "string" || !/^[0-9a-f]{64}$/.test(sha256)) return undefined;
  return { session: value.session, chunk, path: chunkPath(value.session, chunk), sha256 };
}
