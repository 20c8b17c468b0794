import {
  createHash,
  createPrivateKey,
  createPublicKey,
  sign as signWith,
  verify as verifyWith,
  type KeyObject,
} from "node:crypto";
import { DISCONNECT, SshError, type Signer } from "./types.ts";
import { Reader, Writer } from "./wire.ts";

/**
 * Public keys, signatures and signers of SSH: ssh-ed25519 (RFC 8709), ecdsa-sha2-nistp256/384/521 (RFC 5656), rsa-sha2-256
 * and -512 (RFC 8332; never SHA-1), and the hardware keys of OpenSSH's PROTOCOL.u2f. What a certificate says is
 * certificate.ts' business; here it is only where the key inside of it is found.
 */

/** A plain public key. `blob` is its one encoding (RFC 4253, 6.6). */
export interface PublicKey {
  /** The key format's name, such as `ssh-rsa`; several signature algorithms may go with one format. */
  readonly type: KeyType;
  readonly blob: Buffer;
  readonly key: KeyObject;
  /** Of hardware keys: what the user's device is asked for, usually `ssh:`. */
  readonly application?: string;
}

export type KeyType =
  | "ssh-ed25519"
  | "ecdsa-sha2-nistp256"
  | "ecdsa-sha2-nistp384"
  | "ecdsa-sha2-nistp521"
  | "ssh-rsa"
  | "sk-ssh-ed25519@openssh.com"
  | "sk-ecdsa-sha2-nistp256@openssh.com";

/** A key blob or line, a certificate's too, is never longer: the longest RSA key and certificate stay far below. */
export const MAX_KEY_BYTES = 64 * 1024;
const MIN_RSA_BITS = 2048;
const MAX_RSA_BITS = 16_384;
/** A longer exponent makes a verification cost what the sender likes; real ones are 65537. */
const MAX_RSA_EXPONENT_BYTES = 8;
const CERTIFICATE = "-cert-v01@openssh.com";

interface Curve {
  readonly name: string;
  readonly jwk: string;
  /** Bytes of a coordinate. */
  readonly bytes: number;
  readonly hash: string;
}
const P256: Curve = { name: "nistp256", jwk: "P-256", bytes: 32, hash: "sha256" };
const P384: Curve = { name: "nistp384", jwk: "P-384", bytes: 48, hash: "sha384" };
const P521: Curve = { name: "nistp521", jwk: "P-521", bytes: 66, hash: "sha512" };

type SignatureScheme =
  | { readonly keyType: KeyType; readonly kind: "ed25519" | "sk-ed25519" }
  | { readonly keyType: KeyType; readonly kind: "ecdsa" | "sk-ecdsa"; readonly curve: Curve }
  | { readonly keyType: KeyType; readonly kind: "rsa"; readonly hash: string };

/** Everything about one signature algorithm, most wanted first. */
const SCHEMES: ReadonlyMap<string, SignatureScheme> = new Map<string, SignatureScheme>([
  ["ssh-ed25519", { keyType: "ssh-ed25519", kind: "ed25519" }],
  ["sk-ssh-ed25519@openssh.com", { keyType: "sk-ssh-ed25519@openssh.com", kind: "sk-ed25519" }],
  ["ecdsa-sha2-nistp256", { keyType: "ecdsa-sha2-nistp256", kind: "ecdsa", curve: P256 }],
  ["ecdsa-sha2-nistp384", { keyType: "ecdsa-sha2-nistp384", kind: "ecdsa", curve: P384 }],
  ["ecdsa-sha2-nistp521", { keyType: "ecdsa-sha2-nistp521", kind: "ecdsa", curve: P521 }],
  [
    "sk-ecdsa-sha2-nistp256@openssh.com",
    { keyType: "sk-ecdsa-sha2-nistp256@openssh.com", kind: "sk-ecdsa", curve: P256 },
  ],
  ["rsa-sha2-512", { keyType: "ssh-rsa", kind: "rsa", hash: "sha512" }],
  ["rsa-sha2-256", { keyType: "ssh-rsa", kind: "rsa", hash: "sha256" }],
]);

