import { randomBytes } from "node:crypto";
import { join } from "node:path";
import {
  CreateBucketCommand,
  DeleteObjectCommand,
  ListObjectVersionsCommand,
  PutObjectCommand,
  PutObjectRetentionCommand,
} from "@aws-sdk/client-s3";
import { parseVerifierKeys } from "@glasskey/verify";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test, vi } from "vitest";
import { logSigner } from "../audit/fixtures/log.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import { s3Store } from "../objects/s3.ts";
import { motoMissing, s3ConfigFor, s3Secrets, startMoto, type Moto } from "../objects/testing/moto.ts";
import { restore } from "./restore.ts";
import { createRig, DAY_MS, type ArchiveRig } from "./testing/rig.ts";

const missing = motoMissing();
if (missing !== undefined) console.warn(`tests of the archive in S3 are skipped: ${missing}`);

describe.skipIf(missing !== undefined)("the archive in S3, against the emulator", () => {
  let moto: Moto;
  let rig: ArchiveRig;
  let Bucket: string;
  let objects: ObjectStore;
  const until = (what: () => unknown): Promise<unknown> => vi.waitFor(what, { timeout: 50_000, interval: 50 });
  const Key = (path: string): string => `gk/test/${path}`;

  beforeAll(async () => {
    moto = await startMoto();
  });
  afterAll(() => moto?.stop());
  beforeEach(async () => {
    rig = await createRig(inject("pg18"));
    Bucket = `gk-${randomBytes(6).toString("hex")}`;
    await moto.admin.send(new CreateBucketCommand({ Bucket, ObjectLockEnabledForBucket: true }));
    objects = s3Store(s3ConfigFor(moto.url, Bucket), s3Secrets);
  });
  afterEach(async () => {
    await rig.dispose();
    objects.close();
  });

  test("every object is locked in compliance mode, for as long as its class says, and listed with its version", async () => {
    await rig.grow(300);
    await rig.archive(objects).archiveNow();
    const rows = await rig.log.query("select path, version, locked_until, sha256 from archive_objects");
    expect(rows.rows.length).toBeGreaterThan(30);
    const listing = await moto.admin.send(new ListObjectVersionsCommand({ Bucket }));
    expect(listing.Versions?.map((one) => one.Key).toSorted()).toEqual(
      rows.rows.map((row) => Key(String(row["path"]))).toSorted(),
    );
    for (const row of rows.rows) {
      const [path, version] = [String(row["path"]), String(row["version"])];
      const { lock } = (await objects.head(path, version)) ?? {};
      expect(lock?.mode, path).toBe("COMPLIANCE");
      const days = path.startsWith("chunks/") ? 100 : 400;
      expect(lock?.until.getTime(), path).toBeGreaterThan(Date.now() + (days - 1) * DAY_MS);
      const remove = new DeleteObjectCommand({ Bucket, Key: Key(path), VersionId: version });
      await expect(moto.admin.send(remove), path).rejects.toThrow("Access Denied");
    }
  });

  test("an insider with all rights on the bucket hides, covers and adds: found, alarmed, and the restore is whole", async () => {
    const size = await rig.grow(300);
    const archive = rig.archive(objects, { pollMs: 50, recheckMs: 0 });
    await archive.archiveNow();
    const chunk = [...rig.chunks.keys()][0] ?? "";
    const hidden = ["tile/0/000", "tile/entries/000", `checkpoints/${size}`, chunk, "tile/1/000.p/1"];
    for (const path of hidden) await moto.admin.send(new DeleteObjectCommand({ Bucket, Key: Key(path) }));
    const covered = ["tile/0/001.p/44", "tile/entries/001.p/44", [...rig.chunks.keys()][1] ?? ""];
    for (const path of covered) {
      await moto.admin.send(new PutObjectCommand({ Bucket, Key: Key(path), Body: Buffer.alloc(44 * 32, 7) }));
    }
    await moto.admin.send(new PutObjectCommand({ Bucket, Key: Key("checkpoints/9999999"), Body: "not a note" }));

    const found = async (): Promise<Map<string, string>> =>
      new Map((await archive.status()).faults.map(({ path, fault }) => [path, fault]));
    await until(async () => expect([...(await found()).keys()]).toEqual([...hidden, ...covered].toSorted()));
    for (const path of hidden) expect((await found()).get(path)).toContain("hidden by a mark of deletion");
    for (const path of covered) expect((await found()).get(path)).toContain("covered by another version");
    expect(rig.alarms.get("archive changed")).toBeDefined();

    const restored = await rig.restored(objects);
    expect(restored).toMatchObject({ size, chunks: 30, missing: [], problems: [] });
    expect(restored.notes).toEqual([expect.stringContaining("checkpoints/9999999 is passed over")]);
  });

  test("a lock that the service shortened, or an object that is gone all the same, is found by looking again", async () => {
    await rig.grow(20);
    const archive = rig.archive(objects, { pollMs: 50, recheckMs: 0 });
    await archive.archiveNow();
    const rows = await rig.log.query(
      "select path, version from archive_objects where path like 'tile/%' order by path",
    );
    const [first, second] = rows.rows.map((row) => ({
      Bucket,
      Key: Key(String(row["path"])),
      VersionId: String(row["version"]),
    }));
    const shorten = (RetainUntilDate: Date) => ({ Mode: "COMPLIANCE", RetainUntilDate }) as const;
    await moto.admin.send(
      new PutObjectRetentionCommand({ ...first, Retention: shorten(new Date(Date.now() + DAY_MS)) } as never),
    );
    await moto.admin.send(
      new PutObjectRetentionCommand({ ...second, Retention: shorten(new Date(Date.now() - 1_000)) } as never),
    );
    await moto.admin.send(new DeleteObjectCommand(second as never));
    await until(async () => {
      const faults = (await archive.status()).faults.map(({ fault }) => fault);
      expect(faults).toEqual([expect.stringMatching(/^is locked until/), expect.stringMatching(/^is gone, version/)]);
    });
  });

  test("a bucket without Object Lock is refused with an alarm that says what to do; nothing is written to it", async () => {
    const size = await rig.grow(5);
    const plain = `gk-${randomBytes(6).toString("hex")}`;
    await moto.admin.send(new CreateBucketCommand({ Bucket: plain }));
    const unlocked = s3Store(s3ConfigFor(moto.url, plain), s3Secrets);
    const archive = rig.archive(unlocked, { pollMs: 50 });
    await until(() =>
      expect(rig.alarms.get("archive behind")).toContain("Make a bucket with versioning and Object Lock"),
    );
    expect(await archive.status()).toMatchObject({ refused: true, size: 0, objects: 0, logSize: size });
    expect((await moto.admin.send(new ListObjectVersionsCommand({ Bucket: plain }))).Versions ?? []).toEqual([]);
  });

  test("with the key of another log nothing is restored; without any, the newest that fits its own tree is", async () => {
    const size = await rig.grow(10);
    await rig.archive(objects).archiveNow();
    const keys = parseVerifierKeys(logSigner("another seed").vkey);
    const nothing = restore({ source: objects, folder: join(rig.folder, "nothing"), keys, say: () => {} });
    await expect(nothing).rejects.toMatchObject({ code: "not_found" });
    const folder = join(rig.folder, "unverified");
    expect(await restore({ source: objects, folder, keys: undefined, say: () => {} })).toMatchObject({
      size,
      missing: [],
    });
    await expect(restore({ source: objects, folder, keys: undefined, say: () => {} })).rejects.toMatchObject({
      code: "conflict",
    });
  });
});
