import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CreateBucketCommand } from "@aws-sdk/client-s3";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { folderStore } from "../objects/folder.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import { s3Store } from "../objects/s3.ts";
import { motoMissing, s3ConfigFor, s3Secrets, startMoto, type Moto } from "../objects/testing/moto.ts";
import { RECORD } from "../targets/target.ts";
import { folderChunkStore, objectChunkStore, type ChunkStore } from "./chunk-store.ts";
import { readSession } from "./sealed.ts";
import { openSealer } from "./sealer.ts";
import { committed, KEY, testFolder, testJournal } from "./testing/journal.ts";
import { testStore, type TestStore } from "./testing/store.ts";

const missing = motoMissing();
let folder: string;
let base: TestStore;
let moto: Moto | undefined;
let bucket: ObjectStore | undefined;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-chunks-"));
  base = await testStore(inject("pg18"));
  if (missing !== undefined) return console.warn(`chunks in S3 are not tested: ${missing}`);
  moto = await startMoto();
  const Bucket = `gk-${randomBytes(6).toString("hex")}`;
  await moto.admin.send(new CreateBucketCommand({ Bucket }));
  bucket = s3Store(s3ConfigFor(moto.url, Bucket, { prefix: "" }), s3Secrets);
});
afterAll(async () => {
  bucket?.close();
  await moto?.stop();
  await base[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

function objects(kind: "folder" | "s3"): ObjectStore {
  if (kind === "folder") return folderStore(join(folder, "objects"));
  if (bucket === undefined) throw new Error("no emulator");
  return bucket;
}

const KINDS = ["own folder", "folder", ...(missing === undefined ? ["s3"] : [])] as const;

test.each(KINDS)(
  "a chunk store (%s) keeps what was put, once, lists a session and reads within a bound",
  async (kind) => {
    const chunks =
      kind === "own folder" ? folderChunkStore(join(folder, "own")) : objectChunkStore(objects(kind as "s3"));
    const session = newId("session");
    const names = [0, 1, 10].map((n) => `${session}/${String(n).padStart(8, "0")}-${"ab".repeat(32)}.gkc`);
    for (const name of names.toReversed()) await chunks.put(name, Buffer.from(name));
    await chunks.put(names[0] ?? "", Buffer.from(names[0] ?? ""));
    await chunks.put(`${newId("session")}/other.gkc`, Buffer.from("x"));
    expect(await chunks.list(session)).toEqual(names);
    expect(await chunks.list(newId("session"))).toEqual([]);
    expect(await chunks.get(names[1] ?? "", 1_000)).toEqual(Buffer.from(names[1] ?? ""));
    await expect(chunks.get(names[1] ?? "", 5)).rejects.toMatchObject({ code: "integrity" });
    expect(await chunks.get(`${session}/99.gkc`, 5)).toBeUndefined();
    for (const name of ["../x/y", "/a/b", "a", "a/b/c", "a/../b", "A/b", "a/.b"]) {
      await expect(chunks.put(name, Buffer.from("x")), name).rejects.toMatchObject({ code: "internal" });
    }
  },
);

test.each(KINDS.slice(1))(
  "sealing into an object store (%s) that fails at any request loses no record and seals none twice",
  async (kind) => {
    await using place = await testFolder();
    let budget = 0;
    const real = objectChunkStore(objects(kind as "s3"));
    const step = (): void => {
      if ((budget -= 1) < 0) throw new GlassError("store_unavailable", "no answer");
    };
    const failing: ChunkStore = {
      async put(name, bytes) {
        step();
        await real.put(name, bytes);
        step(); // it arrived, and its answer did not
      },
      get: (name, maxBytes) => real.get(name, maxBytes),
      async list(session) {
        step();
        return real.list(session);
      },
    };
    await using journal = await testJournal(join(place.path, "journal"));
    const session = await base.session();
    const recorder = journal.recorder(session);
    await committed(recorder, RECORD.sessionStarted, '{"grant":"gr"}');
    for (let i = 0; i < 8; i += 1) await committed(recorder, RECORD.data, Buffer.alloc(40_000, i));
    await committed(recorder, RECORD.sessionEnded, '{"cause":"client"}');
    const name = `nd_${newId("session").slice(3)}`;
    for (let round = 0; round < 14; round += 1) {
      budget = round;
      const sealer = await openSealer({
        ...{
          dir: join(place.path, "journal"),
          key: KEY,
          name,
          opened: { id: journal.id, sequence: journal.openedSequence },
        },
        ...{ store: base.store, keyring: base.keyring, chunks: failing, append, onError: () => {} },
      });
      await sealer.sealNow().catch(() => {});
      budget = round < 13 ? 0 : 1_000; // closing tries once more
      await sealer.close();
    }
    const kinds: number[] = [];
    const reading = readSession(base.store, base.keyring, real, session);
    for (;;) {
      const { value, done } = await reading.next();
      if (done === true) {
        expect(value.complete).toBe(true);
        break;
      }
      kinds.push(value.kind);
    }
    expect(kinds).toEqual([1, ...Array.from({ length: 8 }, () => 6), 2]);
    const rows = await base.store.selectFrom("chunks").select("chunk").where("session", "=", session).execute();
    const entries = await base.store.selectFrom("log_queue").select("entry").execute();
    expect(entries.filter(({ entry }) => entry.includes(session)).length).toBe(rows.length);
  },
);
