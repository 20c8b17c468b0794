// `npm run soak -- [NAME…] [--rounds N] [--entries N] [--bytes N] [--minutes N]`: the long forms of what `npm test` runs
// in short, one after the other.
import { readdirSync } from "node:fs";
import { chmod, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startCluster } from "../server/src/store/cluster.ts";
import type { SoakResult, SoakScenario } from "./scenario.ts";

const all = readdirSync(import.meta.dirname).flatMap((file) => /^(.+)\.soak\.ts$/.exec(file)?.[1] ?? []);
const UNITS = ["rounds", "entries", "bytes"] as const;
const MINUTES = 60; // for each scenario

function usage(problem: string): never {
  process.stderr.write(
    `${problem}\nusage: npm run soak -- [${all.join("|")}]… ${UNITS.map((unit) => `[--${unit} N]`).join(" ")} [--minutes N]\n`,
  );
  process.exit(2);
}

interface Arguments {
  readonly names: readonly string[];
  readonly counts: ReadonlyMap<string, number>;
  readonly minutes: number;
}

function readArguments(): Arguments {
  const text = { type: "string" } as const;
  let parsed;
  try {
    parsed = parseArgs({
      options: { rounds: text, entries: text, bytes: text, minutes: text },
      allowPositionals: true,
    });
  } catch (error) {
    return usage(error instanceof Error ? error.message : String(error));
  }
  const { values, positionals } = parsed;
  const unknown = positionals.find((name) => !all.includes(name));
  if (unknown !== undefined) usage(`no soak test is called ${unknown}`);
  const counts = new Map<string, number>();
  for (const unit of UNITS) {
    const value = values[unit];
    if (value === undefined) continue;
    if (!/^[1-9]\d{0,12}$/.test(value)) usage(`--${unit} is a whole number from 1`);
    counts.set(unit, Number(value));
  }
  const minutes = Number(values.minutes ?? MINUTES);
  if (!(minutes > 0)) usage("--minutes is a number");
  return { names: positionals.length > 0 ? positionals : all, counts, minutes };
}

async function runOne(name: string, { counts, minutes }: Arguments, root: string): Promise<SoakResult> {
  const scenario = (await import(new URL(`./${name}.soak.ts`, import.meta.url).href)) as SoakScenario;
  const count = counts.get(scenario.unit) ?? scenario.defaultCount;
  process.stdout.write(`${name}: ${scenario.summary}; ${count} ${scenario.unit}, at most ${minutes} minutes\n`);
  const folder = join(root, name);
  await mkdir(folder);
  const settings = { fsync: "off", max_connections: "300", shared_buffers: "128MB", max_wal_size: "4GB" }; // throw-away data
  const cluster = await startCluster({ dataDir: join(root, `${name}-store`), superuser: "postgres", settings });
  const { port, superuser, password } = cluster;
  try {
    return await scenario.run({
      ...{ cluster: { port, superuser, password }, count, folder },
      deadlineMs: performance.now() + minutes * 60_000,
      say: (line) => process.stdout.write(`  ${line}\n`),
    });
  } finally {
    await cluster.stop();
    await rm(folder, { recursive: true, force: true });
    await rm(join(root, `${name}-store`), { recursive: true, force: true });
  }
}

const args = readArguments();
const root = await mkdtemp(join(tmpdir(), "glasskey-soak-"));
await chmod(root, 0o755); // PostgreSQL runs as another user where this is root
const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    stop.abort();
    process.stdout.write("stopping after this one; once more stops at once\n");
  });
}
let failed = 0;
let passed = 0;
try {
  for (const name of args.names) {
    if (stop.signal.aborted) break;
    const began = performance.now();
    let result: SoakResult;
    try {
      result = await runOne(name, args, root);
    } catch (error) {
      result = { figures: {}, problems: [error instanceof Error ? (error.stack ?? error.message) : String(error)] };
    }
    const figures = { ...result.figures, took: `${Math.round((performance.now() - began) / 1000)} s` };
    for (const [what, value] of Object.entries(figures)) process.stdout.write(`  ${what}: ${value}\n`);
    for (const problem of result.problems) process.stdout.write(`  WRONG: ${problem}\n`);
    if (result.problems.length === 0) passed++;
    else failed++;
  }
} finally {
  await rm(root, { recursive: true, force: true });
}
process.stdout.write(`${passed} passed, ${failed} failed\n`);
process.exitCode = failed === 0 ? 0 : 1;
