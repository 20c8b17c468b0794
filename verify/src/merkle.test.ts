import { hash } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import {
  appendHashes,
  appendSubtree,
  consistencyProof,
  EMPTY_ROOT,
  emptyRange,
  inclusionProof,
  leafHash,
  nodeHash,
  rootOf,
  verifyConsistency,
  verifyInclusion,
  type NodeReader,
} from "./merkle.ts";

// The reference inputs and tree heads of Certificate Transparency (RFC 6962), sizes 0 to 8.
const INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
const ROOTS = [
  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
  "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
  "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
  "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
  "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
  "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
  "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
  "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

/** RFC 6962 section 2.1, word for word. */
function naiveRoot(leaves: readonly Uint8Array[]): Buffer {
  const [first] = leaves;
  if (first === undefined) return hash("sha256", "", "buffer");
  if (leaves.length === 1) return Buffer.from(first);
  let k = 1;
  while (k * 2 < leaves.length) k *= 2;
  return hash(
    "sha256",
    Buffer.concat([Uint8Array.of(1), naiveRoot(leaves.slice(0, k)), naiveRoot(leaves.slice(k))]),
    "buffer",
  );
}

const someLeaves = (count: number): Buffer[] =>
  Array.from({ length: count }, (_, i) => leafHash(Buffer.from(`leaf ${i}`)));
const readerOf =
  (leaves: readonly Uint8Array[]): NodeReader =>
  (height, index) =>
    Promise.resolve(naiveRoot(leaves.slice(index * 2 ** height, (index + 1) * 2 ** height)));

test("the roots of the RFC 6962 reference tree come out", () => {
  const range = emptyRange();
  expect(rootOf(range).toString("hex")).toBe(ROOTS[0]);
  for (const [i, input] of INPUTS.entries()) {
    appendSubtree(range, 0, leafHash(Buffer.from(input, "hex")));
    expect(rootOf(range).toString("hex")).toBe(ROOTS[i + 1]);
  }
});

test("the proofs of the RFC 6962 reference tree come out and verify", async () => {
  const leaves = INPUTS.map((input) => leafHash(Buffer.from(input, "hex")));
  const hex = (proof: readonly Buffer[]): string[] => proof.map((p) => p.toString("hex"));
  const root = Buffer.from(ROOTS[8] ?? "", "hex");
  const path0 = await inclusionProof(0, 8, readerOf(leaves));
  expect(hex(path0)).toEqual([
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
  ]);
  expect(hex((await inclusionProof(5, 8, readerOf(leaves))).slice(0, 2))).toEqual([
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
  ]);
  expect(verifyInclusion(leaves[0] ?? EMPTY_ROOT, 0, 8, path0, root)).toBe(true);
  const grown = await consistencyProof(6, 8, readerOf(leaves));
  expect(verifyConsistency(6, 8, grown, Buffer.from(ROOTS[6] ?? "", "hex"), root)).toBe(true);
});

test("appending in any pieces, as leaves or as subtrees, gives the root of the definition", () => {
  const leaves = someLeaves(600);
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 300 }), { maxLength: 8 }), (pieces) => {
      const range = emptyRange();
      for (const piece of pieces) {
        const end = Math.min(leaves.length, range.size + piece);
        appendHashes(range, 0, Buffer.concat(leaves.slice(range.size, end)));
      }
      expect(rootOf(range).equals(naiveRoot(leaves.slice(0, range.size)))).toBe(true);
    }),
    { numRuns: 60 },
  );
  const tiles = emptyRange();
  for (let i = 0; i < 512; i += 256) appendSubtree(tiles, 8, naiveRoot(leaves.slice(i, i + 256)));
  appendHashes(tiles, 0, Buffer.concat(leaves.slice(512)));
  expect(rootOf(tiles).equals(naiveRoot(leaves))).toBe(true);
});

test("every inclusion proof of every tree up to 40 leaves verifies, and for no other leaf, index, size or root", async () => {
  const leaves = someLeaves(40);
  for (let size = 1; size <= 40; size += 1) {
    const root = naiveRoot(leaves.slice(0, size));
    for (let index = 0; index < size; index += 1) {
      const proof = await inclusionProof(index, size, readerOf(leaves));
      const leaf = leaves[index] ?? EMPTY_ROOT;
      expect(verifyInclusion(leaf, index, size, proof, root)).toBe(true);
      expect(verifyInclusion(leafHash(Buffer.from("other")), index, size, proof, root)).toBe(false);
      expect(verifyInclusion(leaf, index, size, proof, EMPTY_ROOT)).toBe(false);
      expect(verifyInclusion(leaf, index, size, [...proof, root], root)).toBe(false);
      expect(verifyInclusion(leaf, index, size, proof.slice(1), root)).toBe(size === 1);
      for (let other = 0; other < size; other += 1) {
        expect(verifyInclusion(leaf, other, size, proof, root)).toBe(other === index);
      }
    }
  }
});

test("every consistency proof between trees up to 40 leaves verifies, and none for a fork", async () => {
  const leaves = someLeaves(40);
  const roots = Array.from({ length: 41 }, (_, size) => naiveRoot(leaves.slice(0, size)));
  for (let size = 0; size <= 40; size += 1) {
    for (let old = 0; old <= size; old += 1) {
      const proof = await consistencyProof(old, size, readerOf(leaves));
      const [oldRoot, root] = [roots[old] ?? EMPTY_ROOT, roots[size] ?? EMPTY_ROOT];
      expect(verifyConsistency(old, size, proof, oldRoot, root), `${old} to ${size}`).toBe(true);
      const fork = nodeHash(oldRoot, root);
      expect(verifyConsistency(old, size, proof, fork, root)).toBe(false);
      expect(verifyConsistency(old, size, proof, oldRoot, fork)).toBe(old === 0 && size > 0); // from nothing grows anything
      expect(verifyConsistency(old, size, [...proof, fork], oldRoot, root)).toBe(false);
      for (let i = 0; i < proof.length; i += 1) {
        expect(verifyConsistency(old, size, proof.with(i, fork), oldRoot, root)).toBe(false);
        expect(verifyConsistency(old, size, proof.toSpliced(i, 1), oldRoot, root)).toBe(false);
      }
    }
  }
});

test("hostile proofs are answered with no, whatever their numbers", () => {
  const hashes = fc.array(fc.uint8Array({ minLength: 0, maxLength: 33 }), { maxLength: 80 });
  const number = fc.oneof(fc.integer(), fc.double(), fc.maxSafeInteger(), fc.constantFrom(2 ** 32, 2 ** 53, -1));
  fc.assert(
    fc.property(number, number, hashes, (a, b, proof) => {
      expect(verifyInclusion(EMPTY_ROOT, a, b, proof, Buffer.alloc(32, 1))).toBe(false);
      expect(verifyConsistency(a, b, proof, Buffer.alloc(32, 1), Buffer.alloc(32, 2))).toBe(false);
    }),
  );
});
