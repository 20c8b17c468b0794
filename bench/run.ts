// `npm run bench -- NAME [--json] [--no-apt]`: one benchmark, or `all`; without a name, the list of them.
import { chmod, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ensureDebianPackages, FOR_BENCHMARKS } from "../tools/debian.ts";
import { describeMachine, type Machine } from "./machine.ts";
import type { Benchmark, Result } from "./result.ts";

interface Report {
  name: string;
  machine: Machine;
  results: Result[];
}

const PARTS_OF_THIS = new Set(["run.ts", "machine.ts", "result.ts"]);

async function benchmarks(): Promise<Map<string, Benchmark>> {
  const found = new Map<string, Benchmark>();
  const files = (await readdir(import.meta.dirname)).filter((file) => /^[a-z-]+\.ts$/.test(file));
  for (const file of files.toSorted()) {
    if (PARTS_OF_THIS.has(file)) continue;
    const module = (await import(new URL(file, import.meta.url).href)) as Partial<Benchmark>;
    const { run, summary } = module;
    if (run !== undefined && summary !== undefined) found.set(file.slice(0, -".ts".length), { run, summary });
  }
  return found;
}

async function measure(name: string, benchmark: Benchmark): Promise<Report> {
  const folder = await mkdtemp(join(tmpdir(), `glasskey-bench-${name}-`));
  await chmod(folder, 0o755);
  const stop = new AbortController();
  const abort = (): void => stop.abort();
  process.once("SIGINT", abort);
  process.once("SIGTERM", abort);
  try {
    const machine = describeMachine(folder);
    const results = await benchmark.run({ folder, signal: stop.signal, progress: say });
    if (stop.signal.aborted) throw new Error("interrupted");
    return { name, machine, results };
  } finally {
    process.off("SIGINT", abort);
    process.off("SIGTERM", abort);
    await rm(folder, { recursive: true, force: true });
  }
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

function table({ name, machine, results }: Report): string {
  const { cpu, cores, memoryMiB, node, kernel, noise, syncMs } = machine;
  const rows = [
    ["", "value", "unit", "peer", "peer's value", "ratio", "goal", "met"],
    ...results.map((r) => [
      ...[r.metric, figure(r.value), r.unit, r.peer ?? "", figure(r.peerValue), figure(r.ratio), r.goal ?? ""],
      r.met === null ? "" : r.met ? "yes" : "NO",
    ]),
  ];
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const right = new Set([1, 4, 5]);
  const lines = rows.map((row) =>
    row
      .map((cell, i) => (right.has(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join("  ")
      .trimEnd(),
  );
  return [
    `${name} on ${cores} × ${cpu}, ${memoryMiB} MiB, Node ${node}, Linux ${kernel}`,
    `noise of this machine: CPU ±${noise.cpuPercent} %, disk ±${noise.diskPercent} %; one fdatasync takes ${syncMs} ms`,
    "",
    ...lines,
    "",
  ].join("\n");
}

function figure(value: number | null): string {
  if (value === null || Number.isNaN(value)) return "";
  const digits = Math.abs(value) >= 1000 ? 0 : Math.abs(value) >= 10 ? 1 : 3;
  return value.toLocaleString("en-US", { maximumFractionDigits: digits });
}

async function main(): Promise<number> {
  const options = { json: { type: "boolean" }, "no-apt": { type: "boolean" } } as const;
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const known = await benchmarks();
  const [name] = positionals;
  if (name === undefined) {
    const width = Math.max(...[...known.keys()].map((key) => key.length), 0);
    for (const [key, { summary }] of known) process.stdout.write(`${key.padEnd(width)}  ${summary}\n`);
    process.stdout.write("One of these, or all: npm run --silent bench -- NAME [--json]\n");
    return 0;
  }
  const chosen = name === "all" ? [...known] : [...known].filter(([key]) => key === name);
  if (chosen.length === 0 || positionals.length > 1) {
    say(`There is no benchmark called ${positionals.join(" ")}; there are: ${[...known.keys(), "all"].join(", ")}.`);
    return 2;
  }
  if (values["no-apt"] === true) process.env["GLASSKEY_NO_APT"] = "1";
  await ensureDebianPackages(FOR_BENCHMARKS, say);
  const reports: Report[] = [];
  for (const [key, benchmark] of chosen) {
    const report = await measure(key, benchmark);
    reports.push(report);
    if (values.json !== true) process.stdout.write(`${table(report)}\n`);
  }
  if (values.json === true) process.stdout.write(`${JSON.stringify(name === "all" ? reports : reports[0], null, 2)}\n`);
  return 0;
}

try {
  process.exitCode = await main();
} catch (error) {
  say(error instanceof Error ? (error.stack ?? error.message) : String(error));
  process.exitCode = 1;
}
