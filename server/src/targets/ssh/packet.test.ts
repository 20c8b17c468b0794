import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CIPHERS, MACS } from "./algorithms.ts";
import { createOpener, createSealer, keySizes, needsMac, PLAIN, type Opener, type Sealer } from "./ciphers.ts";
import { MAX_PACKET_BYTES, MAX_PAYLOAD_BYTES, PacketReader, PacketWriter } from "./packet.ts";
import { DISCONNECT, SshError } from "./types.ts";

interface Form {
  name: string;
  sealer(): Sealer;
  opener(): Opener;
}
const forms: readonly Form[] = [
  { name: "plain", sealer: () => PLAIN, opener: () => PLAIN },
  ...CIPHERS.flatMap((cipher) => (needsMac(cipher) ? MACS : [""]).map((mac) => form(cipher, mac))),
];

function form(cipher: string, mac: string): Form {
  const sizes = keySizes(cipher, mac);
  const keys = { iv: randomBytes(sizes.iv), key: randomBytes(sizes.key), mac: randomBytes(sizes.mac) };
  const name = mac === "" ? cipher : `${cipher} with ${mac}`;
  return { name, sealer: () => createSealer(cipher, mac, keys), opener: () => createOpener(cipher, mac, keys) };
}

function seal(sealer: Sealer, payloads: readonly Uint8Array[]): Buffer {
  const writer = new PacketWriter();
  writer.use(sealer, false);
  return Buffer.concat(
    payloads.map((payload) => {
      const out = Buffer.alloc(writer.sizeOf(payload.length));
      expect(writer.write([payload.subarray(0, 1), payload.subarray(1)], payload.length, out, 0)).toBe(out.length);
      return out;
    }),
  );
}

/** Payloads and how it ended, with the stream given in pieces. */
function open(opener: Opener, chunks: readonly Buffer[]): { payloads: string[]; error?: SshError } {
  const reader = new PacketReader();
  reader.use(opener, false);
  const payloads: string[] = [];
  try {
    for (const chunk of chunks) {
      reader.push(chunk);
      for (let payload = reader.next(); payload !== undefined; payload = reader.next())
        payloads.push(payload.toString("hex"));
    }
    return { payloads };
  } catch (error) {
    if (!(error instanceof SshError)) throw error;
    return { payloads, error };
  }
}

const somePayloads = fc.array(fc.uint8Array({ minLength: 1, maxLength: 400 }), { minLength: 1, maxLength: 8 });

describe.each(forms)("$name packets", ({ sealer, opener }) => {
  test("are the same however the stream is cut", () => {
    fc.assert(
      fc.property(somePayloads, fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }), (payloads, sizes) => {
        const stream = seal(sealer(), payloads);
        const chunks: Buffer[] = [];
        for (let at = 0, i = 0; at < stream.length; i += 1) {
          const size = sizes[i % sizes.length] ?? 1;
          chunks.push(stream.subarray(at, at + size));
          at += size;
        }
        const wanted = payloads.map((payload) => Buffer.from(payload).toString("hex"));
        expect(open(opener(), chunks)).toEqual({ payloads: wanted });
        expect(open(opener(), [stream])).toEqual({ payloads: wanted });
      }),
      { numRuns: 40 },
    );
  });

  test("have at least four bytes of padding, to a whole block, and the longest payload passes", () => {
    const writer = new PacketWriter();
    const { blockBytes, padsLength, tagBytes } = sealer();
    writer.use(sealer(), false);
    for (let payload = 1; payload < 70; payload += 1) {
      const padded = writer.sizeOf(payload) - tagBytes - (padsLength ? 0 : 4);
      expect(padded % blockBytes).toBe(0);
      const padding = writer.sizeOf(payload) - tagBytes - 5 - payload;
      expect(padding).toBeGreaterThanOrEqual(4);
      expect(padding).toBeLessThan(4 + blockBytes);
    }
    const longest = Buffer.alloc(MAX_PAYLOAD_BYTES, 7);
    expect(open(opener(), [seal(sealer(), [longest])]).payloads).toEqual([longest.toString("hex")]);
    expect(() => seal(sealer(), [Buffer.alloc(MAX_PAYLOAD_BYTES + 1)])).toThrow(RangeError);
  });

  test("with an announced length that cannot be are refused before anything more is read", () => {
    for (const length of [0, 1, 5, 13, MAX_PACKET_BYTES + 16, 0x7fffffff, 0xffffffff]) {
      const bytes = Buffer.alloc(4);
      bytes.writeUInt32BE(length);
      const { error } = open(opener(), [bytes]);
      expect(error?.reason, `length ${length}`).toBe(DISCONNECT.protocolError);
    }
  });

  test("that are not whole are waited for, and give nothing", () => {
    const stream = seal(sealer(), [Buffer.from("hello")]);
    for (let cut = 0; cut < stream.length; cut += 1)
      expect(open(opener(), [stream.subarray(0, cut)])).toEqual({ payloads: [] });
  });
});

