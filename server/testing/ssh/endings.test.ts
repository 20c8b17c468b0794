import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { GrantView, KillAnswer } from "@glasskey/contract";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { missingHost } from "../../src/targets/ssh/fixtures/host.ts";
import { missingSshd } from "../../src/targets/ssh/fixtures/sshd.ts";
import { eventually, openEstate, type Estate } from "./estate.ts";
import { missing } from "./programs.ts";

const why = missingSshd();
/** A sleep that no other run of these tests has. */
const FOREVER = 1_000_000_000 + process.pid * 10;

describe.skipIf(why !== undefined)(
  `the end of a grant for a host${why === undefined ? "" : `, skipped: ${why}`}`,
  () => {
    let estate: Estate;
    beforeAll(async () => {
      estate = await openEstate(inject("pg18"));
    });
    afterAll(() => estate?.[Symbol.asyncDispose]());

    test("kill cuts every session at once, and each person reads why, on a terminal and beside a command", async () => {
      const { grant, config, ssh, end, sessions } = await estate.open("shell");
      const terminal = estate.work.terminal("ssh", ["-F", config, "-tt", grant]);
      const command = estate.work.start("ssh", ["-F", config, grant, "echo up; sleep 600"]);
      await terminal.until(/everything you send is recorded/);
      await command.until(/up/);
      terminal.write("printf 'full%s\\033[?1049h' screen\n"); // as vim does
      await terminal.until(/fullscreen/);
      const { sessionsCut } = await estate.sam.call<KillAnswer>("POST", "/v1/kill", { id: grant, why: "wrong host" });
      expect(sessionsCut).toBe(2);
      const [shown, told] = [await terminal.done, await command.done];
      // OpenSSH throws away what it has not shown when the disconnect comes, so that waits: the words are on the normal screen.
      expect(shown.text).toMatch(/\u001b\[\?1049l[^]*wrong host[^]*Received disconnect/);
      expect(told.stderr).toContain("wrong host");
      expect([shown.code, told.code]).toEqual([255, 255]);
      expect((await sessions()).map(({ cause }) => cause)).toEqual(["killed", "killed"]);
      const late = await ssh([grant, "true"]);
      expect(late.code).toBe(255);
      expect((await end().catch(() => estate.ann.grant(grant))).state).toBe("closed");
    });

    test("one session is killed and the grant's others go on", async () => {
      const { grant, config, sessions, end } = await estate.open("shell");
      const first = estate.work.start("ssh", ["-F", config, grant, "echo up; sleep 600"]);
      await first.until(/up/);
      const [{ id } = { id: "" }] = await sessions();
      const second = estate.work.start("ssh", ["-F", config, grant, "echo up; cat"]);
      await second.until(/up/);
      await estate.sam.call<KillAnswer>("POST", "/v1/kill", { id });
      expect((await first.done).code).toBe(255);
      second.write("still here\n");
      await second.until(/still here/);
      second.end();
      expect((await second.done).code).toBe(0);
      await end();
    });

    test("lesson 18: at the grant's end the person reads that it ended and when, and it is proved gone", async () => {
      const { grant, config } = await estate.open("shell", { forMs: 20_000 });
      const terminal = estate.work.terminal("ssh", ["-F", config, "-tt", grant]);
      await terminal.until(/everything you send is recorded/);
      const done = await terminal.done;
      expect(done.code).toBe(255);
      expect(done.text).toMatch(/grant gr_\w+ ended at \d\d:\d\d:\d\d UTC; break the glass again/);
      const closed = await estate.ann.until(grant, ["closed"], 30_000);
      expect(closed.proof?.leases[0]?.evidence.map(({ answered }) => answered)).toEqual([
        expect.stringContaining("refused"),
        "revoked",
        "none",
      ]);
    });

    const noLess = missing("less").length > 0;
    test.skipIf(noLess)(
      `a warning is a line at a prompt, and does not touch the screen of less${noLess ? ", skipped: no less" : ""}`,
      async () => {
        const { grant, config, end } = await estate.open("shell", { forMs: 85_000 });
        const terminals = ["sleep 600", "less /etc/services"].map((command) =>
          estate.work.terminal("ssh", ["-F", config, "-tt", grant, `echo up; exec ${command}`], { env: { LESS: "" } }),
        );
        const [plain, less] = terminals;
        await plain?.until(/up/);
        await less?.until(/\u001b\[\?1049h[^]*\d/);
        await Promise.all(terminals.map((terminal) => terminal.until(/this session ends at/)));
        expect(plain?.stdout()).toMatch(/\r\nthis session ends at/);
        // OSC 2 (title) and a bell; the words are nowhere else.
        expect(less?.stdout()).toMatch(
          /\u001b\]2;[^\u0007\u001b]*this session ends at[^\u0007\u001b]*(?:\u0007|\u001b\\)/,
        );
        expect(less?.stdout().replaceAll(/\u001b\]2;[^\u0007\u001b]*(?:\u0007|\u001b\\)/g, "")).not.toContain(
          "this session ends",
        );
        await end();
        await Promise.all(terminals.map(({ done }) => done));
      },
    );

    test("what a user left running, deaf to signals and in a session of its own, is ended before it is called closed", async () => {
      const { grant, ssh, end } = await estate.open("shell");
      const left = `trap '' HUP TERM INT; nohup setsid sleep ${FOREVER} >/dev/null 2>&1 & (setsid sh -c 'sleep ${FOREVER + 1} & wait' >/dev/null 2>&1 &)`;
      expect(await ssh([grant, left])).toMatchObject({ code: 0 });
      await eventually(() => running(FOREVER) && running(FOREVER + 1));
      const closed = await end();
      expect(closed.state).toBe("closed");
      expect([running(FOREVER), running(FOREVER + 1)]).toEqual([false, false]);
      expect(JSON.stringify(closed.proof)).toContain("processes of gk_");
    });

    test("after the end, what a thief kept of the session opens nothing on the host", async () => {
      const { grant, config, answer, end } = await estate.open("shell");
      await end();
      const again = await estate.work.run("ssh", ["-F", config, grant, "true"]);
      expect(again).toMatchObject({ code: 255 });
      const direct = [
        "-F",
        config,
        "-p",
        String(estate.host.port),
        "-o",
        "StrictHostKeyChecking=no",
        "-l",
        "root",
        grant,
        "true",
      ];
      expect(await estate.work.run("ssh", direct)).toMatchObject({
        code: 255,
        stderr: expect.stringContaining("Permission denied"),
      });
      expect(answer.certificate).not.toBeNull();
    });

    test("a host that is down keeps the end unproved, said so with exit code 5's answer, and proved once it is back", async () => {
      const { grant } = await estate.open("shell");
      await estate.host.stop();
      const waiting = await estate.ann.call<GrantView>("POST", `/v1/grants/${grant}/end`, { waitMs: 2_000 });
      expect(waiting.state).toBe("closing");
      await eventually(async () => (await estate.ann.grant(grant)).lastError !== null);
      await estate.host.start();
      const closed = await estate.ann.until(grant, ["closed"], 50_000);
      expect(closed.proof?.leases).toHaveLength(1);
    });
  },
);

