import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { GlassError } from "../../core/errors.ts";
import { Secret } from "../../core/secret.ts";
import type { Gate } from "../target.ts";
import { gatePolicy, type Proof } from "./auth-server.ts";
import { checkUserCertificate, clientCertificate } from "./entry.ts";
import { startExecServer, type ExecServer } from "./fixtures/exec-server.ts";

const GRANT = "gr_7kq2m9x4tbzc";
const secret = new Secret("the-connect-secret");
/** The system's own, for which Debian packages the module. */
const PYTHON = "/usr/bin/python3";
const hasSsh = existsSync("/usr/bin/ssh") && existsSync("/usr/bin/ssh-keygen");
const hasParamiko = existsSync(PYTHON) && spawnSync(PYTHON, ["-c", "import paramiko"]).status === 0;

let dir: string;
let server: ExecServer;
let failed: string[] = [];
let admit: (proof: Proof) => Promise<void> = () => Promise.resolve();

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "glasskey-ssh-auth-"));
  const gate: Gate = {
    challenge: (user) => Promise.resolve({ connectSecret: user === GRANT ? secret : new Secret(`decoy for ${user}`) }),
    failed: (user) => void failed.push(user),
    open: () => Promise.reject(new Error("not in these tests")),
  };
  server = await startExecServer(gatePolicy(gate, "127.0.0.1", checkUserCertificate, (proof) => admit(proof)));
  await writeFile(join(dir, "known_hosts"), `[127.0.0.1]:${server.port} ${server.hostKey}\n`);
  await writeFile(join(dir, "askpass"), '#!/bin/sh\nprintf "%s\\n" "$1" >> "$ASKED"\necho "$ANSWER"\n', {
    mode: 0o700,
  });
});
afterAll(async () => {
  await server?.stop();
  await rm(dir, { recursive: true, force: true });
});

interface Said {
  readonly code: number | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}
async function program(
  argv: readonly string[],
  env: Record<string, string> = {},
  input: Buffer | string = "",
): Promise<Said> {
  const [file = "", ...args] = argv;
  const path = process.env["PATH"] ?? "";
  const child = spawn(file, args, { env: { PATH: path, HOME: dir, ASKED: join(dir, "asked"), ...env } });
  const out: Buffer[] = [];
  let stderr = "";
  child.stdout.on("data", (bytes: Buffer) => out.push(bytes));
  child.stderr.on("data", (bytes: Buffer) => (stderr += bytes.toString()));
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  const [code] = (await once(child, "close")) as [number | null];
  return { code, stdout: Buffer.concat(out), stderr };
}

/** OpenSSH with nothing of this machine's or user's configuration. */
function ssh(
  command: string,
  options: { args?: string[]; user?: string; answer?: string; input?: Buffer } = {},
): Promise<Said> {
  const { args = [], user = GRANT, answer = secret.reveal(), input } = options;
  const files = ["-o", `UserKnownHostsFile=${join(dir, "known_hosts")}`, "-o", "GlobalKnownHostsFile=none"];
  const keys = args.includes("-i") ? ["-o", "IdentitiesOnly=yes"] : ["-o", "IdentityFile=none"];
  const argv = ["ssh", "-F", "none", ...files, ...keys, "-o", "IdentityAgent=none", "-p", `${server.port}`, ...args];
  const ask = { SSH_ASKPASS: join(dir, "askpass"), SSH_ASKPASS_REQUIRE: "force", ANSWER: answer };
  return program([...argv, `${user}@127.0.0.1`, command], ask, input);
}

