import type { LogEvent } from "../audit/append.ts";
import { type Clock, systemClock } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import { storeError, type Store, type Tx } from "../store/database.ts";
import { RECORD } from "../targets/target.ts";
import { CHUNK_PLAIN_BYTES, chunkName, MAX_CHUNK_BYTES, parseChunkName, sealChunk } from "./chunk.ts";
import type { ChunkStore } from "./chunk-store.ts";
import { type JournalFiles, nodeFiles } from "./journal-files.ts";
import { type JournalFrame, openReader } from "./reader.ts";
import {
  decodeRecords,
  encodeRecord,
  JOURNAL_OPENED,
  JOURNAL_SESSION,
  RECORD_HEAD_BYTES,
  type StoredRecord,
} from "./record.ts";
import {
  commitChunk,
  commitJournal,
  enterJournal,
  type OpenedJournal,
  type Progress,
  readProgress,
  unfinishedSessions,
} from "./sealer-progress.ts";
import { cut, type Due, fresh, type Item, sealedEvent, tryHeader, type Waiting } from "./sealer-waiting.ts";
import { makeSessionKey, type Wrapping } from "./session-keys.ts";

export interface SealerOptions {
  /** The journal's folder and key, as for openJournal. */
  dir: string;
  key: Uint8Array;
  /** The journal's second folder, where it has one. */
  mirror?: string | undefined;
  /** This process's name for its journal, the same at every start. */
  name: string;
  /** `id`, `openedSequence` and `spans` of the journal that this process opened. */
  opened: OpenedJournal;
  store: Store;
  keyring: Wrapping;
  chunks: ChunkStore;
  /** `append` of audit/append.ts. */
  append: (trx: Tx, event: LogEvent) => Promise<void>;
  /** A round failed and will be tried again in a second; or, with `integrity`, part of the journal cannot be sealed. */
  onError: (error: unknown) => void;
  /** No record waits longer than this for its chunk; 2000 by default. */
  sealAfterMs?: number;
  /** How often to look for new records; 250 by default. */
  pollMs?: number;
  clock?: Clock;
  files?: Pick<JournalFiles, "remove">;
}

export interface Sealer {
  /** Begins to work on its own. */
  start(): void;
  /**
   * Reads what the journal holds now, up to a few MiB, and seals what is due. Returns whether there is more to do at
   * once. Rounds never overlap. A failed one loses nothing and may be repeated; after `integrity` each fails the same way.
   */
  round(): Promise<boolean>;
  /** Resolves when every record that was in the journal at the call is sealed, of that session or of all. */
  sealNow(session?: string): Promise<void>;
  /**
   * Tells of every record of a session from this moment on, as soon as it is read from the journal and before it is
   * sealed. `take` is called in order, must be quick and must not throw.
   * @returns the records that were read and are not sealed at this moment: with the chunks of before and what `take` is
   *   given, that is all of them.
   */
  follow(session: string, take: (record: StoredRecord) => void): Following;
  stats(): SealerStats;
  /** Seals what there is, if the store answers, and stops. Whatever is left waits in the journal. */
  close(): Promise<void>;
}

export interface Following {
  readonly waiting: readonly StoredRecord[];
  stop(): void;
}

export interface SealerStats {
  readonly readSequence: number;
  /** Everything up to this frame is sealed. */
  readonly completeSequence: number;
  readonly bufferedBytes: number;
  readonly sessions: number;
}

const READ_BYTES_A_ROUND = 8 << 20;
const MAX_BUFFERED_BYTES = 64 << 20;
const CHUNKS_A_COMMIT = 64;
const PUTS_AT_ONCE = 8;
const RETRY_MS = 1_000;
const FOLLOWED_POLL_MS = 100; // somebody watches
const STALLED_MS = 5_000;
const UNKNOWN_SESSION_MS = 30_000; // its row is committed before its first record; later than this, it never will be

