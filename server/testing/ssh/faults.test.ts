import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { readFile, stat, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { missingSshd } from "../../src/targets/ssh/fixtures/sshd.ts";
import { eventually, openEstate, type Estate } from "./estate.ts";

const why = missingSshd();

describe.skipIf(why !== undefined)(`faults around a host${why === undefined ? "" : `, skipped: ${why}`}`, () => {
  let estate: Estate;
  beforeAll(async () => {
    estate = await openEstate(inject("pg18"));
  });
  afterAll(() => estate?.[Symbol.asyncDispose]());

  test("sshd killed in the middle of a command and of a copy: both clients are told, and both sessions are closed on record", async () => {
    const { grant, config, sessions, statements, end } = await estate.open("shell");
    const command = estate.work.start("ssh", ["-F", config, grant, "echo up; sleep 600"]);
    await command.until(/up/);
    const big = join(estate.work.folder, "big");
    await writeFile(big, Buffer.alloc(64 << 20, 7));
    const copy = estate.work.start("scp", ["-F", config, "-l", "20000", big, `${grant}:${estate.work.folder}/arrived`]);
    await eventually(() => existing(join(estate.work.folder, "arrived")));
    await estate.host.stop();
    const [told, copied] = [await command.done, await copy.done];
    expect(told).toMatchObject({ code: 255, stderr: expect.stringContaining("closed the connection") });
    expect(copied.code).not.toBe(0);
    await estate.host.start();
    await eventually(async () => (await sessions()).every(({ closed_at: at }) => at !== null));
    expect((await sessions()).map(({ cause }) => cause)).toEqual(["target", "target"]);
    const outcomes = (await statements())
      .filter(({ text }) => /sleep|arrived/.test(text))
      .map(({ outcome }) => outcome);
    expect(outcomes).not.toContain("running");
    expect(outcomes).not.toContain("unknown");
    expect((await end()).state).toBe("closed");
  });

  test("a client killed in the middle of a command and of a copy leaves no session open and nothing running on the host", async () => {
    const { grant, config, sessions, statements, end } = await estate.open("shell");
    const command = estate.work.start("ssh", ["-F", config, "-tt", grant, "echo up; exec sleep 86100"]);
    await command.until(/up/);
    const copy = estate.work.start("scp", [
      "-F",
      config,
      "-l",
      "20000",
      join(estate.work.folder, "big"),
      `${grant}:${estate.work.folder}/half`,
    ]);
    await eventually(() => existing(join(estate.work.folder, "half")));
    command.kill("SIGKILL");
    execFileSync("pkill", ["-KILL", "-P", String(copy.child.pid), "ssh"]); // its own child, which has the connection
    copy.kill("SIGKILL");
    await eventually(async () => (await sessions()).every(({ closed_at: at }) => at !== null));
    expect((await sessions()).map(({ cause }) => cause)).toEqual(["client", "client"]);
    await eventually(() => !processes().includes("sleep 86100"));
    const half = (await statements()).find(({ text }) => text.includes("half") && text.startsWith("write"));
    expect(half?.bytes).toBeGreaterThan(0);
    expect(half?.bytes).toBeLessThan(64 << 20);
    await end();
  });

  test("a slow reader on one connection holds up nobody else's", async () => {
    const { grant, config, ssh, end } = await estate.open("shell");
    const slow = estate.work.start("ssh", ["-F", config, grant, "cat /dev/zero"]);
    slow.child.stdout?.pause();
    for (let n = 0; n < 3; n++) expect(await ssh([grant, `echo ${n}`])).toMatchObject({ code: 0, text: `${n}\n` });
    slow.kill("SIGKILL");
    await end();
  });

  test("another host key than the one in the target file: nothing is said to that host, the person reads it, and an alarm is raised", async () => {
    const { grant, ssh, end } = await estate.open("shell");
    const file = join(estate.host.dir, "sshd_config");
    const config = await readFile(file, "utf8");
    await estate.host.stop();
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", join(estate.host.dir, "impostor")]);
    await writeFile(file, config.replace(/^HostKey .*ed25519$/m, `HostKey ${estate.host.dir}/impostor`));
    await estate.host.start();
    const run = await ssh([grant, "true"]);
    expect(run.code).toBe(255);
    expect(run.stderr).toMatch(/host key/i);
    const alarms = async (): Promise<string[]> =>
      (await estate.system.storeQuery<{ alarm: string }>("select key as alarm from alarms")).map(({ alarm }) => alarm);
    await eventually(async () => (await alarms()).includes("untrusted web"));
    await estate.host.stop();
    await writeFile(file, config);
    await estate.host.start();
    expect(await ssh([grant, "echo back"])).toMatchObject({ code: 0, text: "back\n" });
    await end();
  });

  test("an unknown grant, a name that is no grant's and a wrong secret read the same, packet for packet", async () => {
    const { grant, answer, end } = await estate.open("shell");
    const known = join(estate.work.folder, "known_hosts");
    await writeFile(known, `${answer.trust}\n`);
    const ask = join(estate.work.folder, "wrong");
    await writeFile(ask, "#!/bin/sh\necho not-the-secret\n", { mode: 0o700 });
    const said = [];
    for (const user of [grant, "gr_000000000000", "root"]) {
      const options = [
        ...[
          "-F",
          "none",
          "-vvv",
          "-p",
          String(answer.port),
          "-o",
          `UserKnownHostsFile=${known}`,
          "-o",
          "NumberOfPasswordPrompts=2",
        ],
        ...["-o", "StrictHostKeyChecking=yes", "-o", "IdentityFile=none", `${user}@127.0.0.1`, "true"],
      ];
      const run = await estate.work.run("ssh", options, { env: { SSH_ASKPASS: ask, SSH_ASKPASS_REQUIRE: "force" } });
      expect(run.code).toBe(255);
      // What went over the wire: each packet's type, and all words of the server.
      const lines = run.stderr
        .split(/\r?\n/)
        .filter((line) => /packet|Authentications that can|Permission denied|banner/i.test(line));
      said.push(lines.map((line) => line.replaceAll(user, "USER")));
    }
    expect(said[0]?.length).toBeGreaterThan(4);
    expect(said[1]).toEqual(said[0]);
    expect(said[2]).toEqual(said[0]);
    await end();
  });

  test("whoever guesses is let go after at most six tries on a connection", async () => {
    const { answer } = await estate.open("shell");
    const known = join(estate.work.folder, "known_hosts");
    await writeFile(known, `${answer.trust}\n`);
    const ask = join(estate.work.folder, "guess");
    const asked = join(estate.work.folder, "asked");
    await writeFile(ask, `#!/bin/sh\necho x >>${asked}\necho guess\n`, { mode: 0o700 });
    const options = [
      ...[
        "-F",
        "none",
        "-p",
        String(answer.port),
        "-o",
        `UserKnownHostsFile=${known}`,
        "-o",
        "NumberOfPasswordPrompts=100",
      ],
      ...["-o", "IdentityFile=none", "-o", "PreferredAuthentications=password", "gr_000000000000@127.0.0.1", "true"],
    ];
    const run = await estate.work.run("ssh", options, { env: { SSH_ASKPASS: ask, SSH_ASKPASS_REQUIRE: "force" } });
    expect(run.code).toBe(255);
    expect((await readFile(asked, "utf8")).trim().split("\n").length).toBeLessThanOrEqual(6);
  });

  test("noise, half a greeting and silence at the door harm nobody", async () => {
    const { grant, answer, ssh, end } = await estate.open("shell");
    const sockets = ["GET / HTTP/1.1\r\n\r\n", "SSH-2.0-", "\u0016\u0003\u0001", "SSH-1.5-old\r\n", ""].map((text) => {
      const socket = connect(answer.port, "127.0.0.1");
      socket.on("error", () => {});
      socket.write(Buffer.from(text, "latin1"));
      return socket;
    });
    expect(await ssh([grant, "echo served"])).toMatchObject({ code: 0, text: "served\n" });
    for (const socket of sockets) {
      socket.destroy();
      if (!socket.closed) await once(socket, "close");
    }
    await end();
  });
});

function processes(): string {
  return execFileSync("ps", ["-eo", "args="], { encoding: "utf8" });
}

const existing = async (path: string): Promise<boolean> =>
  stat(path).then(
    ({ size }) => size > 0,
    () => false,
  );
