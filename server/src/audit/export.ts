import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import {
  chunkPath,
  FormatError,
  hashesInLevel,
  openCheckpoint,
  parseVerifierKeys,
  partialTiles,
  TILE_WIDTH,
  tilePath,
  VerifyError,
  type Checkpoint,
  type TileName,
} from "@glasskey/verify";
import { GlassError } from "../core/errors.ts";
import { syncPath, writeAtomically } from "../objects/files.ts";
import { isId } from "../core/ids.ts";
import type { JsonObject } from "../core/json.ts";
import type { Store } from "../store/database.ts";
import { createLogReader, readStoredTile } from "./read.ts";
import { integrity, rootAt } from "./tree.ts";

export interface ExportOptions {
  readonly store: Store;
  readonly folder: string;
  /** The log's verifier keys, one to a line, former ones too: checked against the checkpoint, and written to `log.vkey`. */
  readonly vkey: string;
  /** Gives the encrypted bytes of a sealed chunk, or undefined where they are gone. Without it no recording is exported. */
  readonly readChunk?: ReadChunk | undefined;
  /** Gives the newest witnessed checkpoint, for `checkpoint.witnessed`. */
  readonly witnessed?: (() => Promise<string | undefined>) | undefined;
  /** Whether to keep this checkpoint in `checkpoints/` too; true when left out. */
  readonly keepCheckpoint?: boolean | undefined;
}

/** `sha256` is the hex digest of the encrypted bytes, from the log. Bytes that are others are no chunk of this log. */
export type ReadChunk = (sealed: { session: string; chunk: number; sha256: string }) => Promise<Uint8Array | undefined>;

export interface ExportResult {
  readonly size: number;
  readonly previousSize: number;
  readonly chunks: number;
  /** Paths of chunks that the log has and `readChunk` did not. The verifier will name them too. */
  readonly missingChunks: readonly string[];
}

/** Each sync alone would take as long as all of these together. */
const SYNCED_AT_ONCE = 64;

/**
 * Writes the log to a folder in the public layout, or brings an earlier export up to date: what is there already is not
 * written again, except partial tiles. The checkpoint is replaced last and as a whole, so that a reader, and an export
 * that was interrupted, always finds everything that the checkpoint covers. Partial tiles of the checkpoint before stay
 * until the next run, for a reader who has just read that one. One export into one folder at a time.
 * @throws GlassError `integrity` when the folder's checkpoint is not an earlier state of this log; nothing is written.
 *   `not_found` when nothing is signed yet.
 */
export async function exportLog(options: ExportOptions): Promise<ExportResult> {
  const { store, folder, readChunk } = options;
  const reader = createLogReader(store);
  const witnessed = await options.witnessed?.(); // read before the newest: it covers no more than that
  const note = await reader.checkpoint();
  if (note === undefined) throw new GlassError("not_found", "the log has no signed checkpoint yet");
  const head = openCheckpoint(note, parseVerifierKeys(options.vkey));
  const previous = await previousExport(options, head);
  const previousSize = previous?.size ?? 0;
  if (previous?.note === note && options.keepCheckpoint === false) {
    if (options.witnessed !== undefined) await putWitnessed(folder, witnessed);
    return { size: head.size, previousSize, chunks: 0, missingChunks: [] };
  }

  // Later runs take what the checkpoint covers as there: a power cut must not leave it without its files.
  const unsynced: string[] = [];
  const folders = new Set<string>();
  const sync = async (): Promise<void> => {
    await Promise.all(unsynced.splice(0).map(syncPath));
    await Promise.all([...folders].map(syncPath));
    folders.clear();
  };
  const put = async (path: string, bytes: Uint8Array | string): Promise<void> => {
    const file = join(folder, path);
    const first = await mkdir(dirname(file), { recursive: true });
    await writeFile(file, bytes);
    unsynced.push(file);
    for (let at = dirname(file); at.length >= (first ?? dirname(file)).length; at = dirname(at)) folders.add(at);
    if (first !== undefined) folders.add(dirname(first));
    if (unsynced.length >= SYNCED_AT_ONCE) await sync();
  };
  const putTile = async (name: TileName): Promise<void> => {
    const file = await reader.file(tilePath(name));
    if (file === undefined) throw integrity(`${tilePath(name)} is missing`);
    await put(tilePath(name), file.bytes);
  };
  for (let level = 0; hashesInLevel(level, head.size) > 0; level += 1) {
    const [before, count] = [hashesInLevel(level, previousSize), hashesInLevel(level, head.size)];
    for (let index = Math.floor(before / TILE_WIDTH); index * TILE_WIDTH < count; index += 1) {
      const width = Math.min(TILE_WIDTH, count - index * TILE_WIDTH);
      if (index * TILE_WIDTH + width === before) continue;
      if (level === 0) await putTile({ level: "entries", index, width });
      await putTile({ level, index, width });
    }
  }
  const recordings =
    readChunk === undefined ? undefined : await exportChunks(store, previousSize, head.size, readChunk, put);
  await sync();
  const keys = parseVerifierKeys(options.vkey);
  // Replaced as a whole, as the checkpoints are: a full disk leaves what was there, and no half of it.
  await writeAtomically(join(folder, "log.vkey"), keys.map((key) => `${key.vkey}\n`).join(""));
  const stale = previousSize === head.size ? [] : await supersededTiles(folder, [previousSize, head.size]);
  await writeAtomically(join(folder, "checkpoint"), note);
  if (options.witnessed !== undefined) await putWitnessed(folder, witnessed);
  if (options.keepCheckpoint !== false) {
    await mkdir(join(folder, "checkpoints"), { recursive: true });
    await writeAtomically(join(folder, `checkpoints/${head.size}`), note);
  }
  for (const path of stale) await rm(path, { force: true });
  return { size: head.size, previousSize, chunks: recordings?.written ?? 0, missingChunks: recordings?.missing ?? [] };
}

