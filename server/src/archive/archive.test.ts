import { chmod, readdir, readFile, rename, stat, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { verifyFolder } from "@glasskey/verify";
import { afterEach, beforeEach, expect, inject, test, vi } from "vitest";
import { sleep } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import { startMirror } from "./mirror.ts";
import { createRig, DAY_MS, folderIn, type ArchiveRig } from "./testing/rig.ts";

let rig: ArchiveRig;
beforeEach(async () => {
  rig = await createRig(inject("pg18"));
});
afterEach(() => rig.dispose());

const until = (what: () => unknown): Promise<unknown> => vi.waitFor(what, { timeout: 50_000, interval: 50 });

/** The same store, with some of its operations changed. */
function changed(objects: ObjectStore, changes: Partial<ObjectStore>): ObjectStore {
  return { ...objects, ...changes };
}

test("full tiles and bundles, chunks and a dated checkpoint are archived, and what is restored verifies", async () => {
  const size = await rig.grow(600);
  const objects = folderIn(rig);
  const archive = rig.archive(objects);
  await archive.archiveNow();
  expect(await archive.archivedSize()).toBe(size);
  expect(await archive.lag()).toMatchObject({ entries: 0, ms: 0 });
  const status = await archive.status();
  expect(status).toMatchObject({ size, logSize: size, owed: 0, faults: [], refused: false, lastError: undefined });
  // 2 bundles and 2 tiles that are full; a bundle, a tile and a tile above that are not; 60 chunks; a checkpoint
  expect(status.objects).toBe(4 + 3 + 60 + 1);

  const restored = await rig.restored(objects);
  expect(restored).toMatchObject({ size, chunks: 60, missing: [], notes: [], problems: [] });
  expect(await readFile(join(restored.folder, "checkpoint"), "utf8")).toBe(await rig.reader.checkpoint());
});

test("it goes on where it was: each object is put once, and every dated checkpoint stays and verifies", async () => {
  const objects = folderIn(rig);
  const puts: string[] = [];
  const counted = changed(objects, {
    put: (path, bytes, options) => {
      puts.push(path);
      return objects.put(path, bytes, options);
    },
  });
  const archive = rig.archive(counted);
  const sizes: number[] = [];
  for (const events of [1, 254, 1, 1, 300, 255]) {
    sizes.push(await rig.grow(events));
    await archive.archiveNow();
  }
  expect(puts.filter((path, i) => puts.indexOf(path) !== i)).toEqual([]);
  const dated = (await readdir(join(rig.folder, "archive/checkpoints"))).map(Number).toSorted((a, b) => a - b);
  expect(dated).toEqual(sizes);
  const restored = await rig.restored(objects);
  expect(restored).toMatchObject({ size: sizes.at(-1), missing: [], problems: [] });
  expect((await readdir(join(restored.folder, "checkpoints"))).length).toBe(sizes.length);
});

test("by itself it dates a checkpoint every so often while there is news, sends chunks at once, and at the stop", async () => {
  const objects = folderIn(rig);
  await rig.grow(10);
  const archive = rig.archive(objects, { pollMs: 20 });
  await until(async () => expect(await archive.archivedSize()).toBe(10));
  const later = await rig.grow(300);
  await until(async () => expect((await archive.status()).objects).toBeGreaterThan(30));
  expect(await archive.archivedSize()).toBe(10); // an hour is not over
  await archive.stop();
  expect((await rig.restored(objects)).size).toBe(later);

  const quick = rig.archive(objects, { pollMs: 20, everyMs: 200 });
  const last = await rig.grow(5);
  await until(async () => expect(await quick.archivedSize()).toBe(last));
});

test("a failure at any put repeats that step later, and none is skipped", async () => {
  const objects = folderIn(rig);
  let calls = 0;
  let failAt = 0;
  const archive = rig.archive(
    changed(objects, {
      async put(path, bytes, options) {
        const call = (calls += 1);
        // Every other failure comes after the object has arrived, like an answer that is lost.
        if (call === failAt && failAt % 2 === 0) throw new GlassError("store_unavailable", `${path}: no answer`);
        const stored = await objects.put(path, bytes, options);
        if (call === failAt) throw new GlassError("store_unavailable", `${path}: the answer was lost`);
        return stored;
      },
    }),
    { pollMs: 3_600_000 },
  );
  await archive.archiveNow(); // there is nothing yet; from here on it does only what it is told
  const size = await rig.grow(300);
  let failures = 0;
  while ((await archive.archivedSize()) < size) {
    calls = 0;
    failAt = failures + 1; // more than one step further each time, at last
    await archive.archiveNow();
    failures += 1;
    expect(failures).toBeLessThan(100);
  }
  expect(failures).toBeGreaterThan(20);
  expect(rig.warnings.some((line) => line.includes("answer was lost"))).toBe(true);
  expect(await archive.status()).toMatchObject({ lastError: undefined, owed: 0 });
  expect(await rig.restored(objects)).toMatchObject({ size, missing: [], problems: [] });
});

test("several processes at once archive one log: one at a time, and the result verifies", async () => {
  const objects = Array.from({ length: 3 }, () => folderIn(rig));
  let inside = 0;
  let most = 0;
  const archives = objects.map((one) =>
    rig.archive(
      changed(one, {
        async put(path, bytes, options) {
          most = Math.max(most, (inside += 1) <= 8 ? 1 : 2); // one process has eight under way
          try {
            return await one.put(path, bytes, options);
          } finally {
            inside -= 1;
          }
        },
      }),
      { pollMs: 10, everyMs: 100 },
    ),
  );
  let size = 0;
  for (let i = 0; i < 6; i += 1) size = await rig.grow(120);
  await until(async () => expect(await archives[0]?.archivedSize()).toBe(size));
  expect(most).toBe(1);
  expect(await rig.restored(folderIn(rig))).toMatchObject({ size, missing: [], problems: [] });
});

test("the claim of a process that died runs out, and another one goes on", async () => {
  const size = await rig.grow(5);
  await rig.log.query(
    `insert into archives (place, claimed_by, claimed_until) values ($1, 'nd_dead', clock_timestamp() + interval '1 hour')`,
    [join(rig.folder, "archive")],
  );
  const archive = rig.archive(folderIn(rig), { pollMs: 20 });
  await sleep(200);
  expect(await archive.archivedSize()).toBe(0);
  await rig.log.query("update archives set claimed_until = clock_timestamp() - interval '1 second'");
  await until(async () => expect(await archive.archivedSize()).toBe(size));
});

test("a recording that is gone or changed is owed, alarmed and named, and keeps nothing else from being archived", async () => {
  const size = await rig.grow(50);
  const [gone = "", other = ""] = [...rig.chunks.keys()];
  const bytes = rig.chunks.get(gone) ?? Buffer.alloc(0);
  rig.chunks.delete(gone);
  rig.chunks.set(other, Buffer.from("other bytes"));
  const objects = folderIn(rig);
  const archive = rig.archive(objects, { pollMs: 20 });
  await archive.archiveNow();
  expect(await archive.status()).toMatchObject({ size, owed: 2 });
  await until(() => expect(rig.alarms.get("archive changed")).toContain(".gkc could not be archived"));
  const restored = await rig.restored(objects);
  expect(restored.missing.map((line) => line.replace(/:.*/, "")).toSorted()).toEqual([gone, other].toSorted());
  expect(restored.problems.length).toBe(2);

  rig.chunks.set(gone, bytes);
  await archive.archiveNow();
  expect(await archive.status()).toMatchObject({ owed: 1 });
});

test("an archive of another log, or of another history, is refused, told and left as it is", async () => {
  await rig.grow(5);
  const other = await createRig(inject("pg18"));
  try {
    await other.grow(7);
    const objects = folderIn(rig);
    await other.archive(objects).archiveNow();
    const before = await readdir(join(rig.folder, "archive"), { recursive: true });
    const archive = rig.archive(objects, { pollMs: 20 });
    await until(() => expect(rig.alarms.get("archive behind")).toContain("the archive of another log"));
    expect(await archive.status()).toMatchObject({ refused: true, size: 0 });
    expect(await readdir(join(rig.folder, "archive"), { recursive: true })).toEqual(before);
  } finally {
    await other.dispose();
  }
});

test("a place that is refused raises the alarm at once and is asked again; the alarm is cleared when it takes objects", async () => {
  const size = await rig.grow(5);
  const objects = folderIn(rig);
  let fit = false;
  const archive = rig.archive(
    changed(objects, {
      async preflight() {
        if (!fit) throw new GlassError("config_invalid", "the bucket has no Object Lock", { next: "Make another." });
      },
    }),
    { pollMs: 20 },
  );
  await until(() => expect(rig.alarms.get("archive behind")).toContain("no Object Lock"));
  expect(await archive.archivedSize()).toBe(0);
  fit = true;
  await archive.archiveNow();
  expect(await archive.archivedSize()).toBe(size);
  await until(() => expect(rig.alarms.size).toBe(0));
});

test("a place that never answers raises the alarm when it is late, and does not hold up the stop for long", async () => {
  await rig.grow(5);
  const objects = folderIn(rig);
  const archive = rig.archive(changed(objects, { put: () => new Promise(() => {}) }), {
    ...{ pollMs: 20, everyMs: 50, stopMs: 500 },
  });
  await until(() => expect(rig.alarms.get("archive behind")).toMatch(/behind the log/));
  const [began] = [performance.now()];
  await archive.stop();
  expect(performance.now() - began).toBeLessThan(40_000);
});

test("an alarm that was over is raised again the next time", async () => {
  await rig.grow(300);
  const archive = rig.archive(folderIn(rig), { pollMs: 20, recheckMs: 0, clearEveryMs: 0 });
  await archive.archiveNow();
  const [tile, aside] = [join(rig.folder, "archive/tile/0/000"), join(rig.folder, "aside")];
  for (let time = 0; time < 2; time += 1) {
    await rename(tile, aside);
    await until(() => expect(rig.alarms.get("archive changed")).toContain("tile/0/000 is gone"));
    await rename(aside, tile);
    await until(() => expect(rig.alarms.has("archive changed")).toBe(false));
  }
});

test("a log that became smaller than its archive is refused: a store from a backup does not rewrite what is there", async () => {
  await rig.grow(20);
  const archive = rig.archive(folderIn(rig));
  await archive.archiveNow();
  await rig.log.query("update archives set size = 1000, next_index = 1000");
  await rig.grow(1);
  await archive.archiveNow();
  expect(await archive.status()).toMatchObject({ refused: true });
  expect((await archive.status()).lastError).toContain("has 1000 entries");
});

test("objects that are removed or changed afterwards are found by looking again, and named", async () => {
  const size = await rig.grow(300);
  const objects = folderIn(rig);
  const archive = rig.archive(objects, { pollMs: 20, recheckMs: 0 });
  await archive.archiveNow();
  const place = join(rig.folder, "archive");
  await unlink(join(place, "tile/0/000"));
  const bundle = join(place, "tile/entries/000");
  await chmod(bundle, 0o600);
  await writeFile(bundle, Buffer.alloc((await stat(bundle)).size));
  await until(async () => {
    const { faults } = await archive.status();
    expect(faults).toEqual([
      { path: "tile/0/000", fault: "is gone" },
      { path: "tile/entries/000", fault: "has other bytes" },
    ]);
    // Also where they were found one after the other: the alarm names both.
    expect(rig.alarms.get("archive changed")).toContain("tile/0/000 is gone, tile/entries/000 has other bytes");
  });
  // What is left says what is missing. The tile is made again from what lies beside it only if that is right.
  const restored = await rig.restored(objects);
  expect(restored.size).toBe(size);
  expect(restored.missing).toEqual(["tile/0/000: entries 0 to 255"]);
});

test("a tile that is gone is made again from what lies below it, at every level and at the edge", async () => {
  const size = await rig.grow(700);
  const objects = folderIn(rig);
  await rig.archive(objects).archiveNow();
  const place = join(rig.folder, "archive");
  for (const path of ["tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2"]) await unlink(join(place, path));
  const restored = await rig.restored(objects);
  expect(restored).toMatchObject({ size, missing: [], problems: [] });
  expect(restored.notes.map((line) => line.replace(/ .*/, "")).toSorted()).toEqual([
    "tile/0/001",
    "tile/0/002.p/188",
    "tile/1/000.p/2",
  ]);
});

test("the newest checkpoint that is whole is restored; forged ones and those without their tiles are passed over", async () => {
  const objects = folderIn(rig);
  const archive = rig.archive(objects);
  const older = await rig.grow(300);
  await archive.archiveNow();
  const newer = await rig.grow(100);
  await archive.archiveNow();
  const place = join(rig.folder, "archive");
  await writeFile(join(place, "checkpoints/999999"), "glasskey.test/log\n999999\nAAAA\n\n— glasskey.test/log AAAA\n");
  await writeFile(join(place, "checkpoints/888888"), await readFile(join(place, `checkpoints/${older}`)));
  await writeFile(join(place, "checkpoints/x"), "x");
  for (const path of ["tile/0/001.p", "tile/entries/001.p"]) await unlink(join(place, `${path}/${newer - 256}`));
  const restored = await rig.restored(objects);
  expect(restored).toMatchObject({ size: older, problems: [] });
  expect(restored.missing).toEqual([expect.stringContaining(`the newest tiles of checkpoints/${newer}`)]);
  const passedOver = ["checkpoints/888888", "checkpoints/999999", "checkpoints/x"];
  expect(restored.notes.map((line) => line.replace(/ .*/, "")).toSorted()).toEqual(passedOver);
});

test("retention is asked for by class: the log's for the log, the recordings' for chunks", async () => {
  await rig.grow(300);
  const objects = folderIn(rig);
  const asked = new Map<string, number | undefined>();
  const archive = rig.archive(
    changed(objects, {
      put: (path, bytes, options) => {
        asked.set(path, options?.retainMs);
        return objects.put(path, bytes, options);
      },
    }),
  );
  await archive.archiveNow();
  for (const [path, retainMs] of asked) {
    expect(retainMs, path).toBe(path.startsWith("chunks/") ? 100 * DAY_MS : 400 * DAY_MS);
  }
  expect(asked.size).toBeGreaterThan(30);
});

test("a store that was tampered with is not copied: what does not fit the signed checkpoint never reaches the archive", async () => {
  const size = await rig.grow(600);
  const edits = [
    "update log_entries set entry = convert_to(replace(convert_from(entry, 'UTF8'), 'login.succeeded', 'login.failed'), 'UTF8') where idx = 5",
    "update log_tiles set hashes = overlay(hashes placing sha256('x') from 33) where level = 0 and idx = 1",
    "update log_tiles set hashes = overlay(hashes placing sha256('x') from 1) where level = 1",
  ];
  const trigger = (on: boolean): Promise<unknown> =>
    rig.log.query(
      ["log_entries", "log_tiles"].map((t) => `alter table ${t} ${on ? "enable" : "disable"} trigger all;`).join(" "),
    );
  for (const [i, edit] of edits.entries()) {
    const table = edit.includes("log_entries") ? "log_entries" : "log_tiles";
    await rig.log.query(`create table kept_${i} as select * from ${table}`);
    await trigger(false);
    await rig.log.query(edit);
    const objects = folderIn(rig, `tampered-${i}`);
    const archive = rig.archive(objects);
    await archive.archiveNow();
    expect(await archive.status(), edit).toMatchObject({ refused: true, size: 0 });
    expect((await archive.status()).lastError).toContain("is not what was signed");
    // Whatever did get there is sound.
    await rig.log.query(`delete from ${table}; insert into ${table} select * from kept_${i}; drop table kept_${i}`);
    await trigger(true);
    await archive.archiveNow();
    expect(await rig.restored(objects)).toMatchObject({ size, missing: [], problems: [] });
  }
});

test("a mirror in a folder, or where objects go, is the log as it is served, and verifies at every step", async () => {
  const objects = folderIn(rig, "objects");
  const common = {
    ...{ store: rig.log.store, reader: rig.reader, keys: () => rig.log.signer.vkey, warn: () => {}, pollMs: 3_600_000 },
    readChunk: async ({ session, chunk }: { session: string; chunk: number }) =>
      rig.chunks.get(`chunks/${session}/${chunk}.gkc`),
    alarms: { raise: async () => {}, clear: async () => {} },
  };
  const mirrors = [
    startMirror({ ...common, node: "nd_1", to: { folder: join(rig.folder, "plain") } }),
    startMirror({ ...common, node: "nd_2", to: { objects } }),
  ];
  try {
    for (const events of [3, 300, 1, 600]) {
      const size = await rig.grow(events);
      for (const [i, place] of ["plain", "objects"].entries()) {
        await mirrors[i]?.mirrorNow();
        const report = await verifyFolder({ folder: join(rig.folder, place), vkey: rig.log.signer.vkey });
        expect(report, place).toMatchObject({ ok: true, problems: [], size });
      }
    }
  } finally {
    for (const mirror of mirrors) await mirror.stop();
  }
});

test("a stop that waited long enough gives the place back: another process goes on at once", async () => {
  const size = await rig.grow(5);
  const objects = folderIn(rig);
  let asked = 0;
  const hanging = changed(objects, {
    put: () => {
      asked += 1;
      return new Promise(() => {});
    },
  });
  const first = rig.archive(hanging, { pollMs: 20, stopMs: 200 });
  await until(() => expect(asked).toBeGreaterThan(0));
  await first.stop();
  const second = rig.archive(objects, { pollMs: 3_600_000 });
  await second.archiveNow();
  expect(await second.archivedSize()).toBe(size);
});

test("the alarm about a mirror is over with the next copy that succeeds, whichever process raised it", async () => {
  const objects = folderIn(rig, "objects");
  const alarms = new Map<string, string>();
  const common = {
    ...{ store: rig.log.store, reader: rig.reader, keys: () => rig.log.signer.vkey, warn: () => {} },
    ...{ readChunk: async () => undefined, pollMs: 3_600_000, patienceMs: 0 },
    alarms: {
      raise: async (key: string, text: string) => alarms.set(key, text),
      clear: async (key: string) => alarms.delete(key),
    },
  };
  await rig.grow(1);
  const living = startMirror({ ...common, node: "nd_1", to: { objects } });
  const broken = changed(objects, { replace: () => Promise.reject(new Error("no route")) });
  try {
    await living.mirrorNow();
    expect(alarms.get("mirror behind")).toBeUndefined();
    await rig.grow(1);
    const dying = startMirror({ ...common, node: "nd_2", to: { objects: broken } });
    await dying.mirrorNow();
    await dying.stop(); // and is gone for good
    expect(alarms.get("mirror behind")).toMatch(/no route/);
    await living.mirrorNow();
    expect(alarms.get("mirror behind")).toBeUndefined();
  } finally {
    await living.stop();
  }
});
