/** Bytes that do not have the form they claim. The message names the rule that they break. */
export class FormatError extends Error {
  override readonly name = "FormatError";
}

/** A note, proof or checkpoint of good form whose signature, key or hashes do not hold. */
export class VerifyError extends Error {
  override readonly name = "VerifyError";
}
