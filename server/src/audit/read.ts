import {
  encodeBundle,
  formatProof,
  HASH_BYTES,
  hashesInLevel,
  inclusionProof,
  parseCheckpointText,
  parseNote,
  parseTilePath,
  TILE_WIDTH,
  type TileName,
} from "@glasskey/verify";
import { sql } from "kysely";
import { sleep } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import type { JsonObject, JsonValue } from "../core/json.ts";
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
  /** The same, decoded for reading; bytes that are no entry of ours as `entryBase64`, and nothing else. */
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

export interface LogProgress {
  /** Entries under the newest checkpoint. */
  readonly size: number;
  /** Undefined where they are not configured. */
  readonly witnessed: number | undefined;
  readonly archived: number | undefined;
  /** When the newest checkpoint was signed; undefined before the first. */
  readonly signedAt: Date | undefined;
  /** Committed events that no checkpoint covers yet, at most {@link MAX_COUNTED}, and when the oldest happened. */
  readonly waiting: number;
  readonly waitingSince: Date | undefined;
  /** Since when a checkpoint has waited for its witnesses; undefined where none waits. */
  readonly unwitnessedSince: Date | undefined;
}

export interface EntryProof {
  readonly proof: string;
  readonly entry: Buffer;
  /** Size of the checkpoint in the proof, and whether that satisfies the witness policy. */
  readonly size: number;
  readonly witnessed: boolean;
}

export interface LogReaderOptions {
  /** Whether this checkpoint satisfies the witness policy of now; left out where no witnesses are configured. */
  readonly witnessed?: ((note: string) => Promise<boolean>) | undefined;
  /** How many entries the archive has; left out where there is no archive. */
  readonly archivedSize?: (() => Promise<number | undefined>) | undefined;
}

/** Reads what is signed. Entries that are integrated but not covered by a checkpoint yet do not show. */
export interface LogReader {
  /** The newest checkpoint, a signed note; undefined before the first entry. */
  checkpoint(): Promise<string | undefined>;
  /** The newest checkpoint's number of entries. */
  size(): Promise<number>;
  /** How far the log is, and what waits. */
  progress(): Promise<LogProgress>;
  /** The newest checkpoint that satisfies the witness policy, with its cosignatures; undefined where there is none. */
  witnessed(): Promise<string | undefined>;
  /**
   * How many entries that covers, 0 where the log here is not what the witnesses saw; undefined where no witnesses are
   * configured.
   */
  witnessedSize(): Promise<number | undefined>;
  /** How many entries the archive has under a dated checkpoint; undefined where no archive is configured. */
  archivedSize(): Promise<number | undefined>;
  /**
   * `checkpoint`, `checkpoint.witnessed`, `checkpoints/<size>` or a tile's path; undefined for any other path and for what
   * is beyond the checkpoint.
   */
  file(path: string): Promise<LogFile | undefined>;
  entries(query: EntryQuery): Promise<LogEntry[]>;
  /**
   * A tlog-proof (https://c2sp.org/tlog-proof) for one entry, under the newest witnessed checkpoint that covers it, else
   * under the newest.
   * @throws GlassError `not_found`.
   */
  prove(index: number): Promise<EntryProof>;
  /**
   * Waits until everything that was committed before this call is covered by a signed checkpoint; returns its size.
   * @throws GlassError `store_unavailable` after `timeoutMs`: no sequencer works.
   */
  settled(timeoutMs: number): Promise<number>;
}

const SETTLED_POLL_MS = 20;
const MAX_COUNTED = 1_000_000; // a queue that long is trouble enough
const WITNESSED_LOOKED_AT = 32; // after a change of the policy, the newest ones may satisfy it no more

