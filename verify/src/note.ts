import { hash, sign, verify, type KeyObject } from "node:crypto";
import {
  algorithmFor,
  algorithmOfType,
  exportPublicKey,
  exportSeed,
  importPublicKey,
  importSeed,
  u64,
  type Algorithm,
  type Role,
} from "./algorithms.ts";
import { decodeBase64, decodeUtf8 } from "./encoding.ts";
import { FormatError, VerifyError } from "./errors.ts";

/** C2SP signed-note (https://c2sp.org/signed-note). The text ends in a newline; nothing in it is trusted yet. */
export interface Note {
  readonly text: string;
  readonly signatures: readonly NoteSignature[];
}

export interface NoteSignature {
  readonly name: string;
  readonly keyId: number;
  /** What follows the four bytes of the key id. */
  readonly signature: Uint8Array;
}

export interface NoteVerifier {
  readonly name: string;
  readonly keyId: number;
  /** The verifier key, `name+keyid+base64(type ‖ public key)`, as other implementations take it. */
  readonly vkey: string;
  /** What its signatures mean: the log's own, a witness's, or either. */
  readonly roles: readonly Role[];
  /** The raw public key. Two keys of the same bytes are one signer, whatever they are called. */
  readonly publicKey: Uint8Array;
  verify(text: Uint8Array, signature: Uint8Array): boolean;
  /** When a signature was made, in seconds since 1970; undefined where its type has no time. Only of one that holds. */
  secondsOf(signature: Uint8Array): number | undefined;
}

export interface NoteSigner {
  readonly name: string;
  readonly keyId: number;
  readonly vkey: string;
  sign(text: Uint8Array): Uint8Array;
}

export const MAX_NOTE_BYTES = 1 << 20;
const MAX_SIGNATURES = 100; // the specification asks for at least 16

/**
 * Splits a signed note into its text and signatures. Nothing is verified: see `openNote`.
 * @throws FormatError for anything that the specification does not allow.
 */
export function parseNote(input: Uint8Array | string): Note {
  const bytes = typeof input === "string" ? Buffer.from(input, "utf8") : input;
  if (bytes.length > MAX_NOTE_BYTES) throw new FormatError(`a note has at most ${MAX_NOTE_BYTES} bytes`);
  const whole = decodeUtf8(bytes, "the note");
  if (typeof input === "string" && whole !== input) throw new FormatError("the note is not valid Unicode");
  if (/[\u0000-\u0009\u000b-\u001f]/.test(whole)) throw new FormatError("the note has a control character");
  const split = whole.lastIndexOf("\n\n");
  if (split < 0 || !whole.endsWith("\n")) throw new FormatError("the note has no signatures after an empty line");
  const lines = whole.slice(split + 2, -1).split("\n");
  if (lines.length > MAX_SIGNATURES) throw new FormatError(`a note has at most ${MAX_SIGNATURES} signatures`);
  return { text: whole.slice(0, split + 1), signatures: lines.map(parseSignatureLine) };
}

function parseSignatureLine(line: string): NoteSignature {
  const [dash, name, encoded, ...rest] = line.split(" ");
  if (dash !== "—" || name === undefined || encoded === undefined || rest.length > 0 || !isKeyName(name)) {
    throw new FormatError("a signature line is not: em dash, key name, base64");
  }
  const bytes = decodeBase64(encoded, "a signature");
  if (bytes.length < 5) throw new FormatError("a signature is too short");
  return { name, keyId: bytes.readUInt32BE(0), signature: bytes.subarray(4) };
}

/** Non-empty, without Unicode spaces, plus signs or control characters. */
export function isKeyName(name: string): boolean {
  return name !== "" && name.isWellFormed() && !/[\s\u0085\u0000-\u001f+]/u.test(name);
}

/**
 * Parses a note and verifies every signature by a key in `verifiers`. Signatures by other keys are ignored.
 * @returns the text, which is now authentic, and the signatures that hold.
 * @throws FormatError when it is malformed; VerifyError when a known key's signature does not hold, or there is none.
 */
