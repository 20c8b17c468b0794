// What continuous integration runs: the commands that the README and CONTRIBUTING name, in the order of what fails fastest.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");

const STEPS: readonly { title: string; command: readonly string[] }[] = [
  { title: "Format", command: ["format", "--check"] },
  { title: "Types", command: ["typecheck"] },
  { title: "Lint, import table, dead code", command: ["lint"] },
  { title: "Generated files", command: ["generate", "--check"] },
  { title: "Tests", command: ["test"] },
  { title: "Demo", command: ["demo", "--once"] },
];

/** Runs one npm script, passing its output through, and returns its exit code with the last counts that it printed. */
async function step(command: readonly string[]): Promise<{ code: number; passed: number; failed: number }> {
  const [script, ...args] = command;
  const child = spawn(process.execPath, [join(root, "tools/bootstrap.mjs"), String(script), ...args], {
    cwd: root,
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, CI: "true" },
  });
  let tail = "";
  child.stdout.on("data", (chunk: Buffer) => {
    process.stdout.write(chunk);
    tail = (tail + chunk.toString("utf8")).slice(-4_000);
  });
  const [code] = (await once(child, "close")) as [number | null];
  const counts = [...tail.matchAll(/^(\d+) passed, (\d+) failed/gm)].at(-1);
  const ok = code === 0;
  // A step without counts of its own is one thing that held or did not.
  const [passed, failed] = counts === undefined ? [ok ? 1 : 0, ok ? 0 : 1] : [Number(counts[1]), Number(counts[2])];
  return { code: code ?? 1, passed, failed: ok ? failed : Math.max(1, failed) };
}

const started = performance.now();
const seconds = (since: number): string => `${((performance.now() - since) / 1000).toFixed(1)} s`;
let [passed, failed] = [0, 0];
for (const { title, command } of STEPS) {
  const begun = performance.now();
  process.stdout.write(`\n=== ${title}: npm run ${command.join(" -- ")}\n`);
  const result = await step(command);
  passed += result.passed;
  failed += result.failed;
  process.stdout.write(
    `=== ${title}: ${result.code === 0 ? "ok" : `FAILED (exit ${result.code})`} in ${seconds(begun)}\n`,
  );
  if (result.code !== 0) {
    process.exitCode = 1;
    break;
  }
}
process.stdout.write(`\n${failed === 0 ? "All held" : "Stopped at the first failure"}, ${seconds(started)} in all.\n`);
process.stdout.write(`${passed} passed, ${failed} failed\n`);
