import { sql } from "kysely";
import { within } from "../core/clock.ts";
import type { Store, Tx } from "../store/database.ts";

/**
 * What the store knows, in numbers. The same for every process on one store. Each part is asked by itself: one that cannot
 * be had is undefined, and the others are there.
 */
export interface Figures {
  /** False: the store did not answer in time, and everything else is undefined. */
  readonly up: boolean;
  readonly grants?: Counts | undefined;
  readonly leases?: Counts | undefined;
  readonly revocations?: { unproved: number; late: number; oldestSeconds: number } | undefined;
  readonly sessions?: number | undefined;
  readonly notices?: { waiting: number; oldestSeconds: number } | undefined;
  readonly alarms?: number | undefined;
  readonly reviews?: { unsigned: number; overdue: number } | undefined;
  readonly log?: { entries: number; unsigned: number; unsignedSeconds: number } | undefined;
  readonly witnessed?: { lagEntries: number; lagSeconds: number } | undefined;
  readonly archives?: readonly Lag[] | undefined;
  readonly sinks?: readonly (Lag & { parked: number })[] | undefined;
}

export type Counts = readonly { readonly state: string; readonly count: number }[];

export interface Lag {
  readonly name: string;
  /** Signed entries that are not there yet. */
  readonly entries: number;
  /** Age of the oldest of them; 0 without any. */
  readonly seconds: number;
}

export interface FigureParts {
  readonly store: Store;
  /** Names of the sinks in glasskey.yaml: what an old row says of one that is gone interests nobody. */
  readonly sinks: readonly string[];
  /** Of a sink that each process has for itself, only this process's counts: that of a machine that is gone never catches up. */
  readonly node: string;
  /** The archive that this process writes; what an old row says of another interests nobody. */
  readonly archive: () => string | undefined;
  readonly witnessed: boolean;
  /** How long the store may take over all of it. */
  readonly timeoutMs?: number;
}

const TIMEOUT_MS = 3_000; // Prometheus gives a scrape ten seconds
const STATEMENT_MS = 1_000;

/**
 * A reader that never rejects, and never takes longer than the timeout. A store that hangs is asked one question, however
 * often figures are wanted: they must not take every connection from those who wait for it to come back.
 */
export function createFigures(parts: FigureParts): () => Promise<Figures> {
  let asking: Promise<Figures> | undefined;
  const none = (): Figures => ({ up: false });
  return () => {
    asking ??= ask(parts)
      .catch(none)
      .finally(() => (asking = undefined));
    return within(parts.timeoutMs ?? TIMEOUT_MS, asking, none);
  };
}

async function ask({ store, sinks, node, archive, witnessed }: FigureParts): Promise<Figures> {
  const place = archive();
  await sql`select 1`.execute(store);
  /** One part in a transaction of its own, so that its limit and its failure are its own. */
  const part = async <T>(query: (tx: Tx) => Promise<T>): Promise<T | undefined> => {
    try {
      return await store
        .transaction()
        .setAccessMode("read only")
        .execute(async (tx) => {
          await sql`select set_config('statement_timeout', ${String(STATEMENT_MS)}, true)`.execute(tx);
          return query(tx);
        });
    } catch {
      return undefined;
    }
  };
  // One after the other, on one connection of the pool: a scrape must not take connections from those who open grants.
  return {
    up: true,
    grants: await part(async (tx) => (await OPEN_GRANTS.execute(tx)).rows),
    leases: await part(async (tx) => (await LIVING_LEASES.execute(tx)).rows),
    revocations: await part(async (tx) => (await REVOCATIONS.execute(tx)).rows[0]),
    sessions: await part(async (tx) => (await SESSIONS.execute(tx)).rows[0]?.count),
    notices: await part(async (tx) => (await NOTICES.execute(tx)).rows[0]),
    alarms: await part(async (tx) => (await ALARMS.execute(tx)).rows[0]?.count),
    reviews: await part(async (tx) => (await REVIEWS.execute(tx)).rows[0]),
    log: await part(async (tx) => (await LOG.execute(tx)).rows[0]),
    witnessed: witnessed ? await part(async (tx) => (await WITNESSED.execute(tx)).rows[0]) : undefined,
    archives: place === undefined ? [] : await part(async (tx) => (await archiveLag(place).execute(tx)).rows),
    sinks: sinks.length === 0 ? [] : await part(async (tx) => (await sinkLags(sinks, node).execute(tx)).rows),
  };
}

