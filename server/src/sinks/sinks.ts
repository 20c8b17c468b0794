import { readFileSync } from "node:fs";
import { sql } from "kysely";
import { sleep } from "../core/clock.ts";
import { formatDuration } from "../core/duration.ts";
import { describe, GlassError, unreachable } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import { webhookKey } from "../core/standard-webhooks.ts";
import type { Store } from "../store/database.ts";
import type { SinkConfig } from "./config.ts";
import { ensureSink, keyOf, type SinkKey } from "./cursor.ts";
import { fileDriver } from "./file.ts";
import { otelDriver } from "./otel.ts";
import { createRenderer } from "./render.ts";
import type { SinkDriver, Speaker } from "./sink.ts";
import { splunkDriver } from "./splunk.ts";
import { syslogDriver } from "./syslog.ts";
import { webhookDriver } from "./webhook.ts";
import { startWorker, type Alarms } from "./worker.ts";

export interface SinksOptions {
  readonly sinks: readonly SinkConfig[];
  readonly store: Store;
  readonly speaker: Speaker;
  /** This process's id in table `nodes`. */
  readonly node: string;
  readonly resolveSecret: (reference: string) => Secret;
  /** Names behind pseudonymous ids, for sinks with `names: true`. */
  readonly namesOf: (ids: readonly string[]) => Promise<Readonly<Record<string, string>>>;
  readonly alarms: Alarms;
  readonly warn: (line: string) => void;
  readonly pollMs?: number;
  readonly pausesMs?: readonly number[];
  /** A sink whose oldest undelivered entry has waited this long is an alarm. */
  readonly behindMs?: number;
  readonly watchMs?: number;
}

/** One sink, as people and metrics see it. */
export interface SinkStatus {
  readonly name: string;
  /** The process that has it for itself; empty for a sink that all share. */
  readonly node: string;
  readonly kind: string;
  /** Whether this process's glasskey.yaml has it. */
  readonly configured: boolean;
  /** The first entry that is not acknowledged. */
  readonly nextIndex: number;
  readonly lag: { readonly entries: number; readonly seconds: number };
  /** Failed attempts in a row. */
  readonly failures: number;
  readonly lastError: string | null;
  readonly failingSince: Date | null;
  readonly deliveredAt: Date | null;
  /** Entries that the receiver refused for what they are; the first hundred. */
  readonly parked: readonly { readonly index: number; readonly error: string; readonly at: Date }[];
}

export interface Sinks {
  status(): Promise<readonly SinkStatus[]>;
  /**
   * Has what a sink's receiver refused tried once more, and lets a sink that waits after a failure begin at once.
   * @returns how many parked entries that is. @throws GlassError `not_found`.
   */
  retry(name: string): Promise<number>;
  stop(): Promise<void>;
}

const BEHIND_MS = 15 * 60_000;
const WATCH_MS = 10_000;
const PARKED_SHOWN = 100;
const PARKED_READ = 2_000; // of all sinks: parking is rare, and more than a person reads

/**
 * Sends the log on to every configured sink.
 * @throws GlassError `config_invalid` where a secret cannot be read.
 */
export async function startSinks(options: SinksOptions): Promise<Sinks> {
  const { sinks, store, node, speaker, alarms, warn } = options;
  for (const sink of sinks) checkSecrets(sink, options.resolveSecret);
  const keys = new Map<string, SinkKey>();
  for (const sink of sinks) {
    const key = keyOf(sink, node);
    keys.set(sink.name, key);
    await ensureSink(store, sink, key);
  }
  const stops = sinks.map((sink) =>
    startWorker({
      ...{ store, node, alarms, warn, key: keyOf(sink, node) },
      driver: driverOf(sink, options),
      render: createRenderer({ format: sink.format, speaker, namesOf: sink.names ? options.namesOf : undefined }),
      ...(options.pollMs === undefined ? {} : { pollMs: options.pollMs }),
      ...(options.pausesMs === undefined ? {} : { pausesMs: options.pausesMs }),
    }),
  );
  const status = (): Promise<readonly SinkStatus[]> => readSinks(store, [...keys.values()]);
  const stopped = new AbortController();
  const watching = watch(status, options, stopped.signal);
  return {
    status,
    async retry(name) {
      return store.transaction().execute(async (tx) => {
        const woken = await tx
          .updateTable("sinks")
          .set({ retry_at: sql<Date>`clock_timestamp()` })
          .where("name", "=", name)
          .returning("name")
          .execute();
        if (woken.length === 0) {
          throw new GlassError("not_found", "there is no such sink", { next: "`glass sinks` lists them." });
        }
        const rows = await tx
          .updateTable("sink_parked")
          .set({ retry: true })
          .where("sink", "=", name)
          .returning("idx")
          .execute();
        return rows.length;
      });
    },
    async stop() {
      stopped.abort();
      await Promise.all([...stops.map((stop) => stop()), watching]);
    },
  };
}