describe.skipIf(!hasSsh)("plain OpenSSH (skipped where it is not installed)", () => {
  test("gets in by the secret as an answer, and as a password; the prompt says whose secret is wanted", async () => {
    expect(await ssh("exit 3")).toMatchObject({ code: 3, stderr: "" });
    expect(await ssh("exit 4", { args: ["-o", "PreferredAuthentications=password"] })).toMatchObject({
      code: 4,
      stderr: "",
    });
    expect(server.proofs.slice(-2).map(({ method }) => method)).toEqual(["keyboard-interactive", "password"]);
  });

  test("gets in by a certificate for its own key, of every type that it makes", async () => {
    for (const type of ["ed25519", "ecdsa", "rsa"]) {
      const key = join(dir, `id_${type}`);
      expect((await program(["ssh-keygen", "-q", "-t", type, "-N", "", "-C", "", "-f", key])).code).toBe(0);
      const publicKey = (await program(["cat", `${key}.pub`])).stdout.toString();
      const now = new Date();
      const endsAt = new Date(now.getTime() + 600_000);
      const { certificate } = clientCertificate({ connectSecret: secret, grant: GRANT, publicKey, now, endsAt });
      await writeFile(`${key}-cert.pub`, `${certificate}\n`);
      const args = ["-i", key, "-o", `CertificateFile=${key}-cert.pub`, "-o", "BatchMode=yes"];
      expect(await ssh("exit 5", { args })).toMatchObject({ code: 5, stderr: "" });
      const shown = (await program(["ssh-keygen", "-lf", `${key}.pub`])).stdout.toString();
      expect(shown).toContain(server.proofs.at(-1)?.key?.fingerprint);
      // As another grant, the same certificate is worth nothing, and the person reads what to do.
      const other = await ssh("exit 5", { args, user: "gr_aaaaaaaaaaaa" });
      expect(other).toMatchObject({ code: 255, stderr: expect.stringContaining("glass connect GRANT") });
    }
  });

  test("with a wrong secret reads advice and is cut after six guesses, all counted", async () => {
    failed = [];
    const { code, stderr } = await ssh("exit 0", { answer: "wrong" });
    expect(code).toBe(255);
    expect(stderr).toContain("break the glass again");
    expect(stderr).toContain("too many failed attempts");
    expect(failed).toEqual(Array.from({ length: 6 }, () => GRANT));
  });

  test("reads message and next of a refusal after the proof, also where it prints errors only", async () => {
    admit = () =>
      Promise.reject(new GlassError("grant_over", "the grant ended at 12:00", { next: "Break the glass again." }));
    try {
      for (const args of [[], ["-o", "LogLevel=ERROR"]]) {
        const { code, stderr } = await ssh("exit 0", { args });
        expect([code, stderr]).toEqual([
          255,
          expect.stringContaining("the grant ended at 12:00. Break the glass again."),
        ]);
      }
    } finally {
      admit = () => Promise.resolve();
    }
  });

  test("sends and gets megabytes, hears complaints on stderr and signals' names", async () => {
    const input = Buffer.alloc(5_000_000, "0123456789abcdef");
    const { code, stdout } = await ssh("cat", { input });
    expect([code, stdout.equals(input)]).toEqual([0, true]);
    expect(await ssh("nonsense")).toMatchObject({ code: 127, stderr: "what is nonsense?\n" });
    expect(await ssh("die KILL")).toMatchObject({ code: 255 });
    expect((await ssh("say 7000000")).stdout).toHaveLength(7_000_000);
  });

  test("shares one connection among many commands, and leaves nothing open", async () => {
    const control = ["-o", `ControlPath=${join(dir, "c")}`];
    const master = ssh("cat", { args: ["-o", "ControlMaster=yes", ...control], input: Buffer.alloc(0) });
    await master;
    const holding = ["-o", "ControlMaster=auto", "-o", "ControlPersist=yes", ...control];
    const before = server.proofs.length;
    await ssh("exit 0", { args: holding });
    const all = await Promise.all(Array.from({ length: 10 }, (_, n) => ssh(`exit ${n}`, { args: control })));
    expect(all.map(({ code }) => code)).toEqual(all.map((_, n) => n));
    expect(server.proofs.length).toBe(before + 1);
    expect((await ssh("", { args: ["-O", "exit", ...control] })).code).toBe(0);
    await expect.poll(() => server.open, { timeout: 20_000 }).toEqual({ connections: 0, channels: 0 });
  });

  test("killed in the middle of a transfer leaves nothing open", async () => {
    for (const command of ["cat", "say 100000000"]) {
      const files = ["-o", `UserKnownHostsFile=${join(dir, "known_hosts")}`, "-o", "GlobalKnownHostsFile=none"];
      const env = {
        SSH_ASKPASS: join(dir, "askpass"),
        SSH_ASKPASS_REQUIRE: "force",
        ANSWER: secret.reveal(),
        ASKED: join(dir, "asked"),
      };
      const args = [
        "-F",
        "none",
        ...files,
        "-o",
        "IdentityFile=none",
        "-p",
        `${server.port}`,
        `${GRANT}@127.0.0.1`,
        command,
      ];
      const child = spawn("ssh", args, {
        env: { PATH: process.env["PATH"], HOME: dir, ...env },
        stdio: ["pipe", "pipe", "ignore"],
      });
      child.stdin.on("error", () => {});
      child.stdin.write(Buffer.alloc(10_000_000));
      await once(child.stdout, "readable"); // nobody reads on: windows and buffers fill
      expect(server.open.channels).toBe(1);
      child.kill("SIGKILL");
      await expect.poll(() => server.open, { timeout: 20_000 }).toEqual({ connections: 0, channels: 0 });
    }
  });
});

