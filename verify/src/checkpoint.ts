import { FormatError, VerifyError } from "./errors.ts";
import { openNote, signNote, type NoteSigner, type NoteVerifier } from "./note.ts";
import { formatCheckpoint, parseCheckpointText, type Checkpoint } from "./tree-head.ts";

export function signCheckpoint(checkpoint: Checkpoint, signers: readonly NoteSigner[]): string {
  return signNote(formatCheckpoint(checkpoint), signers);
}

/**
 * Verifies a signed checkpoint against the log's keys. The origin must be the keys' name.
 * @throws FormatError or VerifyError.
 */
export function openCheckpoint(note: Uint8Array | string, verifiers: readonly NoteVerifier[]): Checkpoint {
  const witness = verifiers.find((verifier) => !verifier.roles.includes("log"));
  if (witness !== undefined) throw new FormatError(`${witness.name} is the key of a witness, and not of a log`);
  const checkpoint = parseCheckpointText(openNote(note, verifiers).text);
  if (verifiers.some((verifier) => verifier.name !== checkpoint.origin)) {
    throw new VerifyError(`the origin "${checkpoint.origin}" is not the log that the key is for`);
  }
  return checkpoint;
}