/** All sinks that this store knows, those of `configured` marked. Times and ages are by the store's clock. */
async function readSinks(store: Store, configured: readonly SinkKey[]): Promise<readonly SinkStatus[]> {
  const { rows } = await sql<Row>`
    with signed as (select coalesce(max(size), 0) as size from log_checkpoints)
    select name, node, kind, next_index, failures, last_error, failing_since, delivered_at,
      greatest(signed.size - next_index, 0) as entries,
      case when next_index < signed.size then greatest(0, extract(epoch from clock_timestamp() - greatest(created_at,
        (select signed_at from log_checkpoints c where c.size > next_index order by c.size limit 1))))::float8
      else 0 end as seconds
    from sinks, signed order by name, node`.execute(store);
  const parked = await store.selectFrom("sink_parked").selectAll().orderBy("idx").limit(PARKED_READ).execute();
  return rows.map((row) => ({
    ...{ name: row.name, node: row.node, kind: row.kind, nextIndex: row.next_index },
    configured: configured.some(({ name, node }) => name === row.name && node === row.node),
    lag: { entries: row.entries, seconds: row.seconds },
    ...{ failures: row.failures, lastError: row.last_error, failingSince: row.failing_since },
    deliveredAt: row.delivered_at,
    parked: parked
      .filter(({ sink, node }) => sink === row.name && node === row.node)
      .slice(0, PARKED_SHOWN)
      .map(({ idx, error, parked_at: at }) => ({ index: idx, error, at })),
  }));
}

interface Row {
  readonly name: string;
  readonly node: string;
  readonly kind: string;
  readonly next_index: number;
  readonly failures: number;
  readonly last_error: string | null;
  readonly failing_since: Date | null;
  readonly delivered_at: Date | null;
  readonly entries: number;
  readonly seconds: number;
}

/** Raises an alarm for each sink that is behind for too long, and clears it when it has caught up. */
async function watch(
  status: () => Promise<readonly SinkStatus[]>,
  { alarms, warn, behindMs = BEHIND_MS, watchMs = WATCH_MS }: SinksOptions,
  signal: AbortSignal,
): Promise<void> {
  const cleared = new Set<string>(); // empty at first: another process may have raised it
  while (!signal.aborted) {
    try {
      for (const { name, node, configured, lag, lastError } of await status()) {
        const key = `sink ${name}${node === "" ? "" : ` ${node}`} behind`;
        const behind = configured && lag.seconds * 1_000 >= behindMs;
        // Who takes a sink out of glasskey.yaml knows that it gets nothing.
        const over = !configured || lag.seconds * 1_000 < behindMs / 2;
        if (behind) {
          const age = formatDuration(lag.seconds * 1_000);
          const why = lastError === null ? "" : `: ${lastError}`;
          await alarms.raise(key, `sink ${name} is behind by ${lag.entries} entries, the oldest ${age} old${why}`);
          cleared.delete(key);
        } else if (over && !cleared.has(key)) {
          await alarms.clear(key);
          cleared.add(key);
        }
      }
    } catch (error) {
      warn(`sinks are not watched: ${describe(error)}`);
    }
    await sleep(watchMs, signal).catch(() => {});
  }
}

function driverOf(sink: SinkConfig, { speaker, resolveSecret }: SinksOptions): SinkDriver {
  switch (sink.kind) {
    case "syslog":
      return syslogDriver(sink, speaker);
    case "webhook":
      return webhookDriver(sink, resolveSecret);
    case "splunk_hec":
      return splunkDriver(sink, speaker, resolveSecret);
    case "otel":
      return otelDriver(sink, speaker, resolveSecret);
    case "file":
      return fileDriver(sink);
    default:
      return unreachable(sink);
  }
}

/** A reference that leads nowhere is said at the start, not at the first entry. */
function checkSecrets(sink: SinkConfig, resolveSecret: (reference: string) => Secret): void {
  try {
    if (sink.kind === "webhook") webhookKey(resolveSecret(sink.secret).reveal());
    if (sink.kind === "splunk_hec") resolveSecret(sink.token);
    if (sink.kind === "otel") for (const reference of Object.values(sink.headers)) resolveSecret(reference);
    if (sink.kind !== "file" && sink.ca !== undefined) readFileSync(sink.ca);
    if (sink.kind === "syslog" && sink.client !== undefined) {
      for (const file of [sink.client.cert, sink.client.key]) readFileSync(file);
    }
  } catch (cause) {
    throw new GlassError("config_invalid", `sinks, ${sink.name}: ${describe(cause)}`, { cause });
  }
}
