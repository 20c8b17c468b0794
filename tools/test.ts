// `npm test [-- FILTER…] [--no-apt]`: Debian's programs where they can be had, then every test.
import { join } from "node:path";
import { ensureDebianPackages, FOR_TESTS } from "./debian.ts";
import { ensureMoto } from "./trixie.ts";

const root = join(import.meta.dirname, "..");
const args = process.argv.slice(2);
if (args.includes("--no-apt")) process.env["GLASSKEY_NO_APT"] = "1";
const say = (line: string): void => void process.stderr.write(`${line}\n`);
await ensureDebianPackages(FOR_TESTS, say);
await ensureMoto(say);

const vitest = [
  ...[join(root, "node_modules/vitest/vitest.mjs"), "run"],
  ...["--reporter=default", `--reporter=${join(root, "tools/reporter.ts")}`],
  ...args.filter((arg) => arg !== "--no-apt"),
];
if (process.execve === undefined) throw new Error("this platform cannot replace a process by another");
// The tests replace this process, so that signals and the exit code need no middleman.
const env = Object.fromEntries(
  Object.entries(process.env).filter((entry): entry is [string, string] => entry[1] !== undefined),
);
process.execve(process.execPath, [process.execPath, "--disable-warning=ExperimentalWarning", ...vitest], env);
