import { randomFillSync } from "node:crypto";
import { PLAIN, type Opener, type Sealer } from "./ciphers.ts";
import { giveBack } from "./give-back.ts";
import { DISCONNECT, SshError } from "./types.ts";

/**
 * The binary packet protocol (RFC 4253, 6): payloads ↔ bytes on the wire, with sequence numbers and padding. No I/O.
 */

/** Longest packet without its tag that is taken, as in OpenSSH; RFC 4253, 6.1 asks for 35,000. */
export const MAX_PACKET_BYTES = 256 * 1024;
/** Longest payload that is sent: with the padding it stays below what OpenSSH takes. */
export const MAX_PAYLOAD_BYTES = MAX_PACKET_BYTES - 64;
const MIN_PADDING_BYTES = 4;
const LENGTH_BYTES = 4;

// -------------------------------------------------------------------------------------------------------- writing

/** Plain packets are put together here before they are sealed; all writers share it, since none waits in between. */
const scratch = Buffer.allocUnsafeSlow(MAX_PACKET_BYTES + 64);

export class PacketWriter {
  #sealer: Sealer = PLAIN;
  #sequence = 0;

  /** Number of the next packet (RFC 4253, 6.4). */
  get sequence(): number {
    return this.#sequence;
  }

  /** From the next packet on. `resetSequence` as strict key exchange wants it. */
  use(sealer: Sealer, resetSequence: boolean): void {
    this.#sealer = sealer;
    if (resetSequence) this.#sequence = 0;
  }

  /** Bytes on the wire of a payload of so many. */
  sizeOf(payloadBytes: number): number {
    return LENGTH_BYTES + 1 + payloadBytes + this.#paddingOf(payloadBytes) + this.#sealer.tagBytes;
  }

  #paddingOf(payloadBytes: number): number {
    const { blockBytes, padsLength } = this.#sealer;
    const padding = blockBytes - (((padsLength ? LENGTH_BYTES : 0) + 1 + payloadBytes) % blockBytes);
    return padding < MIN_PADDING_BYTES ? padding + blockBytes : padding;
  }

  /** Writes the packet of a payload, given in parts, to `out` from `at` on. @returns where it ends */
  write(parts: readonly Uint8Array[], payloadBytes: number, out: Buffer, at: number): number {
    if (payloadBytes > MAX_PAYLOAD_BYTES) throw new RangeError(`a payload of ${payloadBytes} bytes`);
    const padding = this.#paddingOf(payloadBytes);
    scratch.writeUInt32BE(1 + payloadBytes + padding, 0);
    scratch[LENGTH_BYTES] = padding;
    let end = LENGTH_BYTES + 1;
    for (const part of parts) {
      scratch.set(part, end);
      end += part.length;
    }
    padWith(end, padding);
    const sequence = this.#sequence;
    this.#sequence = (sequence + 1) >>> 0;
    return this.#sealer.seal(sequence, scratch.subarray(0, end + padding), out, at);
  }
}

/** Random bytes for padding, made many at a time. */
const pool = Buffer.alloc(8 * 1024);
let poolAt = pool.length;

function padWith(at: number, bytes: number): void {
  if (poolAt + bytes > pool.length) {
    randomFillSync(pool);
    poolAt = 0;
  }
  pool.copy(scratch, at, poolAt, poolAt + bytes);
  poolAt += bytes;
}

// -------------------------------------------------------------------------------------------------------- reading

const NOTHING = Buffer.alloc(0);

/**
 * Bytes in, payloads out, however the stream was cut. What is held is one packet at most, beside the chunks not yet looked
 * at; memory is taken for a packet's announced length only within {@link MAX_PACKET_BYTES}.
 */
export class PacketReader {
  #opener: Opener = PLAIN;
  #sequence = 0;
  /** The chunk being read, and where. */
  #chunk: Buffer = NOTHING;
  #at = 0;
  #waiting: Buffer[] = [];
  /** A packet that began in an earlier chunk, or only its length field, as far as it is there. */
  #partial: Buffer | undefined;
  #filled = 0;
  /** What nobody reads any more once the next packet is asked for. */
  readonly #spent: Buffer[] = [];

