/** One figure beside its peer's, measured in the same run on the same machine. */
export interface Result {
  /** What was measured, such as `pgbench -S, 32 clients, durable`. */
  metric: string;
  /** Such as `tx/s`, `ms`, `MiB`. */
  unit: string;
  value: number;
  /** What it is compared with, such as `pgbouncer, session mode`; null where there is none. */
  peer: string | null;
  peerValue: number | null;
  /** value ÷ peerValue. */
  ratio: number | null;
  /** In words, such as `ratio at least 0.6`; null where nothing was promised. */
  goal: string | null;
  met: boolean | null;
}

/** What a benchmark, `bench/NAME.ts`, exports. */
export interface Benchmark {
  /** One line for the list of names. */
  summary: string;
  run: (context: BenchContext) => Promise<Result[]>;
}

export interface BenchContext {
  /** A folder of this run's own; removed afterwards. Other users may enter it, as PostgreSQL must. */
  readonly folder: string;
  /** Aborted on Ctrl-C: stop what was started and return. */
  readonly signal: AbortSignal;
  /** A line on stderr for the one who waits. */
  readonly progress: (line: string) => void;
}

export type Goal = { ratioAtLeast: number } | { ratioAtMost: number } | { atLeast: number } | { atMost: number };

/** Puts a result together; ratio and `met` follow from the rest. */
export function result(
  metric: string,
  unit: string,
  value: number,
  options: { peer?: { name: string; value: number }; goal?: Goal } = {},
): Result {
  const { peer, goal } = options;
  const ratio = peer === undefined || peer.value === 0 ? null : value / peer.value;
  return {
    ...{ metric, unit, value, peer: peer?.name ?? null, peerValue: peer?.value ?? null, ratio },
    goal: goal === undefined ? null : goalText(goal, unit),
    met: goal === undefined ? null : isMet(goal, value, ratio),
  };
}

function goalText(goal: Goal, unit: string): string {
  if ("ratioAtLeast" in goal) return `ratio at least ${goal.ratioAtLeast}`;
  if ("ratioAtMost" in goal) return `ratio at most ${goal.ratioAtMost}`;
  return "atLeast" in goal ? `at least ${goal.atLeast} ${unit}` : `at most ${goal.atMost} ${unit}`;
}

function isMet(goal: Goal, value: number, ratio: number | null): boolean | null {
  if ("ratioAtLeast" in goal) return ratio === null ? null : ratio >= goal.ratioAtLeast;
  if ("ratioAtMost" in goal) return ratio === null ? null : ratio <= goal.ratioAtMost;
  return "atLeast" in goal ? value >= goal.atLeast : value <= goal.atMost;
}

/** The value that `share` of the samples do not exceed (nearest rank). NaN for none. */
export function percentile(samples: readonly number[], share: number): number {
  const sorted = samples.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? NaN;
}
