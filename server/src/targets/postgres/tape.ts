import { RECORD, type Recorder, type RecordKind } from "../target.ts";

/**
 * Writes one session's records and releases what they allow to be forwarded: nothing that a user sent reaches the target
 * before the recorder said that it is safe. Pure towards sockets: `forward` is an argument.
 */
export interface Tape {
  /**
   * A record about something that is about to be forwarded. `json` is a whole object; one longer than a record may be is
   * written as `{ n, overflow }`, followed by `data` records of `n` whose first `overflow` bytes are the object in UTF-8.
   */
  write(kind: RecordKind, n: number, json: string): void;
  /** COPY data of statement `n`; copied at once. */
  data(n: number, bytes: Buffer): void;
  /** Bytes for the target. They leave once everything written before `release` is committed. */
  pass(bytes: Buffer): void;
  /** Ends one turn: what was passed since the last one is forwarded as soon as it may be, in order. */
  release(): void;
  /** Bytes waiting for their commit. */
  readonly waitingBytes: number;
}

/** A record's limit is 1 MiB; this leaves room for what the journal puts around it. */
const MAX_RECORD_BYTES = 1_000_000;

interface Batch {
  buffers: Buffer[];
  bytes: number;
}

export function createTape(recorder: Recorder, forward: (buffers: readonly Buffer[]) => void): Tape {
  // The last record of a turn carries the callback, because records are committed in call order.
  let lastKind: RecordKind = RECORD.action;
  let last: Uint8Array | string | undefined;
  let copy: Buffer[] = [];
  let copyBytes = 0;
  let copyInto = 0;
  let passed: Buffer[] = [];
  let passedBytes = 0;
  let waitingBytes = 0;
  const waiting: Batch[] = [];

  const put = (kind: RecordKind, payload: Uint8Array | string): void => {
    if (last !== undefined) recorder.write(lastKind, last);
    lastKind = kind;
    last = payload;
  };

  const putData = (n: number, parts: readonly Buffer[], bytes: number): void => {
    const record = Buffer.allocUnsafe(4 + bytes);
    record.writeUInt32BE(n, 0);
    let at = 4;
    for (const part of parts) {
      part.copy(record, at);
      at += part.length;
    }
    put(RECORD.data, record);
  };

  const flushCopy = (): void => {
    if (copyBytes === 0) return;
    putData(copyInto, copy, copyBytes);
    copy = [];
    copyBytes = 0;
  };

  const committed = (): void => {
    const batch = waiting.shift();
    if (batch === undefined) return;
    waitingBytes -= batch.bytes;
    forward(batch.buffers);
  };

  return {
    get waitingBytes() {
      return waitingBytes;
    },
    write(kind, n, json) {
      flushCopy();
      // One UTF-16 unit is at most three bytes of UTF-8.
      if (json.length * 3 <= MAX_RECORD_BYTES || Buffer.byteLength(json) <= MAX_RECORD_BYTES) return put(kind, json);
      const bytes = Buffer.from(json);
      put(kind, `{"n":${n},"overflow":${bytes.length}}`);
      for (let at = 0; at < bytes.length; at += MAX_RECORD_BYTES) {
        const part = bytes.subarray(at, at + MAX_RECORD_BYTES);
        putData(n, [part], part.length);
      }
    },
    data(n, bytes) {
      if (n !== copyInto) flushCopy();
      copyInto = n;
      for (let at = 0; at < bytes.length; at += MAX_RECORD_BYTES) {
        const part = bytes.subarray(at, at + MAX_RECORD_BYTES);
        if (copyBytes + part.length > MAX_RECORD_BYTES) flushCopy();
        copy.push(part);
        copyBytes += part.length;
      }
    },
    pass(bytes) {
      passed.push(bytes);
      passedBytes += bytes.length;
    },
    release() {
      flushCopy();
      const buffers = passed;
      const bytes = passedBytes;
      passed = [];
      passedBytes = 0;
      if (last !== undefined) {
        const payload = last;
        last = undefined;
        waiting.push({ buffers, bytes });
        waitingBytes += bytes;
        recorder.write(lastKind, payload, committed);
        return;
      }
      if (buffers.length === 0) return;
      const youngest = waiting.at(-1);
      if (youngest === undefined) return forward(buffers);
      youngest.buffers.push(...buffers); // nothing overtakes
      youngest.bytes += bytes;
      waitingBytes += bytes;
    },
  };
}
