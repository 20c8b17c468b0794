import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto";
import { FormatError } from "./errors.ts";
import { parseCheckpointText } from "./tree-head.ts";

/** Who may sign a checkpoint with a key: the log itself, or a witness who saw it. */
export type Role = "log" | "witness";

/** Everything about one signature type of https://c2sp.org/signed-note. */
export interface Algorithm {
  /** The signature type byte. */
  readonly type: number;
  readonly name: string;
  readonly keyType: "ed25519" | "ml-dsa-44";
  readonly roles: readonly Role[];
  readonly publicKeyBytes: number;
  readonly signatureBytes: number;
  /** The DER before the public key (RFC 8410, RFC 9881), and before a seed of 32 bytes. */
  readonly spki: Buffer;
  readonly pkcs8: Buffer;
  /** Whether a signature starts with the time of signing, eight bytes of seconds since 1970. */
  readonly timestamped: boolean;
  /**
   * The bytes that are signed for a note's text; `seconds` is 0 where the type has no time.
   * @throws FormatError where the type signs checkpoints only and the text is none.
   */
  message(text: Uint8Array, signer: string, seconds: number): Uint8Array;
}

const ED25519 = {
  keyType: "ed25519",
  publicKeyBytes: 32,
  signatureBytes: 64,
  spki: Buffer.from("302a300506032b6570032100", "hex"),
  pkcs8: Buffer.from("302e020100300506032b657004220420", "hex"),
} as const;

/** One row for each signature type that is understood. The next is one more. */
const ALGORITHMS: readonly Algorithm[] = [
  {
    ...ED25519,
    ...{ type: 0x01, name: "Ed25519", roles: ["log"], timestamped: false },
    message: (text) => text,
  },
  {
    ...ED25519,
    ...{ type: 0x04, name: "Ed25519 cosignature/v1", roles: ["witness"], timestamped: true },
    // https://c2sp.org/tlog-cosignature, "Ed25519 signed message"
    message: (text, _signer, seconds) => Buffer.concat([Buffer.from(`cosignature/v1\ntime ${seconds}\n`), text]),
  },
  {
    type: 0x06,
    name: "ML-DSA-44 cosignature",
    keyType: "ml-dsa-44",
    roles: ["log", "witness"], // https://c2sp.org/tlog-checkpoint has logs use it too
    publicKeyBytes: 1312,
    signatureBytes: 2420,
    spki: Buffer.from("30820532300b06096086480165030403110382052100", "hex"),
    pkcs8: Buffer.from("3034020100300b060960864801650304031104228020", "hex"),
    timestamped: true,
    message: subtreeMessage,
  },
];

const SUBTREE_LABEL = Buffer.from("subtree/v1\n\0", "latin1");

/** `cosigned_message` of https://c2sp.org/tlog-cosignature, for a whole tree. Extension lines are not covered. */
function subtreeMessage(text: Uint8Array, signer: string, seconds: number): Buffer {
  const { origin, size, root } = parseCheckpointText(Buffer.from(text).toString("utf8"));
  return Buffer.concat([SUBTREE_LABEL, opaque(signer), u64(seconds), opaque(origin), u64(0), u64(size), root]);
}

/** opaque<1..2^8-1> of RFC 8446. */
function opaque(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  if (bytes.length === 0 || bytes.length > 255) throw new FormatError("a name in a cosignature has 1 to 255 bytes");
  return Buffer.concat([Uint8Array.of(bytes.length), bytes]);
}

export function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

export function algorithmOfType(type: number | undefined): Algorithm | undefined {
  return ALGORITHMS.find((algorithm) => algorithm.type === type);
}

/** How a log or a witness signs with a private key. @throws FormatError for a key that neither signs with. */
export function algorithmFor(role: Role, key: KeyObject): Algorithm {
  const found =
    key.type === "private"
      ? ALGORITHMS.find(({ keyType, roles }) => keyType === key.asymmetricKeyType && roles.includes(role))
      : undefined;
  if (found === undefined) throw new FormatError(`a ${role} signs with an Ed25519 or ML-DSA-44 private key`);
  return found;
}

export function importPublicKey(algorithm: Algorithm, bytes: Uint8Array): KeyObject {
  if (bytes.length !== algorithm.publicKeyBytes) {
    throw new FormatError(`the key of ${algorithm.name} has ${algorithm.publicKeyBytes} bytes`);
  }
  return imported(algorithm, () =>
    createPublicKey({ key: Buffer.concat([algorithm.spki, bytes]), format: "der", type: "spki" }),
  );
}

export function importSeed(algorithm: Algorithm, seed: Uint8Array): KeyObject {
  if (seed.length !== 32) throw new FormatError("a private key's seed has 32 bytes");
  return imported(algorithm, () =>
    createPrivateKey({ key: Buffer.concat([algorithm.pkcs8, seed]), format: "der", type: "pkcs8" }),
  );
}

export function exportPublicKey(algorithm: Algorithm, key: KeyObject): Buffer {
  return createPublicKey(key).export({ format: "der", type: "spki" }).subarray(algorithm.spki.length);
}

/** The 32 bytes that the private key is made from. */
export function exportSeed(algorithm: Algorithm, key: KeyObject): Buffer {
  return key.export({ format: "der", type: "pkcs8" }).subarray(algorithm.pkcs8.length);
}

/** An older Node has no ML-DSA: said as such, and not as a broken key. */
function imported(algorithm: Algorithm, make: () => KeyObject): KeyObject {
  try {
    return make();
  } catch (cause) {
    throw new FormatError(`this Node (${process.versions.node}) does not take the key for ${algorithm.name}`, {
      cause,
    });
  }
}
