import {
  encodeBundle,
  formatProof,
  HASH_BYTES,
  hashesInLevel,
  inclusionProof,
  parseTilePath,
  TILE_WIDTH,
  type TileName,
} from "@glasskey/verify";
import { sleep } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { Store } from "../store/database.ts";
import { integrity, nodesOf, type TileReader } from "./tree.ts";

/** One file of the public layout, as it goes over HTTP. */
export interface LogFile {
  readonly bytes: Buffer;
  readonly contentType: "text/plain; charset=utf-8" | "application/octet-stream";
  /** Tiles never change and may be cached for ever; the checkpoint may not. */
  readonly immutable: boolean;
}

export interface LogEntry {
  readonly index: number;
  readonly leafHash: Buffer;
  /** The stored bytes: what the leaf hash is of. */
  readonly bytes: Buffer;
  /** The same, decoded for reading. */
  readonly entry: JsonObject;
}

export interface EntryQuery {
  /** First index; 0 when left out. */
  readonly from?: number | undefined;
  /** Index after the last; the newest checkpoint's size when left out. */
  readonly to?: number | undefined;
  readonly grant?: string | undefined;
  /** At most this many, 1 to 1,000. */
  readonly limit: number;
  /** The newest of the range first, instead of the oldest. */
  readonly newestFirst?: boolean | undefined;
}

/** Reads what is signed. Entries that are integrated but not covered by a checkpoint yet do not show. */
export interface LogReader {
  /** The newest checkpoint, a signed note; undefined before the first entry. */
  checkpoint(): Promise<string | undefined>;
  /** The newest checkpoint's number of entries. */
  size(): Promise<number>;
  /** `checkpoint` or a tile's path; undefined for any other path and for what is beyond the checkpoint. */
  file(path: string): Promise<LogFile | undefined>;
  entries(query: EntryQuery): Promise<LogEntry[]>;
  /**
   * A tlog-proof (https://c2sp.org/tlog-proof) for one entry, under the newest checkpoint.
   * @throws GlassError `not_found`.
   */
  prove(index: number): Promise<{ proof: string; entry: Buffer }>;
  /**
   * Waits until everything that was committed before this call is covered by a signed checkpoint; returns its size.
   * @throws GlassError `store_unavailable` after `timeoutMs`: no sequencer works.
   */
  settled(timeoutMs: number): Promise<number>;
}

const SETTLED_POLL_MS = 20;

export function createLogReader(store: Store): LogReader {
  async function newest(): Promise<{ size: number; note: string } | undefined> {
    return store
      .selectFrom("log_checkpoints")
      .select(["size", "note"])
      .orderBy("size", "desc")
      .limit(1)
      .executeTakeFirst();
  }

  async function tile(name: TileName): Promise<Buffer | undefined> {
    if (name.level === "entries") {
      const first = name.index * TILE_WIDTH;
      const rows = await store
        .selectFrom("log_entries")
        .select("entry")
        .where("idx", ">=", first)
        .where("idx", "<", first + name.width)
        .orderBy("idx")
        .execute();
      return rows.length === name.width ? encodeBundle(rows.map((row) => row.entry)) : undefined;
    }
    const hashes = await readStoredTile(store)(name.level, name.index);
    const bytes = name.width * HASH_BYTES;
    return hashes === undefined || hashes.length < bytes ? undefined : Buffer.from(hashes.subarray(0, bytes));
  }

  return {
    checkpoint: async () => (await newest())?.note,
    size: async () => (await newest())?.size ?? 0,
    async file(path) {
      const head = await newest();
      if (head === undefined) return undefined;
      if (path === "checkpoint") {
        return { bytes: Buffer.from(head.note), contentType: "text/plain; charset=utf-8", immutable: false };
      }
      const name = parseTilePath(path);
      if (name === undefined) return undefined;
      const level = name.level === "entries" ? 0 : name.level;
      if (name.index * TILE_WIDTH + name.width > hashesInLevel(level, head.size)) return undefined;
      const bytes = await tile(name);
      if (bytes === undefined) throw integrity(`${path} is missing`);
      return { bytes, contentType: "application/octet-stream", immutable: true };
    },
    async entries({ from = 0, to, grant, limit, newestFirst = false }) {
      const size = (await newest())?.size ?? 0;
      let query = store
        .selectFrom("log_entries")
        .select(["idx", "entry", "leaf_hash"])
        .where("idx", ">=", from)
        .where("idx", "<", Math.min(to ?? size, size))
        .orderBy("idx", newestFirst ? "desc" : "asc")
        .limit(Math.max(1, Math.min(limit, 1_000)));
      if (grant !== undefined) query = query.where("grant_id", "=", grant);
      return (await query.execute()).map((row) => ({
        index: row.idx,
        leafHash: row.leaf_hash,
        bytes: row.entry,
        entry: JSON.parse(row.entry.toString("utf8")) as JsonObject, // our own encodeEvent wrote it
      }));
    },
    async prove(index) {
      const head = await newest();
      const row = await store.selectFrom("log_entries").select("entry").where("idx", "=", index).executeTakeFirst();
      if (head === undefined || row === undefined || index >= head.size) {
        throw new GlassError("not_found", `the log has no entry ${index}`, {
          next: `It has ${head?.size ?? 0}, counted from 0.`,
        });
      }
      const hashes = await inclusionProof(index, head.size, nodesOf(readStoredTile(store)));
      return { proof: formatProof({ index, hashes, checkpoint: head.note }), entry: row.entry };
    },
    async settled(timeoutMs) {
      const until = performance.now() + timeoutMs;
      const { target } = await store
        .selectFrom("log_queue")
        .select((eb) => eb.fn.coalesce(eb.fn.max("id"), eb.lit(0)).as("target"))
        .executeTakeFirstOrThrow();
      for (;;) {
        const waiting = await store
          .selectFrom("log_queue")
          .select("id")
          .where("id", "<=", target)
          .limit(1)
          .executeTakeFirst();
        if (waiting === undefined) {
          const { size } = await store.selectFrom("log_head").select("size").executeTakeFirstOrThrow();
          const signed = (await newest())?.size ?? 0;
          if (signed >= size) return signed;
        }
        if (performance.now() > until) {
          throw new GlassError("store_unavailable", `the log did not take up new entries within ${timeoutMs} ms`, {
            next: "Nothing is lost: they are committed and wait. Look for a Glasskey process that leads the log.",
          });
        }
        await sleep(SETTLED_POLL_MS);
      }
    },
  };
}

/** Hashes of a tile as stored; a rightmost one may have more of them than a checkpoint covers. */
export function readStoredTile(store: Store): TileReader {
  return async (level, index) => {
    const row = await store
      .selectFrom("log_tiles")
      .select("hashes")
      .where("level", "=", level)
      .where("idx", "=", index)
      .executeTakeFirst();
    return row?.hashes;
  };
}
