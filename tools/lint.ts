// `npm run lint`: the linter with types, the import table, and dead code. All three run, so that one run tells all.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { checkBoundaries } from "./boundaries.ts";

const root = join(import.meta.dirname, "..");
const inModules = (path: string): string => join(root, "node_modules", path);

async function tool(title: string, args: readonly string[]): Promise<boolean> {
  const child = spawn(process.execPath, args, { cwd: root, stdio: "inherit" });
  const [code] = (await once(child, "exit")) as [number | null];
  process.stdout.write(`${title}: ${code === 0 ? "clean" : "FAILED"}\n`);
  return code === 0;
}

async function imports(): Promise<boolean> {
  const { files, problems } = await checkBoundaries(root);
  for (const problem of problems) process.stdout.write(`${problem}\n`);
  process.stdout.write(`import table: ${problems.length === 0 ? `clean (${files} files)` : "FAILED"}\n`);
  return problems.length === 0;
}

const args = process.argv.slice(2);
const results = [
  await tool("oxlint", [
    ...[inModules("oxlint/bin/oxlint"), "--type-aware", "--tsconfig", "tsconfig.json"],
    ...["--report-unused-disable-directives", "--deny-warnings", ...args],
  ]),
  await imports(),
  await tool("dead code", [inModules("knip/bin/knip.js"), "--no-progress"]),
];
process.exitCode = results.every(Boolean) ? 0 : 1;
