import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { SshError } from "./types.ts";
import { mpint, printable, Reader, Writer } from "./wire.ts";

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(" ", ""), "hex");

describe("values", () => {
  test("are written as the examples of RFC 4251, section 5", () => {
    expect(new Writer().uint32(699_921_578).done()).toEqual(hex("29b7f4aa"));
    expect(new Writer().string("testing").done()).toEqual(hex("00000007 74657374696e67"));
    expect(mpint(hex(""))).toEqual(hex("00000000"));
    expect(mpint(hex("09a378f9b2e332a7"))).toEqual(hex("00000008 09a378f9b2e332a7"));
    expect(mpint(hex("80"))).toEqual(hex("00000002 0080"));
    expect(new Writer().nameList([]).done()).toEqual(hex("00000000"));
    expect(new Writer().nameList(["zlib", "none"]).done()).toEqual(hex("00000009 7a6c69622c6e6f6e65"));
  });

  test("come back as they were written", () => {
    fc.assert(
      fc.property(
        ...[fc.nat(255), fc.boolean(), fc.nat(2 ** 32 - 1), fc.bigInt(0n, 2n ** 64n - 1n)],
        ...[fc.uint8Array({ maxLength: 300 }), fc.string({ unit: "grapheme" }), fc.uint8Array({ maxLength: 64 })],
        (byte, bool, number, big, bytes, text, magnitude) => {
          const writer = new Writer().byte(byte).boolean(bool).uint32(number).uint64(big);
          const reader = new Reader(writer.string(bytes).string(text).mpint(magnitude).nameList(["a", "b@c.d"]).done());
          expect([reader.byte(), reader.boolean(), reader.uint32(), reader.uint64()]).toEqual([
            byte,
            bool,
            number,
            big,
          ]);
          expect(reader.string()).toEqual(Buffer.from(bytes));
          expect(reader.text()).toBe(text);
          const first = magnitude.findIndex((value) => value !== 0);
          expect(reader.mpint()).toEqual(Buffer.from(first < 0 ? [] : magnitude.subarray(first)));
          expect(reader.nameList()).toEqual(["a", "b@c.d"]);
          reader.end();
        },
      ),
    );
  });
});

describe("a reader", () => {
  test.each<[string, string, (reader: Reader) => unknown]>([
    ["a string that is longer than the message", "00000005 61626364", (r) => r.string()],
    ["a string of 4 GiB", "ffffffff 61", (r) => r.string()],
    ["a string above the caller's limit", "00000003 616263", (r) => r.string(2)],
    ["half a number", "0000", (r) => r.uint32()],
    ["nothing where a byte is wanted", "", (r) => r.byte()],
    ["a negative mpint", "00000001 80", (r) => r.mpint()],
    ["an mpint with a zero too many", "00000002 007f", (r) => r.mpint()],
    ["a zero that is written as a byte", "00000001 00", (r) => r.mpint()],
    ["a text that is not UTF-8", "00000002 c0af", (r) => r.text()],
    ["an empty name", "00000000", (r) => r.name()],
    ["a name with a space", "00000003 612062", (r) => r.name()],
    ["a name with a comma", "00000003 612c62", (r) => r.name()],
    ["a name with a control character", "00000002 6100", (r) => r.name()],
    ["a name of 65 characters", `00000041 ${"61".repeat(65)}`, (r) => r.name()],
    ["an empty name in a list", "00000003 612c2c", (r) => r.nameList()],
    ["a list of 16 KiB and more", `00004001 ${"61".repeat(0x4001)}`, (r) => r.nameList()],
    ["bytes left over", "00", (r) => r.end()],
  ])("refuses %s", (_what, bytes, read) => {
    expect(() => read(new Reader(hex(bytes)))).toThrow(SshError);
  });
});

test("what a peer wrote is shown without anything that a terminal would obey", () => {
  expect(printable("bye\u001b]0;owned\u0007\r\n\u202e now")).toBe("bye ]0;owned now");
  expect(printable("x".repeat(300))).toHaveLength(255);
});
