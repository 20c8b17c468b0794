/**
 * CRC32C (Castagnoli), as in RFC 3720 appendix B.4: reflected polynomial 0x1EDC6F41, initial value and final inversion
 * of all ones. Sliced by eight: one pass of the loop takes eight bytes and eight table look-ups, about 1 GB/s.
 */
const POLYNOMIAL = 0x82f63b78; // 0x1EDC6F41, bits reversed
const SLICES = 8;
const TABLE = makeTable();

/**
 * Checksum of `bytes[start, end)`. To go on over several pieces, hand the result of one as `previous` of the next.
 * Finds accidents, not attackers: those are found by the GCM tag.
 */
export function crc32c(bytes: Uint8Array, start = 0, end: number = bytes.length, previous = 0): number {
  const table = TABLE;
  let crc = ~previous;
  let at = start;
  for (; at + SLICES <= end; at += SLICES) {
    const low =
      crc ^ (byte(bytes, at) | (byte(bytes, at + 1) << 8) | (byte(bytes, at + 2) << 16) | (byte(bytes, at + 3) << 24));
    crc =
      look(table, 7, low & 255) ^
      look(table, 6, (low >>> 8) & 255) ^
      look(table, 5, (low >>> 16) & 255) ^
      look(table, 4, low >>> 24) ^
      look(table, 3, byte(bytes, at + 4)) ^
      look(table, 2, byte(bytes, at + 5)) ^
      look(table, 1, byte(bytes, at + 6)) ^
      look(table, 0, byte(bytes, at + 7));
  }
  for (; at < end; at++) crc = (crc >>> 8) ^ look(table, 0, (crc ^ byte(bytes, at)) & 255);
  return ~crc >>> 0;
}

function byte(bytes: Uint8Array, at: number): number {
  return bytes[at] as number;
}

function look(table: Int32Array, slice: number, value: number): number {
  return table[slice * 256 + value] as number;
}

function makeTable(): Int32Array {
  const table = new Int32Array(SLICES * 256);
  for (let value = 0; value < 256; value++) {
    let crc = value;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    table[value] = crc;
  }
  for (let at = 256; at < table.length; at++) {
    const before = table[at - 256] as number;
    table[at] = (before >>> 8) ^ (table[before & 255] as number);
  }
  return table;
}
