// Brings node_modules in step with package-lock.json, once, whoever asks first. Plain JavaScript for Node 20.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  linkSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { constants as osConstants } from "node:os";
import { delimiter, join, sep } from "node:path";
import { SIGNALS, supervise } from "./supervise.mjs";

/** The first release that runs TypeScript without a warning and has the APIs that Glasskey uses. */
const OLDEST_NODE = [24, 11];
const LOCK_POLL_MS = 200;
/** A lock that nobody touched for this long is stale even if its process id is in use: ids are reused after a reboot. */
const LOCK_STALE_MS = 60_000;

/** Something the user has to put right. `exitCode` is what the command ends with. */
export class InstallError extends Error {
  constructor(message, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** The Node that the npm packages bring. */
export function projectNode(root) {
  return join(root, "node_modules", ".bin", "node");
}

/**
 * Installs what package-lock.json says, unless that was done already.
 * Two at once: the second waits. Interrupted: nothing says that it was done, so the next call installs again.
 * @throws InstallError that says what to do.
 */
export async function ensurePackages(root) {
  if (isInstalled(root)) return;
  const release = await takeLock(root);
  try {
    if (!isInstalled(root)) await install(root, release.tell);
  } finally {
    release();
  }
}

/** Whether node_modules holds what package-lock.json says: a finished installation leaves the lock file's hash there. */
function isInstalled(root) {
  try {
    return existsSync(projectNode(root)) && readFileSync(stampFile(root), "utf8") === lockFileHash(root);
  } catch {
    return false;
  }
}

// npm's own record, node_modules/.package-lock.json, will not do: `npm install --package-lock-only` rewrites it too.
function stampFile(root) {
  return join(root, "node_modules", ".glasskey-installed");
}

function lockFileHash(root) {
  return createHash("sha256")
    .update(readFileSync(join(root, "package-lock.json")))
    .digest("hex");
}

async function install(root, tell) {
  process.stderr.write("Installing the npm packages of package-lock.json (the first time takes about a minute) …\n");
  const started = performance.now();
  if (!existsSync(join(root, "package-lock.json"))) {
    throw new InstallError("package-lock.json is missing: restore it from git.");
  }
  const wanted = lockFileHash(root);
  rmSync(stampFile(root), { force: true });
  const { program, first } = findNpm(root);
  const override = overriddenSettings();
  if (override !== "") process.stderr.write(`npm's own settings (${override}) would leave out parts; overriding.\n`);
  const args = [
    ...["ci", "--include=dev", "--include=optional", "--include=peer", "--bin-links", "--package-lock"],
    ...["--no-dry-run", "--no-global", "--no-ignore-scripts", "--no-engine-strict", "--install-strategy=hoisted"],
    ...["--no-audit", "--no-fund", "--no-update-notifier", "--no-progress", "--loglevel=error"],
  ];
  let output = "";
  let interruptedBy; // npm's own exit code does not always tell
  const note = (signal) => (interruptedBy ??= signal);
  for (const signal of SIGNALS) process.on(signal, note);
  const code = await supervise(
    program,
    [...first, ...args],
    { cwd: root, env: npmEnvironment(root), stdio: ["ignore", "pipe", "pipe"] },
    (child) => {
      tell(child.pid);
      const keep = (chunk) => (output = (output + chunk.toString("utf8")).slice(-16_000));
      child.stdout.on("data", keep);
      child.stderr.on("data", keep);
    },
  );
  for (const signal of SIGNALS) process.off(signal, note);
  if (code !== 0 && interruptedBy !== undefined) {
    const exitCode = 128 + osConstants.signals[interruptedBy];
    throw new InstallError("Installation interrupted; the next command starts it again.", exitCode);
  }
  if (code !== 0) throw new InstallError(`${output.split("Clean install a project")[0].trim()}\n\n${explain(output)}`);
  if (!existsSync(projectNode(root))) {
    throw new InstallError(
      `npm ci succeeded, but left out the project's own Node.\n${output.trim()}\n` +
        "Look for odd settings with `npm config list`, then try again.",
    );
  }
  checkNode(root);
  writeFileSync(stampFile(root), wanted);
  process.stderr.write(`Installed in ${((performance.now() - started) / 1000).toFixed(1)} s.\n`);
}

function explain(output) {
  if (
    /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT/.test(output)
  ) {
    return (
      "The npm registry could not be reached. Check the network; behind a proxy or with a mirror, set\n" +
      "`npm config set proxy URL` or `npm config set registry URL`, then run the same command again."
    );
  }
  if (/ENOSPC/.test(output)) return "The disk is full: the packages need about 1 GB.";
  if (/EACCES|EPERM/.test(output)) return "This user may not write to node_modules: check who owns it.";
  if (/can only install packages when|EUSAGE/.test(output)) {
    return "package.json and package-lock.json disagree: run `npm install` once and commit the lock file.";
  }
  return "npm ci failed; what it printed is above.";
}

/** npm from the installation that runs this script, or the one in PATH, but never one that `npm ci` would delete. */
function findNpm(root) {
  const outside = (path) =>
    path !== undefined && existsSync(path) && !path.startsWith(join(root, "node_modules") + sep);
  const { npm_node_execpath: node, npm_execpath: cli } = process.env;
  if (outside(node) && outside(cli) && /npm-cli\.c?js$/.test(cli)) return { program: node, first: [cli] };
  for (const folder of npmEnvironment(root).PATH.split(delimiter)) {
    if (folder === "") continue;
    try {
      accessSync(join(folder, "npm"), constants.X_OK);
      return { program: join(folder, "npm"), first: [] };
    } catch {
      // not in this folder
    }
  }
  throw new InstallError("npm is not installed. On Debian 12 and later: apt-get install nodejs npm");
}

/** Without what an outer `npm run` adds: its PATH leads to the Node that is about to be replaced. */
function npmEnvironment(root) {
  const outer = /^npm_(lifecycle_|package_|command|execpath|node_execpath|config_(workspace|local_prefix|location))/;
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !outer.test(name)));
  const path = (env.PATH ?? "").split(delimiter).filter((folder) => !folder.startsWith(join(root, "node_modules")));
  return { ...env, PATH: path.join(delimiter), NODE_ENV: "development" };
}