describe.skipIf(why !== undefined)(
  `the end without a login of Glasskey's own on the host${why === undefined ? "" : `, skipped: ${why}`}`,
  () => {
    let estate: Estate;
    beforeAll(async () => {
      estate = await openEstate(inject("pg18"), { control: false });
    });
    afterAll(() => estate?.[Symbol.asyncDispose]());

    test(
      "waits for the last certificate's expiry, has the host refuse it, and says that what runs on is not provable",
      { timeout: 240_000 },
      async () => {
        const { grant, ssh } = await estate.open("shell");
        const left = await ssh([grant, "nohup setsid sleep 100 >/dev/null 2>&1 & echo $!"]);
        const waiting = await estate.ann.call<GrantView>("POST", `/v1/grants/${grant}/end`, { waitMs: 1_000 });
        expect(waiting.state).toBe("closing");
        await eventually(async () => /valid until/.test((await estate.ann.grant(grant)).lastError ?? ""));
        const closed = await estate.ann.until(grant, ["closed"], 200_000);
        const evidence = closed.proof?.leases[0]?.evidence ?? [];
        expect(evidence[0]).toMatchObject({
          asked: expect.stringContaining("expired"),
          answered: expect.stringContaining("refused"),
        });
        expect(evidence[1]?.answered).toContain("not provable");
        const pid = Number(left.text);
        if (existsSync(`/proc/${pid}`)) process.kill(pid);
      },
    );
  },
);

const noHost = missingHost();

describe.skipIf(noHost !== undefined)(
  `a host that was set up as glass target setup says${noHost === undefined ? "" : `, skipped: ${noHost}`}`,
  () => {
    let estate: Estate;
    beforeAll(async () => {
      estate = await openEstate(inject("pg18"), { ownHost: true });
    });
    afterAll(() => estate?.[Symbol.asyncDispose]());

    test("works with its forced control login, and the account's processes are ended with the grant", async () => {
      const { grant, ssh, end } = await estate.open("shell");
      expect(await ssh([grant, "id -un"])).toMatchObject({ code: 0, text: "deploy\n" });
      await ssh([grant, `nohup setsid sleep ${FOREVER + 2} >/dev/null 2>&1 &`]);
      await eventually(() => running(FOREVER + 2)); // the shell ends before what it left has become a sleep
      const closed = await end();
      expect(closed).toMatchObject({ state: "closed", proof: { drift: { known: true, added: [], removed: [] } } });
      expect(running(FOREVER + 2)).toBe(false);
    });

    test("a key that the user left for themself is told as drift, with its line", async () => {
      const { grant, ssh, end } = await estate.open("shell");
      const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKfNnSpEVpQgGlGRnK8rWOAyg4Hh2Zc3cCmS4jOyC1fk back-door";
      await ssh([grant, `mkdir -p ~/.ssh && echo '${key}' >>~/.ssh/authorized_keys`]);
      const closed = await end();
      expect(closed.state).toBe("closed");
      const added = closed.proof?.drift?.added ?? [];
      expect(added.some((line) => line.includes("key of deploy") && line.includes("SHA256:"))).toBe(true);
      await eventually(async () => {
        const told = await estate.system.storeQuery(
          "select from log_entries where convert_from(entry, 'UTF8') like '%access.drift%'",
        );
        return told.length > 0;
      });
      estate.host.shell("rm -rf /home/deploy/.ssh");
    });
  },
);

/** Whether a process sleeps for so many seconds. */
function running(seconds: number): boolean {
  return readdirSync("/proc").some((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return readFileSync(join("/proc", pid, "cmdline"), "latin1") === `sleep\0${seconds}\0`;
    } catch {
      return false;
    }
  });
}
