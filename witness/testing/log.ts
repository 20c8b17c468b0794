import {
  consistencyProof,
  createSigner,
  leafHash,
  nodeHash,
  rootOfHashes,
  signCheckpoint,
  type NoteSigner,
} from "@glasskey/verify";
import { generateKeyPairSync } from "node:crypto";

/** A log that a test grows, and what it sends to a witness. */
export interface GrowingLog {
  readonly origin: string;
  readonly signer: NoteSigner;
  append(count: number): void;
  size(): number;
  /** The signed checkpoint at a size. */
  checkpoint(size: number): string;
  /** The body of `add-checkpoint` from one size to another. */
  body(oldSize: number, size: number): Promise<string>;
  /** Another history under the same key, which differs from entry `from` on. */
  fork(from: number): GrowingLog;
}

export function growingLog(
  origin = "glasskey.test/log",
  signer = createSigner(origin, generateKeyPairSync("ed25519").privateKey),
  leaves: Buffer[] = [],
): GrowingLog {
  const body = async (oldSize: number, size: number): Promise<string> => {
    const proof =
      oldSize > size ? [] : await consistencyProof(oldSize, size, async (height, index) => node(leaves, height, index));
    const lines = [`old ${oldSize}`, ...proof.map((hash) => hash.toString("base64")), "", checkpoint(size)];
    return lines.join("\n");
  };
  const checkpoint = (size: number): string =>
    signCheckpoint({ origin, size, root: rootOfHashes(Buffer.concat(leaves.slice(0, size))) }, [signer]);
  return {
    ...{ origin, signer, checkpoint, body },
    append(count) {
      for (let i = 0; i < count; i += 1) leaves.push(leafHash(Buffer.from(`{"n":${leaves.length}}`)));
    },
    size: () => leaves.length,
    fork: (from) =>
      growingLog(origin, signer, [...leaves.slice(0, from), ...leaves.slice(from).map((leaf) => leafHash(leaf))]),
  };
}

function node(leaves: readonly Buffer[], height: number, index: number): Buffer {
  if (height === 0) return leaves[index] ?? Buffer.alloc(32);
  return nodeHash(node(leaves, height - 1, index * 2), node(leaves, height - 1, index * 2 + 1));
}
