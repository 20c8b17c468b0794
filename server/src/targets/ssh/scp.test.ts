import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readFile, realpath, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { createTestTape, type FileRig, scopeFor, startFileRig } from "./fixtures/file-proxies.ts";
import { RECORD } from "../target.ts";
import { authorize } from "./authorize.ts";
import { createScpProxy } from "./scp.ts";

const missing = ["/usr/bin/scp", "/usr/bin/python3"].find((file) => !existsSync(file));
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

async function rigWith(
  scope?: (home: string) => Record<string, unknown>,
): Promise<FileRig & { at: (path: string) => string }> {
  const home = await realpath(await mkdtemp(join(tmpdir(), "glasskey-home-")));
  for (const name of ["read/deep", "write", "secret", "local"]) await mkdir(join(home, name), { recursive: true });
  const sftp = { read: [`${home}/read/**`], write: [`${home}/write/**`] };
  const rig = await startFileRig(scopeFor(scope?.(home) ?? { sftp }), { home });
  onTestFinished(async () => {
    await rig.dispose();
    await rm(home, { recursive: true, force: true });
  });
  return { ...rig, at: (path) => join(home, path) };
}
const byText = (a: string, b: string): number => (a < b ? -1 : 1);
const scp = (rig: FileRig, ...words: readonly string[]): ReturnType<FileRig["run"]> =>
  rig.run(["scp", "-O", "-q", "-S", rig.bridge, ...words]);

