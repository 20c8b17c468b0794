import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync, type KeyObject } from "node:crypto";
import { equalSecret } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import { crc32c } from "./crc32c.ts";
import { MAX_PAYLOAD_BYTES, RECORD_HEAD_BYTES } from "./record.ts";

/**
 * The journal's file format, without I/O. All numbers are big-endian. A file is a header page and frames, then zeros.
 *
 * Header, 4096 bytes:  `GKJ1` ‖ crc32c(bytes 8 to 64) u32 ‖ file number u64 ‖ file id 16 ‖ journal id 16 ‖ created µs u64 ‖
 * key check 8 ‖ zeros.
 *
 * Frame, at a multiple of 16:  ciphertext length n u32 ‖ crc32c(all but itself and the end mark) u32 ‖ sequence u64 ‖
 * synced u64 ‖ ciphertext n ‖ GCM tag 16 ‖ end mark 0xA5. `synced` is the last sequence that was known to be on the disk
 * when this frame was written: it tells a torn tail, which may be dropped, from damage, which may not.
 * n mod 16 is 7, so that frames stay aligned and every 512-byte sector that a frame touches holds at least 16 of its
 * bytes: a sector of zeros inside a frame was never written.
 *
 * Key of a file: HKDF-SHA256(journal key, salt file id, info "glasskey journal file"). Nonce: the sequence, which never
 * repeats within a journal. Associated data: file id ‖ sequence ‖ synced.
 */
export const FILE_HEADER_BYTES = 4096;
const FRAME_HEAD_BYTES = 24;
const END_MARK = 0xa5;
export const FRAME_ALIGN = 16;
const TAG_BYTES = 16;
/** A batch is cut into frames of at most this much plaintext; one record of the greatest length fits. */
export const MAX_FRAME_PLAIN_BYTES = MAX_PAYLOAD_BYTES + RECORD_HEAD_BYTES;
export const MAX_FRAME_BYTES = frameBytes(MAX_FRAME_PLAIN_BYTES);

const MAGIC = Buffer.from("GKJ1", "latin1");
const HEADER_USED_BYTES = 64;
const U32 = 2 ** 32;

export interface FileHeader {
  readonly number: number;
  readonly fileId: Buffer;
  readonly journalId: Buffer;
  readonly createdUs: number;
}

/** What sealing and opening a file's frames needs. */
export interface FileKey {
  readonly fileId: Buffer;
  readonly key: KeyObject;
}

export interface Frame {
  readonly sequence: number;
  readonly synced: number;
  /** Records and zero padding, for decodeRecords. */
  readonly plain: Buffer;
  /** Length of the whole frame in the file. */
  readonly bytes: number;
}

export function fileKey(journalKey: Uint8Array, fileId: Buffer): FileKey {
  return {
    fileId,
    key: createSecretKey(Buffer.from(hkdfSync("sha256", journalKey, fileId, "glasskey journal file", 32))),
  };
}

export function encodeFileHeader(journalKey: Uint8Array, header: FileHeader): Buffer {
  const page = Buffer.alloc(FILE_HEADER_BYTES);
  MAGIC.copy(page);
  put64(page, 8, header.number);
  header.fileId.copy(page, 16);
  header.journalId.copy(page, 32);
  put64(page, 48, header.createdUs);
  keyCheck(journalKey, header.fileId).copy(page, 56);
  page.writeUInt32BE(crc32c(page, 8, HEADER_USED_BYTES), 4);
  return page;
}

/** @throws GlassError `integrity` that says what is wrong; the caller adds the file's name. */
export function decodeFileHeader(journalKey: Uint8Array, page: Buffer): FileHeader {
  const bad = (why: string): GlassError => new GlassError("integrity", `the header ${why}`);
  if (page.length < FILE_HEADER_BYTES) throw bad(`has ${page.length} of ${FILE_HEADER_BYTES} bytes`);
  if (!page.subarray(0, 4).equals(MAGIC)) throw bad("does not begin with GKJ1");
  if (page.readUInt32BE(4) !== crc32c(page, 8, HEADER_USED_BYTES)) throw bad("does not match its checksum");
  if (page.subarray(HEADER_USED_BYTES, FILE_HEADER_BYTES).some((byte) => byte !== 0))
    throw bad("is followed by bytes that are not zero");
  const fileId = Buffer.from(page.subarray(16, 32));
  if (!equalSecret(keyCheck(journalKey, fileId), page.subarray(56, HEADER_USED_BYTES)))
    throw bad("belongs to another journal key");
  return { number: get64(page, 8), fileId, journalId: Buffer.from(page.subarray(32, 48)), createdUs: get64(page, 48) };
}

/** Length in the file of a frame with that much plaintext, padding included. */
export function frameBytes(plainBytes: number): number {
  const unpadded = FRAME_HEAD_BYTES + plainBytes + TAG_BYTES + 1;
  return unpadded + ((FRAME_ALIGN - (unpadded % FRAME_ALIGN)) % FRAME_ALIGN);
}

/**
 * Seals `plain[0, length)` into `out[at…]` and returns the frame's length. `plain` must have 16 spare bytes behind
 * `length` (they are overwritten with padding), `out` must have room for {@link frameBytes}.
 */
