import fc from "fast-check";
import { expect, test } from "vitest";
import { crc32c } from "./crc32c.ts";

const range = (length: number, at: (i: number) => number): Uint8Array => Uint8Array.from({ length }, (_, i) => at(i));

// RFC 3720 appendix B.4 lists these with the CRC's bytes in transmission order, least significant first.
test.each([
  ["32 bytes of zeros", range(32, () => 0), 0x8a9136aa],
  ["32 bytes of ones", range(32, () => 0xff), 0x62a8ab43],
  ["32 incrementing bytes", range(32, (i) => i), 0x46dd794e],
  ["32 decrementing bytes", range(32, (i) => 31 - i), 0x113fdb5c],
  ["the check string 123456789", Buffer.from("123456789"), 0xe3069283],
  ["no bytes", new Uint8Array(), 0],
])("CRC32C of %s is that of the RFC", (_, bytes, crc) => {
  expect(crc32c(bytes)).toBe(crc);
});

test("the sliced loop agrees with one bit at a time, from any offset, in one piece or several", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(200), fc.nat(200), (bytes, a, b) => {
      const [start, end] = [Math.min(a, b, bytes.length), Math.min(Math.max(a, b), bytes.length)];
      let slow = ~0;
      for (const byte of bytes.subarray(start, end)) {
        slow ^= byte;
        for (let bit = 0; bit < 8; bit++) slow = (slow & 1) === 1 ? (slow >>> 1) ^ 0x82f63b78 : slow >>> 1;
      }
      const whole = crc32c(bytes, start, end);
      expect(whole).toBe(~slow >>> 0);
      const middle = start + ((end - start) >> 1);
      expect(crc32c(bytes, middle, end, crc32c(bytes, start, middle))).toBe(whole);
    }),
  );
});