function overriddenSettings() {
  const settings = ["omit", "production", "only", "optional", "ignore_scripts", "bin_links", "dry_run", "global"];
  const harmless = { optional: "true", bin_links: "true" };
  return settings
    .map((name) => [name, process.env[`npm_config_${name}`] ?? ""])
    .filter(([name, value]) => value !== "" && value !== (harmless[name] ?? "false") && value !== "null")
    .map(([name, value]) => `${name.replaceAll("_", "-")}=${value}`)
    .join(", ");
}

function checkNode(root) {
  let version;
  try {
    version = execFileSync(projectNode(root), ["--version"], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    }).trim();
  } catch (error) {
    const why = String(error.message).split("\n")[0];
    throw new InstallError(
      `The project's own Node does not run on this machine (${why}).\nGlasskey needs 64-bit Linux with glibc 2.28, or macOS.`,
    );
  }
  const [major, minor] = version.slice(1).split(".").map(Number);
  if (major < OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor < OLDEST_NODE[1])) {
    throw new InstallError(
      `node_modules/.bin/node is ${version}; Glasskey needs ${OLDEST_NODE.join(".")} or later. Delete node_modules and try again.`,
    );
  }
}

// A file that names the processes at work. It is made by link(2), complete or not at all; when both are gone it is stale.
async function takeLock(root) {
  const lock = join(root, ".install.lock");
  const mine = `${lock}.${process.pid}`;
  let told = false;
  for (;;) {
    writeFileSync(mine, `${process.pid}\n`);
    try {
      linkSync(mine, lock);
      const heartbeat = setInterval(() => touch(lock), LOCK_STALE_MS / 10);
      const release = () => {
        clearInterval(heartbeat);
        rmSync(lock, { force: true });
      };
      release.tell = (pid) => writeFileSync(lock, `${process.pid}\n${pid}\n`);
      return release;
    } catch (error) {
      if (error.code !== "EEXIST") throw new InstallError(`Cannot write to ${root}: ${error.message}`);
    } finally {
      rmSync(mine, { force: true });
    }
    const holders = lockHolders(lock);
    if (holders !== undefined && !isHeld(lock, holders)) {
      breakLock(lock, mine);
      continue;
    }
    if (!told && holders !== undefined) {
      process.stderr.write(`Waiting for another installation here (process ${holders[0]}) …\n`);
      told = true;
    }
    await new Promise((done) => setTimeout(done, LOCK_POLL_MS));
  }
}

function lockHolders(lock) {
  try {
    return readFileSync(lock, "utf8").split("\n").filter(Boolean).map(Number);
  } catch {
    return undefined; // released meanwhile
  }
}

/** Takes a stale lock away. Another process may have done the same and locked anew in between: then it is put back. */
function breakLock(lock, mine) {
  try {
    renameSync(lock, mine);
  } catch {
    return;
  }
  if (isHeld(mine, lockHolders(mine) ?? [])) {
    try {
      linkSync(mine, lock);
    } catch {
      // a third one was faster, and waits for nobody who is alive
    }
  }
  rmSync(mine, { force: true });
}

function isHeld(lock, holders) {
  try {
    return holders.some(isAlive) && Date.now() - statSync(lock).mtimeMs < LOCK_STALE_MS;
  } catch {
    return false;
  }
}

function touch(lock) {
  try {
    utimesSync(lock, new Date(), new Date());
  } catch {
    // the folder is gone; the installation will say so
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}