/** Names of the signature algorithms that are taken, most wanted first; for server-sig-algs as well (RFC 8308, 3.1). */
export const SIGNATURE_ALGORITHMS: readonly string[] = [...SCHEMES.keys()];

const CURVES: Readonly<Record<string, Curve>> = {
  "ecdsa-sha2-nistp256": P256,
  "ecdsa-sha2-nistp384": P384,
  "ecdsa-sha2-nistp521": P521,
  "sk-ecdsa-sha2-nistp256@openssh.com": P256,
};
const KEY_TYPES: ReadonlySet<string> = new Set([...SCHEMES.values()].map(({ keyType }) => keyType));

function bad(what: string, cause?: unknown): SshError {
  return new SshError(DISCONNECT.protocolError, what, cause === undefined ? undefined : { cause });
}

export function isKeyType(name: string): name is KeyType {
  return KEY_TYPES.has(name);
}

/** Whether a public key algorithm or key format is the certificate form of one. */
export function isCertificateName(name: string): boolean {
  return name.endsWith(CERTIFICATE);
}

/**
 * The certificate form of a key format or signature algorithm: `ssh-ed25519` → `ssh-ed25519-cert-v01@openssh.com`,
 * `sk-ssh-ed25519@openssh.com` → `sk-ssh-ed25519-cert-v01@openssh.com`.
 */
export function certificateName(plain: string): string {
  return plain.replace(/@openssh\.com$/, "") + CERTIFICATE;
}

/** Back again; a plain name stays as it is. */
export function plainName(name: string): string {
  if (!isCertificateName(name)) return name;
  const base = name.slice(0, -CERTIFICATE.length);
  return base.startsWith("sk-") ? `${base}@openssh.com` : base;
}

/** The key format that belongs to a public key algorithm or signature algorithm, plain or a certificate's. */
export function keyTypeOf(algorithm: string): KeyType | undefined {
  return SCHEMES.get(plainName(algorithm))?.keyType;
}

// --------------------------------------------------------------------------------------------------- public keys

/** @throws SshError for a format that is not known, a weak or damaged key, or bytes left over. The blob is copied. */
export function parsePublicKey(blob: Uint8Array): PublicKey {
  const reader = new Reader(bounded(blob));
  const type = reader.name();
  if (!isKeyType(type)) throw bad(`keys of type ${type} are not taken`);
  const key = readKeyFields(type, reader);
  reader.end();
  return key;
}

/**
 * The key that a key blob or a certificate is about (PROTOCOL.certkeys: a nonce stands before a certificate's key fields).
 * What the certificate says, and who signed it, is not looked at.
 */
export function subjectKey(blob: Uint8Array): PublicKey {
  const reader = new Reader(bounded(blob));
  const type = reader.name();
  if (!isCertificateName(type)) return parsePublicKey(blob);
  const plain = plainName(type);
  if (!isKeyType(plain) || certificateName(plain) !== type) throw bad(`certificates of type ${type} are not taken`);
  reader.string();
  return readKeyFields(plain, reader);
}

