import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import { RECORD } from "../target.ts";
import { connectClient, eventually, openChannel, run, secretArgs, ssh, statusOf } from "./fixtures/client.ts";
import {
  startTestGateway,
  statements,
  testAuthority,
  type TestGateway,
  type TestGatewayOptions,
} from "./fixtures/gateway.ts";
import { missingSshd, startSshd, type TestSshd } from "./fixtures/sshd.ts";
import { encodeNumber, encodePty, encodeString, encodeWindowChange } from "./requests.ts";
import { parseScope } from "./scope.ts";

const NONE = Buffer.alloc(0);
const why = missingSshd();
const authority = testAuthority();
let sshd: TestSshd;
const gateways: TestGateway[] = [];

function scope(input: JsonObject): JsonObject {
  const parsed = parseScope({ user: "root", ...input });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return parsed.value;
}

async function start(
  input: JsonObject = { shell: true },
  options: Partial<TestGatewayOptions> = {},
): Promise<TestGateway> {
  const target = { port: sshd.port, hostKeys: Object.values(sshd.hostKeys) };
  const gateway = await startTestGateway({ target, authority: authority.signer, scope: scope(input), ...options });
  gateways.push(gateway);
  return gateway;
}

function completed(gateway: TestGateway): JsonObject[] {
  return gateway.json(RECORD.statementCompleted);
}

/** Bytes of the raw records of a kind, without their heads. */
function bytesOf(gateway: TestGateway, kind: number, head = 4): string {
  const records = gateway.sessions.flatMap((session) => session.records.filter((record) => record.kind === kind));
  return Buffer.concat(records.map(({ payload }) => payload.subarray(head))).toString();
}

const PTY = encodePty({ term: "xterm", columns: 80, rows: 24, width: 0, height: 0, modes: [] });

