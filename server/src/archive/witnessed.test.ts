import { execFile } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { LogPage } from "@glasskey/contract";
import { createCosigner } from "@glasskey/verify";
import { afterEach, beforeEach, expect, inject, test, vi } from "vitest";
import { startTestSystem } from "../../testing/system.ts";
import { addLog, openWitnessFolder, serveWitness } from "../../../witness/src/index.ts";
import { createRig, DAY_MS, folderIn } from "./testing/rig.ts";

let folder: string;
const undo: (() => unknown)[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-witnessed-"));
  undo.push(() => rm(folder, { recursive: true, force: true }));
});
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

const run = promisify(execFile);
const GLASS = join(import.meta.dirname, "../../../cli/bin/glass.mjs");

async function glass(...args: string[]): Promise<{ code: number; output: string }> {
  try {
    const { stdout, stderr } = await run(process.execPath, [GLASS, ...args], { env: { PATH: process.env["PATH"] } });
    return { code: 0, output: stdout + stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, output: stdout + stderr };
  }
}

test("the folder of an archive verifies as it lies there, over many dated checkpoints and widths, and after each restored too", async () => {
  const rig = await createRig(inject("pg18"));
  undo.push(() => rig.dispose());
  const objects = folderIn(rig);
  const archive = rig.archive(objects);
  const place = join(rig.folder, "archive");
  const key = ["--key", rig.log.signer.vkey];
  for (const events of [2, 30, 224, 1, 300, 200]) {
    const size = await rig.grow(events);
    await archive.archiveNow();
    const lying = await glass("verify", place, ...key);
    expect(lying.output).toMatch(new RegExp(`^✓ .*: ${size.toLocaleString("en")} entries`));
    expect(lying.code).toBe(0);
    expect(await rig.restored(objects)).toMatchObject({ size, missing: [], notes: [], problems: [] });
  }
  // What is changed there is found there too.
  const bundle = join(place, "tile/entries/001");
  const bytes = await readFile(bundle);
  bytes[40] = (bytes[40] ?? 0) ^ 1;
  await rm(bundle);
  await writeFile(bundle, bytes);
  const changed = await glass("verify", place, ...key);
  expect(changed.output).toContain("tile/entries/001");
  expect(changed.code).toBe(1);
});

test("a log with a witness, archived: the restored folder says what was witnessed, and so does the archive as it lies there", async () => {
  const name = "witness.example/archive";
  const opened = openWitnessFolder({ folder: join(folder, "witness"), name });
  undo.push(() => opened.close());
  const server = await serveWitness({ witness: opened, host: "127.0.0.1", port: 0, onProblem: () => {} });
  undo.push(() => server.stop());
  const witness = { key: opened.signer.vkey, url: `http://127.0.0.1:${server.port}` };
  const place = join(folder, "archive");
  const system = await startTestSystem(
    inject("pg18"),
    {},
    {
      archive: { to: { kind: "folder", folder: place }, retainMs: DAY_MS, recordingsRetainMs: DAY_MS, everyMs: 60_000 },
      witnesses: { need: 1, of: [witness] },
    },
  );
  let gone = false;
  const dispose = async (): Promise<void> => {
    if (!gone) await system.dispose();
    gone = true;
  };
  undo.push(dispose);
  const { vkey } = system.server();
  addLog(join(folder, "witness"), vkey);
  const ann = await system.as("ann");
  const grant = await ann.break("repair");
  const client = await ann.connect(grant.grant);
  await client.query("select note from t where id = 7");
  await client.end();
  await ann.end(grant.grant);
  const ida = await system.as("ida");
  await vi.waitFor(
    async () => expect((await ida.call<LogPage>("GET", "/v1/log?from=0&limit=1")).witnessed).toBeGreaterThan(10),
    { timeout: 90_000, interval: 200 },
  );
  await system.stop();
  await dispose();

  const policy = join(folder, "policy");
  await writeFile(policy, `log ${vkey}\nwitness w ${witness.key}\nquorum w\n`);
  const [witnessed] = (await readdir(join(place, "witnessed"))).map(Number).toSorted((a, b) => b - a);
  expect(witnessed).toBeGreaterThan(10);
  const to = join(folder, "restored");
  const made = await glass("archive", "restore", "--from", place, "--to", to, "--key", vkey);
  expect(made).toMatchObject({ code: 0 });
  for (const where of [to, place]) {
    const verified = await glass("verify", where, "--key", vkey, "--witnesses", policy);
    expect(verified.output, where).toMatch(/witness/);
    expect(verified.output, where).toContain(`${witnessed}`);
    expect(verified.code, where).toBe(0);
  }
  const stranger = createCosigner(name, generateKeyPairSync("ed25519").privateKey).vkey;
  await writeFile(policy, `log ${vkey}\nwitness w ${stranger}\nquorum w\n`);
  for (const where of [to, place]) {
    expect(await glass("verify", where, "--key", vkey, "--witnesses", policy), where).toMatchObject({ code: 1 });
  }
});
