import { generateKeyPairSync, randomBytes } from "node:crypto";

/** A fresh Ed25519 key in the formats that OpenSSH's client reads. */
export interface SshKey {
  /** One line, as in a `.pub` file. */
  readonly publicKey: string;
  /** The private key's file, not encrypted: it opens one grant until its end, and lies in a folder of its owner alone. */
  readonly privateKey: string;
}

const TYPE = "ssh-ed25519";
const BLOCK_BYTES = 8; // of the cipher `none`: the private part is padded to a multiple of it
const LINE_LENGTH = 70;

/** Makes a key. Formats: RFC 8709, 4 (public), and OpenSSH's PROTOCOL.key, `openssh-key-v1` (private). */
export function newSshKey(comment: string): SshKey {
  const jwk = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
  const [point, seed] = [Buffer.from(jwk.x ?? "", "base64url"), Buffer.from(jwk.d ?? "", "base64url")];
  const blob = Buffer.concat([sized(TYPE), sized(point)]);
  const check = randomBytes(4); // twice: a reader sees by it that it deciphered with the right key
  const parts = [check, check, sized(TYPE), sized(point), sized(Buffer.concat([seed, point])), sized(comment)];
  const secret = Buffer.concat(parts);
  const padding = (BLOCK_BYTES - (secret.length % BLOCK_BYTES)) % BLOCK_BYTES;
  const padded = Buffer.concat([secret, Buffer.from(Array.from({ length: padding }, (_, i) => i + 1))]);
  const one = Buffer.from([0, 0, 0, 1]);
  const file = Buffer.concat([
    ...[Buffer.from("openssh-key-v1\0"), sized("none"), sized("none"), sized("")],
    ...[one, sized(blob), sized(padded)],
  ]);
  const lines = file.toString("base64").match(new RegExp(`.{1,${LINE_LENGTH}}`, "g")) ?? [];
  return {
    publicKey: `${TYPE} ${blob.toString("base64")} ${comment}`,
    privateKey: ["-----BEGIN OPENSSH PRIVATE KEY-----", ...lines, "-----END OPENSSH PRIVATE KEY-----", ""].join("\n"),
  };
}

/** A `string` of RFC 4251, 5: its length, then its bytes. */
function sized(data: Uint8Array | string): Buffer {
  const bytes = Buffer.from(data);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}
