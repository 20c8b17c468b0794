import { BACKEND, FRONTEND, ProtocolViolation } from "./wire.ts";

/**
 * Turns a stream of bytes into messages, incrementally and without copying: whole messages are views of the chunk they
 * came in, and runs of messages that go on unchanged are handed on as one piece. Pure: what comes out goes to a sink.
 * Source: PostgreSQL documentation, section 54.7 "Message Formats": one byte type, four bytes length that counts itself.
 */

/** What to do with a message: hand it on, or put other bytes (perhaps none) in its place. */
export type Outcome = typeof KEEP | typeof WAIT | Buffer;
export const KEEP = 0;
/** Only for clients' messages: cannot be decided yet. Nothing is read until `feed` is called again. */
export const WAIT = 1;
export const DROP = Buffer.alloc(0);

const EMPTY = Buffer.alloc(0);

export interface Reader {
  /**
   * Eats the next chunk, of any size; the views handed out stay valid as long as the caller does not write to it.
   * @throws ProtocolViolation on a type or a length that cannot be. Do not feed it again afterwards.
   */
  feed(chunk: Buffer): void;
  /** Bytes held back because their message is not complete. */
  readonly heldBytes: number;
}

// ------------------------------------------------------------------------------------------------- from clients

export interface ClientSink {
  /** One whole message `[start, end)`, header included. */
  message(type: number, bytes: Buffer, start: number, end: number): Outcome;
  /** Some bytes of CopyData, without the header, as they arrive. False drops them, and the rest of that message. */
  copyData(bytes: Buffer, start: number, end: number, first: boolean): boolean;
  /** Bytes to go on, in order. */
  pass(bytes: Buffer): void;
}

/** Statements and parameters; PostgreSQL itself would take 1 GB, and so could be made to hold it. */
export const MAX_STATEMENT_BYTES = 64 * 1024 * 1024;
/** PostgreSQL's PQ_SMALL_MESSAGE_LIMIT. */
const MAX_SMALL_BYTES = 10_000;
const MAX_COPY_DATA_BYTES = 0x3fff_ffff; // PostgreSQL's PQ_LARGE_MESSAGE_LIMIT

/** Largest length field for a client's message of that type; 0 for a type that does not belong here. */
function clientLimit(type: number): number {
  switch (type) {
    case FRONTEND.query:
    case FRONTEND.parse:
    case FRONTEND.bind:
    case FRONTEND.functionCall:
      return MAX_STATEMENT_BYTES;
    case FRONTEND.execute:
    case FRONTEND.describe:
    case FRONTEND.close:
    case FRONTEND.copyFail:
      return MAX_SMALL_BYTES;
    case FRONTEND.sync:
    case FRONTEND.flush:
    case FRONTEND.copyDone:
    case FRONTEND.terminate:
      return 4;
    case FRONTEND.copyData:
      return MAX_COPY_DATA_BYTES;
    default:
      return 0;
  }
}

/** Reader of what a client sends after it has authenticated. CopyData is streamed, everything else comes whole. */
export function createClientReader(sink: ClientSink): Reader {
  let held: Buffer[] = [];
  let heldBytes = 0;
  let needed = 0; // bytes that must be held before it is worth looking again
  let copying = 0; // bytes of the current CopyData still to come
  let keeping = true;

  const hold = (rest: Buffer, wanted: number): void => {
    held = rest.length === 0 ? [] : [rest];
    heldBytes = rest.length;
    needed = wanted;
  };

  return {
    get heldBytes() {
      return heldBytes;
    },
    feed(chunk) {
      let bytes = chunk;
      if (heldBytes > 0) {
        if (chunk.length > 0) held.push(chunk);
        heldBytes += chunk.length;
        if (heldBytes < needed) return;
        bytes = held.length === 1 ? (held[0] ?? EMPTY) : Buffer.concat(held, heldBytes);
        hold(EMPTY, 0);
      }
      const total = bytes.length;
      let from = 0; // start of the run that goes on unchanged
      let at = 0;
      const flush = (end: number, next: number): void => {
        if (end > from) sink.pass(from === 0 && end === total ? bytes : bytes.subarray(from, end));
        from = next;
      };
      for (;;) {
        if (copying > 0 && at < total) {
          const end = Math.min(total, at + copying);
          copying -= end - at;
          const keep = keeping && sink.copyData(bytes, at, end, false);
          if (!keep) {
            flush(at, end);
            keeping = false;
          }
          at = end;
        }
        const left = total - at;
        if (left === 0) break;
        const type = bytes[at] ?? 0;
        const limit = clientLimit(type);
        if (limit === 0) throw new ProtocolViolation(`invalid frontend message type ${type}`);
        if (left < 5) {
          flush(at, at);
          return hold(bytes.subarray(at), 5);
        }
        const length = bytes.readUInt32BE(at + 1);
        if (length < 4 || (length > limit && limit === 4)) {
          throw new ProtocolViolation(`invalid message length ${length}`);
        }
        if (length > limit) {
          throw new ProtocolViolation(
            `a message of ${length} bytes is longer than Glasskey records and forwards: at most ${limit} bytes` +
              (limit === MAX_STATEMENT_BYTES ? "; send bulk data by COPY" : ""),
            "54000",
          );
        }
        if (type === FRONTEND.copyData) {
          const end = Math.min(total, at + 1 + length);
          copying = at + 1 + length - end;
          keeping = sink.copyData(bytes, at + 5, end, true);
          if (!keeping) flush(at, end);
          at = end;
          continue;
        }
        if (left < 1 + length) {
          flush(at, at);
          return hold(bytes.subarray(at), 1 + length);
        }
        const outcome = sink.message(type, bytes, at, at + 1 + length);
        if (outcome === WAIT) {
          flush(at, at);
          return hold(bytes.subarray(at), 0);
        }
        if (outcome !== KEEP) {
          flush(at, at + 1 + length);
          if (outcome.length > 0) sink.pass(outcome);
        }
        at += 1 + length;
      }
      flush(at, at);
    },
  };
}

