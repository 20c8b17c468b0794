import { randomBytes } from "node:crypto";
import { closeSync, constants, fdatasync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { newId } from "../server/src/core/ids.ts";
import { openJournal } from "../server/src/recording/journal.ts";
import { RECORD } from "../server/src/targets/target.ts";
import { type BenchContext, percentile, type Result, result } from "./result.ts";

export const summary = "the recording's journal: acknowledgements and their wait, beside one sync per record";

const WRITERS = [1, 16, 256] as const;
const RUN_MS = 2_000;
const GOAL_WRITERS = 16;
const GOAL_PER_SECOND = 20_000;
const GOAL_P99_MS = 2;
const GOAL_CPU_US = 4;
const PEER = "one write and fdatasync per record";
const PAYLOAD = JSON.stringify({
  n: 1,
  via: "extended",
  text: "SELECT abalance FROM pgbench_accounts WHERE aid = $1;",
  params: ["48211"],
});

interface Run {
  perSecond: number;
  p50Ms: number;
  p99Ms: number;
  cpuUs: number;
}

type Write = (writer: number, committed: () => void) => void;

/** Each writer waits for its acknowledgement before its next record, as a client waits for its answer. */
async function drive(writers: number, write: Write): Promise<Run> {
  const waits: number[] = [];
  const cpu = process.threadCpuUsage();
  const began = performance.now();
  const until = began + RUN_MS;
  await Promise.all(
    Array.from(
      { length: writers },
      (_, writer) =>
        new Promise<void>((resolve) => {
          const next = (): void => {
            const at = performance.now();
            if (at >= until) return resolve();
            write(writer, () => {
              waits.push(performance.now() - at);
              next();
            });
          };
          next();
        }),
    ),
  );
  const seconds = (performance.now() - began) / 1000;
  const { user, system } = process.threadCpuUsage(cpu);
  return {
    perSecond: waits.length / seconds,
    p50Ms: percentile(waits, 0.5),
    p99Ms: percentile(waits, 0.99),
    cpuUs: (user + system) / waits.length,
  };
}

async function ours(dir: string, mode: "durable" | "written", writers: number): Promise<Run> {
  let failure: Error | undefined;
  const journal = await openJournal({ dir, key: randomBytes(32), mode, onFailure: (error) => (failure = error) });
  try {
    const recorders = Array.from({ length: writers }, () => journal.recorder(newId("session")));
    const run = await drive(writers, (writer, committed) =>
      recorders[writer]?.write(RECORD.statementStarted, PAYLOAD, committed),
    );
    if (failure !== undefined) throw failure;
    return run;
  } finally {
    await journal.close();
  }
}

/** What a recorder does without group commit: every record has a write and a sync of its own, one after the other. */
async function naive(dir: string, writers: number): Promise<Run> {
  const fd = openSync(join(dir, "naive"), constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    const record = Buffer.from(PAYLOAD);
    const queue: (() => void)[] = [];
    let busy = false;
    let position = 0;
    const work = (): void => {
      const committed = queue.shift();
      if (committed === undefined) return;
      busy = true;
      writeSync(fd, record, 0, record.length, position);
      position += record.length;
      fdatasync(fd, (error) => {
        if (error !== null) throw error;
        busy = false;
        committed();
        if (!busy) work();
      });
    };
    return await drive(writers, (_, committed) => {
      queue.push(committed);
      if (!busy) work();
    });
  } finally {
    closeSync(fd);
  }
}

/** Each number of writers in turn: the peer, durable, written. */
export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  const results: Result[] = [];
  for (const writers of WRITERS) {
    if (signal.aborted) break;
    const name = `${writers} writer${writers === 1 ? "" : "s"}`;
    progress(`${name}: ${PEER}, durable, written`);
    const base = await naive(folder, writers);
    const durable = await ours(join(folder, `durable-${writers}`), "durable", writers);
    const written = await ours(join(folder, `written-${writers}`), "written", writers);
    const main = writers === GOAL_WRITERS;
    const peer = (value: number): { name: string; value: number } => ({ name: PEER, value });
    results.push(
      result(`durable acknowledgements, ${name}`, "1/s", durable.perSecond, {
        peer: peer(base.perSecond),
        ...(main ? { goal: { atLeast: GOAL_PER_SECOND } } : {}),
      }),
      result(`durable wait p50, ${name}`, "ms", durable.p50Ms, { peer: peer(base.p50Ms) }),
      result(`durable wait p99, ${name}`, "ms", durable.p99Ms, {
        peer: peer(base.p99Ms),
        ...(main ? { goal: { atMost: GOAL_P99_MS } } : {}),
      }),
      result(`durable CPU of the gateway's thread, ${name}`, "µs", durable.cpuUs, {
        peer: peer(base.cpuUs),
        ...(main ? { goal: { atMost: GOAL_CPU_US } } : {}),
      }),
      result(`written acknowledgements, ${name}`, "1/s", written.perSecond),
      result(`written wait p99, ${name}`, "ms", written.p99Ms),
    );
  }
  return results;
}