  /** Number of the packet that `next` gives next. */
  get sequence(): number {
    return this.#sequence;
  }

  use(opener: Opener, resetSequence: boolean): void {
    this.#opener = opener;
    if (resetSequence) this.#sequence = 0;
  }

  /** The chunk is the reader's from here on. */
  push(chunk: Buffer): void {
    if (this.#at === this.#chunk.length && this.#waiting.length === 0) {
      this.#chunk = chunk;
      this.#at = 0;
    } else this.#waiting.push(chunk);
  }

  /**
   * @returns the next payload, which is not empty and may be read until the next call; undefined when more bytes are needed
   * @throws SshError for a length that cannot be, a wrong tag, or padding that does not fit; nothing may be read afterwards
   */
  next(): Buffer | undefined {
    for (let spent = this.#spent.pop(); spent !== undefined; spent = this.#spent.pop()) giveBack(spent);
    for (;;) {
      const packet = this.#nextPacket();
      if (packet !== undefined) return this.#payloadOf(packet);
      giveBack(this.#chunk);
      const chunk = this.#waiting.shift();
      if (chunk === undefined) {
        this.#chunk = NOTHING;
        this.#at = 0;
        return undefined;
      }
      this.#chunk = chunk;
      this.#at = 0;
    }
  }

  /** A whole packet from the current chunk and what is left of the one before, or undefined: the chunk is used up. */
  #nextPacket(): Buffer | undefined {
    const chunk = this.#chunk;
    if (this.#partial === undefined) {
      const available = chunk.length - this.#at;
      if (available === 0) return undefined;
      if (available >= LENGTH_BYTES) {
        const total = this.#totalOf(chunk.readUInt32BE(this.#at));
        if (available >= total) {
          const packet = chunk.subarray(this.#at, this.#at + total);
          this.#at += total;
          return packet;
        }
        this.#partial = Buffer.allocUnsafe(total);
      } else this.#partial = Buffer.allocUnsafe(LENGTH_BYTES);
      this.#filled = 0;
    }
    this.#fill(this.#partial);
    if (this.#partial.length === LENGTH_BYTES && this.#filled === LENGTH_BYTES) {
      const length = this.#partial;
      this.#partial = Buffer.allocUnsafe(this.#totalOf(length.readUInt32BE(0)));
      length.copy(this.#partial);
      this.#fill(this.#partial);
    }
    if (this.#filled < this.#partial.length || this.#partial.length === LENGTH_BYTES) return undefined;
    const packet = this.#partial;
    this.#partial = undefined;
    this.#spent.push(packet);
    return packet;
  }

  #fill(partial: Buffer): void {
    const copied = this.#chunk.copy(partial, this.#filled, this.#at);
    this.#filled += copied;
    this.#at += copied;
  }

  /** Bytes of a packet on the wire by its length field. */
  #totalOf(length: number): number {
    const { blockBytes, padsLength, tagBytes } = this.#opener;
    const padded = padsLength ? LENGTH_BYTES + length : length;
    // The shortest has one block of at least 8 bytes: padding length, message number, four bytes of padding.
    if (length > MAX_PACKET_BYTES || length < 1 + 1 + MIN_PADDING_BYTES || padded % blockBytes !== 0)
      throw new SshError(DISCONNECT.protocolError, `a packet with a length of ${length}`);
    return LENGTH_BYTES + length + tagBytes;
  }

  #payloadOf(packet: Buffer): Buffer {
    const body = this.#opener.open(this.#sequence, packet);
    this.#spent.push(body);
    this.#sequence = (this.#sequence + 1) >>> 0;
    const padding = body[0] ?? 0;
    const payloadBytes = body.length - 1 - padding;
    if (padding < MIN_PADDING_BYTES || payloadBytes < 1)
      throw new SshError(DISCONNECT.protocolError, `a packet of ${body.length} bytes with ${padding} bytes of padding`);
    return body.subarray(1, 1 + payloadBytes);
  }
}
