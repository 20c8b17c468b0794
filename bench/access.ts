import { join } from "node:path";
import type { GrantView } from "@glasskey/contract";
import { call } from "../cli/src/client.ts";
import { clientDir, connect, environmentOf, execute } from "./clients.ts";
import { percentile, result, type BenchContext, type Result } from "./result.ts";
import { GLASS, PLAYBOOK, startStage, type Glasskey } from "./stage.ts";

export const summary = "time to access, from `glass break` to the first row, and time to its end: disconnected, proved";

const TIMES = 50;
const GOAL_FIRST_ROW_MS = 300;
const GOAL_DISCONNECT_MS = 100;
const GOAL_PROOF_MS = 1_000;
const SELECT = ["-XAtq", "-c", "select 1"];

export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  progress("starting a target and a Glasskey");
  await using stage = await startStage({ folder, signal });
  const glasskey = await stage.glasskey("glasskey", "durable");
  const psql = join(clientDir(), "psql");
  await breakGlass(glasskey, psql, signal); // fills the compile cache, as anybody's second use does

  progress(`${TIMES} times \`glass break … -- psql -c "select 1"\`, and psql alone`);
  const [broken, alone]: [number[], number[]] = [[], []];
  for (let i = 0; i < TIMES; i += 1) {
    broken.push(await breakGlass(glasskey, psql, signal));
    alone.push((await execute(psql, SELECT, { env: environmentOf(stage.direct.tls), signal })).firstByteMs);
  }

  progress(`${TIMES} times the end of a grant with a session open, by its requester or by a kill`);
  const ends: Ended[] = [];
  for (let i = 0; i < TIMES; i += 1) {
    signal.throwIfAborted();
    ends.push(await revoke(glasskey, i % 2 === 0 ? "end" : "kill"));
  }

  const at = (samples: readonly number[], share: number): number => percentile(samples, share);
  const peer = (share: number) => ({ peer: { name: "psql alone, direct, TLS", value: at(alone, share) } });
  const [disconnected, proved] = [ends.map((end) => end.disconnectedMs), ends.map((end) => end.provedMs)];
  return [
    result("glass break to first row, whole processes, p50", "ms", at(broken, 0.5), {
      ...peer(0.5),
      goal: { atMost: GOAL_FIRST_ROW_MS },
    }),
    result("glass break to first row, whole processes, p99", "ms", at(broken, 0.99), peer(0.99)),
    result("revoke to disconnect p50", "ms", at(disconnected, 0.5)),
    result("revoke to disconnect p99", "ms", at(disconnected, 0.99), { goal: { atMost: GOAL_DISCONNECT_MS } }),
    result("revoke to proof p50", "ms", at(proved, 0.5)),
    result("revoke to proof p99", "ms", at(proved, 0.99), { goal: { atMost: GOAL_PROOF_MS } }),
  ];
}

/** The whole command, from the start of its process to psql's first row. Then the grant is ended, outside of the time. */
async function breakGlass(glasskey: Glasskey, psql: string, signal: AbortSignal): Promise<number> {
  const args = [
    GLASS,
    "break",
    PLAYBOOK,
    "--reason",
    "customer-impact",
    "--why",
    "to measure it",
    "--",
    psql,
    ...SELECT,
  ];
  const { stdout, stderr, firstByteMs } = await execute(process.execPath, args, {
    env: { GLASSKEY_HOME: glasskey.home, PGGSSENCMODE: "disable" },
    signal,
  });
  const grant = /gr_\w{12}/.exec(stderr)?.[0];
  if (stdout.trim() !== "1" || grant === undefined) throw new Error(`glass break gave no row: ${stdout}${stderr}`);
  await call(glasskey.people.ann, "POST", `/v1/grants/${grant}/end`, {});
  return firstByteMs;
}

interface Ended {
  /** From the request, its TLS handshake included, to the client seeing its connection closed. */
  disconnectedMs: number;
  /** From the request to the answer, which carries the proof. */
  provedMs: number;
}

async function revoke({ people, ...glasskey }: Glasskey, how: "end" | "kill"): Promise<Ended> {
  const { grant, tls } = await glasskey.break();
  const client = await connect(tls);
  await client.query("select 1");
  const closed = Promise.withResolvers<number>();
  client.on("end", () => closed.resolve(performance.now()));
  const begun = performance.now();
  const view =
    how === "end"
      ? await call<GrantView>(people.ann, "POST", `/v1/grants/${grant}/end`, {})
      : (await call<{ grant: GrantView }>(people.sam, "POST", "/v1/kill", { id: grant })).grant;
  const provedMs = performance.now() - begun;
  if (view.state !== "closed") throw new Error(`${grant} is ${view.state}: ${view.lastError ?? ""}`);
  return { disconnectedMs: (await closed.promise) - begun, provedMs };
}
