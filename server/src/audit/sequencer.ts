import {
  EMPTY_ROOT,
  FormatError,
  HASH_BYTES,
  leafHash,
  openCheckpoint,
  parseVerifierKey,
  rootOf,
  signCheckpoint,
  VerifyError,
  type Checkpoint,
  type NoteSigner,
  type NoteVerifier,
} from "@glasskey/verify";
import pg from "pg";
import { sleep } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import { clientConfig, type StoreAddress } from "../store/database.ts";
import { openHeadFile, type HeadFile } from "./head-file.ts";
import { readKeys, type KeysInForce, type SignerOf } from "./keys.ts";
import { growEdge, integrity, readEdge, rootAt, type Edge, type TileReader } from "./tree.ts";

export type SequencerOptions = SequencerBasics & (KeysOfTable | FixedKeys);

/** Table `log_keys` says which generations sign; it is read for every checkpoint. */
export interface KeysOfTable {
  readonly signerOf: SignerOf;
}

/** For measurements and tests of the tree alone. */
export interface FixedKeys {
  /** The log's key under its origin; two of them while a key is being replaced. */
  readonly signers: readonly [NoteSigner, ...NoteSigner[]];
  /** Keys that signed this log earlier, so that its last checkpoint can be checked after a replacement. */
  readonly formerKeys?: readonly NoteVerifier[];
}

interface SequencerBasics {
  readonly address: StoreAddress;
  /** File for the second copy of the last signed checkpoint; in the data folder, not in the database. */
  readonly headFile: string;
  /** A third place that remembers what was signed; asked before anything is signed. */
  readonly thirdPlace?: ThirdPlace | undefined;
  /** How long the store may take for one answer; 35 s by default, a little more than the store itself allows a statement. */
  readonly answerMs?: number | undefined;
  /** A passing fault, such as a lost connection; it is tried again. */
  onProblem(error: unknown): void;
  /** The log does not verify. Nothing is sequenced any more; the process should stop. */
  onIntegrityError(error: GlassError): void;
}

/** Somebody outside who may know a newer head of this log than store and head file do, such as a witness. */
export interface ThirdPlace {
  /**
   * @param last the newest checkpoint that the store has: a signed note, of size 0 where nothing was published yet.
   * @param newestSize reads the newest published size again: another process may be signing.
   * @throws GlassError `integrity` when more was signed once than the store has, or something else. Not to get an answer
   *   is no error.
   */
  confirm(last: string, newestSize: () => Promise<number>): Promise<void>;
}

export interface Sequencer {
  /** Whether this process has the lock now. */
  leads(): boolean;
  /** Integrates and signs what is committed, if it leads, and lets go of the lock. */
  stop(): Promise<void>;
}

const LOCK = 0x676c6f67; // "glog": one sequencer in one database
const BATCH = 4_096; // ~1 MB of entries in one transaction
const POLL_MS = 100; // at most ten checkpoints a second, and none later than that; see 0002_log.sql for why there is no NOTIFY
const TAKE_OVER_MS = 1_000; // how often the others try for the lock
const RETRY_MS = 500;
const ANSWER_MS = 35_000; // a network that falls silent says nothing for a quarter of an hour

const MOVE = `
  with batch as (
    delete from log_queue where id = any (array(select id from log_queue order by id limit $1))
    returning id, entry, grant_id)
  insert into log_entries (idx, entry, leaf_hash, grant_id)
  select $2::bigint + row_number() over (order by id) - 1, entry, sha256('\\x00'::bytea || entry), grant_id from batch
  returning idx, leaf_hash`;
const UPSERT_TILES = `
  insert into log_tiles (level, idx, hashes)
  select * from unnest($1::smallint[], $2::bigint[], $3::bytea[])
  on conflict (level, idx) do update set hashes = excluded.hashes`;

