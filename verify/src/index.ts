export { openCheckpoint, signCheckpoint } from "./checkpoint.ts";
export { openCosignatures, openWitnessed, type Cosignature } from "./cosignature.ts";
export { FormatError, VerifyError } from "./errors.ts";
export {
  appendHashes,
  appendSubtree,
  consistencyProof,
  copyRange,
  emptyRange,
  EMPTY_ROOT,
  HASH_BYTES,
  inclusionProof,
  leafHash,
  nodeHash,
  rootOf,
  rootOfHashes,
  subtreeRoot,
  verifyConsistency,
  verifyInclusion,
  type CompactRange,
  type NodeReader,
} from "./merkle.ts";
export {
  createCosigner,
  createSigner,
  formatCosignerKey,
  formatSignature,
  isKeyName,
  openNote,
  parseNote,
  parseSignerKey,
  parseVerifierKey,
  parseVerifierKeys,
  signatureLine,
  signNote,
  type Note,
  type NoteSignature,
  type NoteSigner,
  type NoteVerifier,
} from "./note.ts";
export { parseWitnessPolicy, witnessPolicy, type WitnessPolicy } from "./policy.ts";
export { formatProof, parseProof, verifyProof, type LogProof, type Proved } from "./proof.ts";
export {
  encodeBundle,
  FULL_TILE_BYTES,
  hashesInLevel,
  parseBundle,
  parseTilePath,
  partialTiles,
  TILE_WIDTH,
  tilePath,
  type TileName,
} from "./tiles.ts";
export { openFolder } from "./folder.ts";
export { verifyGrowth, type Growth } from "./growth.ts";
export { ReadError, type Listed, type LogSource } from "./source.ts";
export { openUrl, type UrlOptions } from "./url.ts";
export { chunkPath } from "./recordings.ts";
export { formatProblem, type Problem, type Report, type Totals } from "./report.ts";
export { verifyFolder, verifyLog, type VerifyOptions } from "./verify.ts";
export { formatCheckpoint, parseCheckpointText, type Checkpoint } from "./tree-head.ts";
