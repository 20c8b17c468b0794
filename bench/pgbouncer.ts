import { spawn } from "node:child_process";
import { chown, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createAuthority, issueServerCertificate } from "../server/src/core/certificates.ts";
import { freePort } from "../server/src/store/cluster.ts";
import { connect, programIn, type Way } from "./clients.ts";
import { stopChild, type Stage } from "./stage.ts";

/** A pgbouncer on the stage's target: session mode, SCRAM on both sides, verified TLS to the target as Glasskey has it. */
export interface Pgbouncer {
  readonly pid: number;
  readonly tls: Way;
  readonly plain: Way;
  [Symbol.asyncDispose](): Promise<void>;
}

const READY_MS = 10_000;

/** @returns undefined where pgbouncer is not installed. */
export async function startPgbouncer(stage: Stage, folder: string, poolSize: number): Promise<Pgbouncer | undefined> {
  const program = programIn("pgbouncer");
  if (program === undefined) return undefined;
  const dir = join(folder, "pgbouncer");
  await mkdir(dir, { recursive: true, mode: 0o755 });
  const authority = await createAuthority("pgbouncer CA", 30);
  const identity = await issueServerCertificate(authority, ["localhost", "127.0.0.1"], 30);
  const port = await freePort();
  const { target, login } = stage;
  // The target's own SCRAM verifier: pgbouncer then needs no password, and no key derivation at each login.
  const admin = await connect(stage.direct.plain);
  const { rows } = await admin.query<{ rolpassword: string }>("select rolpassword from pg_authid where rolname = $1", [
    login.user,
  ]);
  await admin.end();
  const file = (name: string): string => join(dir, name);
  const files: Record<string, string> = {
    "ca.pem": authority.cert,
    "server.pem": identity.cert,
    "server.key": identity.key,
    "users.txt": `"${login.user}" "${rows[0]?.rolpassword ?? ""}"\n`,
    "pgbouncer.ini": `[databases]
${target.database} = host=localhost port=${target.port} dbname=${target.database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${file("users.txt")}
pool_mode = session
default_pool_size = ${poolSize}
max_client_conn = 2000
ignore_startup_parameters = extra_float_digits
client_tls_sslmode = allow
client_tls_key_file = ${file("server.key")}
client_tls_cert_file = ${file("server.pem")}
server_tls_sslmode = verify-full
server_tls_ca_file = ${target.caFile}
log_connections = 0
log_disconnections = 0
`,
  };
  const owner = await unprivileged();
  for (const [name, text] of Object.entries(files)) {
    await writeFile(file(name), text, { mode: name === "ca.pem" ? 0o644 : 0o600 });
    if (owner !== undefined) await chown(file(name), owner.uid, owner.gid);
  }
  const child = spawn(program, ["-q", file("pgbouncer.ini")], {
    stdio: ["ignore", "ignore", "pipe"],
    detached: true,
    cwd: "/",
    ...owner,
  });
  let said = "";
  child.stderr?.on("data", (chunk: Buffer) => (said = (said + chunk.toString("utf8")).slice(-4_000)));
  child.once("error", (error) => (said += error.message));
  const way = { port, database: target.database, ...login };
  const tls = { ...way, name: "pgbouncer, TLS", caFile: file("ca.pem") };
  const until = performance.now() + READY_MS;
  for (;;) {
    try {
      await (await connect(tls)).end();
      break;
    } catch (cause) {
      if (child.exitCode === null && performance.now() < until) {
        await new Promise((done) => setTimeout(done, 25));
        continue;
      }
      await stopChild(child);
      throw new Error(`pgbouncer did not start: ${said}`, { cause });
    }
  }
  return {
    ...{ pid: child.pid ?? 0, tls, plain: { ...way, name: "pgbouncer", caFile: undefined } },
    [Symbol.asyncDispose]: () => stopChild(child),
  };
}

/** pgbouncer refuses to run as root. */
async function unprivileged(): Promise<{ uid: number; gid: number } | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const line = (await readFile("/etc/passwd", "utf8")).split("\n").find((entry) => entry.startsWith("nobody:"));
  const [, , uid = "65534", gid = "65534"] = (line ?? "").split(":");
  return { uid: Number(uid), gid: Number(gid) };
}
