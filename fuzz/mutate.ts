import type { Random } from "./random.ts";

const MAX_BYTES = 64 * 1024;
/** Lengths that parsers get wrong: nothing, the signs of 16 and 32 bits, 1 GB, and everything. */
const LENGTHS = [
  0, 1, 3, 4, 5, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff,
];
const BYTES = [0x00, 0x01, 0x0a, 0x0d, 0x20, 0x22, 0x27, 0x2d, 0x5c, 0x7f, 0x80, 0xc0, 0xed, 0xf4, 0xff];

type Mutation = (input: Buffer, random: Random, seeds: readonly Uint8Array[], words: readonly string[]) => Buffer;

/** A new input made from one of `seeds` by up to eight changes; `words` are pieces of the language to put in. */
export function mutate(seeds: readonly Uint8Array[], words: readonly string[], random: Random): Buffer {
  let input: Buffer = Buffer.from(random.pick(seeds));
  for (let left = random.int(9); left > 0; left -= 1) input = random.pick(MUTATIONS)(input, random, seeds, words);
  return input.subarray(0, MAX_BYTES);
}

const at = (input: Buffer, random: Random): number => random.int(input.length + 1);
const splice = (input: Buffer, from: number, to: number, put: Uint8Array): Buffer =>
  Buffer.concat([input.subarray(0, from), put, input.subarray(to)]);
/** A stretch of the input, mostly short. */
function stretch(input: Buffer, random: Random): [number, number] {
  const from = at(input, random);
  const longest = random.chance(4) ? input.length : 16;
  return [from, Math.min(input.length, from + random.int(longest + 1))];
}

const MUTATIONS: readonly Mutation[] = [
  function flipBit(input, random) {
    if (input.length === 0) return input;
    const copy = Buffer.from(input);
    const where = random.int(copy.length);
    copy[where] = (copy[where] ?? 0) ^ (1 << random.int(8));
    return copy;
  },
  function setByte(input, random) {
    if (input.length === 0) return input;
    const copy = Buffer.from(input);
    copy[random.int(copy.length)] = random.chance(2) ? random.pick(BYTES) : random.int(256);
    return copy;
  },
  function insertBytes(input, random) {
    const where = at(input, random);
    const put = Buffer.from(Array.from({ length: 1 + random.int(8) }, () => random.int(256)));
    return splice(input, where, where, put);
  },
  function remove(input, random) {
    const [from, to] = stretch(input, random);
    return splice(input, from, to, Buffer.alloc(0));
  },
  function repeat(input, random) {
    const [from, to] = stretch(input, random);
    const piece = input.subarray(from, to);
    const times = random.chance(8) ? 200 : 1 + random.int(3);
    return splice(input, to, to, Buffer.concat(Array.from({ length: times }, () => piece)).subarray(0, MAX_BYTES));
  },
  function lieAboutLength(input, random) {
    const bytes = random.pick([2, 4]);
    if (input.length < bytes) return input;
    const copy = Buffer.from(input);
    const where = random.int(copy.length - bytes + 1);
    const near = copy.readUIntBE(where, bytes) + random.int(5) - 2;
    const value = (random.chance(2) ? near : random.pick(LENGTHS)) % 2 ** (8 * bytes);
    if (random.chance(4)) copy.writeUIntLE(Math.max(0, value), where, bytes);
    else copy.writeUIntBE(Math.max(0, value), where, bytes);
    return copy;
  },
  function crossOver(input, random, seeds) {
    const other = Buffer.from(random.pick(seeds));
    return Buffer.concat([input.subarray(0, at(input, random)), other.subarray(at(other, random))]);
  },
  function insertWord(input, random, _seeds, words) {
    if (words.length === 0) return input;
    const [from, to] = random.chance(2) ? stretch(input, random) : [at(input, random), 0];
    return splice(input, from, Math.max(from, to), Buffer.from(random.pick(words), "utf8"));
  },
  function truncate(input, random) {
    return input.subarray(0, at(input, random));
  },
];
