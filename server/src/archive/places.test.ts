import { mkdir, readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { verifyFolder } from "@glasskey/verify";
import { afterEach, beforeEach, expect, inject, test, vi } from "vitest";
import type { ObjectStore } from "../objects/object-store.ts";
import { startMirror, type Mirror, type MirrorOptions } from "./mirror.ts";
import { createRig, folderIn, type ArchiveRig } from "./testing/rig.ts";

let rig: ArchiveRig;
beforeEach(async () => {
  rig = await createRig(inject("pg18"));
});
afterEach(() => rig.dispose());

const until = (what: () => unknown): Promise<unknown> => vi.waitFor(what, { timeout: 50_000, interval: 50 });

function mirrorOf(one: ArchiveRig, to: MirrorOptions["to"], options: Partial<MirrorOptions> = {}): Mirror {
  return startMirror({
    ...{
      store: one.log.store,
      reader: one.reader,
      keys: () => one.log.signer.vkey,
      node: "nd_1",
      pollMs: 3_600_000,
      to,
    },
    warn: (line) => void one.warnings.push(line),
    readChunk: async ({ session, chunk }) => one.chunks.get(`chunks/${session}/${chunk}.gkc`),
    alarms: {
      raise: async (key, text) => one.alarms.set(key, text),
      clear: async (key) => one.alarms.delete(key),
    },
    ...options,
  });
}

test("a folder that is not the one from before, such as a disk that is not mounted, is refused and stays as it is", async () => {
  const objects = folderIn(rig);
  await rig.grow(300);
  await rig.archive(objects).archiveNow();
  const place = join(rig.folder, "archive");
  await rename(place, `${place}.disk`);
  await mkdir(place);
  const size = await rig.grow(10);
  for (const again of [rig.archive(folderIn(rig)), rig.archive(objects)]) {
    // One of the others may be at it at this moment.
    await until(async () => {
      await again.archiveNow();
      expect(await again.status()).toMatchObject({ refused: true, size: 300 });
      expect((await again.status()).lastError).toContain("checkpoints/300 is not there");
    });
  }
  expect(await readdir(place)).toEqual([]);
  await rename(`${place}.disk`, place);
  const archive = rig.archive(objects);
  await until(async () => {
    await archive.archiveNow();
    expect(await archive.status()).toMatchObject({ refused: false, size });
  });
  expect(await rig.restored(objects)).toMatchObject({ size, missing: [], problems: [] });
});

test.for(["folder", "objects"] as const)(
  "a recording that a mirror could not be given is told by an alarm, tried again, and there once it can be read (%s)",
  async (kind) => {
    const objects: ObjectStore = folderIn(rig, "mirror");
    const folder = join(rig.folder, "mirror");
    const mirror = mirrorOf(rig, kind === "folder" ? { folder } : { objects });
    try {
      await rig.grow(30);
      const [gone = "", changed = ""] = [...rig.chunks.keys()];
      const bytes = [rig.chunks.get(gone), rig.chunks.get(changed)] as [Buffer, Buffer];
      rig.chunks.delete(gone);
      rig.chunks.set(changed, Buffer.from("other bytes"));
      await mirror.mirrorNow();
      await until(() => expect(rig.alarms.get("mirror incomplete")).toMatch(/lacks 2 .*chunks\/se_/));
      const before = await verifyFolder({ folder, vkey: rig.log.signer.vkey });
      expect(before.problems.map(({ where }) => where).toSorted()).toEqual([gone, changed].toSorted());

      rig.chunks.set(gone, bytes[0]);
      await mirror.mirrorNow();
      expect(rig.alarms.get("mirror incomplete")).toContain("lacks 1 ");
      rig.chunks.set(changed, bytes[1]);
      await mirror.mirrorNow();
      expect(rig.alarms.has("mirror incomplete")).toBe(false);
      expect(await verifyFolder({ folder, vkey: rig.log.signer.vkey })).toMatchObject({ ok: true, problems: [] });
    } finally {
      await mirror.stop();
    }
  },
);

test("a mirror of another log, or of another history, is refused and left as it is", async () => {
  await rig.grow(5);
  const other = await createRig(inject("pg18"));
  try {
    const objects = folderIn(rig, "mirror");
    await other.grow(7);
    const theirs = mirrorOf(other, { objects });
    await theirs.mirrorNow();
    await theirs.stop();
    const before = await readdir(join(rig.folder, "mirror"), { recursive: true });
    const mirror = mirrorOf(rig, { objects }, { patienceMs: 0 });
    await mirror.mirrorNow();
    await mirror.stop();
    expect(rig.warnings.join("\n")).toContain("another log");
    expect(rig.alarms.get("mirror behind")).toContain("another log");
    expect(await readdir(join(rig.folder, "mirror"), { recursive: true })).toEqual(before);
  } finally {
    await other.dispose();
  }
});
