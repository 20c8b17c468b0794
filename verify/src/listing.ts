import { equalBytes } from "./encoding.ts";
import { ReadError, type LogSource } from "./folder.ts";
import { HASH_BYTES } from "./merkle.ts";
import type { Findings } from "./report.ts";
import {
  FULL_TILE_BYTES,
  hashesInLevel,
  MAX_BUNDLE_BYTES,
  parseTilePath,
  splitBundle,
  tilePath,
  TILE_WIDTH,
} from "./tiles.ts";

/** What a log's folder may hold at its top. `log.vkey` is for convenience; nothing trusts it. */
const TOP: Readonly<Record<string, "file" | "folder">> = {
  checkpoint: "file",
  "log.vkey": "file",
  tile: "folder",
  checkpoints: "folder",
  chunks: "folder",
};
const MAX_DEPTH = 9;

/** Names every file that a log of `size` entries does not have. `checkpoints` and `chunks` are looked at elsewhere. */
export async function checkListing(source: LogSource, size: number, findings: Findings): Promise<void> {
  for await (const { name, kind } of source.list("")) {
    if (!Object.hasOwn(TOP, name) || TOP[name] !== kind) findings.add(name, "does not belong here");
  }
  await checkTiles(source, "tile", size, findings, 1);
}

async function checkTiles(
  source: LogSource,
  folder: string,
  size: number,
  findings: Findings,
  depth: number,
): Promise<void> {
  for await (const { name, kind } of source.list(folder)) {
    const path = `${folder}/${name}`;
    if (kind === "folder" && depth < MAX_DEPTH) await checkTiles(source, path, size, findings, depth + 1);
    else if (kind !== "file") findings.add(path, "does not belong here");
    else await checkTile(source, path, size, findings);
  }
}

async function checkTile(source: LogSource, path: string, size: number, findings: Findings): Promise<void> {
  const name = parseTilePath(path);
  if (name === undefined) return findings.add(path, "does not belong here");
  const level = name.level === "entries" ? 0 : name.level;
  const available = hashesInLevel(level, size) - name.index * TILE_WIDTH;
  if (name.width > available) return findings.add(path, `goes beyond the checkpoint, which covers ${size} entries`);
  const current = Math.min(TILE_WIDTH, available);
  if (name.width === current) return; // read by the replay
  // A partial tile of an earlier checkpoint may stay (tlog-tiles); it must be the beginning of what it became.
  try {
    const entries = name.level === "entries";
    const old = await source.read(path, entries ? MAX_BUNDLE_BYTES : FULL_TILE_BYTES);
    const whole = await source.read(
      tilePath({ ...name, width: current }),
      entries ? MAX_BUNDLE_BYTES : FULL_TILE_BYTES,
    );
    if (old === undefined || whole === undefined) return; // the missing one is named elsewhere
    const width = entries ? splitBundle(old, name.width).problem === undefined : old.length === name.width * HASH_BYTES;
    if (!width || !equalBytes(old, whole.subarray(0, old.length))) {
      findings.add(path, "was changed: it is not the beginning of the tile that it became");
    }
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    findings.add(path, error.message);
  }
}
