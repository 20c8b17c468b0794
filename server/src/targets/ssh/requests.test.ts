import fc from "fast-check";
import { describe, expect, test } from "vitest";
import * as requests from "./requests.ts";
import { SshError } from "./types.ts";
import { Writer } from "./wire.ts";

const uint32 = fc.nat(0xffff_ffff);
const text = fc.string({ unit: "grapheme", maxLength: 40 });
const size = { columns: uint32, rows: uint32, width: uint32, height: uint32 };
const modes = fc.uniqueArray(fc.record({ opcode: fc.integer({ min: 1, max: 159 }), value: uint32 }), {
  selector: ({ opcode }) => opcode,
  maxLength: 60,
});

/** One kind of request each: values, its encoding, its parser. */
const KINDS: readonly [
  name: string,
  value: fc.Arbitrary<unknown>,
  encode: (value: never) => Buffer,
  parse: (data: Buffer) => unknown,
][] = [
  ["pty-req", fc.record({ term: text, ...size, modes }), requests.encodePty, requests.parsePty],
  ["window-change", fc.record(size), requests.encodeWindowChange, requests.parseWindowChange],
  ["env", fc.record({ name: text, value: text }), requests.encodeEnv, requests.parseEnv],
  ["exec", text, requests.encodeString, (data) => requests.parseExec(data).toString()],
  ["signal", text, requests.encodeString, requests.parseWord],
  ["exit-status", uint32, requests.encodeNumber, requests.parseNumber],
  [
    "exit-signal",
    fc.record({ name: text, coreDumped: fc.boolean(), message: text }),
    requests.encodeExitSignal,
    requests.parseExitSignal,
  ],
  [
    "x11-req",
    fc.record({ singleConnection: fc.boolean(), protocol: text, cookie: text, screen: uint32 }),
    requests.encodeX11,
    requests.parseX11,
  ],
  [
    "direct-tcpip",
    fc.record({ host: text, port: uint32, originHost: text, originPort: uint32 }),
    requests.encodeTcpOpen,
    requests.parseTcpOpen,
  ],
  ["tcpip-forward", fc.record({ host: text, port: uint32 }), requests.encodeEndpoint, requests.parseEndpoint],
  ["direct-streamlocal", text, requests.encodeDirectStreamlocal, requests.parseDirectStreamlocal],
  ["forwarded-streamlocal", text, requests.encodeForwardedStreamlocal, requests.parseForwardedStreamlocal],
  ["streamlocal-forward", text, requests.encodeString, requests.parseStreamlocal],
];

describe.each(KINDS)("%s", (_name, value, encode, parse) => {
  test("is read as it was written", () => {
    fc.assert(
      fc.property(value, (one) => {
        expect(parse(encode(one as never))).toEqual(one);
      }),
    );
  });

  test("with a byte too few or too many is an error of the peer's", () => {
    fc.assert(
      fc.property(value, (one) => {
        const data = encode(one as never);
        expect(() => parse(data.subarray(0, -1))).toThrow(SshError);
        expect(() => parse(Buffer.concat([data, Buffer.of(0)]))).toThrow(SshError);
      }),
    );
  });
});

describe("pty-req", () => {
  const modesOf = (encoded: Buffer): unknown => {
    const head = new Writer().string("xterm").uint32(80).uint32(24).uint32(0).uint32(0);
    return requests.parsePty(head.string(encoded).done()).modes;
  };

  test("modes end at 0 and at the first opcode that RFC 4254 does not define; what stands behind is not looked at", () => {
    expect(modesOf(Buffer.of(53, 0, 0, 0, 1, 0, 99))).toEqual([{ opcode: 53, value: 1 }]);
    expect(modesOf(Buffer.of(53, 0, 0, 0, 1, 160, 1))).toEqual([{ opcode: 53, value: 1 }]);
    expect(modesOf(Buffer.alloc(0))).toEqual([]);
  });

  test("a mode that is said twice counts as it was said last, and a mode without its number is an error", () => {
    expect(modesOf(Buffer.of(53, 0, 0, 0, 1, 53, 0, 0, 0, 0, 0))).toEqual([{ opcode: 53, value: 0 }]);
    expect(() => modesOf(Buffer.of(53, 0, 0))).toThrow(SshError);
    expect(() => modesOf(Buffer.alloc(5000, 1))).toThrow(SshError);
  });
});

test("what is not UTF-8 is no text, but may be a command", () => {
  const bytes = Buffer.from([0, 0, 0, 2, 0xc3, 0x28]);
  expect(() => requests.parseWord(bytes)).toThrow(SshError);
  expect(requests.parseExec(bytes)).toEqual(Buffer.from([0xc3, 0x28]));
});
