import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import {
  buildLog,
  checkpointAt,
  cosigned,
  recordedSession,
  testSigner,
  testWitness,
  writeFolder,
  type TestFolder,
} from "../testing/log.ts";
import { runCli } from "./cli.ts";
import type { NoteSigner } from "./note.ts";
import type { Report } from "./report.ts";

const cleanup: TestFolder[] = [];
afterEach(() => {
  for (const folder of cleanup.splice(0)) folder.dispose();
});

const session = recordedSession("se_0123456789ab", 3);
const events = Array.from({ length: 300 }, (_, n) => JSON.stringify({ data: { n }, type: "login.succeeded" }));
const log = buildLog({ entries: [...events, ...session.entries], chunks: session.files, kept: [5] });
const vkey = log.signer.vkey;

function folder(): TestFolder {
  const made = writeFolder(log.files);
  cleanup.push(made);
  return made;
}

async function run(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ["", ""];
  const code = await runCli(
    args,
    (text) => (out += text),
    (text) => (err += text),
    { settleMs: 0 },
  );
  return { code, out, err };
}

test("it exits with 0 only for a log that verifies, and says what is wrong and where", async () => {
  const { folder: dir, write } = folder();
  const sound = await run(dir, "--key", vkey);
  expect(sound).toMatchObject({ code: 0, err: "" });
  expect(sound.out).toContain("glasskey.test/log: 303 entries");
  expect(sound.out).toContain("3 chunks of 1 recorded session");
  expect(sound.out).toMatch(/Everything verifies\.\n$/);

  write("chunks/se_0123456789ab/1.gkc", Buffer.from("swapped"));
  const broken = await run(dir, "--key", vkey);
  expect(broken.code).toBe(1);
  expect(broken.out).toMatch(/^✗ chunks\/se_0123456789ab\/1\.gkc, entry 301: was changed: .*\n/);
  expect(broken.out).toMatch(/This log does not verify: 1 problem\.\n$/);
  expect(broken.out).not.toContain("✓");

  const json = await run(dir, "--key", vkey, "--json");
  const report = JSON.parse(json.out) as Report;
  expect([json.code, report.ok, report.problems[0]?.entry]).toEqual([1, false, 301]);
  const logAlone = await run(dir, "--key", vkey, "--no-recordings");
  expect(logAlone).toMatchObject({ code: 0, out: expect.stringContaining("recordings were not looked at") });
});

test("the key comes as text or from a file, and never from the folder by itself", async () => {
  const { folder: dir } = folder();
  const file = join(dir, "..", `${Date.now()}-${process.pid}.vkey`);
  cleanup.push({ folder: file, write: () => {}, remove: () => {}, dispose: () => spawnSync("rm", ["-f", file]) });
  expect(await run(dir)).toMatchObject({ code: 2, out: "", err: expect.stringContaining("proves nothing") });
  const pinned = await run(dir, "--pin", file);
  expect(pinned.code).toBe(0);
  expect(pinned.out).toContain("Nothing is verified yet");
  expect(await run(dir, "--key", file)).toMatchObject({ code: 0 });
  expect(await run(dir, "--pin", file)).toMatchObject({ code: 2 }); // a pin is never replaced
  expect((await run(dir, "--key", testSigner("other").vkey)).code).toBe(1);
  expect((await run(dir, "--key", "no+such+key")).code).toBe(2);
  const typo = await run(dir, "--key", join(dir, "nothing"));
  expect(typo).toEqual({
    ...{ code: 2, out: "" },
    err: `glasskey-verify: cannot read ${join(dir, "nothing")}: there is no such file\n`,
  });
});

test("a folder that is not the log's is said to be none, and where the log is", async () => {
  const { folder: dir } = folder();
  const above = writeFolder(new Map());
  cleanup.push(above);
  mkdirSync(join(above.folder, "data"));
  symlinkSync(dir, join(above.folder, "data", "log"));
  const wrong = await run(join(above.folder, "data"), "--key", vkey);
  expect([wrong.code, wrong.out]).toEqual([
    1,
    expect.stringContaining(`There is one in ${join(above.folder, "data", "log")}.`),
  ]);
  expect((await run(join(above.folder, "dta"), "--key", vkey)).out).toContain("There is no folder");
});

