import fc from "fast-check";
import { expect, test } from "vitest";
import { FormatError } from "./errors.ts";
import { leafHash } from "./merkle.ts";
import { formatProof, parseProof, verifyProof } from "./proof.ts";
import { checkpointAt, testSigner } from "../testing/log.ts";
import {
  bundleLeafHashes,
  encodeBundle,
  hashesInLevel,
  parseBundle,
  parseTilePath,
  partialTiles,
  splitBundle,
  tilePath,
} from "./tiles.ts";

test("tile paths are those of the specification's examples, and only in that spelling", () => {
  expect(tilePath({ level: 0, index: 1_234_067, width: 256 })).toBe("tile/0/x001/x234/067");
  expect(tilePath({ level: "entries", index: 0, width: 8 })).toBe("tile/entries/000.p/8");
  expect(parseTilePath("tile/3/x001/000.p/255")).toEqual({ level: 3, index: 1000, width: 255 });
  for (const bad of [
    "tile/00/000",
    "tile/64/000",
    "tile/0/0",
    "tile/0/0000",
    "tile/0/001/000",
    "tile/0/x000/001",
    "tile/0/000.p/0",
    "tile/0/000.p/256",
    "tile/0/000.p/08",
    "tile/0/000.p",
    "tile/entry/000",
    "/tile/0/000",
    "tile/0/000/",
    "tile/0/../0/000",
    "tile/0/٠٠٠",
  ]) {
    expect(parseTilePath(bad), bad).toBeUndefined();
  }
  fc.assert(
    fc.property(
      fc.nat({ max: 63 }),
      fc.nat({ max: 999_999_999 }),
      fc.integer({ min: 1, max: 256 }),
      (level, index, width) => {
        expect(parseTilePath(tilePath({ level, index, width }))).toEqual({ level, index, width });
      },
    ),
  );
});

test("a tree of 70,000 has the tiles that the specification counts", () => {
  expect(hashesInLevel(0, 70_000)).toBe(273 * 256 + 112);
  expect(partialTiles(70_000)).toEqual([
    { level: 0, index: 273, width: 112 },
    { level: 1, index: 1, width: 17 },
    { level: 2, index: 0, width: 1 },
  ]);
  expect(partialTiles(256)).toEqual([{ level: 1, index: 0, width: 1 }]);
});

test("bundles round-trip, hash like leaves and are left as they were", () => {
  const entries = fc.array(fc.uint8Array({ maxLength: 600 }), { minLength: 1, maxLength: 20 });
  fc.assert(
    fc.property(entries, (list) => {
      const bundle = encodeBundle(list);
      const before = Buffer.from(bundle);
      const parsed = parseBundle(bundle, list.length);
      expect(parsed.map((e) => Buffer.from(e).toString("hex"))).toEqual(
        list.map((e) => Buffer.from(e).toString("hex")),
      );
      expect(bundleLeafHashes(parsed).equals(Buffer.concat(list.map(leafHash)))).toBe(true);
      expect(bundle.equals(before)).toBe(true);
    }),
  );
  const largest = encodeBundle([Buffer.alloc(65_535, 1)]);
  expect(parseBundle(largest, 1)[0]).toHaveLength(65_535);
  expect(() => encodeBundle([Buffer.alloc(65_536)])).toThrow(FormatError);
});

test("a bundle of any bytes parses exactly when it is the encoding of as many entries", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), fc.integer({ min: 1, max: 256 }), (bytes, width) => {
      const { entries, problem } = splitBundle(bytes, width);
      expect(problem === undefined).toBe(entries.length === width && encodeBundle(entries).equals(bytes));
    }),
  );
});

test("a proof file has the specified form, round-trips, and proves this entry only", () => {
  const entries = ["zero", "one", "two"].map((text) => Buffer.from(text));
  const signer = testSigner("log");
  const checkpoint = checkpointAt(entries, 2, signer);
  const [first = Buffer.alloc(0), second = Buffer.alloc(0)] = entries;
  const proof = formatProof({ index: 1, hashes: [leafHash(first)], checkpoint });
  expect(proof).toBe(`c2sp.org/tlog-proof@v1\nindex 1\n${leafHash(first).toString("base64")}\n\n${checkpoint}`);
  expect(verifyProof({ proof, entry: second, vkey: signer.vkey })).toMatchObject({ size: 2, index: 1 });
  expect(() => verifyProof({ proof, entry: first, vkey: signer.vkey })).toThrow(/is not the one at index 1/);
  expect(() => verifyProof({ proof, entry: second, vkey: testSigner("x").vkey })).toThrow(/no signature/);
  expect(parseProof(formatProof({ ...parseProof(proof), extra: Buffer.from("hi") })).extra?.toString()).toBe("hi");
  for (const bad of [
    proof.replace("@v1", "@v2"),
    proof.replace("index 1", "index 01"),
    proof.replace("index 1\n", ""),
    proof.replace("=\n", "\n"),
    proof.split("\n\n")[0] ?? "",
  ]) {
    expect(() => parseProof(bad), bad).toThrow(FormatError);
  }
});

test("editing any byte of a proof file is refused", () => {
  const entries = ["zero", "one", "two", "three", "four"].map((text) => Buffer.from(text));
  const signer = testSigner("log");
  const hashes = [leafHash(entries[3] ?? Buffer.alloc(0))];
  const bytes = Buffer.from(
    formatProof({ index: 2, hashes, checkpoint: checkpointAt(entries.slice(2, 4), 2, signer) }),
  );
  const shifted = Buffer.from(bytes.toString().replace("index 2", "index 0"));
  const entry = entries[2] ?? Buffer.alloc(0);
  expect(verifyProof({ proof: shifted, entry, vkey: signer.vkey }).size).toBe(2);
  for (let i = 0; i < shifted.length; i += 1) {
    const saved = shifted[i] ?? 0;
    shifted[i] = saved ^ 0x01;
    expect(() => verifyProof({ proof: shifted, entry, vkey: signer.vkey }), `byte ${i}`).toThrow(/./);
    shifted[i] = saved;
  }
});
