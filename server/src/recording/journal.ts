import { randomBytes } from "node:crypto";
import { describe, GlassError } from "../core/errors.ts";
import type { Recorder } from "../targets/target.ts";
import { RECORD } from "../targets/target.ts";
import { type Batch, batchBytes, clearBatch, emptyBatch, queueRecord, takeSessionEnds, type Writer } from "./batch.ts";
import { encodeFileHeader, FILE_HEADER_BYTES, type FileKey, fileKey, frameBytes, sealFrame } from "./frame.ts";
import { type JournalFolders, openFolders } from "./journal-copies.ts";
import { type JournalFiles, nodeFiles, SYNC_AFTER_WRITE } from "./journal-files.ts";
import { journalFileName } from "./reader.ts";
import { microsecondClock } from "./microseconds.ts";
import { JOURNAL_OPENED, JOURNAL_SESSION, MAX_PAYLOAD_BYTES, sessionBytes } from "./record.ts";
import { type JournalSpan, type Recovered, recoverJournal, UNFINISHED } from "./recovery.ts";

export interface JournalOptions {
  /** The journal's folder, this process's own. */
  dir: string;
  /** A second folder, on another disk, with the same bytes: one broken disk then neither stops recording nor takes any of it away. */
  mirror?: string | undefined;
  /** How long one disk may take longer than the other before it is given up; 5000 by default. */
  slowDiskMs?: number | undefined;
  /** 32 bytes. The same at every start, or what is in the folder cannot be read. */
  key: Uint8Array;
  /**
   * `durable`: a record is committed once it is on the disk. `written`: once the kernel has it, which survives the death
   * of this process and not a power cut; the disk follows within a second.
   */
  mode: "durable" | "written";
  /** Size of one file. Greater means fewer preparations; 64 MiB by default. */
  fileBytes?: number;
  /** The most that may wait to be sealed before recording stops; 4 GiB by default. */
  maxUnsealedBytes?: number;
  /**
   * Records are no longer taken: cut every session. Called once for a failure; once more for each later time that the
   * disk is full again after it had recovered. No `committed` callback of a session open now runs after it, except that
   * of its sessionEnded record where the disk is merely full.
   */
  onFailure(error: GlassError): void;
  files?: JournalFiles;
  nowMs?: () => number;
}

export type JournalState = "open" | "low" | "full" | "failed" | "closed";

export interface JournalStats {
  readonly state: JournalState;
  readonly mode: "durable" | "written";
  readonly records: number;
  readonly frames: number;
  readonly bytes: number;
  /** Of the last frame that was written, and of the last that is on the disk. */
  readonly sequence: number;
  readonly syncedSequence: number;
  /** Queued or being written, of all sessions. */
  readonly pendingBytes: number;
  /** Bytes of all files in the folder when last looked at; sealing makes it smaller. */
  readonly unsealedBytes: number;
}

export interface Journal {
  /** The journal's own id, as hexadecimal text; it stays the same as long as the folder does. */
  readonly id: string;
  /** Frame in which this opening was written down. All that any earlier process wrote comes before it. */
  readonly openedSequence: number;
  /** The files with frames as they were then, oldest first; the last one is this opening's own. */
  readonly spans: readonly JournalSpan[];
  /** What was cut off when it was opened. */
  readonly torn: Recovered["torn"];
  /** A recorder for a session that begins now. @throws GlassError `recording_unavailable` if {@link Journal.unavailable} says so. */
  recorder(session: string): Recorder;
  /** Why no session may begin now; undefined while all is well. */
  unavailable(): GlassError | undefined;
  /** Which of two folders was given up, and why; undefined with both, and with one alone. */
  degraded(): string | undefined;
  /** What was done at the opening to make two folders equal; undefined where they were. */
  readonly rebuilt: string | undefined;
  /** Resolves when all that was queued before is committed. @throws GlassError `recording_unavailable`. */
  flush(): Promise<void>;
  /** Flushes, syncs, cuts the last file to its length and gives the folder back. Idempotent. Never throws. */
  close(): Promise<void>;
  stats(): JournalStats;
}