describe.skipIf(why !== undefined)(`a session through the gateway${why === undefined ? "" : ` (${why})`}`, () => {
  beforeAll(async () => {
    sshd = await startSshd({ trustedUserCas: [authority.line] });
  }, 30_000);
  afterEach(async () => {
    await Promise.all(gateways.splice(0).map((gateway) => gateway.close()));
  });
  afterAll(async () => {
    await sshd?.dispose();
  });

  describe("a command", () => {
    test("has its output, its errors and its exit status, and is recorded as it was typed", async () => {
      const gateway = await start();
      const done = await ssh(gateway, ["gw", `echo "to $USER" 'out'; echo err >&2; exit 7`]);
      expect(done).toMatchObject({ code: 7, stdout: expect.stringContaining("out\n"), stderr: "err\n" });
      await gateway.sessions[0]?.ended;
      expect(statements(gateway)).toEqual([`exec echo "to $USER" 'out'; echo err >&2; exit 7`]);
      expect(completed(gateway)).toMatchObject([{ n: 1, tag: "exit 7" }]);
      expect(bytesOf(gateway, RECORD.output, 5)).toContain("err\n");
      expect(gateway.sessions[0]?.end).toMatchObject({ cause: "client", statements: 1, refused: 0 });
    });

    test("has its stdin to the last byte, and in the recording too", async () => {
      const gateway = await start();
      const input = Buffer.alloc(300_000, "0123456789abcdef\n");
      const done = await ssh(gateway, ["gw", "sha256sum; echo done"], { input });
      const sum = createHash("sha256").update(input).digest("hex");
      expect(done).toMatchObject({ code: 0, stdout: `${sum}  -\ndone\n` });
      await gateway.sessions[0]?.ended;
      expect(bytesOf(gateway, RECORD.data)).toBe(input.toString());
      expect(completed(gateway)).toMatchObject([{ detail: { stdin: { bytes: 300_000, sha256: sum } } }]);
    });

    test("that a signal ended says which", async () => {
      const gateway = await start();
      const done = await ssh(gateway, ["gw", "kill -TERM $$"]);
      expect(done.code).not.toBe(0);
      await gateway.sessions[0]?.ended;
      expect(completed(gateway)).toMatchObject([{ tag: "signal TERM" }]);
    });

    test("is not sent before the recording has it", async () => {
      const gateway = await start();
      const mark = join(sshd.dir, `held-${gateway.port}`);
      const { connection } = await connectClient(gateway);
      gateway.sessions[0]?.holdCommits(true);
      const seen = await openChannel(connection);
      const answer = seen.channel.request("exec", true, encodeString(`touch ${mark}; cat`));
      seen.channel.write(Buffer.from("early"));
      const held = await Promise.race([
        answer.then(() => "answered"),
        new Promise((done) => setTimeout(() => done("held"), 300)),
      ]);
      expect(held).toBe("held");
      expect(existsSync(mark)).toBe(false);
      gateway.sessions[0]?.holdCommits(false);
      expect(await answer).toBe(true);
      await seen.until(({ stdout }) => stdout === "early");
      expect(existsSync(mark)).toBe(true);
      connection.destroy();
    });

    test("gets a signal and a break, both on record", async () => {
      const gateway = await start();
      const { connection } = await connectClient(gateway);
      const seen = await openChannel(connection);
      await seen.channel.request("exec", true, encodeString("echo ready; cat"));
      await seen.until(({ stdout }) => stdout.includes("ready"));
      expect(await seen.channel.request("break", true, encodeNumber(100))).toBe(true);
      void seen.channel.request("signal", false, encodeString("USR1"));
      // sshd delivers signals to no process of root's; that it was asked to is in its log.
      await eventually(() => sshd.log().includes("session_signal_req"));
      seen.channel.eof();
      await seen.closed;
      expect(statusOf(seen)).toBe(0);
      expect(gateway.json(RECORD.action)).toMatchObject([
        { what: "break", n: 1 },
        { what: "signal", n: 1, name: "USR1" },
      ]);
      connection.destroy();
    });

    test("carries Glasskey's mark on the host, and the client cannot set it", async () => {
      const gateway = await start({ shell: true, env: ["LC_*"] });
      const done = await ssh(gateway, ["-o", "SetEnv=LC_GLASSKEY=mine", "gw", "echo $LC_GLASSKEY"]);
      expect(done.stdout).toBe(`${gateway.lease}\n`);
      expect(statements(gateway, RECORD.statementRefused)).toEqual(["env LC_GLASSKEY"]);
    });

    test("lesson 6: a silent command is busy for as long as it runs, and an idle shell is not", async () => {
      const gateway = await start();
      const { connection } = await connectClient(gateway);
      const [session] = gateway.sessions;
      expect(session?.busy).toBe(false);
      const command = await openChannel(connection);
      await command.channel.request("exec", true, encodeString("read line"));
      expect(session?.busy).toBe(true);
      const shell = await openChannel(connection);
      await shell.channel.request("shell", true, NONE);
      shell.channel.write(Buffer.from("echo up\n"));
      await shell.until(({ stdout }) => stdout.includes("up"));
      // Longer than a shell counts as busy after its last byte: the command alone holds it.
      await new Promise((done) => setTimeout(done, 11_000));
      expect(session?.busy).toBe(true);
      command.channel.eof();
      await command.closed;
      await eventually(() => session?.busy === false);
      expect(shell.eof).toBe(false);
      connection.destroy();
    }, 60_000);
  });

  describe("a terminal", () => {
    test("says who is where until when, and everything is on record both ways", async () => {
      const gateway = await start();
      const done = await ssh(gateway, ["-tt", "gw"], { input: "stty -echo; tty; exit 4\n" });
      expect(done.stdout).toMatch(/pe_000000000000 is on web-1 until .*recorded/);
      expect(done.stdout).toContain("/dev/pts/");
      expect(done.code).toBe(4);
      await gateway.sessions[0]?.ended;
      expect(statements(gateway)).toEqual(["shell shell"]);
      expect(bytesOf(gateway, RECORD.terminalOutput)).toContain("/dev/pts/");
    });

    test("has the size that the client says, also later", async () => {
      const gateway = await start();
      const { connection } = await connectClient(gateway);
      const seen = await openChannel(connection);
      expect(await seen.channel.request("pty-req", true, PTY)).toBe(true);
      expect(await seen.channel.request("shell", true, NONE)).toBe(true);
      seen.channel.write(Buffer.from("stty size\n"));
      await seen.until(({ stdout }) => stdout.includes("24 80"));
      const size = encodeWindowChange({ columns: 132, rows: 43, width: 0, height: 0 });
      void seen.channel.request("window-change", false, size);
      seen.channel.write(Buffer.from("stty size\n"));
      await seen.until(({ stdout }) => stdout.includes("43 132"));
      expect(gateway.json(RECORD.terminalResize)).toMatchObject([
        { cols: 80, rows: 24 },
        { cols: 132, rows: 43 },
      ]);
      connection.destroy();
    });
  });

  describe("the end", () => {
    test("is told on every terminal and on a command's stderr, and nothing is left on the host", async () => {
      const gateway = await start();
      const { connection, closed } = await connectClient(gateway);
      const terminal = await openChannel(connection);
      await terminal.channel.request("pty-req", true, PTY);
      await terminal.channel.request("shell", true, NONE);
      terminal.channel.write(Buffer.from("echo $((40+2))\n"));
      await terminal.until(({ stdout }) => stdout.includes("42"));
      const command = await openChannel(connection);
      await command.channel.request("exec", true, encodeString("echo pid $$; exec cat"));
      await command.until(({ stdout }) => /pid \d+\n/.test(stdout));
      const pid = /pid (\d+)/.exec(command.stdout)?.[1] ?? "";
      gateway.sessions[0]?.handle?.cut("the grant has ended; break the glass again");
      const error = await closed;
      expect(terminal.stdout).toContain("the grant has ended");
      expect(command.stderr).toContain("the grant has ended");
      expect(error?.message ?? "").toMatch(/the grant has ended|^$/);
      expect((await gateway.sessions[0]?.ended)?.cause).toBe("cut");
      expect(completed(gateway)).toMatchObject([{ error: { code: "cut" } }, { error: { code: "cut" } }]);
      await eventually(() => !existsSync(`/proc/${pid}`));
    });

    test("is read by a person with plain ssh, as the reason and not as a broken pipe", async () => {
      const gateway = await start();
      let cut = false;
      const done = await ssh(gateway, ["gw", "echo up; exec cat"], {
        holdInput: true,
        seen({ stdout }) {
          if (cut || !stdout.includes("up")) return;
          cut = true;
          gateway.sessions[0]?.handle?.cut("bob ended this grant: wrong host");
          setTimeout(() => gateway.sessions[0]?.handle?.destroy(), 50); // as the gateway does, whatever the protocol did
        },
      });
      expect(done.stderr).toContain("bob ended this grant: wrong host");
      expect(done.code).toBe(255);
    });

    test("is announced on a terminal, and not to a command", async () => {
      const gateway = await start();
      const { connection } = await connectClient(gateway);
      const terminal = await openChannel(connection);
      await terminal.channel.request("pty-req", true, PTY);
      await terminal.channel.request("shell", true, NONE);
      const command = await openChannel(connection);
      await command.channel.request("exec", true, encodeString("echo up; exec cat"));
      await command.until(({ stdout }) => stdout === "up\n");
      gateway.sessions[0]?.handle?.warn("this session ends at 14:32:00 UTC");
      await terminal.until(({ stdout }) => stdout.includes("this session ends at 14:32:00 UTC"));
      command.channel.eof();
      await command.closed;
      expect([command.stdout, command.stderr]).toEqual(["up\n", ""]);
      connection.destroy();
    });

    test("by a target whose sshd was killed is told, and the session ends as the target's", async () => {
      const own = await startSshd({ trustedUserCas: [authority.line] });
      try {
        const target = { port: own.port, hostKeys: Object.values(own.hostKeys) };
        const gateway = await start({ shell: true }, { target });
        let stopped: Promise<void> | undefined;
        const done = await ssh(gateway, ["gw", "echo up; exec cat"], {
          holdInput: true,
          seen({ stdout }) {
            if (stdout.includes("up")) stopped ??= own.stop();
          },
        });
        await stopped;
        expect(done.stderr).toContain("web-1 closed the connection");
        expect((await gateway.sessions[0]?.ended)?.cause).toBe("target");
        expect(completed(gateway)).toMatchObject([{ error: { code: "target_gone" } }]);
      } finally {
        await own.dispose();
      }
    });

    test("by a client that vanishes in the middle leaves no program and no half-told record", async () => {
      const gateway = await start();
      const { connection } = await connectClient(gateway);
      const seen = await openChannel(connection, { reading: false });
      await seen.channel.request("exec", true, encodeString("echo pid $$; exec cat /dev/zero"));
      await seen.until(({ bytes }) => bytes > 100_000);
      const pid = /pid (\d+)/.exec(seen.stdout)?.[1] ?? "";
      connection.destroy();
      expect((await gateway.sessions[0]?.ended)?.cause).toBe("client");
      expect(completed(gateway)).toMatchObject([{ n: 1, error: { code: "client_gone" } }]);
      await eventually(() => !existsSync(`/proc/${pid}`) && gateway.open.size === 0);
    });
  });

  describe("lesson 18: who does not get in reads why", () => {
    test("a grant that is over", async () => {
      const refuseOpen = new GlassError("grant_over", "this grant ended at 14:32 UTC", {
        next: "Break the glass again.",
      });
      const gateway = await start({ shell: true }, { refuseOpen });
      const done = await ssh(gateway, ["gw", "true"]);
      expect(done.code).toBe(255);
      expect(done.stderr).toContain("this grant ended at 14:32 UTC");
      expect(done.stderr).toContain("Break the glass again.");
    });

    test("a target that is down", async () => {
      const gateway = await start({ shell: true }, { target: { port: 1, hostKeys: Object.values(sshd.hostKeys) } });
      const done = await ssh(gateway, ["gw", "true"]);
      expect(done.stderr).toMatch(/127\.0\.0\.1:1|web-1/);
      expect((await gateway.sessions[0]?.ended)?.cause).toBe("error");
    });

    test("a host whose key is another than the one that is known", async () => {
      const other = testAuthority().line.split(" ").slice(0, 2).join(" ");
      const gateway = await start({ shell: true }, { target: { port: sshd.port, hostKeys: [other] } });
      const done = await ssh(gateway, ["gw", "true"]);
      expect(done.stderr).toMatch(/host key/i);
      expect(done.stderr).toContain("SHA256:");
      expect((await gateway.sessions[0]?.ended)?.detail).toMatch(/host key/i);
    });

    test("a wrong secret, which is counted, and an unknown grant, which reads the same", async () => {
      const gateway = await start();
      const askpass = join(gateway.dir, "askpass");
      await writeFile(askpass, "#!/bin/sh\necho wrong\n", { mode: 0o700 });
      const env = { SSH_ASKPASS: askpass, SSH_ASKPASS_REQUIRE: "force" };
      const wrong = await run("ssh", [...secretArgs(gateway), `${gateway.grant}@127.0.0.1`, "true"], { env });
      const unknown = await run("ssh", [...secretArgs(gateway), `gr_000000000000@127.0.0.1`, "true"], { env });
      expect(wrong.code).toBe(255);
      expect(unknown.stderr.replaceAll("gr_000000000000", gateway.grant)).toBe(wrong.stderr);
      expect(gateway.failures).toContain(gateway.grant);
      expect(gateway.failures).toContain("gr_000000000000");
      expect(gateway.sessions).toEqual([]);
    });
  });

  test("the connect secret as a password opens the same session", async () => {
    const gateway = await start();
    const askpass = join(gateway.dir, "askpass");
    await writeFile(askpass, `#!/bin/sh\necho ${gateway.secret}\n`, { mode: 0o700 });
    const env = { SSH_ASKPASS: askpass, SSH_ASKPASS_REQUIRE: "force" };
    const done = await run("ssh", [...secretArgs(gateway), `${gateway.grant}@127.0.0.1`, "echo in"], { env });
    expect(done).toMatchObject({ code: 0, stdout: "in\n" });
    expect(gateway.sessions[0]?.request.client).toMatchObject({ version: expect.stringContaining("OpenSSH") });
    expect(JSON.stringify(gateway.sessions[0]?.records)).not.toContain(gateway.secret);
  });

  test("a cut while the target is still being reached is read too, and opens nothing", async () => {
    const silent = createServer(() => {}).listen(0, "127.0.0.1");
    await once(silent, "listening");
    const { port } = silent.address() as AddressInfo;
    const gateway = await start({ shell: true }, { target: { port, hostKeys: Object.values(sshd.hostKeys) } });
    const running = ssh(gateway, ["gw", "true"]);
    await eventually(() => gateway.sessions[0]?.handle !== undefined);
    gateway.sessions[0]?.handle?.cut("the grant has ended");
    expect((await running).stderr).toContain("the grant has ended");
    expect((await gateway.sessions[0]?.ended)?.cause).toBe("cut");
    silent.close();
  });

  test("the key for the target is forgotten once it was used", async () => {
    const gateway = await start();
    await ssh(gateway, ["gw", "true"]);
    expect(gateway.sessions[0]?.credential).toEqual({});
  });

  test("keys are negotiated anew in the middle of a transfer both ways, and no byte is lost", async () => {
    const gateway = await start();
    const input = Buffer.alloc(6_000_000, "abcdefghijklmnopqrstuvwxyz\n");
    const done = await ssh(gateway, ["-o", "RekeyLimit=256K", "gw", "cat"], { input });
    expect(done.code).toBe(0);
    expect(done.stdout === input.toString()).toBe(true);
  });

  test("ssh -N opens a session that runs nothing, and counts as idle", async () => {
    const gateway = await start();
    const running = ssh(gateway, ["-N", "gw"]);
    await eventually(() => gateway.sessions[0]?.handle !== undefined);
    await eventually(() => gateway.open.size === 1);
    expect(gateway.sessions[0]?.busy).toBe(false);
    await new Promise((done) => setTimeout(done, 200));
    gateway.sessions[0]?.handle?.cut("idle for 15 minutes");
    expect((await running).stderr).toContain("idle for 15 minutes");
  });

  test("mosh reads that it does not pass, and nothing of it runs", async () => {
    const gateway = await start();
    const done = await ssh(gateway, ["-tt", "gw", "--", "mosh-server", "new", "-c", "256", "-s", "-l", "LANG=C.UTF-8"]);
    expect(done.stdout).toMatch(/mosh does not pass.*UDP/);
    expect(done.code).toBe(254);
    expect(statements(gateway)).toEqual([]);
  });

  describe("many channels", () => {
    test("a slow reader on one does not hold up the others", async () => {
      const gateway = await start();
      const { connection } = await connectClient(gateway);
      const slow = await openChannel(connection, { reading: false });
      await slow.channel.request("exec", true, encodeString("cat /dev/zero"));
      await slow.until(({ bytes }) => bytes > 1_000_000);
      const quick = await openChannel(connection);
      await quick.channel.request("exec", true, encodeString("head -c 20000000 /dev/zero; echo over >&2"));
      await quick.closed;
      expect(quick.bytes).toBe(20_000_000 + 5);
      const before = slow.bytes;
      expect(before).toBeLessThan(8_000_000); // a window and what is on its way
      connection.destroy();
    }, 60_000);

    test("a hundred commands run on one connection", async () => {
      const gateway = await start();
      const { connection } = await connectClient(gateway);
      const all = await Promise.all(
        Array.from({ length: 100 }, async (_, index) => {
          const seen = await openChannel(connection);
          await seen.channel.request("exec", true, encodeString(`cat; echo ${index}`));
          return seen;
        }),
      );
      for (const seen of all) seen.channel.eof();
      await Promise.all(all.map((seen) => seen.closed));
      expect(all.map(({ stdout }) => stdout)).toEqual(all.map((_, index) => `${index}\n`));
      expect(statements(gateway)).toHaveLength(100);
      connection.destroy();
    }, 60_000);

    test("OpenSSH's ControlMaster runs several sessions on one connection, which is one session on record", async () => {
      const gateway = await start();
      const control = ["-o", `ControlPath=${join(gateway.dir, "mux")}`];
      expect((await ssh(gateway, [...control, "-o", "ControlMaster=yes", "-N", "-f", "gw"])).code).toBe(0);
      const [one, two] = await Promise.all([
        ssh(gateway, [...control, "gw", "echo 1"]),
        ssh(gateway, [...control, "gw", "echo 2"]),
      ]);
      expect([one.stdout, two.stdout]).toEqual(["1\n", "2\n"]);
      await ssh(gateway, [...control, "-O", "exit", "gw"]);
      expect(gateway.sessions).toHaveLength(1);
    });
  });

  test("what a client sets up is sent to the host only as far as the scope says", async () => {
    const gateway = await start({ shell: true, env: ["APP_*"] });
    const env = ["-o", "SetEnv=LC_ALL=C", "-o", "SetEnv=LD_PRELOAD=/tmp/x"];
    const done = await ssh(gateway, [...env, "gw", "echo $LC_ALL$LD_PRELOAD"]);
    expect(done.stdout).toMatch(/^(C)?\n$/);
    expect(await readFile(join(gateway.dir, "known_hosts"), "utf8")).toMatch(/^@cert-authority /);
  });
});