export function createLogReader(store: Store, options: LogReaderOptions = {}): LogReader {
  async function newest(): Promise<{ size: number; note: string } | undefined> {
    return store
      .selectFrom("log_checkpoints")
      .select(["size", "note"])
      .orderBy("size", "desc")
      .limit(1)
      .executeTakeFirst();
  }

  const satisfying = { note: "", yes: false }; // the last one looked at: signatures are not checked for every request
  /** The newest witnessed checkpoint. Signatures are what counts: anybody who writes to the store can add a row. */
  async function newestWitnessed(): Promise<{ size: number; note: string } | undefined> {
    const { witnessed } = options;
    if (witnessed === undefined) return undefined;
    for (let limit = 1; ; limit = WITNESSED_LOOKED_AT) {
      const rows = await store
        .selectFrom("witnessed_checkpoints")
        .select(["size", "note"])
        .orderBy("size", "desc")
        .limit(limit)
        .execute();
      for (const row of rows) {
        if (satisfying.note !== row.note) Object.assign(satisfying, { note: row.note, yes: await witnessed(row.note) });
        if (satisfying.yes && parseCheckpointText(parseNote(row.note).text).size === row.size) return row;
      }
      if (rows.length < limit || limit > 1) return undefined;
    }
  }

  /**
   * The same, if the log here is what the witnesses saw. In a store that was rewritten an honest one may be left over: it
   * is still served, because it is what finds the other history, and vouches for no entry of this one.
   */
  async function vouchedFor(): Promise<{ size: number; note: string } | undefined> {
    const found = await newestWitnessed();
    if (found === undefined) return undefined;
    const own = await store
      .selectFrom("log_checkpoints")
      .select("root")
      .where("size", "=", found.size)
      .executeTakeFirst();
    const seen = parseCheckpointText(parseNote(found.note).text).root;
    return own !== undefined && Buffer.compare(own.root, seen) === 0 ? found : undefined;
  }

  async function witnessedSize(): Promise<number | undefined> {
    return options.witnessed === undefined ? undefined : ((await vouchedFor())?.size ?? 0);
  }

  /** When the first checkpoint of more than `size` entries was signed. */
  async function signedAfter(size: number): Promise<Date | undefined> {
    const row = await store
      .selectFrom("log_checkpoints")
      .select("signed_at")
      .where("size", ">", size)
      .orderBy("size")
      .limit(1)
      .executeTakeFirst();
    return row?.signed_at;
  }

  async function progress(): Promise<LogProgress> {
    const [witnessed, archived] = [await witnessedSize(), await options.archivedSize?.()]; // before the size: never ahead
    const size = (await newest())?.size ?? 0;
    const queue = await sql<{ count: number }>`
      select count(*) as count from (select from log_queue limit ${MAX_COUNTED}) as counted`.execute(store);
    const head = await store.selectFrom("log_head").select("size").executeTakeFirstOrThrow();
    const unsigned = await store.selectFrom("log_entries").select("entry").where("idx", "=", size).executeTakeFirst();
    const queued = await store.selectFrom("log_queue").select("entry").orderBy("id").limit(1).executeTakeFirst();
    const oldest = unsigned ?? queued;
    return {
      ...{ size, witnessed, archived },
      signedAt: size === 0 ? undefined : await signedAfter(size - 1),
      waiting: Math.max(0, head.size - size) + (queue.rows[0]?.count ?? 0),
      waitingSince: oldest === undefined ? undefined : timeOf(oldest.entry),
      unwitnessedSince: witnessed === undefined ? undefined : await signedAfter(witnessed),
    };
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
    progress,
    witnessed: async () => (await newestWitnessed())?.note,
    witnessedSize,
    archivedSize: async () => options.archivedSize?.(),
    async file(path) {
      const head = await newest();
      if (head === undefined) return undefined;
      const noteFile = (note: string, immutable = false): LogFile => {
        return { bytes: Buffer.from(note), contentType: "text/plain; charset=utf-8", immutable };
      };
      if (path === "checkpoint") return noteFile(head.note);
      if (path === "checkpoint.witnessed") {
        const witnessed = await newestWitnessed();
        return witnessed === undefined ? undefined : noteFile(witnessed.note);
      }
      const [, size] = /^checkpoints\/([1-9]\d{0,14})$/.exec(path) ?? [];
      if (size !== undefined) {
        const kept = await store
          .selectFrom("log_checkpoints")
          .select("note")
          .where("size", "=", Number(size))
          .executeTakeFirst();
        return kept === undefined ? undefined : noteFile(kept.note, true);
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
        entry: decodeEntry(row.entry),
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
      const cosigned = await vouchedFor();
      const witnessed = cosigned !== undefined && index < cosigned.size && cosigned.size <= head.size;
      const { size, note } = witnessed ? cosigned : head;
      const hashes = await inclusionProof(index, size, nodesOf(readStoredTile(store)));
      return { proof: formatProof({ index, hashes, checkpoint: note }), entry: row.entry, size, witnessed };
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

const MAX_DEPTH = 64; // `encodeEvent` stops at a quarter of it; thousands deep is parsed, and cannot be written again

/**
 * Total: whoever may write to the queue can put bytes into the log that `encodeEvent` never made. They are there for ever,
 * and must not hide what stands beside them from whoever reads.
 */
function decodeEntry(bytes: Buffer): JsonObject {
  try {
    const value = JSON.parse(bytes.toString("utf8")) as JsonValue;
    if (typeof value === "object" && value !== null && !Array.isArray(value) && depthOf(bytes) <= MAX_DEPTH)
      return value as JsonObject;
  } catch {
    // as what is JSON, and not an object
  }
  return { entryBase64: bytes.toString("base64") };
}

/** How deeply well-formed JSON is nested. */
function depthOf(json: Buffer): number {
  let [depth, deepest, inString] = [0, 0, false];
  for (let i = 0; i < json.length; i += 1) {
    const byte = json[i];
    if (inString && byte === BACKSLASH) i += 1;
    else if (byte === QUOTE) inString = !inString;
    else if (!inString && (byte === BRACKET || byte === BRACE)) deepest = Math.max(deepest, (depth += 1));
    else if (!inString && (byte === BRACKET_END || byte === BRACE_END)) depth -= 1;
  }
  return deepest;
}

const [QUOTE, BACKSLASH, BRACKET, BRACE, BRACKET_END, BRACE_END] = [0x22, 0x5c, 0x5b, 0x7b, 0x5d, 0x7d];

/** When the event happened; undefined for bytes that are no entry of ours. */
function timeOf(entry: Buffer): Date | undefined {
  try {
    const { at } = JSON.parse(entry.toString("utf8")) as JsonObject;
    const time = new Date(typeof at === "string" ? at : NaN);
    return Number.isNaN(time.getTime()) ? undefined : time;
  } catch {
    return undefined;
  }
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
