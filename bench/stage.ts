import { spawn, type ChildProcess } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { ConnectAnswer, GrantView } from "@glasskey/contract";
import { call } from "../cli/src/client.ts";
import type { Login } from "../cli/src/home.ts";
import { hashSecret, newPersonSecret } from "../server/src/identity/secrets.ts";
import { freePort } from "../server/src/store/cluster.ts";
import { startDemoTarget, type DemoTarget } from "../tools/demo-target.ts";
import { clientDir, execute, environmentOf, connect, type Way } from "./clients.ts";

/** What the benchmarks of the whole path stand on: a target with data, and Glasskeys, each in a process of its own. */
export interface Stage {
  readonly target: DemoTarget;
  /** A login of the target's own for those who go there without Glasskey, with the same privileges as a grant has. */
  readonly login: { user: string; password: string };
  /** To the target itself: as that login over TLS, and as superuser without, which is all that its pg_hba.conf lets in. */
  readonly direct: { tls: Way; plain: Way };
  /** Starts `glass serve`, as an operator would. */
  glasskey(name: string, recording: "durable" | "written", options?: { unrecorded?: boolean }): Promise<Glasskey>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** One running `glass serve`. */
export interface Glasskey {
  readonly pid: number;
  /** For `GLASSKEY_HOME`, where ann is logged in. */
  readonly home: string;
  /** ann may break the glass, sam may kill. */
  readonly people: { ann: Login; sam: Login };
  /** Breaks the glass. @returns the grant, and the ways into it. */
  break(): Promise<{ grant: string; tls: Way; plain: Way }>;
}

export const GLASS = join(dirname(import.meta.dirname), "cli/bin/glass.mjs");
export const PLAYBOOK = "orders-read";
/** The most connections that one grant of the stage may hold. */
export const CONNECTIONS_PER_GRANT = 200;

const SCALE = 10; // one million accounts: all in memory, as the working set of a database in use is
const START_MS = 60_000;
const STOP_MS = 20_000;
const ROLE = "bench_reader";

export interface StageOptions {
  folder: string;
  signal: AbortSignal;
  /** Fills the tables of pgbench. */
  pgbench?: boolean;
}

export async function startStage({ folder, signal, pgbench = false }: StageOptions): Promise<Stage> {
  const stack = new AsyncDisposableStack();
  try {
    const target = await startDemoTarget({ dir: join(folder, "target"), settings: { shared_buffers: "512MB" } });
    stack.defer(() => target.stop());
    const { port, database, superuser } = target;
    const plain = { name: "direct", port, database, ...superuser, caFile: undefined };
    if (pgbench)
      await execute(join(clientDir(), "pgbench"), ["-i", "-q", "-s", String(SCALE)], {
        env: environmentOf(plain),
        signal,
      });
    const login = { user: ROLE, password: newPersonSecret() };
    const admin = await connect(plain);
    try {
      await admin.query(`create role ${ROLE} login in role orders_ro password '${login.password}'`);
      await admin.query("grant select on all tables in schema public to orders_ro");
    } finally {
      await admin.end();
    }
    const direct = { plain, tls: { name: "direct, TLS", port, database, ...login, caFile: target.caFile } };
    const running = stack.move();
    return {
      ...{ target, login, direct },
      async glasskey(name, recording, { unrecorded = false } = {}) {
        const started = await startGlasskey({ dir: join(folder, name), target, recording, unrecorded, signal });
        running.defer(started.stop);
        return started.glasskey;
      },
      [Symbol.asyncDispose]: () => running.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

interface Start {
  dir: string;
  target: DemoTarget;
  recording: "durable" | "written";
  /** Lets everything pass without a record of it, for comparison: see unrecorded.ts. */
  unrecorded: boolean;
  signal: AbortSignal;
}

async function startGlasskey({
  dir,
  target,
  recording,
  unrecorded,
  signal,
}: Start): Promise<{ glasskey: Glasskey; stop: () => Promise<void> }> {
  const secrets = { ann: newPersonSecret(), sam: newPersonSecret() };
  await writeFiles(dir, {
    "policy/policy.yaml": "reasons: { customer-impact: Customers cannot use the product }\n",
    "policy/people.yaml": `- { name: ann, roles: [requester], groups: [payments], secret: ${await hashSecret(secrets.ann)} }
- { name: sam, roles: [security_officer], secret: ${await hashSecret(secrets.sam)} }
`,
    "policy/targets/orders-prod.yaml": `target: orders-prod
kind: postgres
config:
  host: localhost
  port: ${target.port}
  tls: { ca: ${JSON.stringify(target.caFile)} }
  admin: { user: glasskey, password: ${JSON.stringify(`\${file:${target.passwordFile}}`)} }
  databases: [${target.database}]
  connections: ${CONNECTIONS_PER_GRANT}
`,
    "policy/playbooks/orders-read.yaml": `playbook: ${PLAYBOOK}
summary: Look at orders
target: orders-prod
scope: { role: orders_ro }
who: { group: payments }
when: { reason: [customer-impact] }
approve: { need: 0 }
time: { max: 45m }
`,
    "glasskey.yaml": `listen: { api: "127.0.0.1:${await freePort()}", postgres: "127.0.0.1:${await freePort()}", ssh: "off" }
recording: ${recording}
plaintext_loopback: true
`,
  });
  const preloaded = unrecorded ? { NODE_OPTIONS: `--import=${new URL("./unrecorded.ts", import.meta.url).href}` } : {};
  const child = spawn(process.execPath, [GLASS, "serve", "--config", join(dir, "glasskey.yaml")], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...preloaded },
    detached: true, // Ctrl-C reaches the benchmark, which stops it in its turn
  });
  const stop = (): Promise<void> => stopChild(child);
  try {
    const url = await whenReady(child, signal);
    const caFile = join(dir, "data/ca.pem");
    const home = (person: string): string => join(dir, "home", person);
    const logIn = async (person: "ann" | "sam"): Promise<Login> => {
      const args = [GLASS, "login", person, "--server", url, "--ca", caFile];
      await execute(process.execPath, args, { env: { GLASSKEY_HOME: home(person) }, signal, input: secrets[person] });
      return JSON.parse(await readFile(join(home(person), "login.json"), "utf8")) as Login;
    };
    const people = { ann: await logIn("ann"), sam: await logIn("sam") };
    const glasskey: Glasskey = {
      ...{ pid: child.pid ?? 0, home: home("ann"), people },
      async break() {
        const body = { playbook: PLAYBOOK, reason: "customer-impact", why: "to measure it" };
        const { grant, state, lastError, endText } = await call<GrantView>(people.ann, "POST", "/v1/grants", body);
        if (state !== "active") throw new Error(`the grant is ${state}: ${lastError ?? endText ?? ""}`);
        const { port, user, secret } = await call<ConnectAnswer>(people.ann, "POST", `/v1/grants/${grant}/connect`);
        const way = { port, user, password: secret, database: target.database };
        const name = `Glasskey, ${recording}`;
        return { grant, tls: { ...way, name: `${name}, TLS`, caFile }, plain: { ...way, name, caFile: undefined } };
      },
    };
    return { glasskey, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

export async function writeFiles(dir: string, files: Record<string, string>): Promise<void> {
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, name)), { recursive: true });
    await writeFile(join(dir, name), text);
  }
}

/** @returns the API's address. @throws Error with what the program said instead. */
export function whenReady(child: ChildProcess, signal: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    let said = "";
    const late = AbortSignal.any([signal, AbortSignal.timeout(START_MS)]);
    late.addEventListener("abort", () => reject(new Error(`glass serve is not ready: ${said}`)), { once: true });
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`glass serve ended (${code ?? "killed"}): ${said}`)));
    child.stderr?.on("data", (chunk: Buffer) => (said = (said + chunk.toString("utf8")).slice(-4_000)));
    child.stdout?.on("data", (chunk: Buffer) => {
      said = (said + chunk.toString("utf8")).slice(-4_000);
      const url = /API\s+(https:\S+)/.exec(said)?.[1];
      if (url !== undefined && said.includes("Next: ")) resolve(url);
    });
  });
}

