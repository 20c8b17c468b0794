import { openCheckpoint } from "./checkpoint.ts";
import { openWitnessed, type Cosignature } from "./cosignature.ts";
import { decodeBase64, decodeUtf8, parseDecimal } from "./encoding.ts";
import { FormatError, VerifyError } from "./errors.ts";
import { leafHash, verifyInclusion } from "./merkle.ts";
import { parseVerifierKeys } from "./note.ts";
import type { WitnessPolicy } from "./policy.ts";
import type { Checkpoint } from "./tree-head.ts";

/** A proof that an entry is in the log, in one file (https://c2sp.org/tlog-proof). */
export interface LogProof {
  readonly index: number;
  /** RFC 6962 inclusion proof, from the leaf's sibling up. */
  readonly hashes: readonly Uint8Array[];
  /** The signed checkpoint, verbatim. */
  readonly checkpoint: string;
  /** Anything the sender added. Nothing vouches for it. */
  readonly extra?: Uint8Array;
}

const HEADER = "c2sp.org/tlog-proof@v1";
const MAX_HASHES = 63;

export function formatProof(proof: LogProof): string {
  const lines = [
    HEADER,
    ...(proof.extra === undefined ? [] : [`extra ${Buffer.from(proof.extra).toString("base64")}`]),
    `index ${proof.index}`,
    ...proof.hashes.map((h) => Buffer.from(h).toString("base64")),
  ];
  return `${lines.join("\n")}\n\n${proof.checkpoint}`;
}

/** @throws FormatError. Nothing is verified: see `verifyProof`. */
export function parseProof(input: Uint8Array | string): LogProof {
  const text = typeof input === "string" ? input : decodeUtf8(input, "the proof");
  const split = text.indexOf("\n\n");
  if (split < 0) throw new FormatError("the proof has no checkpoint after an empty line");
  const [header, ...lines] = text.slice(0, split).split("\n");
  if (header !== HEADER) throw new FormatError(`the proof does not start with ${HEADER}`);
  const extra = lines[0]?.startsWith("extra ") ? decodeBase64(lines.shift()?.slice(6) ?? "", "extra") : undefined;
  const index = lines.shift();
  if (index === undefined || !index.startsWith("index ")) throw new FormatError("the proof has no index");
  if (lines.length > MAX_HASHES) throw new FormatError(`a proof has at most ${MAX_HASHES} hashes`);
  const hashes = lines.map((line) => decodeBase64(line, "a hash"));
  if (hashes.some((h) => h.length !== 32)) throw new FormatError("a hash has 32 bytes");
  return {
    index: parseDecimal(index.slice(6), "the index"),
    hashes,
    checkpoint: text.slice(split + 2),
    ...(extra === undefined ? {} : { extra }),
  };
}

/** What a proof that holds says. */
export interface Proved extends Checkpoint {
  readonly index: number;
  /** Of the policy's witnesses; none where no policy was given. */
  readonly cosignatures: readonly Cosignature[];
}

/**
 * Verifies that `entry`, byte for byte, is in the log of `vkey` (one or more verifier keys, one to a line), and where a
 * policy is given, that enough witnesses saw the checkpoint that covers it.
 * @throws FormatError or VerifyError that says which part does not hold.
 */
export function verifyProof(options: {
  proof: Uint8Array | string;
  entry: Uint8Array;
  vkey: string;
  witnesses?: WitnessPolicy | undefined;
}): Proved {
  const proof = parseProof(options.proof);
  const verifiers = parseVerifierKeys(options.vkey);
  const checkpoint =
    options.witnesses === undefined
      ? { ...openCheckpoint(proof.checkpoint, verifiers), cosignatures: [] }
      : openWitnessed(proof.checkpoint, verifiers, options.witnesses);
  if (proof.index >= checkpoint.size) throw new VerifyError("the index is beyond the checkpoint");
  if (!verifyInclusion(leafHash(options.entry), proof.index, checkpoint.size, proof.hashes, checkpoint.root)) {
    throw new VerifyError(`the entry is not the one at index ${proof.index}`);
  }
  return { ...checkpoint, index: proof.index };
}
