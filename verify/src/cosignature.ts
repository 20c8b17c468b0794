import { openCheckpoint } from "./checkpoint.ts";
import { FormatError, VerifyError } from "./errors.ts";
import { formatSignature, openNote, parseNote, type NoteVerifier } from "./note.ts";
import type { WitnessPolicy } from "./policy.ts";
import type { Checkpoint } from "./tree-head.ts";

/** One witness's word that a checkpoint goes on from all that it saw of the log (https://c2sp.org/tlog-cosignature). */
export interface Cosignature {
  /** The witness's key name. */
  readonly name: string;
  readonly vkey: string;
  /** When the witness says that it signed, since 1970. Nothing else vouches for it. */
  readonly seconds: number;
  /** The signature line, with its line end, to be added to another copy of the same checkpoint. */
  readonly line: string;
}

/**
 * The cosignatures on a note by the given witnesses, each at most once; none is an answer too. Lines by others are
 * ignored. Says nothing of the log's own signature: see `openWitnessed`.
 * @throws FormatError when the note is malformed; VerifyError when a given witness's signature does not hold.
 */
export function openCosignatures(
  note: Uint8Array | string,
  witnesses: readonly NoteVerifier[],
): readonly Cosignature[] {
  const log = witnesses.find((witness) => !witness.roles.includes("witness"));
  if (log !== undefined) throw new FormatError(`${log.name} is the key of a log, and not of a witness`);
  const known = (name: string, keyId: number): NoteVerifier | undefined =>
    witnesses.find((witness) => witness.name === name && witness.keyId === keyId);
  if (!parseNote(note).signatures.some(({ name, keyId }) => known(name, keyId) !== undefined)) return [];
  return openNote(note, witnesses).signatures.flatMap((signature) => {
    const by = known(signature.name, signature.keyId);
    const seconds = by?.secondsOf(signature.signature);
    if (by === undefined || seconds === undefined) return [];
    return [{ name: by.name, vkey: by.vkey, seconds, line: formatSignature(signature) }];
  });
}

/**
 * Verifies a checkpoint that the log signed and enough witnesses cosigned.
 * @throws FormatError when it is malformed, or a witness of the policy has the log's own key; VerifyError when a
 *   signature does not hold, the log's is missing, or the policy is not met.
 */
export function openWitnessed(
  note: Uint8Array | string,
  log: readonly NoteVerifier[],
  policy: WitnessPolicy,
): Checkpoint & { readonly cosignatures: readonly Cosignature[] } {
  const own = policy.keys.find((witness) => log.some((key) => Buffer.compare(key.publicKey, witness.publicKey) === 0));
  if (own !== undefined) throw new FormatError(`the witness ${own.name} has the key of the log itself`);
  const checkpoint = openCheckpoint(note, log);
  const cosignatures = openCosignatures(note, policy.keys);
  if (!policy.isMetBy(cosignatures.map(({ vkey }) => vkey))) {
    const names = [...new Set(cosignatures.map(({ name }) => name))];
    const by = names.length === 0 ? "by none" : `by ${names.join(", ")} only`;
    throw new VerifyError(`is cosigned ${by}, and the policy asks for ${policy.description}`);
  }
  return { ...checkpoint, cosignatures };
}
