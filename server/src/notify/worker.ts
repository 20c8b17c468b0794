import { sql, type ExpressionBuilder, type Selectable } from "kysely";
import { append } from "../audit/append.ts";
import { sha256 } from "../core/bytes.ts";
import { sleep, type Clock } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Policy } from "../playbooks/policy.ts";
import type { Store, Tx } from "../store/database.ts";
import type { Keyring } from "../store/keyring.ts";
import type { NoticesTable } from "../store/tables-policy.ts";
import type { Database } from "../store/tables.ts";
import { deliver, type SecretReader } from "./channel.ts";
import type { NotifyConfig } from "./config.ts";
import type { Links } from "./links.ts";
import type { Message } from "./message.ts";
import { notOwn } from "./outbox.ts";
import { DeliveryError } from "./post.ts";

type NoticeRow = Selectable<NoticesTable>;

export interface WorkerOptions {
  readonly store: Store;
  readonly keyring: Pick<Keyring, "open">;
  readonly config: NotifyConfig;
  readonly policy: () => Policy;
  readonly links: Links;
  /** This process's id in table `nodes`. */
  readonly node: string;
  readonly clock: Clock;
  readonly resolveSecret: SecretReader;
  /** Where Glasskey itself is, `https://HOST:PORT`; known once the API listens. */
  readonly url: () => string;
  readonly warn: (line: string) => void;
  readonly pollMs?: number;
  readonly timeoutMs?: number;
  /** Pauses after failures, the last one for all further ones. */
  readonly pausesMs?: readonly number[];
}

export interface Worker {
  /** Looks now, and often in the next moments: something was written and will be committed soon. */
  nudge(): void;
  stop(): Promise<void>;
}

const POLL_MS = 1_000;
const TIMEOUT_MS = 5_000; // of one exchange: a page that takes longer is better tried again
const EAGER_POLL_MS = 50;
const EAGER_FOR_MS = 1_000;
const AT_ONCE = 32;
const AT_ONCE_PER_CHANNEL = 4; // a channel that hangs holds this many slots, and no others
const CLAIM_MS = 30_000; // longer than one attempt: at most two exchanges of 5 s, and the store
/** Seconds, then a minute: short enough that a page channel's return is noticed while somebody still waits. */
const PAUSES_MS = [1_000, 2_000, 5_000, 10_000, 30_000, 60_000] as const;
const KEPT_MS = 30 * 24 * 3_600_000; // what is settled; the log has for ever that it was
const PRUNE_EVERY_MS = 3_600_000;
const PRUNED_AT_ONCE = 1_000;
const FORGOTTEN_MS = 7 * 24 * 3_600_000; // a lasting notice for a channel that glasskey.yaml does not have any more

/**
 * Delivers what the outbox holds, at least once, in order for each channel and grant. Any number of processes may run
 * one: a row is claimed (`FOR UPDATE SKIP LOCKED`), and the claim of a dead process runs out.
 */
export function startWorker(options: WorkerOptions): Worker {
  const { store, config, clock, warn, pollMs = POLL_MS, pausesMs = PAUSES_MS } = options;
  const stopped = new AbortController();
  const inFlight = new Set<Promise<void>>();
  const busy = new Map<string, number>();
  /** Channels that failed lately: how often in a row, and until when (monotonic) this process leaves them alone. */
  const resting = new Map<string, { failures: number; untilMs: number }>();
  let eagerUntilMs = 0;
  let wakeUp = (): void => {};

  const free = (): string[] => {
    const nowMs = clock.monotonicMs();
    return [...config.channels.keys()].filter(
      (name) => (busy.get(name) ?? 0) < AT_ONCE_PER_CHANNEL && (resting.get(name)?.untilMs ?? 0) <= nowMs,
    );
  };
  const work = async (row: NoticeRow): Promise<void> => {
    busy.set(row.channel, (busy.get(row.channel) ?? 0) + 1);
    try {
      const receipt = await attempt(options, row, stopped.signal).catch((error: unknown) => failure(error));
      if (receipt === undefined) return await giveUp(options, row, "it is not theirs to decide any more", false);
      if (typeof receipt === "string") {
        await markDelivered(options, row, receipt);
        if (resting.delete(row.channel)) warn(`notify: ${row.channel} takes notices again`);
        return;
      }
      if (stopped.signal.aborted) return await putBack(options, row, receipt.text, 0);
      if (receipt.final) return await giveUp(options, row, receipt.text, true);
      const failures = (resting.get(row.channel)?.failures ?? 0) + 1;
      const waitMs = Math.max(receipt.retryAfterMs, pausesMs[Math.min(failures, pausesMs.length) - 1] ?? 0);
      resting.set(row.channel, { failures, untilMs: clock.monotonicMs() + waitMs });
      if (failures === 1) warn(`notify: ${row.channel} does not take notices, and is tried again: ${receipt.text}`);
      await putBack(options, row, receipt.text, waitMs);
    } finally {
      busy.set(row.channel, (busy.get(row.channel) ?? 1) - 1);
    }
  };
  const track = (row: NoticeRow): void => {
    const promise = work(row)
      .catch((error: unknown) => warn(`notices wait for the store: ${describe(error)}`)) // the claim runs out by itself
      .finally(() => {
        inFlight.delete(promise);
        wakeUp();
      });
    inFlight.add(promise);
  };
  const loop = async (): Promise<void> => {
    let sweptAtMs = Number.NEGATIVE_INFINITY;
    let prunedAtMs = Number.NEGATIVE_INFINITY;
    while (!stopped.signal.aborted) {
      const woken = new Promise<void>((resolve) => (wakeUp = resolve));
      try {
        if (clock.monotonicMs() - sweptAtMs >= pollMs) {
          await giveUpLate(options);
          sweptAtMs = clock.monotonicMs();
        }
        if (clock.monotonicMs() - prunedAtMs >= PRUNE_EVERY_MS) {
          prunedAtMs = clock.monotonicMs();
          await prune(store);
        }
        for (const channel of await dueChannels(store, free())) {
          const room = Math.min(AT_ONCE_PER_CHANNEL - (busy.get(channel) ?? 0), AT_ONCE - inFlight.size);
          if (room > 0) for (const row of await claim(options, channel, room)) track(row);
        }
      } catch (error) {
        warn(`notices wait for the store: ${describe(error)}`);
      }
      const eager = clock.monotonicMs() < eagerUntilMs;
      await Promise.race([woken, sleep(eager ? EAGER_POLL_MS : pollMs, stopped.signal).catch(() => {})]);
    }
  };
  const running = loop();
  return {
    nudge() {
      eagerUntilMs = clock.monotonicMs() + EAGER_FOR_MS;
      wakeUp();
    },
    async stop() {
      stopped.abort();
      wakeUp();
      await running;
      await Promise.all(inFlight);
    },
  };
}

