import { randomBytes } from "node:crypto";
import {
  certificateName,
  isCertificateName,
  isKeyType,
  MAX_KEY_BYTES,
  parsePublicKey,
  plainName,
  readKeyFields,
  verifySignature,
  type PublicKey,
} from "./keys.ts";
import { DISCONNECT, SshError, type Signer } from "./types.ts";
import { Reader, Writer } from "./wire.ts";

/*
 * OpenSSH certificates: https://cvsweb.openbsd.org/src/usr.bin/ssh/PROTOCOL.certkeys (draft-miller-ssh-cert).
 * Times in a certificate are seconds since 1970, unsigned, 64 bits; everywhere else here they are Dates.
 */

export type CertificateType = "user" | "host";

/** What a certificate says. Nothing of it is to be believed before {@link verifyCertificate}. */
export interface Certificate {
  /** Such as `ssh-ed25519-cert-v01@openssh.com`. */
  readonly format: string;
  readonly blob: Buffer;
  /** The key that is certified. */
  readonly key: PublicKey;
  readonly serial: bigint;
  readonly type: CertificateType;
  readonly keyId: string;
  readonly principals: readonly string[];
  /** Seconds since 1970, both; the first second of validity, and the first after it. */
  readonly validAfter: bigint;
  readonly validBefore: bigint;
  readonly criticalOptions: ReadonlyMap<string, string>;
  readonly extensions: ReadonlyMap<string, string>;
  /** Key blob of who signed it. */
  readonly authority: Buffer;
  readonly signature: Buffer;
  /** The bytes that the signature is over. */
  readonly signed: Buffer;
}

export interface CertificateFields {
  /** Plain key blob of the subject. */
  readonly key: Uint8Array;
  readonly type: CertificateType;
  readonly serial: bigint;
  readonly keyId: string;
  readonly principals: readonly string[];
  readonly validAfter: Date;
  readonly validBefore: Date;
  /** By name; the value is text (`source-address`) or empty (flags). Sorted here. */
  readonly criticalOptions?: Readonly<Record<string, string>>;
  readonly extensions?: Readonly<Record<string, string>>;
  /** 32 random bytes unless given; given only where the same input must give the same certificate. */
  readonly nonce?: Uint8Array;
}

const TYPES = { user: 1, host: 2 } as const;
const MAX_PRINCIPALS = 256; // as OpenSSH
const MAX_OPTIONS = 64;
const MAX_KEY_ID_BYTES = 1024;
const MAX_PRINCIPAL_BYTES = 1024;
const MAX_OPTION_BYTES = 8 * 1024;

/**
 * Makes a certificate. The subject may have any key type; the authority signs with its own algorithm.
 * @returns the blob, as {@link publicKeyLine} or a signer takes it
 * @throws SshError for what nobody should sign: no principals (valid for everybody, to sshd), no validity, a certificate as
 *   the subject or authority
 */
export function issueCertificate(fields: CertificateFields, authority: Signer): Buffer {
  const { blob, type: keyType } = parsePublicKey(fields.key);
  const signedBy = parsePublicKey(authority.blob);
  if (fields.principals.length === 0) throw refused("a certificate without principals is valid for every user");
  if (fields.principals.length > MAX_PRINCIPALS) throw refused(`more than ${MAX_PRINCIPALS} principals`);
  for (const text of [...fields.principals, fields.keyId]) {
    if (text === "" || text.includes("\0")) throw refused("an empty principal or key id, or one with a NUL");
  }
  const [validAfter, validBefore] = [seconds(fields.validAfter), seconds(fields.validBefore)];
  if (validAfter >= validBefore) throw refused("a certificate that is never valid");
  const nonce = fields.nonce ?? randomBytes(32);
  if (nonce.length < 16) throw refused("a nonce that is too short");
  const keyFields = new Reader(blob);
  keyFields.string();
  const signed = new Writer()
    .string(certificateName(keyType))
    .string(nonce)
    .raw(keyFields.rest())
    .uint64(fields.serial)
    .uint32(TYPES[fields.type])
    .string(fields.keyId)
    .string(strings(fields.principals))
    .uint64(validAfter)
    .uint64(validBefore)
    .string(options(fields.criticalOptions ?? {}))
    .string(options(fields.extensions ?? {}))
    .string("") // reserved
    .string(signedBy.blob)
    .done();
  return new Writer().raw(signed).string(authority.sign(signed)).done();
}

/**
 * Takes a certificate apart and checks its form, strictly: every length bounded, options sorted and unique, nothing left over,
 * an authority that is a plain key. The signature and all that it says are {@link verifyCertificate}'s to judge.
 * @param input untrusted; copied
 * @throws SshError in words that hold nothing of the input
 */
