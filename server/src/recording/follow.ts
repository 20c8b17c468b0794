import { sleep } from "../core/clock.ts";
import { RECORD } from "../targets/target.ts";
import type { StoredRecord } from "./record.ts";
import type { Sealer } from "./sealer.ts";

export interface FollowOptions {
  session: string;
  /** The last record that the caller has already; 0: none. */
  afterSeq: number;
  /** Reads the committed chunks: every record above `seq`, in order. Returns whether the end of the session was in them. */
  sealed(seq: number): AsyncGenerator<StoredRecord, { readonly complete: boolean }>;
  /** The journal's reader of this process, where the session is one of its own. */
  live: Pick<Sealer, "follow"> | undefined;
  signal: AbortSignal;
  pollMs?: number;
}

/** Consecutive records that are there at once, or word that the follower fell behind. */
export type Followed =
  | { readonly what: "records"; readonly records: readonly StoredRecord[] }
  /** So many records passed by unread; they follow once they are sealed. */
  | { readonly what: "behind"; readonly records: number }
  /** Everything that there is so far was given. */
  | { readonly what: "caught up" };

/** What waits for a reader that is slower than the session; past it the reader takes it from the chunks. */
const MAX_WAITING_BYTES = 2 << 20;
const MAX_WAITING_RECORDS = 4_096;
/** Records given at once: what one step of a reader's work is made of. */
const BATCH_BYTES = 64 << 10;
const POLL_MS = 500; // chunks of another process are up to two seconds old as it is
const LIVE_POLL_MS = 5_000; // only in case the session went on somewhere else

/**
 * Every record of a session above `afterSeq`, in order, each once, until its last one: what is sealed, then what the
 * journal's reader has, then what comes. The sequence numbers decide, so joining at any moment leaves no gap. Memory: one
 * chunk and at most 2 MiB that wait.
 * @throws GlassError as `sealed` does; the signal's reason when it aborts.
 */
export async function* followRecords(options: FollowOptions): AsyncGenerator<Followed, void> {
  const { session, live, signal } = options;
  const queue = createQueue();
  // First the subscription and then the chunks: what is sealed in between is in both, and given once.
  const following = live?.follow(session, queue.put);
  for (const record of following?.waiting ?? []) queue.put(record);
  let seq = options.afterSeq;
  try {
    for (;;) {
      let complete = false;
      const next = queue.first(seq);
      if (next !== seq + 1) {
        if (queue.tellMissed() && next !== undefined) yield { what: "behind", records: next - seq - 1 };
        const reading = options.sealed(seq);
        for (let batch: Batch = createBatch(); ;) {
          const { value, done } = await reading.next();
          signal.throwIfAborted();
          if (done === true) {
            if (batch.records.length > 0) yield { what: "records", records: batch.records };
            complete = value.complete;
            break;
          }
          seq = value.seq;
          if (!batch.add(value)) continue;
          yield { what: "records", records: batch.records };
          batch = createBatch();
        }
      }
      for (;;) {
        queue.first(seq); // drops what the chunks had
        const records = queue.take(seq);
        const last = records.at(-1);
        if (last === undefined) break;
        seq = last.seq;
        yield { what: "records", records };
        if (last.kind === RECORD.sessionEnded) return;
      }
      if (complete) return;
      if ((queue.first(seq) ?? seq + 1) === seq + 1) yield { what: "caught up" };
      await wait(queue, seq, options);
    }
  } finally {
    following?.stop();
  }
}

/** Until there is a next record, or it is time to look at the chunks. */
async function wait(queue: Queue, seq: number, { live, signal, pollMs = POLL_MS }: FollowOptions): Promise<void> {
  const first = queue.first(seq);
  if (first === seq + 1) return; // it came while the caller was busy with what was given before
  const missing = first !== undefined; // it will be in the next chunk
  const woken = new AbortController();
  queue.onPut(missing ? undefined : () => woken.abort());
  const either = AbortSignal.any([signal, woken.signal]);
  await sleep(live === undefined || missing ? pollMs : LIVE_POLL_MS, either).catch(() => {});
  queue.onPut(undefined);
  signal.throwIfAborted();
}

interface Queue {
  put(this: void, record: StoredRecord): void;
  /** Its first record after `seq`; older ones are dropped. */
  first(seq: number): number | undefined;
  /** Consecutive records from `seq + 1`, about 64 KiB of them. */
  take(seq: number): StoredRecord[];
  /** Whether records were missed since the last call. */
  tellMissed(): boolean;
  onPut(woken: (() => void) | undefined): void;
}

/** A full queue lets go of everything it has: the chunks have it within two seconds. */
function createQueue(): Queue {
  let records: StoredRecord[] = [];
  let bytes = 0;
  let missed = false;
  let woken: (() => void) | undefined;
  /** The first `count`; -1: all. */
  const drop = (count: number): void => {
    for (const record of records.splice(0, count === -1 ? records.length : count)) bytes -= record.payload.length + 64;
  };
  return {
    put(record) {
      const size = record.payload.length + 64;
      if (
        bytes + size > MAX_WAITING_BYTES + (records.length === 0 ? size : 0) ||
        records.length >= MAX_WAITING_RECORDS
      ) {
        [records, bytes, missed] = [[], 0, true];
      }
      // A copy: the record is a view into a frame or a chunk that is much longer than it.
      records.push({ ...record, payload: Buffer.from(record.payload) });
      bytes += size;
      woken?.();
    },
    first(seq) {
      drop(records.findIndex((record) => record.seq > seq));
      return records[0]?.seq;
    },
    take(seq) {
      const batch = createBatch();
      let next = seq + 1;
      for (const record of records) {
        if (record.seq !== next) break;
        next++;
        if (batch.add(record)) break;
      }
      drop(batch.records.length);
      return batch.records;
    },
    tellMissed() {
      const told = missed;
      missed = false;
      return told;
    },
    onPut(next) {
      woken = next;
    },
  };
}

interface Batch {
  readonly records: StoredRecord[];
  /** @returns whether it is full now. */
  add(record: StoredRecord): boolean;
}

export function createBatch(): Batch {
  const records: StoredRecord[] = [];
  let bytes = 0;
  return {
    records,
    add(record) {
      records.push(record);
      bytes += record.payload.length + 64;
      return bytes >= BATCH_BYTES;
    },
  };
}
