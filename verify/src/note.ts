import { createPrivateKey, createPublicKey, hash, sign, verify, type KeyObject } from "node:crypto";
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
  verify(text: Uint8Array, signature: Uint8Array): boolean;
}

export interface NoteSigner {
  readonly name: string;
  readonly keyId: number;
  readonly vkey: string;
  sign(text: Uint8Array): Uint8Array;
}

const MAX_NOTE_BYTES = 1 << 20;
const MAX_SIGNATURES = 100; // the specification asks for at least 16
const ED25519 = 0x01;
const ED25519_SPKI = Buffer.from("302a300506032b6570032100", "hex"); // RFC 8410: the DER around 32 bytes of public key

/** One row for each signature type byte that is understood; the next algorithm is one more. */
const ALGORITHMS: Readonly<Record<number, (publicKey: Uint8Array) => KeyObject>> = {
  [ED25519]: (publicKey) => {
    if (publicKey.length !== 32) throw new FormatError("an Ed25519 verifier key has 32 bytes");
    return createPublicKey({ key: Buffer.concat([ED25519_SPKI, publicKey]), format: "der", type: "spki" });
  },
};

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
  return `${text}\n${signers.map((signer) => formatSignature(signer, signer.sign(bytes))).join("")}`;
}

function formatSignature(signer: NoteSigner, signature: Uint8Array): string {
  const id = Buffer.alloc(4);
  id.writeUInt32BE(signer.keyId);
  return `— ${signer.name} ${Buffer.concat([id, signature]).toString("base64")}\n`;
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
  const makeKey = ALGORITHMS[bytes[0] ?? 0];
  if (makeKey === undefined) throw new FormatError("the verifier key's algorithm is not known here");
  const keyId = keyIdOf(name, bytes);
  if (hexId(keyId) !== id) throw new FormatError("the verifier key's id does not fit its name and key");
  const key = makeKey(bytes.subarray(1));
  return { name, keyId, vkey, verify: (text, signature) => verify(null, text, key, signature) };
}

/**
 * Reads one or several verifier keys, one to a line; empty lines and lines that start with `#` are skipped. Several are
 * needed after a log's key was replaced; all must have the same name.
 * @throws FormatError when there is none, one is malformed, or the names differ.
 */
export function parseVerifierKeys(text: string): readonly NoteVerifier[] {
  const lines = text.split(/\r?\n/).map((line) => line.trim());
  const keys = lines.filter((line) => line !== "" && !line.startsWith("#")).map(parseVerifierKey);
  if (keys.length === 0) throw new FormatError("no verifier key was given");
  if (keys.some((key) => key.name !== keys[0]?.name)) throw new FormatError("the verifier keys are of different logs");
  return keys;
}

/** A signer for an Ed25519 private key, under `name`, which for a log is its origin. */
export function createSigner(name: string, privateKey: KeyObject): NoteSigner {
  if (!isKeyName(name)) throw new FormatError("a key name is not empty and has neither spaces nor plus signs");
  if (privateKey.type !== "private" || privateKey.asymmetricKeyType !== "ed25519") {
    throw new FormatError("a log signs with an Ed25519 private key");
  }
  const spki = createPublicKey(privateKey).export({ format: "der", type: "spki" });
  const bytes = Buffer.concat([Uint8Array.of(ED25519), spki.subarray(ED25519_SPKI.length)]);
  const keyId = keyIdOf(name, bytes);
  const vkey = `${name}+${hexId(keyId)}+${bytes.toString("base64")}`;
  return { name, keyId, vkey, sign: (text) => sign(null, text, privateKey) };
}

/**
 * Reads the private form of Go's sumdb/note, `PRIVATE+KEY+name+keyid+base64(type ‖ seed)`.
 * @throws FormatError when it is malformed.
 */
export function parseSignerKey(skey: string): NoteSigner {
  const match = /^PRIVATE\+KEY\+([^+]+)\+([0-9a-f]{8})\+(.+)$/.exec(skey);
  const [, name = "", id = "", encoded = ""] = match ?? [];
  const bytes = decodeBase64(encoded, "the signer key");
  if (bytes.length !== 33 || bytes[0] !== ED25519) throw new FormatError("the signer key is not an Ed25519 key");
  const pkcs8 = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), bytes.subarray(1)]); // RFC 8410
  const signer = createSigner(name, createPrivateKey({ key: pkcs8, format: "der", type: "pkcs8" }));
  if (hexId(signer.keyId) !== id) throw new FormatError("the signer key's id does not fit its name and key");
  return signer;
}

function keyIdOf(name: string, typeAndKey: Uint8Array): number {
  return hash("sha256", Buffer.concat([Buffer.from(`${name}\n`, "utf8"), typeAndKey]), "buffer").readUInt32BE(0);
}

function hexId(keyId: number): string {
  return keyId.toString(16).padStart(8, "0");
}
