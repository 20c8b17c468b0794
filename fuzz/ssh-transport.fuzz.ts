import { createOpener, createSealer, PLAIN, type Opener, type Sealer } from "../server/src/targets/ssh/ciphers.ts";
import { createIdentificationReader } from "../server/src/targets/ssh/identification.ts";
import {
  agree,
  decodeExtInfo,
  decodeInit,
  decodeOffer,
  decodeReply,
  encodeOffer,
  ownOffer,
} from "../server/src/targets/ssh/kex.ts";
import {
  parseKeyLine,
  parsePublicKey,
  publicKeyLine,
  signerFromSeed,
  SIGNATURE_ALGORITHMS,
  subjectKey,
  verifySignature,
} from "../server/src/targets/ssh/keys.ts";
import { PacketReader, PacketWriter } from "../server/src/targets/ssh/packet.ts";
import { SshError } from "../server/src/targets/ssh/types.ts";
import { MSG, Writer } from "../server/src/targets/ssh/wire.ts";
import type { Random } from "./random.ts";

const signer = signerFromSeed(Buffer.alloc(32, 7));
const key = parsePublicKey(signer.blob);
const data = Buffer.from("data");
const offer = ownOffer("client", ["ssh-ed25519", "rsa-sha2-512"], true);
const keys = { iv: Buffer.alloc(16, 1), key: Buffer.alloc(16, 2), mac: Buffer.alloc(32, 3) };
const [CTR, MAC] = ["aes128-ctr", "hmac-sha2-256-etm@openssh.com"];
const forms: readonly { sealer(): Sealer; opener(): Opener }[] = [
  { sealer: () => PLAIN, opener: () => PLAIN },
  { sealer: () => createSealer(CTR, MAC, keys), opener: () => createOpener(CTR, MAC, keys) },
];

function sealed(sealer: Sealer): Buffer {
  const writer = new PacketWriter();
  writer.use(sealer, false);
  const payloads = [Buffer.of(MSG.newKeys), encodeOffer(offer), Buffer.alloc(300, 5)];
  return Buffer.concat(
    payloads.map((payload) => {
      const out = Buffer.alloc(writer.sizeOf(payload.length));
      writer.write([payload], payload.length, out, 0);
      return out;
    }),
  );
}

export const seeds: readonly Uint8Array[] = [
  ...forms.map(({ sealer }) => sealed(sealer())),
  encodeOffer(offer),
  signer.blob,
  signer.sign(data),
  Buffer.from(`${publicKeyLine(signer.blob)} ann@laptop`),
  new Writer().byte(MSG.kexEcdhReply).string(signer.blob).string(Buffer.alloc(32)).string(signer.sign(data)).done(),
  new Writer().byte(MSG.extInfo).uint32(1).string("server-sig-algs").string("ssh-ed25519,rsa-sha2-256").done(),
  new Writer()
    .string("ssh-ed25519-cert-v01@openssh.com")
    .string("nonce")
    .string(Buffer.alloc(32, 9))
    .string("rest")
    .done(),
  new Writer().string("ecdsa-sha2-nistp256").string("nistp256").string(Buffer.alloc(65, 4)).done(),
  new Writer()
    .string("ssh-rsa")
    .mpint(Buffer.of(1, 0, 1))
    .mpint(Buffer.alloc(256, 0xc5))
    .done(),
  Buffer.from("Welcome\r\nSSH-2.0-OpenSSH_9.2p1 Debian-2\r\nbinary"),
];
export const words: readonly string[] = [
  ...["\0\0\0\0", "\0\0\0\x0c", "\0\x04\0\0", "\0\0\0\x20", "\x04", ",", "SSH-", "SSH-2.0-", "SSH-1.99-", "\n", "\r\n"],
  ...["ssh-ed25519", "ssh-rsa", "nistp256", "-cert-v01@openssh.com", "\0\0\0\x0bssh-ed25519"],
];

/**
 * Damage is an SshError and nothing else; the same packets come out however a stream is cut; a tag that was not made with
 * the key gives nothing; and what was parsed encodes to what was read.
 */
export function one(input: Uint8Array, random: Random): void {
  const bytes = Buffer.from(input);
  for (const { sealer, opener } of forms) {
    const [whole, pieces] = [read(opener(), [bytes]), read(opener(), cut(bytes, random))];
    if (whole.join() !== pieces.join()) throw new Error(`in pieces ${pieces.join()}; whole ${whole.join()}`);
    if (sealer === forms[0]?.sealer) continue;
    const real = sealed(sealer());
    const packets = whole.filter((line) => line !== "damaged").length;
    if (packets > 0 && !bytes.subarray(0, 6).equals(real.subarray(0, 6)))
      throw new Error("a packet nobody sealed was opened");
  }
  for (const role of ["server", "client"] as const) {
    attempt(() => agree(role, offer, decodeOffer(bytes)));
    const reader = createIdentificationReader(role);
    attempt(() => cut(bytes, random).some((chunk) => reader.push(chunk) !== undefined));
    if (reader.said.length > 255 || /[\p{C}\p{Zl}\p{Zp}]/u.test(reader.said)) throw new Error("said unfit for a log");
  }
  for (const decode of [decodeInit, decodeReply, decodeExtInfo, subjectKey]) attempt(() => decode(bytes));
  const parsed = attempt(() => parsePublicKey(bytes));
  if (parsed !== undefined && !parsed.blob.equals(bytes)) throw new Error("two encodings of one key");
  attempt(() => parseKeyLine(bytes.toString("latin1")));
  for (const algorithm of SIGNATURE_ALGORITHMS) {
    if (!verifySignature(algorithm, key, data, bytes)) continue;
    if (!bytes.equals(signer.sign(data))) throw new Error("a signature that nobody made");
  }
}

function cut(bytes: Buffer, random: Random): readonly Buffer[] {
  const chunks: Buffer[] = [];
  const longest = random.pick([1, 3, 17, 64, 4096]);
  for (let at = 0; at < bytes.length;) {
    const end = Math.min(bytes.length, at + 1 + random.int(longest));
    chunks.push(bytes.subarray(at, end));
    at = end;
  }
  return chunks;
}

/** Payloads in hex, and at the end whether it was damage that ended it. */
function read(opener: Opener, chunks: readonly Buffer[]): readonly string[] {
  const reader = new PacketReader();
  reader.use(opener, false);
  const seen: string[] = [];
  try {
    for (const chunk of chunks) {
      reader.push(chunk);
      for (let payload = reader.next(); payload !== undefined; payload = reader.next())
        seen.push(payload.toString("hex"));
    }
  } catch (error) {
    if (!(error instanceof SshError)) throw error;
    seen.push("damaged");
  }
  return seen;
}

function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof SshError) return undefined;
    throw error;
  }
}
