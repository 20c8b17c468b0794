import { describe, GlassError } from "../core/errors.ts";
import { sleep, within } from "../core/clock.ts";
import type { Store } from "../store/database.ts";
import {
  claimSink,
  moveCursor,
  noteFailure,
  parkedToRetry,
  parkEntry,
  readEntries,
  releaseClaim,
  renewClaim,
  settleParked,
  type Claim,
  type SinkKey,
  type StoredEntry,
} from "./cursor.ts";
import { DeliveryError, type Item, type SinkDriver } from "./sink.ts";

export interface WorkerOptions {
  readonly store: Store;
  readonly key: SinkKey;
  readonly driver: SinkDriver;
  readonly render: (entries: readonly StoredEntry[]) => Promise<readonly Item[]>;
  /** This process's id in table `nodes`. */
  readonly node: string;
  readonly warn: (line: string) => void;
  readonly pollMs?: number;
  /** Pauses after failures, the last one for all further ones. */
  readonly pausesMs?: readonly number[];
}

/** How often the log is looked at: what a SIEM sees is at most this much older than the checkpoint that covers it. */
const POLL_MS = 250;
const RENEW_MS = 5_000;
const BATCH_TIMEOUT_MS = 5 * 60_000; // whatever a driver does: beyond this it hangs
/** A stop waits so long for the answer to what was sent, because without it all of that comes twice. */
const STOP_MS = 2_000;
/** And so long after that for the delivery to end: a disk that hangs heeds nothing. */
const HANG_MS = 5_000;
const PAUSES_MS = [1_000, 2_000, 5_000, 10_000, 30_000, 60_000] as const;
/** So many entries after one another may be put aside; then it is the receiver, and the sink waits for it. */
const PARKED_IN_A_ROW = 3;

/**
 * Delivers the log to one sink, in order, at least once, and only what a signed checkpoint covers. Any number of
 * processes may run one: the row of the sink is claimed, and the claim of a dead process runs out.
 * @returns a function that stops it, and resolves when nothing is under way any more, or what is does not end.
 */
