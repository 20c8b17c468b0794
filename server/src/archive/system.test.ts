import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { CreateBucketCommand, ListObjectVersionsCommand } from "@aws-sdk/client-s3";
import type { ArchiveAnswer, LogPage } from "@glasskey/contract";
import { afterEach, expect, inject, test, vi } from "vitest";
import { startTestSystem } from "../../testing/system.ts";
import { KEY_ID, motoMissing, s3ConfigFor, SECRET_KEY, startMoto } from "../objects/testing/moto.ts";
import { DAY_MS } from "./testing/rig.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

const run = promisify(execFile);
const GLASS = join(import.meta.dirname, "../../../cli/bin/glass.mjs");

/** `glass …` in a process of its own: what it prints and its exit code. */
async function glass(
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<{ code: number; output: string }> {
  try {
    const { stdout, stderr } = await run(process.execPath, [GLASS, ...args], {
      env: { PATH: process.env["PATH"], ...env },
    });
    return { code: 0, output: stdout + stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, output: stdout + stderr };
  }
}

async function temporary(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-restore-"));
  undo.push(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

const WHEN = { retainMs: 400 * DAY_MS, recordingsRetainMs: 90 * DAY_MS, everyMs: 3_600_000 };

test("everything else is gone, store, data folder and process: from the archive alone comes a log that verifies", async () => {
  const folder = await temporary();
  const archive = join(folder, "archive");
  const system = await startTestSystem(
    inject("pg18"),
    {},
    { archive: { to: { kind: "folder", folder: archive }, ...WHEN } },
  );
  let gone = false;
  const dispose = async (): Promise<void> => {
    if (!gone) await system.dispose();
    gone = true;
  };
  undo.push(dispose);
  const ann = await system.as("ann");
  const grant = await ann.break("repair");
  const client = await ann.connect(grant.grant);
  await client.query("select note from t where id = 7");
  await client.end();
  await ann.end(grant.grant);
  const { vkey } = system.server();

  const ida = await system.as("ida");
  const before = await ida.call<ArchiveAnswer>("GET", "/v1/archive");
  expect(before.archive).toMatchObject({ place: archive, refused: false, faults: [], owed: 0 });
  await expect(ann.refused("GET", "/v1/archive")).resolves.toMatchObject({ status: 403 });
  const page = await ida.call<LogPage>("GET", "/v1/log?from=0&limit=1");
  expect(page.archived).toBeTypeOf("number");
  const env = { GLASSKEY_HOME: join(folder, "home") };
  await writeFile(join(folder, "secret"), "a-secret-of-the-tests\n");
  const { url, caFile } = system.server();
  const login = ["login", "ida", "--server", url, "--ca", caFile, "--secret-file", join(folder, "secret")];
  expect(await glass(login, env)).toMatchObject({ code: 0 });
  const status = await glass(["archive", "status"], env);
  expect(status.code).toBe(0);
  expect(status.output).toContain(archive);
  expect(status.output).toMatch(/kept +log 400 d, recordings 90 d/);
  await system.stop(); // archives the rest, the last entry too
  await dispose();
  expect(await readdir(join(archive, "chunks"))).toHaveLength(1);

  const to = join(folder, "restored");
  const made = await glass(["archive", "restore", "--from", archive, "--to", to, "--key", vkey]);
  expect(made.output).toMatch(/\d chunks? of recordings are in/);
  expect(made.code).toBe(0);
  const verified = await glass(["verify", to, "--key", vkey]);
  expect(verified.output).toMatch(/^✓ .* entries/);
  expect(verified.code).toBe(0);
  const bundles = await readdir(join(to, "tile/entries"), { recursive: true });
  expect(bundles.length).toBeGreaterThan(0);

  const within = ["archive", "restore", "--from", archive, "--to", join(archive, "restored"), "--key", vkey];
  expect((await glass(within)).output).toContain("--to is within the archive");
  expect(await readdir(archive)).not.toContain("restored");
  const wrong = await glass(["archive", "restore", "--from", archive, "--to", join(folder, "no"), "--key", "x"]);
  expect(wrong.code).toBe(2);
  expect((await glass(["archive", "restore", "--from", archive, "--to", to, "--unverified"])).code).toBe(1);
  expect((await glass(["archive", "restore", "--to", to])).code).toBe(2);
});

const missing = motoMissing();
test.skipIf(missing !== undefined)(
  "with S3: chunks shared by processes, archive and mirror, keys from references; restored with the keys of the environment",
  async () => {
    const folder = await temporary();
    const moto = await startMoto();
    undo.push(() => moto.stop());
    const [worm, chunks, mirror] = ["worm", "chunks", "mirror"].map(
      (name) => `gk-${name}-${randomBytes(4).toString("hex")}`,
    );
    for (const Bucket of [worm, chunks, mirror]) {
      await moto.admin.send(new CreateBucketCommand({ Bucket, ObjectLockEnabledForBucket: Bucket === worm }));
    }
    await writeFile(join(folder, "id"), `${KEY_ID}\n`);
    await writeFile(join(folder, "secret"), `${SECRET_KEY}\n`);
    const credentials = {
      accessKey: `\${file:${join(folder, "id")}}`,
      secretKey: `\${file:${join(folder, "secret")}}`,
    };
    const at = (bucket = "", prefix = "") => s3ConfigFor(moto.url, bucket, { prefix, credentials });
    const system = await startTestSystem(
      inject("pg18"),
      {},
      {
        archive: { to: { kind: "s3", ...at(worm, "prod") }, ...WHEN },
        mirror: { kind: "s3", ...at(mirror) },
        recordings: { mirror: undefined, keepMs: undefined, store: at(chunks, "chunks") },
      },
    );
    undo.push(() => system.dispose());
    const ann = await system.as("ann");
    const grant = await ann.break("repair");
    const client = await ann.connect(grant.grant);
    await client.query("select note from t where id = 7");
    await client.end();
    await ann.end(grant.grant);

    // Another process, with a data folder of its own, reads what this one sealed.
    const [session] = await system.storeQuery<{ id: string }>("select id from sessions");
    const second = await system.startSecond();
    await vi.waitFor(
      async () => {
        const rows = await system.storeQuery<{ done: boolean }>("select recording_complete as done from sessions");
        expect(rows).toEqual([{ done: true }]);
      },
      { timeout: 50_000, interval: 100 },
    );
    const ida = await system.as("ida", second);
    const chunk = await ida.refused("GET", `/log/chunks/${session?.id}/999.gkc`);
    expect(chunk.status).toBe(404);
    expect(await readdir(join(system.config.dataDir, "chunks")).catch(() => [])).toEqual([]);
    const keys = (await moto.admin.send(new ListObjectVersionsCommand({ Bucket: chunks }))).Versions?.map(
      (one) => one.Key,
    );
    expect(keys?.every((key) => key?.startsWith(`chunks/${session?.id}/`))).toBe(true);
    const { vkey } = system.server();
    await vi.waitFor(
      async () => {
        const found = (await moto.admin.send(new ListObjectVersionsCommand({ Bucket: mirror }))).Versions ?? [];
        expect(found.some((one) => one.Key === "checkpoint")).toBe(true);
      },
      { timeout: 50_000, interval: 200 },
    );
    await second.stop();
    await system.stop();
    expect(system.warnings.join("\n")).not.toContain(SECRET_KEY);

    const env = {
      AWS_ACCESS_KEY_ID: KEY_ID,
      AWS_SECRET_ACCESS_KEY: SECRET_KEY,
      AWS_ENDPOINT_URL: "http://127.0.0.1:9",
    };
    const to = join(folder, "restored");
    const from = ["--from", `s3://${worm}/prod`, "--endpoint", moto.url];
    const made = await glass(["archive", "restore", ...from, "--to", to, "--key", vkey, "--json"], env);
    expect(made.output).toContain('"missing":[]');
    expect(made.code).toBe(0);
    expect((await glass(["verify", to, "--key", vkey])).code).toBe(0);
  },
);
