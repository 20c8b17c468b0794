import { hash } from "node:crypto";
import { FormatError } from "./errors.ts";

/**
 * The Merkle tree of RFC 6962 section 2.1 (the same in RFC 9162): a leaf is SHA-256(0x00 ‖ entry), a node is
 * SHA-256(0x01 ‖ left ‖ right), and a tree of any size splits at the largest power of two below it.
 */
export const HASH_BYTES = 32;
export const EMPTY_ROOT: Uint8Array = hash("sha256", "", "buffer");

const LEAF_PREFIX = Uint8Array.of(0x00);
const scratch = Buffer.alloc(1 + 2 * HASH_BYTES, 0x01);

export function leafHash(entry: Uint8Array): Buffer {
  return hash("sha256", Buffer.concat([LEAF_PREFIX, entry]), "buffer");
}

export function nodeHash(left: Uint8Array, right: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(HASH_BYTES);
  hashNodeInto(left, 0, right, 0, out, 0);
  return out;
}

/** SHA-256 of `prefixedEntry` (which starts with 0x00) into `out` at `offset`. The string form is node's fastest. */
export function hashLeafInto(prefixedEntry: Uint8Array, out: Buffer, offset: number): void {
  out.write(hash("sha256", prefixedEntry, "latin1"), offset, HASH_BYTES, "latin1");
}

function hashNodeInto(
  left: Uint8Array,
  leftOffset: number,
  right: Uint8Array,
  rightOffset: number,
  out: Buffer,
  offset: number,
): void {
  scratch.set(left.subarray(leftOffset, leftOffset + HASH_BYTES), 1);
  scratch.set(right.subarray(rightOffset, rightOffset + HASH_BYTES), 1 + HASH_BYTES);
  out.write(hash("sha256", scratch, "latin1"), offset, HASH_BYTES, "latin1");
}

/**
 * The root over `hashes`, a concatenation of one or more hashes of equal height. For 256 of them this is the hash that
 * stands for their tile in the level above.
 */
export function rootOfHashes(hashes: Uint8Array): Buffer {
  const range = emptyRange();
  appendHashes(range, 0, hashes);
  return rootOf(range);
}

/**
 * A tree of `size` leaves, held as the roots of the perfect subtrees it consists of, largest (leftmost) first: one for
 * each bit set in `size`. This is all that is needed to append, and to know the root.
 */
export interface CompactRange {
  size: number;
  readonly peaks: Peak[];
}

interface Peak {
  readonly height: number;
  readonly hash: Uint8Array;
}

export function emptyRange(): CompactRange {
  return { size: 0, peaks: [] };
}

export function copyRange(range: CompactRange): CompactRange {
  return { size: range.size, peaks: [...range.peaks] };
}

/** Appends the root of a perfect subtree of 2^height leaves (0: one leaf). The size must be a multiple of that. */
export function appendSubtree(range: CompactRange, height: number, subtree: Uint8Array): void {
  if (range.size % 2 ** height !== 0) throw new RangeError("a subtree must start at a multiple of its size");
  let peak: Peak = { height, hash: subtree };
  for (;;) {
    const last = range.peaks.at(-1);
    if (last === undefined || last.height !== peak.height) break;
    range.peaks.pop();
    peak = { height: peak.height + 1, hash: nodeHash(last.hash, peak.hash) };
  }
  range.peaks.push(peak);
  range.size += 2 ** height;
}

/** Appends each hash of the concatenation as a subtree of that height. */
export function appendHashes(range: CompactRange, height: number, hashes: Uint8Array): void {
  let offset = 0;
  const end = hashes.length;
  if (end % HASH_BYTES !== 0) throw new FormatError("hashes have 32 bytes each");
  while (offset < end) {
    // Perfect runs are folded in place, which spares an object for each node.
    let count = 1;
    while (offset + 2 * count * HASH_BYTES <= end && (range.size / 2 ** height) % (2 * count) === 0 && count < 256) {
      count *= 2;
    }
    const run = Buffer.from(hashes.subarray(offset, offset + count * HASH_BYTES)); // a copy: folded in place
    for (let width = count; width > 1; width /= 2) {
      for (let i = 0; i < width; i += 2) {
        hashNodeInto(run, i * HASH_BYTES, run, (i + 1) * HASH_BYTES, run, (i / 2) * HASH_BYTES);
      }
    }
    appendSubtree(range, height + Math.log2(count), run.subarray(0, HASH_BYTES));
    offset += count * HASH_BYTES;
  }
}

export function rootOf(range: CompactRange): Buffer {
  let root: Uint8Array | undefined;
  for (let i = range.peaks.length - 1; i >= 0; i -= 1) {
    const peak = range.peaks[i];
    if (peak !== undefined) root = root === undefined ? peak.hash : nodeHash(peak.hash, root);
  }
  return Buffer.from(root ?? EMPTY_ROOT);
}

/** Gives the root of the perfect subtree of leaves [index × 2^height, (index + 1) × 2^height). */
export type NodeReader = (height: number, index: number) => Promise<Uint8Array>;

