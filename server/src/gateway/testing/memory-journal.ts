import { GlassError } from "../../core/errors.ts";
import { RECORD, type RecordKind } from "../../targets/target.ts";
import type { OpenJournal } from "../messages.ts";

export interface MemoryRecord {
  session: string;
  kind: RecordKind;
  payload: string;
}

export interface MemoryJournal {
  readonly open: OpenJournal;
  readonly records: MemoryRecord[];
  /** Holds commits back until it is called with false, as a slow disk does. */
  stall(stalled: boolean): void;
  /** From here on nothing is committed, as with a broken disk. */
  fail(error: Error): void;
  /** The disk has room again. */
  recover(): void;
  readonly isClosed: boolean;
}

/** A journal that keeps records in memory and commits them in the next turn of the event loop. */
export function createMemoryJournal(): MemoryJournal {
  const records: MemoryRecord[] = [];
  let queue: (() => void)[] = [];
  let stalled = false;
  let failed = false;
  let closed = false;
  let onFailure: (error: unknown) => void = () => undefined;
  const flush = (): void => {
    if (stalled || failed) return;
    const due = queue;
    queue = [];
    for (const committed of due) committed();
  };
  return {
    open: async (options) => {
      onFailure = options.onFailure;
      return {
        recorder: (session) => ({
          pendingBytes: 0,
          write(kind, payload, committed) {
            if (failed) return;
            records.push({ session, kind, payload: Buffer.from(payload).toString() });
            queue.push(() => committed?.());
            setImmediate(flush);
          },
        }),
        ...{ id: "in memory", openedSequence: 0 },
        unavailable: () => (failed ? new GlassError("recording_unavailable", "/var/journal is full") : undefined),
        close: async () => {
          closed = true;
        },
      };
    },
    records,
    stall(now) {
      stalled = now;
      if (!now) setImmediate(flush);
    },
    fail(error) {
      failed = true;
      queue = [];
      onFailure(error);
    },
    recover: () => void (failed = false),
    get isClosed() {
      return closed;
    },
  };
}

/** The JSON payloads of one kind of record, parsed. */
export function payloads(journal: MemoryJournal, kind: keyof typeof RECORD): Record<string, unknown>[] {
  return journal.records
    .filter((record) => record.kind === RECORD[kind])
    .map((record) => JSON.parse(record.payload) as Record<string, unknown>);
}
