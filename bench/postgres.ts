import { join } from "node:path";
import { clientDir, connect, environmentOf, execute, pgbench, type Load, type Way } from "./clients.ts";
import { startPgbouncer } from "./pgbouncer.ts";
import { percentile, result, type BenchContext, type Goal, type Result } from "./result.ts";
import { quiet, residentBytes, startStage, type Glasskey } from "./stage.ts";

export const summary =
  "SQL through the gateway: pgbench -S, COPY OUT of 1 GiB, connecting; beside pgbouncer and direct";

const ROUNDS = 3;
const SECONDS = 2;
/** V8 goes on optimising for this long under load; a gateway that has been up for a while is what is measured. */
const WARM_UP: Load = { clients: 32, seconds: 4 };
const LOADS: readonly Load[] = [
  { clients: 1, seconds: SECONDS },
  { clients: 8, seconds: SECONDS },
  { clients: 32, seconds: SECONDS },
  { clients: 8, seconds: SECONDS, protocol: "prepared" },
];
const GOAL_CLIENTS = 32;
const GOAL_DURABLE = 0.6;
const GOAL_WRITTEN = 1;
const CONNECTS = 100;
const COPY_ROWS = 8 * 1024 * 1024; // of 128 bytes: 1 GiB
const COPY_GOAL = 0.9;
const COPY_GROWTH_MIB = 64;
const SAMPLE_MS = 50;
const POOL = 64;
const MIB = 2 ** 20;

/** Every measurement goes round its ways several times, A B C A B C …; the medians are compared. */
export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  progress("starting a target, two Glasskeys and pgbouncer");
  await using stage = await startStage({ folder, signal, pgbench: true });
  const durable = await stage.glasskey("durable", "durable");
  const written = await stage.glasskey("written", "written");
  await using pgbouncer = await startPgbouncer(stage, folder, POOL);
  const [intoDurable, intoWritten] = [await durable.break(), await written.break()];
  const glasskeys = [durable.pid, written.pid];
  const peersOf = (kind: "plain" | "tls"): readonly Way[] => (pgbouncer === undefined ? [] : [pgbouncer[kind]]);
  progress("warming up");
  for (const way of [intoDurable.plain, intoWritten.plain]) await pgbench(way, WARM_UP, signal);
  const results: Result[] = [];

  /** The same load on each way. @returns the results of the two Glasskeys beside pgbouncer, and of pgbouncer beside direct. */
  const measure = async (title: string, kind: "plain" | "tls", load: Load): Promise<void> => {
    const ours = { durable: intoDurable[kind], written: intoWritten[kind] };
    const direct = stage.direct[kind];
    const ways = [ours.durable, ours.written, ...peersOf(kind), direct];
    const samples = await rounds(ROUNDS, ways, async (way) => {
      await quiet(glasskeys);
      signal.throwIfAborted();
      progress(`${title}: ${way.name}`);
      return pgbench(way, load, signal);
    });
    const median = (way: Way): number => percentile(samples.get(way) ?? [], 0.5);
    const [bouncer] = peersOf(kind);
    const peer =
      bouncer === undefined
        ? {}
        : { peer: { name: `${bouncer.name}, session mode, TLS to the target`, value: median(bouncer) } };
    const goal = (ratioAtLeast: number): { goal?: Goal } =>
      load.clients === GOAL_CLIENTS && kind === "plain" ? { goal: { ratioAtLeast } } : {};
    results.push(
      result(`${title}, durable`, "tx/s", median(ours.durable), { ...peer, ...goal(GOAL_DURABLE) }),
      result(`${title}, written`, "tx/s", median(ours.written), { ...peer, ...goal(GOAL_WRITTEN) }),
      result(`${title}, durable, beside direct`, "tx/s", median(ours.durable), {
        peer: { name: direct.name, value: median(direct) },
      }),
    );
  };

  for (const load of LOADS) {
    const mode = load.protocol === undefined ? "" : ` -M ${load.protocol}`;
    await measure(`pgbench -S${mode}, ${load.clients} client${load.clients === 1 ? "" : "s"}`, "plain", load);
  }
  await measure(`pgbench -S, ${GOAL_CLIENTS} clients over TLS`, "tls", { clients: GOAL_CLIENTS, seconds: SECONDS });
  await quiet(glasskeys);
  results.push(
    ...(await copyOut(durable, intoDurable.tls, [stage.direct.tls, ...peersOf("tls")], { signal, progress })),
  );
  await quiet(glasskeys);
  progress("connecting over TLS, one after the other");
  results.push(...(await connecting(intoDurable.tls, [...peersOf("tls"), stage.direct.tls], signal)));
  return results;
}

