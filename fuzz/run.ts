// `npm run fuzz -- [NAME…] [--seconds N] [--seed S [--once]]`: feeds mutated input to the parsers until the time is over.
import { mkdtemp, writeFile } from "node:fs/promises";
import { readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { fuzz, type FuzzTarget } from "./harness.ts";
import { mutate } from "./mutate.ts";
import { createRandom } from "./random.ts";

const all = readdirSync(import.meta.dirname).flatMap((file) => /^(.+)\.fuzz\.ts$/.exec(file)?.[1] ?? []);

function usage(problem: string): never {
  process.stderr.write(`${problem}\nusage: npm run fuzz -- [${all.join("|")}]… [--seconds N] [--seed S [--once]]\n`);
  process.exit(2);
}

function readArguments(): { names: readonly string[]; seconds: number; seed: number; once: boolean } {
  const options = { seconds: { type: "string" }, seed: { type: "string" }, once: { type: "boolean" } } as const;
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    const unknown = positionals.find((name) => !all.includes(name));
    if (unknown !== undefined) usage(`no fuzz target is called ${unknown}`);
    const seconds = Number(values.seconds ?? 30);
    const seed = Number(values.seed ?? Math.floor(Math.random() * 2 ** 32));
    if (!(seconds > 0) || !Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32)
      usage("--seconds and --seed are numbers");
    return { names: positionals.length > 0 ? positionals : all, seconds, seed, once: values.once ?? false };
  } catch (error) {
    return usage(error instanceof Error ? error.message : String(error));
  }
}

const { names, seconds, seed, once } = readArguments();
let folder: string | undefined;
let crashes = 0;
for (const name of names) {
  const target = new URL(`./${name}.fuzz.ts`, import.meta.url);
  const limits = once
    ? { iterations: 1 }
    : { iterations: Number.MAX_SAFE_INTEGER, forMs: (seconds * 1000) / names.length };
  const report = await fuzz({ target, seed, ...limits });
  if (!report.crashed) {
    process.stdout.write(`${name}: ${report.ran} inputs from seed ${seed}, no crash\n`);
    continue;
  }
  crashes += 1;
  const { seeds, words = [] } = (await import(target.href)) as FuzzTarget;
  folder ??= await mkdtemp(join(tmpdir(), "glasskey-fuzz-"));
  const file = join(folder, `${name}-${report.seed}.bin`);
  await writeFile(file, mutate(seeds, words, createRandom(report.seed)));
  process.stdout.write(
    `${name}: CRASH after ${report.ran} inputs: ${report.why}\n` +
      `  input: ${file}\n  again: npm run fuzz -- ${name} --seed ${report.seed} --once\n`,
  );
}
process.stdout.write(`${names.length - crashes} passed, ${crashes} failed\n`);
process.exitCode = crashes === 0 ? 0 : 1;
