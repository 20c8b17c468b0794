import { spawn } from "node:child_process";
import { open, rm } from "node:fs/promises";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { execute } from "./clients.ts";
import { percentile, result, type BenchContext, type Result } from "./result.ts";
import { startSshStage, type SshStage, type SshWay } from "./ssh-stage.ts";
import { openSessions } from "./ssh-sessions.ts";
import { quiet, residentBytes } from "./stage.ts";

export const summary =
  "SSH through the gateway: connecting, copies, keystrokes, 200 sessions, 500 connections a minute; beside direct and ssh -J";

/** How much of everything. */
export interface SshSizes {
  readonly connects: number;
  readonly fileMiB: number;
  readonly copyRounds: number;
  readonly keystrokes: number;
  readonly kills: number;
  readonly sessions: number;
  /** An Ansible-like load: connections a minute, for so many seconds. */
  readonly load: { readonly perMinute: number; readonly seconds: number };
}

/** Ten minutes of the load with GLASSKEY_BENCH_FULL=1; the same rate for one minute without. */
const SIZES: SshSizes = {
  ...{ connects: 60, fileMiB: 1024, copyRounds: 3, keystrokes: 1_000, kills: 30, sessions: 200 },
  load: { perMinute: 500, seconds: process.env["GLASSKEY_BENCH_FULL"] === "1" ? 600 : 60 },
};
const COPY_GOAL = 0.7;
const COPY_GROWTH_MIB = 64;
const KEYSTROKE_GOAL_MS = 3;
const SESSION_GOAL_MIB = 2;
const KILL_GOAL_MS = 100;
const SAMPLE_MS = 50;
const MIB = 2 ** 20;

export function run(context: BenchContext): Promise<Result[]> {
  return measure(context, SIZES);
}

/** Every measurement goes round its ways several times, A B C A B C …; medians are compared. */
export async function measure({ folder, signal, progress }: BenchContext, sizes: SshSizes): Promise<Result[]> {
  progress("starting two sshd and a Glasskey");
  await using stage = await startSshStage(folder, signal, process.env["GLASSKEY_BENCH_PROFILE"]);
  const ways = [stage.glasskey, stage.jump, stage.direct];
  const results: Result[] = [];
  for (const way of ways) for (let n = 0; n < 3; n++) await ssh(way, ["true"], signal); // warm
  results.push(...(await connects(stage, ways, sizes.connects, signal, progress)));
  results.push(...(await copies(stage, ways, folder, sizes, signal, progress)));
  results.push(...(await keystrokes(stage, ways, sizes.keystrokes, signal, progress)));
  results.push(...(await kills(stage, sizes.kills, signal, progress)));
  results.push(...(await memory(stage, sizes.sessions, signal, progress)));
  results.push(...(await load(stage, sizes.load, signal, progress)));
  return results;
}

const ssh = (way: SshWay, words: readonly string[], signal: AbortSignal): ReturnType<typeof execute> =>
  execute("ssh", ["-F", way.config, way.host, ...words], { signal });

async function connects(
  { pid }: SshStage,
  ways: readonly SshWay[],
  count: number,
  signal: AbortSignal,
  progress: BenchContext["progress"],
): Promise<Result[]> {
  progress(`connecting ${count} times each way`);
  await quiet([pid]);
  const samples = new Map<SshWay, number[]>(ways.map((way) => [way, []]));
  for (let n = 0; n < count; n++) for (const way of ways) samples.get(way)?.push((await ssh(way, ["true"], signal)).ms);
  const [ours, ...peers] = ways;
  return [0.5, 0.99].flatMap((share) =>
    peers.map((peer) =>
      result(`ssh HOST true, p${share * 100}`, "ms", percentile(samples.get(ours as SshWay) ?? [], share), {
        peer: { name: peer.name, value: percentile(samples.get(peer) ?? [], share) },
      }),
    ),
  );
}

