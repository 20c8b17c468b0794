import { createHash } from "node:crypto";
import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { missingSshd, startSshd } from "../../src/targets/ssh/fixtures/sshd.ts";
import { newSshKey } from "../../../cli/src/ssh-key.ts";
import { openEstate, USER, type Estate, type Opened } from "./estate.ts";

const why = missingSshd();

describe.skipIf(why !== undefined)(
  `plain ssh through the whole system${why === undefined ? "" : `, skipped: ${why}`}`,
  () => {
    let estate: Estate;
    let echo: Server;
    let echoPort: number;
    let shell: Opened;

    beforeAll(async () => {
      echo = createServer((socket) => void socket.on("error", () => {}).pipe(socket)).listen(0, "127.0.0.1");
      await once(echo, "listening");
      const address = echo.address();
      echoPort = typeof address === "object" && address !== null ? address.port : 0;
      estate = await openEstate(inject("pg18"), {
        scopes: { forward: `{ user: ${USER}, shell: true, forward: ["127.0.0.1:${echoPort}"], env: [GIT_*] }` },
        sshd: ["AcceptEnv GIT_*"],
      });
      shell = await estate.open("shell");
    });
    afterAll(async () => {
      await estate?.[Symbol.asyncDispose]();
      echo?.close();
    });

    test("a command runs on the host, answers with its output and exit code, and is on record exactly", async () => {
      const { grant, ssh, statements, end } = await estate.open("shell");
      const done = await ssh([grant, "echo 'on the host'; echo sorry >&2; exit 3"]);
      expect(done).toMatchObject({ code: 3, text: "on the host\n", stderr: "sorry\n" });
      expect(await statements()).toMatchObject([
        { via: "exec", text: "echo 'on the host'; echo sorry >&2; exit 3", outcome: "done", tag: "exit 3" },
      ]);
      await end();
    });

    test("lesson 22: one grant opens any number of connections, also at once, and nobody is asked again", async () => {
      const { grant, ssh, sessions } = shell;
      const before = (await sessions()).length;
      const many = await Promise.all(Array.from({ length: 8 }, (_, n) => ssh([grant, `echo number ${n}`])));
      expect(many.map(({ text }) => text)).toEqual(many.map((_, n) => `number ${n}\n`));
      expect((await sessions()).length - before).toBe(8);
    });

    test("a shell on a terminal has the window's size, also after it changed, and Ctrl-C reaches the program", async () => {
      const shellRun = estate.work.terminal("ssh", ["-F", shell.config, "-tt", shell.grant]);
      await shellRun.until(/everything you send is recorded/);
      shellRun.write("stty size; echo first-$?\n");
      await shellRun.until(/24 80\r\n[^]*first-0/);
      shellRun.kill("SIGUSR1"); // the window is 132 by 40 from now on
      shellRun.write("while [ \"$(stty size)\" != '40 132' ]; do sleep 0.1; done; echo wide-$?\n");
      await shellRun.until(/wide-0/);
      shellRun.write("echo waiting-$((40 + 2)); sleep 600\n");
      await shellRun.until(/waiting-42/);
      shellRun.write("\u0003");
      shellRun.write("echo after-$?\n");
      await shellRun.until(/after-130/);
      shellRun.write("exit 5\n");
      expect((await shellRun.done).code).toBe(5);
    });

    test("the escape of ssh sends a break that harms nothing, and closes a session that hangs", async () => {
      const run = estate.work.terminal("ssh", ["-F", shell.config, "-tt", shell.grant, "echo ready; sleep 600"]);
      await run.until(/ready/);
      run.write("\r~B");
      run.write("\r~.");
      expect((await run.done).code).toBe(255);
    });

    test("a program that a signal ended is told as that, with and without a terminal", async () => {
      expect(await shell.ssh(["-v", shell.grant, "kill -TERM $$"])).toMatchObject({
        code: 255,
        stderr: expect.stringContaining("exit-signal"),
      });
      expect(await shell.ssh(["-tt", shell.grant, "exit 9"])).toMatchObject({ code: 9 });
    });

    test("what is piped in arrives to the last byte, its end with it, and 10 MB come back as they went", async () => {
      const sent = Buffer.alloc(10 << 20, "all work and no play\n");
      const echoed = await shell.ssh([shell.grant, "cat"], { input: sent });
      expect(echoed.code).toBe(0);
      expect(sha256(echoed.stdout)).toBe(sha256(sent));
      expect(await shell.ssh([shell.grant, "wc -c"], { input: sent })).toMatchObject({ text: `${sent.length}\n` });
    });

    test("only variables that the playbook names reach the host", async () => {
      const { grant, config } = await estate.open("forward");
      const env = { GIT_TRACE_ID: "seven", EDITOR: "evil", LC_ALL: "C.UTF-8", LC_GLASSKEY: "mine" };
      const send = Object.keys(env).flatMap((name) => ["-o", `SendEnv=${name}`]);
      const done = await estate.work.run("ssh", ["-F", config, ...send, grant, "env"], { env });
      expect(done.text).toMatch(/^GIT_TRACE_ID=seven$/m);
      expect(done.text).toMatch(/^LC_ALL=C.UTF-8$/m);
      expect(done.text).not.toMatch(/EDITOR=evil|LC_GLASSKEY=mine/);
      expect(done.text).toMatch(/^LC_GLASSKEY=gk_/m);
    });

    test("ControlMaster runs ten commands at once on one connection, which is one session", async () => {
      const { grant, config, ssh, sessions, statements, end } = await estate.open("shell");
      const control = ["-o", `ControlPath=${join(estate.work.folder, "master")}`];
      const master = estate.work.start("ssh", [
        "-F",
        config,
        ...control,
        "-o",
        "ControlMaster=yes",
        grant,
        "echo up; cat",
      ]);
      await master.until(/up/);
      const ten = await Promise.all(
        Array.from({ length: 10 }, (_, n) => ssh([...control, grant, `echo ${n}; exit ${n}`])),
      );
      expect(ten.map(({ code, text, stderr }) => [code, text, stderr])).toEqual(ten.map((_, n) => [n, `${n}\n`, ""]));
      master.end();
      expect((await master.done).code).toBe(0);
      expect(await sessions()).toHaveLength(1);
      expect((await statements()).filter(({ via }) => via === "exec")).toHaveLength(11);
      await end();
    });

    test("ssh -N opens nothing; -W, -L and -D reach what the playbook names, with their bytes on record, and nothing else", async () => {
      const { grant, config, ssh, statements, end } = await estate.open("forward");
      expect(await ssh(["-W", `127.0.0.1:${echoPort}`, grant], { input: "through -W" })).toMatchObject({
        text: "through -W",
      });
      const refused = await ssh(["-W", "127.0.0.1:1", grant]);
      expect(refused).toMatchObject({ code: 255, stderr: expect.stringContaining("scope.forward") });
      const sockets = [join(estate.work.folder, "forward"), join(estate.work.folder, "socks")];
      const tunnel = estate.work.start("ssh", [
        ...["-F", config, "-N", "-v", "-o", "ExitOnForwardFailure=yes", "-L", `${sockets[0]}:127.0.0.1:${echoPort}`],
        ...["-D", sockets[1] ?? "", grant],
      ]);
      await tunnel.until(
        /Local forwarding listening on path[^]*Local forwarding listening on path[^]*Entering interactive/,
      );
      expect(await viaSocket(sockets[0] ?? "", "through -L")).toBe("through -L");
      expect(await viaSocks(sockets[1] ?? "", echoPort, "through -D")).toBe("through -D");
      tunnel.kill();
      await tunnel.done;
      const forwards = (await statements()).filter(({ via }) => via === "forward");
      expect(
        forwards.map(({ text, outcome, error }) => [text.includes(String(echoPort)), error === undefined && outcome]),
      ).toEqual([
        [true, "done"],
        [false, false],
        [true, "done"],
        [true, "done"],
      ]);
      await end();
    });

    test("without the playbook's word, -L, -R, -A and -X are refused and the shell goes on", async () => {
      const run = await shell.ssh([
        "-A",
        "-X",
        "-R",
        "0:127.0.0.1:1",
        shell.grant,
        "echo ${SSH_AUTH_SOCK:-none} ${DISPLAY:-none}",
      ]);
      expect(run).toMatchObject({
        code: 0,
        text: "none none\n",
        stderr: expect.stringMatching(/remote port forwarding failed/i),
      });
    });

    test("-J through the gateway reads which line works instead", async () => {
      const run = await shell.ssh(["-J", shell.grant, `${USER}@127.0.0.1`, "-p", String(estate.host.port), "true"]);
      expect(run.code).toBe(255);
      expect(run.stderr).toContain(`ssh ${shell.grant}@`);
    });

    test("the gateway is reached through another jump host, as any host is", async () => {
      const [authority, key] = [newSshKey("authority"), newSshKey("jump")];
      const jump = await startSshd({ trustedUserCas: [authority.publicKey] });
      try {
        const dir = join(estate.work.folder, "jump");
        await mkdir(dir);
        await writeFile(join(dir, "authority"), authority.privateKey, { mode: 0o600 });
        await writeFile(join(dir, "key"), key.privateKey, { mode: 0o600 });
        await writeFile(join(dir, "key.pub"), key.publicKey);
        const sign = ["-q", "-s", join(dir, "authority"), "-I", "jump", "-n", USER, join(dir, "key.pub")];
        expect(await estate.work.run("ssh-keygen", sign)).toMatchObject({ code: 0 });
        await writeFile(join(dir, "known"), `[127.0.0.1]:${jump.port} ${jump.hostKeys.ed25519}\n`);
        const lines = [
          "Host jump",
          "HostName 127.0.0.1",
          `Port ${jump.port}`,
          `User ${USER}`,
          `IdentityFile ${dir}/key`,
        ];
        const config = [
          ...lines,
          `UserKnownHostsFile ${dir}/known`,
          "IdentityAgent none",
          `Include ${shell.config}`,
          "",
        ];
        // Include stands inside Host jump otherwise, and would be read for that alone.
        config.splice(-2, 0, "Match all");
        await writeFile(join(dir, "config"), config.join("\n"));
        const run = await estate.work.run("ssh", [
          "-F",
          join(dir, "config"),
          "-J",
          "jump",
          shell.grant,
          "echo from afar",
        ]);
        expect(run).toMatchObject({ code: 0, text: "from afar\n" });
      } finally {
        await jump.dispose();
      }
    });

    test("the one-time secret opens it without any key, as a password and as an answer to a question", async () => {
      const ask = join(estate.work.folder, "ask");
      await writeFile(ask, `#!/bin/sh\necho '${shell.answer.secret}'\n`);
      await chmod(ask, 0o700);
      await writeFile(join(estate.work.folder, "known_hosts"), `${shell.answer.trust}\n`);
      for (const method of ["password", "keyboard-interactive"]) {
        const options = [
          ...[
            "-F",
            "none",
            "-p",
            String(shell.answer.port),
            "-o",
            `UserKnownHostsFile=${estate.work.folder}/known_hosts`,
          ],
          ...["-o", "StrictHostKeyChecking=yes", "-o", `PreferredAuthentications=${method}`],
        ];
        const env = { SSH_ASKPASS: ask, SSH_ASKPASS_REQUIRE: "force" };
        const run = await estate.work.run("ssh", [...options, `${shell.grant}@127.0.0.1`, "echo in"], { env });
        expect(run, method).toMatchObject({ code: 0, text: "in\n" });
      }
    });

    test("a gateway with another authority is not believed, and is sent nothing", async () => {
      const other = newSshKey("other").publicKey;
      const known = join(estate.work.folder, "wrong_hosts");
      await writeFile(known, `@cert-authority [127.0.0.1]:${shell.answer.port} ${other}\n`);
      const run = await shell.ssh(["-v", "-o", `UserKnownHostsFile=${known}`, shell.grant, "true"]);
      expect(run).toMatchObject({ code: 255, stderr: expect.stringContaining("Host key verification failed") });
      expect(run.stderr).not.toContain("Offering public key");
    });

    test("after all of that the person's own ~/.ssh is as it was", async () => {
      expect(await readdir(join(estate.work.home, ".ssh"))).toEqual(["config"]);
      expect(await readFile(join(estate.work.home, ".ssh/config"), "utf8")).toBe("ThisIsNoOption yes\n");
    });
  },
);

const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

async function viaSocket(path: string, text: string, before?: (socket: Socket) => Promise<void>): Promise<string> {
  const socket = connect(path);
  await once(socket, "connect");
  await before?.(socket);
  socket.end(text);
  let said = "";
  for await (const piece of socket) said += String(piece);
  return said;
}

/** SOCKS 5 without authentication (RFC 1928), to a port of 127.0.0.1. */
function viaSocks(path: string, port: number, text: string): Promise<string> {
  return viaSocket(path, text, async (socket) => {
    socket.write(Buffer.from([5, 1, 0]));
    await once(socket, "data");
    socket.write(Buffer.from([5, 1, 0, 1, 127, 0, 0, 1, port >> 8, port & 255]));
    await once(socket, "data");
  });
}