const DEFAULT_FILE_BYTES = 64 << 20;
const MIN_FILE_BYTES = 64 << 10;
const DEFAULT_MAX_UNSEALED_BYTES = 4 * 2 ** 30;
/** Kept free at the end of the last file on a full disk: room for 500 sessions' last records. */
const RESERVE_BYTES = 256 << 10;
/** At most this much goes into one write, so that no commit waits for more than that. */
const MAX_WRITE_BYTES = 4 << 20;
const SPARE_BATCHES = 4;
const RETRY_PREPARE_MS = 1_000;
const PREPARE_PAUSE_MS = 10;
const SLOW_SLICE_BYTES = 256 << 10;
const FAST_SLICE_BYTES = 4 << 20;
const BACKGROUND_SYNC_MS = 1_000;
/** A record that nobody waits for goes with the next that somebody does; alone it is written after so long, or at so many bytes. */
const LONE_MS = 5;
const LONE_BYTES = 64 << 10;

type Next =
  | { readonly is: "preparing" }
  | { readonly is: "ready"; readonly file: LiveFile }
  | { readonly is: "missing"; readonly error: GlassError };

interface LiveFile {
  readonly number: number;
  readonly fd: number;
  readonly key: FileKey;
  position: number;
}

/**
 * Opens the journal folder: takes its lock, verifies and recovers what is there, and begins a new file. All sessions of
 * this process write to it; whatever queued during one write and sync goes into the next.
 * @throws GlassError `integrity` for a damaged journal or two that contradict each other, `conflict` for a folder in use, `recording_unavailable` when the
 * first file cannot be made.
 */
