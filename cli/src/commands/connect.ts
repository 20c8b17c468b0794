import { spawn } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { constants } from "node:os";
import { join, resolve } from "node:path";
import type { ConnectAnswer, GrantView } from "@glasskey/contract";
import { call } from "../client.ts";
import { nativeClient, remoteCommand } from "../clients.ts";
import type { Invocation } from "../commands.ts";
import { CliError, usage } from "../errors.ts";
import { grantDir, readLogin, writePrivate, type Login } from "../home.ts";
import { grantArgument } from "../ids.ts";
import { clock, plain, type Output } from "../output.ts";
import { keepSsh, plainSsh, runDir, sweepSsh, writeSsh, type SshFiles, type SshIdentity } from "../ssh-files.ts";
import { newSshKey } from "../ssh-key.ts";

const MAX_PUBLIC_KEY_BYTES = 8_192;

export async function connect({ args, options, command, out }: Invocation): Promise<number> {
  const login = readLogin();
  const grant = grantArgument(args);
  const { print, config, key } = options as { print?: boolean; config?: boolean; key?: string };
  if (config === true) return keepConfig(login, grant, key, out);
  if (print !== true && !out.json) return runClient(login, grant, command, out, key);
  if (key !== undefined)
    throw usage("--print needs no key", "For your own key: glass connect GRANT --config --key FILE.pub");
  const answer = await ask(login, grant);
  return answer.kind === "ssh" ? printSsh(answer, out) : printNative(answer, out);
}

function printNative(answer: ConnectAnswer, out: Output): number {
  const ca = writeCa(answer);
  const client = nativeClient(answer, ca);
  out.value({ ...answer, argv: client.argv, env: client.env, caFile: ca });
  out.say(client.line);
  out.hint(`The secret works until ${clock(answer.endsAt)}. Do not paste it where others read.`);
  return 0;
}

function printSsh(answer: ConnectAnswer, out: Output): number {
  const { argv, knownHosts } = plainSsh(answer);
  out.value({ ...answer, argv, env: {} });
  out.say(argv.join(" "));
  out.say(`  secret, as the password:  ${plain(answer.secret)}`);
  out.say("  the gateway, one line of known_hosts:");
  out.say(plain(knownHosts));
  out.hint(`The secret works until ${clock(answer.endsAt)}. Do not paste it where others read.`);
  return 0;
}

/** Leaves an ssh_config until the grant's end. On standard output: its path, and nothing else. */
async function keepConfig(login: Login, grant: string, key: string | undefined, out: Output): Promise<number> {
  const { answer, identity } = await askWithKey(login, grant, key);
  requireSsh(answer, "--config");
  const { config, host } = keepSsh(answer, identity);
  out.value({ grant, host, config, endsAt: answer.endsAt });
  out.say(config);
  if (out.tty) {
    out.hint("");
    for (const line of examples(grant, host)) out.hint(`  ${line}`);
    out.hint(`It works until ${clock(answer.endsAt)}; glass end ${grant} removes it.`);
  }
  return 0;
}

/** By a variable: paths are long, and may have spaces, which rsync, git and Ansible cut at unless they are quoted twice. */
const examples = (grant: string, host: string): readonly string[] => [
  `F=$(glass connect ${grant} --config)`,
  `scp -F "$F" FILE ${host}:/path`,
  `sftp -F "$F" ${host}`,
  `rsync -e "ssh -F '$F'" -a FOLDER ${host}:/path`,
  `GIT_SSH_COMMAND="ssh -F '$F'" git clone ${host}:/path`,
  `ansible -i ${host}, all -m ping --ssh-common-args "-F '$F'"`,
];

const ask = (login: Login, grant: string, publicKey?: string): Promise<ConnectAnswer> =>
  call<ConnectAnswer>(
    login,
    "POST",
    `/v1/grants/${grant}/connect`,
    publicKey === undefined ? undefined : { publicKey },
  );

