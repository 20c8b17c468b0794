import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LogProof } from "@glasskey/contract";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";
import { addLog, openWitnessFolder, serveWitness } from "../../witness/src/index.ts";
import { runGlass, type Run } from "../testing/run.ts";

const PATIENCE = { timeout: 60_000, interval: 300 };
let system: TestSystem | undefined;
let homes = "";
let [url, vkey, caFile, policy] = ["", "", "", ""];
let cleanUp = async (): Promise<void> => {};
const run = (person: string, ...args: string[]): Promise<Run> => runGlass(homes, person, args);
const file = async (name: string, text: string): Promise<string> => {
  await writeFile(join(homes, name), text);
  return join(homes, name);
};

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-verify-"));
  const folder = join(homes, "witness");
  const witness = openWitnessFolder({ folder, name: "witness.example/w" });
  const server = await serveWitness({ witness, host: "127.0.0.1", port: 0, onProblem: () => {} });
  cleanUp = async () => {
    await server.stop();
    witness.close();
  };
  const of = [{ key: witness.signer.vkey, url: `http://127.0.0.1:${server.port}` }];
  system = await startTestSystem(inject("pg18"), {}, { witnesses: { need: 1, of } });
  const about = system.server();
  [url, vkey, caFile] = [`${about.url}/log/`, about.vkey, about.caFile];
  addLog(folder, vkey);
  policy = await file("policy", `log ${vkey}\nwitness w ${witness.signer.vkey}\nquorum w\n`);
  await runGlass(homes, "ida", ["login", "ida", "--server", about.url, "--ca", caFile], "a-secret-of-the-tests\n");
});
afterAll(async () => {
  await system?.dispose();
  await cleanUp();
  await rm(homes, { recursive: true, force: true });
});

test("glass verify reads a running server's log over HTTPS with the login's own token, and asks what witnesses saw", async () => {
  await expect
    .poll(async () => (await run("ida", "verify", url, "--witnesses", policy)).stdout, PATIENCE)
    .toMatch(/^✓ the first \d+ entr\w+ seen by witness\.example\/w \(policy: the witness witness\.example\/w\) at 20/m);
  const { code, stdout } = await run("ida", "verify", url, "--key", vkey);
  expect(code, stdout).toBe(0);
  expect(stdout).toContain("a URL does not list what it has");
  // Somebody without a login, or whose CA is another, is told what is missing.
  const stranger = await run("zoe", "verify", url, "--key", vkey, "--ca", caFile);
  expect([stranger.code, /was refused \(401\): it needs a token/.test(stranger.stdout)]).toEqual([1, true]);
  const unsure = await run("zoe", "verify", url, "--key", vkey);
  expect([unsure.code, /^✗ checkpoint/m.test(unsure.stdout)]).toEqual([1, true]);
  expect(unsure.stdout).toContain("Give the CA of the server's certificate: --ca FILE");
});

test("a proof that glass log prove printed verifies alone, under the witness policy, and for no other entry", async () => {
  await expect
    .poll(
      async () => (JSON.parse((await run("ida", "log", "status", "--json")).stdout) as { witnessed: number }).witnessed,
      PATIENCE,
    )
    .toBeGreaterThan(0);
  const { stdout } = await run("ida", "log", "prove", "0", "--json");
  const { proof, entry } = JSON.parse(stdout) as LogProof;
  const [proofFile, entryFile] = [await file("0.tlog-proof", proof), await file("entry.json", `${entry}\n`)];
  const alone = ["verify", "--proof", proofFile, "--entry", entryFile];
  expect(await run("zoe", ...alone, "--witnesses", policy)).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(
      /this is entry 0, .*\n✓ seen by witness\.example\/w .*\n- the line end .*\nThis proof verifies\.\n$/,
    ),
  });
  const edited = await file("edited.json", entry.replace("glasskey", "glassdoor"));
  const wrong = await run("zoe", "verify", "--proof", proofFile, "--entry", edited, "--key", vkey);
  expect(wrong).toMatchObject({ code: 1, stdout: expect.stringContaining("the entry is not the one at index 0") });
});

test("growth between two checkpoints is checked against a running server, without a token", async () => {
  const now = async (): Promise<string> => {
    const { code, stdout } = await run("ida", "verify", url, "--key", vkey, "--json");
    expect(code, stdout).toBe(0);
    return stdout;
  };
  const size = (JSON.parse(await now()) as { size: number }).size;
  const fetched = async (path: string): Promise<string> => {
    const { openUrl } = await import("@glasskey/verify");
    const { readFile } = await import("node:fs/promises");
    const source = openUrl({ url, ca: await readFile(caFile, "utf8") });
    try {
      return Buffer.from((await source.read(path, 1 << 20)) ?? "").toString();
    } finally {
      source.close();
    }
  };
  const [older, newer] = [
    await file("older", await fetched(`checkpoints/${size}`)),
    await file("newer", await fetched("checkpoint")),
  ];
  const grown = await run("zoe", "verify", url, "--key", vkey, "--since", older, "--until", newer, "--ca", caFile);
  expect(grown.stdout).toMatch(/^✓ \S+: grew from \d+ to \d+ entries by appending alone\n/);
  expect(grown.code).toBe(0);
  const forged = await file("forged", (await fetched("checkpoint")).replace(/\n\d+\n/, "\n1\n"));
  expect(
    (await run("zoe", "verify", url, "--key", vkey, "--since", forged, "--until", newer, "--ca", caFile)).code,
  ).toBe(1);
});

test("a key is copied from a server for comparison, and never replaced", async () => {
  const pinned = join(homes, "pinned.vkey");
  expect(await run("zoe", "verify", url, "--pin", pinned, "--ca", caFile)).toMatchObject({ code: 0 });
  expect(await run("zoe", "verify", url, "--pin", pinned, "--ca", caFile)).toMatchObject({ code: 2 });
  expect((await run("ida", "verify", url, "--key", pinned)).code).toBe(0);
});