const PARAMIKO = `
import paramiko, sys, socket
port, user, secret, how = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
t = paramiko.Transport(("127.0.0.1", port))
t.start_client(timeout=30)
try:
    if how == "password": t.auth_password(user, secret, fallback=False)
    elif how == "interactive": t.auth_interactive(user, lambda title, text, prompts: [secret for _ in prompts])
    else: t.auth_none(user)
except paramiko.SSHException as error:
    print(type(error).__name__, getattr(error, "allowed_types", ""))
    sys.exit(9)
channels = [t.open_session() for _ in range(20)]
for n, channel in enumerate(channels): channel.exec_command("cat")
for n, channel in enumerate(channels):
    channel.sendall(bytes([n]) * 100000)
    channel.shutdown_write()
for n, channel in enumerate(channels):
    got = b""
    while True:
        piece = channel.recv(65536)
        if not piece: break
        got += piece
    assert got == bytes([n]) * 100000, n
    assert channel.recv_exit_status() == 0
    channel.close()
try:
    t.open_channel("direct-tcpip", ("127.0.0.1", 1), ("127.0.0.1", 2))
except paramiko.ChannelException as error:
    print(error.code, error.text)
t.close()
`;

describe.skipIf(!hasParamiko)("paramiko (skipped where python3-paramiko is not installed)", () => {
  test.each(["password", "interactive"])(
    "gets in by the secret and runs 20 commands at once on one connection: %s",
    async (how) => {
      const said = await program([PYTHON, "-c", PARAMIKO, `${server.port}`, GRANT, secret.reveal(), how]);
      expect(said).toMatchObject({ code: 0, stderr: expect.stringContaining("no direct-tcpip here") });
      expect(said.stdout.toString()).toMatch(/^3 /); // its words for our code
    },
  );

  test("is told which ways there are, and gets nowhere with `none` or a wrong secret", async () => {
    const none = await program([PYTHON, "-c", PARAMIKO, `${server.port}`, GRANT, "", "none"]);
    expect([none.code, none.stdout.toString()]).toEqual([
      9,
      "BadAuthenticationType ['publickey', 'keyboard-interactive', 'password']\n",
    ]);
    const wrong = await program([PYTHON, "-c", PARAMIKO, `${server.port}`, GRANT, "wrong", "password"]);
    expect([wrong.code, wrong.stdout.toString().trim()]).toEqual([9, "AuthenticationException"]);
  });
});
