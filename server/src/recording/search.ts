import { sql } from "kysely";
import { GlassError } from "../core/errors.ts";
import { createBatch } from "./follow.ts";
import { checkPattern, type Pattern } from "./match.ts";
import { type ScreenThread, startScreenThread } from "./screen-thread.ts";
import type { Hit } from "./screen-worker.ts";
import { readSealed, type Sealed } from "./sealed.ts";
import type { Place } from "../store/keyring.ts";

export interface SearchQuery extends Pattern {
  readonly person?: string | undefined;
  readonly target?: string | undefined;
  readonly playbook?: string | undefined;
  /** Sessions that were open at some time in between. */
  readonly since?: Date | undefined;
  readonly until?: Date | undefined;
  /** Where the page before ended. */
  readonly cursor?: string | undefined;
}

/** What decides about who may read a session's recording. */
export interface SearchedSession {
  readonly session: string;
  readonly person: string;
  readonly target: string;
  readonly playbook: string;
  readonly requester: string;
  readonly openedAt: Date;
}

export interface SearchPage {
  readonly hits: readonly (Hit & { readonly session: SearchedSession })[];
  /** Sessions that were read in this page, whole or in part. */
  readonly sessions: number;
  /** Of them, those that could not be read, and why. Erased ones are only counted. */
  readonly problems: readonly { readonly session: string; readonly message: string }[];
  readonly erased: number;
  /** To go on with; undefined at the end. */
  readonly next: string | undefined;
}

/** Bounds of one page. */
export interface SearchLimits {
  readonly ms: number;
  readonly hits: number;
  /** Where a page goes on in the middle of a session, so many chunks before are read again: to know the screen, and long statements. */
  readonly warmUpChunks: number;
}

const LIMITS: SearchLimits = { ms: 5_000, hits: 100, warmUpChunks: 16 };
const SESSIONS_AT_ONCE = 100;
const MAX_PROBLEMS = 20;
/** One recording that cannot be read must not hide all others. `usage`: it, or the expression on it, takes too long. */
const SKIPPED: ReadonlySet<string> = new Set(["erased", "integrity", "usage", "not_found"]);
const FEED_MS = 6_000;

/** In what a JavaScript date can hold, so that a cursor means exactly one place. */
const OPENED_AT = sql<Date>`date_trunc('milliseconds', sessions.opened_at)`;

interface Position {
  readonly openedAt: Date;
  readonly session: string;
  /** What was looked through of it already; 0: nothing. */
  readonly seq: number;
}

/**
 * Looks through recordings, newest session first, by decrypting them: no index of what was said lies anywhere. What was
 * recorded in the last seconds and is not sealed yet is not found.
 * @throws GlassError `usage` for a pattern or a cursor that is none, or an expression that takes too long.
 */
export async function searchRecordings(
  sealed: Sealed,
  query: SearchQuery,
  may: (session: SearchedSession) => boolean,
  signal: AbortSignal,
  limits: SearchLimits = LIMITS,
): Promise<SearchPage> {
  checkPattern(query);
  let position = query.cursor === undefined ? undefined : parseCursor(sealed, query.cursor);
  const untilMs = performance.now() + limits.ms;
  const hits: SearchPage["hits"][number][] = [];
  const problems: SearchPage["problems"][number][] = [];
  let [sessions, erased] = [0, 0];
  const page = (next: Position | undefined): SearchPage => ({
    ...{ hits, sessions, problems, erased, next: next === undefined ? undefined : cursorOf(sealed, next) },
  });

  let passed = false; // every page gets further, however slow the store is
  const full = (): boolean => performance.now() >= untilMs || hits.length >= limits.hits;
  let thread: ScreenThread<Hit> | undefined;
  try {
    for (;;) {
      const found = await candidates(sealed, query, position);
      for (const session of found) {
        signal.throwIfAborted();
        const afterSeq = position?.session === session.session ? position.seq : 0;
        position = { openedAt: session.openedAt, session: session.session, seq: afterSeq };
        if (passed && full()) return page(position);
        passed = true;
        position = { ...position, seq: DONE };
        if (!may(session)) continue;
        sessions++;
        try {
          thread ??= startScreenThread({ do: "search", pattern: { text: query.text, regex: query.regex } }, FEED_MS);
          const stopped = await searchOne(sealed, thread, session, afterSeq, { ...limits, found: hits, signal, full });
          if (stopped !== undefined) return page({ ...position, seq: stopped });
        } catch (error) {
          await thread?.[Symbol.asyncDispose](); // what it had of this session must not reach the next
          thread = undefined;
          if (!(error instanceof GlassError) || !SKIPPED.has(error.code)) throw error;
          if (error.code === "erased") erased++;
          else if (problems.length < MAX_PROBLEMS) problems.push({ session: session.session, message: error.message });
        }
      }
      if (found.length < SESSIONS_AT_ONCE) return page(undefined);
    }
  } finally {
    await thread?.[Symbol.asyncDispose]();
  }
}