export async function openJournal(options: JournalOptions): Promise<Journal> {
  const { dir, key, mode } = options;
  const fileBytes = Math.max(MIN_FILE_BYTES, options.fileBytes ?? DEFAULT_FILE_BYTES);
  const maxUnsealedBytes = options.maxUnsealedBytes ?? DEFAULT_MAX_UNSEALED_BYTES;
  const reserveBytes = Math.min(RESERVE_BYTES, fileBytes >> 2);
  const durable = mode === "durable";
  if (key.length !== 32) throw new GlassError("internal", "the journal key must have 32 bytes");

  const folders: JournalFolders = await openFolders({
    ...{ dir, mirror: options.mirror, key, files: options.files ?? nodeFiles, slowMs: options.slowDiskMs },
  }).catch((error: unknown) => {
    throw startError(dir, error);
  });
  const files = folders.files;
  let recovered: Recovered;
  try {
    recovered = await recoverJournal(folders.dir, key, files);
  } catch (error) {
    folders.release();
    throw startError(dir, error);
  }
  const journalId = recovered.journalId ?? randomBytes(16);

  let state: JournalState = "open";
  let failure: GlassError | undefined;
  let epoch = 0; // counts the times that the disk was full: recorders of an earlier epoch may only end
  let sequence = recovered.sequence;
  let synced = recovered.sequence;
  let nextNumber = recovered.nextNumber;
  let next: Next = { is: "preparing" };
  let current: LiveFile;
  let unsealedBytes = 0;
  let urgent = false; // a batch waits for the next file
  let records = 0;
  let frames = 0;
  let bytesWritten = 0;
  let pendingBytes = 0;

  const queue: Batch[] = [];
  const spare: Batch[] = [];
  const inFlight: Batch[] = [];
  let out: Buffer = Buffer.allocUnsafe(256 << 10);
  let opened = false;
  let writing = false;
  let scheduled = false;
  let awaited = false; // somebody waits for something in the queue
  let idle: (() => void)[] = [];
  let retryTimer: NodeJS.Timeout | undefined;
  let syncTimer: NodeJS.Timeout | undefined;
  let loneTimer: NodeJS.Timeout | undefined;
  let preparing: Promise<void> | undefined;
  let syncing: Promise<void> | undefined;
  const retired = new Set<Promise<void>>();

  const nowUs = microsecondClock(options.nowMs ?? Date.now);

  // ---------------------------------------------------------------------------------------------- files
  const makeFile = async (): Promise<LiveFile> => {
    const number = nextNumber;
    const name = journalFileName(number);
    const present = await files.list(dir);
    unsealedBytes = present.reduce((sum, file) => sum + file.bytes, 0);
    if (unsealedBytes + fileBytes > maxUnsealedBytes) {
      throw new Error(`${unsealedBytes} bytes wait to be sealed, and ${maxUnsealedBytes} is the most that may`);
    }
    const fileId = randomBytes(16);
    const head = encodeFileHeader(key, { number, fileId, journalId, createdUs: nowUs() });
    /** Small and slow beside live sessions, whose syncs wait for these; fast when somebody waits for the file. */
    const slice = async (): Promise<number> => {
      if (urgent || !opened || state !== "open") return FAST_SLICE_BYTES;
      await new Promise((resolve) => setTimeout(resolve, PREPARE_PAUSE_MS));
      return SLOW_SLICE_BYTES;
    };
    await files.remove(dir, name + UNFINISHED);
    try {
      await files.prepare(dir, name + UNFINISHED, head, fileBytes, slice);
      await files.rename(dir, name + UNFINISHED, name);
      await files.syncFolder(dir);
    } catch (error) {
      await files.remove(dir, name + UNFINISHED).catch(() => {}); // the next start removes it
      throw error;
    }
    const fd = await files.open(dir, name, durable);
    nextNumber = number + 1;
    unsealedBytes += fileBytes;
    return { number, fd, key: fileKey(key, fileId), position: FILE_HEADER_BYTES };
  };

  const prepareNext = (): void => {
    if (state === "failed" || state === "closed" || preparing !== undefined) return;
    next = next.is === "missing" ? next : { is: "preparing" };
    preparing = makeFile()
      .then(
        (file) => {
          next = { is: "ready", file };
          if (state === "low" || state === "full") {
            state = "open";
            failure = undefined;
          }
        },
        (cause: unknown) => {
          next = { is: "missing", error: noSpace(dir, cause) };
          if (state === "open") state = "low";
          retryTimer = setTimeout(prepareNext, RETRY_PREPARE_MS);
          retryTimer.unref();
        },
      )
      .finally(() => {
        preparing = undefined;
        schedule();
      });
  };

  const syncToDisk = (fd: number): Promise<boolean> =>
    new Promise((resolve) => {
      files.sync(fd, (error) => {
        if (error !== null) fail(diskError(error));
        resolve(error === null);
      });
    });

  /** Gives back what a finished file did not use. Failing to is no loss: the zeros are told from records. */
  const retire = (file: LiveFile): void => {
    const work = (async () => {
      await syncing;
      if (!durable) await syncToDisk(file.fd);
      files.close(file.fd);
      await files.truncate(dir, journalFileName(file.number), file.position);
    })().catch(() => {});
    retired.add(work);
    void work.finally(() => retired.delete(work));
  };

  // ---------------------------------------------------------------------------------------------- failure
  const drop = (batch: Batch): void => {
    for (let i = 0; i < batch.count; i++) {
      const writer = batch.writers[i] as Writer;
      writer.seq = Math.min(writer.seq, (batch.seqs[i] as number) - 1);
    }
    pendingBytes -= batchBytes(batch);
    batch.committed.length = 0;
    clearBatch(batch);
  };

  const wake = (): void => {
    const waiting = idle;
    idle = [];
    for (const resume of waiting) resume();
  };

  const fail = (error: GlassError): void => {
    if (state === "failed" || state === "closed") return;
    state = "failed";
    failure = error;
    for (const batch of queue) drop(batch);
    queue.length = 0;
    wake();
    if (opened) options.onFailure(error);
  };

  /** The disk is full: only the last records of sessions are taken now, into the reserve. */
  const stop = (error: GlassError): void => {
    state = "full";
    failure = error;
    epoch++;
    const ends = queue.flatMap((batch) => takeSessionEnds(batch));
    for (const batch of queue.toReversed()) drop(batch);
    queue.length = 0;
    wake();
    for (const { writer, payload, committed } of ends) append(writer, RECORD.sessionEnded, payload, committed);
    options.onFailure(error);
  };

  // ---------------------------------------------------------------------------------------------- writing
  const append = (
    writer: Writer,
    kind: number,
    payload: Uint8Array | string,
    committed: (() => void) | undefined,
  ): void => {
    if (committed !== undefined) awaited = true;
    const last = queue.at(-1);
    const added = last === undefined ? 0 : queueRecord(last, writer, kind, nowUs(), payload, committed);
    pendingBytes += added;
    if (added === 0) {
      const batch = spare.pop() ?? emptyBatch();
      queue.push(batch);
      pendingBytes += queueRecord(batch, writer, kind, nowUs(), payload, committed);
    }
    schedule();
  };

  const schedule = (): void => {
    if (scheduled || writing || queue.length === 0) return;
    if (awaited || idle.length > 0 || queue.length > 1 || (queue[0] as Batch).length >= LONE_BYTES) {
      scheduled = true;
      setImmediate(write);
      return;
    }
    loneTimer ??= setTimeout(() => {
      loneTimer = undefined;
      if (scheduled || writing || queue.length === 0) return;
      write();
    }, LONE_MS);
  };

  /** Makes room for a frame in the current file, or says that it has to wait. */
  const roomFor = (bytes: number): boolean => {
    if (current.position + bytes <= fileBytes - (next.is === "ready" || state === "full" ? 0 : reserveBytes))
      return true;
    if (next.is === "ready") {
      retire(current);
      current = next.file;
      next = { is: "preparing" };
      urgent = false;
      prepareNext();
      return true; // even where one frame is greater than a file: then the file grows
    }
    return false;
  };

  const write = (): void => {
    scheduled = false;
    if (writing || queue.length === 0 || state === "failed" || state === "closed") return;
    const first = queue[0] as Batch;
    if (!roomFor(frameBytes(first.length))) {
      if (next.is === "preparing") urgent = true;
      else if (next.is === "missing" && state !== "full") stop(next.error);
      else if (state === "full") {
        for (const batch of queue) drop(batch); // the reserve is used up
        queue.length = 0;
        wake();
      }
      return;
    }
    const from = current.position;
    let length = 0;
    let taken = 0;
    for (const batch of queue) {
      const bytes = frameBytes(batch.length);
      if (taken > 0 && (length + bytes > MAX_WRITE_BYTES || from + length + bytes > fileBytes - reserveBytes)) break;
      if (length + bytes > out.length) out = grown(out, length, length + bytes);
      sealFrame(current.key, ++sequence, synced, batch.plain, batch.length, out, length);
      length += bytes;
      taken++;
      records += batch.count;
    }
    frames += taken;
    bytesWritten += length;
    current.position += length;
    for (let i = 0; i < taken; i++) inFlight.push(queue[i] as Batch);
    queue.splice(0, taken);
    if (queue.length === 0) awaited = false;
    writing = true;
    if (durable) return files.write(current.fd, out, length, from, written);
    try {
      files.writeSync(current.fd, out, length, from);
    } catch (error) {
      return done(error);
    }
    scheduleSync();
    done(null);
  };

  const written = (error: Error | null): void => {
    if (error === null && SYNC_AFTER_WRITE) files.sync(current.fd, done);
    else done(error);
  };

  const done = (error: unknown): void => {
    writing = false;
    if (error !== null) fail(diskError(error));
    if (state === "failed" || state === "closed") return wake();
    if (durable) synced = sequence;
    const finished = inFlight.splice(0, inFlight.length);
    // Where the next batch may have to be refused, these callbacks run first: none may run after onFailure.
    if (durable && next.is !== "missing" && awaited) write();
    else schedule();
    for (const batch of finished) {
      commit(batch);
      if (spare.length < SPARE_BATCHES) spare.push(batch);
    }
    if (queue.length === 0 && !writing) wake();
  };

  const commit = (batch: Batch): void => {
    pendingBytes -= batchBytes(batch);
    const { committed, count } = batch;
    clearBatch(batch);
    for (let i = 0; i < count; i++) {
      const callback = committed[i];
      committed[i] = undefined;
      if (callback === undefined) continue;
      try {
        callback();
      } catch (error) {
        queueMicrotask(() => {
          throw error; // a defect of the caller's: it shows, but other sessions are not its victims
        });
      }
    }
  };

  /** Mode `written`: the disk follows, and frames tell how far it has come. */
  const scheduleSync = (): void => {
    syncTimer ??= setTimeout(() => {
      syncTimer = undefined;
      if (state === "failed" || state === "closed") return;
      const through = sequence;
      syncing = syncToDisk(current.fd).then((ok) => {
        if (ok && retired.size === 0) synced = Math.max(synced, through);
      });
    }, BACKGROUND_SYNC_MS);
    syncTimer.unref();
  };

  // ---------------------------------------------------------------------------------------------- opening
  try {
    current = await makeFile();
  } catch (cause) {
    folders.release();
    throw noSpace(dir, cause);
  }
  const own: Writer = { id: sessionBytes(JOURNAL_SESSION), seq: 0, pending: 0 };
  await new Promise<void>((resolve, reject) => {
    append(own, JOURNAL_OPENED, JSON.stringify({ pid: process.pid, mode }), () =>
      files.sync(current.fd, (error) => (error === null ? resolve() : reject(diskError(error)))),
    );
    idle.push(() => {
      if (failure !== undefined) reject(failure);
    });
  }).catch((error: unknown) => {
    state = "failed";
    clearTimeout(syncTimer); // it would come to a file that is closed
    files.close(current.fd);
    folders.release();
    throw error;
  });
  synced = sequence;
  const openedSequence = sequence;
  opened = true;
  prepareNext();

  const unavailable = (): GlassError | undefined => {
    if (state === "open") return undefined;
    if (state === "low" && next.is === "missing") return next.error;
    return failure ?? new GlassError("recording_unavailable", "the journal is closed");
  };

  const inWriting = (): boolean => writing;
  const busy = (): boolean => writing || queue.length > 0;
  let closing: Promise<void> | undefined;
  const journal: Journal = {
    id: journalId.toString("hex"),
    openedSequence,
    spans: [
      ...recovered.spans,
      { id: current.key.fileId.toString("hex"), first: openedSequence, last: openedSequence },
    ],
    torn: recovered.torn,
    rebuilt: folders.rebuilt,
    unavailable,

    degraded() {
      const lost = folders.lost();
      return lost === undefined
        ? undefined
        : `the recording goes on without its copy in ${lost.dir}, which was given up: ${lost.why}`;
    },

    recorder(session) {
      const why = unavailable();
      if (why !== undefined) throw why;
      const writer: Writer = { id: sessionBytes(session), seq: 0, pending: 0 };
      const born = epoch;
      return {
        write(kind, payload, committed) {
          if (payload.length * 3 > MAX_PAYLOAD_BYTES && Buffer.byteLength(payload) > MAX_PAYLOAD_BYTES) {
            throw new GlassError("internal", `a record of more than ${MAX_PAYLOAD_BYTES} bytes`);
          }
          if (state === "failed" || state === "closed") return;
          if ((state === "full" || born !== epoch) && kind !== RECORD.sessionEnded) return;
          append(writer, kind, payload, committed);
        },
        get pendingBytes() {
          return writer.pending;
        },
      };
    },

    async flush() {
      while (busy()) {
        if (state === "failed" || state === "closed") break;
        const done = new Promise<void>((resume) => idle.push(resume));
        schedule();
        await done;
      }
      if (failure !== undefined) throw failure;
    },

    close() {
      closing ??= (async () => {
        await journal.flush().catch(() => {}); // whoever queued it was told by onFailure
        while (inWriting()) await new Promise<void>((resume) => idle.push(resume)); // its descriptor is in use
        clearTimeout(retryTimer);
        clearTimeout(syncTimer);
        clearTimeout(loneTimer);
        const wasFailed = state === "failed";
        state = "closed";
        await preparing;
        clearTimeout(retryTimer);
        if (next.is === "ready") {
          files.close(next.file.fd);
          await files.remove(dir, journalFileName(next.file.number)).catch(() => {}); // the next start removes it
        }
        if (wasFailed) files.close(current.fd);
        else retire(current);
        await Promise.all(retired);
        folders.release();
      })();
      return closing;
    },

    stats: () => ({
      state,
      mode,
      records,
      frames,
      bytes: bytesWritten,
      sequence,
      syncedSequence: synced,
      pendingBytes,
      unsealedBytes,
    }),
  };
  return journal;
}

function grown(buffer: Buffer, used: number, needed: number): Buffer {
  const greater = Buffer.allocUnsafe(Math.max(needed, buffer.length * 2));
  buffer.copy(greater, 0, 0, used);
  return greater;
}

function startError(dir: string, cause: unknown): GlassError {
  if (cause instanceof GlassError) return cause;
  return new GlassError("recording_unavailable", `the journal in ${dir} cannot be opened: ${describe(cause)}`, {
    next: "Check the disk, and who may write there. What was acknowledged is safe.",
    cause,
  });
}

function noSpace(dir: string, cause: unknown): GlassError {
  return new GlassError("recording_unavailable", `there is no room for the recording in ${dir}: ${describe(cause)}`, {
    next: "Make room on that disk, or see why sealing does not keep up. Sessions open again by themselves.",
    cause,
  });
}

function diskError(cause: unknown): GlassError {
  return new GlassError("recording_unavailable", `the recording could not be written to the disk: ${describe(cause)}`, {
    next: "Check the disk, then restart this process. What was acknowledged is safe; nothing else was let through.",
    cause,
  });
}