export async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const force = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
  await gone;
  clearTimeout(force);
}

/** What a process holds in memory, in bytes. NaN where the kernel does not tell. */
export async function residentBytes(pid: number): Promise<number> {
  if (!existsSync(`/proc/${pid}/status`)) return NaN;
  return Number(/VmRSS:\s+(\d+) kB/.exec(await readFile(`/proc/${pid}/status`, "utf8"))?.[1] ?? NaN) * 1024;
}

const QUIET_MS = 200;
const QUIET_TICKS = 4; // of 10 ms: a fifth of a core
const QUIET_WITHIN_MS = 15_000;

/**
 * Waits until these processes rest, so that what one left to do (sealing, say) is not charged to whoever is measured next.
 * @returns how long that took, in ms.
 */
export async function quiet(pids: readonly number[]): Promise<number> {
  const begun = performance.now();
  let last = await ticks(pids);
  while (performance.now() - begun < QUIET_WITHIN_MS) {
    await new Promise((done) => setTimeout(done, QUIET_MS));
    const now = await ticks(pids);
    if (now - last <= QUIET_TICKS) break;
    last = now;
  }
  return performance.now() - begun;
}

/** Clock ticks of processor time that they have used: fields 14 and 15 of proc(5) stat. */
async function ticks(pids: readonly number[]): Promise<number> {
  const each = pids.map(async (pid) => {
    if (!existsSync(`/proc/${pid}/stat`)) return 0;
    const text = await readFile(`/proc/${pid}/stat`, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return Number(fields[11]) + Number(fields[12]);
  });
  return (await Promise.all(each)).reduce((sum, one) => sum + one, 0);
}