describe.skipIf(missing !== undefined)(
  `scp's old protocol${missing === undefined ? "" : ` (skipped: no ${missing})`}`,
  () => {
    test("an upload to a folder is a statement with path, bytes, mode and digest", async () => {
      const rig = await rigWith();
      const content = randomBytes(2_500_000);
      await writeFile(rig.at("local/up.bin"), content);
      const { code, stderr } = await scp(rig, "-p", rig.at("local/up.bin"), `host:${rig.at("write")}`);
      expect([code, stderr, rig.failures]).toEqual([0, "", []]);
      expect(sha256(await readFile(rig.at("write/up.bin")))).toBe(sha256(content));
      expect(rig.statements()).toMatchObject([
        {
          ...{ via: "scp", text: `write ${rig.at("write/up.bin")}`, tag: "ok", bytes: 2_500_000 },
          detail: { sha256: sha256(content), mode: "0644", size: 2_500_000 },
        },
      ]);
    });

    test("a download is a statement, and a tree keeps its shape both ways", async () => {
      const rig = await rigWith();
      await writeFile(rig.at("read/deep/a b"), randomBytes(100_000));
      await writeFile(rig.at("read/deep/empty"), "");
      await mkdir(rig.at("read/deep/sub"));
      await writeFile(rig.at("read/deep/sub/c"), "c");
      const down = await scp(rig, "-r", "-p", `host:${rig.at("read/deep")}`, rig.at("local/got"));
      expect([down.code, down.stderr, rig.failures]).toEqual([0, "", []]);
      expect(await readFile(rig.at("local/got/a b"))).toEqual(await readFile(rig.at("read/deep/a b")));
      expect(
        rig
          .statements()
          .map(({ text, tag }) => `${text}: ${String(tag)}`)
          .toSorted(byText),
      ).toEqual(
        [
          `list ${rig.at("read/deep")}: ok`,
          `list ${rig.at("read/deep/sub")}: ok`,
          ...["a b", "empty", "sub/c"].map((name) => `read ${rig.at("read/deep")}/${name}: ok`),
        ].toSorted(byText),
      );
      const up = await scp(rig, "-r", rig.at("local/got"), `host:${rig.at("write/new")}`);
      expect([up.code, up.stderr, rig.failures]).toEqual([0, "", []]);
      expect(await readFile(rig.at("write/new/sub/c"), "utf8")).toBe("c");
    });

    test("what the scope does not name is refused: by the command line, or entry by entry with the rest copied", async () => {
      const rig = await rigWith();
      await writeFile(rig.at("secret/key"), "secret");
      await writeFile(rig.at("local/a"), "a");
      for (const words of [
        [`host:${rig.at("secret/key")}`, rig.at("local/key")],
        [`host:${rig.at("read")}/../secret/key`, rig.at("local/key")],
        [`host:secret/key`, rig.at("local/key")],
        [`host:${rig.at("read")}/*`, rig.at("local")],
        [rig.at("local/a"), `host:${rig.at("secret/a")}`],
        [rig.at("local/a"), `host:${rig.at("read/a")}`],
      ]) {
        await scp(rig, ...words);
        expect(existsSync(words[1]?.replace("host:", "") ?? "") && words[1] !== rig.at("local"), words.join(" ")).toBe(
          false,
        );
      }
      // Each was refused before anything ran on the host.
      expect(rig.failures).toHaveLength(6);
      expect(rig.statements()).toEqual([]);
      await writeFile(rig.at("read/deep/.env"), "secret");
      await writeFile(rig.at("read/deep/ok"), "ok");
      const down = await scp(rig, "-r", `host:${rig.at("read/deep")}`, rig.at("local/got"));
      expect(down.code).toBe(0);
      expect(await readFile(rig.at("local/got/ok"), "utf8")).toBe("ok");
      expect(existsSync(rig.at("local/got/.env"))).toBe(false);
      expect(rig.stderr()).toContain(".env may not be read");
      await mkdir(rig.at("local/tree"));
      await writeFile(rig.at("local/tree/.bashrc"), "evil");
      await writeFile(rig.at("local/tree/ok"), "ok");
      const up = await scp(rig, "-r", rig.at("local/tree"), `host:${rig.at("write/tree")}`);
      expect(up.code).not.toBe(0);
      expect(up.stderr).toContain("glasskey: ");
      expect([existsSync(rig.at("write/tree/.bashrc")), existsSync(rig.at("write/tree/ok"))]).toEqual([false, true]);
      await chmod(rig.at("local/a"), 0o4755);
      expect((await scp(rig, "-p", rig.at("local/a"), `host:${rig.at("write/suid")}`)).code).not.toBe(0);
      expect(existsSync(rig.at("write/suid"))).toBe(false);
    });

    test("a path that may be written only below is a folder or nothing", async () => {
      const rig = await rigWith((home) => ({ sftp: { read: [], write: [`${home}/write/new/**`] } }));
      await writeFile(rig.at("local/a"), "a");
      expect((await scp(rig, rig.at("local/a"), `host:${rig.at("write/new")}`)).code).not.toBe(0);
      expect(existsSync(rig.at("write/new"))).toBe(false);
    });

    test("where the path turns out to be a folder, the file in it is what is judged and recorded", async () => {
      const rig = await rigWith((home) => ({ sftp: { write: [`${home}/write/**`, `${home}/local/*`] } }));
      await mkdir(rig.at("write/dir"));
      await mkdir(rig.at("local/dir"));
      const raw = (path: string, name: string): ReturnType<FileRig["run"]> =>
        rig.run([rig.bridge, `scp -t ${path}`], `C0644 4 ${name}\nevil\0`);
      await raw(rig.at("write/dir"), ".profile");
      await raw(rig.at("local/dir"), "deeper");
      expect([existsSync(rig.at("write/dir/.profile")), existsSync(rig.at("local/dir/deeper"))]).toEqual([
        false,
        false,
      ]);
      await raw(rig.at("write/dir"), "good");
      await raw(rig.at("local/plain"), "another");
      expect(await readFile(rig.at("write/dir/good"), "utf8")).toBe("evil");
      expect(await readFile(rig.at("local/plain"), "utf8")).toBe("evil");
      expect(
        rig.statements().map(({ text, refused, via }) => `${via === "refused" || refused ? "no" : "yes"} ${text}`),
      ).toEqual([
        `no scp: write ${rig.at("write/dir/.profile")}`,
        `no scp: write ${rig.at("local/dir/deeper")}`,
        `yes write ${rig.at("write/dir/good")}`,
        `yes write ${rig.at("local/plain")}`,
      ]);
    });

    test("under a shell any path goes, wildcards too, and each file is still a statement", async () => {
      const rig = await rigWith(() => ({ shell: true }));
      await writeFile(rig.at("secret/a1"), "1");
      await writeFile(rig.at("secret/a2"), "22");
      const { code, stderr } = await scp(rig, `host:secret/a*`, rig.at("local"));
      expect([code, stderr, rig.failures]).toEqual([0, "", []]);
      expect((await stat(rig.at("local/a2"))).size).toBe(2);
      expect(rig.statements().map(({ text, bytes }) => [text, bytes])).toEqual([
        ["read secret/a1", 1],
        ["read secret/a2", 2],
      ]);
    });
  },
);