/** The root of the leaves [start, end), which must be a subtree of some RFC 6962 tree. */
export async function subtreeRoot(start: number, end: number, node: NodeReader): Promise<Buffer> {
  if (end <= start) return Buffer.from(EMPTY_ROOT);
  const width = end - start;
  const height = Math.floor(Math.log2(width));
  if (2 ** height === width && start % width === 0) return Buffer.from(await node(height, start / width));
  const split = largestPowerBelow(width);
  const left = await subtreeRoot(start, start + split, node);
  return nodeHash(left, await subtreeRoot(start + split, end, node));
}

/** RFC 6962 section 2.1.1: the hashes that lead from leaf `index` to the root of the tree of `size`. */
export async function inclusionProof(index: number, size: number, node: NodeReader): Promise<Buffer[]> {
  if (!(index >= 0 && index < size)) throw new RangeError("no such leaf in a tree of this size");
  const proof: Buffer[] = [];
  let [start, end] = [0, size];
  while (end - start > 1) {
    const middle = start + largestPowerBelow(end - start);
    if (index < middle) {
      proof.push(await subtreeRoot(middle, end, node));
      end = middle;
    } else {
      proof.push(await subtreeRoot(start, middle, node));
      start = middle;
    }
  }
  return proof.toReversed();
}

/** RFC 6962 section 2.1.2: the hashes that show the tree of `oldSize` to be a prefix of the tree of `size`. */
export async function consistencyProof(oldSize: number, size: number, node: NodeReader): Promise<Buffer[]> {
  if (!(oldSize >= 0 && oldSize <= size)) throw new RangeError("the older tree is not the smaller one");
  if (oldSize === 0 || oldSize === size) return [];
  const proof: Buffer[] = [];
  let [start, end] = [0, size];
  let whole = true; // SUBPROOF's flag: the old tree is all of this subtree, so its root is known already
  while (oldSize !== end) {
    const middle = start + largestPowerBelow(end - start);
    if (oldSize <= middle) {
      proof.push(await subtreeRoot(middle, end, node));
      end = middle;
    } else {
      proof.push(await subtreeRoot(start, middle, node));
      start = middle;
      whole = false;
    }
  }
  if (!whole) proof.push(await subtreeRoot(start, end, node));
  return proof.toReversed();
}

/** RFC 9162 section 2.1.3.2. */
export function verifyInclusion(
  leaf: Uint8Array,
  index: number,
  size: number,
  proof: readonly Uint8Array[],
  root: Uint8Array,
): boolean {
  if (!isSize(index) || !isSize(size) || index >= size || !areHashes([leaf, root, ...proof])) return false;
  let [fn, sn] = [BigInt(index), BigInt(size - 1)];
  let r = leaf;
  for (const p of proof) {
    if (sn === 0n) return false;
    if ((fn & 1n) === 1n || fn === sn) {
      r = nodeHash(p, r);
      while ((fn & 1n) === 0n && fn !== 0n) [fn, sn] = [fn >> 1n, sn >> 1n];
    } else {
      r = nodeHash(r, p);
    }
    [fn, sn] = [fn >> 1n, sn >> 1n];
  }
  return sn === 0n && Buffer.compare(r, root) === 0;
}

/** RFC 9162 section 2.1.4.2. An empty tree is a prefix of every tree. */
export function verifyConsistency(
  oldSize: number,
  size: number,
  proof: readonly Uint8Array[],
  oldRoot: Uint8Array,
  root: Uint8Array,
): boolean {
  if (!isSize(oldSize) || !isSize(size) || oldSize > size || !areHashes([oldRoot, root, ...proof])) return false;
  if (oldSize === size) return proof.length === 0 && Buffer.compare(oldRoot, root) === 0;
  if (oldSize === 0) return proof.length === 0 && Buffer.compare(oldRoot, EMPTY_ROOT) === 0;
  const path = isPowerOfTwo(oldSize) ? [oldRoot, ...proof] : proof;
  const [first, ...rest] = path;
  if (first === undefined || proof.length === 0) return false;
  let [fn, sn] = [BigInt(oldSize - 1), BigInt(size - 1)];
  while ((fn & 1n) === 1n) [fn, sn] = [fn >> 1n, sn >> 1n];
  let [fr, sr] = [first, first];
  for (const c of rest) {
    if (sn === 0n) return false;
    if ((fn & 1n) === 1n || fn === sn) {
      [fr, sr] = [nodeHash(c, fr), nodeHash(c, sr)];
      while ((fn & 1n) === 0n && fn !== 0n) [fn, sn] = [fn >> 1n, sn >> 1n];
    } else {
      sr = nodeHash(sr, c);
    }
    [fn, sn] = [fn >> 1n, sn >> 1n];
  }
  return sn === 0n && Buffer.compare(fr, oldRoot) === 0 && Buffer.compare(sr, root) === 0;
}

/** The largest power of two smaller than `width`, which is at least 2. */
function largestPowerBelow(width: number): number {
  let power = 1;
  while (power * 2 < width) power *= 2;
  return power;
}

function isPowerOfTwo(size: number): boolean {
  return 2 ** Math.floor(Math.log2(size)) === size;
}

function isSize(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

function areHashes(hashes: readonly Uint8Array[]): boolean {
  return hashes.length <= 70 && hashes.every((h) => h.length === HASH_BYTES);
}
