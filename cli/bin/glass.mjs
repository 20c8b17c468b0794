#!/usr/bin/env node
// Starts `glass` on a Node that runs TypeScript by itself. Plain JavaScript that also runs on Node 20.
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

/** The Node that the npm packages bring, where it is installed. */
function find(name) {
  try {
    return join(dirname(createRequire(import.meta.url).resolve(name)), "bin", "node");
  } catch {
    return undefined;
  }
}

const SERVER = ["serve", "init", "secret"];

function load(verb, second) {
  if (verb === "archive" && second === "restore") return import("@glasskey/server/archive-commands");
  if (SERVER.includes(verb)) return import("@glasskey/server/commands");
  return verb === "playbook" ? import("@glasskey/server/playbook-commands") : import("../src/main.ts");
}

const [major, minor] = process.versions.node.split(".").map(Number);
if (major > 24 || (major === 24 && minor >= 11)) {
  const { enableCompileCache } = await import("node:module");
  enableCompileCache?.();
  // The verbs that are the server itself, and those that read policy files; everything else is a client of its API.
  const [first, second = "", ...rest] = process.argv.slice(2);
  const offline = [...SERVER, "playbook"].includes(second) || (second === "archive" && rest[0] === "restore");
  const asked = first === "help" && offline;
  const argv = asked ? [second, ...rest, "--help"] : process.argv.slice(2);
  // A disk that answers nothing keeps a thread for each question; the other disk, and all else, needs some too.
  if (argv[0] === "serve") process.env.UV_THREADPOOL_SIZE ??= "16";
  const { main } = await load(argv[0] ?? "", argv[1]);
  process.exitCode = await main(argv);
} else {
  const packages = ["node", "node-bin"].map((name) => `${name}-${process.platform}-${process.arch}/package.json`);
  const node = packages.map(find).find((found) => found !== undefined);
  if (node === undefined) {
    console.error(
      `glass needs Node 24.11 or later; this is ${process.versions.node}. Run \`npm ci\` in Glasskey's folder, which brings one.`,
    );
    process.exit(1);
  }
  const child = spawn(node, ["--disable-warning=ExperimentalWarning", ...process.argv.slice(1)], { stdio: "inherit" });
  // At a terminal Ctrl-C reaches both; anything sent to this process alone is passed on.
  process.on("SIGINT", () => {});
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.once("exit", (code, signal) => {
    if (signal === null) process.exit(code ?? 1);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}
