import { openCheckpoint, parseVerifierKeys } from "@glasskey/verify";
import type { LogReader } from "../audit/read.ts";
import { sha256 } from "../core/bytes.ts";
import { sleep, within } from "../core/clock.ts";
import { formatDuration } from "../core/duration.ts";
import { describe, GlassError } from "../core/errors.ts";
import { sha256Hex, type ObjectStore } from "../objects/object-store.ts";
import type { Store } from "../store/database.ts";
import { recheck } from "./check.ts";
import { openCopy, type LogPart } from "./copy.ts";
import { createCursors, type Cursor } from "./cursor.ts";
import { datedPath, witnessedPath, type SealedChunk } from "./layout.ts";
import { checkOwner, checkSamePlace } from "./owner.ts";
import {
  faultsOf,
  noteOwed,
  noteStored,
  owed,
  standing,
  storedAmong,
  type Standing,
  type StoredNote,
} from "./standing.ts";

export interface ArchiveOptions {
  readonly store: Store;
  readonly objects: ObjectStore;
  readonly reader: LogReader;
  /** The encrypted bytes of a sealed chunk, or undefined where they are gone. */
  readonly readChunk: (chunk: SealedChunk) => Promise<Uint8Array | undefined>;
  /** The log's verifier keys, one to a line. */
  readonly keys: () => Promise<string> | string;
  /** This process's id in table `nodes`. */
  readonly node: string;
  readonly warn: (line: string) => void;
  readonly alarms: { raise(key: string, text: string): Promise<unknown>; clear(key: string): Promise<unknown> };
  /** How long what is written must stay, by class. */
  readonly retainMs: number;
  readonly recordingsRetainMs: number;
  /** A dated checkpoint at least this often while there is news. */
  readonly everyMs: number;
  /** How often to look for news; 10 s by default. */
  readonly pollMs?: number;
  /** An object is looked at again when this has passed since the last time; 30 days by default. */
  readonly recheckMs?: number;
  /** How long a stop waits for what is still to be copied; 20 s by default. */
  readonly stopMs?: number;
  /** How often an alarm is cleared that another process may have raised; 60 s by default. */
  readonly clearEveryMs?: number;
}

export interface Archive {
  /** How many entries a dated checkpoint in the archive covers; all of them are there. */
  archivedSize(): Promise<number>;
  /** How far it is behind, for metrics: entries, and for how long the oldest of them has been signed. */
  lag(): Promise<{ entries: number; ms: number }>;
  status(): Promise<ArchiveStatus>;
  /** Copies all there is and dates a checkpoint, if no other process is at it. Throws nothing: see `status`. */
  archiveNow(): Promise<void>;
  /** Copies what there is, for a few seconds at most, and stops. */
  stop(): Promise<void>;
}

export interface ArchiveStatus extends Standing {
  readonly retainMs: number;
  readonly recordingsRetainMs: number;
  readonly everyMs: number;
}

const POLL_MS = 10_000;
const RECHECK_MS = 30 * 24 * 3_600_000;
const CHECKED_A_ROUND = 16;
const PUTS_AT_ONCE = 8;
const STOP_MS = 20_000; // what is not there by then is there after the next start
const CLEAR_EVERY_MS = 60_000; // another process may have raised it, and be gone
const BEHIND = "archive behind";
const CHANGED = "archive changed";
/** So many of the objects that were changed are named in the alarm. */
const FAULTS_NAMED = 5;

/**
 * Copies the log and the recordings to where nobody can write twice. The log is the outbox: one process at a time claims
 * the place, puts what is new and moves the cursor; a crash at any point repeats a step, and none is skipped.
 */
