import { execFileSync, spawn } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { join } from "node:path";
import type { ConnectAnswer, GrantView, SessionView, TargetSetup } from "@glasskey/contract";
import { call } from "../cli/src/client.ts";
import type { Login } from "../cli/src/home.ts";
import { writeSsh } from "../cli/src/ssh-files.ts";
import { newSshKey } from "../cli/src/ssh-key.ts";
import { hashSecret, newPersonSecret } from "../server/src/identity/secrets.ts";
import { freePort } from "../server/src/store/cluster.ts";
import { startSshd, type TestSshd } from "../server/src/targets/ssh/fixtures/sshd.ts";
import { execute } from "./clients.ts";
import { GLASS, stopChild, whenReady, writeFiles } from "./stage.ts";

/** One way to the same host: straight, through a jump host of OpenSSH's, or through Glasskey. */
export interface SshWay {
  readonly name: string;
  /** `-F FILE`. */
  readonly config: string;
  readonly host: string;
}

/** A private sshd, another as jump host, and a Glasskey in a process of its own. */
export interface SshStage extends AsyncDisposable {
  readonly direct: SshWay;
  readonly jump: SshWay;
  readonly glasskey: SshWay;
  /** Of `glass serve`; its data plane is a thread of it. */
  readonly pid: number;
  /** What a client of our own needs for the grant. */
  readonly answer: ConnectAnswer;
  /** A security officer's kill of every session that is open. Resolves with the answers; @returns when it was asked. */
  kill(): Promise<number>;
}

const USER = userInfo().username;
const TARGET = "web-1";

/** @param profile a folder for `--cpu-prof` of the server; it is written when that ends. */
export async function startSshStage(folder: string, signal: AbortSignal, profile?: string): Promise<SshStage> {
  const stack = new AsyncDisposableStack();
  try {
    const [authority, key] = [newSshKey("authority"), newSshKey("bench")];
    const start = async (): Promise<TestSshd> => {
      const sshd = await startSshd({ trustedUserCas: [authority.publicKey] });
      stack.defer(() => sshd.dispose());
      return sshd;
    };
    const [host, jump] = [await start(), await start()];
    const dir = join(folder, "client");
    await mkdir(dir);
    await writeFile(join(dir, "authority"), authority.privateKey, { mode: 0o600 });
    await writeFile(join(dir, "key"), key.privateKey, { mode: 0o600 });
    await writeFile(join(dir, "key.pub"), `${key.publicKey}\n`);
    execFileSync("ssh-keygen", ["-q", "-s", join(dir, "authority"), "-I", "bench", "-n", USER, join(dir, "key.pub")]);
    const known = [host, jump].map(({ port, hostKeys }) => `[127.0.0.1]:${port} ${hostKeys.ed25519}\n`);
    await writeFile(join(dir, "known_hosts"), known.join(""));
    const common = [
      "HostName 127.0.0.1",
      `User ${USER}`,
      `IdentityFile ${dir}/key`,
      "IdentitiesOnly yes",
      "IdentityAgent none",
    ];
    const trust = [
      `UserKnownHostsFile ${dir}/known_hosts`,
      "GlobalKnownHostsFile /dev/null",
      "StrictHostKeyChecking yes",
    ];
    const block = (name: string, port: number, more: readonly string[] = []): string =>
      [`Host ${name}`, `Port ${port}`, ...common, ...trust, ...more, ""].join("\n");
    const config = join(dir, "config");
    const through = [`ProxyCommand ssh -F ${config} -W %h:%p jump`]; // what -J does, with this file for both
    await writeFile(
      config,
      block("direct", host.port) + block("jump", jump.port) + block("jumped", host.port, through),
    );

    const glass = await startGlass(join(folder, "glasskey"), host, signal, profile);
    stack.defer(glass.stop);
    const setup = await call<TargetSetup>(glass.admin, "GET", `/v1/targets/${TARGET}/setup`);
    const line = setup.steps.map(({ text }) => text.trim()).find((text) => text.startsWith("ssh-ed25519 "));
    await writeFile(join(host.dir, "user_ca.pub"), `${authority.publicKey}\n${line ?? ""}\n`);
    const body = { playbook: "bench", reason: "bench", why: "to measure it" };
    const opened = await call<GrantView>(glass.ann, "POST", "/v1/grants", body);
    if (opened.state !== "active") throw new Error(`the grant is ${opened.state}: ${opened.lastError ?? ""}`);
    const { publicKey, privateKey } = newSshKey(opened.grant);
    const answer = await call<ConnectAnswer>(glass.ann, "POST", `/v1/grants/${opened.grant}/connect`, { publicKey });
    const files = writeSsh(join(folder, "grant"), answer, { privateKey });
    const running = stack.move();
    return {
      direct: { name: "direct", config, host: "direct" },
      jump: { name: "ssh -J", config, host: "jumped" },
      glasskey: { name: "Glasskey", config: files.config, host: files.host },
      ...{ pid: glass.pid, answer },
      async kill() {
        const { sessions } = await call<{ sessions: SessionView[] }>(glass.admin, "GET", "/v1/sessions?open=true");
        const asked = performance.now();
        const killed = sessions.map(({ session }) =>
          call(glass.admin, "POST", "/v1/kill", { id: session, why: "measured" }),
        );
        await Promise.all(killed);
        return asked;
      },
      [Symbol.asyncDispose]: () => running.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

async function startGlass(
  dir: string,
  host: TestSshd,
  signal: AbortSignal,
  profile: string | undefined,
): Promise<{ pid: number; ann: Login; admin: Login; stop: () => Promise<void> }> {
  const secrets = { ann: newPersonSecret(), ida: newPersonSecret() };
  await writeFiles(dir, {
    "policy/policy.yaml": "reasons: { bench: To measure }\n",
    "policy/people.yaml": `- { name: ann, roles: [requester], groups: [ops], secret: ${await hashSecret(secrets.ann)} }
- { name: ida, roles: [admin, security_officer, auditor], secret: ${await hashSecret(secrets.ida)} }
`,
    [`policy/targets/${TARGET}.yaml`]: `target: ${TARGET}
kind: ssh
config: { host: 127.0.0.1, port: ${host.port}, hostKeys: { pin: [${JSON.stringify(host.hostKeys.ed25519)}] } }
`,
    "policy/playbooks/bench.yaml": `playbook: bench
summary: Measure
target: ${TARGET}
scope: { user: ${USER}, shell: true, sftp: { read: ["/**"], write: ["/**"] } }
who: { group: ops }
when: { reason: [bench] }
approve: { need: 0 }
time: { max: 2h }
`,
    "glasskey.yaml": `listen: { api: "127.0.0.1:${await freePort()}", postgres: "127.0.0.1:${await freePort()}", ssh: "127.0.0.1:${await freePort()}" }
`,
  });
  const profiled = profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${profile}`];
  const args = [...profiled, GLASS, "serve", "--config", join(dir, "glasskey.yaml")];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"], detached: true });
  const stop = (): Promise<void> => stopChild(child);
  try {
    const url = await whenReady(child, signal);
    const logIn = async (person: "ann" | "ida"): Promise<Login> => {
      const home = join(dir, "home", person);
      const words = [GLASS, "login", person, "--server", url, "--ca", join(dir, "data/ca.pem")];
      await execute(process.execPath, words, { env: { GLASSKEY_HOME: home }, signal, input: secrets[person] });
      return JSON.parse(await readFile(join(home, "login.json"), "utf8")) as Login;
    };
    return { pid: child.pid ?? 0, ann: await logIn("ann"), admin: await logIn("ida"), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