export function parseCertificate(input: Uint8Array): Certificate {
  if (input.length > MAX_KEY_BYTES) throw refused("a certificate that is too long");
  const blob = Buffer.from(input);
  const reader = new Reader(blob);
  const format = reader.name();
  const plain = plainName(format);
  if (!isCertificateName(format) || !isKeyType(plain) || certificateName(plain) !== format) {
    throw refused("this is no certificate of a type that is taken");
  }
  if (reader.string(256).length < 16) throw refused("a certificate whose nonce is too short");
  const key = readKeyFields(plain, reader);
  const serial = reader.uint64();
  const typeNumber = reader.uint32();
  if (typeNumber !== TYPES.user && typeNumber !== TYPES.host) throw refused("a certificate that is for nothing known");
  const keyId = reader.text(MAX_KEY_ID_BYTES);
  const principals = readStrings(reader.string());
  const validAfter = reader.uint64();
  const validBefore = reader.uint64();
  const criticalOptions = readOptions(reader.string());
  const extensions = readOptions(reader.string());
  if (reader.string().length > 0) throw refused("a certificate whose reserved field is in use");
  const authority = Buffer.from(reader.string(MAX_KEY_BYTES));
  parsePublicKey(authority); // refuses a nested certificate and a weak key
  const signed = Buffer.from(blob.subarray(0, reader.offset));
  const signature = Buffer.from(reader.string(MAX_KEY_BYTES));
  reader.end();
  const type = typeNumber === TYPES.user ? "user" : "host";
  const validity = { validAfter, validBefore };
  return {
    ...{ format, blob, key, serial, type, keyId, principals, ...validity },
    ...{ criticalOptions, extensions, authority, signature, signed },
  };
}

export interface Wanted {
  readonly type: CertificateType;
  /** Key blobs of the authorities that are trusted for this; an empty list trusts nobody. */
  readonly authorities: readonly Uint8Array[];
  /** Must be among the certificate's principals, exactly. */
  readonly principal: string;
  readonly now: Date;
  /** Critical options that the caller enforces. Any other one refuses the certificate. */
  readonly understood?: readonly string[];
}

/**
 * Judges a certificate: trusted authority, its signature, type, principal, validity, critical options.
 * @throws SshError that says which of them it is
 */
export function verifyCertificate(certificate: Certificate, wanted: Wanted): void {
  const { authority, principals, signature, signed } = certificate;
  if (certificate.type !== wanted.type)
    throw refused(`a ${certificate.type} certificate where a ${wanted.type} certificate is wanted`);
  // Before the signature: a stranger's certificate costs no verification.
  if (!wanted.authorities.some((one) => authority.equals(one)))
    throw refused("the certificate is not signed by an authority that is trusted here");
  const by = parsePublicKey(authority);
  if (!verifySignature(signatureAlgorithm(signature), by, signed, signature))
    throw refused("the certificate's signature is wrong");
  if (principals.length === 0) throw refused("the certificate names nobody, which would mean everybody");
  if (wanted.principal === "" || !principals.includes(wanted.principal))
    throw refused("the certificate is for another name");
  const now = seconds(wanted.now);
  if (now < certificate.validAfter) throw refused("the certificate is not valid yet");
  if (now >= certificate.validBefore) throw refused("the certificate has expired");
  for (const option of certificate.criticalOptions.keys()) {
    if (!(wanted.understood ?? []).includes(option))
      throw refused("the certificate has a critical option that is not known here");
  }
}

/** Seconds since 1970 of an instant, rounded down. @throws SshError before 1970 and for no instant at all */
function seconds(at: Date): bigint {
  const ms = at.getTime();
  if (!Number.isFinite(ms) || ms < 0) throw refused("a time that is none");
  return BigInt(Math.floor(ms / 1000));
}

function signatureAlgorithm(signature: Buffer): string {
  return new Reader(signature).name();
}

function strings(values: readonly string[]): Buffer {
  const writer = new Writer();
  for (const value of values) writer.string(value);
  return writer.done();
}

/** Name and value in pairs, by name; a value is a string within the string, and a flag's is empty. */
function options(values: Readonly<Record<string, string>>): Buffer {
  const writer = new Writer();
  for (const name of Object.keys(values).toSorted(byBytes)) {
    const value = values[name] ?? "";
    writer.string(name).string(value === "" ? "" : new Writer().string(value).done());
  }
  return writer.done();
}

function readStrings(bytes: Buffer): string[] {
  const reader = new Reader(bytes);
  const found: string[] = [];
  while (reader.remaining > 0) {
    if (found.length >= MAX_PRINCIPALS) throw refused(`a certificate with more than ${MAX_PRINCIPALS} principals`);
    const text = reader.text(MAX_PRINCIPAL_BYTES);
    if (text === "" || text.includes("\0")) throw refused("a certificate with an empty principal, or one with a NUL");
    found.push(text);
  }
  return found;
}

function readOptions(bytes: Buffer): ReadonlyMap<string, string> {
  const reader = new Reader(bytes);
  const found = new Map<string, string>();
  let last: string | undefined;
  while (reader.remaining > 0) {
    if (found.size >= MAX_OPTIONS) throw refused(`a certificate with more than ${MAX_OPTIONS} options`);
    const name = reader.name();
    if (last !== undefined && byBytes(last, name) >= 0)
      throw refused("a certificate whose options are not sorted, or named twice");
    last = name;
    const value = reader.string(MAX_OPTION_BYTES);
    if (value.length === 0) found.set(name, "");
    else {
      const inner = new Reader(value);
      found.set(name, inner.text(MAX_OPTION_BYTES));
      inner.end();
    }
  }
  return found;
}

function byBytes(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

function refused(message: string): SshError {
  return new SshError(DISCONNECT.keyExchangeFailed, message);
}