export function openNote(input: Uint8Array | string, verifiers: readonly NoteVerifier[]): Note {
  const note = parseNote(input);
  const text = Buffer.from(note.text, "utf8");
  const seen = new Set<string>();
  const good: NoteSignature[] = [];
  for (const signature of note.signatures) {
    const known = verifiers.find((v) => v.name === signature.name && v.keyId === signature.keyId);
    if (known === undefined || seen.has(known.vkey)) continue;
    seen.add(known.vkey);
    if (!known.verify(text, signature.signature)) {
      throw new VerifyError(`the signature by ${known.name}+${hexId(known.keyId)} does not hold`);
    }
    good.push(signature);
  }
  if (good.length === 0) {
    const wanted = verifiers.map((v) => `${v.name}+${hexId(v.keyId)}`).join(", ");
    throw new VerifyError(`no signature by ${wanted === "" ? "any key: none was given" : wanted}`);
  }
  return { text: note.text, signatures: good };
}

/** Signs `text`, which must end in a newline, with every signer: two of them while a key is being replaced. */
export function signNote(text: string, signers: readonly NoteSigner[]): string {
  if (!text.endsWith("\n") || !text.isWellFormed() || /[\u0000-\u0009\u000b-\u001f]/.test(text)) {
    throw new FormatError("a note's text is Unicode without control characters, and ends in a newline");
  }
  if (signers.length === 0) throw new FormatError("a note needs a signer");
  const bytes = Buffer.from(text, "utf8");
  return `${text}\n${signers.map((signer) => signatureLine(signer, bytes)).join("")}`;
}

/** The line that a signer adds to a note with this text. */
export function signatureLine(signer: NoteSigner, text: Uint8Array): string {
  return formatSignature({ name: signer.name, keyId: signer.keyId, signature: signer.sign(text) });
}

/** One line: em dash, name, base64 of key id and signature. */
export function formatSignature({ name, keyId, signature }: NoteSignature): string {
  const id = Buffer.alloc(4);
  id.writeUInt32BE(keyId);
  return `— ${name} ${Buffer.concat([id, signature]).toString("base64")}\n`;
}

/**
 * Reads a verifier key such as `example.com/log+c74f20a3+ARpc2Qc…`.
 * @throws FormatError when it is malformed, its key id does not fit the key, or its algorithm is not known here.
 */
export function parseVerifierKey(vkey: string): NoteVerifier {
  const [name, id, ...rest] = vkey.split("+");
  const encoded = rest.join("+"); // base64 has plus signs of its own
  if (name === undefined || id === undefined || !isKeyName(name) || !/^[0-9a-f]{8}$/.test(id)) {
    throw new FormatError("a verifier key is name+keyid+base64");
  }
  const bytes = decodeBase64(encoded, "the verifier key");
  const algorithm = algorithmOfType(bytes[0]);
  if (algorithm === undefined) throw new FormatError("the verifier key's algorithm is not known here");
  const keyId = keyIdOf(name, bytes);
  if (hexId(keyId) !== id) throw new FormatError("the verifier key's id does not fit its name and key");
  const publicKey = bytes.subarray(1);
  const key = importPublicKey(algorithm, publicKey);
  const secondsOf = (signature: Uint8Array): number | undefined =>
    algorithm.timestamped ? readSeconds(signature) : undefined;
  return {
    ...{ name, keyId, vkey, publicKey, secondsOf },
    roles: algorithm.roles,
    verify(text, signature) {
      const at = algorithm.timestamped ? 8 : 0;
      const seconds = at === 0 ? 0 : readSeconds(signature);
      if (seconds === undefined || signature.length !== at + algorithm.signatureBytes) return false;
      const message = messageOf(algorithm, text, name, seconds);
      return message !== undefined && verify(null, message, key, signature.subarray(at));
    },
  };
}

/** Undefined for a time beyond 2^53 seconds: nobody has signed then, and a number could not hold it. */
function readSeconds(signature: Uint8Array): number | undefined {
  if (signature.length < 8) return undefined;
  const seconds = Number(Buffer.from(signature.buffer, signature.byteOffset, 8).readBigUInt64BE());
  return Number.isSafeInteger(seconds) ? seconds : undefined;
}