/** With a fresh key, or the person's own. Kinds that know no such keys answer as without one. */
async function askWithKey(
  login: Login,
  grant: string,
  own: string | undefined,
): Promise<{ answer: ConnectAnswer; identity: SshIdentity }> {
  if (own !== undefined) {
    const answer = await ask(login, grant, readPublicKey(own));
    requireSsh(answer, "--key");
    return { answer, identity: { ownKey: resolve(own) } };
  }
  const key = newSshKey(grant);
  return { answer: await ask(login, grant, key.publicKey), identity: { privateKey: key.privateKey } };
}

function requireSsh(answer: ConnectAnswer, option: string): void {
  if (answer.kind === "ssh") return;
  throw usage(`${option} is for targets of kind ssh, and ${answer.grant} is for one of kind ${plain(answer.kind)}`);
}

/** The first line of a public key's file; never that of a private one, which must not leave this machine. */
function readPublicKey(file: string): string {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new CliError("usage", `cannot read ${plain(file)}`, { next: "Give a .pub file.", cause });
  }
  const [line = ""] = text.split(/\r?\n/, 1);
  if (text.includes("PRIVATE KEY") || !/^[a-z0-9@.-]+ [A-Za-z0-9+/=]+/.test(line) || text.length > MAX_PUBLIC_KEY_BYTES)
    throw usage(`${plain(file)} is not a public key`, "Give the .pub file that ssh-keygen wrote beside the key.");
  return line;
}

function writeCa(answer: ConnectAnswer): string {
  const ca = join(grantDir(answer.grant), "ca.pem");
  writePrivate(ca, answer.ca);
  return ca;
}

interface Program {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** Removes what was written for this run alone. */
  readonly dispose: () => void;
}

/** For a database, `command` is a program here; for a host it runs there, unless it begins with options of ssh's own. */
async function prepare(login: Login, grant: string, command: readonly string[], key?: string): Promise<Program> {
  const { answer, identity } = await askWithKey(login, grant, key);
  if (answer.kind === "ssh") {
    sweepSsh();
    const files: SshFiles = writeSsh(runDir(answer.grant), answer, identity);
    const dispose = (): void => rmSync(files.dir, { recursive: true, force: true });
    process.once("exit", dispose); // whatever else goes wrong
    return { argv: ["ssh", "-F", files.config, files.host, ...remoteCommand(command)], env: {}, dispose };
  }
  const client = nativeClient(answer, writeCa(answer));
  const own = command.length > 0 && !(command[0] ?? "").startsWith("-");
  return { argv: own ? command : [...client.argv, ...command], env: client.env, dispose: () => {} };
}

/** Runs the target's client, or `command` with everything it needs in its environment. @returns its exit code. */
export async function runClient(
  login: Login,
  grant: string,
  command: readonly string[],
  out: Output,
  key?: string,
): Promise<number> {
  const { argv, env, dispose } = await prepare(login, grant, command, key);
  const [program = "", ...rest] = argv;
  const child = spawn(program, rest, { stdio: "inherit", env: { ...process.env, ...env } });
  // Ctrl-C belongs to the client: it cancels a query there. This process only waits.
  for (const signal of ["SIGINT", "SIGQUIT"] as const) process.on(signal, () => {});
  for (const signal of ["SIGTERM", "SIGHUP"] as const) process.on(signal, () => child.kill(signal));
  const status = await new Promise<number>((resolve, reject) => {
    child.once("error", (cause: NodeJS.ErrnoException) =>
      reject(
        cause.code === "ENOENT"
          ? new CliError("usage", `${program} is not installed here`, {
              next: `Any client works. Its line: glass connect ${grant} --print`,
              cause,
            })
          : cause,
      ),
    );
    child.once("exit", (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])));
  }).finally(dispose);
  if (out.tty) await sayWhatIsOpen(login, grant, out);
  return status;
}

/** The grant may have ended, or been extended, while the client ran. */
async function sayWhatIsOpen(login: Login, grant: string, out: Output): Promise<void> {
  const now = await call<GrantView>(login, "GET", `/v1/grants/${grant}`).catch(() => undefined);
  if (now === undefined) return;
  out.hint(
    now.state === "active"
      ? out.dim(`Still open until ${clock(now.endsAt ?? "")}. When you are done: glass end ${now.grant}`)
      : `${now.grant} is over${now.closedAt === null ? "" : ` since ${clock(now.closedAt)}`}: ${now.endText ?? now.state}`,
  );
}