/** @returns what each way gave, in the order of the rounds. */
async function rounds(
  count: number,
  ways: readonly Way[],
  work: (way: Way) => Promise<number>,
): Promise<Map<Way, number[]>> {
  const samples = new Map<Way, number[]>(ways.map((way) => [way, []]));
  for (let round = 0; round < count; round += 1) {
    for (const way of ways) samples.get(way)?.push(await work(way));
  }
  return samples;
}

/** One gibibyte in 8 million rows, TLS on every way; and how much the gateway grows over it. The goal is beside the first peer. */
async function copyOut(
  glasskey: Glasskey,
  through: Way,
  peers: readonly Way[],
  { signal, progress }: Pick<BenchContext, "signal" | "progress">,
): Promise<Result[]> {
  const copy = async (way: Way, rows: number): Promise<number> => {
    const sql = `copy (select repeat('x', 127) from (select generate_series(1, ${rows})) s) to stdout`;
    const { ms } = await execute(join(clientDir(), "psql"), ["-X", "-q", "-c", sql], {
      env: environmentOf(way),
      signal,
      discard: true,
    });
    return (rows * 128) / MIB / (ms / 1000);
  };
  await copy(through, COPY_ROWS / 64); // the buffers of a first copy are no growth
  const before = await residentBytes(glasskey.pid);
  let most = before;
  const sampler = setInterval(() => {
    void residentBytes(glasskey.pid).then((bytes) => (most = Math.max(most, bytes)));
  }, SAMPLE_MS);
  try {
    const samples = await rounds(ROUNDS, [through, ...peers], (way) => {
      signal.throwIfAborted();
      progress(`COPY OUT of 1 GiB: ${way.name}`);
      return copy(way, COPY_ROWS);
    });
    const median = (way: Way): number => percentile(samples.get(way) ?? [], 0.5);
    return [
      ...peers.map((peer, i) =>
        result(`COPY OUT of 1 GiB over TLS, durable, beside ${peer.name}`, "MiB/s", median(through), {
          peer: { name: peer.name, value: median(peer) },
          ...(i === 0 ? { goal: { ratioAtLeast: COPY_GOAL } } : {}),
        }),
      ),
      result(`growth of Glasskey's memory over ${ROUNDS} such copies`, "MiB", (most - before) / MIB, {
        goal: { atMost: COPY_GROWTH_MIB },
      }),
    ];
  } finally {
    clearInterval(sampler);
  }
}

/** From connect() to ready for a query, by node-postgres. pgbouncer keeps the target's side open; Glasskey opens it each time. */
async function connecting(through: Way, peers: readonly Way[], signal: AbortSignal): Promise<Result[]> {
  const samples = await rounds(CONNECTS, [through, ...peers], async (way) => {
    signal.throwIfAborted();
    const begun = performance.now();
    const client = await connect(way);
    const ms = performance.now() - begun;
    await client.end();
    return ms;
  });
  const at = (way: Way, share: number): number => percentile(samples.get(way) ?? [], share);
  return peers.flatMap((peer) =>
    ([0.5, 0.99] as const).map((share) =>
      result(`connect p${share * 100} over TLS, durable, beside ${peer.name}`, "ms", at(through, share), {
        peer: { name: peer.name, value: at(peer, share) },
      }),
    ),
  );
}
