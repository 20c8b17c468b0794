import { createHmac } from "node:crypto";

/** Hex digits of a keyed hash: 96 bits, so that no two values of an installation's lifetime meet by chance. */
const DIGITS = 24;

/**
 * HMAC-SHA256 (RFC 2104) of a value, cut to 96 bits, as 24 hex digits. Equal values have equal hashes under one key, and
 * without the key nobody can try a dictionary on them. A text is hashed as its UTF-8.
 */
export function keyedHash(key: Uint8Array, value: Uint8Array | string): string {
  return createHmac("sha256", key).update(value).digest("hex").slice(0, DIGITS);
}
