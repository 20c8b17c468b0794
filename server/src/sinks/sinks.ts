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
import { startWorker } from "./worker.ts";

interface Alarms {
  raise(key: string, text: string): Promise<unknown>;
  clear(key: string): Promise<unknown>;
}

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
  /** Of one exchange over HTTP. */
  readonly timeoutMs?: number;
}

/** One sink, as people and metrics see it. */
export interface SinkStatus {
  readonly name: string;
  /** The process that has it for itself; empty for a sink that all share. */
  readonly node: string;
  readonly kind: string;
  /** Whether this process's glasskey.yaml has it. */
  readonly configured: boolean;
  /** Whether it is another living process's own, which looks after it. */
  readonly elsewhere: boolean;
  /** The first entry that is not acknowledged. */
  readonly nextIndex: number;
  readonly lag: { readonly entries: number; readonly seconds: number };
  /** Failed attempts in a row. */
  readonly failures: number;
  readonly lastError: string | null;
  readonly failingSince: Date | null;
  readonly deliveredAt: Date | null;
  /** How many entries the receiver refused for what they are. */
  readonly refused: number;
  /** The first hundred of them. */
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
/** A process that was not heard of for so long is dead. As access/sweep.ts: several missed heartbeats. */
const DEAD_AFTER_MS = 30_000;

/**
 * Sends the log on to every configured sink.
 * @throws GlassError `config_invalid` where a secret cannot be read.
 */
export async function startSinks(options: SinksOptions): Promise<Sinks> {
  const { sinks, store, node, speaker, warn } = options;
  for (const sink of sinks) checkSecrets(sink, options.resolveSecret);
  const keys = new Map<string, SinkKey>();
  for (const sink of sinks) {
    const key = keyOf(sink, node);
    keys.set(sink.name, key);
    await ensureSink(store, sink, key);
  }
  const stops = sinks.map((sink) =>
    startWorker({
      ...{ store, node, warn, key: keyOf(sink, node) },
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
      else 0 end as seconds,
      exists (select from nodes where id = sinks.node
        and seen_at > clock_timestamp() - ${DEAD_AFTER_MS} * interval '1 millisecond') as alive,
      (select count(*) from sink_parked p where p.sink = sinks.name and p.node = sinks.node) as refused
    from sinks, signed order by name, node`.execute(store);
  const { rows: parked } = await sql<ParkedRow>`
    select sink, node, idx, error, parked_at from (
      select *, row_number() over (partition by sink, node order by idx) as n from sink_parked) as numbered
    where n <= ${PARKED_SHOWN} order by idx`.execute(store);
  return rows.map((row) => ({
    ...{ name: row.name, node: row.node, kind: row.kind, nextIndex: row.next_index },
    configured: configured.some(({ name, node }) => name === row.name && node === row.node),
    lag: { entries: row.entries, seconds: row.seconds },
    ...{ failures: row.failures, lastError: row.last_error, failingSince: row.failing_since },
    elsewhere: row.alive && !configured.some(({ node }) => node === row.node),
    ...{ deliveredAt: row.delivered_at, refused: row.refused },
    parked: parked
      .filter(({ sink, node }) => sink === row.name && node === row.node)
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
  readonly alive: boolean;
  readonly refused: number;
}

interface ParkedRow {
  readonly sink: string;
  readonly node: string;
  readonly idx: number;
  readonly error: string;
  readonly parked_at: Date;
}

/**
 * Raises an alarm for each sink that is behind for too long, and for each whose receiver refused entries; and clears it
 * when that is over. What the table says counts, so that no crash between the two loses an alarm.
 */
async function watch(
  status: () => Promise<readonly SinkStatus[]>,
  { alarms, warn, behindMs = BEHIND_MS, watchMs = WATCH_MS }: SinksOptions,
  signal: AbortSignal,
): Promise<void> {
  const cleared = new Set<string>(); // empty at first: another process may have raised it
  let lastFault = "";
  const set = async (key: string, text: string | undefined): Promise<void> => {
    if (text !== undefined) {
      await alarms.raise(key, text);
      cleared.delete(key);
    } else if (!cleared.has(key)) {
      await alarms.clear(key);
      cleared.add(key);
    }
  };
  while (!signal.aborted) {
    try {
      for (const { name, node, configured, elsewhere, lag, lastError, refused, parked } of await status()) {
        if (elsewhere) continue;
        const key = `sink ${name}${node === "" ? "" : ` ${node}`}`;
        const lagMs = lag.seconds * 1_000;
        // Who takes a sink out of glasskey.yaml knows that it gets nothing.
        if (configured && lagMs >= behindMs) {
          const why = lastError === null ? "" : `: ${lastError}`;
          const text = `sink ${name} is behind by ${lag.entries} entries, the oldest ${formatDuration(lagMs)} old${why}`;
          await set(`${key} behind`, text);
        } else if (!configured || lagMs < behindMs / 2) await set(`${key} behind`, undefined);
        const [first] = parked;
        const more = refused > 1 ? ` and ${refused - 1} more` : "";
        const text = `sink ${name} does not take entry ${first?.index}${more}: ${first?.error}`;
        await set(`${key} parked`, configured && refused > 0 && first !== undefined ? text : undefined);
      }
      lastFault = "";
    } catch (error) {
      const fault = describe(error);
      if (fault !== lastFault) warn(`sinks are not watched: ${fault}`);
      lastFault = fault;
    }
    await sleep(watchMs, signal).catch(() => {});
  }
}

function driverOf(sink: SinkConfig, { speaker, resolveSecret, timeoutMs }: SinksOptions): SinkDriver {
  switch (sink.kind) {
    case "syslog":
      return syslogDriver(sink, speaker);
    case "webhook":
      return webhookDriver(sink, resolveSecret, timeoutMs);
    case "splunk_hec":
      return splunkDriver(sink, speaker, resolveSecret, timeoutMs === undefined ? {} : { timeoutMs });
    case "otel":
      return otelDriver(sink, speaker, resolveSecret, timeoutMs);
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