export function startWorker(options: WorkerOptions): () => Promise<void> {
  const { store, key, driver, node, warn, pollMs = POLL_MS, pausesMs = PAUSES_MS } = options;
  const stopped = new AbortController();
  const hurried = new AbortController();
  const left = new AbortController();
  /** Smaller after a refusal, to find the entry that it is about, and where time ran out; grows again with each success. */
  let entriesAtMost = driver.batch.entries;

  async function deliver(claim: Claim, signal: AbortSignal): Promise<void> {
    if (claim.next < claim.size) await deliverNext(claim, signal);
    // Last: one that the receiver cannot cope with must not hold up what comes.
    if (claim.retry) await retryParked(claim, signal);
    if (claim.next >= claim.size) await releaseClaim(store, key, node);
  }

  async function deliverNext(claim: Claim, signal: AbortSignal): Promise<void> {
    const doubted = driver.doubtful && claim.failures > 0;
    const from =
      driver.resume === undefined
        ? doubted
          ? claim.before
          : claim.next
        : Math.min(await driver.resume(claim.next, leafHashOf), claim.size);
    if (from === claim.size) return void (await moveCursor(store, claim, node, { from, to: from }));
    const { entries, bytes } = driver.batch;
    // What is sent once more is sent whole, however little a batch may have now.
    const atMost = Math.max(doubted ? claim.next - from : 0, Math.min(entries, entriesAtMost));
    const stored = await readEntries(store, { from, to: claim.size, entries: atMost, bytes });
    const to = from + stored.length;
    try {
      await driver.deliver(await options.render(stored), signal);
    } catch (error) {
      if (!(error instanceof DeliveryError)) throw error;
      if (error.refused) return halveOrPark(claim, from, stored.length, error);
      // Who is too slow for this many would get them again and again, and never anything else.
      if (error.slow || outOfTime(signal)) entriesAtMost = Math.ceil(stored.length / 2);
      throw error;
    }
    entriesAtMost = Math.min(entries, entriesAtMost * 2);
    await moveCursor(store, claim, node, { from, to: Math.max(to, claim.next) });
    if (claim.failures > 0) warn(`sink ${key.name}: takes entries again`);
  }

  /** Among several, it is looked for; a single one is put aside, or the sink waits. */
  async function halveOrPark(claim: Claim, from: number, count: number, error: DeliveryError): Promise<void> {
    if (count > 1) {
      entriesAtMost = Math.ceil(count / 2);
      return;
    }
    const fault = { index: from, error: error.message, atMost: PARKED_IN_A_ROW };
    // One that was delivered before cannot be at fault now.
    if (from < claim.next || !(await parkEntry(store, claim, node, fault))) {
      throw new DeliveryError(`refuses one entry after another, now ${from}: ${error.message}`);
    }
  }

  async function retryParked(claim: Claim, signal: AbortSignal): Promise<void> {
    const index = await parkedToRetry(store, claim);
    if (index === undefined) return;
    const stored = await readEntries(store, { from: index, to: index + 1, entries: 1, bytes: 0 });
    let refused: string | undefined;
    try {
      await driver.deliver(await options.render(stored), signal);
    } catch (error) {
      if (!(error instanceof DeliveryError) || !error.refused) throw error;
      refused = error.message;
    }
    await settleParked(store, claim, index, refused);
  }

  async function leafHashOf(index: number): Promise<string | undefined> {
    const row = await store.selectFrom("log_entries").select("leaf_hash").where("idx", "=", index).executeTakeFirst();
    return row?.leaf_hash.toString("hex");
  }

  /** @returns whether there may be more to do at once. */
  async function step(): Promise<boolean> {
    const claim = await claimSink(store, key, node);
    if (claim === undefined) return false;
    const lost = new AbortController();
    const done = new AbortController();
    const renewing = keepClaim(AbortSignal.any([done.signal, left.signal]), () => lost.abort());
    const timeout = AbortSignal.timeout(BATCH_TIMEOUT_MS);
    try {
      await deliver(claim, AbortSignal.any([hurried.signal, lost.signal, timeout]));
      return true;
    } catch (error) {
      if (hurried.signal.aborted || lost.signal.aborted) return false;
      const text = timeout.aborted ? `no batch was taken within ${BATCH_TIMEOUT_MS / 60_000} minutes` : faultOf(error);
      const pause = pausesMs[Math.min(claim.failures + 1, pausesMs.length) - 1] ?? 0;
      const asked = error instanceof DeliveryError ? (error.retryAfterMs ?? 0) : 0;
      if (claim.failures === 0) warn(`sink ${key.name}: is tried again: ${text}`);
      await noteFailure(store, key, node, { text, waitMs: Math.max(pause, asked) });
      return false;
    } finally {
      done.abort();
      await renewing;
    }
  }

  async function keepClaim(done: AbortSignal, lose: () => void): Promise<void> {
    for (;;) {
      await sleep(RENEW_MS, done).catch(() => {});
      if (done.aborted) return;
      // A store that does not answer now may do so in time: the claim lasts for several of these.
      const holds = await renewClaim(store, key, node).catch(() => true);
      if (!holds) return lose();
    }
  }

  const running = (async () => {
    let lastFault = "";
    while (!stopped.signal.aborted) {
      let more = false;
      try {
        more = await step();
        lastFault = "";
      } catch (error) {
        const fault = describe(error);
        if (fault !== lastFault) warn(`sink ${key.name} waits for the store: ${fault}`);
        lastFault = fault;
      }
      if (!more) await sleep(pollMs, stopped.signal).catch(() => {});
    }
  })();

  return async () => {
    stopped.abort();
    const hurry = setTimeout(() => hurried.abort(), STOP_MS);
    const ended = await within(
      STOP_MS + HANG_MS,
      running.then(() => true),
      () => false,
    );
    clearTimeout(hurry);
    if (!ended) {
      left.abort(); // the claim runs out; until then nobody else delivers what this may still deliver
      return warn(`sink ${key.name}: is left while it hangs; what was not acknowledged comes again`);
    }
    await driver.close?.().catch(() => {}); // a disk that fails: the others are stopped all the same
    await releaseClaim(store, key, node).catch(() => {}); // it runs out by itself
  };
}

function outOfTime(signal: AbortSignal): boolean {
  return signal.aborted && signal.reason instanceof DOMException && signal.reason.name === "TimeoutError";
}

/** What is told and kept of a failure: our own words, and nothing that a far side could have written. */
function faultOf(error: unknown): string {
  if (error instanceof DeliveryError || error instanceof GlassError) return describe(error);
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return /^[A-Z0-9_]{1,60}$/.test(code) ? `it failed (${code})` : "it failed for a reason of Glasskey's own";
}
