import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { join, resolve } from "node:path";
import { userInfo } from "node:os";

/** A real OpenSSH server that plays a production host: on a free loopback port, with everything in a folder of its own. */
export interface DemoSshd {
  readonly port: number;
  /** Its host key's line, for `hostKeys: { pin: [LINE] }`. */
  readonly hostKey: string;
  /** Who leases log in as; whoever started the demo. */
  readonly user: string;
  /** `RevokedKeys`, which Glasskey's control login writes. */
  readonly revokedKeys: string;
  /** What runs there: a log to look at, and a file to mend. */
  readonly app: { readonly log: string; readonly settings: string };
  /** Trusts that authority from now on. */
  trust(line: string): Promise<void>;
  stop(): Promise<void>;
}

const SSHD = "/usr/sbin/sshd";
const SFTP_SERVERS = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"];
const PROGRAMS = ["/usr/bin/ssh", "/usr/bin/ssh-keygen", "/usr/bin/scp"];
/** What ssh_config, sshd_config and a target file take without quotes. */
const PLAIN_PATH = /^(?:\/[A-Za-z0-9_@%+=:,.-]+)+$/;

/** Why no host can be played here; undefined when one can. */
export function noDemoSshd(): string | undefined {
  const missing = [SSHD, ...PROGRAMS].find((program) => !existsSync(program));
  if (missing !== undefined) return `${missing} is not installed`;
  return userInfo().uid === 0 ? undefined : "sshd lets users in only where root started it";
}

/** Where the demo in `dir` has its host: in it, or, where its path has a space or the like, in a folder that only root makes. */
export function demoSshdDir(dir: string): string {
  const inside = join(resolve(dir), "web-1");
  if (PLAIN_PATH.test(inside)) return inside;
  const name = createHash("sha256").update(inside).digest("hex").slice(0, 12);
  return join(existsSync("/run") ? "/run" : "/var/run", `glasskey-demo-${name}`);
}

export async function startDemoSshd(dir: string): Promise<DemoSshd> {
  mkdirSync("/run/sshd", { recursive: true, mode: 0o755 }); // privilege separation; Debian's service makes it at each boot
  await mkdir(join(dir, "app"), { recursive: true });
  await chmod(dir, 0o755);
  const [hostKey, authority, revokedKeys] = [join(dir, "host_key"), join(dir, "glasskey_ca.pub"), join(dir, "revoked")];
  const app = { log: join(dir, "app/checkout.log"), settings: join(dir, "app/checkout.conf") };
  await writeFile(app.log, "02:13:58 checkout: 212 orders wait\n02:14:00 checkout: pool_size 4 is too small\n");
  await writeFile(app.settings, "pool_size = 4\n");
  await writeFile(authority, "");
  await writeFile(revokedKeys, "");
  execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", hostKey]);
  const port = await freePort();
  const config = [
    `Port ${port}`,
    "ListenAddress 127.0.0.1",
    `PidFile ${join(dir, "sshd.pid")}`,
    `HostKey ${hostKey}`,
    `TrustedUserCAKeys ${authority}`,
    `RevokedKeys ${revokedKeys}`,
    "AcceptEnv LC_GLASSKEY",
    "AuthorizedKeysFile none",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "PermitRootLogin prohibit-password",
    "UsePAM no",
    "PrintMotd no",
    "PrintLastLog no",
    `SetEnv HOME=${join(dir, "app")}`, // nobody's own start-up files
    `Subsystem sftp ${SFTP_SERVERS.find((path) => existsSync(path)) ?? "internal-sftp"}`,
  ];
  await writeFile(join(dir, "sshd_config"), `${config.join("\n")}\n`);
  const child = await start(dir, port);
  return {
    ...{ port, revokedKeys, app, user: userInfo().username },
    hostKey: readFileSync(`${hostKey}.pub`, "utf8").trim(),
    trust: (line) => writeFile(authority, `${line}\n`), // sshd reads it at each login
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const gone = once(child, "exit");
      child.kill("SIGTERM");
      await gone;
    },
  };
}

async function start(dir: string, port: number): Promise<ChildProcess> {
  const child = spawn(SSHD, ["-D", "-e", "-f", join(dir, "sshd_config")], {
    stdio: ["ignore", "ignore", "pipe"],
    detached: true, // Ctrl-C is for the demo, which stops it afterwards
  });
  const listening = Promise.withResolvers<void>();
  let said = "";
  child.stderr.on("data", (bytes: Buffer) => {
    said = (said + bytes.toString()).slice(-10_000);
    if (said.includes(`listening on 127.0.0.1 port ${port}`)) listening.resolve();
  });
  child.once("error", listening.reject);
  child.once("exit", (code) => listening.reject(new Error(`sshd ended with ${code}:\n${said}`)));
  await listening.promise;
  return child;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
