// Every npm script goes through here. It runs on the system's Node (20 or later), makes sure that the packages of
// package-lock.json are installed, and hands over to the Node that they bring, which runs TypeScript directly.
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { ensurePackages, InstallError, projectNode } from "./install.mjs";
import { supervise } from "./supervise.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const inModules = (path) => join(root, "node_modules", path);

/** npm script → the arguments of the project's own Node. */
const COMMANDS = {
  demo: [join(root, "tools/demo.ts")],
  test: [join(root, "tools/test.ts")],
  bench: [join(root, "bench/run.ts")],
  fuzz: [join(root, "fuzz/run.ts")],
  soak: [join(root, "soak/run.ts")],
  lint: [join(root, "tools/lint.ts")],
  format: [inModules("oxfmt/bin/oxfmt")],
  typecheck: [inModules("typescript/bin/tsc"), "-p", root],
  generate: [join(root, "tools/generate.ts")],
  ci: [join(root, "tools/ci.ts")],
};

async function main([command, ...args]) {
  const script = Object.hasOwn(COMMANDS, command ?? "") ? COMMANDS[command] : undefined;
  if (script === undefined) {
    process.stderr.write(`usage: node tools/bootstrap.mjs ${Object.keys(COMMANDS).join("|")} [arguments]\n`);
    return 2;
  }
  await ensurePackages(root);
  const bin = inModules(".bin");
  const path = (process.env.PATH ?? "").split(delimiter).filter((folder) => folder !== bin);
  return await supervise(projectNode(root), [...script, ...args], {
    cwd: root,
    // Tools that start with `#!/usr/bin/env node` must find the project's Node too.
    env: { ...process.env, PATH: [bin, ...path].join(delimiter) },
    stdio: "inherit",
  });
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof InstallError)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = error.exitCode;
}
