import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { growingLog } from "../testing/log.ts";
import { runCli, usageOf } from "./cli.ts";

const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const undo of cleanup.splice(0).toReversed()) undo();
});

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "glasskey-witness-"));
  cleanup.push(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

interface Ran {
  code: number;
  out: string;
  err: string;
}

async function run(args: readonly string[], signal: AbortSignal = AbortSignal.abort()): Promise<Ran> {
  const ran: Ran = { code: -1, out: "", err: "" };
  ran.code = await runCli(
    args,
    (text) => (ran.out += text),
    (text) => (ran.err += text),
    { signal },
  );
  return ran;
}

test("the first start makes the key and prints what glasskey.yaml needs; the next needs no name", async () => {
  const folder = newFolder();
  const first = await run([folder, "--name", "w.test/1", "--listen", "127.0.0.1:0"]);
  expect(first).toMatchObject({ code: 0, err: "" });
  const [, vkey = ""] = /^This witness's key: (w\.test\/1\+[0-9a-f]{8}\+\S+)$/m.exec(first.out) ?? [];
  expect(first.out).toMatch(
    /^log:\n  witnesses:\n    need: 1\n    of:\n      - key: w\.test.*\n        url: http:\/\/127\.0\.0\.1:\d+$/m,
  );
  expect(first.out).toContain(`- key: ${vkey}\n`);
  expect(first.out).toContain("It knows no log yet");
  const again = await run([folder, "--listen", "127.0.0.1:0"]);
  expect(again).toMatchObject({ code: 0, err: "" });
  expect(again.out).toContain(vkey);
  expect((await run([folder, "--name", "w.test/2", "--listen", "127.0.0.1:0"])).err).toContain("is called w.test/1");
  expect((await run([newFolder(), "--listen", "127.0.0.1:0"])).err).toContain("give its name with --name");
});

test("a log is added by its key or a file with it, and shown", async () => {
  const folder = newFolder();
  await run([folder, "--name", "w.test/1", "--listen", "127.0.0.1:0"]);
  expect((await run(["show", folder])).out).toContain("glasskey-witness add-log");
  const [log, other] = [growingLog(), growingLog("other.test/log")];
  const file = join(folder, "other.vkey");
  writeFileSync(file, `# from the operator\n${other.signer.vkey}\n`);
  expect(await run(["add-log", folder, log.signer.vkey])).toMatchObject({
    code: 0,
    out: "glasskey.test/log is known now.\n",
  });
  expect(await run(["add-log", folder, file])).toMatchObject({ code: 0, out: "other.test/log is known now.\n" });
  expect((await run(["add-log", folder, log.signer.vkey])).out).toContain("was known");
  expect((await run(["show", folder])).out).toMatch(
    /\nglasskey\.test\/log: nothing cosigned yet\nother\.test\/log: nothing cosigned yet\n$/,
  );
  expect(await run(["drop-key", folder, log.signer.vkey])).toMatchObject({
    ...{ code: 1, out: "", err: expect.stringContaining("the only key") },
  });
  await run(["add-log", folder, growingLog().signer.vkey]);
  expect((await run(["drop-key", folder, log.signer.vkey])).out).toContain(
    "glasskey.test/log with that key's signature alone",
  );
  expect(await run(["add-log", folder, `${log.signer.vkey}x`])).toMatchObject({ code: 1, out: "" });
  expect(await run(["add-log", newFolder(), log.signer.vkey])).toMatchObject({ code: 1, out: "" });
});

test("plain HTTP is for loopback alone, unless a proxy is said to be in front", async () => {
  const folder = newFolder();
  for (const address of [
    "0.0.0.0:7480",
    "192.0.2.1:80",
    "[::]:80",
    "witness.example.org:80",
    "localhost.example.org:80",
  ]) {
    const { code, err } = await run([folder, "--name", "w.test/1", "--listen", address]);
    expect([address, code, err.includes("plain HTTP is for loopback")]).toEqual([address, 2, true]);
  }
  const behind = [folder, "--name", "w.test/1", "--listen", "0.0.0.0:0", "--behind-proxy"];
  expect(await run(behind)).toMatchObject({ code: 0, err: "" });
});

test("commands that are not well-formed exit with 2 and show how to write them", async () => {
  for (const args of [
    [],
    ["dir"],
    ["dir", "more", "--listen", "127.0.0.1:0"],
    ["dir", "--listen", "127.0.0.1"],
    ["dir", "--listen", ":7480"],
    ["dir", "--listen", "127.0.0.1:99999"],
    ["dir", "--listen", "127.0.0.1:0", "--cert", "x"],
    ["dir", "--listen", "127.0.0.1:0", "--algorithm", "rsa"],
    ["dir", "--liste", "127.0.0.1:0"],
    ["add-log", "dir"],
    ["add-log", "dir", "key", "more"],
    ["add-log", "dir", "key", "--listen", "127.0.0.1:0"],
    ["show"],
    ["show", "dir", "--behind-proxy"],
    ["drop-key", "dir"],
    ["drop-key", "dir", "key", "--name", "n"],
  ]) {
    const { code, err } = await run(args);
    expect([args, code, err.includes("Usage: glasskey-witness")]).toEqual([args, 2, true]);
  }
  expect(await run(["--help"])).toEqual({ code: 0, out: usageOf("glasskey-witness"), err: "" });
});
