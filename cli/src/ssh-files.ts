import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { ConnectAnswer } from "@glasskey/contract";
import { CliError, usage } from "./errors.ts";
import { grantDir, grantsDir, writePrivate } from "./home.ts";

/**
 * What OpenSSH's client reads for one grant: a key, its certificate, the gateway's line of known_hosts, and an ssh_config
 * with one host, the grant. Beside them nothing is read: not `~/.ssh`, not the machine's ssh_config, no agent.
 */
export interface SshFiles {
  readonly dir: string;
  /** For `-F`. */
  readonly config: string;
  /** The name of the host in it: the grant. */
  readonly host: string;
}

/** The identity that a certificate is for. */
export type SshIdentity =
  | { readonly privateKey: string }
  /** The person's own key, in a file or in an agent such as a hardware key's. */
  | { readonly ownKey: string };

const RUNNING = /^ssh-(\d+)$/;
const KEPT = "ssh";
const UNTIL = "until";

/** A folder for one run of a client. Whoever makes it removes it; {@link sweepSsh} removes what a killed one left. */
export const runDir = (grant: string): string => join(grantDir(grant), `ssh-${process.pid}`);

/**
 * The folder that stays until the grant's end, for `scp -F` and its like: what is there already, where it is still right, or
 * made anew as a whole, so that a copy that begins meanwhile never sees half of it.
 */
export function keepSsh(answer: ConnectAnswer, identity: SshIdentity): SshFiles {
  const kept = join(grantDir(answer.grant), KEPT);
  const files = { dir: kept, config: join(kept, "config"), host: answer.grant };
  if ("privateKey" in identity && existsSync(join(kept, "key")) && untilOf(kept) === checkedEnd(answer)) return files;
  const { dir } = writeSsh(runDir(answer.grant), answer, identity, kept);
  rmSync(kept, { recursive: true, force: true });
  renameSync(dir, kept);
  return files;
}

/**
 * @param later where the folder will be when it is used
 * @throws CliError when the answer is not one that an SSH client can be told
 */
export function writeSsh(dir: string, answer: ConnectAnswer, identity: SshIdentity, later = dir): SshFiles {
  const grant = checkedGrant(answer);
  const { host, port } = checkedEndpoint(answer);
  const [trust, certified, endsAt] = [checkedTrust(answer), checkedCertificate(answer), checkedEnd(answer)];
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  writePrivate(join(dir, UNTIL), `${endsAt}\n`);
  writePrivate(join(dir, "known_hosts"), `${trust}\n`);
  writePrivate(join(dir, "key-cert.pub"), `${certified}\n`);
  if ("privateKey" in identity) writePrivate(join(dir, "key"), identity.privateKey);
  const [key, certificate, knownHosts] = [join(later, "key"), join(later, "key-cert.pub"), join(later, "known_hosts")];
  const config = join(dir, "config");
  const [identityFile, agent] = "privateKey" in identity ? [key, "none"] : ownIdentity(identity.ownKey);
  const lines = [
    `# Written by glass for ${grant}, which ends at ${endsAt}. Removed by: glass end ${grant}`,
    `Host ${grant}`,
    `  HostName ${host}`,
    `  Port ${port}`,
    `  User ${grant}`,
    `  IdentityFile ${path(identityFile)}`,
    `  CertificateFile ${path(certificate)}`,
    "  IdentitiesOnly yes",
    `  IdentityAgent ${agent}`,
    "  PreferredAuthentications publickey",
    `  UserKnownHostsFile ${path(knownHosts)}`,
    "  GlobalKnownHostsFile /dev/null",
    "  StrictHostKeyChecking yes",
    "  UpdateHostKeys no",
    "  ForwardAgent no",
    "  ForwardX11 no",
    "  ServerAliveInterval 30",
  ];
  writePrivate(config, `${lines.join("\n")}\n`);
  return { dir, config, host: grant };
}

/** The plain line for any machine, and what is needed with it. */
export function plainSsh(answer: ConnectAnswer): { argv: readonly string[]; knownHosts: string } {
  const { host, port } = checkedEndpoint(answer);
  return {
    argv: ["ssh", ...(port === 22 ? [] : ["-p", String(port)]), `${checkedGrant(answer)}@${host}`],
    knownHosts: checkedTrust(answer),
  };
}

/** Removes keys that nobody uses any more: of runs that were killed, and of grants that have ended. Never throws. */
export function sweepSsh(now = Date.now()): void {
  const dir = grantsDir();
  for (const grant of entries(dir)) {
    for (const name of entries(join(dir, grant))) {
      const at = join(dir, grant, name);
      const run = RUNNING.exec(name)?.[1];
      const stale = run !== undefined ? !lives(Number(run)) : name === KEPT && endedBefore(at, now);
      if (stale) rmSync(at, { recursive: true, force: true });
    }
  }
}

function entries(dir: string): readonly string[] {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
}

function lives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** Also where nothing says when: somebody was killed over it. */
const endedBefore = (dir: string, now: number): boolean => !(Date.parse(untilOf(dir) ?? "") > now);

function untilOf(dir: string): string | undefined {
  try {
    return readFileSync(join(dir, UNTIL), "utf8").trim();
  } catch {
    return undefined;
  }
}

/** The private key beside a `.pub` file; where there is none, an agent has it. */
function ownIdentity(file: string): readonly [file: string, agent: string] {
  const secret = file.replace(/\.pub$/, "");
  return secret !== file && existsSync(secret) ? [secret, "none"] : [file, "SSH_AUTH_SOCK"];
}

/** As ssh_config(5) reads it: in quotes, and `%` starts a token. */
function path(file: string): string {
  if (/["\\\u0000-\u001F]|\$\{/.test(file)) {
    throw usage(`ssh cannot be told of a path such as ${JSON.stringify(file)}`, "Set GLASSKEY_HOME to a plainer one.");
  }
  return `"${file.replaceAll("%", "%%")}"`;
}

function checkedEndpoint({ host, port }: ConnectAnswer): { host: string; port: number } {
  if (!/^[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}$/.test(host) || !Number.isInteger(port) || port < 1 || port > 65_535) {
    throw wrong("names no host that ssh could reach");
  }
  return { host, port };
}

function checkedTrust({ trust }: ConnectAnswer): string {
  if (/^@cert-authority [A-Za-z0-9.:,[\]-]+ [a-z0-9@.-]+ [A-Za-z0-9+/=]+(?: [\x20-\x7E]*)?$/.test(trust)) return trust;
  throw wrong("does not say what the gateway is known by");
}

function checkedCertificate({ certificate }: ConnectAnswer): string {
  if (/^[a-z0-9@.-]+ [A-Za-z0-9+/=]+(?: [\x20-\x7E]*)?$/.test(certificate ?? "")) return certificate ?? "";
  throw wrong("has no certificate");
}

/** Its id is a user's name, a word of the command line and of the configuration. */
function checkedGrant({ grant }: ConnectAnswer): string {
  if (/^gr_[0-9a-hjkmnp-tv-z]{12}$/.test(grant)) return grant;
  throw wrong("names no grant");
}

function checkedEnd({ endsAt }: ConnectAnswer): string {
  if (/^\d{4}-\d\d-\d\dT[\d:.]{5,15}Z$/.test(endsAt) && !Number.isNaN(Date.parse(endsAt))) return endsAt;
  throw wrong("does not say when the grant ends");
}

const wrong = (what: string): CliError =>
  new CliError("integrity", `the server's answer ${what}`, { next: "Is it of this glass's version? glass --version" });