describe("attacks on scp's old protocol", () => {
  /** A proxy with both sides in the test's hands; committed at once. */
  function bare(
    command: string,
    scope: Record<string, unknown>,
    options: { stuck?: boolean } = {},
  ): {
    feed: (side: "client" | "target", text: string) => void;
    client: () => string;
    target: () => string;
    failures: string[];
    refusals: string[];
    actions: () => unknown[];
  } {
    const { tape, mask, records } = createTestTape({ commit: (committed) => queueMicrotask(committed) });
    const [toClient, toTarget, failures, refusals]: string[][] = [[], [], [], []];
    const compiled = scopeFor(scope);
    const verdict = authorize({ ask: "exec", command }, compiled);
    if (!verdict.ok || verdict.flow.is !== "scp") throw new Error("refused");
    const proxy = createScpProxy({
      ...{ n: 1, scope: compiled, tape, mask, command: verdict.flow.command, judged: verdict.flow.judged },
      decide: (question) => authorize(question, compiled),
      ends: {
        toTarget(data, sent) {
          toTarget?.push(Buffer.from(data).toString("latin1"));
          if (options.stuck !== true) sent?.();
        },
        toClient: (data, stream, sent) => (
          stream === 0 && toClient?.push(Buffer.from(data).toString("latin1")),
          sent?.()
        ),
        ...{ targetEof: () => {}, clientDone: () => {}, targetDone: () => {} },
        refuse: (_via, text, { reason }) => (refusals?.push(text), reason),
        fail: (text) => void failures?.push(text),
        defect: (error) => {
          throw error;
        },
      },
    });
    return {
      feed: (side, text) =>
        side === "client"
          ? proxy.fromClient(Buffer.from(text, "latin1"))
          : proxy.fromTarget(Buffer.from(text, "latin1"), 0),
      client: () => toClient?.join("") ?? "",
      target: () => toTarget?.join("") ?? "",
      ...{ failures: failures ?? [], refusals: refusals ?? [] },
      actions: () => records.filter(({ kind }) => kind === RECORD.action).map(({ content }) => content["text"]),
    };
  }
  const turn = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve));
  const scope = { sftp: { read: ["/r/**"], write: ["/w/**"] } };

  test.each([
    ["a file that nobody asked for (CVE-2019-6111)", "C0644 1 .bashrc\n"],
    ["a path for a name", "C0644 1 ../x\n"],
    ["a path below", "C0644 1 a/b\n"],
    ["a folder that nobody asked for", "D0755 0 file\n"],
    ["the end of a folder that was not begun", "E\n"],
    ["times that nobody asked for", "T1 0 1 0\n"],
    ["an endless line", "C".repeat(20_000)],
    ["nonsense", "hello\n"],
    ["an escape sequence in a name", "C0644 1 file\u001b[2J\n"],
  ])("a target that sends %s ends the copy, and the client sees nothing of it", async (_what, line) => {
    const rig = bare("scp -f -- /r/file", scope);
    rig.feed("client", "\0");
    rig.feed("target", line);
    await turn();
    expect(rig.failures).toHaveLength(1);
    expect(rig.client()).toBe("");
  });

  test("a client cannot acknowledge ahead, so that a refused file is sent nevertheless", async () => {
    const rig = bare("scp -r -f -- /r", { sftp: { read: ["/r/**"], write: [] } });
    rig.feed("client", "\0\0\0\0");
    await turn();
    expect(rig.failures).toEqual(["scp: an answer to nothing"]);
    expect(rig.target()).toBe("\0");
  });

  test("a client that does not wait for the answer has its file's bytes held until its line is recorded and accepted", async () => {
    const rig = bare("scp -t -- /w/a", scope);
    rig.feed("target", "F\0");
    rig.feed("client", "C0644 3 a\nabc\0");
    expect(rig.target()).toBe("");
    await turn();
    expect(rig.target()).toBe("C0644 3 a\n");
    rig.feed("target", "\0");
    await turn();
    expect(rig.target()).toBe("C0644 3 a\nabc\0");
  });

  test("what a client says that it could not read is recorded first, and waits for a target that does not read", async () => {
    const rig = bare("scp -t -- /w/a", scope, { stuck: true });
    rig.feed("target", "F\0");
    rig.feed("client", "\u0001one\n\u0001two\n\u0001three\n");
    expect(rig.target()).toBe("");
    await turn();
    expect(rig.target()).toBe("\u0001one\n");
    expect(rig.actions()).toEqual(["error: one"]);
  });

  test("a target that does not say what the path is ends the copy, and nothing reaches it", async () => {
    const rig = bare("scp -t -- /w/a", scope);
    rig.feed("client", "C0644 3 a\nabc\0");
    rig.feed("target", "\0");
    await turn();
    expect([rig.failures.length, rig.target()]).toEqual([1, ""]);
  });

  test("bytes after a refused file are no commands", async () => {
    const rig = bare("scp -r -t -- /w/d", scope);
    rig.feed("target", "F\0");
    rig.feed("client", "D0755 0 d\n");
    await turn();
    rig.feed("target", "\0");
    rig.feed("client", "C0644 11 .profile\nevil stuff\n\0");
    await turn();
    expect(rig.refusals).toEqual(["write /w/d/.profile"]);
    expect(rig.failures).toHaveLength(1);
    expect(rig.target()).toBe("D0755 0 d\n");
  });
});