/**
 * Turns the journal into sealed chunks. A chunk's file is durable first; then one transaction adds its row, moves the
 * session's progress and appends the log entry; a journal file is deleted once all in it is committed. Recovery after a
 * crash is the same code: it reads on from the oldest file and skips what the store has.
 * @throws GlassError `integrity` when the journal is another or shorter than what was sealed from it.
 */
export async function openSealer(options: SealerOptions): Promise<Sealer> {
  const { dir, key, name, opened, store, keyring, chunks } = options;
  const sealAfterMs = options.sealAfterMs ?? 2_000;
  const pollMs = options.pollMs ?? 250;
  const clock = options.clock ?? systemClock;
  const files = options.files ?? nodeFiles;

  let complete = await enterJournal(store, name, opened);
  let completeInStore = complete;
  const unfinished = await unfinishedSessions(store, opened.id);
  const reader = openReader(dir, key, options.mirror);
  const sessions = new Map<string, Waiting>();
  for (const [session, progress] of unfinished) sessions.set(session, fresh(session, progress));
  const keys = new Map<string, Buffer>();
  const followers = new Map<string, Set<(record: StoredRecord) => void>>();
  const fileEnds = new Map<string, number>();
  const fileIds = new Map<string, string>();
  const removals = new Map<string, Promise<void>>(); // by folder, one after the other
  let currentFile = "";
  let bufferedBytes = 0;
  let caughtUp = false;
  let quietSinceMs: number | undefined;
  let broken: GlassError | undefined;

  // ---------------------------------------------------------------------------------------------- reading
  const take = (frame: JournalFrame): void => {
    if (currentFile === "" && frame.sequence > complete + 1) {
      throw new GlassError(
        "integrity",
        `the journal begins with frame ${frame.sequence} in ${frame.file}, and only frames up to ${complete} are sealed`,
      );
    }
    currentFile = frame.file;
    fileEnds.set(frame.file, frame.sequence);
    fileIds.set(frame.file, frame.fileId);
    for (const record of frame.records) {
      if (record.session === JOURNAL_SESSION) {
        if (record.kind === JOURNAL_OPENED) closeLost(frame.sequence, record.timeUs);
      } else push(record, frame.sequence);
    }
  };

  const push = (record: StoredRecord, frame: number): void => {
    let waiting = sessions.get(record.session);
    if (waiting === undefined) {
      waiting = fresh(record.session, undefined);
      sessions.set(record.session, waiting);
    }
    const { seq, timeUs } = record;
    if (waiting.pinned !== undefined) return;
    if (waiting.progress !== undefined && seq <= waiting.progress.sealedSeq) return;
    const last = waiting.items.at(-1)?.seq ?? waiting.progress?.sealedSeq;
    if (last !== undefined && seq !== last + 1) {
      throw new GlassError(
        "integrity",
        `record ${seq} of ${record.session} follows record ${last} in the journal's frame ${frame}`,
      );
    }
    const bytes = encodeRecord(record);
    const ends = record.kind === RECORD.sessionEnded;
    if (waiting.items.length === 0) waiting.sinceMs = clock.monotonicMs();
    waiting.items.push({ bytes, seq, timeUs, frame, ends });
    waiting.bytes += bytes.length;
    bufferedBytes += bytes.length;
    waiting.ended ||= ends;
    for (const take of followers.get(record.session) ?? []) take(record);
  };

  /** A process opened the journal in this frame: sessions of the one before it are over, whether or not it could say so. */
  const closeLost = (frame: number, timeUs: number): void => {
    for (const waiting of sessions.values()) {
      const { items, progress, session } = waiting;
      const lastFrame = Math.max(items.at(-1)?.frame ?? 0, progress?.frame ?? 0);
      if (
        waiting.ended ||
        progress?.complete === true ||
        waiting.pinned !== undefined ||
        lastFrame === 0 ||
        lastFrame >= frame
      )
        continue;
      const payload = Buffer.from(JSON.stringify({ cause: "lost", detail: "session lost with the process" }));
      const seq = (items.at(-1)?.seq ?? progress?.sealedSeq ?? 0) + 1;
      push({ session, seq, kind: RECORD.sessionEnded, timeUs, payload }, frame);
    }
  };

  /** Asks the store about sessions seen for the first time, and lets go of what it has already. */
  const learn = async (settled: boolean): Promise<void> => {
    const unknown = [...sessions.values()].filter(
      ({ progress, pinned }) => progress === undefined && pinned === undefined,
    );
    const known = await readProgress(
      store,
      unknown.map(({ session }) => session),
    );
    for (const waiting of unknown) {
      const progress = known.get(waiting.session);
      if (progress === undefined) pinIfLate(waiting);
      else adopt(waiting, progress);
    }
    if (settled) return; // only what an earlier sealer read can have left a chunk without a row
    for (const waiting of sessions.values()) {
      if (waiting.progress !== undefined) waiting.boundary ??= await findBoundary(waiting.session, waiting.progress);
    }
  };

  const adopt = (waiting: Waiting, progress: Progress): void => {
    waiting.progress = progress;
    const left = waiting.items.filter(({ seq }) => seq > progress.sealedSeq);
    shift(waiting, waiting.items.length - left.length);
    const first = left[0];
    if (first !== undefined && first.seq !== progress.sealedSeq + 1) {
      throw new GlassError(
        "integrity",
        `the journal goes on with record ${first.seq} of ${waiting.session}, and record ${progress.sealedSeq} is the last one sealed`,
      );
    }
    waiting.ended ||= progress.complete;
  };

  const pinIfLate = (waiting: Waiting): void => {
    if (clock.monotonicMs() - waiting.sinceMs < UNKNOWN_SESSION_MS) return;
    waiting.pinned = waiting.items[0]?.frame ?? reader.sequence;
    shift(waiting, waiting.items.length);
    options.onError(
      new GlassError(
        "integrity",
        `the journal holds a recording of ${waiting.session}, which the store does not know`,
        {
          next: "Was the store restored from a backup? The records stay in the journal folder until the store has that session.",
        },
      ),
    );
  };

  const findBoundary = async (session: string, progress: Progress): Promise<number> => {
    for (const file of await chunks.list(session)) {
      if (parseChunkName(file)?.chunk !== progress.chunks) continue;
      const bytes = await chunks.get(file, MAX_CHUNK_BYTES);
      const header = bytes === undefined ? undefined : tryHeader(bytes);
      if (header?.firstSeq === progress.sealedSeq + 1) return header.lastSeq;
    }
    return 0;
  };

  // ---------------------------------------------------------------------------------------------- sealing
  const shift = (waiting: Waiting, count: number): void => {
    const gone = waiting.items.splice(0, count);
    const bytes = gone.reduce((sum, item) => sum + item.bytes.length, 0);
    waiting.bytes -= bytes;
    bufferedBytes -= bytes;
    if (gone.length > 0) waiting.sinceMs = clock.monotonicMs();
  };

  const collect = async (asked: (session: string) => boolean): Promise<Due[]> => {
    const due: Due[] = [];
    const everything = bufferedBytes > MAX_BUFFERED_BYTES;
    for (const waiting of sessions.values()) {
      const { items, progress, session } = waiting;
      if (progress === undefined || items.length === 0) continue;
      const all = everything || waiting.ended || asked(session) || clock.monotonicMs() - waiting.sinceMs >= sealAfterMs;
      let from = 0;
      let bytes = waiting.bytes;
      let before = progress.sealedSeq;
      for (let number = progress.chunks; from < items.length; number++) {
        if (!all && bytes < CHUNK_PLAIN_BYTES) break;
        const boundary = number === progress.chunks ? waiting.boundary : undefined;
        if (!caughtUp && !everything && boundary !== undefined && boundary > (items.at(-1) as Item).seq) break; // not read yet
        const end = cut(items, from, boundary);
        const part = items.slice(from, end);
        const [first, last] = [part[0] as Item, part.at(-1) as Item];
        const plain = Buffer.concat(part.map((item) => item.bytes));
        const header = {
          session,
          chunk: number,
          firstSeq: first.seq,
          lastSeq: last.seq,
          firstUs: first.timeUs,
          lastUs: last.timeUs,
        };
        const chunk = sealChunk(await keyOf(session), header, plain);
        due.push({
          waiting,
          chunk,
          before,
          items: part.length,
          frame: last.frame,
          complete: part.some((item) => item.ends),
        });
        if (due.length >= CHUNKS_A_COMMIT) return due;
        before = last.seq;
        bytes -= plain.length;
        from = end;
      }
    }
    return due;
  };

  const keyOf = async (session: string): Promise<Buffer> => {
    const known = keys.get(session);
    if (known !== undefined) return known;
    const made = await makeSessionKey(store, keyring, session);
    keys.set(session, made);
    return made;
  };

  const commit = async (due: readonly Due[]): Promise<void> => {
    await reader.sync(); // what is sealed must not outlive the journal it came from
    const reached = completeAfter(due);
    try {
      for (let i = 0; i < due.length; i += PUTS_AT_ONCE) {
        const puts = due
          .slice(i, i + PUTS_AT_ONCE)
          .map(({ chunk }) => chunks.put(chunkName(chunk.session, chunk.chunk, chunk.sha256), chunk.file));
        await Promise.all(puts);
      }
      await store.transaction().execute(async (trx) => {
        for (const { chunk, before, frame, complete: ends, waiting } of due) {
          await commitChunk(trx, opened.id, before, { chunk, frame, complete: ends });
          await options.append(trx, sealedEvent(chunk, waiting.progress?.grant, clock.now()));
        }
        const sealed = Math.max(...due.map(({ frame }) => frame));
        await commitJournal(trx, name, opened.id, { sealed, file: fileOf(sealed), complete: reached });
      });
    } catch (error) {
      forgetProgress(due);
      throw error;
    }
    complete = reached;
    completeInStore = reached;
    for (const { waiting, chunk, items, frame, complete: ends } of due) {
      const progress = waiting.progress as Progress;
      waiting.progress = {
        ...progress,
        sealedSeq: chunk.lastSeq,
        chunks: chunk.chunk + 1,
        complete: progress.complete || ends,
        frame,
      };
      waiting.boundary = 0;
      shift(waiting, items);
    }
  };

  /** The id of the file with that frame; files go in the order of their frames. */
  const fileOf = (frame: number): string | undefined => {
    for (const [file, end] of fileEnds) if (end >= frame) return fileIds.get(file);
    return undefined;
  };

  /** It may have been committed although the answer did not come: the store is asked again, and the same chunk made again. */
  const forgetProgress = (due: readonly Due[]): void => {
    for (const { waiting, chunk } of due.toReversed()) {
      waiting.progress = undefined;
      waiting.boundary = chunk.lastSeq;
    }
  };

  const forget = (session: string): void => {
    sessions.delete(session);
    keys.delete(session);
  };

  /** The frame through which everything is sealed once `due` is committed. */
  const completeAfter = (due: readonly Due[]): number => {
    const sealed = new Map<Waiting, number>();
    for (const { waiting, items } of due) sealed.set(waiting, (sealed.get(waiting) ?? 0) + items);
    let reached = reader.sequence;
    for (const waiting of sessions.values()) {
      const first = waiting.pinned ?? waiting.items[sealed.get(waiting) ?? 0]?.frame;
      if (first !== undefined) reached = Math.min(reached, first - 1);
    }
    return Math.max(complete, reached);
  };

  const removeFiles = async (): Promise<void> => {
    complete = completeAfter([]);
    const done = [...fileEnds].filter(([file, end]) => file !== currentFile && end <= complete);
    if (done.length === 0) return;
    if (completeInStore < complete) {
      await commitJournal(store, name, opened.id, { sealed: 0, file: undefined, complete });
      completeInStore = complete;
    }
    for (const [file] of done) {
      await removeFile(file);
      fileEnds.delete(file);
      fileIds.delete(file);
    }
  };

  /**
   * From both folders. What stays in one that is broken is removed when that is made equal to the other again. A disk that
   * answers nothing is asked once, and holds up nobody.
   */
  const removeFile = async (file: string): Promise<void> => {
    const removing = [dir, ...(options.mirror === undefined ? [] : [options.mirror])].map((one) => {
      const done = (removals.get(one) ?? Promise.resolve()).then(() => files.remove(one, file));
      removals.set(
        one,
        done.catch(() => {}),
      );
      return done;
    });
    await Promise.any(removing).catch((error: AggregateError) => {
      throw error.errors[0];
    });
  };

  // ---------------------------------------------------------------------------------------------- rounds
  const work = async (asked: (session: string) => boolean): Promise<boolean> => {
    const settled = caughtUp;
    let read = 0;
    let ended = false;
    while (!ended && read < READ_BYTES_A_ROUND) {
      if (bufferedBytes > MAX_BUFFERED_BYTES) break; // take() added to it
      const frame = await reader.next();
      if (frame === undefined) {
        await look();
        ended = true;
      } else {
        quietSinceMs = undefined;
        take(frame);
        read += frame.records.reduce(
          (sum, record) => sum + record.payload.length + RECORD_HEAD_BYTES,
          RECORD_HEAD_BYTES,
        );
      }
    }
    caughtUp ||= ended;
    await learn(settled);
    const due = await collect(asked);
    if (due.length > 0) await commit(due);
    for (const { session, progress, items } of sessions.values())
      if (progress?.complete === true && items.length === 0) forget(session);
    await removeFiles();
    return !ended || due.length >= CHUNKS_A_COMMIT;
  };

  const look = async (): Promise<void> => {
    const nowMs = clock.monotonicMs();
    quietSinceMs ??= nowMs;
    if (nowMs - quietSinceMs < STALLED_MS) return;
    quietSinceMs = nowMs;
    await reader.stalled();
  };

  let turn: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(task: () => Promise<T>): Promise<T> => {
    const result = turn.then(task);
    turn = result.catch(() => {});
    return result;
  };
  const round = (asked: (session: string) => boolean = () => false): Promise<boolean> =>
    inTurn(async () => {
      if (broken !== undefined) throw broken;
      try {
        return await work(asked);
      } catch (error) {
        if (error instanceof GlassError && error.code === "integrity") broken = error; // to read on would be to skip
        throw storeError(error);
      }
    });

  let timer: NodeJS.Timeout | undefined;
  let closed = false;
  const loop = async (): Promise<void> => {
    let waitMs = followers.size === 0 ? pollMs : Math.min(pollMs, FOLLOWED_POLL_MS);
    try {
      if (await round()) waitMs = 0;
    } catch (error) {
      options.onError(error);
      waitMs = RETRY_MS;
    }
    if (!closed) timer = setTimeout(() => void loop(), waitMs);
  };

  return {
    start() {
      timer ??= setTimeout(() => void loop(), 0);
    },
    round: () => round(),
    async sealNow(session) {
      while (await round((one) => session === undefined || one === session));
    },
    follow(session, take) {
      const mine = followers.get(session) ?? new Set();
      followers.set(session, mine.add(take));
      const items = sessions.get(session)?.items ?? [];
      return {
        waiting: items.flatMap(({ bytes }) => decodeRecords(bytes)),
        stop() {
          mine.delete(take);
          if (mine.size === 0 && followers.get(session) === mine) followers.delete(session);
        },
      };
    },
    stats: () => ({
      readSequence: reader.sequence,
      completeSequence: complete,
      bufferedBytes,
      sessions: sessions.size,
    }),
    async close() {
      if (closed) return;
      closed = true;
      clearTimeout(timer);
      try {
        while (await round(() => true));
      } catch (error) {
        options.onError(error);
      }
      await inTurn(() => reader.close());
    },
  };
}
