import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { sha256 } from "../core/bytes.ts";
import { newId } from "../core/ids.ts";
import { chunkName, openChunk, parseChunkName, sealChunk, type SealedChunk } from "./chunk.ts";
import { folderChunkStore } from "./chunk-store.ts";
import { encodeRecord, type StoredRecord } from "./record.ts";
import { testFolder } from "./testing/journal.ts";

const KEY = Buffer.alloc(32, 5);
const SESSION = "se_0123456789ab";

function recordsOf(payloads: readonly Uint8Array[], firstSeq = 1): StoredRecord[] {
  return payloads.map((payload, i) => ({
    session: SESSION,
    seq: firstSeq + i,
    kind: 6,
    timeUs: 1_700_000_000_000_000 + i,
    payload: Buffer.from(payload),
  }));
}

function seal(records: readonly StoredRecord[], chunk = 0, key = KEY): SealedChunk {
  const [first, last] = [records[0] as StoredRecord, records.at(-1) as StoredRecord];
  const header = {
    session: SESSION,
    chunk,
    firstSeq: first.seq,
    lastSeq: last.seq,
    firstUs: first.timeUs,
    lastUs: last.timeUs,
  };
  return sealChunk(key, header, Buffer.concat(records.map(encodeRecord)));
}

test("records come out of a chunk as they went in, and the same records make the same file", () => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 500 }), { minLength: 1, maxLength: 20 }),
      fc.nat(1e6),
      fc.nat(1e6),
      (payloads, first, chunk) => {
        const records = recordsOf(payloads, first + 1);
        const sealed = seal(records, chunk);
        expect(seal(records, chunk).file.equals(sealed.file)).toBe(true);
        expect(sealed.sha256.equals(sha256(sealed.file))).toBe(true);
        const opened = openChunk(KEY, sealed.file);
        expect(opened.records).toEqual(records);
        expect(opened.header).toMatchObject({
          session: SESSION,
          chunk,
          firstSeq: first + 1,
          lastSeq: first + payloads.length,
        });
      },
    ),
  );
});

test("other records, or the same under another number, never meet the same nonce", () => {
  const nonces = [
    seal(recordsOf([Buffer.from("a")])),
    seal(recordsOf([Buffer.from("b")])),
    seal(recordsOf([Buffer.from("a")]), 1),
  ].map(({ file }) => file.toString("hex", 48, 60));
  expect(new Set(nonces).size).toBe(3);
});

test("any changed bit of a chunk is refused, and so are a cut, an extension and another key", () => {
  const { file } = seal(recordsOf([Buffer.from("select 1"), Buffer.from("select 2")]));
  for (let bit = 0; bit < file.length * 8; bit++) {
    const changed = Buffer.from(file);
    changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7));
    expect(() => openChunk(KEY, changed), `bit ${bit}`).toThrow(expect.objectContaining({ code: "integrity" }));
  }
  expect(() => openChunk(KEY, file.subarray(0, -1))).toThrow("its header says another");
  expect(() => openChunk(KEY, Buffer.concat([file, Buffer.alloc(1)]))).toThrow("its header says another");
  expect(() => openChunk(Buffer.alloc(32), file)).toThrow("does not decrypt");
});

test("arbitrary bytes as a chunk are refused", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), (bytes, magic) => {
      const file = Buffer.concat([magic ? Buffer.from("GKC1") : Buffer.alloc(0), bytes]);
      expect(() => openChunk(KEY, file)).toThrow(expect.objectContaining({ code: "integrity" }));
    }),
  );
});

test("a chunk's name says session, number and hash, and no other name is one", () => {
  const name = chunkName(SESSION, 7, Buffer.alloc(32, 0xab));
  expect(name).toBe(`${SESSION}/00000007-${"ab".repeat(32)}.gkc`);
  expect(parseChunkName(name)).toEqual({ session: SESSION, chunk: 7, sha256: Buffer.alloc(32, 0xab) });
  for (const other of [`${name}x`, `../${name}`, name.replace("se_", "gr_"), name.toUpperCase()])
    expect(parseChunkName(other)).toBeUndefined();
});

test("the folder keeps what was put, again and again, and leaves nothing half written", async () => {
  await using folder = await testFolder();
  const root = join(folder.path, "chunks");
  const store = folderChunkStore(root);
  const session = newId("session");
  const name = chunkName(session, 0, Buffer.alloc(32));
  expect(await store.list(session)).toEqual([]);
  expect(await store.get(name, 100)).toBeUndefined();
  await Promise.all([store.put(name, Buffer.from("abc")), store.put(name, Buffer.from("abc"))]);
  await store.put(name, Buffer.from("abc"));
  expect(await store.get(name, 100)).toEqual(Buffer.from("abc"));
  expect(await readdir(join(root, session))).toEqual([name.split("/")[1]]);
  await writeFile(join(root, `${name}.0011.partial`), "half");
  expect(await store.list(session)).toEqual([name]);
  await expect(store.get(name, 2)).rejects.toMatchObject({ code: "integrity" });
});

test("a file that a crash left damaged under its name is written again", async () => {
  await using folder = await testFolder();
  const store = folderChunkStore(folder.path);
  const name = chunkName(newId("session"), 0, Buffer.alloc(32));
  await mkdir(join(folder.path, name, ".."));
  await writeFile(join(folder.path, name), "");
  await store.put(name, Buffer.from("abc"));
  expect(await readFile(join(folder.path, name), "utf8")).toBe("abc");
});

test("a name that leads out of the folder is refused", async () => {
  await using folder = await testFolder();
  const store = folderChunkStore(folder.path);
  for (const name of ["../x/y", "a/../b", "a", "/etc/passwd", "a/b/c", "a/.hidden", "a/b\0c"]) {
    await expect(store.put(name, new Uint8Array())).rejects.toThrow("not a chunk's name");
    await expect(store.get(name, 1)).rejects.toThrow("not a chunk's name");
  }
});