/** Reads what stands behind the format's name in a key blob, and behind the nonce in a certificate. @throws SshError */
export function readKeyFields(type: KeyType, reader: Reader): PublicKey {
  switch (type) {
    case "ssh-ed25519":
    case "sk-ssh-ed25519@openssh.com": {
      const point = reader.string(32);
      if (point.length !== 32) throw bad("an Ed25519 key that is not 32 bytes long");
      const application = type === "ssh-ed25519" ? undefined : reader.text(1024);
      const key = imported(() => ({ kty: "OKP", crv: "Ed25519", x: point.toString("base64url") }));
      return publicKey(type, key, new Writer().string(type).string(point), application);
    }
    case "ecdsa-sha2-nistp256":
    case "ecdsa-sha2-nistp384":
    case "ecdsa-sha2-nistp521":
    case "sk-ecdsa-sha2-nistp256@openssh.com": {
      const curve = CURVES[type] ?? P256;
      if (reader.name() !== curve.name) throw bad(`a key of type ${type} on another curve`);
      const point = reader.string(1 + 2 * P521.bytes);
      if (point.length !== 1 + 2 * curve.bytes || point[0] !== 4)
        throw bad("an ECDSA key that is no uncompressed point");
      const application = type === "sk-ecdsa-sha2-nistp256@openssh.com" ? reader.text(1024) : undefined;
      const [x, y] = [point.subarray(1, 1 + curve.bytes), point.subarray(1 + curve.bytes)];
      const key = imported(() => ({
        ...{ kty: "EC", crv: curve.jwk, x: x.toString("base64url"), y: y.toString("base64url") },
      }));
      return publicKey(type, key, new Writer().string(type).string(curve.name).string(point), application);
    }
    case "ssh-rsa": {
      const [e, n] = [reader.mpint(), reader.mpint()];
      const bits = n.length * 8 - Math.clz32(n[0] ?? 0) + 24;
      if (bits < MIN_RSA_BITS) throw bad(`an RSA key of ${bits} bits: at least ${MIN_RSA_BITS} are wanted`);
      if (bits > MAX_RSA_BITS) throw bad(`an RSA key of ${bits} bits: at most ${MAX_RSA_BITS} are taken`);
      const odd = ((e.at(-1) ?? 0) & (n.at(-1) ?? 0) & 1) === 1;
      if (!odd || e.length > MAX_RSA_EXPONENT_BYTES || (e.length === 1 && e[0] === 1)) throw bad("a damaged RSA key");
      const key = imported(() => ({ kty: "RSA", e: e.toString("base64url"), n: n.toString("base64url") }));
      return publicKey(type, key, new Writer().string(type).mpint(e).mpint(n), undefined);
    }
    default:
      throw bad("a key of a type that is not taken");
  }
}

function bounded(blob: Uint8Array): Uint8Array {
  if (blob.length > MAX_KEY_BYTES) throw bad(`a key of ${blob.length} bytes; at most ${MAX_KEY_BYTES} are taken`);
  return blob;
}

function imported(jwk: () => Record<string, string>): KeyObject {
  try {
    return createPublicKey({ key: jwk(), format: "jwk" });
  } catch (cause) {
    throw bad("a damaged public key", cause);
  }
}

function publicKey(type: KeyType, key: KeyObject, blob: Writer, application: string | undefined): PublicKey {
  if (application === undefined) return { type, key, blob: blob.done() };
  return { type, key, blob: blob.string(application).done(), application };
}

/** The plain SSH key that a public or private KeyObject is. @throws SshError for kinds that SSH has no use for, or weak ones */
export function publicKeyOf(key: KeyObject): PublicKey {
  const jwk = (key.type === "private" ? createPublicKey(key) : key).export({ format: "jwk" });
  const field = (value: string | undefined): Buffer => Buffer.from(value ?? "", "base64url");
  if (jwk.crv === "Ed25519") return parsePublicKey(new Writer().string("ssh-ed25519").string(field(jwk.x)).done());
  if (jwk.kty === "RSA")
    return parsePublicKey(new Writer().string("ssh-rsa").mpint(field(jwk.e)).mpint(field(jwk.n)).done());
  const curve = [P256, P384, P521].find((one) => one.jwk === jwk.crv);
  if (curve === undefined) throw bad(`a key of type ${jwk.crv ?? jwk.kty ?? "unknown"} is not used in SSH`);
  const point = Buffer.concat([Buffer.of(4), field(jwk.x), field(jwk.y)]);
  return parsePublicKey(new Writer().string(`ecdsa-sha2-${curve.name}`).string(curve.name).string(point).done());
}

