import { randomBytes } from "node:crypto";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CreateBucketCommand, ListObjectsV2Command } from "@aws-sdk/client-s3";
import type { StandingView } from "@glasskey/contract";
import { verifyFolder } from "@glasskey/verify";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";
import { abandonLostJournal } from "../lost-journal.ts";
import { KEY_ID, motoMissing, s3ConfigFor, startMoto } from "../objects/testing/moto.ts";
import { testFolder } from "./testing/journal.ts";

let system: TestSystem;
beforeAll(async () => {
  system = await startTestSystem(inject("pg18"));
});
afterAll(() => system.dispose());

/** `glass serve` with these words on the system's own configuration. */
async function serve(...args: string[]): Promise<{ code: number | null; output: string }> {
  const file = join(system.config.dataDir, "..", "glasskey.yaml");
  const glass = join(import.meta.dirname, "../../../cli/bin/glass.mjs");
  const child = spawn(process.execPath, [glass, "serve", "--config", file, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const [code] = (await once(child, "close")) as [number | null];
  return { code, output };
}

test("a journal that is lost for good is given up by name: its recordings end, the log says so, and Glasskey opens again", async () => {
  await system.stop();
  const running = await system.startProcess(); // also writes the configuration that the command reads
  const ann = await system.as("ann", running);
  const { grant } = await ann.break("repair");
  const connection = await ann.connect(grant);
  await connection.query("select 1");
  await connection.query("select 2");
  const node = (await readFile(join(system.config.dataDir, "node"), "utf8")).trim();
  const busy = await serve("--abandon-journal", node, "--yes");
  expect(busy).toMatchObject({ code: 1, output: expect.stringContaining("data folder") }); // it runs
  await running.kill();
  await rm(join(system.config.dataDir, "journal"), { recursive: true, force: true }); // the disk is gone

  await system.start();
  const sealed = await (await system.as("ann")).call<StandingView>("GET", "/v1/health");
  expect(sealed.shut).toContainEqual(expect.objectContaining({ reason: "recording", code: "integrity" }));
  await system.stop();

  for (const [args, message] of [
    [["--abandon-journal", "nd_00000000", "--yes"], node],
    [["--abandon-journal", "../journal", "--yes"], "looks like"],
    [["--abandon-journal", node], "--yes"],
    [["--yes"], "--abandon-journal"],
  ] as const) {
    const { code, output } = await serve(...args);
    expect(code, output).not.toBe(0);
    expect(output).toContain(message);
  }
  await system.storeQuery("insert into nodes (id) values ($1)", [node]);
  expect(await serve("--abandon-journal", node, "--yes")).toMatchObject({
    code: 1,
    output: expect.stringContaining("alive"),
  });
  await system.storeQuery("delete from nodes where id = $1", [node]);

  const [session] = await system.storeQuery<{ id: string }>("select id from sessions where grant_id = $1", [grant]);
  const given = await serve("--abandon-journal", node, "--yes");
  expect(given.output).toContain(session?.id);
  expect(given.code).toBe(0);
  const around = await readdir(system.config.dataDir);
  expect(around.some((name) => name.startsWith("journal.lost-"))).toBe(true);

  await system.start();
  const again = await system.as("ann");
  expect(await again.call<StandingView>("GET", "/v1/health")).toMatchObject({ opening: true, shut: [] });
  expect((await again.end(grant)).state).toBe("closed");
  const ida = await system.as("ida");
  for (let tries = 0; ; tries += 1) {
    const { entries } = await ida.call<{ entries: { entry: { type: string; data?: object } }[] }>(
      "GET",
      "/v1/log?from=0",
    );
    const told = entries.find(({ entry }) => entry.type === "recording.journal_lost");
    if (told !== undefined) {
      expect(told.entry.data).toMatchObject({ node, sessions: 1 });
      break;
    }
    if (tries > 400) throw new Error("the log does not say so");
    await new Promise((done) => setTimeout(done, 25));
  }
  const open = await system.storeQuery("select id from sessions where not recording_complete");
  expect(open).toEqual([]);
  const { logDir, vkey } = system.server();
  await system.stop();
  expect(await verifyFolder({ folder: logDir, vkey })).toMatchObject({ ok: true });
  expect(existsSync(join(system.config.dataDir, "journal"))).toBe(true);
});

const isRoot = process.getuid?.() === 0;
test.skipIf(!isRoot)(
  "a journal whose second folder is a disk of its own, which cannot be renamed, is put aside on that disk",
  async (context) => {
    const disk = await mkdtemp(join(tmpdir(), "glasskey-disk-"));
    const mount = spawnSync("mount", ["-t", "tmpfs", "-o", "size=300m", "none", disk]);
    if (mount.status !== 0) await rm(disk, { recursive: true });
    context.skip(mount.status !== 0, "nothing may be mounted here");
    let second: TestSystem | undefined;
    try {
      second = await startTestSystem(inject("pg18"), {}, { recordings: { mirror: disk, keepMs: undefined } });
      const ann = await second.as("ann");
      const { grant } = await ann.break("repair");
      const client = await ann.connect(grant);
      await client.query("select 1");
      await client.end();
      await second.stop();
      const node = (await readFile(join(second.config.dataDir, "node"), "utf8")).trim();
      const { kept } = await abandonLostJournal(second.config, node);
      expect(kept).toEqual([
        expect.stringContaining("journal.lost-"),
        expect.stringMatching(new RegExp(`^${disk}/lost-`)),
      ]);
      expect((await readdir(kept[1] ?? "")).some((name) => name.endsWith(".gkj"))).toBe(true);
      expect(await readdir(disk)).toEqual([expect.stringMatching(/^lost-/)]);
      await second.start();
      const again = await second.as("ann");
      expect(await again.call<StandingView>("GET", "/v1/health")).toMatchObject({ opening: true, shut: [] });
      const more = await again.connect(grant);
      await more.query("select 2");
      await more.end();
    } finally {
      await second?.dispose();
      spawnSync("umount", [disk]);
      await rm(disk, { recursive: true, force: true });
    }
  },
);

const noS3 = motoMissing();
if (noS3 !== undefined) console.warn(`a lost journal with recordings in S3 is not tested: ${noS3}`);
test.skipIf(noS3 !== undefined)(
  "where recordings are in S3, the end of a recording whose journal was given up is there, too",
  async () => {
    await using place = await testFolder();
    const moto = await startMoto();
    let third: TestSystem | undefined;
    try {
      const Bucket = `gk-${randomBytes(6).toString("hex")}`;
      await moto.admin.send(new CreateBucketCommand({ Bucket }));
      const key = join(place.path, "key");
      await writeFile(key, KEY_ID);
      const credentials = { accessKey: `\${file:${key}}`, secretKey: `\${file:${key}}` };
      const store = s3ConfigFor(moto.url, Bucket, { credentials });
      third = await startTestSystem(
        inject("pg18"),
        {},
        { recordings: { mirror: undefined, keepMs: undefined, store } },
      );
      const ann = await third.as("ann");
      const { grant } = await ann.break("repair");
      const client = await ann.connect(grant);
      await client.query("select 'in S3'");
      await client.end();
      await ann.end(grant);
      await third.stop();
      const node = (await readFile(join(third.config.dataDir, "node"), "utf8")).trim();
      // As it is when the process died before the end was sealed.
      const [row] = await third.storeQuery<{ id: string; sealed_chunks: number }>(
        "update sessions set recording_complete = false returning id, sealed_chunks",
      );
      expect((await abandonLostJournal(third.config, node)).sessions).toEqual([row?.id]);
      expect(existsSync(join(third.config.dataDir, "chunks"))).toBe(false);
      const { Contents } = await moto.admin.send(new ListObjectsV2Command({ Bucket }));
      expect(Contents?.filter(({ Key }) => Key?.includes(row?.id ?? "-"))).toHaveLength((row?.sealed_chunks ?? 0) + 1);
      await third.start();
      const sam = await third.as("sam");
      const found = await sam.call("POST", "/v1/recordings/search", { text: "the rest of the recording was lost" });
      expect(found).toMatchObject({ problems: [], sessions: 1 });
    } finally {
      await third?.dispose();
      await moto.stop();
    }
  },
);
