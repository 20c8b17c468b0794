export {
  formatCheckpoint,
  openCheckpoint,
  parseCheckpointText,
  signCheckpoint,
  type Checkpoint,
} from "./checkpoint.ts";
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
  createSigner,
  isKeyName,
  openNote,
  parseNote,
  parseSignerKey,
  parseVerifierKey,
  parseVerifierKeys,
  signNote,
  type Note,
  type NoteSignature,
  type NoteSigner,
  type NoteVerifier,
} from "./note.ts";
export { formatProof, parseProof, verifyProof, type LogProof } from "./proof.ts";
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
export { openFolder, ReadError, type Listed, type LogSource } from "./folder.ts";
export { chunkPath } from "./recordings.ts";
export { formatProblem, type Problem, type Report, type Totals } from "./report.ts";
export { verifyFolder, verifyLog, type VerifyOptions } from "./verify.ts";