/** Higher than any record's sequence: nothing of that session is left. */
const DONE = 2 ** 32;

/** @returns the last record that was looked at, where it stopped before the end. */
async function searchOne(
  sealed: Sealed,
  thread: ScreenThread<Hit>,
  session: SearchedSession,
  afterSeq: number,
  {
    found,
    signal,
    full,
    warmUpChunks,
  }: Pick<SearchLimits, "warmUpChunks"> & {
    found: SearchPage["hits"][number][];
    signal: AbortSignal;
    full: () => boolean;
  },
): Promise<number | undefined> {
  const from = afterSeq === 0 ? {} : await chunkOf(sealed, session.session, afterSeq, warmUpChunks);
  let batch = createBatch();
  let seq = 0;
  const look = async (last: boolean): Promise<void> => {
    const hits = await thread.feed(batch.records, { last });
    if (seq > afterSeq) found.push(...hits.map((hit) => ({ ...hit, session }))); // else they were in the page before
    batch = createBatch();
  };
  for await (const record of readSealed(sealed, session.session, from)) {
    signal.throwIfAborted();
    ({ seq } = record);
    if (!batch.add(record) && seq !== afterSeq) continue;
    await look(false);
    if (seq > afterSeq && full()) {
      // What began before the chunks that the next page reads again, and has no end yet, is found now or never.
      const again = await chunkOf(sealed, session.session, seq, warmUpChunks);
      const open = await thread.feed([], { last: true });
      found.push(...open.filter((hit) => hit.seq < again.firstSeq).map((hit) => ({ ...hit, session })));
      return seq;
    }
  }
  if (seq > 0) await look(true);
  return undefined;
}

async function candidates(
  { store }: Sealed,
  { person, target, playbook, since, until }: SearchQuery,
  position: Position | undefined,
): Promise<SearchedSession[]> {
  let query = store
    .selectFrom("sessions")
    .innerJoin("grants", "grants.id", "sessions.grant_id")
    .select(["sessions.id as session", "sessions.person", OPENED_AT.as("openedAt")])
    .select(["grants.target", "grants.playbook", "grants.requester"])
    .orderBy(OPENED_AT, "desc")
    .orderBy("sessions.id", "desc")
    .limit(SESSIONS_AT_ONCE);
  if (person !== undefined) query = query.where("sessions.person", "=", person);
  if (target !== undefined) query = query.where("grants.target", "=", target);
  if (playbook !== undefined) query = query.where("grants.playbook", "=", playbook);
  if (until !== undefined) query = query.where("sessions.opened_at", "<", until);
  if (since !== undefined) {
    query = query.where((where) =>
      where.or([where("sessions.closed_at", "is", null), where("sessions.closed_at", ">", since)]),
    );
  }
  if (position !== undefined) {
    const { openedAt, session, seq } = position;
    query = query.where((where) =>
      where.or([
        where(OPENED_AT, "<", openedAt),
        where.and([where(OPENED_AT, "=", openedAt), where("sessions.id", seq === DONE ? "<" : "<=", session)]),
      ]),
    );
  }
  return query.execute();
}

/** So many chunks before the one that holds that record. */
async function chunkOf(
  { store }: Sealed,
  session: string,
  seq: number,
  before: number,
): Promise<{ chunk: number; firstSeq: number }> {
  const rows = await store
    .selectFrom("chunks")
    .select(["chunk", "first_seq as firstSeq"])
    .where("session", "=", session)
    .where("first_seq", "<=", seq)
    .orderBy("chunk", "desc")
    .limit(before + 1)
    .execute();
  return rows.at(-1) ?? { chunk: 0, firstSeq: 1 };
}

/** Sealed: the session that comes next may be one that the asker may not even know of. */
const CURSOR: Place = { table: "sessions", row: "search", column: "cursor" };

function cursorOf({ keyring }: Sealed, { openedAt, session, seq }: Position): string {
  const plain = Buffer.from(JSON.stringify([openedAt.getTime(), session, seq]));
  return keyring.seal(CURSOR, plain).toString("base64url");
}

function parseCursor({ keyring }: Sealed, text: string): Position {
  try {
    const plain = keyring.open(CURSOR, Buffer.from(text, "base64url")).toString("utf8");
    const [ms, session, seq] = JSON.parse(plain) as [number, string, number];
    return { openedAt: new Date(ms), session, seq };
  } catch (cause) {
    throw new GlassError("usage", "this is no cursor of a search", { next: "Begin the search again.", cause });
  }
}