// ------------------------------------------------------------------------------------------------- from the target

export interface ServerSink {
  /**
   * A message that is not bulk data, header included; of a very long one only the beginning, and of types whose content
   * does not matter here perhaps only the header. `length` is the whole message's.
   */
  message(type: number, bytes: Buffer, start: number, end: number, length: number): Outcome;
  /** So many DataRow and CopyData messages, with so many bytes of content, came since the last call. */
  rows(messages: number, contentBytes: number): void;
  /** Bytes to go on, in order. */
  pass(bytes: Buffer): void;
}

export interface ServerReader extends Reader {
  /** Puts a message of our own between two of the target's: at once where possible, else as soon as the current one ends. */
  insert(bytes: Buffer): void;
  /** Whether what was passed so far ends with a whole message. */
  readonly atBoundary: boolean;
}

/** Enough for every command tag, setting and error message; the rest of a longer one passes unread. */
const MAX_CONTENT_BYTES = 64 * 1024;

/** How many bytes of a target's message must be there before it is looked at; 0 for a type that does not belong here. */
const SERVER_CONTENT = new Uint32Array(256);
for (const type of Object.values(BACKEND)) SERVER_CONTENT[type] = 5;
SERVER_CONTENT[BACKEND.commandComplete] = MAX_CONTENT_BYTES;
SERVER_CONTENT[BACKEND.errorResponse] = MAX_CONTENT_BYTES;
SERVER_CONTENT[BACKEND.parameterStatus] = MAX_CONTENT_BYTES;
SERVER_CONTENT[BACKEND.readyForQuery] = 6;

/** Reader of what the target sends after it is ready. Rows and COPY data pass by header only, whatever their size. */
export function createServerReader(sink: ServerSink): ServerReader {
  let held: Buffer = EMPTY;
  let remaining = 0; // bytes of the current message still to pass
  let dropping = false; // … or to drop
  let inserts: Buffer[] = [];

  return {
    get heldBytes() {
      return held.length;
    },
    get atBoundary() {
      return remaining === 0 || dropping;
    },
    insert(bytes) {
      if (remaining === 0 || dropping) sink.pass(bytes);
      else inserts.push(bytes);
    },
    feed(chunk) {
      let bytes = chunk;
      if (held.length > 0) {
        bytes = Buffer.concat([held, chunk]);
        held = EMPTY;
      }
      const total = bytes.length;
      let from = 0;
      let at = 0;
      if (remaining > 0) {
        if (total < remaining) {
          remaining -= total;
          if (!dropping && total > 0) sink.pass(bytes);
          return;
        }
        at = remaining;
        remaining = 0;
        if (dropping) from = at;
        dropping = false;
        if (inserts.length > 0) {
          if (at > from) sink.pass(bytes.subarray(from, at));
          from = at;
          for (const insert of inserts) sink.pass(insert);
          inserts = [];
        }
      }
      let rows = 0;
      let rowBytes = 0;
      try {
        while (total - at >= 5) {
          const type = bytes[at] as number;
          const length =
            ((bytes[at + 1] as number) << 24) |
            ((bytes[at + 2] as number) << 16) |
            ((bytes[at + 3] as number) << 8) |
            (bytes[at + 4] as number);
          if (length < 4) throw new ProtocolViolation(`the target announced a message of ${length} bytes`);
          const next = at + 1 + length;
          if (type === BACKEND.dataRow || type === BACKEND.copyData) {
            rows += 1;
            rowBytes += length - 4;
            if (next > total) {
              remaining = next - total;
              at = total;
              break;
            }
            at = next;
            continue;
          }
          const content = SERVER_CONTENT[type] as number;
          if (content === 0) throw new ProtocolViolation(`the target sent a message of unknown type ${type}`);
          if (total - at < Math.min(1 + length, content)) break;
          if (rows > 0) {
            sink.rows(rows, rowBytes);
            rows = 0;
            rowBytes = 0;
          }
          const end = Math.min(next, total);
          const outcome = sink.message(type, bytes, at, end, length + 1);
          if (next > total) {
            remaining = next - total;
            dropping = outcome !== KEEP;
          }
          if (outcome !== KEEP) {
            if (at > from) sink.pass(bytes.subarray(from, at));
            from = end;
            if (outcome !== WAIT && outcome.length > 0) sink.pass(outcome);
          }
          at = end;
        }
      } catch (error) {
        if (at > from) sink.pass(bytes.subarray(from, at)); // so that what was passed ends with a whole message
        throw error;
      }
      if (rows > 0) sink.rows(rows, rowBytes);
      if (at < total) held = Buffer.from(bytes.subarray(at)); // a copy, so that a few bytes do not keep the chunk alive
      if (at > from) sink.pass(from === 0 && at === total ? bytes : bytes.subarray(from, at));
    },
  };
}
