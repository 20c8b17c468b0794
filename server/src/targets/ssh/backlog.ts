import type { Recorder } from "../target.ts";

/** A recorder that says when so much of what was given to it waits for the disk that the client is better not read. */
export interface Backlog {
  readonly recorder: Recorder;
  stop(): void;
}

/**
 * Windows bound what waits of a channel's bytes; requests, and channels that are opened and closed again, have none. Far
 * above what a disk that keeps up leaves: an interrupt key waits behind it.
 */
const MAX_WAITING_BYTES = 8 * 1024 * 1024;
const LOOK_MS = 5;

/** @param hold told `true` and `false` in turn */
export function createBacklog(recorder: Recorder, hold: (on: boolean) => void): Backlog {
  let timer: NodeJS.Timeout | undefined;

  const look = (): void => {
    timer = undefined;
    if (recorder.pendingBytes > MAX_WAITING_BYTES / 2) timer = setTimeout(look, LOOK_MS);
    else hold(false);
  };
  return {
    recorder: {
      write(kind, payload, committed) {
        recorder.write(kind, payload, committed);
        if (timer !== undefined || recorder.pendingBytes <= MAX_WAITING_BYTES) return;
        timer = setTimeout(look, LOOK_MS);
        hold(true);
      },
      get pendingBytes() {
        return recorder.pendingBytes;
      },
    },
    stop: () => clearTimeout(timer),
  };
}
