import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createSecretKey,
  timingSafeEqual,
  type CipherGCMTypes,
  type KeyObject,
} from "node:crypto";
import { giveBack } from "./give-back.ts";
import { DISCONNECT, SshError } from "./types.ts";

/**
 * What happens to a packet between its plain form and the wire. No I/O.
 *
 * A plain packet is `uint32 length, byte padding length, payload, padding` (RFC 4253, 6); `length` counts what follows it.
 * In both forms here the length stays in clear and is authenticated with the rest:
 * - AES-GCM (RFC 5647, negotiated as OpenSSH's PROTOCOL, 1.6 has it): length as associated data, a nonce that counts up.
 * - AES-CTR (RFC 4344) with an encrypt-then-MAC HMAC (RFC 6668; OpenSSH's PROTOCOL, 1.5) over sequence number, length and
 *   ciphertext.
 */

export interface Sealer {
  /** The padded part of a packet is a multiple of it. */
  readonly blockBytes: number;
  /** Whether the length field counts to the padded part; only before the first keys. */
  readonly padsLength: boolean;
  /** Bytes behind the packet. */
  readonly tagBytes: number;
  /**
   * Writes the plain packet in its form on the wire to `out` from `at` on.
   * @returns where it ends: `at + packet.length + tagBytes`
   */
  seal(sequence: number, packet: Buffer, out: Buffer, at: number): number;
}

export interface Opener {
  readonly blockBytes: number;
  readonly padsLength: boolean;
  readonly tagBytes: number;
  /**
   * @param packet length field, ciphertext and tag
   * @returns what follows the length field, in plain: padding length, payload, padding
   * @throws SshError `macError` when a byte was changed
   */
  open(sequence: number, packet: Buffer): Buffer;
}

/** Keys of one direction (RFC 4253, 7.2). */
export interface DirectionKeys {
  readonly iv: Buffer;
  readonly key: Buffer;
  readonly mac: Buffer;
}

interface Cipher {
  readonly node: string;
  readonly gcm: boolean;
  readonly keyBytes: number;
  readonly ivBytes: number;
}
const CIPHER: Readonly<Record<string, Cipher>> = {
  "aes128-gcm@openssh.com": { node: "aes-128-gcm", gcm: true, keyBytes: 16, ivBytes: 12 },
  "aes256-gcm@openssh.com": { node: "aes-256-gcm", gcm: true, keyBytes: 32, ivBytes: 12 },
  "aes128-ctr": { node: "aes-128-ctr", gcm: false, keyBytes: 16, ivBytes: 16 },
  "aes256-ctr": { node: "aes-256-ctr", gcm: false, keyBytes: 32, ivBytes: 16 },
};
const MAC: Readonly<Record<string, { readonly node: string; readonly bytes: number }>> = {
  "hmac-sha2-256-etm@openssh.com": { node: "sha256", bytes: 32 },
  "hmac-sha2-512-etm@openssh.com": { node: "sha512", bytes: 64 },
};

const BLOCK_BYTES = 16; // AES, in every mode here
const GCM_TAG_BYTES = 16;

/** Whether a cipher authenticates what it encrypts, so that no MAC is negotiated for it. */
export function needsMac(cipher: string): boolean {
  return CIPHER[cipher]?.gcm === false;
}

/** How many bytes of each key an algorithm takes. */
export function keySizes(cipher: string, mac: string): { iv: number; key: number; mac: number } {
  const { keyBytes, ivBytes } = known(CIPHER, cipher);
  return { iv: ivBytes, key: keyBytes, mac: needsMac(cipher) ? known(MAC, mac).bytes : 0 };
}

function known<T>(table: Readonly<Record<string, T>>, name: string): T {
  const found = table[name];
  if (found === undefined) throw new Error(`${name} was negotiated and is not known`);
  return found;
}

/** Before the first keys: nothing is hidden, nothing is authenticated. */
export const PLAIN: Sealer & Opener = {
  blockBytes: 8,
  padsLength: true,
  tagBytes: 0,
  seal: (_sequence, packet, out, at) => at + packet.copy(out, at),
  open: (_sequence, packet) => packet.subarray(4),
};

