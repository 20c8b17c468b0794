import { isUtf8 } from "node:buffer";
import { DISCONNECT, SshError } from "./types.ts";

/**
 * Data types of the SSH protocols (RFC 4251, section 5). No I/O.
 *
 * Everything that is read here comes from outside and is not trusted: a length that does not fit, a number that is not
 * written as the RFC says, or bytes left over end in SshError `protocolError`.
 */

/** Message numbers (RFC 4250, 4.1; RFC 5656, 7.1; RFC 8308, 2.3). Those of user authentication and channels are H2's. */
export const MSG = {
  disconnect: 1,
  ignore: 2,
  unimplemented: 3,
  debug: 4,
  serviceRequest: 5,
  serviceAccept: 6,
  extInfo: 7,
  newCompress: 8,
  kexInit: 20,
  newKeys: 21,
  /** SSH_MSG_KEX_ECDH_INIT, and the client's first message of every method here. */
  kexEcdhInit: 30,
  kexEcdhReply: 31,
  /** User authentication begins here; below are the transport's own. */
  firstUserAuth: 50,
  /** The connection protocol begins here, and with it what follows the login. */
  firstConnection: 80,
} as const;

/** Longest string that is taken unless a caller says otherwise: no packet is longer either. */
const MAX_STRING_BYTES = 256 * 1024;
/** Longest name-list: ten times what the longest-winded client sends. */
const MAX_NAME_LIST_BYTES = 16 * 1024;
/** RFC 4251, 6: names are not longer than 64 characters. */
const MAX_NAME_BYTES = 64;
/** 16,384 bits and a sign byte: the longest RSA modulus that OpenSSH takes too. */
const MAX_MPINT_BYTES = 16_384 / 8 + 1;

function damaged(what: string): SshError {
  return new SshError(DISCONNECT.protocolError, what);
}

/** Reads values one after the other. Strings are views of the bytes given. */
export class Reader {
  readonly #bytes: Buffer;
  #at: number;

  constructor(bytes: Uint8Array, start = 0) {
    this.#bytes = Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#at = start;
  }

  get remaining(): number {
    return this.#bytes.length - this.#at;
  }

  /** Where the next value begins. */
  get offset(): number {
    return this.#at;
  }

  #take(bytes: number): number {
    const at = this.#at;
    if (bytes > this.#bytes.length - at) throw damaged("a message ends in the middle of a value");
    this.#at = at + bytes;
    return at;
  }

  byte(): number {
    return this.#bytes[this.#take(1)] ?? 0;
  }

  /** RFC 4251: everything but 0 is true. */
  boolean(): boolean {
    return this.byte() !== 0;
  }

  uint32(): number {
    return this.#bytes.readUInt32BE(this.#take(4));
  }

  uint64(): bigint {
    return this.#bytes.readBigUInt64BE(this.#take(8));
  }

  /** So many bytes as they are. */
  raw(bytes: number): Buffer {
    const at = this.#take(bytes);
    return this.#bytes.subarray(at, at + bytes);
  }

  string(maxBytes = MAX_STRING_BYTES): Buffer {
    const length = this.uint32();
    if (length > maxBytes) throw damaged(`a string of ${length} bytes; at most ${maxBytes} are taken here`);
    return this.raw(length);
  }

  /** A string that is UTF-8 (RFC 3629, without overlong forms and surrogates). */
  text(maxBytes = MAX_STRING_BYTES): string {
    const bytes = this.string(maxBytes);
    if (!isUtf8(bytes)) throw damaged("a text that is not UTF-8");
    return bytes.toString("utf8");
  }

  /** A name of an algorithm, method, service, request or channel type (RFC 4251, 6): printable US-ASCII, no comma. */
  name(): string {
    const bytes = this.string(MAX_NAME_BYTES);
    const name = bytes.toString("latin1");
    if (!isName(name)) throw damaged("a name that is none");
    return name;
  }

  /**
   * A number that is not negative, as its bytes without a leading zero; zero has none.
   * Longer forms of a number than needed are refused: one key has one blob, and so one fingerprint.
   */
  mpint(maxBytes = MAX_MPINT_BYTES): Buffer {
    const bytes = this.string(maxBytes);
    const [first, second = 0] = bytes;
    if (first === undefined) return bytes;
    if (first >= 0x80) throw damaged("a negative number");
    if (first !== 0) return bytes;
    if (second < 0x80) throw damaged("a number with unneeded zeros before it");
    return bytes.subarray(1);
  }

  nameList(): string[] {
    const text = this.string(MAX_NAME_LIST_BYTES).toString("latin1");
    if (text === "") return [];
    const names = text.split(",");
    if (!names.every(isName)) throw damaged("a list with a name that is none");
    return names;
  }

  /** What is left, whatever it is. */
  rest(): Buffer {
    return this.raw(this.remaining);
  }

  /** @throws SshError when bytes are left. */
  end(): void {
    if (this.remaining > 0) throw damaged(`${this.remaining} bytes too many at the end of a message`);
  }
}

/** Whether a text is a name (RFC 4251, 6): 1 to 64 printable US-ASCII characters without space and comma. */
function isName(text: string): boolean {
  return text.length <= MAX_NAME_BYTES && /^[!-+\--~]+$/.test(text);
}

/** Writes values one after the other: `new Writer().byte(MSG.ignore).string("x").done()`. */
export class Writer {
  readonly #parts: Uint8Array[] = [];

  byte(value: number): this {
    this.#parts.push(Uint8Array.of(value));
    return this;
  }

  boolean(value: boolean): this {
    return this.byte(value ? 1 : 0);
  }

  uint32(value: number): this {
    this.#parts.push(uint32(value));
    return this;
  }

  uint64(value: bigint): this {
    const bytes = Buffer.allocUnsafe(8);
    bytes.writeBigUInt64BE(value);
    this.#parts.push(bytes);
    return this;
  }

  raw(bytes: Uint8Array): this {
    this.#parts.push(bytes);
    return this;
  }

  /** Texts go as UTF-8. */
  string(value: Uint8Array | string): this {
    const bytes = typeof value === "string" ? Buffer.from(value, "utf8") : value;
    this.#parts.push(uint32(bytes.length), bytes);
    return this;
  }

  /** A number that is not negative, from its bytes, most significant first. */
  mpint(magnitude: Uint8Array): this {
    return this.raw(mpint(magnitude));
  }

  nameList(names: readonly string[]): this {
    return this.string(names.join(","));
  }

  done(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** A number that is not negative as an mpint with its length (RFC 4251, 5). */
export function mpint(magnitude: Uint8Array): Buffer {
  let start = 0;
  while (start < magnitude.length && magnitude[start] === 0) start += 1;
  const sign = (magnitude[start] ?? 0) >= 0x80 ? 1 : 0;
  const length = magnitude.length - start + sign;
  const bytes = Buffer.alloc(4 + length);
  bytes.writeUInt32BE(length);
  bytes.set(magnitude.subarray(start), 4 + sign);
  return bytes;
}

/** What a peer wrote, fit for a log or a terminal: printable characters only, cut at `maxLength`. */
export function printable(text: string, maxLength = 255): string {
  const clean = text.replaceAll(/[\p{C}\p{Z}]+/gu, " ").trim();
  return clean.length <= maxLength ? clean : `${clean.slice(0, maxLength - 1).trimEnd()}…`;
}
