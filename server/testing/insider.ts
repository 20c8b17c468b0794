import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import {
  appendHashes,
  chunkPath,
  emptyRange,
  encodeBundle,
  HASH_BYTES,
  hashesInLevel,
  leafHash,
  rootOf,
  rootOfHashes,
  TILE_WIDTH,
  tilePath,
  verifyFolder,
  type Report,
} from "@glasskey/verify";
import { chunkName } from "../src/recording/chunk.ts";
import type { TestSystem } from "./system.ts";

/**
 * Somebody with the store's superuser, and what they can do to the history: each way changes what Glasskey stored, as
 * cleverly as it can be done without the log's key. Glasskey must be stopped meanwhile.
 */
export interface InsiderWay {
  readonly name: "edit" | "delete" | "reorder" | "truncate" | "fork" | "swap";
  /** @param random 0 to 1, for which of them; without it the first. */
  act(system: TestSystem, random?: () => number): Promise<void>;
  /** What the verifier must say, and about which file. */
  readonly what: RegExp;
  readonly where: RegExp;
}

/** An auditor's memory: the checkpoint as it was at their last visit, and the key from the contract. */
export interface Remembered {
  readonly checkpoint: string;
  readonly vkey: string;
}

interface Entry {
  idx: number;
  entry: Buffer;
  grant_id: string | null;
}

/** Of the log, and what is compared with the data folder. */
const KEPT_TABLES = ["log_entries", "log_tiles", "log_head", "log_checkpoints", "log_queue", "chunks", "journals"];

/** Grants with a session each, until the log has at least `entries`, all of it sealed, signed and exported. */
export async function populate(system: TestSystem, entries: number): Promise<Remembered> {
  const ann = await system.as("ann");
  for (let size = 0; size < entries;) {
    const { grant } = await ann.break("repair");
    await ann.until(grant, ["active"]);
    const client = await ann.connect(grant);
    await client.query("select id, note from t limit 1");
    await client.end();
    await ann.end(grant);
    const [row] = await system.storeQuery<{ size: string }>("select size from log_head");
    size = Number(row?.size);
  }
  const { vkey, logDir } = system.server();
  await system.stop();
  return { vkey, checkpoint: await readFile(join(logDir, "checkpoint"), "utf8") };
}

/** @returns what puts store and data folder back as they are now, as an operator does with a good backup. */
export async function backup(system: TestSystem): Promise<() => Promise<void>> {
  const { dataDir } = system.config;
  await rm(`${dataDir}.kept`, { recursive: true, force: true });
  await cp(dataDir, `${dataDir}.kept`, { recursive: true });
  await system.storeQuery(
    `drop schema if exists kept cascade; create schema kept; ${KEPT_TABLES.map((name) => `create table kept.${name} as table public.${name}`).join(";")}`,
  );
  return async () => {
    await rm(dataDir, { recursive: true, force: true });
    await cp(`${dataDir}.kept`, dataDir, { recursive: true });
    await withoutTriggers(system, () =>
      KEPT_TABLES.map(
        (name) => `delete from ${name}; insert into ${name} overriding system value select * from kept.${name}`,
      ).join(";"),
    );
  };
}

/** What an auditor finds who is given everything that the store has, as it is, without Glasskey's own checks in between. */
export async function audit(system: TestSystem, remembered: Remembered, folder: string): Promise<Report> {
  await dumpStore(system, folder);
  return verifyFolder({ folder, vkey: remembered.vkey, since: remembered.checkpoint });
}