test("a pinned key is shown as it is, and every key that will be believed is to be compared", async () => {
  const { folder: dir, write } = folder();
  const target = (name: string): string => join(dir, name);
  for (const name of ["glasskey.test/log\u009b2J", "glasskey.test/\u202egol", "glasskey.test/lo\u200bg", "w\u007f"]) {
    for (const key of [testSigner("evil", name), testWitness("evil", "ed25519", name)]) {
      write("log.vkey", Buffer.from(`${key.vkey}\n`));
      const { code, out, err } = await run(dir, "--pin", target("pinned"));
      expect([code, out, /[\p{Cf}\u007f-\u009f]/u.test(err)]).toEqual([2, "", false]);
      expect(existsSync(target("pinned"))).toBe(false);
    }
  }
  write("log.vkey", Buffer.from(`${vkey}\n${testSigner("evil").vkey}\n`));
  expect((await run(dir, "--pin", target("two"))).out).toContain(
    "Each of these 2 keys will be believed: compare every",
  );
});

test("what no witness saw yet is said on a line of its own and in the last one, in words and in JSON", async () => {
  const { folder: dir, write } = folder();
  const [w1, w2] = [testWitness("w1"), testWitness("w2")];
  write("checkpoint.witnessed", Buffer.from(cosigned(checkpointAt(log.entries, 3, log.signer), [w1, w2])));
  const policy = (logKey: string): string => {
    const file = writeFolder(new Map());
    cleanup.push(file);
    const text = `log ${logKey}\nwitness a ${w1.vkey}\nwitness b ${w2.vkey}\ngroup g all a b\nquorum g\n`;
    file.write("policy", Buffer.from(text));
    return join(file.folder, "policy");
  };
  const { code, out } = await run(dir, "--witnesses", policy(vkey));
  expect([code, out.includes("\n- not witnessed yet, so with the log's word alone: 300 newer entries\n")]).toEqual([
    0,
    true,
  ]);
  expect(out).toMatch(/\nEverything verifies; witnesses saw 3 of 303\.\n$/);
  const json = await run(dir, "--witnesses", policy(vkey), "--no-recordings", "--json");
  expect(JSON.parse(json.out)).toMatchObject({ ok: true, recordings: false, witnessed: { size: 3, unwitnessed: 300 } });
  expect(await run(dir, "--witnesses", policy(vkey), "--key", vkey)).toMatchObject({ code: 0 });
  // A policy that names other logs is not one for this log.
  const foreign = await run(dir, "--witnesses", policy(testSigner("other").vkey), "--key", vkey);
  expect(foreign).toMatchObject({ code: 2, err: expect.stringContaining("the witness policy is for other logs") });
});

test("an address that is not the log's is answered with the form that it has", async () => {
  const server = createServer((_request, response) => void response.writeHead(404).end());
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const { port } = server.address() as AddressInfo;
    const { code, out } = await run(`http://127.0.0.1:${port}/`, "--key", vkey);
    expect([code, out]).toEqual([1, expect.stringContaining("https://HOST:PORT/log/")]);
  } finally {
    server.close();
  }
});

test("a remembered checkpoint is read from a file", async () => {
  const { folder: dir, write } = folder();
  expect((await run(dir, "--key", vkey, "--since", join(dir, "checkpoints/5"))).code).toBe(0);
  const forked = checkpointAt([...log.entries].toReversed(), 7, log.signer);
  const remembered = writeFolder(new Map([["remembered", Buffer.from(forked)]]));
  cleanup.push(remembered);
  const since = await run(dir, "--key", vkey, "--since", join(remembered.folder, "remembered"));
  expect(since.out).toContain("✗ remembered checkpoint: signs another history: the first 7 entries");
  expect(since.code).toBe(1);
  write("checkpoint", Buffer.alloc(0));
  expect((await run(dir, "--key", vkey)).out).toMatch(/^✗ checkpoint: /);
});

