/** A reproducible source of choices: the same seed, the same sequence, on every machine. Not for secrets. */
export interface Random {
  /** An integer in [0, below). */
  int(below: number): number;
  chance(oneIn: number): boolean;
  pick<T>(from: readonly T[]): T;
}

/** mulberry32: 32 bits of state are plenty for choosing mutations, and a seed fits on a command line. */
export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const int = (below: number): number => Math.floor(next() * below);
  return {
    int,
    chance: (oneIn) => int(oneIn) === 0,
    pick(from) {
      const picked = from[int(from.length)];
      if (picked === undefined) throw new RangeError("nothing to pick from");
      return picked;
    },
  };
}