/**
 * Gives every committed event its index, builds the tree and signs checkpoints. Of all processes on one store, the one
 * with the advisory lock does it, on the connection that has the lock: without the one there is not the other.
 *
 * Order of steps, so that no second root is ever signed at one size: entries, tiles and head are committed; then the
 * head is signed; the note is made durable in the head file; only then is it published in `log_checkpoints`. A crash
 * between any two of them is taken up at the next start.
 * @throws GlassError `integrity` when the store's log does not fit what was signed; `store_unavailable`.
 */
export async function startSequencer(options: SequencerOptions): Promise<Sequencer> {
  const headFile = openHeadFile(options.headFile);
  const keys = keySource(options);
  const stopping = new AbortController();
  let leading = false;
  let justAsked = true; // the third place, at the start

  const first = await connect(options.address, options.answerMs);
  try {
    await remembered(first, await checkLog(first, keys, headFile)); // refuses the start
  } finally {
    await first.end();
  }

  const work = (async () => {
    while (!stopping.signal.aborted) {
      try {
        await lead();
      } catch (error) {
        if (error instanceof GlassError && error.code === "integrity") return options.onIntegrityError(error);
        options.onProblem(error);
        await sleep(RETRY_MS, stopping.signal).catch(() => {});
      } finally {
        leading = false;
      }
    }
  })();

  /** What others remember of the log is in the store. */
  async function remembered(client: pg.Client, { note }: State): Promise<void> {
    if (options.thirdPlace === undefined) return;
    const { signers } = await keys(client);
    const nothing = { origin: signers[0].name, size: 0, root: EMPTY_ROOT }; // a prefix of any log, and never published
    await options.thirdPlace.confirm(note ?? signCheckpoint(nothing, signers), async () => {
      const sizes = await client.query<{ size: number | null }>("select max(size) as size from log_checkpoints");
      return sizes.rows[0]?.size ?? 0;
    });
  }

  /** Waits for the lock and works while there is a connection. Returns when asked to stop. */
  async function lead(): Promise<void> {
    // Whoever lost a connection, even one that only waited, or waited at all, may lead over another store by then.
    let asked = justAsked;
    justAsked = false;
    const client = await connect(options.address, options.answerMs);
    try {
      while (!(await tryLock(client))) {
        asked = false;
        if (stopping.signal.aborted) return;
        await sleep(TAKE_OVER_MS, stopping.signal).catch(() => {});
      }
      let state = await checkLog(client, keys, headFile);
      if (!asked) await remembered(client, state);
      leading = true;
      for (;;) {
        const last = stopping.signal.aborted; // what was committed before the stop is still taken
        let moved = 0;
        do {
          moved = await integrate(client, state.edge);
          state = await publish(client, state, keys, headFile);
        } while (moved === BATCH);
        if (last) return;
        await sleep(POLL_MS, stopping.signal).catch(() => {});
      }
    } finally {
      await client.end().catch(() => {});
    }
  }

  return {
    leads: () => leading,
    async stop() {
      stopping.abort(new Error("the sequencer stops"));
      await work;
    },
  };
}

interface State {
  readonly edge: Edge;
  /** The newest published checkpoint, and its signed note. */
  readonly signed: Checkpoint | undefined;
  readonly note: string | undefined;
}

/** The keys of the moment. With `hold`, they do not change before the transaction ends. */
type KeySource = (client: pg.Client, hold?: boolean) => Promise<KeysInForce>;

function keySource(options: SequencerOptions): KeySource {
  if ("signerOf" in options) return (client, hold) => readKeys(client, options.signerOf, hold);
  const { signers, formerKeys = [] } = options;
  const verifiers = [...signers.map((signer) => parseVerifierKey(signer.vkey)), ...formerKeys];
  if (verifiers.some((key) => key.name !== signers[0].name))
    throw new GlassError("config_invalid", "the log's keys have different names");
  return () => Promise.resolve({ signers, verifiers });
}