interface Failure {
  readonly text: string;
  /** Whether another attempt cannot help. */
  readonly final: boolean;
  readonly retryAfterMs: number;
}

function failure(error: unknown): Failure {
  const delivery = error instanceof DeliveryError ? error : undefined;
  const broken = error instanceof GlassError && error.code === "integrity";
  return {
    text: describe(error),
    final: broken || delivery?.final === true,
    retryAfterMs: delivery?.retryAfterMs ?? 0,
  };
}

const waiting = (eb: ExpressionBuilder<Database, "notices">) =>
  eb.and([
    eb("delivered_at", "is", null),
    eb("given_up_at", "is", null),
    eb.or([eb("claimed_until", "is", null), eb("claimed_until", "<", sql<Date>`clock_timestamp()`)]),
  ]);

const due = (eb: ExpressionBuilder<Database, "notices">) =>
  eb.and([
    waiting(eb),
    eb("next_at", "<=", sql<Date>`clock_timestamp()`),
    eb.or([eb("expires_at", "is", null), eb("expires_at", ">", sql<Date>`clock_timestamp()`)]),
    // The first of its channel and grant that is not settled: what happened later is told later.
    // Two questions, not `is not distinct from`: that finds no index.
    sql<boolean>`not exists (
      select from notices earlier
      where earlier.grant_id = notices.grant_id and earlier.channel = notices.channel
        and earlier.delivered_at is null and earlier.given_up_at is null
        and (earlier.created_at, earlier.id) < (notices.created_at, notices.id))`,
    sql<boolean>`(notices.grant_id is not null or not exists (
      select from notices earlier
      where earlier.grant_id is null and earlier.channel = notices.channel
        and earlier.delivered_at is null and earlier.given_up_at is null
        and (earlier.created_at, earlier.id) < (notices.created_at, notices.id)))`,
  ]);

async function dueChannels(store: Store, channels: readonly string[]): Promise<readonly string[]> {
  if (channels.length === 0) return [];
  const rows = await store
    .selectFrom("notices")
    .select("channel")
    .distinct()
    .where("channel", "in", channels)
    .where(due)
    .execute();
  return rows.map((row) => row.channel);
}

async function claim({ store, node }: WorkerOptions, channel: string, limit: number): Promise<readonly NoticeRow[]> {
  return store
    .updateTable("notices")
    .set({ claimed_by: node, claimed_until: sql`clock_timestamp() + ${CLAIM_MS} * interval '1 millisecond'` })
    .where("id", "in", (eb) =>
      eb
        .selectFrom("notices")
        .select("id")
        .where("channel", "=", channel)
        .where(due)
        .orderBy("next_at")
        .orderBy("created_at")
        .limit(limit)
        .forUpdate()
        .skipLocked(),
    )
    .returningAll()
    .execute();
}

