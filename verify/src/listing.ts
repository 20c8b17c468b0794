import { checkOlder, type Surroundings } from "./older.ts";
import type { Others } from "./recordings.ts";
import { hashesInLevel, parseTilePath, TILE_WIDTH } from "./tiles.ts";

/** What a log's folder may hold at its top. `log.vkey` is for convenience; nothing trusts it. */
const TOP: Readonly<Record<string, "file" | "folder">> = {
  checkpoint: "file",
  "checkpoint.witnessed": "file",
  "log.vkey": "file",
  tile: "folder",
  checkpoints: "folder",
  chunks: "folder",
};
const MAX_DEPTH = 9;

interface Listing extends Surroundings {
  readonly others: Others;
}

/** Names every file that a log of `size` entries does not have. `checkpoints` and `chunks` are looked at elsewhere. */
export async function checkListing(options: Listing): Promise<void> {
  for await (const { name, kind } of options.source.list?.("") ?? []) {
    const ofArchive = options.others === "beyond" && name === "witnessed" && kind === "folder";
    if (!ofArchive && (!Object.hasOwn(TOP, name) || TOP[name] !== kind))
      options.findings.add(name, "does not belong here");
  }
  await checkTiles(options, "tile", 1);
}

async function checkTiles(options: Listing, folder: string, depth: number): Promise<void> {
  for await (const { name, kind } of options.source.list?.(folder) ?? []) {
    const path = `${folder}/${name}`;
    if (kind === "folder" && depth < MAX_DEPTH) await checkTiles(options, path, depth + 1);
    else if (kind !== "file") options.findings.add(path, "does not belong here");
    else await checkTile(options, path);
  }
}

async function checkTile(options: Listing, path: string): Promise<void> {
  const { size, findings } = options;
  const name = parseTilePath(path);
  if (name === undefined) return findings.add(path, "does not belong here");
  const level = name.level === "entries" ? 0 : name.level;
  const available = hashesInLevel(level, size) - name.index * TILE_WIDTH;
  if (name.width > available && options.others === "beyond") findings.totals.beyond += 1;
  else if (name.width > available) findings.add(path, `goes beyond the checkpoint, which covers ${size} entries`);
  // What is as wide as the tree has it was read by the replay.
  else if (name.width !== Math.min(TILE_WIDTH, available)) await checkOlder(options, name);
}