export function createSealer(cipher: string, mac: string, keys: DirectionKeys): Sealer {
  const { node, gcm } = known(CIPHER, cipher);
  const key = createSecretKey(keys.key);
  if (gcm) {
    const nonce = counter(keys.iv);
    return {
      ...{ blockBytes: BLOCK_BYTES, padsLength: false, tagBytes: GCM_TAG_BYTES },
      seal(_sequence, packet, out, at) {
        const aes = createCipheriv(node as CipherGCMTypes, key, nonce.next());
        const length = packet.subarray(0, 4);
        aes.setAAD(length);
        length.copy(out, at);
        const body = aes.update(packet.subarray(4));
        body.copy(out, at + 4);
        giveBack(body);
        aes.final();
        return at + packet.length + aes.getAuthTag().copy(out, at + packet.length);
      },
    };
  }
  const aes = createCipheriv(node, key, keys.iv);
  const tag = tagger(mac, keys.mac);
  return {
    ...{ blockBytes: BLOCK_BYTES, padsLength: false, tagBytes: tag.bytes },
    seal(sequence, packet, out, at) {
      packet.copy(out, at, 0, 4);
      const body = aes.update(packet.subarray(4));
      body.copy(out, at + 4);
      giveBack(body);
      const end = at + packet.length;
      return end + tag.of(sequence, out.subarray(at, end)).copy(out, end);
    },
  };
}

export function createOpener(cipher: string, mac: string, keys: DirectionKeys): Opener {
  const { node, gcm } = known(CIPHER, cipher);
  const key = createSecretKey(keys.key);
  if (gcm) {
    const nonce = counter(keys.iv);
    return {
      ...{ blockBytes: BLOCK_BYTES, padsLength: false, tagBytes: GCM_TAG_BYTES },
      open(_sequence, packet) {
        const aes = createDecipheriv(node as CipherGCMTypes, key, nonce.next());
        const end = packet.length - GCM_TAG_BYTES;
        aes.setAAD(packet.subarray(0, 4));
        aes.setAuthTag(packet.subarray(end));
        const body = aes.update(packet.subarray(4, end));
        try {
          aes.final();
        } catch (cause) {
          throw corrupted(cause);
        }
        return body;
      },
    };
  }
  const aes = createDecipheriv(node, key, keys.iv);
  const tag = tagger(mac, keys.mac);
  return {
    ...{ blockBytes: BLOCK_BYTES, padsLength: false, tagBytes: tag.bytes },
    open(sequence, packet) {
      const end = packet.length - tag.bytes;
      if (!timingSafeEqual(tag.of(sequence, packet.subarray(0, end)), packet.subarray(end))) throw corrupted();
      return aes.update(packet.subarray(4, end));
    },
  };
}

function corrupted(cause?: unknown): SshError {
  return new SshError(DISCONNECT.macError, "a packet was changed on its way", { cause });
}

/** RFC 5647, 7.1: four fixed bytes, and a counter of eight that goes up by one with each packet. */
function counter(iv: Buffer): { next(): Buffer } {
  const nonce = Buffer.from(iv);
  let fresh = true;
  return {
    next() {
      if (fresh) {
        fresh = false;
        return nonce;
      }
      const low = (nonce.readUInt32BE(8) + 1) >>> 0;
      nonce.writeUInt32BE(low, 8);
      if (low === 0) nonce.writeUInt32BE((nonce.readUInt32BE(4) + 1) >>> 0, 4);
      return nonce;
    },
  };
}

function tagger(mac: string, secret: Buffer): { bytes: number; of(sequence: number, bytes: Buffer): Buffer } {
  const { node, bytes } = known(MAC, mac);
  const key: KeyObject = createSecretKey(secret);
  const number = Buffer.alloc(4);
  return {
    bytes,
    of(sequence, packet) {
      number.writeUInt32BE(sequence);
      return createHmac(node, key).update(number).update(packet).digest();
    },
  };
}