function messageOf(algorithm: Algorithm, text: Uint8Array, name: string, seconds: number): Uint8Array | undefined {
  try {
    return algorithm.message(text, name, seconds);
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}

/**
 * Reads one or several verifier keys, one to a line; empty lines and lines that start with `#` are skipped. Several are
 * needed after a log's key was replaced; all must have the same name.
 * @throws FormatError when there is none, one is malformed or a witness's, or the names differ.
 */
export function parseVerifierKeys(text: string): readonly NoteVerifier[] {
  const lines = text.split(/\r?\n/).map((line) => line.trim());
  const keys = lines.filter((line) => line !== "" && !line.startsWith("#")).map(parseVerifierKey);
  if (keys.length === 0) throw new FormatError("no verifier key was given");
  const witness = keys.find((key) => !key.roles.includes("log"));
  if (witness !== undefined) throw new FormatError(`${witness.name} is the key of a witness, and not of a log`);
  if (keys.some((key) => key.name !== keys[0]?.name)) throw new FormatError("the verifier keys are of different logs");
  return keys;
}

/**
 * A log's signer under `name`, which is its origin, for an Ed25519 or ML-DSA-44 private key. The second puts the time of
 * signing into its signatures, and signs checkpoints only.
 */
export function createSigner(name: string, privateKey: KeyObject, now: () => number = Date.now): NoteSigner {
  return signerFor("log", name, privateKey, now);
}

/**
 * A witness's signer under `name`: its signatures on a checkpoint are cosignatures (https://c2sp.org/tlog-cosignature).
 * Whoever calls `sign` must have checked the checkpoint against all that this witness has signed.
 */
export function createCosigner(name: string, privateKey: KeyObject, now: () => number = Date.now): NoteSigner {
  return signerFor("witness", name, privateKey, now);
}

function signerFor(role: Role, name: string, privateKey: KeyObject, now: () => number): NoteSigner {
  if (!isKeyName(name)) throw new FormatError("a key name is not empty and has neither spaces nor plus signs");
  const algorithm = algorithmFor(role, privateKey);
  const bytes = Buffer.concat([Uint8Array.of(algorithm.type), exportPublicKey(algorithm, privateKey)]);
  const keyId = keyIdOf(name, bytes);
  const vkey = `${name}+${hexId(keyId)}+${bytes.toString("base64")}`;
  return {
    ...{ name, keyId, vkey },
    sign(text) {
      const seconds = algorithm.timestamped ? Math.floor(now() / 1000) : 0;
      const signature = sign(null, algorithm.message(text, name, seconds), privateKey);
      return algorithm.timestamped ? Buffer.concat([u64(seconds), signature]) : signature;
    },
  };
}

/**
 * Reads the private form of Go's sumdb/note, `PRIVATE+KEY+name+keyid+base64(type ‖ seed)`, of a log or a witness.
 * @throws FormatError when it is malformed.
 */
export function parseSignerKey(skey: string, now: () => number = Date.now): NoteSigner {
  const match = /^PRIVATE\+KEY\+([^+]+)\+([0-9a-f]{8})\+(.+)$/.exec(skey);
  const [, name = "", id = "", encoded = ""] = match ?? [];
  const bytes = decodeBase64(encoded, "the signer key");
  const algorithm = algorithmOfType(bytes[0]);
  if (algorithm === undefined) throw new FormatError("the signer key is of no algorithm that is known here");
  const role = algorithm.roles.includes("witness") ? "witness" : "log"; // the same form where a type is for both
  const signer = signerFor(role, name, importSeed(algorithm, bytes.subarray(1)), now);
  if (hexId(signer.keyId) !== id) throw new FormatError("the signer key's id does not fit its name and key");
  return signer;
}

/** The inverse, for a witness: a secret in one line. */
export function formatCosignerKey(name: string, privateKey: KeyObject): string {
  const algorithm = algorithmFor("witness", privateKey);
  const { keyId } = createCosigner(name, privateKey);
  const secret = Buffer.concat([Uint8Array.of(algorithm.type), exportSeed(algorithm, privateKey)]);
  return `PRIVATE+KEY+${name}+${hexId(keyId)}+${secret.toString("base64")}`;
}

function keyIdOf(name: string, typeAndKey: Uint8Array): number {
  return hash("sha256", Buffer.concat([Buffer.from(`${name}\n`, "utf8"), typeAndKey]), "buffer").readUInt32BE(0);
}

function hexId(keyId: number): string {
  return keyId.toString(16).padStart(8, "0");
}
