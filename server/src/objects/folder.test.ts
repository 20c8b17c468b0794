import { execFileSync } from "node:child_process";
import { promises } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, rename, rm, stat, symlink, unlink, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { folderStore } from "./folder.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-objects-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const bytes = (text: string): Buffer => Buffer.from(text);

test("a file is written once, read-only; again with the same bytes is nothing, with others an error", async () => {
  const store = folderStore(join(folder, "archive"));
  await store.preflight(true);
  const stored = await store.put("tile/0/x001/067", bytes("one"), { retainMs: 1 });
  expect(stored).toEqual({ version: "", bytes: 3, lock: undefined });
  expect((await stat(join(folder, "archive/tile/0/x001/067"))).mode & 0o777).toBe(0o444);
  expect(await store.put("tile/0/x001/067", bytes("one"))).toEqual(stored);
  for (const other of ["two", "one more", "on", ""]) {
    await expect(store.put("tile/0/x001/067", bytes(other)), other).rejects.toMatchObject({ code: "integrity" });
  }
  expect(await store.get("tile/0/x001/067", 3)).toEqual(bytes("one"));
  await expect(store.get("tile/0/x001/067", 2)).rejects.toThrow("at most 2");
  expect(await store.get("tile/0/x001/068", 2)).toBeUndefined();
  expect(await store.versions("tile/0/x001/068")).toEqual([]);
});

test("after a crash in the middle, at any byte, with or without zeros behind, the same bytes complete the file", async () => {
  const store = folderStore(folder);
  const whole = bytes("the whole of it");
  for (let length = 0; length <= whole.length; length += 1) {
    for (const zeros of [0, whole.length - length]) {
      const path = `a/${length}-${zeros}`;
      await mkdir(join(folder, "a"), { recursive: true });
      await writeFile(join(folder, path), Buffer.concat([whole.subarray(0, length), Buffer.alloc(zeros)]), {
        mode: 0o600,
      });
      await store.put(path, whole);
      expect(await store.get(path, 100)).toEqual(whole);
      expect((await stat(join(folder, path))).mode & 0o777).toBe(0o444);
    }
  }
});

test("an unfinished file that is not the beginning of ours is not touched", async () => {
  const store = folderStore(folder);
  await writeFile(join(folder, "a"), "their", { mode: 0o600 });
  await expect(store.put("a", bytes("the whole"))).rejects.toMatchObject({ code: "integrity" });
  await writeFile(join(folder, "b"), "the whole and more", { mode: 0o600 });
  await expect(store.put("b", bytes("the whole"))).rejects.toMatchObject({ code: "integrity" });
  expect(await store.get("a", 100)).toEqual(bytes("their"));
});

test("many at once that write the same file leave it whole", async () => {
  const stores = Array.from({ length: 8 }, () => folderStore(folder));
  const whole = Buffer.alloc(300_000, 7);
  await Promise.all(stores.map((store) => store.put("a/b", whole)));
  expect(await stores[0]?.get("a/b", 300_000)).toEqual(whole);
  expect(await readdir(join(folder, "a"))).toEqual(["b"]);
});

test("links, folders and paths that lead elsewhere are refused", async () => {
  const store = folderStore(folder);
  await symlink("/etc/hostname", join(folder, "link"));
  await mkdir(join(folder, "folder"));
  for (const path of ["link", "folder"]) {
    await expect(store.put(path, bytes("x")), path).rejects.toMatchObject({ code: "integrity" });
    await expect(store.get(path, 100), path).rejects.toMatchObject({ code: "integrity" });
  }
  for (const path of ["../x", "/x", "a//b", "a/../b", "", ".", "a/.b", "a\0b", "a/"]) {
    await expect(store.put(path, bytes("x")), path).rejects.toMatchObject({ code: "internal" });
  }
});

test("a listing has every file below, at any depth, and what is not an object's name is left out", async () => {
  const store = folderStore(folder);
  for (const path of ["tile/0/000", "tile/0/x001/000.p/7", "tile/entries/000", "checkpoints/7"]) {
    await store.put(path, bytes(path));
  }
  await writeFile(join(folder, "tile/.hidden"), "");
  await store.replace("tile/0/001", bytes("x"));
  const found: string[] = [];
  for await (const path of store.list("tile")) found.push(path);
  expect(found.toSorted()).toEqual(["tile/0/000", "tile/0/001", "tile/0/x001/000.p/7", "tile/entries/000"]);
  for await (const path of store.list("nowhere")) expect(path).toBe("nothing");
});

test("a folder that is not writable is refused with what to do", async (context) => {
  await writeFile(join(folder, "file"), "");
  for (const path of ["file", "file/x"]) {
    const refused = { code: "config_invalid", message: expect.stringMatching(/: a file is in its place$/) };
    await expect(folderStore(join(folder, path)).preflight(true)).rejects.toMatchObject(refused);
  }
  if (process.getuid?.() === 0) return;
  await chmod(folder, 0o500);
  context.onTestFinished(() => chmod(folder, 0o700));
  await expect(folderStore(join(folder, "x")).preflight(true)).rejects.toMatchObject({ code: "config_invalid" });
});

test("below folders that are append-only (chattr +a) it writes as ever, and nobody removes or renames", async (context) => {
  const store = folderStore(folder);
  await store.put("tile/0/000", bytes("one"));
  const flag = (sign: string): void => void execFileSync("chattr", ["-R", `${sign}a`, folder], { stdio: "pipe" });
  try {
    flag("+");
  } catch {
    context.skip("chattr +a needs root and a file system that knows it");
  }
  try {
    await store.put("tile/0/001", bytes("two"));
    await store.put("tile/1/000", bytes("three"));
    await expect(unlink(join(folder, "tile/0/000"))).rejects.toMatchObject({ code: "EPERM" });
    await expect(rename(join(folder, "tile/0/000"), join(folder, "x"))).rejects.toMatchObject({ code: "EPERM" });
    await expect(writeFile(join(folder, "tile/0/000"), "x")).rejects.toMatchObject({ code: "EPERM" });
    expect(await store.get("tile/0/000", 100)).toEqual(bytes("one"));
  } finally {
    flag("-");
  }
});

test("a folder that cannot be reached for a while is no sign that somebody changed something in it", async () => {
  const store = folderStore(folder);
  await store.put("a/b", bytes("one"));
  const whole = promises.open;
  for (const code of ["ESTALE", "ETIMEDOUT", "EMFILE"]) {
    promises.open = async () => {
      throw Object.assign(new Error(`${code}: made by a test`), { code });
    };
    syncBuiltinESMExports();
    try {
      for (const ask of [store.get("a/b", 3), store.head("a/b"), store.versions("a/b"), store.put("a/b", bytes("one"))])
        await expect(ask, code).rejects.toMatchObject({ code });
    } finally {
      promises.open = whole;
      syncBuiltinESMExports();
    }
  }
  expect(await store.get("a/b", 3)).toEqual(bytes("one"));
});