/**
 * Reads a line as in `id_ed25519.pub`: type, base64, comment. The blob may be a certificate's; nothing in it but its type
 * is checked. @throws SshError that says what is wrong with the line
 */
export function parseKeyLine(line: string): { type: string; blob: Buffer; comment: string } {
  if (line.length > 2 * MAX_KEY_BYTES) throw bad("a public key line that is too long");
  // No two parts that follow each other may take the same character: whoever sends a line decides what that costs.
  const found = /^([!-~]{1,64})[ \t]+([A-Za-z0-9+/]+={0,2})(?:[ \t](.*))?$/.exec(line.trim());
  const [, type = "", base64 = "", comment = ""] = found ?? [];
  const blob = Buffer.from(base64, "base64");
  if (found === null || blob.toString("base64") !== base64)
    throw bad("this is no public key line: TYPE BASE64 COMMENT");
  if (new Reader(bounded(blob)).name() !== type) throw bad("the type before the key is not the key's own");
  return { type, blob, comment: comment.trim() };
}

/** {@link parseKeyLine} for a plain key. @throws SshError, for certificates too */
export function parsePublicKeyLine(line: string): { key: PublicKey; comment: string } {
  const { blob, comment } = parseKeyLine(line);
  return { key: parsePublicKey(blob), comment };
}

/** A key's or certificate's line as files have it, without an end of line. */
export function publicKeyLine(blob: Uint8Array, comment = ""): string {
  const line = `${new Reader(blob).name()} ${Buffer.from(blob).toString("base64")}`;
  return comment === "" ? line : `${line} ${comment}`;
}

/** `SHA256:…`, as `ssh-keygen -lf` has it. Of a certificate's blob too: then of the whole; ssh-keygen shows its key's. */
export function fingerprint(blob: Uint8Array): string {
  return `SHA256:${createHash("sha256").update(blob).digest("base64").replace(/=+$/, "")}`;
}

// ---------------------------------------------------------------------------------------------------- signatures

/** Whether the holder of a hardware key showed that somebody is there; it is always demanded. */
const USER_PRESENT = 1;

/**
 * Whether `signature` is the key's over `data` with exactly this algorithm. Never throws for what a peer can send: a
 * damaged signature is a wrong one.
 *
 * @param algorithm as negotiated or announced; the certificate form means its plain one
 * @param signature RFC 4253, 6.6: the algorithm's name and its own bytes; for hardware keys also flags and counter
 */
export function verifySignature(algorithm: string, key: PublicKey, data: Uint8Array, signature: Uint8Array): boolean {
  const plain = plainName(algorithm);
  const scheme = SCHEMES.get(plain);
  if (scheme === undefined || scheme.keyType !== key.type) return false;
  try {
    const reader = new Reader(signature);
    if (reader.name() !== plain) return false;
    const bytes = reader.string(MAX_RSA_BITS / 8);
    if (scheme.kind !== "sk-ed25519" && scheme.kind !== "sk-ecdsa") {
      reader.end();
      return verifyBytes(scheme, key.key, data, bytes);
    }
    const flagsAndCounter = reader.raw(5);
    reader.end();
    if (((flagsAndCounter[0] ?? 0) & USER_PRESENT) === 0) return false;
    const [application, message] = [key.application ?? "", data].map((part) =>
      createHash("sha256").update(part).digest(),
    );
    if (application === undefined || message === undefined) return false;
    return verifyBytes(scheme, key.key, Buffer.concat([application, flagsAndCounter, message]), bytes);
  } catch (error) {
    if (error instanceof SshError) return false;
    throw error;
  }
}

