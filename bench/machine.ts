import { createHash } from "node:crypto";
import { closeSync, fdatasyncSync, openSync, writeSync } from "node:fs";
import { availableParallelism, cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { percentile } from "./result.ts";

export interface Machine {
  cpu: string;
  cores: number;
  memoryMiB: number;
  node: string;
  kernel: string;
  /** How much the same fixed work varies here, as (p90 − p10) ÷ median in percent. Differences below this say nothing. */
  noise: { cpuPercent: number; diskPercent: number };
  /** Median of 4 KiB written and synced (fdatasync), in ms: what a durable acknowledgement costs at least. */
  syncMs: number;
}

const CPU_ROUNDS = 60;
const SYNC_ROUNDS = 120;

/** Describes this machine and measures its noise, in about a second. `folder` is on the disk that the benchmark uses. */
export function describeMachine(folder: string): Machine {
  const block = Buffer.alloc(1 << 20, 7);
  const cpu = repeat(CPU_ROUNDS, () => void createHash("sha256").update(block).update(block).digest());
  const file = openSync(join(folder, "calibration"), "w");
  const page = Buffer.alloc(4096, 7);
  const sync = repeat(SYNC_ROUNDS, () => {
    writeSync(file, page);
    fdatasyncSync(file);
  });
  closeSync(file);
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryMiB: Math.round(totalmem() / 2 ** 20),
    node: process.version,
    kernel: release(),
    noise: { cpuPercent: spread(cpu), diskPercent: spread(sync) },
    syncMs: Number(percentile(sync, 0.5).toFixed(3)),
  };
}

/** Milliseconds of each round, after a few to warm up. */
function repeat(rounds: number, work: () => void): readonly number[] {
  for (let i = 0; i < rounds / 10; i += 1) work();
  return Array.from({ length: rounds }, () => {
    const begun = performance.now();
    work();
    return performance.now() - begun;
  });
}

function spread(samples: readonly number[]): number {
  return Math.round((100 * (percentile(samples, 0.9) - percentile(samples, 0.1))) / percentile(samples, 0.5));
}