/** @returns the receipt, or undefined when this is not to be told to that person any more. */
async function attempt(options: WorkerOptions, row: NoticeRow, signal: AbortSignal): Promise<string | undefined> {
  const { config, keyring, links, policy, clock } = options;
  const place = { table: "notices", row: row.id, column: "content" };
  const message = JSON.parse(keyring.open(place, row.content).toString("utf8")) as Message;
  const channel = config.channels.get(row.channel);
  if (channel === undefined || message.channel !== row.channel) {
    throw new GlassError("integrity", "it was written for another channel");
  }
  const { person, requester } = message;
  if (person !== undefined && notOwn(policy(), config, row.channel, person, requester) !== undefined) return undefined;
  const nowMs = clock.now().getTime();
  const untilMs = message.linkUntil === undefined ? 0 : Date.parse(message.linkUntil);
  const link =
    person !== undefined && message.grant !== undefined && untilMs > nowMs
      ? links.make({
          ...{ grant: message.grant, round: message.round, expiresAtMs: untilMs },
          person: await pseudonymOf(options.store, person),
        })
      : undefined;
  const { resolveSecret, timeoutMs = TIMEOUT_MS } = options;
  return deliver(
    channel,
    { id: row.id, message, link, url: options.url(), nowMs },
    { resolveSecret, signal, timeoutMs },
  );
}

async function markDelivered({ store }: WorkerOptions, row: NoticeRow, receipt: string): Promise<void> {
  await store.transaction().execute(async (tx) => {
    const changed = await tx
      .updateTable("notices")
      .set({ delivered_at: sql<Date>`clock_timestamp()`, receipt, claimed_by: null, claimed_until: null })
      .where("id", "=", row.id)
      .where("delivered_at", "is", null)
      .where("given_up_at", "is", null)
      .returning("id")
      .executeTakeFirst();
    if (changed === undefined || !row.page) return;
    await log(tx, row, "notice.delivered", { receiptSha256: sha256(receipt).toString("hex") });
  });
}

/** The channel of one person is a name of that person: the log has the kind of channel and the pseudonym instead. */
async function log(
  tx: Tx,
  row: NoticeRow,
  type: "notice.delivered" | "notice.given_up",
  data: Readonly<Record<string, string>>,
): Promise<void> {
  const [kind = ""] = row.channel.split(":");
  const where =
    row.person === null ? { channel: row.channel } : { channel: kind, person: await pseudonymOf(tx, row.person) };
  await append(tx, {
    ...{ type, at: new Date(), actor: "glasskey", ...(row.grant_id === null ? {} : { grant: row.grant_id }) },
    data: { notice: row.id, event: row.event, ...where, ...data },
  });
}

async function putBack({ store }: WorkerOptions, row: NoticeRow, error: string, waitMs: number): Promise<void> {
  await store
    .updateTable("notices")
    .set((eb) => ({
      ...{ claimed_by: null, claimed_until: null, last_error: error, attempts: eb("attempts", "+", 1) },
      next_at: sql`clock_timestamp() + ${waitMs} * interval '1 millisecond'`,
    }))
    .where("id", "=", row.id)
    .where("delivered_at", "is", null)
    .where("given_up_at", "is", null)
    .execute();
}

async function giveUp(options: WorkerOptions, row: NoticeRow, why: string, loud: boolean): Promise<void> {
  const given = await options.store.transaction().execute((tx) => markGivenUp(tx, row, why));
  if (given && loud) warnGivenUp(options, row, why);
}

async function markGivenUp(tx: Tx, row: NoticeRow, why: string): Promise<boolean> {
  const changed = await tx
    .updateTable("notices")
    .set({ given_up_at: sql<Date>`clock_timestamp()`, last_error: why, claimed_by: null, claimed_until: null })
    .where("id", "=", row.id)
    .where("delivered_at", "is", null)
    .where("given_up_at", "is", null)
    .returning("id")
    .executeTakeFirst();
  if (changed !== undefined) await log(tx, row, "notice.given_up", { why: why.slice(0, 200) });
  return changed !== undefined;
}

function warnGivenUp({ warn }: WorkerOptions, row: NoticeRow, why: string): void {
  const about = row.grant_id === null ? "" : ` about ${row.grant_id}`;
  warn(`notify: ${row.channel} was not told of ${row.event}${about}: ${why}`);
}

/** Forgets what was settled long ago. A grant that still waits for an answer is never that old. */
async function prune(store: Store): Promise<void> {
  await store
    .deleteFrom("notices")
    .where("id", "in", (eb) =>
      eb
        .selectFrom("notices")
        .select("id")
        .where(
          sql<boolean>`coalesce(delivered_at, given_up_at) < clock_timestamp() - ${KEPT_MS} * interval '1 millisecond'`,
        )
        .limit(PRUNED_AT_ONCE),
    )
    .execute();
}

/** What lost its meaning before anybody took it. Of channels that this process does not know, too. */
async function giveUpLate(options: WorkerOptions): Promise<void> {
  const known = [...options.config.channels.keys()];
  const late = await options.store.transaction().execute(async (tx) => {
    const rows = await tx
      .selectFrom("notices")
      .selectAll()
      .where(waiting)
      .where(
        sql<boolean>`(expires_at <= clock_timestamp() or expires_at is null and channel <> all(${known}::text[])
          and created_at + ${FORGOTTEN_MS} * interval '1 millisecond' <= clock_timestamp())`,
      )
      .limit(100)
      .forUpdate()
      .skipLocked()
      .execute();
    for (const row of rows) await markGivenUp(tx, row, row.last_error ?? "nobody took it in time");
    return rows;
  });
  for (const row of late) warnGivenUp(options, row, row.last_error ?? "nobody took it in time");
}
