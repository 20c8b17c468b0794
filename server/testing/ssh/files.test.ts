import { createHash } from "node:crypto";
import { chmod, mkdir, readdir, readFile, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { StatementLine } from "@glasskey/contract";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { missingSshd } from "../../src/targets/ssh/fixtures/sshd.ts";
import { eventually, openEstate, USER, type Estate, type Opened } from "./estate.ts";
import { missing } from "./programs.ts";

const why = missingSshd();
/** Several windows long, so that one that is not given back is noticed. */
const CONTENT = Buffer.alloc(12_000_000, "one line of a dump that somebody needs at night\n");

describe.skipIf(why !== undefined)(
  `files through the whole system${why === undefined ? "" : `, skipped: ${why}`}`,
  () => {
    let estate: Estate;
    let files: Opened;
    let shell: Opened;

    beforeAll(async () => {
      estate = await openEstate(inject("pg18"), {
        scopes: {
          git: `{ user: ${USER}, commands: ["git-upload-pack {folder}/**", "git-receive-pack {folder}/**"] }`,
          ansible: `{ user: ${USER}, shell: true, sftp: { read: ["/**"], write: ["/**", "/**/.ansible/**"] } }`,
        },
      });
      files = await estate.open("files");
      shell = await estate.open("shell");
    });
    afterAll(() => estate?.[Symbol.asyncDispose]());

    /** A folder on the host, and one on the person's machine, with three files and a folder in it. */
    async function folders(name: string): Promise<{ here: string; there: string }> {
      const [here, there] = [join(estate.work.folder, `${name}-here`), join(estate.work.folder, `${name}-there`)];
      await mkdir(join(here, "deep"), { recursive: true });
      await mkdir(there);
      await writeFile(join(here, "big"), CONTENT);
      await writeFile(join(here, "two words"), "small\n");
      await writeFile(join(here, "deep/empty"), "");
      await chmod(join(here, "big"), 0o640);
      await utimes(join(here, "big"), new Date("2020-02-02T02:02:02Z"), new Date("2020-02-02T02:02:02Z"));
      return { here, there };
    }
    const run = (program: string, args: readonly string[], env: Record<string, string> = {}) =>
      estate.work.run(program, args, { env });
    const rsh = (opened: Opened): string => `ssh -F ${opened.config}`;

    for (const mode of ["SFTP", "legacy"] as const) {
      const flags = mode === "legacy" ? ["-O"] : [];
      test(`scp (${mode}) copies folders both ways with times and modes, and each file is on record with its SHA-256`, async () => {
        const { grant, config, statements, end } = await estate.open("files");
        const { here, there } = await folders(`scp-${mode}`);
        const up = await run("scp", ["-F", config, ...flags, "-r", "-p", here, `${grant}:${there}/`]);
        expect(up).toMatchObject({ code: 0 });
        const arrived = join(there, `scp-${mode}-here`);
        expect(await readdir(arrived, { recursive: true })).toHaveLength(4);
        expect((await stat(join(arrived, "big"))).mode & 0o777).toBe(0o640);
        expect((await stat(join(arrived, "big"))).mtime.toISOString()).toBe("2020-02-02T02:02:02.000Z");
        const back = join(estate.work.folder, `scp-${mode}-back`);
        expect(await run("scp", ["-F", config, ...flags, "-r", "-p", `${grant}:${arrived}`, back])).toMatchObject({
          code: 0,
        });
        expect(sha256(await readFile(join(back, "big")))).toBe(sha256(CONTENT));
        expect(await readFile(join(back, "two words"), "utf8")).toBe("small\n");

        const passed = (await statements()).filter(({ detail }) => detail?.["sha256"] !== undefined);
        const told = (verb: string, path: string): StatementLine | undefined =>
          passed.find(({ detail }) => detail?.["verb"] === verb && detail["path"] === path);
        const sum = (await run("sha256sum", [join(here, "big")])).text.split(" ")[0];
        expect(told("write", join(arrived, "big"))).toMatchObject({ bytes: CONTENT.length, detail: { sha256: sum } });
        expect(told("read", join(arrived, "big"))).toMatchObject({ bytes: CONTENT.length, detail: { sha256: sum } });
        expect(told("write", join(arrived, "two words"))).toMatchObject({ bytes: 6 });
        expect(told("write", join(arrived, "deep/empty"))).toMatchObject({ bytes: 0 });
        await end();
      });

      test(`scp (${mode}) out of what the playbook names is refused with the reason, and nothing is written`, async () => {
        const { here } = await folders(`scp-refused-${mode}`);
        const forbidden = `${estate.host.dir}/forbidden`;
        const up = await run("scp", ["-F", files.config, ...flags, join(here, "big"), `${files.grant}:${forbidden}`]);
        expect(up.code).not.toBe(0);
        expect(up.stderr).toContain("may not be written");
        await expect(stat(forbidden)).rejects.toMatchObject({ code: "ENOENT" });
        const down = await run("scp", [
          "-F",
          files.config,
          ...flags,
          `${files.grant}:/etc/passwd`,
          join(here, "stolen"),
        ]);
        expect(down.code).not.toBe(0);
        await expect(stat(join(here, "stolen"))).rejects.toMatchObject({ code: "ENOENT" });
        const link = join(here, "link");
        await run("ln", ["-s", "/etc/passwd", link]);
        const led = await run("scp", ["-F", files.config, ...flags, `${files.grant}:${link}`, join(here, "stolen")]);
        if (mode === "SFTP")
          expect(led).toMatchObject({ code: 1, stderr: expect.stringContaining("a link leads there") });
      });
    }

    test("sftp runs a batch; a grant that only reads refuses each change in words, and goes on", async () => {
      const { here, there } = await folders("sftp");
      const batch = `put "${here}/two words" ${there}/a\nmkdir ${there}/made\nrename ${there}/a ${there}/made/b\nls -l ${there}/made\nget ${there}/made/b ${here}/b\nrm ${there}/made/b\nrmdir ${there}/made\n`;
      const done = await estate.work.run("sftp", ["-F", files.config, "-b", "-", files.grant], { input: batch });
      expect(done).toMatchObject({ code: 0, text: expect.stringContaining("made/b") });
      expect(await readFile(join(here, "b"), "utf8")).toBe("small\n");
      expect(await readdir(there)).toEqual([]);

      const reading = await estate.open("reading");
      const refused = `-put ${here}/b ${there}/c\n-mkdir ${there}/d\n-rm ${here}/b\n-get /etc/passwd ${here}/p\nget ${here}/b ${here}/c\n`;
      const tried = await estate.work.run("sftp", ["-F", reading.config, "-b", "-", reading.grant], { input: refused });
      expect(tried.code).toBe(0);
      expect(tried.stderr).toMatch(/may not be written|may not be/);
      expect(await readdir(there)).toEqual([]);
      expect(await readFile(join(here, "c"), "utf8")).toBe("small\n");
      await reading.end();
      const outcomes = (await reading.statements()).map(({ text, outcome }) => `${outcome} ${text.split(" ")[0]}`);
      expect(outcomes).toEqual(
        expect.arrayContaining(["refused write", "refused mkdir", "refused remove", "done read"]),
      );
    });

    test("a bare sftp at a terminal has its prompt, lists, and leaves with bye", async () => {
      const { here } = await folders("bare");
      const sftp = estate.work.terminal("sftp", ["-F", files.config, files.grant]);
      await sftp.until(/sftp> /);
      sftp.write(`ls ${here}\r`);
      await sftp.until(/two words/);
      sftp.write("bye\r");
      expect((await sftp.done).code).toBe(0);
    });

    const noRsync = missing("rsync").length > 0;
    test.skipIf(noRsync)(
      `rsync both ways, with --delete, and again with nothing to do${noRsync ? ", skipped: no rsync" : ""}`,
      async () => {
        const { here, there } = await folders("rsync");
        const { grant, config, statements, end } = await estate.open("shell");
        const rsync = (...args: string[]) => run("rsync", ["-a", "--stats", "-e", `ssh -F ${config}`, ...args]);
        expect(await rsync(`${here}/`, `${grant}:${there}/`)).toMatchObject({ code: 0 });
        expect(sha256(await readFile(join(there, "big")))).toBe(sha256(CONTENT));
        expect((await rsync(`${here}/`, `${grant}:${there}/`)).text).toMatch(/Number of regular files transferred: 0/);
        await writeFile(join(there, "extra"), "goes");
        expect(await rsync("--delete", `${here}/`, `${grant}:${there}/`)).toMatchObject({ code: 0 });
        expect((await readdir(there)).toSorted()).toEqual(["big", "deep", "two words"]);
        expect(await rsync(`${grant}:${there}/`, `${here}-back/`)).toMatchObject({ code: 0 });
        expect(sha256(await readFile(join(`${here}-back`, "big")))).toBe(sha256(CONTENT));
        const streams = (await statements()).filter(({ text }) => text.startsWith("rsync --server"));
        expect(streams).toHaveLength(4);
        for (const { outcome, detail } of streams) {
          expect(outcome).toBe("done");
          expect(JSON.stringify(detail)).toMatch(/"sha256":"[0-9a-f]{64}"/);
        }
        await end();
      },
    );

    const noGit = missing("git").length > 0;
    test.skipIf(noGit)(
      `git clones and pushes where the playbook names its two programs${noGit ? ", skipped: no git" : ""}`,
      async () => {
        const { grant, config, statements, end } = await estate.open("git");
        const [bare, clone] = [join(estate.work.folder, "repo.git"), join(estate.work.folder, "clone")];
        const env = {
          ...{
            GIT_SSH_COMMAND: `ssh -F ${config}`,
            GIT_CONFIG_NOSYSTEM: "1",
            GIT_AUTHOR_NAME: "ann",
            GIT_AUTHOR_EMAIL: "a@b",
          },
          ...{ GIT_COMMITTER_NAME: "ann", GIT_COMMITTER_EMAIL: "a@b" },
        };
        expect(await run("git", ["init", "-q", "--bare", "-b", "main", bare], env)).toMatchObject({ code: 0 });
        expect(await run("git", ["clone", "-q", `${grant}:${bare}`, clone], env)).toMatchObject({ code: 0 });
        await writeFile(join(clone, "mended"), "yes\n");
        expect(await run("git", ["-C", clone, "add", "."], env)).toMatchObject({ code: 0 });
        expect(await run("git", ["-C", clone, "commit", "-q", "-m", "mend"], env)).toMatchObject({ code: 0 });
        expect(await run("git", ["-C", clone, "push", "-q", "origin", "HEAD:main"], env)).toMatchObject({ code: 0 });
        expect(await run("git", ["-C", bare, "show", "main:mended"], env)).toMatchObject({ text: "yes\n" });
        const elsewhere = await run("git", ["clone", "-q", `${grant}:/srv/other.git`, `${clone}-2`], env);
        expect(elsewhere).toMatchObject({ code: 128, stderr: expect.stringContaining("is not one of this grant's") });
        await end();
        const told = (await statements())
          .filter(({ via }) => via === "exec")
          .map(({ text, outcome }) => `${outcome} ${text.split(" ")[0]}`);
        expect(told).toEqual(["done git-upload-pack", "done git-receive-pack", "refused git-upload-pack"]);
      },
    );

    const noAnsible = missing("ansible").length > 0;
    test.skipIf(noAnsible)(
      `lesson 22: Ansible pings twenty hosts ten at a time under one grant${noAnsible ? ", skipped: no ansible" : ""}`,
      { timeout: 240_000 },
      async () => {
        const { grant, config, sessions, end } = await estate.open("ansible");
        const hosts = Array.from({ length: 20 }, (_, n) => `web-${n} ansible_host=${grant}`).join("\n");
        const inventory = join(estate.work.folder, "inventory");
        await writeFile(
          inventory,
          `${hosts}\n[all:vars]\nansible_ssh_common_args=-F ${config}\nansible_python_interpreter=/usr/bin/python3\n`,
        );
        const env = {
          ...{
            ANSIBLE_HOST_KEY_CHECKING: "True",
            ANSIBLE_LOCAL_TEMP: join(estate.work.folder, "local"),
            ANSIBLE_NOCOLOR: "1",
          },
          ...{
            ANSIBLE_REMOTE_TEMP: join(estate.work.folder, "remote"),
            ANSIBLE_SSH_CONTROL_PATH_DIR: join(estate.work.home, "cp"),
          },
          // Without ControlPersist each step is a connection of its own, which is the heavier load, and leaves no process behind.
          ...{ LC_ALL: "C.UTF-8", ANSIBLE_SSH_ARGS: "-o ControlMaster=no" },
        };
        const args = ["-i", inventory, "-f", "10", "-m", "ping", "all"];
        const done = await estate.work.run("ansible", args, { env, patienceMs: 200_000 });
        expect(done, done.stderr).toMatchObject({ code: 0 });
        expect(done.text.match(/"ping": "pong"/g)).toHaveLength(20);
        expect((await sessions()).length).toBeGreaterThanOrEqual(20);
        await eventually(async () => (await sessions()).every(({ closed_at: at }) => at !== null));
        await end();
      },
    );

    test("mosh is refused with a message that says what works", async () => {
      const run = await shell.ssh([shell.grant, "mosh-server new -s -c 256"]);
      expect(run.code).not.toBe(0);
      expect(run.stderr).toMatch(/mosh does not pass through Glasskey[^]*Use ssh/);
    });

    const noMosh = missing("mosh").length > 0;
    test.skipIf(noMosh)(`the real mosh shows it to the person${noMosh ? ", skipped: no mosh" : ""}`, async () => {
      const mosh = estate.work.terminal("mosh", [`--ssh=${rsh(shell)}`, shell.grant], { env: { LC_ALL: "C.UTF-8" } });
      const done = await mosh.done;
      expect(done.code).not.toBe(0);
      expect(done.text).toMatch(/mosh does not pass through Glasskey/);
    });
  },
);

const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
