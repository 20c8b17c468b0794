import { decodeBase64, parseDecimal } from "./encoding.ts";
import { FormatError } from "./errors.ts";

/** What a checkpoint says (https://c2sp.org/tlog-checkpoint). */
export interface Checkpoint {
  readonly origin: string;
  /** Number of leaves. */
  readonly size: number;
  /** 32 bytes. */
  readonly root: Uint8Array;
}

/** The text that is signed. Extension lines are taken from others, and never written. */
export function formatCheckpoint({ origin, size, root }: Checkpoint): string {
  return `${origin}\n${size}\n${Buffer.from(root).toString("base64")}\n`;
}

/** @throws FormatError. Says nothing of signatures: see `openCheckpoint`. */
export function parseCheckpointText(text: string): Checkpoint {
  const lines = text.split("\n");
  const [origin, size, root] = lines;
  if (lines.pop() !== "" || lines.length < 3 || lines.includes("")) {
    throw new FormatError("a checkpoint has at least three lines, and no empty one");
  }
  const rootBytes = decodeBase64(root ?? "", "the checkpoint's root");
  if (rootBytes.length !== 32) throw new FormatError("the checkpoint's root does not have 32 bytes");
  return { origin: origin ?? "", size: parseDecimal(size ?? "", "the checkpoint's size"), root: rootBytes };
}