const OPEN_GRANTS = sql<Counts[number]>`
  select state, count(*)::int as count from grants
  where state in ('pending', 'approved', 'opening', 'active', 'closing') group by state`;

const LIVING_LEASES = sql<Counts[number]>`
  select state, count(*)::int as count from leases where state <> 'dead' group by state`;

/** Late: past the worst case that the target's kind promises, which also raised an alarm. */
const REVOCATIONS = sql<{ unproved: number; late: number; oldestSeconds: number }>`
  with due as (
    select worst_case_revoke_ms,
      greatest(0, extract(epoch from clock_timestamp() - coalesce(g.closing_at, least(l.ends_at, l.created_at)))) as age
    from leases l left join grants g on g.id = l.grant_id where l.state = 'closing')
  select count(*)::int as unproved,
    count(*) filter (where age * 1000 > worst_case_revoke_ms)::int as late,
    coalesce(max(age), 0)::float8 as "oldestSeconds"
  from due`;

const SESSIONS = sql<{ count: number }>`select count(*)::int as count from sessions where closed_at is null`;

const NOTICES = sql<{ waiting: number; oldestSeconds: number }>`
  select count(*)::int as waiting,
    coalesce(max(extract(epoch from clock_timestamp() - created_at)), 0)::float8 as "oldestSeconds"
  from notices where delivered_at is null and given_up_at is null`;

const ALARMS = sql<{ count: number }>`select count(*)::int as count from alarms where cleared_at is null`;

const REVIEWS = sql<{ unsigned: number; overdue: number }>`
  select count(*)::int as unsigned, count(*) filter (where due_at <= clock_timestamp())::int as overdue
  from reviews where signed_at is null`;

/** Committed entries that no checkpoint covers: in the queue, or integrated and not signed. The oldest is told by its own `at`. */
const LOG = sql<{ entries: number; unsigned: number; unsignedSeconds: number }>`
  with signed as (select coalesce(max(size), 0) as size from log_checkpoints),
    waiting as (
      select (select count(*) from log_queue) + (select size from log_head) - (select size from signed) as count),
    oldest as (
      select coalesce(
        (select entry from log_entries where idx = (select size from signed)),
        (select entry from log_queue order by id limit 1)) as entry)
  select (select size from signed)::float8 as entries, greatest(0, (select count from waiting))::float8 as unsigned,
    coalesce(greatest(0, extract(epoch from clock_timestamp()
      - (convert_from(oldest.entry, 'utf8')::json ->> 'at')::timestamptz)), 0)::float8 as "unsignedSeconds"
  from oldest`;

const WITNESSED = sql<{ lagEntries: number; lagSeconds: number }>`
  with seen as (select coalesce(max(size), 0) as size from witnessed_checkpoints)
  select coalesce((select max(size) from log_checkpoints) - (select size from seen), 0)::float8 as "lagEntries",
    coalesce((select extract(epoch from clock_timestamp() - signed_at) from log_checkpoints
      where size > (select size from seen) order by size limit 1), 0)::float8 as "lagSeconds"`;

function archiveLag(place: string): ReturnType<typeof sql<Lag>> {
  return sql<Lag>`
  with signed as (select coalesce(max(size), 0) as size from log_checkpoints)
  select a.place as name, greatest(0, s.size - a.size)::float8 as entries,
    coalesce((select extract(epoch from clock_timestamp() - c.signed_at) from log_checkpoints c
      where c.size > a.size order by c.size limit 1), 0)::float8 as seconds
  from archives a cross join signed s where a.place = ${place}`;
}

function sinkLags(names: readonly string[], node: string): ReturnType<typeof sql<Lag & { parked: number }>> {
  return sql<Lag & { parked: number }>`
    with signed as (select coalesce(max(size), 0) as size from log_checkpoints),
      slowest as (
        select name, min(next_index) as next from sinks
        where name = any(${names}) and node in ('', ${node}) group by name)
    select k.name, greatest(0, s.size - k.next)::float8 as entries,
      coalesce((select greatest(0, extract(epoch from clock_timestamp()
        - (convert_from(e.entry, 'utf8')::json ->> 'at')::timestamptz))
        from log_entries e where e.idx = k.next and e.idx < s.size), 0)::float8 as seconds,
      (select count(*) from sink_parked p where p.sink = k.name)::int as parked
    from slowest k cross join signed s order by k.name`;
}