/** Moves one batch from the queue into the tree, in one transaction. Returns how many. */
async function integrate(client: pg.Client, edge: Edge): Promise<number> {
  const size = edge.range.size;
  const queue = await client.query<{ news: boolean }>("select exists (select from log_queue) as news");
  if (queue.rows[0]?.news !== true) return 0;
  await client.query("begin");
  try {
    const head = await client.query<{ size: number }>("select size from log_head for update");
    // A pooler between us and PostgreSQL can break session locks. Then this compare-and-set keeps the log from forking.
    if (head.rows[0]?.size !== size) throw new GlassError("conflict", "another process sequenced the log meanwhile");
    const { rows } = await client.query<{ idx: number; leaf_hash: Buffer }>(MOVE, [BATCH, size]);
    if (rows.length > 0) {
      const leaves = Buffer.allocUnsafe(rows.length * HASH_BYTES);
      for (const row of rows) leaves.set(row.leaf_hash, (row.idx - size) * HASH_BYTES);
      const tiles = growEdge(edge, leaves);
      const columns = [tiles.map((t) => t.level), tiles.map((t) => t.idx), tiles.map((t) => t.hashes)];
      await client.query(UPSERT_TILES, columns);
      await client.query("update log_head set size = $1, root = $2", [edge.range.size, rootOf(edge.range)]);
    }
    await client.query("commit");
    return rows.length;
  } catch (error) {
    await client.query("rollback").catch(() => {});
    throw error; // the edge in memory may be ahead now: the caller drops it with the connection
  }
}

/** Signs what is integrated, unless that is signed already, with every key that is in force when it is published. */
async function publish(client: pg.Client, state: State, keys: KeySource, headFile: HeadFile): Promise<State> {
  const head = { size: state.edge.range.size, root: rootOf(state.edge.range) };
  if (!maySign(state.signed, head)) return state;
  await client.query("begin");
  try {
    const { signers } = await keys(client, true);
    const next = { origin: signers[0].name, ...head };
    const note = signCheckpoint(next, signers);
    await headFile.write(note);
    // Not now(): the times of checkpoints and of changes of the keys are in the order of the lock.
    await client.query(
      "insert into log_checkpoints (size, root, note, signed_at) values ($1, $2, $3, clock_timestamp())",
      [next.size, next.root, note],
    );
    await client.query("commit");
    return { edge: state.edge, signed: next, note };
  } catch (error) {
    await client.query("rollback").catch(() => {});
    throw error; // the next to lead finds the head file one ahead, which is as after a crash
  }
}

/**
 * Whether `next` is news that may be signed after `last`.
 * @throws GlassError `integrity` for a second root at one size, or a tree that became smaller.
 */
export function maySign(last: Omit<Checkpoint, "origin"> | undefined, next: Omit<Checkpoint, "origin">): boolean {
  if (last === undefined) return next.size > 0;
  if (next.size < last.size) throw integrity(`it has ${next.size} entries, and ${last.size} were signed`);
  if (next.size > last.size) return true;
  if (!Buffer.from(next.root).equals(last.root)) throw integrity(`a second root at size ${next.size} was not signed`);
  return false;
}

/**
 * Holds the stored tree against the last checkpoint in the store and the one in the head file, and finishes what a crash
 * left between the two. Costs a few tiles, whatever the size: every byte is the verifier's work.
 * @throws GlassError `integrity`.
 */