export const INSIDER: readonly InsiderWay[] = [
  {
    name: "edit",
    what: /entr/,
    where: /^tile\/(entries|0)\//,
    async act(system, random) {
      const victim = await find(system, "grant.closed", random);
      const entry = Buffer.from(victim.entry.toString("utf8").replace("grant.closed", "grant.failed"));
      await withoutTriggers(system, () => update(victim.idx, entry));
    },
  },
  {
    name: "delete",
    what: /entr|missing|hash/,
    where: /^tile\//,
    async act(system, random) {
      const victim = await find(system, "session.opened", random);
      // Renumbered, so that no gap shows; the last index is filled up with a copy of the one before.
      await withoutTriggers(
        system,
        () => `delete from log_entries where idx = ${victim.idx};
          update log_entries set idx = idx + 1000000000 where idx > ${victim.idx};
          update log_entries set idx = idx - 1000000001 where idx >= 1000000000;
          insert into log_entries select idx + 1, entry, leaf_hash, grant_id from log_entries order by idx desc limit 1`,
      );
    },
  },
  {
    name: "reorder",
    what: /entr|hash/,
    where: /^tile\//,
    async act(system, random) {
      const [one, two] = [await find(system, "session.opened", random), await find(system, "grant.closed", random)];
      await withoutTriggers(system, () => `${update(one.idx, two.entry)}; ${update(two.idx, one.entry)}`);
    },
  },
  {
    name: "truncate",
    what: /its tail was cut off/,
    where: /remembered checkpoint/,
    async act(system, random = () => 0) {
      const older = await system.storeQuery<{ size: string }>(
        "select size from log_checkpoints where size > 0 order by size desc offset 3",
      );
      const row = older[Math.floor(random() * older.length)];
      const entries = (await allEntries(system)).slice(0, Number(row?.size));
      await withoutTriggers(
        system,
        () => `${rewrite(entries)}; delete from log_checkpoints where size > ${entries.length}`,
      );
    },
  },
  {
    name: "fork",
    what: /another history/,
    where: /remembered checkpoint/,
    // The store, the second copy of the head and the exported folder: then Glasskey itself signs the new history.
    async act(system, random) {
      const victim = await find(system, "grant.closed", random);
      const entries = (await allEntries(system)).map((row) =>
        row.idx === victim.idx
          ? { ...row, entry: Buffer.from(row.entry.toString("utf8").replace("grant.closed", "grant.failed")) }
          : row,
      );
      await withoutTriggers(system, () => `${rewrite(entries)}; delete from log_checkpoints`);
      await rm(join(system.config.dataDir, "log-head"), { force: true });
      await rm(join(system.config.dataDir, "log"), { recursive: true, force: true });
      await system.start();
      await (await system.as("ann")).break("repair").then(async ({ grant }) => (await system.as("ann")).end(grant));
      await system.stop();
    },
  },
  {
    name: "swap",
    what: /is not the one|hash|changed/,
    where: /^chunks\//,
    async act(system, random = () => 0) {
      const all = await system.storeQuery<{ session: string; chunk: number; sha256: Buffer }>(
        "select distinct on (session) session, chunk, sha256 from chunks order by session, chunk",
      );
      const at = Math.floor(random() * (all.length - 1));
      const [one, two] = all.slice(at, at + 2);
      if (one === undefined || two === undefined) throw new Error("there are no two recordings to swap");
      const folder = join(system.config.dataDir, "chunks");
      const other = await readFile(join(folder, chunkName(two.session, two.chunk, two.sha256)));
      await writeFile(join(folder, chunkName(one.session, one.chunk, two.sha256)), other);
      await system.storeQuery("update chunks set sha256 = $1 where session = $2 and chunk = $3", [
        two.sha256,
        one.session,
        one.chunk,
      ]);
    },
  },
];

async function allEntries(system: TestSystem): Promise<Entry[]> {
  const rows = await system.storeQuery<{ idx: string; entry: Buffer; grant_id: string | null }>(
    "select idx, entry, grant_id from log_entries order by idx",
  );
  return rows.map((row) => ({ ...row, idx: Number(row.idx) }));
}

async function find(system: TestSystem, type: string, random: () => number = () => 0): Promise<Entry> {
  const all = (await allEntries(system)).filter(({ entry }) => entry.includes(`"${type}"`));
  const found = all[Math.floor(random() * all.length)];
  if (found === undefined) throw new Error(`the log has no ${type}`);
  return found;
}

async function withoutTriggers(system: TestSystem, statements: () => string): Promise<void> {
  await system.storeQuery(`set session_replication_role = replica; ${statements()}`);
}

