import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import type { ConnectAnswer, GrantView, TargetSetup } from "@glasskey/contract";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { missingSshd, startSshd, type TestSshd } from "../../server/src/targets/ssh/fixtures/sshd.ts";
import { startTestSystem, type Client, type TestSystem } from "../../server/testing/system.ts";

const glass = join(import.meta.dirname, "../bin/glass.mjs");
const SECRET = "a-secret-of-the-tests";
const BREAK = ["--reason", "outage", "--why", "checkout is down"];
const why = missingSshd();

interface Run {
  code: number | null;
  stdout: string;
  stderr: string;
}

describe.skipIf(why !== undefined)(`glass on hosts${why === undefined ? "" : `, skipped: ${why}`}`, () => {
  let system: TestSystem;
  let host: TestSshd;
  let homes: string;
  let ann: Client;

  /** Any program, in a home of its own whose `~/.ssh` breaks whoever reads it. */
  function program(name: string, args: readonly string[], env: Record<string, string> = {}, input = ""): Promise<Run> {
    return new Promise((resolve, reject) => {
      const child = spawn(name, args, { env: { ...process.env, HOME: join(homes, "person"), ...env } });
      let [stdout, stderr] = ["", ""];
      child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
      child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
      child.once("error", reject);
      child.once("close", (code) => resolve({ code, stdout, stderr }));
      child.stdin.on("error", () => {});
      child.stdin.end(input);
    });
  }
  const run = (person: string, args: readonly string[], input = ""): Promise<Run> =>
    program(process.execPath, [glass, ...args], { GLASSKEY_HOME: join(homes, person) }, input);
  const grants = (): string => join(homes, "ann", "grants");

  beforeAll(async () => {
    homes = await mkdtemp(join(tmpdir(), "glasskey-cli-ssh-"));
    host = await startSshd({ trustedUserCas: [], config: ["RevokedKeys {dir}/revoked"] });
    await writeFile(join(host.dir, "revoked"), "");
    await mkdir(join(homes, "person/.ssh"), { recursive: true });
    await writeFile(join(homes, "person/.ssh/config"), "ThisIsNoOption yes\n");
    system = await startTestSystem(inject("pg18"), {
      "targets/web.yaml": `target: web
kind: ssh
config:
  host: 127.0.0.1
  port: ${host.port}
  hostKeys: { pin: [${JSON.stringify(host.hostKeys.ed25519)}] }
  control: { user: root, revokedKeys: ${host.dir}/revoked }
`,
      "playbooks/host.yaml": `playbook: host
summary: Repair the host
target: web
scope: { user: ${userInfo().username}, shell: true, sftp: { read: ["/**"], write: ["${homes}/**"] } }
who: { group: payments }
when: { reason: [outage] }
approve: { need: 0 }
time: { max: 30m }
`,
    });
    for (const person of ["ann", "ida"])
      await run(person, ["login", person, "--server", system.server().url, "--ca", system.server().caFile], SECRET);
    ann = await system.as("ann");
    const setup = JSON.parse((await run("ida", ["target", "setup", "--kind", "ssh", "--json"])).stdout) as TargetSetup;
    const authority = setup.steps.map(({ text }) => text.trim()).find((text) => /^ssh-ed25519 /.test(text));
    await writeFile(join(host.dir, "user_ca.pub"), `${authority ?? ""}\n`);
  });
  afterAll(async () => {
    await system?.dispose();
    await host?.dispose();
    await rm(homes, { recursive: true, force: true });
  });

  test("target setup says what to put on a host, whole for a tool or step by step, also before any target file is there", async () => {
    const shell = await run("ida", ["target", "setup", "web", "--format", "shell"]);
    expect(shell).toMatchObject({ code: 0, stdout: expect.stringContaining("TrustedUserCAKeys") });
    const steps = await run("ida", ["target", "setup", "--kind", "ssh"]);
    expect(steps.stdout).toMatch(/1\. [^]*ssh-ed25519 [^]*TrustedUserCAKeys/);
    expect(await run("ida", ["target", "setup", "web", "--format", "puppet"])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("cloud-init"),
    });
    expect(await run("ida", ["target", "setup"])).toMatchObject({ code: 2 });
    expect(await run("ida", ["target", "setup", "nowhere"])).toMatchObject({ code: 1 });
    expect(await run("ida", ["target", "setup", "prod"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("docs/postgres-target.md"),
    });
    expect(await run("ann", ["target", "setup", "web"])).toMatchObject({ code: 3 });
    expect((await run("ida", ["target", "check", "web"])).stdout).not.toContain("✗");
  });

  test("break -- CMD runs on the host, passes its exit code on, and leaves no key behind", async () => {
    const done = await run("ann", ["break", "host", ...BREAK, "--", "printf", "%s\n", "two  words", "$HOME"]);
    expect(done).toMatchObject({ code: 0, stdout: "two  words\n$HOME\n" });
    const grant = /gr_\w+/.exec(done.stderr)?.[0] ?? "";
    expect(await run("ann", ["connect", grant, "--", "exit 7"])).toMatchObject({ code: 7 });
    expect(await run("ann", ["connect", grant, "--", "cat"], "from the pipe")).toMatchObject({
      stdout: "from the pipe",
    });
    expect(await run("ann", ["connect", grant], "echo from a shell\n")).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("from a shell"),
    });
    expect(await run("ann", ["connect", grant, "--", "-T", "echo", "with options"])).toMatchObject({
      stdout: "with options\n",
    });
    expect(await readdir(join(grants(), grant))).toEqual([]);
    await run("ann", ["end", grant]);
    const over = await run("ann", ["connect", grant, "--", "true"]);
    expect(over).toMatchObject({ code: 1, stderr: expect.stringContaining("is over") });
  });

  test("status shows the plain ssh line; with it, the secret and the line of known_hosts, ssh alone gets in", async () => {
    const { grant } = await ann.break("host");
    const { gateway } = await ann.call<GrantView>("GET", `/v1/grants/${grant}`);
    const line = `ssh -p ${gateway?.port} ${grant}@${gateway?.host}`;
    const status = (await run("ann", ["status", grant])).stdout;
    expect(status).toContain(line);
    expect(status).toMatch(
      /may do +user: .*\n +files: digest\n +sftp: read \/\*\*, write \S+\n +shell: yes\n +not: agent, x11\n/,
    );
    expect((await run("ann", ["status"])).stdout).toContain(line);
    const printed = (await run("ann", ["connect", grant, "--print"])).stdout;
    expect(printed).toContain(line);
    const secret = /password: +(\S+)/.exec(printed)?.[1] ?? "";
    await writeFile(join(homes, "known_hosts"), /@cert-authority .*/.exec(printed)?.[0] ?? "");
    await writeFile(join(homes, "askpass"), `#!/bin/sh\necho ${secret}\n`);
    await chmod(join(homes, "askpass"), 0o700);
    const options = ["-F", "none", "-o", `UserKnownHostsFile=${join(homes, "known_hosts")}`];
    const ask = { SSH_ASKPASS: join(homes, "askpass"), SSH_ASKPASS_REQUIRE: "force" };
    const [, ...words] = line.split(" ");
    const strict = [...options, "-o", "StrictHostKeyChecking=yes", "-o", "PubkeyAuthentication=no", ...words];
    expect(await program("ssh", [...strict, "echo in"], ask)).toMatchObject({ code: 0, stdout: "in\n" });
    await ann.end(grant);
    expect((await run("ann", ["status"])).stdout).not.toContain(line);
  });

  test("--config leaves an ssh_config for scp, rsync and their like until the grant's end", async () => {
    const { grant } = await ann.break("host");
    const kept = await run("ann", ["connect", grant, "--config"]);
    const config = kept.stdout.trim();
    expect(kept).toMatchObject({ code: 0, stdout: `${config}\n` });
    expect((await stat(config)).mode & 0o777).toBe(0o600);
    expect(await program("ssh", ["-F", config, grant, "echo through it"])).toMatchObject({ stdout: "through it\n" });
    const again = JSON.parse((await run("ann", ["connect", grant, "--config", "--json"])).stdout) as object;
    expect(again).toMatchObject({ grant, host: grant, config });
    await run("ann", ["end", grant]);
    await expect(stat(config)).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("a certificate opens its own grant alone, nothing once that is over, and is no key to be certified again", async () => {
    const [mine, other] = [await ann.break("host"), await ann.break("host")];
    const config = (await run("ann", ["connect", mine.grant, "--config"])).stdout.trim();
    const copy = join(homes, "copied");
    await cp(join(config, ".."), copy, { recursive: true });
    const files = ["IdentityFile=key", "CertificateFile=key-cert.pub"].map((one) => one.replace("=", `=${copy}/`));
    const as = (user: string) =>
      program("ssh", [
        "-F",
        config,
        ...[...files, `User=${user}`].flatMap((one) => ["-o", one]),
        mine.grant,
        "echo in",
      ]);
    expect(await as(mine.grant)).toMatchObject({ code: 0, stdout: "in\n" });
    for (const user of [other.grant, "gr_000000000000", "root"])
      expect(await as(user), user).toMatchObject({ code: 255, stdout: "", stderr: expect.stringContaining("denied") });
    const publicKey = await readFile(join(copy, "key-cert.pub"), "utf8");
    const path = `/v1/grants/${other.grant}/connect`;
    expect(await ann.refused("POST", path, { publicKey })).toMatchObject({ status: 400, code: "usage" });

    await ann.end(mine.grant);
    const words = ["-F", "none", "-p", String(mine.gateway?.port), "-o", "StrictHostKeyChecking=no"];
    const alone = ["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"];
    const gone = `${mine.grant}@${mine.gateway?.host ?? ""}`;
    const over = await program("ssh", [...words, ...alone, ...files.flatMap((one) => ["-o", one]), gone, "echo in"]);
    expect(over).toMatchObject({ code: 255, stdout: "" });
    await ann.end(other.grant);
  });

  test("--key certifies a person's own key, in a file or in an agent as a hardware key is; a private key is never sent", async () => {
    const key = join(homes, "own key");
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key]);
    const { grant } = await ann.break("host");
    expect(await run("ann", ["connect", grant, "--key", `${key}.pub`, "--", "echo mine"])).toMatchObject({
      stdout: "mine\n",
    });
    expect(await run("ann", ["connect", grant, "--key", key, "--", "true"])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining(".pub"),
    });
    const publicKey = await readFile(`${key}.pub`, "utf8");
    const answer = await ann.call<ConnectAnswer>("POST", `/v1/grants/${grant}/connect`, { publicKey });
    await writeFile(`${key}-cert.pub`, `${answer.certificate ?? ""}\n`);
    const shown = execFileSync("ssh-keygen", ["-L", "-f", `${key}-cert.pub`], { encoding: "utf8" });
    expect(shown).toMatch(new RegExp(`Key ID: "${grant}"[^]*Principals:\\s+${grant}\\s+Critical`));
    expect(Math.abs(Date.parse(answer.certificateUntil ?? "") - Date.parse(answer.endsAt))).toBeLessThan(1_000);

    const socket = join(homes, "agent");
    const agent = spawn("ssh-agent", ["-D", "-a", socket], { stdio: ["ignore", "pipe", "inherit"] });
    try {
      await once(agent.stdout, "data"); // it listens
      const env = { SSH_AUTH_SOCK: socket, GLASSKEY_HOME: join(homes, "ann") };
      expect(await program("ssh-add", ["-q", key], env)).toMatchObject({ code: 0 });
      await rm(key);
      const words = [glass, "connect", grant, "--key", `${key}.pub`, "--", "echo from the agent"];
      expect(await program(process.execPath, words, env)).toMatchObject({ stdout: "from the agent\n" });
    } finally {
      agent.kill();
    }
    await ann.end(grant);
  });

  test("keys that are none or too weak are refused in words, and a database knows no such thing", async () => {
    const { grant } = await ann.break("host");
    const path = `/v1/grants/${grant}/connect`;
    for (const publicKey of ["", "ssh-rsa AAAA", "hunter2", "ssh-ed25519 !!!!", "-----BEGIN OPENSSH PRIVATE KEY-----"])
      expect(await ann.refused("POST", path, { publicKey }), publicKey).toMatchObject({ status: 400, code: "usage" });
    expect(await ann.refused("POST", path, { publicKey: "x".repeat(10_000) })).toMatchObject({ status: 400 });
    expect(await ann.refused("POST", path, { publickey: "x" })).toMatchObject({ status: 400 });
    await ann.end(grant);
    const database = await ann.break("repair");
    const key = `ssh-ed25519 ${Buffer.from("x").toString("base64")}`;
    const answer = await ann.call<ConnectAnswer>("POST", `/v1/grants/${database.grant}/connect`, { publicKey: key });
    expect(answer).toMatchObject({ kind: "postgres", certificate: null, certificateUntil: null, trust: "" });
    for (const option of ["--config", "--key"]) {
      await writeFile(join(homes, "some.pub"), `${key}\n`);
      const words = option === "--key" ? [option, join(homes, "some.pub")] : [option];
      const { code, stderr } = await run("ann", ["connect", database.grant, ...words]);
      expect([code, stderr]).toEqual([2, expect.stringContaining("kind ssh")]);
    }
    await ann.end(database.grant);
  });

  test("a client that is told to stop takes its key with it", async () => {
    const { grant } = await ann.break("host");
    const child = spawn(process.execPath, [glass, "connect", grant, "--", "echo there; sleep 600"], {
      env: { ...process.env, GLASSKEY_HOME: join(homes, "ann") },
      stdio: ["ignore", "pipe", "ignore"],
    });
    const gone = new Promise((resolve) => child.once("exit", resolve));
    await new Promise((resolve) => child.stdout.once("data", resolve));
    expect(await readdir(join(grants(), grant))).toEqual([`ssh-${child.pid}`]);
    child.kill("SIGTERM");
    await gone;
    expect(await readdir(join(grants(), grant))).toEqual([]);
    await ann.end(grant);
  });
});