async function copies(
  stage: SshStage,
  ways: readonly SshWay[],
  folder: string,
  { fileMiB, copyRounds }: SshSizes,
  signal: AbortSignal,
  progress: BenchContext["progress"],
): Promise<Result[]> {
  // In memory where that is a file system: the disk is not what is measured.
  const dir = existsSync("/dev/shm") ? "/dev/shm" : folder;
  const [source, sink] = [join(dir, `glasskey-bench-${process.pid}`), join(dir, `glasskey-bench-${process.pid}-copy`)];
  const results: Result[] = [];
  let [leastBytes, mostBytes] = [Infinity, 0];
  try {
    const file = await open(source, "w");
    for (let n = 0; n < fileMiB; n++) await file.write(Buffer.alloc(MIB, n % 251));
    await file.close();
    for (const [protocol, flags] of [
      ["SFTP", []],
      ["scp -O", ["-O"]],
    ] as const) {
      for (const direction of ["up", "down"] as const) {
        const samples = new Map<SshWay, number[]>(ways.map((way) => [way, []]));
        for (let round = 0; round < copyRounds; round++) {
          for (const way of ways) {
            progress(`${protocol} ${direction}, ${fileMiB} MiB: ${way.name}`);
            await quiet([stage.pid]);
            const sampler = setInterval(() => {
              if (way !== stage.glasskey) return;
              void residentBytes(stage.pid).then((bytes) => {
                leastBytes = Math.min(leastBytes, bytes);
                mostBytes = Math.max(mostBytes, bytes);
              });
            }, SAMPLE_MS);
            const [from, to] = direction === "up" ? [source, `${way.host}:${sink}`] : [`${way.host}:${source}`, sink];
            try {
              const { ms } = await execute("scp", ["-q", "-F", way.config, ...flags, from, to], { signal });
              samples.get(way)?.push((fileMiB * 1000) / ms);
            } finally {
              clearInterval(sampler);
            }
            await rm(sink, { force: true });
          }
        }
        const median = (way: SshWay): number => percentile(samples.get(way) ?? [], 0.5);
        const title = `${protocol} ${direction}, ${fileMiB} MiB`;
        const peer = { name: stage.jump.name, value: median(stage.jump) };
        results.push(
          result(title, "MiB/s", median(stage.glasskey), { peer, goal: { ratioAtLeast: COPY_GOAL } }),
          result(title, "MiB/s", median(stage.glasskey), {
            peer: { name: stage.direct.name, value: median(stage.direct) },
          }),
        );
      }
    }
  } finally {
    await rm(source, { force: true });
    await rm(sink, { force: true });
  }
  const grown = (mostBytes - leastBytes) / MIB;
  return [
    ...results,
    result("memory of the server grows during the copies by", "MiB", grown, { goal: { atMost: COPY_GROWTH_MIB } }),
  ];
}

/** One byte at a time on a terminal, each after the one before came back. */
async function keystrokes(
  { pid, glasskey, direct }: SshStage,
  ways: readonly SshWay[],
  count: number,
  signal: AbortSignal,
  progress: BenchContext["progress"],
): Promise<Result[]> {
  await quiet([pid]);
  const ms = new Map<SshWay, number[]>();
  for (const way of ways) {
    progress(`${count} keystrokes: ${way.name}`);
    ms.set(way, await typed(way, count, signal));
  }
  const at = (way: SshWay, share: number): number => percentile(ms.get(way) ?? [], share);
  return [
    ...ways
      .filter((way) => way !== glasskey)
      .flatMap((way) =>
        [0.5, 0.99].map((share) =>
          result(`echo of a keystroke, p${share * 100}`, "ms", at(glasskey, share), {
            peer: { name: way.name, value: at(way, share) },
          }),
        ),
      ),
    result("echo of a keystroke, p99, added to direct", "ms", at(glasskey, 0.99) - at(direct, 0.99), {
      goal: { atMost: KEYSTROKE_GOAL_MS },
    }),
  ];
}