test("commands that are not well-formed exit with 2 and show how to write them", async () => {
  for (const args of [[], ["a", "b"], ["a", "--kee", "x"], ["a", "--key"], ["a", "--pin", "x", "--key", "y"]]) {
    const { code, err } = await run(...args);
    expect([args, code, err.includes("Usage: glasskey-verify")]).toEqual([args, 2, true]);
  }
  expect((await run("--help")).code).toBe(0);
});

test("options that do not go together, or mean nothing where they stand, are refused", async () => {
  for (const line of [
    "--proof p",
    "--entry e --key k",
    "dir --proof p --entry e --key k",
    "--proof p --entry e --key k --since s",
    "--proof p --entry e",
    "dir --key k --until u",
    "dir --key k --since s --until u --witnesses w",
    "dir --key k --max-unwitnessed 3",
    "dir --witnesses w --max-unwitnessed many",
    "dir --key k --ca c",
    "dir --key k --token-file t",
    "dir --pin f --since s",
    "http://example.org/log --key a+b",
    "https://user:pw@example.org/log --key a+b",
  ]) {
    const { code, out, err } = await run(...line.split(" "));
    expect([line, code, out, err.startsWith("glasskey-verify: ")]).toEqual([line, 2, "", true]);
  }
});

test("the program itself runs, prints and exits alike", () => {
  const { folder: dir, remove } = folder();
  const program = join(import.meta.dirname, "../bin/glasskey-verify.mjs");
  const start = (): { status: number | null; stdout: string } =>
    spawnSync(process.execPath, [program, dir, "--key", vkey], { encoding: "utf8" });
  expect(start()).toMatchObject({ status: 0, stdout: expect.stringContaining("Everything verifies.") });
  remove("tile/0/000");
  expect(start()).toMatchObject({ status: 1, stdout: expect.stringContaining("✗ tile/0/000: is missing") });
});

const tools = [
  ["python3", "-c", "import hashlib"],
  ["openssl", "version"],
].every(([program = "", ...args]) => spawnSync(program, args).status === 0);

test.runIf(tools)(
  "the independent program in docs/audit-log.md agrees with the verifier, on sound and on edited logs",
  () => {
    const docs = readFileSync(join(import.meta.dirname, "../../docs/audit-log.md"), "utf8");
    const program = /```python\n(#!\/usr\/bin\/env python3\n[\s\S]*?)```/.exec(docs)?.[1] ?? "";
    const { folder: dir, write } = folder();
    const script = join(dir, "check.py");
    writeFileSync(script, program);
    const check = (key = vkey): { status: number | null; stdout: string; stderr: string } =>
      spawnSync("python3", [script, dir, key], { encoding: "utf8" });
    expect(check()).toMatchObject({
      status: 0,
      stdout: "glasskey.test/log: 303 entries have the signed root; 3 chunks hash as logged\n",
    });
    for (const path of ["checkpoint", "tile/entries/000", "tile/entries/001.p/47", "chunks/se_0123456789ab/2.gkc"]) {
      const bytes = log.files.get(path) ?? Buffer.alloc(0);
      const edited = Buffer.from(bytes);
      edited[20] = (edited[20] ?? 0) ^ 1;
      write(path, edited);
      expect(check().status, path).toBe(1);
      write(path, bytes);
    }
    expect(check(testSigner("other").vkey).status).toBe(1);
    expect(check().status).toBe(0);
    // What witnesses saw must be a beginning of it, by each of their keys.
    const [w1, w2] = [testWitness("w1"), testWitness("w2")];
    const asked = (): number | null => spawnSync("python3", [script, dir, vkey, w1.vkey, w2.vkey]).status;
    const saw = (size: number, by: readonly NoteSigner[], entries = log.entries): number | null => {
      write("checkpoint.witnessed", Buffer.from(cosigned(checkpointAt(entries, size, log.signer), by)));
      return asked();
    };
    expect([asked(), saw(290, [w1, w2]), saw(303, [w1, w2]), saw(0, [w1, w2])]).toEqual([1, 0, 0, 1]);
    expect([saw(290, [w1]), saw(290, [w1, w2], log.entries.toReversed())]).toEqual([1, 1]);
    expect(existsSync(join(dir, "checkpoint"))).toBe(true);
  },
);
