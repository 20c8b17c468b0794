import { createCipheriv, createDecipheriv, createHmac, hkdfSync } from "node:crypto";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import {
  decodeRecords,
  MAX_PAYLOAD_BYTES,
  RECORD_HEAD_BYTES,
  SESSION_BYTES,
  sessionBytes,
  type StoredRecord,
} from "./record.ts";

/**
 * A sealed chunk: one file, final once it is written. All numbers are big-endian.
 *
 * `GKC1` ‖ session id 15 ‖ 0 ‖ chunk number u32 ‖ first record u32 ‖ last record u32 ‖ first time µs u64 ‖ last time µs u64 ‖
 * nonce 12 ‖ ciphertext length u32 ‖ AES-256-GCM ciphertext of the records ‖ tag 16.
 *
 * The first 64 bytes are the associated data. Key: HKDF-SHA256(session's data key, info "glasskey chunk"). The nonce is
 * the first 12 bytes of HMAC-SHA256(HKDF(data key, info "glasskey chunk nonce"), the header up to it ‖ records), so that
 * sealing the same records again after a crash gives the same file, and other records never meet the same nonce.
 */
const CHUNK_HEADER_BYTES = 64;
/** A chunk is closed before it would pass this; a single longer record makes a longer chunk. */
export const CHUNK_PLAIN_BYTES = 64 << 10;
export const MAX_CHUNK_BYTES = CHUNK_HEADER_BYTES + RECORD_HEAD_BYTES + MAX_PAYLOAD_BYTES + 16;

const MAGIC = Buffer.from("GKC1", "latin1");
const TAG_BYTES = 16;
const NONCE_AT = 48;
const NONCE_BYTES = 12;
const LENGTH_AT = NONCE_AT + NONCE_BYTES;
const U32 = 2 ** 32;

export interface ChunkHeader {
  readonly session: string;
  /** Within the session, from 0. */
  readonly chunk: number;
  readonly firstSeq: number;
  readonly lastSeq: number;
  readonly firstUs: number;
  readonly lastUs: number;
}

export interface SealedChunk extends ChunkHeader {
  readonly file: Buffer;
  /** Of the whole file, header included: what the log's entry commits to. */
  readonly sha256: Buffer;
}

/** Where a chunk lies in the chunk store. Known from its log entry alone. */
export function chunkName(session: string, chunk: number, hash: Uint8Array): string {
  return `${session}/${String(chunk).padStart(8, "0")}-${Buffer.from(hash).toString("hex")}.gkc`;
}

/** The parts of a {@link chunkName}, or undefined for any other name. */
export function parseChunkName(name: string): { session: string; chunk: number; sha256: Buffer } | undefined {
  const match = /^(se_[0-9a-hjkmnp-tv-z]{12})\/(\d{8})-([0-9a-f]{64})\.gkc$/.exec(name);
  if (match === null) return undefined;
  return { session: match[1] as string, chunk: Number(match[2]), sha256: Buffer.from(match[3] as string, "hex") };
}

/** Seals encoded records, which `header` describes. The same arguments give the same bytes. */
export function sealChunk(dataKey: Uint8Array, header: ChunkHeader, plain: Buffer): SealedChunk {
  const file = Buffer.alloc(CHUNK_HEADER_BYTES + plain.length + TAG_BYTES);
  MAGIC.copy(file);
  sessionBytes(header.session).copy(file, 4);
  file.writeUInt32BE(header.chunk, 20);
  file.writeUInt32BE(header.firstSeq, 24);
  file.writeUInt32BE(header.lastSeq, 28);
  put64(file, 32, header.firstUs);
  put64(file, 40, header.lastUs);
  const nonce = createHmac("sha256", derive(dataKey, "glasskey chunk nonce"))
    .update(file.subarray(0, NONCE_AT))
    .update(plain)
    .digest();
  nonce.copy(file, NONCE_AT, 0, NONCE_BYTES);
  file.writeUInt32BE(plain.length, LENGTH_AT);
  const cipher = createCipheriv("aes-256-gcm", derive(dataKey, "glasskey chunk"), file.subarray(NONCE_AT, LENGTH_AT));
  cipher.setAAD(file.subarray(0, CHUNK_HEADER_BYTES));
  cipher.update(plain).copy(file, CHUNK_HEADER_BYTES);
  cipher.final();
  cipher.getAuthTag().copy(file, file.length - TAG_BYTES);
  return { ...header, file, sha256: sha256(file) };
}

/** Reads the open part of a chunk. Nothing of it is verified. @throws GlassError `integrity` where it is no chunk. */
export function readChunkHeader(file: Buffer): ChunkHeader {
  if (file.length < CHUNK_HEADER_BYTES + TAG_BYTES || !file.subarray(0, 4).equals(MAGIC))
    throw new GlassError("integrity", "this is no GKC1 chunk");
  if (file.readUInt32BE(LENGTH_AT) !== file.length - CHUNK_HEADER_BYTES - TAG_BYTES) {
    throw new GlassError("integrity", `the chunk's length is ${file.length}, and its header says another`);
  }
  return {
    session: file.toString("latin1", 4, 4 + SESSION_BYTES),
    chunk: file.readUInt32BE(20),
    firstSeq: file.readUInt32BE(24),
    lastSeq: file.readUInt32BE(28),
    firstUs: get64(file, 32),
    lastUs: get64(file, 40),
  };
}

/**
 * Decrypts a chunk and checks that its records are those that its header tells of: of this session, without a gap.
 * @throws GlassError `integrity` that says what differs.
 */
export function openChunk(dataKey: Uint8Array, file: Buffer): { header: ChunkHeader; records: StoredRecord[] } {
  const header = readChunkHeader(file);
  const where = `chunk ${header.chunk} of ${header.session}`;
  const decipher = createDecipheriv(
    "aes-256-gcm",
    derive(dataKey, "glasskey chunk"),
    file.subarray(NONCE_AT, LENGTH_AT),
    {
      authTagLength: TAG_BYTES,
    },
  );
  decipher.setAAD(file.subarray(0, CHUNK_HEADER_BYTES));
  decipher.setAuthTag(file.subarray(file.length - TAG_BYTES));
  const plain = decipher.update(file.subarray(CHUNK_HEADER_BYTES, file.length - TAG_BYTES));
  try {
    decipher.final();
  } catch (cause) {
    throw new GlassError("integrity", `${where} does not decrypt: it was changed, or the key is another's`, { cause });
  }
  const records = decodeRecords(plain);
  const inOrder = records.every((record, i) => record.session === header.session && record.seq === header.firstSeq + i);
  if (!inOrder || records.at(-1)?.seq !== header.lastSeq) {
    throw new GlassError(
      "integrity",
      `${where} does not hold records ${header.firstSeq} to ${header.lastSeq} as its header says`,
    );
  }
  return { header, records };
}

function derive(dataKey: Uint8Array, info: string): Buffer {
  return Buffer.from(hkdfSync("sha256", dataKey, "", info, 32));
}

function put64(into: Buffer, at: number, value: number): void {
  into.writeUInt32BE(Math.floor(value / U32), at);
  into.writeUInt32BE(value % U32, at + 4);
}

function get64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * U32 + bytes.readUInt32BE(at + 4);
}