/** From a security officer's command to the reason on the terminal of the person who was in, whole round trips. */
async function kills(
  { glasskey, pid, kill }: SshStage,
  count: number,
  signal: AbortSignal,
  progress: BenchContext["progress"],
): Promise<Result[]> {
  progress(`${count} kills`);
  await quiet([pid]);
  const samples: number[] = [];
  for (let n = 0; n < count; n++) {
    const child = spawn("ssh", ["-F", glasskey.config, "-tt", glasskey.host, "echo ready; exec cat"], {
      stdio: ["pipe", "pipe", "ignore"],
      signal,
    });
    try {
      const [ready, told] = [Promise.withResolvers<void>(), Promise.withResolvers<number>()];
      told.promise.catch(() => {}); // asked for below, where it was ready
      child.once("error", (error) => ready.reject(error));
      let said = "";
      child.stdout.on("data", (bytes: Buffer) => {
        said += bytes.toString();
        if (said.includes("ready")) ready.resolve();
        if (said.includes("killed by a security officer")) told.resolve(performance.now());
      });
      child.once("close", () => {
        const error = new Error(`ssh ended without a reason: ${said}`);
        ready.reject(error);
        told.reject(error);
      });
      await ready.promise;
      const [at, asked] = await Promise.all([told.promise, kill()]);
      samples.push(at - asked);
    } finally {
      child.kill();
    }
  }
  return [
    result("glass kill to the reason on the terminal, p50", "ms", percentile(samples, 0.5)),
    result("glass kill to the reason on the terminal, p99", "ms", percentile(samples, 0.99), {
      goal: { atMost: KILL_GOAL_MS },
    }),
  ];
}

async function typed(way: SshWay, count: number, signal: AbortSignal): Promise<number[]> {
  const child = spawn("ssh", ["-F", way.config, "-tt", way.host, "stty raw -echo; echo ready; exec cat"], {
    stdio: ["pipe", "pipe", "ignore"],
    signal,
  });
  try {
    let heard = Promise.withResolvers<Buffer>();
    child.stdout.on("data", (bytes: Buffer) => heard.resolve(bytes));
    child.once("close", () => heard.reject(new Error(`${way.name}: ssh ended`)));
    child.once("error", (error) => heard.reject(error));
    for (let said = ""; !said.includes("ready"); said += (await heard.promise).toString())
      heard = Promise.withResolvers();
    const samples: number[] = [];
    for (let n = -50; n < count; n++) {
      heard = Promise.withResolvers();
      const begun = performance.now();
      child.stdin.write("x");
      await heard.promise;
      if (n >= 0) samples.push(performance.now() - begun);
    }
    heard.promise.catch(() => {});
    return samples;
  } finally {
    child.kill();
  }
}

/** Shells that are open at once, by a client of our own: hundreds of processes of ssh would be what is measured. */
async function memory(
  { pid, answer }: SshStage,
  count: number,
  signal: AbortSignal,
  progress: BenchContext["progress"],
): Promise<Result[]> {
  progress(`${count} sessions at once`);
  // A few first, so that code and pools are there already. All together are what one grant may have.
  const first = Math.min(5, count - 1);
  await using few = await openSessions(answer, first, signal);
  await quiet([pid]);
  const before = await residentBytes(pid);
  await using many = await openSessions(answer, count - first, signal);
  await quiet([pid]);
  const after = await residentBytes(pid);
  await Promise.all([few.echo(), many.echo()]);
  return [
    result(`memory of the server for each of ${count} open shells`, "MiB", (after - before) / MIB / (count - first), {
      goal: { atMost: SESSION_GOAL_MIB },
    }),
  ];
}

/** Begins connections at a steady rate, whether or not those before have ended, as Ansible on many hosts does. */
async function load(
  { pid, glasskey }: SshStage,
  { perMinute, seconds }: SshSizes["load"],
  signal: AbortSignal,
  progress: BenchContext["progress"],
): Promise<Result[]> {
  progress(`${perMinute} connections a minute for ${seconds} s`);
  await quiet([pid]);
  const running: Promise<number | undefined>[] = [];
  const everyMs = 60_000 / perMinute;
  const begun = performance.now();
  const total = Math.round((perMinute * seconds) / 60);
  for (let n = 0; n < total; n++) {
    signal.throwIfAborted();
    const waitMs = begun + n * everyMs - performance.now();
    if (waitMs > 0) await new Promise((done) => setTimeout(done, waitMs));
    running.push(
      ssh(glasskey, ["true"], signal).then(
        ({ ms }) => ms,
        (error: unknown) => {
          progress(String(error));
          return undefined;
        },
      ),
    );
  }
  const ms = await Promise.all(running);
  const served = ms.filter((one) => one !== undefined);
  const title = `${perMinute} connections a minute for ${seconds} s`;
  return [
    result(`${title}: refused`, "", total - served.length, { goal: { atMost: 0 } }),
    result(`${title}: ssh HOST true, p50`, "ms", percentile(served, 0.5)),
    result(`${title}: ssh HOST true, p99`, "ms", percentile(served, 0.99)),
  ];
}
