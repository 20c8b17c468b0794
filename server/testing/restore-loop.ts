import { randomInt } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { parseVerifierKeys, verifyFolder } from "@glasskey/verify";
import { restore } from "../src/archive/restore.ts";
import { createRig, type ArchiveRig } from "../src/archive/testing/rig.ts";
import { folderStore } from "../src/objects/folder.ts";
import type { SharedCluster } from "./global.ts";

export interface RestoreLoopResult {
  readonly entries: number;
  readonly chunks: number;
  /** Dated checkpoints. */
  readonly dated: number;
  readonly archiveSeconds: number;
  readonly restoreSeconds: number;
  readonly verifySeconds: number;
  readonly peakRssMiB: number;
  readonly problems: readonly string[];
}

export interface RestoreLoopOptions {
  readonly entries: number;
  /** How often it is archived on the way: a dated checkpoint each time. */
  readonly stages?: number;
  readonly folder: string;
  readonly deadlineMs?: number;
  say?(line: string): void;
}

const SEALED_A_STAGE = 100; // events, of which every tenth tells of a chunk
const REMOVED_TILES = 20;

/**
 * A log that grows, archived into a folder in stages; then store and process are gone, and the log is restored from the
 * folder and verified. At last tiles are taken out of the archive, which restoring makes again, and a bundle, which it names.
 */
export async function restoreLoop(cluster: SharedCluster, options: RestoreLoopOptions): Promise<RestoreLoopResult> {
  const { stages = 10, deadlineMs = Number.POSITIVE_INFINITY, say = () => {} } = options;
  const place = join(options.folder, "archive");
  const problems: string[] = [];
  let peak = 0;
  const timer = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 200);
  try {
    const rig = await createRig(cluster);
    const { vkey } = rig.log.signer;
    let began = performance.now();
    let archiveMs = 0;
    let size = 0;
    let dated = 0;
    try {
      const archive = rig.archive(folderStore(place), { pollMs: 3_600_000 });
      for (let stage = 1; stage <= stages && performance.now() < deadlineMs; stage += 1) {
        await fill(rig, Math.floor((options.entries * stage) / stages) - SEALED_A_STAGE);
        size = await rig.grow(SEALED_A_STAGE);
        began = performance.now();
        await archive.archiveNow();
        archiveMs += performance.now() - began;
        const archived = await archive.archivedSize();
        if (archived !== size)
          problems.push(`${archived} of ${size} entries are archived: ${rig.warnings.at(-1) ?? ""}`);
        dated += 1;
        say(`${size} entries archived`);
      }
    } finally {
      await rig.dispose();
    }

    const source = folderStore(place);
    const keys = parseVerifierKeys(vkey);
    const once = async (name: string): Promise<Awaited<ReturnType<typeof restore>> & { folder: string }> => {
      const folder = join(options.folder, name);
      return { ...(await restore({ source, folder, keys, say: () => {} })), folder };
    };
    began = performance.now();
    const whole = await once("restored");
    const restoreSeconds = seconds(began);
    say(`restored in ${restoreSeconds} s`);
    began = performance.now();
    const report = await verifyFolder({ folder: whole.folder, vkey });
    const verifySeconds = seconds(began);
    problems.push(
      ...whole.missing,
      ...whole.notes,
      ...report.problems.slice(0, 5).map(({ where, what }) => `${where}: ${what}`),
    );
    if (whole.size !== size || report.size !== size) problems.push(`${whole.size} of ${size} entries were restored`);
    const lying = await verifyFolder({ folder: place, vkey });
    if (!lying.ok || lying.size !== size)
      problems.push(`the archive as it lies there: ${JSON.stringify(lying.problems[0])}`);
    await rm(whole.folder, { recursive: true });

    const tiles = (await readdir(join(place, "tile/0"))).filter((name) => /^\d{3}$/.test(name));
    const victims = new Set(Array.from({ length: REMOVED_TILES }, () => tiles[randomInt(tiles.length)] ?? ""));
    for (const name of victims) await rm(join(place, "tile/0", name));
    const mended = await once("mended");
    if (mended.missing.length > 0 || mended.notes.length !== victims.size) {
      problems.push(
        `${victims.size} tiles were removed, ${mended.notes.length} made again: ${mended.missing[0] ?? ""}`,
      );
    }
    if (!(await verifyFolder({ folder: mended.folder, vkey })).ok) problems.push("what was made again does not verify");
    await rm(mended.folder, { recursive: true });
    const bundle = tiles.find((name) => !victims.has(name)) ?? "";
    await rm(join(place, "tile/entries", bundle));
    const named = (await once("named")).missing.filter((line) => line.startsWith(`tile/entries/${bundle}: entries `));
    if (named.length !== 1) problems.push(`tile/entries/${bundle} was removed, and is not named`);
    return {
      ...{ entries: size, chunks: whole.chunks, dated, archiveSeconds: Math.round(archiveMs / 100) / 10 },
      ...{ restoreSeconds, verifySeconds, peakRssMiB: Math.round(peak / 2 ** 20), problems },
    };
  } finally {
    clearInterval(timer);
  }
}

/** Entries up to that size, made by the store itself: making the events is not what is looked at. */
async function fill(rig: ArchiveRig, size: number): Promise<void> {
  for (let done = await rig.reader.size(); done < size; done = await rig.reader.settled(600_000)) {
    await rig.log.query(
      `insert into log_queue (entry)
       select convert_to('{"actor":"pe_0123456789ab","at":"2026-01-01T00:00:00.000Z","data":{"n":' || n || '},"type":"login.succeeded"}', 'UTF8')
       from generate_series($1::bigint, $2::bigint) n`,
      [done, Math.min(size, done + 100_000) - 1],
    );
  }
}

function seconds(fromMs: number): number {
  return Math.round((performance.now() - fromMs) / 100) / 10;
}