export function sealFrame(
  file: FileKey,
  sequence: number,
  synced: number,
  plain: Buffer,
  length: number,
  out: Buffer,
  at: number,
): number {
  const bytes = frameBytes(length);
  const padded = bytes - FRAME_HEAD_BYTES - TAG_BYTES - 1;
  for (let i = length; i < padded; i++) plain[i] = 0;

  put32(out, at, padded);
  put64(out, at + 8, sequence);
  put64(out, at + 16, synced);
  const cipher = createCipheriv("aes-256-gcm", file.key, nonceOf(sequence));
  cipher.setAAD(associated(file.fileId, sequence, synced));
  out.set(cipher.update(plain.subarray(0, padded)), at + FRAME_HEAD_BYTES);
  cipher.final();
  out.set(cipher.getAuthTag(), at + FRAME_HEAD_BYTES + padded);
  out[at + bytes - 1] = END_MARK;
  put32(out, at + 4, frameCrc(out, at, bytes));
  return bytes;
}

export type Opened =
  | { readonly ok: true; readonly frame: Frame }
  | {
      readonly ok: false;
      readonly why: "empty" | "length" | "short" | "checksum" | "mark" | "tag";
      readonly bytes: number;
    };

/** The head's claim of the whole frame's length: 0 for zeros (nothing was written here), -1 where it cannot be one. */
export function claimedBytes(bytes: Buffer, at: number): number {
  const length = get32(bytes, at);
  if (length === 0) return 0;
  const whole = FRAME_HEAD_BYTES + length + TAG_BYTES + 1;
  return whole % FRAME_ALIGN === 0 && whole <= MAX_FRAME_BYTES ? whole : -1;
}

/** The sequence in the head at `bytes[at]`, where a whole frame with a right checksum is; it is not authenticated. */
export function claimedSequence(bytes: Buffer, at: number): number | undefined {
  if (at + FRAME_HEAD_BYTES > bytes.length) return undefined;
  const whole = claimedBytes(bytes, at);
  if (whole <= 0 || at + whole > bytes.length || bytes[at + whole - 1] !== END_MARK) return undefined;
  return get32(bytes, at + 4) === frameCrc(bytes, at, whole) ? get64(bytes, at + 8) : undefined;
}

/** Opens the frame at `bytes[at]`, trusting nothing. `bytes` of a failure: how far the frame would reach, 0 if unknown. */
export function openFrame(file: FileKey, bytes: Buffer, at: number): Opened {
  if (at + FRAME_HEAD_BYTES > bytes.length) return { ok: false, why: "short", bytes: FRAME_HEAD_BYTES };
  const whole = claimedBytes(bytes, at);
  if (whole === 0) return { ok: false, why: "empty", bytes: 0 };
  if (whole < 0) return { ok: false, why: "length", bytes: 0 };
  if (at + whole > bytes.length) return { ok: false, why: "short", bytes: whole };
  if (get32(bytes, at + 4) !== frameCrc(bytes, at, whole)) return { ok: false, why: "checksum", bytes: whole };
  if (bytes[at + whole - 1] !== END_MARK) return { ok: false, why: "mark", bytes: whole };

  const sequence = get64(bytes, at + 8);
  const synced = get64(bytes, at + 16);
  const tagAt = at + whole - 1 - TAG_BYTES;
  const decipher = createDecipheriv("aes-256-gcm", file.key, nonceOf(sequence), { authTagLength: TAG_BYTES });
  decipher.setAAD(associated(file.fileId, sequence, synced));
  decipher.setAuthTag(bytes.subarray(tagAt, tagAt + TAG_BYTES));
  const plain = decipher.update(bytes.subarray(at + FRAME_HEAD_BYTES, tagAt));
  try {
    decipher.final();
  } catch {
    return { ok: false, why: "tag", bytes: whole };
  }
  return { ok: true, frame: { sequence, synced, plain, bytes: whole } };
}

/**
 * Whether the frame at the start of `bytes`, exactly that long, is whole but for its length and checksum: then these were
 * changed afterwards, and what looks like an unfinished write is none.
 */
export function wholeButForHead(file: FileKey, bytes: Buffer): boolean {
  const length = bytes.length - FRAME_HEAD_BYTES - TAG_BYTES - 1;
  if (length <= 0) return false;
  const copy = Buffer.from(bytes);
  put32(copy, 0, length);
  put32(copy, 4, frameCrc(copy, 0, copy.length));
  return openFrame(file, copy, 0).ok;
}

function frameCrc(bytes: Uint8Array, at: number, whole: number): number {
  return crc32c(bytes, at + 8, at + whole - 1, crc32c(bytes, at, at + 4));
}

function keyCheck(journalKey: Uint8Array, fileId: Uint8Array): Buffer {
  return Buffer.from(hkdfSync("sha256", journalKey, fileId, "glasskey journal check", 8));
}

function nonceOf(sequence: number): Buffer {
  const nonce = Buffer.alloc(12);
  put64(nonce, 4, sequence);
  return nonce;
}

function associated(fileId: Buffer, sequence: number, synced: number): Buffer {
  const data = Buffer.allocUnsafe(32);
  fileId.copy(data);
  put64(data, 16, sequence);
  put64(data, 24, synced);
  return data;
}

function get32(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at);
}

function get64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * U32 + bytes.readUInt32BE(at + 4);
}

function put32(bytes: Buffer, at: number, value: number): void {
  bytes.writeUInt32BE(value, at);
}

function put64(bytes: Buffer, at: number, value: number): void {
  bytes.writeUInt32BE(Math.floor(value / U32), at);
  bytes.writeUInt32BE(value % U32, at + 4);
}