function verifyBytes(scheme: SignatureScheme, key: KeyObject, data: Uint8Array, signature: Buffer): boolean {
  switch (scheme.kind) {
    case "ed25519":
    case "sk-ed25519":
      return signature.length === 64 && verifyWith(null, data, key, signature);
    case "ecdsa":
    case "sk-ecdsa": {
      const { bytes, hash } = scheme.curve;
      const reader = new Reader(signature);
      const [r, s] = [reader.mpint(bytes + 1), reader.mpint(bytes + 1)];
      reader.end();
      if (r.length > bytes || s.length > bytes) return false;
      const fixed = Buffer.alloc(2 * bytes);
      fixed.set(r, bytes - r.length);
      fixed.set(s, 2 * bytes - s.length);
      return verifyWith(hash, data, { key, dsaEncoding: "ieee-p1363" }, fixed);
    }
    case "rsa": {
      // RFC 8332, 3: some send a signature without its leading zeros.
      const size = Math.ceil((key.asymmetricKeyDetails?.modulusLength ?? 0) / 8);
      if (signature.length > size) return false;
      const padded = Buffer.concat([Buffer.alloc(size - signature.length), signature]);
      return verifyWith(scheme.hash, data, key, padded);
    }
    default:
      return false;
  }
}

// ------------------------------------------------------------------------------------------------------- signers

/**
 * A signer for a private key.
 * @param options.algorithm for RSA: `rsa-sha2-512` unless said otherwise; other keys have only one
 * @throws SshError for keys that are too weak or of a kind that SSH has no use for
 */
export function signerOf(privateKey: KeyObject, options: { algorithm?: string } = {}): Signer {
  const { type, blob } = publicKeyOf(privateKey);
  const algorithm = options.algorithm ?? (type === "ssh-rsa" ? "rsa-sha2-512" : type);
  const scheme = SCHEMES.get(algorithm);
  if (scheme === undefined || scheme.keyType !== type) throw bad(`a key of type ${type} does not sign ${algorithm}`);
  return {
    algorithm,
    blob,
    sign: (data) =>
      new Writer()
        .string(algorithm)
        .string(signBytes(scheme, privateKey, data))
        .done(),
  };
}

/** An Ed25519 signer from its 32-byte seed (RFC 8032's private key). */
export function signerFromSeed(seed: Uint8Array): Signer {
  return signerOf(ed25519FromSeed(seed));
}

/** PKCS #8 header of an Ed25519 private key (RFC 8410, 7); the seed follows. */
const PKCS8_ED25519 = Buffer.from("302e020100300506032b657004220420", "hex");

/** An Ed25519 private key from its 32-byte seed. */
function ed25519FromSeed(seed: Uint8Array): KeyObject {
  if (seed.length !== 32) throw new RangeError("an Ed25519 seed has 32 bytes");
  return createPrivateKey({ key: Buffer.concat([PKCS8_ED25519, seed]), format: "der", type: "pkcs8" });
}

/** The same key, shown to the peer as a certificate; its signatures name the plain algorithm (PROTOCOL.certkeys). */
export function certifiedSigner(signer: Signer, certificate: Uint8Array): Signer {
  if (!subjectKey(certificate).blob.equals(signer.blob)) throw bad("the certificate is for another key");
  const sign = (data: Uint8Array): Buffer => signer.sign(data);
  return { algorithm: certificateName(signer.algorithm), blob: Buffer.from(certificate), sign };
}

function signBytes(scheme: SignatureScheme, key: KeyObject, data: Uint8Array): Buffer {
  switch (scheme.kind) {
    case "ed25519":
      return signWith(null, data, key);
    case "rsa":
      return signWith(scheme.hash, data, key);
    case "ecdsa": {
      const both = signWith(scheme.curve.hash, data, { key, dsaEncoding: "ieee-p1363" });
      const half = both.length / 2;
      return new Writer().mpint(both.subarray(0, half)).mpint(both.subarray(half)).done();
    }
    default:
      throw bad("a hardware key signs in its device");
  }
}