/** Where nothing satisfies the policy, what an earlier one left there is taken away: it would say what does not hold. */
async function putWitnessed(folder: string, note: string | undefined): Promise<void> {
  const path = join(folder, "checkpoint.witnessed");
  if (note === undefined) return rm(path, { force: true });
  const before = await readFile(path, "utf8").catch(() => undefined);
  if (before !== note) await writeAtomically(path, note);
}

/** What the folder has already; undefined for a new one. */
async function previousExport(
  { store, folder, vkey }: ExportOptions,
  head: Checkpoint,
): Promise<{ size: number; note: string } | undefined> {
  let before: Checkpoint & { note: string };
  try {
    const bytes = await readFile(join(folder, "checkpoint"));
    before = { ...openCheckpoint(bytes, parseVerifierKeys(vkey)), note: bytes.toString("utf8") };
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    if (!(error instanceof FormatError || error instanceof VerifyError)) throw error;
    throw notThisLog(folder, error.message);
  }
  if (before.size > head.size) throw notThisLog(folder, `it has ${before.size} entries, and the log has ${head.size}`);
  if (!(await rootAt(before.size, readStoredTile(store))).equals(before.root)) {
    throw notThisLog(folder, `it has another history up to its ${before.size} entries`);
  }
  return before;
}

function notThisLog(folder: string, why: string): GlassError {
  return new GlassError("integrity", `${folder} is not an earlier export of this log: ${why}`, {
    next: "Export to a new folder, keep this one as it is, and compare the two with `glass verify`.",
  });
}

type Put = (path: string, bytes: Uint8Array) => Promise<void>;

/**
 * Puts every chunk of a recording into an export again: for those that were not there when their entries were exported.
 * Later runs do not come back to them by themselves.
 */
export async function exportRecording(
  { store, readChunk, put }: { store: Store; readChunk: ReadChunk; put: Put },
  session: string,
): Promise<void> {
  const rows = await store
    .selectFrom("chunks")
    .select(["chunk", "sha256"])
    .where("session", "=", session)
    .orderBy("chunk")
    .execute();
  for (const { chunk, sha256 } of rows) {
    const bytes = await readChunk({ session, chunk, sha256: sha256.toString("hex") });
    if (bytes !== undefined) await put(chunkPath(session, chunk), bytes);
  }
}

/** Into a folder; what is there as it should be is not written again. */
export function intoFolder(folder: string): Put {
  return async (path, bytes) => {
    const file = join(folder, path);
    const there = await readFile(file).catch(() => undefined);
    if (there?.equals(bytes) === true) return;
    await mkdir(dirname(file), { recursive: true });
    await writeAtomically(file, bytes);
  };
}

async function exportChunks(
  store: Store,
  from: number,
  to: number,
  readChunk: ReadChunk,
  put: Put,
): Promise<{ written: number; missing: string[] }> {
  const reader = createLogReader(store);
  const missing: string[] = [];
  let written = 0;
  for (let index = from; index < to;) {
    const page = await reader.entries({ from: index, to, limit: 1_000 });
    for (const { entry } of page) {
      const sealed = sealedChunk(entry);
      if (sealed === undefined) continue;
      const path = chunkPath(sealed.session, sealed.chunk);
      const bytes = await readChunk(sealed);
      if (bytes === undefined) missing.push(path);
      else {
        await put(path, bytes);
        written += 1;
      }
    }
    const last = page.at(-1);
    if (last === undefined) throw integrity(`entry ${index} is missing`);
    index = last.index + 1;
  }
  return { written, missing };
}

function sealedChunk({ type, session, data }: JsonObject): Parameters<ReadChunk>[0] | undefined {
  if (type !== "recording.sealed" || typeof session !== "string" || !isId("session", session)) return undefined;
  if (typeof data !== "object" || data === null || Array.isArray(data)) return undefined;
  const { chunk, sha256 } = data as JsonObject;
  const ok = typeof chunk === "number" && Number.isSafeInteger(chunk) && chunk >= 0 && typeof sha256 === "string";
  return ok ? { session, chunk, sha256 } : undefined;
}

/** Partial tiles in the folder, in the places where trees of these sizes have theirs, that belong to neither. */
async function supersededTiles(folder: string, sizes: readonly number[]): Promise<string[]> {
  const withEntries = (size: number): TileName[] =>
    partialTiles(size).flatMap((name) => (name.level === 0 ? [name, { ...name, level: "entries" as const }] : [name]));
  const names = sizes.flatMap(withEntries);
  const kept = new Set(names.map((name) => join(folder, tilePath(name))));
  const stale: string[] = [];
  for (const place of new Set([...kept].map(dirname))) {
    const widths = await readdir(place).catch(() => []); // a place of neither may be gone
    stale.push(...widths.map((width) => join(place, width)).filter((path) => !kept.has(path)));
  }
  return stale;
}
