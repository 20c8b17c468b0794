import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import {
  CreateBucketCommand,
  DeleteObjectCommand,
  PutBucketVersioningCommand,
  PutObjectCommand,
  PutObjectRetentionCommand,
} from "@aws-sdk/client-s3";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createAuthority, issueServerCertificate } from "../core/certificates.ts";
import { GlassError } from "../core/errors.ts";
import { Secret } from "../core/secret.ts";
import type { S3Config } from "./config.ts";
import type { ObjectStore } from "./object-store.ts";
import { s3Store } from "./s3.ts";
import { startMeddler, type Answer, type Meddler, type Meddling } from "./testing/meddler.ts";
import { KEY_ID, motoMissing, s3ConfigFor, s3Secrets, SECRET_KEY, startMoto, type Moto } from "./testing/moto.ts";

const missing = motoMissing();
if (missing !== undefined) console.warn(`tests against an S3 with Object Lock are skipped: ${missing}`);

const DAY_MS = 24 * 3_600_000;

describe.skipIf(missing !== undefined)("S3, against the emulator", () => {
  let moto: Moto;
  let meddler: Meddler;
  const undo: (() => void)[] = [];
  beforeAll(async () => {
    moto = await startMoto();
    meddler = await startMeddler(moto.url);
  });
  afterAll(async () => {
    await meddler?.stop();
    await moto?.stop();
  });
  afterEach(() => {
    meddler.meddling = {};
    for (const step of undo.splice(0)) step();
  });

  async function bucketWith(options: { lock?: boolean; versions?: boolean } = {}): Promise<string> {
    const Bucket = `gk-${randomBytes(6).toString("hex")}`;
    const { lock = true, versions = lock } = options;
    await moto.admin.send(new CreateBucketCommand({ Bucket, ObjectLockEnabledForBucket: lock }));
    if (versions && !lock) {
      const VersioningConfiguration = { Status: "Enabled" } as const;
      await moto.admin.send(new PutBucketVersioningCommand({ Bucket, VersioningConfiguration }));
    }
    return Bucket;
  }
  function storeAt(url: string, bucket: string, more: Partial<S3Config> = {}): ObjectStore {
    const store = s3Store(s3ConfigFor(url, bucket, more), s3Secrets);
    undo.push(() => store.close());
    return store;
  }
  const Key = (path: string): string => `gk/test/${path}`;
  const bytes = (text: string): Buffer => Buffer.from(text);
  async function listed(store: ObjectStore, folder: string): Promise<string[]> {
    const paths: string[] = [];
    for await (const path of store.list(folder)) paths.push(path);
    return paths.toSorted();
  }

  test("what is written is read back, with its version and its lock; again with the same bytes is the same version", async () => {
    const bucket = await bucketWith();
    const store = storeAt(moto.url, bucket);
    await store.preflight(true);
    const first = await store.put("tile/0/000", bytes("one"), { retainMs: 400 * DAY_MS });
    expect(first.lock?.mode).toBe("COMPLIANCE");
    expect(first.lock?.until.getTime()).toBeGreaterThan(Date.now() + 399 * DAY_MS);
    expect(await store.put("tile/0/000", bytes("one"), { retainMs: 400 * DAY_MS })).toEqual(first);
    expect(await store.versions("tile/0/000")).toEqual([{ version: first.version, deleted: false, latest: true }]);
    expect(await store.get("tile/0/000", 3)).toEqual(bytes("one"));
    await expect(store.get("tile/0/000", 2)).rejects.toThrow("at most 2");
    expect(await store.get("tile/0/001", 9)).toBeUndefined();
    expect(await store.head("tile/0/001")).toBeUndefined();
    await store.put("tile/0/000.p/7", bytes("seven"), { retainMs: DAY_MS });
    await store.put("chunks/se_0/0.gkc", bytes("chunk"), { retainMs: DAY_MS });
    expect(await listed(store, "tile")).toEqual(["tile/0/000", "tile/0/000.p/7"]);
    expect(await listed(store, "til")).toEqual([]);
  });

  test("the emulator holds a locked version against its deletion, and does not hold its date against a change", async () => {
    const bucket = await bucketWith();
    const { version } = await storeAt(moto.url, bucket).put("a", bytes("a"), { retainMs: DAY_MS });
    const remove = { Bucket: bucket, Key: Key("a"), VersionId: version };
    await expect(moto.admin.send(new DeleteObjectCommand(remove))).rejects.toThrow("Access Denied");
    await expect(
      moto.admin.send(new DeleteObjectCommand({ ...remove, BypassGovernanceRetention: true })),
    ).rejects.toThrow("Access Denied");
    // The real service refuses this. So the emulator can play an administrator whom nothing holds back.
    const Retention = { Mode: "COMPLIANCE", RetainUntilDate: new Date(Date.now() - 1_000) } as const;
    await moto.admin.send(new PutObjectRetentionCommand({ ...remove, Retention }));
  });

  test("a bucket without Object Lock, without versions, or that is not there, is refused with what to do", async () => {
    const plain = storeAt(moto.url, await bucketWith({ lock: false }));
    await expect(plain.preflight(true)).rejects.toMatchObject({ code: "config_invalid" });
    await expect(plain.preflight(true)).rejects.toThrow("does not keep versions");
    await plain.preflight(false);
    const versioned = storeAt(moto.url, await bucketWith({ lock: false, versions: true }));
    await expect(versioned.preflight(true)).rejects.toThrow("has no Object Lock");
    const nowhere = storeAt(moto.url, "gk-not-there");
    for (const locked of [true, false]) {
      await expect(nowhere.preflight(locked)).rejects.toMatchObject({ code: "config_invalid" });
    }
  });

  test("what hides or covers a version leaves it readable, and the versions say so, oldest first", async () => {
    const bucket = await bucketWith();
    const store = storeAt(moto.url, bucket);
    const { version } = await store.put("a", bytes("ours"), { retainMs: DAY_MS });
    await moto.admin.send(new PutObjectCommand({ Bucket: bucket, Key: Key("a"), Body: "theirs" }));
    await moto.admin.send(new DeleteObjectCommand({ Bucket: bucket, Key: Key("a") }));
    expect(await store.get("a", 100)).toBeUndefined();
    const versions = await store.versions("a");
    expect(versions.map(({ deleted, latest }) => ({ deleted, latest }))).toEqual([
      { deleted: false, latest: false },
      { deleted: false, latest: false },
      { deleted: true, latest: true },
    ]);
    expect(versions[0]?.version).toBe(version);
    expect(await store.get("a", 100, version)).toEqual(bytes("ours"));
    expect(await store.get("a", 100, versions[2]?.version)).toBeUndefined();
    await store.put("ab", bytes("x"), { retainMs: DAY_MS });
    expect((await store.versions("a")).length).toBe(3);
    expect(await listed(store, "a")).toEqual([]);
  });

  test("a stranger's object where ours belongs does not keep ours out; without versions it is an error, and stays", async () => {
    const locked = await bucketWith();
    await moto.admin.send(new PutObjectCommand({ Bucket: locked, Key: Key("a/b"), Body: "theirs" }));
    const store = storeAt(moto.url, locked);
    const { version } = await store.put("a/b", bytes("ours"), { retainMs: DAY_MS });
    expect(await store.get("a/b", 100, version)).toEqual(bytes("ours"));
    expect(await store.put("a/b", bytes("ours"), { retainMs: DAY_MS })).toMatchObject({ version });
    expect(await listed(store, "a")).toEqual(["a/b"]);

    const plain = await bucketWith({ lock: false });
    await moto.admin.send(new PutObjectCommand({ Bucket: plain, Key: Key("a"), Body: "theirs" }));
    const chunks = storeAt(moto.url, plain);
    await expect(chunks.put("a", bytes("ours"))).rejects.toMatchObject({ code: "integrity" });
    expect(await chunks.get("a", 100)).toEqual(bytes("theirs"));
    await chunks.put("b", bytes("same"));
    await chunks.put("b", bytes("same"));
    await chunks.replace("b", bytes("other"));
    expect(await chunks.get("b", 100)).toEqual(bytes("other"));
  });

  test("the same bytes that lie there without a lock, or with a shorter one, are written again with one", async () => {
    const bucket = await bucketWith();
    await moto.admin.send(new PutObjectCommand({ Bucket: bucket, Key: Key("a"), Body: "ours" }));
    const store = storeAt(moto.url, bucket);
    const short = await store.put("a", bytes("ours"), { retainMs: DAY_MS });
    const long = await store.put("a", bytes("ours"), { retainMs: 9 * DAY_MS });
    expect(new Set([short.version, long.version]).size).toBe(2);
    expect(await store.versions("a")).toHaveLength(3);
  });

  // ------------------------------------------------------------------------------------------------ a service that lies
  const headers = (change: Record<string, string | undefined>): Meddling => ({
    after: (seen, answer): Answer =>
      seen.method === "HEAD" ? { ...answer, headers: { ...answer.headers, ...change } } : answer,
  });
  const past = (ms: number): string => new Date(Date.now() + ms).toISOString();

  test.each([
    ["is locked in GOVERNANCE mode", headers({ "x-amz-object-lock-mode": "GOVERNANCE" })],
    ["is not locked", headers({ "x-amz-object-lock-mode": undefined })],
    ["is locked for", headers({ "x-amz-object-lock-retain-until-date": past(DAY_MS / 2) })],
    ["is locked for", headers({ "last-modified": new Date(Date.now() + DAY_MS / 2).toUTCString() })],
    ["is another version", headers({ "x-amz-version-id": "somebody-elses" })],
    ["has other bytes", headers({ "x-amz-checksum-sha256": Buffer.alloc(32, 1).toString("base64") })],
    ["has other bytes", headers({ "content-length": "9" })],
    ["is not there", { before: (seen) => (seen.method === "HEAD" ? { status: 404 } : undefined) }],
  ] as [string, Meddling][])(
    "a service that took the object and then says that it %s is not believed",
    async (said, meddling) => {
      const store = storeAt(meddler.url, await bucketWith());
      meddler.meddling = meddling;
      const put = store.put("a", bytes("ours"), { retainMs: DAY_MS });
      await expect(put).rejects.toMatchObject({ code: "integrity" });
      await expect(put).rejects.toThrow(said);
    },
  );

  test("a lock that is too short however often it is asked for does not fill the bucket with locked versions", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    meddler.meddling = headers({ "last-modified": new Date(Date.now() + DAY_MS).toUTCString() }); // our clock is a day slow
    for (let i = 0; i < 9; i++) {
      await expect(store.put("a", bytes("ours"), { retainMs: DAY_MS })).rejects.toThrow("is locked for");
    }
    expect((await store.versions("a")).length).toBeLessThanOrEqual(4);
    meddler.meddling = {};
    await store.put("a", bytes("ours"), { retainMs: DAY_MS });
    await expect(store.put("a", bytes("ours"), { retainMs: 9 * DAY_MS })).resolves.toMatchObject({ bytes: 4 });
  });

  test("where the service gives no SHA-256, the object itself is read and hashed", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    let reads = 0;
    meddler.meddling = {
      after(seen, answer) {
        if (seen.method === "GET" && seen.path.includes("/a?")) reads += 1;
        return {
          ...answer,
          headers: { ...answer.headers, "x-amz-checksum-sha256": undefined, "content-md5": undefined },
        };
      },
    };
    await store.put("a", bytes("ours"), { retainMs: DAY_MS });
    expect(reads).toBe(1);
    const swap: Meddling["after"] = (seen, answer) =>
      seen.method === "GET" ? { ...answer, body: bytes("0urs") } : answer;
    const strip = meddler.meddling.after;
    meddler.meddling = { after: (seen, answer) => swap(seen, strip?.(seen, answer) ?? answer) };
    await expect(store.put("b", bytes("ours"), { retainMs: DAY_MS })).rejects.toThrow("has other bytes");
  });

  test("409 and 412 end well: tried again, or what is there is taken when it is ours and locked", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    let conflicts = 2;
    meddler.meddling = {
      before: ({ method }) => (method === "PUT" && conflicts-- > 0 ? { status: 409 } : undefined),
    };
    const { version } = await store.put("a", bytes("ours"), { retainMs: DAY_MS });
    let lost = 1; // the object arrives, its answer does not: the next attempt finds it
    meddler.meddling = {
      after: (seen, answer) => (seen.method === "PUT" && lost-- > 0 ? { ...answer, status: 503 } : answer),
    };
    await store.put("b", bytes("ours"), { retainMs: DAY_MS });
    expect(await store.versions("b")).toHaveLength(1);
    meddler.meddling = { before: ({ method }) => (method === "PUT" ? { status: 412 } : undefined) };
    expect(await store.put("a", bytes("ours"), { retainMs: DAY_MS })).toMatchObject({ version });
    const refused = store.put("c", bytes("ours"), { retainMs: DAY_MS });
    await expect(refused).rejects.toMatchObject({ code: "store_unavailable" });
  });

  test("an answer that is cut short, longer than it says, or endless is an error and not an object", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    await store.put("a", Buffer.alloc(100_000, 1), { retainMs: DAY_MS });
    const onGet = (change: (answer: Answer) => Answer): Meddling => ({
      after: (seen, answer) => (seen.method === "GET" ? change(answer) : answer),
    });
    meddler.meddling = onGet((answer) => ({ ...answer, cutAfter: 50_000 }));
    await expect(store.get("a", 100_000)).rejects.toMatchObject({ code: "store_unavailable" });
    const chunked = { "content-length": undefined, "transfer-encoding": "chunked" };
    const unsummed = { "x-amz-checksum-sha256": undefined };
    meddler.meddling = onGet((answer) => ({
      ...{ ...answer, headers: { ...answer.headers, ...chunked, ...unsummed } },
      body: Buffer.alloc(2_000_000, 1),
    }));
    await expect(store.get("a", 100_000)).rejects.toMatchObject({ code: "integrity" });
  });

  test("a redirect is not followed, whatever it says", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    const elsewhere = await startMeddler(moto.url);
    undo.push(() => void elsewhere.stop());
    for (const status of [301, 307]) {
      meddler.meddling = { before: () => ({ status, headers: { location: `${elsewhere.url}/x` } }) };
      const put = store.put("a", bytes("ours"), { retainMs: DAY_MS });
      await expect(put).rejects.toMatchObject({ code: "config_invalid" });
      await expect(put).rejects.toThrow("elsewhere");
    }
    expect(elsewhere.seen).toEqual([]);
  });

  test("a listing without an end is an error", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    const page = (marker: string): string =>
      `<ListVersionsResult><IsTruncated>true</IsTruncated>${marker}</ListVersionsResult>`;
    for (const marker of ["", "<NextKeyMarker>x</NextKeyMarker>"]) {
      meddler.meddling = { before: () => ({ status: 200, body: page(marker) }) };
      await expect(listed(store, "a")).rejects.toMatchObject({ code: "integrity" });
    }
  });

  test("names from the service that lead out of the folder are not passed on", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    const keys = ["gk/test/a/../../x", "gk/test/a//x", "gk/test/a/.x", "gk/other/a/x", "gk/test/a/ok", "/etc/passwd"];
    const rows = keys.map((key) => `<Version><Key>${key}</Key><VersionId>1</VersionId></Version>`).join("");
    meddler.meddling = { before: () => ({ status: 200, body: `<ListVersionsResult>${rows}</ListVersionsResult>` }) };
    expect(await listed(store, "a")).toEqual(["a/ok"]);
    for (const path of ["../x", "/x", "a//b", "a/../b", "", ".", "a/.b", "a\0b", "a b", "a/"]) {
      await expect(store.put(path, bytes("x")), path).rejects.toMatchObject({ code: "internal" });
      await expect(store.get(path, 1), path).rejects.toMatchObject({ code: "internal" });
    }
  });

  test("the key is in no error, however the service words it, and its secret half never leaves", async () => {
    const store = storeAt(meddler.url, await bucketWith());
    const body = `<Error><Code>InvalidAccessKeyId</Code><Message>No key ${KEY_ID}, or ${SECRET_KEY}</Message></Error>`;
    for (const status of [400, 403, 404, 500]) {
      meddler.meddling = { before: () => ({ status, body }) };
      const error = await store.put("a", bytes("ours")).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      expect(error).toBeInstanceOf(GlassError);
      const shown = inspect(error, { depth: 10, showHidden: true });
      expect(shown).not.toContain(KEY_ID);
      expect(shown).not.toContain(SECRET_KEY);
    }
    expect(inspect(meddler.seen, { depth: 10 })).not.toContain(SECRET_KEY);
    expect(inspect(store, { depth: 10 })).not.toContain(SECRET_KEY);
  });

  test("a certificate that does not chain to the CA, or names another host, is refused before anything is sent", async () => {
    const authority = await createAuthority("the right one", 2);
    const stranger = await createAuthority("a stranger", 2);
    const good = await issueServerCertificate(authority, ["127.0.0.1"], 2);
    const wrongHost = await issueServerCertificate(authority, ["example.com"], 2);
    const wrongAuthority = await issueServerCertificate(stranger, ["127.0.0.1"], 2);
    const folder = await mkdtemp(join(tmpdir(), "glasskey-s3-"));
    try {
      await writeFile(`${folder}/ca.pem`, authority.cert);
      const bucket = await bucketWith();
      for (const [identity, ok] of [
        [good, true],
        [wrongHost, false],
        [wrongAuthority, false],
      ] as const) {
        const tls = await startMeddler(moto.url, identity);
        try {
          const put = storeAt(tls.url, bucket, { ca: `${folder}/ca.pem` }).put("a", bytes("ours"), {
            retainMs: DAY_MS,
          });
          if (ok) await put;
          else {
            await expect(put).rejects.toMatchObject({ code: "store_unavailable" });
            expect(tls.seen).toEqual([]);
          }
        } finally {
          await tls.stop();
        }
      }
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });

  test("a secret that is not there yet is asked for again at the next request", async () => {
    const bucket = await bucketWith({ lock: false });
    let there = false;
    const store = s3Store(s3ConfigFor(moto.url, bucket), () => {
      if (!there) throw new GlassError("config_invalid", "environment variable S3_KEY is not set");
      return new Secret("x");
    });
    undo.push(() => store.close());
    await expect(store.put("a", bytes("a"))).rejects.toThrow("S3_KEY is not set");
    there = true;
    await store.put("a", bytes("a"));
  });
});