async function checkLog(client: pg.Client, source: KeySource, headFile: HeadFile): Promise<State> {
  // One snapshot: another process may be sequencing. The file is read first: it may only be behind what the store has.
  const inFile = await headFile.read();
  await client.query("begin isolation level repeatable read read only");
  try {
    const { verifiers: keys } = await source(client);
    const head = (await client.query<{ size: number; root: Buffer }>("select size, root from log_head")).rows[0];
    if (head === undefined) throw integrity("its head is missing");
    const readTile = tileReader(client);
    const edge = await readEdge(head.size, readTile);
    if (!rootOf(edge.range).equals(head.root))
      throw integrity(`its tiles do not have the root of its head, size ${head.size}`);
    await checkLastEntries(client, edge, head.size);

    const rows = await client.query<{ size: number; root: Buffer; note: string }>(
      "select size, root, note from log_checkpoints order by size desc limit 1",
    );
    const last = rows.rows[0];
    const signed = last === undefined ? undefined : openSigned(last.note, keys, "the last checkpoint");
    if (last !== undefined && (signed?.size !== last.size || !last.root.equals(signed.root))) {
      throw integrity("the last checkpoint's row is not what its note says");
    }
    if (signed !== undefined) await checkPrefix(signed, head.size, readTile, "the last checkpoint");
    if (inFile !== undefined) {
      const kept = openSigned(inFile, keys, "the signed head in the data folder");
      await checkPrefix(kept, head.size, readTile, "the signed head in the data folder");
    }
    await client.query("commit");
    return { edge, signed, note: last?.note };
  } catch (error) {
    await client.query("rollback").catch(() => {});
    throw error;
  }
}

/** The entries that the rightmost tile covers are there, hash to it, and are the last. */
async function checkLastEntries(client: pg.Client, edge: Edge, size: number): Promise<void> {
  const { rows } = await client.query<{ idx: number; entry: Buffer }>(
    "select idx, entry from log_entries where idx >= $1 order by idx limit 257",
    [size - (size % 256)],
  );
  const tile = edge.open[0]?.hashes ?? Buffer.alloc(0);
  if (rows.length !== size % 256) throw integrity(`it does not have just the entries of its head, size ${size}`);
  for (const [i, row] of rows.entries()) {
    if (!leafHash(row.entry).equals(tile.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES))) {
      throw integrity(`entry ${row.idx} is not the one in its tree`);
    }
  }
}

async function checkPrefix(signed: Checkpoint, size: number, readTile: TileReader, what: string): Promise<void> {
  if (signed.size > size) throw integrity(`${what} covers ${signed.size} entries, and the store has ${size}`);
  const root = signed.size === 0 ? Buffer.from(EMPTY_ROOT) : await rootAt(signed.size, readTile);
  if (!root.equals(signed.root)) throw integrity(`${what} has another root at size ${signed.size} than the store`);
}

function openSigned(note: string, keys: readonly NoteVerifier[], what: string): Checkpoint {
  try {
    return openCheckpoint(note, keys);
  } catch (error) {
    if (error instanceof FormatError || error instanceof VerifyError) throw integrity(`${what}: ${error.message}`);
    throw error;
  }
}

function tileReader(client: pg.Client): TileReader {
  return async (level, index) => {
    const { rows } = await client.query<{ hashes: Buffer }>(
      "select hashes from log_tiles where level = $1 and idx = $2",
      [level, index],
    );
    return rows[0]?.hashes;
  };
}

async function tryLock(client: pg.Client): Promise<boolean> {
  const { rows } = await client.query<{ got: boolean }>("select pg_try_advisory_lock($1) as got", [LOCK]);
  return rows[0]?.got === true;
}

async function connect(address: StoreAddress, answerMs = ANSWER_MS): Promise<pg.Client> {
  const client = new pg.Client({
    ...clientConfig(address),
    ...{ application_name: "glasskey log", query_timeout: answerMs },
  });
  client.on("error", () => {}); // the next query rejects
  try {
    await client.connect();
    // A leader whose machine is gone must lose the lock within half a minute, not after two hours.
    await client.query(
      `set statement_timeout = '30s'; set idle_in_transaction_session_timeout = '30s';
       set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3`,
    );
    return client;
  } catch (cause) {
    await client.end().catch(() => {});
    throw new GlassError("store_unavailable", `the store does not answer: ${describe(cause)}`, { cause });
  }
}
