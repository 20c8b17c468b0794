import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { delimiter, join } from "node:path";
import { readFile } from "node:fs/promises";
import pg from "pg";

/** One way to the same database: through Glasskey, through its peer, or straight to the target. */
export interface Way {
  readonly name: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
  /** File with the CA of whoever answers there; undefined for a way without TLS. */
  readonly caFile: string | undefined;
}

/** Debian's own programs first: what it puts into PATH is a Perl script that looks for them at every start. */
const DEBIAN = "/usr/lib/postgresql";

/** The folder of PostgreSQL's client programs, newest version first. @throws Error that says what to install. */
export function clientDir(): string {
  const versions = existsSync(DEBIAN) ? readdirSync(DEBIAN).toSorted((a, b) => Number(b) - Number(a)) : [];
  const folders = [...versions.map((version) => join(DEBIAN, version, "bin")), ...path()];
  const found = folders.find((folder) => existsSync(join(folder, "psql")) && existsSync(join(folder, "pgbench")));
  if (found !== undefined) return found;
  throw new Error(
    "psql and pgbench are not installed here. On Debian: apt-get install postgresql-client postgresql-contrib",
  );
}

/** Where a program is, if it is installed. */
export function programIn(name: string): string | undefined {
  return [...path(), "/usr/sbin", "/usr/local/sbin"]
    .map((folder) => join(folder, name))
    .find((file) => existsSync(file));
}

const path = (): string[] => (process.env["PATH"] ?? "").split(delimiter).filter((folder) => folder !== "");

/** libpq's environment for a way. */
export function environmentOf(way: Way): Record<string, string> {
  const tls =
    way.caFile === undefined ? { PGSSLMODE: "disable" } : { PGSSLMODE: "verify-full", PGSSLROOTCERT: way.caFile };
  return {
    ...{
      PGHOST: "localhost",
      PGHOSTADDR: "127.0.0.1",
      PGPORT: String(way.port),
      PGUSER: way.user,
      PGPASSWORD: way.password,
    },
    ...{ PGDATABASE: way.database, PGGSSENCMODE: "disable", ...tls },
  };
}

export interface Finished {
  stdout: string;
  stderr: string;
  /** From its start to the first byte of its output, and to its end. */
  firstByteMs: number;
  ms: number;
}

/** Runs a program to its end. @throws Error with what it said, when it fails. */
export function execute(
  program: string,
  args: readonly string[],
  options: { env?: Readonly<Record<string, string>>; signal?: AbortSignal; discard?: boolean; input?: string } = {},
): Promise<Finished> {
  const { env = {}, signal, discard = false, input = "" } = options;
  return new Promise((resolve, reject) => {
    const begun = performance.now();
    const child = spawn(program, args, {
      stdio: ["pipe", discard ? "ignore" : "pipe", "pipe"],
      env: { ...process.env, ...env },
      ...(signal === undefined ? {} : { signal }),
    });
    let [stdout, stderr, firstByteMs] = ["", "", NaN];
    child.stdout?.on("data", (chunk: Buffer) => {
      if (stdout === "") firstByteMs = performance.now() - begun;
      stdout += chunk.toString("utf8");
    });
    child.stderr?.on("data", (chunk: Buffer) => (stderr = (stderr + chunk.toString("utf8")).slice(-4_000)));
    child.stdin?.on("error", () => {});
    child.stdin?.end(input);
    child.once("error", reject);
    child.once("close", (code, killed) => {
      if (code === 0) return resolve({ stdout, stderr, firstByteMs, ms: performance.now() - begun });
      reject(new Error(`${program} ${args.join(" ")} failed (${code ?? killed ?? "?"}): ${stderr}${stdout}`));
    });
  });
}

export interface Load {
  clients: number;
  seconds: number;
  protocol?: "simple" | "extended" | "prepared";
}

/** `pgbench -S`. @returns transactions per second, without the time to connect. @throws Error when one failed. */
export async function pgbench(
  way: Way,
  { clients, seconds, protocol = "simple" }: Load,
  signal: AbortSignal,
): Promise<number> {
  const threads = Math.min(clients, 2);
  const args = ["-S", "-n", "-M", protocol, "-c", String(clients), "-j", String(threads), "-T", String(seconds)];
  const { stdout } = await execute(join(clientDir(), "pgbench"), args, { env: environmentOf(way), signal });
  const tps = /^tps = ([\d.]+) /m.exec(stdout)?.[1];
  if (tps === undefined || !/number of failed transactions: 0 /.test(stdout))
    throw new Error(`pgbench on ${way.name}: ${stdout}`);
  return Number(tps);
}

/** A connection of node-postgres over that way. */
export async function connect(way: Way): Promise<pg.Client> {
  const { port, user, password, database, caFile } = way;
  const tls = caFile === undefined ? {} : { ssl: { ca: await readFile(caFile, "utf8"), servername: "localhost" } };
  const client = new pg.Client({ host: "127.0.0.1", port, user, password, database, ...tls });
  client.on("error", () => {});
  await client.connect();
  return client;
}
