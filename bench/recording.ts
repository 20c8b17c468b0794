import { pgbench, type Load, type Way } from "./clients.ts";
import { percentile, result, type BenchContext, type Result } from "./result.ts";
import { quiet, startStage } from "./stage.ts";

export const summary =
  "what recording costs: pgbench -S with it, durable and written, beside the same Glasskey without it";

const ROUNDS = 3;
const SECONDS = 2;
const WARM_UP: Load = { clients: 32, seconds: 4 };
const LOADS: readonly Load[] = [
  { clients: 1, seconds: SECONDS },
  { clients: 8, seconds: SECONDS },
  { clients: 32, seconds: SECONDS },
  { clients: 32, seconds: SECONDS, protocol: "prepared" },
];
/** There is no such mode: this benchmark makes one for itself, see unrecorded.ts. */
const PEER = "nothing recorded";

/** Three Glasskeys on one target, measured in turn: A B C A B C …; the medians are compared. */
export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  progress("starting a target and three Glasskeys");
  await using stage = await startStage({ folder, signal, pgbench: true });
  const durable = await stage.glasskey("durable", "durable");
  const written = await stage.glasskey("written", "written");
  const without = await stage.glasskey("unrecorded", "written", { unrecorded: true });
  const pids = [durable.pid, written.pid, without.pid];
  const ways: Way[] = [];
  for (const glasskey of [durable, written, without]) ways.push((await glasskey.break()).plain);
  progress("warming up");
  for (const way of ways) await pgbench(way, WARM_UP, signal);
  const results: Result[] = [];
  for (const load of LOADS) {
    const mode = load.protocol === undefined ? "" : ` -M ${load.protocol}`;
    const title = `pgbench -S${mode}, ${load.clients} client${load.clients === 1 ? "" : "s"}`;
    const samples: number[][] = ways.map(() => []);
    for (let round = 0; round < ROUNDS; round += 1) {
      for (const [i, way] of ways.entries()) {
        await quiet(pids);
        signal.throwIfAborted();
        progress(`${title}: ${i === 2 ? "nothing recorded" : way.name}`);
        samples[i]?.push(await pgbench(way, load, signal));
      }
    }
    const [inDurable = NaN, inWritten = NaN, off = NaN] = samples.map((each) => percentile(each, 0.5));
    const peer = { name: PEER, value: off };
    results.push(
      result(`${title}, durable`, "tx/s", inDurable, { peer }),
      result(`${title}, written`, "tx/s", inWritten, { peer }),
    );
  }
  return results;
}