/** Entry and leaf hash: the index and the tree above are for {@link rewrite}. */
function update(idx: number, entry: Buffer): string {
  return `update log_entries set entry = ${bytea(entry)}, leaf_hash = ${bytea(leafHash(entry))} where idx = ${idx}`;
}

/** The whole log made anew from these entries, with tiles and head: consistent in itself, and signed by nobody. */
function rewrite(entries: readonly Entry[]): string {
  const leaves = Buffer.concat(entries.map(({ entry }) => leafHash(entry)));
  const rows = entries.map(
    ({ entry, grant_id }, idx) =>
      `(${idx}, ${bytea(entry)}, ${bytea(leafHash(entry))}, ${grant_id === null ? "null" : `'${grant_id}'`})`,
  );
  const tiles: string[] = [];
  for (let level = 0, hashes = leaves; hashes.length > 0; level += 1) {
    const above: Buffer[] = [];
    for (let index = 0; index * TILE_WIDTH * HASH_BYTES < hashes.length; index += 1) {
      const tile = hashes.subarray(index * TILE_WIDTH * HASH_BYTES, (index + 1) * TILE_WIDTH * HASH_BYTES);
      tiles.push(`(${level}, ${index}, ${bytea(tile)})`);
      if (tile.length === TILE_WIDTH * HASH_BYTES) above.push(rootOfHashes(tile));
    }
    hashes = Buffer.concat(above);
  }
  const range = emptyRange();
  appendHashes(range, 0, leaves);
  return `delete from log_entries; delete from log_tiles;
    insert into log_entries (idx, entry, leaf_hash, grant_id) values ${rows.join(",")};
    insert into log_tiles (level, idx, hashes) values ${tiles.join(",")};
    update log_head set size = ${entries.length}, root = ${bytea(rootOf(range))}`;
}

function bytea(bytes: Uint8Array): string {
  return `'\\x${Buffer.from(bytes).toString("hex")}'::bytea`;
}

/** The tables as files of the public layout, without a question asked. */
async function dumpStore(system: TestSystem, folder: string): Promise<void> {
  const put = async (path: string, bytes: Uint8Array | string): Promise<void> => {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await writeFile(join(folder, path), bytes);
  };
  const [head] = await system.storeQuery<{ size: string; note: string }>(
    "select size, note from log_checkpoints order by size desc limit 1",
  );
  const size = Number(head?.size ?? 0);
  await put("checkpoint", head?.note ?? "");
  const tiles = await system.storeQuery<{ level: number; idx: string; hashes: Buffer }>("select * from log_tiles");
  const entries = await allEntries(system);
  for (const { level, idx, hashes } of tiles) {
    const index = Number(idx);
    const width = Math.min(TILE_WIDTH, hashesInLevel(level, size) - index * TILE_WIDTH);
    if (width <= 0) continue;
    await put(tilePath({ level, index, width }), hashes.subarray(0, width * HASH_BYTES));
    if (level !== 0) continue;
    const bundle = entries.slice(index * TILE_WIDTH, index * TILE_WIDTH + width).map(({ entry }) => entry);
    await put(tilePath({ level: "entries", index, width }), encodeBundle(bundle));
  }
  const sealed = new Set(
    entries.slice(0, size).flatMap(({ entry }) => {
      const { type, session, data } = JSON.parse(entry.toString("utf8")) as {
        type: string;
        session?: string;
        data?: { chunk?: number };
      };
      return type === "recording.sealed" ? [`${session} ${data?.chunk}`] : [];
    }),
  );
  const chunks = await system.storeQuery<{ session: string; chunk: number; sha256: Buffer }>(
    "select session, chunk, sha256 from chunks",
  );
  for (const { session, chunk, sha256 } of chunks) {
    if (!sealed.has(`${session} ${chunk}`)) continue;
    const file = join(system.config.dataDir, "chunks", chunkName(session, chunk, sha256));
    await put(chunkPath(session, chunk), await readFile(file));
  }
}