export function startArchive(options: ArchiveOptions): Archive {
  const { store, objects, reader, alarms, warn, everyMs, retainMs, recordingsRetainMs } = options;
  const { place } = objects;
  const pollMs = options.pollMs ?? POLL_MS;
  const cursors = createCursors(store, place, options.node);
  const stopping = new AbortController();
  const hurry = new AbortController();
  let fit = false;

  /** The place can hold it, and holds nobody else's. */
  const prepare = async (cursor: Cursor, keys: string): Promise<void> => {
    if (!fit) await objects.preflight(true);
    if (!fit && cursor.size === 0) await checkOwner({ store, objects, keys });
    if (!fit) await checkSamePlace(objects, cursor.size);
    fit = true;
  };

  const put = async (part: LogPart, keptMs: number): Promise<StoredNote> => {
    const stored = await objects.put(part.path, part.bytes, { retainMs: keptMs });
    return { path: part.path, sha256: sha256(part.bytes), stored };
  };

  /** Undefined where the chunk is gone, or is not what the log has: that is owed, and keeps nothing else from going on. */
  const putChunk = async (chunk: SealedChunk): Promise<StoredNote | { owed: SealedChunk; why: string }> => {
    let bytes: Uint8Array | undefined;
    try {
      bytes = await options.readChunk(chunk);
    } catch (error) {
      if (!(error instanceof GlassError && error.code === "integrity")) throw error;
      return { owed: chunk, why: describe(error) };
    }
    if (bytes === undefined) return { owed: chunk, why: "it is not among the recordings" };
    if (sha256Hex(bytes) !== chunk.sha256) return { owed: chunk, why: "its bytes are not those of its entry" };
    return put({ path: chunk.path, bytes }, recordingsRetainMs);
  };

  const lost = (): GlassError => new GlassError("conflict", `another process took over ${place}`);

  /** Puts everything, then notes it and moves the cursor in one transaction. */
  const step = async (
    parts: readonly LogPart[],
    chunks: readonly SealedChunk[],
    progress: Parameters<typeof cursors.advance>[1],
  ): Promise<void> => {
    const notes: StoredNote[] = [];
    const open: { owed: SealedChunk; why: string }[] = [];
    const work = [...chunks.map((chunk) => () => putChunk(chunk)), ...parts.map((part) => () => put(part, retainMs))];
    for (let i = 0; i < work.length; i += PUTS_AT_ONCE) {
      for (const result of await Promise.all(work.slice(i, i + PUTS_AT_ONCE).map((one) => one()))) {
        if ("owed" in result) open.push(result);
        else notes.push(result);
      }
    }
    await store.transaction().execute(async (trx) => {
      await noteStored(trx, place, notes);
      await noteOwed(
        trx,
        place,
        open.map(({ owed: chunk, why }) => ({ ...chunk, why: `could not be archived: ${why}` })),
      );
      if (!(await cursors.advance(trx, progress))) throw lost();
    });
  };

  const copy = async (cursor: Cursor, note: string, keys: string, dateNow: boolean): Promise<void> => {
    const head = openCheckpoint(note, parseVerifierKeys(keys));
    if (head.size < cursor.size) {
      const text = `the archive ${place} has ${cursor.size} entries, and the log has ${head.size}`;
      throw new GlassError("integrity", text, {
        next: "Was the store restored from a backup? Verify a restore of the archive.",
      });
    }
    const due = dateNow || cursor.dated_at === null || Date.now() - cursor.dated_at.getTime() >= everyMs;
    if (!due && cursor.next_index >= head.size) return;
    const log = await openCopy(reader, head);
    for await (const { parts, chunks, next } of log.stepsFrom(cursor.next_index)) {
      await step(parts, chunks, { next_index: next });
      if (hurry.signal.aborted || (stopping.signal.aborted && !dateNow)) return;
    }
    if (!due) return;
    await checkSamePlace(objects, cursor.size);
    for (const chunk of await owed(store, place)) {
      const result = await putChunk(chunk);
      if (!("owed" in result)) await noteStored(store, place, [result]);
    }
    if (head.size > cursor.size) {
      const partial = await log.partialParts();
      // Those of higher levels stay the same for a long time.
      const known = await storedAmong(
        store,
        place,
        partial.map(({ path }) => path),
      );
      await step(
        partial.filter(({ path }) => !known.has(path)),
        [],
        {},
      );
      // Last: whoever finds it finds all that it covers.
      await step([{ path: datedPath(head.size), bytes: Buffer.from(note) }], [], { size: head.size, dated: true });
    }
    const witnessed = await reader.witnessed();
    if (witnessed === undefined) return;
    const { size } = openCheckpoint(witnessed, parseVerifierKeys(keys));
    if (size > cursor.witnessed && size <= head.size) {
      await step([{ path: witnessedPath(size), bytes: Buffer.from(witnessed) }], [], { witnessed: size });
    }
  };

  const round = async (dateNow: boolean): Promise<void> => {
    if (hurry.signal.aborted) return;
    await cursors.read();
    const cursor = await cursors.claim(dateNow);
    if (cursor === undefined) return;
    try {
      const note = await reader.checkpoint();
      const keys = await options.keys();
      await prepare(cursor, keys);
      if (note !== undefined) await copy(cursor, note, keys, dateNow);
      if (!stopping.signal.aborted) {
        await recheck({ store, objects, recheckMs: options.recheckMs ?? RECHECK_MS, limit: CHECKED_A_ROUND });
      }
      await cursors.release();
      if (cursor.failures > 0) warn(`archive: ${place} takes objects again`);
    } catch (error) {
      const refused = error instanceof GlassError && (error.code === "config_invalid" || error.code === "integrity");
      if (refused) fit = false; // it is looked at again from the beginning
      const text =
        error instanceof GlassError && error.next !== undefined
          ? `${describe(error).replace(/\.$/, "")}. ${error.next}`
          : describe(error);
      if (cursor.last_error !== text.slice(0, 500)) warn(`archive: ${text}`);
      await cursors.fail(text, refused);
    }
  };

  const open = new Map<string, string>();
  let clearedAtMs = Number.NEGATIVE_INFINITY;
  /** Raised once, and again when `what` it is about has changed. */
  const tell = async (key: string, text: string | undefined, clearAll: boolean, what = ""): Promise<void> => {
    if (text !== undefined) {
      if (open.get(key) === what) return;
      await alarms.raise(key, text);
      open.set(key, what);
      return;
    }
    const wasOpen = open.delete(key); // whatever else is cleared: the next time it is raised again
    if (clearAll || wasOpen) await alarms.clear(key);
  };
  const watch = async (): Promise<void> => {
    const cursor = await cursors.read();
    const { ms } = await lag();
    const late = `the archive ${place} is ${formatDuration(ms)} behind the log`;
    const why = cursor.last_error === null ? "; see: glass archive status" : `: ${cursor.last_error}`;
    const behind = cursor.refused ? `nothing is archived${why}` : ms > 2 * everyMs ? `${late}${why}` : undefined;
    const faults = await faultsOf(store, place, FAULTS_NAMED + 1);
    const named = faults.slice(0, FAULTS_NAMED).map(({ path, fault }) => `${path} ${fault}`);
    const what = `${named.join(", ")}${faults.length > FAULTS_NAMED ? ", and more: glass archive status" : ""}`;
    const changed = faults.length === 0 ? undefined : `the archive ${place} was changed: ${what}`;
    const clearAll = performance.now() - clearedAtMs >= (options.clearEveryMs ?? CLEAR_EVERY_MS);
    await tell(BEHIND, behind, clearAll);
    await tell(CHANGED, changed, clearAll, what);
    if (clearAll) clearedAtMs = performance.now();
  };

  const lag = async (): Promise<{ entries: number; ms: number }> => {
    const { size } = await cursors.read();
    const first = await store
      .selectFrom("log_checkpoints")
      .select("signed_at")
      .where("size", ">", size)
      .orderBy("size")
      .limit(1)
      .executeTakeFirst();
    const ms = first === undefined ? 0 : Math.max(0, Date.now() - first.signed_at.getTime());
    return { entries: Math.max(0, (await reader.size()) - size), ms };
  };

  let turn: Promise<void> = Promise.resolve();
  const inTurn = (dateNow: boolean): Promise<void> => {
    turn = turn
      .then(() => round(dateNow))
      .catch((error: unknown) => warn(`archive: it waits for the store: ${describe(error)}`));
    return turn;
  };
  const loop = async (work: () => Promise<void>): Promise<void> => {
    while (!stopping.signal.aborted) {
      await work().catch((error: unknown) => warn(`archive: ${describe(error)}`));
      await sleep(pollMs, stopping.signal).catch(() => {});
    }
  };
  // Two loops: an object store that never answers must not keep the alarm from being raised.
  const watching = loop(watch);
  const copying = loop(() => inTurn(false));

  return {
    archivedSize: async () => (await cursors.read()).size,
    lag,
    async status() {
      const found = await standing(store, await cursors.read(), (await lag()).ms, await reader.size());
      return { ...found, retainMs, recordingsRetainMs, everyMs };
    },
    archiveNow: () => inTurn(true),
    async stop() {
      stopping.abort();
      await watching;
      const last = copying.then(() => inTurn(true));
      await within(options.stopMs ?? STOP_MS, last, () => hurry.abort());
      objects.close();
      // What is still under way puts what the log has, and moves no cursor any more; nobody needs to wait for it.
      if (hurry.signal.aborted) await cursors.letGo().catch(() => {}); // it runs out by itself
    },
  };
}
