import type { Client } from "pg";
import { connect, type Way } from "./clients.ts";
import { startPgbouncer } from "./pgbouncer.ts";
import { result, type BenchContext, type Result } from "./result.ts";
import { CONNECTIONS_PER_GRANT, quiet, residentBytes, startStage } from "./stage.ts";

export const summary = "memory of an idle session, with 500 open over TLS, beside pgbouncer";

const SESSIONS = 500;
const AT_ONCE = 8;
const WARM_UP = 20;
const MIB = 2 ** 20;

/** What the process that holds 500 idle sessions grew by, per session; each of them has run one query. */
export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  progress("starting a target, a Glasskey and pgbouncer");
  await using stage = await startStage({ folder, signal });
  const glasskey = await stage.glasskey("glasskey", "durable");
  await using pgbouncer = await startPgbouncer(stage, folder, SESSIONS);
  const grants: Way[] = [];
  for (let i = 0; i < Math.ceil(SESSIONS / CONNECTIONS_PER_GRANT); i += 1) grants.push((await glasskey.break()).tls);

  progress(`${SESSIONS} sessions through Glasskey`);
  const ours = await grow(glasskey.pid, grants, signal);
  progress(`${SESSIONS} sessions through pgbouncer`);
  const peer = pgbouncer === undefined ? undefined : await grow(pgbouncer.pid, [pgbouncer.tls], signal);
  const beside = (value: number | undefined): { peer?: { name: string; value: number } } =>
    value === undefined ? {} : { peer: { name: "pgbouncer, TLS on both sides", value } };
  return [
    result(
      `memory of one idle session, ${SESSIONS} open`,
      "KiB",
      ours.perSession / 1024,
      beside(peer === undefined ? undefined : peer.perSession / 1024),
    ),
    result(
      `memory of the whole process with ${SESSIONS} open`,
      "MiB",
      ours.whole / MIB,
      beside(peer === undefined ? undefined : peer.whole / MIB),
    ),
    result(
      "memory of the process before",
      "MiB",
      ours.before / MIB,
      beside(peer === undefined ? undefined : peer.before / MIB),
    ),
  ];
}

interface Growth {
  before: number;
  whole: number;
  perSession: number;
}

async function grow(pid: number, ways: readonly Way[], signal: AbortSignal): Promise<Growth> {
  const open: Client[] = [];
  try {
    // What the first sessions load and compile is not theirs alone.
    await openAll(open, ways, WARM_UP, signal);
    await Promise.all(open.splice(0).map((client) => client.end()));
    await quiet([pid]);
    const before = await residentBytes(pid);
    await openAll(open, ways, SESSIONS, signal);
    await quiet([pid]);
    const whole = await residentBytes(pid);
    return { before, whole, perSession: (whole - before) / SESSIONS };
  } finally {
    await Promise.all(open.map((client) => client.end()));
  }
}

/** Opens sessions evenly on the ways, a few at once, and runs one query in each. */
async function openAll(open: Client[], ways: readonly Way[], count: number, signal: AbortSignal): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let i = next++; i < count; i = next++) {
      signal.throwIfAborted();
      const way = ways[i % ways.length];
      if (way === undefined) throw new Error("no way to open a session");
      const client = await connect(way);
      open.push(client);
      await client.query("select 1");
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
