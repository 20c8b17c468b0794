import type { Recorder, RecordKind } from "../src/targets/target.ts";

export interface MemoryRecorder {
  readonly recorder: Recorder;
  readonly records: { kind: RecordKind; payload: Buffer }[];
  /** Holds commits back while true; what is held is released when it becomes false again. */
  hold(hold: boolean): void;
}

/** A recorder of a session that commits at the next turn, in batches, as the journal does. @param keep what is written */
export function createMemoryRecorder(keep: boolean): MemoryRecorder {
  const records: MemoryRecorder["records"] = [];
  let held = false;
  let pendingBytes = 0;
  let scheduled = false;
  let queue: { bytes: number; committed: (() => void) | undefined }[] = [];
  const commit = (): void => {
    scheduled = false;
    if (held) return;
    const batch = queue;
    queue = [];
    for (const { bytes, committed } of batch) {
      pendingBytes -= bytes;
      committed?.();
    }
  };
  const schedule = (): void => {
    if (scheduled || held) return;
    scheduled = true;
    setImmediate(commit);
  };
  return {
    records,
    hold(hold) {
      held = hold;
      if (!hold && queue.length > 0) schedule();
    },
    recorder: {
      get pendingBytes() {
        return pendingBytes;
      },
      write(kind, payload, committed) {
        if (payload.length > 1024 * 1024) throw new Error("a record is longer than 1 MiB");
        if (keep) records.push({ kind, payload: Buffer.from(payload) });
        pendingBytes += payload.length;
        queue.push({ bytes: payload.length, committed });
        schedule();
      },
    },
  };
}