describe.each(forms.slice(1))("$name packets", ({ sealer, opener }) => {
  const payloads = [Buffer.from("the first"), Buffer.from("the second one"), Buffer.from("third")];

  test("with any bit changed end the connection, and nothing of them is seen", () => {
    const stream = seal(sealer(), payloads);
    const firstBytes = seal(sealer(), payloads.slice(0, 1)).length;
    for (let bit = 0; bit < firstBytes * 8; bit += 1) {
      const changed = Buffer.from(stream);
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      const { payloads: seen, error } = open(opener(), [changed]);
      expect(seen).toEqual([]);
      // A longer length may be within what is taken: then more bytes are waited for.
      if (bit >= 32) expect(error?.reason).toBe(DISCONNECT.macError);
    }
  });

  test("that are left out, exchanged or sent again end the connection", () => {
    const [one = Buffer.alloc(0), two = Buffer.alloc(0), three = Buffer.alloc(0)] = (() => {
      const stream = seal(sealer(), payloads);
      const sizes = payloads.map((payload, i) => seal(sealer(), payloads.slice(0, i + 1)).length);
      return sizes.map((end, i) => stream.subarray(sizes[i - 1] ?? 0, end));
    })();
    const first = payloads[0]?.toString("hex");
    expect(open(opener(), [one, three])).toMatchObject({ payloads: [first], error: { reason: DISCONNECT.macError } });
    expect(open(opener(), [two])).toMatchObject({ payloads: [], error: { reason: DISCONNECT.macError } });
    expect(open(opener(), [one, one])).toMatchObject({ payloads: [first], error: { reason: DISCONNECT.macError } });
  });

  test("with padding that does not fit are refused although their tag is right", () => {
    const bad = (padding: number): Buffer => {
      const packet = Buffer.alloc(4 + 32);
      packet.writeUInt32BE(32);
      packet[4] = padding;
      const out = Buffer.alloc(packet.length + sealer().tagBytes);
      sealer().seal(0, packet, out, 0);
      return out;
    };
    expect(open(opener(), [bad(30)]).payloads).toHaveLength(1);
    for (const padding of [0, 3, 31, 255])
      expect(open(opener(), [bad(padding)]), `padding ${padding}`).toMatchObject({
        error: { reason: DISCONNECT.protocolError },
      });
  });
});

test("a nonce of GCM counts up over its 32 bits", () => {
  const keys = {
    iv: Buffer.from("00112233 00000000 fffffffe".replaceAll(" ", ""), "hex"),
    key: randomBytes(16),
    mac: Buffer.alloc(0),
  };
  const stream = seal(
    createSealer("aes128-gcm@openssh.com", "", keys),
    [1, 2, 3, 4].map((n) => Buffer.of(n)),
  );
  expect(open(createOpener("aes128-gcm@openssh.com", "", keys), [stream]).payloads).toEqual(["01", "02", "03", "04"]);
  // The third packet is sealed as if it were the first under the nonce that must have come.
  const third = { ...keys, iv: Buffer.from("00112233 00000001 00000000".replaceAll(" ", ""), "hex") };
  expect(open(createOpener("aes128-gcm@openssh.com", "", third), [stream.subarray(72)]).payloads).toEqual(["03", "04"]);
});

test("a slow stream of one long packet is not read over and over", () => {
  const stream = seal(PLAIN, [Buffer.alloc(MAX_PAYLOAD_BYTES, 1)]);
  const reader = new PacketReader();
  let copied = 0;
  for (let at = 0; at < stream.length; at += 1) {
    reader.push(stream.subarray(at, at + 1));
    if (reader.next() !== undefined) copied += 1;
  }
  expect(copied).toBe(1);
});
