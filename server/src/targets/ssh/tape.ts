import { createHash, type Hash } from "node:crypto";
import type { JsonObject, JsonValue } from "../../core/json.ts";
import { keyedHash } from "../../core/keyed-hash.ts";
import { type MaskRules, type OpenSession, RECORD, type RecordKind } from "../target.ts";
import { createEcho, type Echo } from "./echo.ts";
import { maskedCommand } from "./mask.ts";

/**
 * Everything that is recorded of an SSH session goes through here. A shell, an exec, a subsystem, a file operation and a
 * forward are each a statement of the recording with a number `n`, from 1, over all channels of the connection.
 *
 * What goes to the target is forwarded only from inside `committed`, which runs after the call returned, in the order of the
 * calls, and never once the recording has failed. Bytes that are given are taken before the call returns.
 */
export interface Tape {
  /**
   * A statement is about to begin. `text` is the command or what was asked for, exactly, as bytes where it may be no UTF-8.
   * @param via `shell`, `exec`, `subsystem`, `sftp`, `scp`, `forward`, …
   * @returns the number that `committed` gets too.
   */
  begin(via: string, text: string | Uint8Array, detail: JsonObject, committed: (n: number) => void): number;
  /** Something that was asked for and is not forwarded. `reason`: what the person is told. */
  refuse(via: string, text: string | Uint8Array, reason: string, detail?: JsonObject): void;
  /** The statement is over; a second call does nothing. Its duration, and totals of what passed here, are added. */
  end(n: number, end: StatementEnd): void;
  /** What the user sends to a command without a terminal, in full. */
  data(n: number, bytes: Uint8Array, committed: () => void): void;
  /** What a command without a terminal wrote (1 stdout, 2 stderr): up to 1 MiB of each, then bytes and SHA-256 only. */
  output(n: number, stream: 1 | 2, bytes: Uint8Array): void;
  /** Only totals with SHA-256 of a stream (0 stdin, 1 stdout, 2 stderr) whose bytes are not kept, such as rsync's. */
  total(n: number, stream: 0 | 1 | 2, bytes: Uint8Array): void;
  /** Statement `n` has a terminal of that size. Called once, before what passes there. */
  terminal(n: number, size: TerminalSize): TerminalTape;
  /** Anything else that the client asked for, such as `{ what: "signal", … }`. */
  action(content: JsonObject, committed?: () => void): void;
  /** What Glasskey told the user: `{ text, … }`. */
  notice(content: JsonObject): void;
  /** Bytes that are not committed yet: stop reading from the client above 1 MiB. */
  readonly pendingBytes: number;
  readonly counts: { readonly statements: number; readonly refused: number };
  /** The session is over: keys of what was typed and not echoed are gone. Idempotent. */
  close(): void;
}

export interface StatementEnd {
  /** Such as `exit 0` or `signal TERM`. */
  readonly tag?: string;
  /** Of the answer, or of the file. */
  readonly bytes?: number;
  readonly rows?: number;
  readonly error?: { readonly code: string; readonly message: string };
  /** Joined with the one of `begin`. */
  readonly detail?: JsonObject;
}

export interface TerminalSize {
  readonly cols: number;
  readonly rows: number;
  /** `TERM`, as the client says. */
  readonly term: string;
}

export interface TerminalTape {
  /** What the user typed. Printable text is stored so that it can be read only if the terminal echoes it (echo.ts). */
  input(bytes: Uint8Array, committed: () => void): void;
  /** What the program wrote. Not waited for: call it before it is sent to the user. */
  output(bytes: Uint8Array): void;
  resize(cols: number, rows: number, committed: () => void): void;
}

export interface TapeOptions {
  /** Monotonic, in ms. */
  readonly now?: () => number;
  /** What is kept of each of a command's output streams. */
  readonly keptOutputBytes?: number;
}

/** A record's limit is 1 MiB; this leaves room for what the journal puts around it. */
const MAX_RECORD_BYTES = 1_000_000;
const KEPT_OUTPUT_BYTES = 1 << 20;
const STREAMS = ["stdin", "stdout", "stderr"] as const;

/** Bytes of one stream that passed, and their digest. */
interface Total {
  bytes: number;
  kept: number;
  readonly hash: Hash | undefined;
}

interface Running {
  sinceMs: number;
  readonly totals: (Total | undefined)[];
  terminal: Echo | undefined;
}

export function createTape(session: Pick<OpenSession, "recorder" | "mask">, options: TapeOptions = {}): Tape {
  const { recorder, mask } = session;
  const { now = () => performance.now(), keptOutputBytes = KEPT_OUTPUT_BYTES } = options;
  const running = new Map<number, Running>();
  let statements = 0;
  let refused = 0;

  /** An object that is too long for one record is followed by `data` records of `n` that have it in UTF-8. */
  const json = (kind: RecordKind, n: number, content: JsonObject, committed?: () => void): void => {
    const text = JSON.stringify(content);
    // One UTF-16 unit is at most three bytes of UTF-8.
    if (text.length * 3 <= MAX_RECORD_BYTES || Buffer.byteLength(text) <= MAX_RECORD_BYTES)
      return recorder.write(kind, text, committed);
    const bytes = Buffer.from(text);
    recorder.write(kind, JSON.stringify({ n, overflow: bytes.length }));
    raw(RECORD.data, numbered(n), bytes, committed);
  };

  /** Bytes behind a head, in as many records as they need; `committed` is the last one's. */
  const raw = (kind: RecordKind, head: Uint8Array, bytes: Uint8Array, committed?: () => void): void => {
    for (let at = 0; ; at += MAX_RECORD_BYTES) {
      const part = bytes.subarray(at, at + MAX_RECORD_BYTES);
      const record = Buffer.allocUnsafe(head.length + part.length);
      record.set(head, 0);
      record.set(part, head.length);
      const last = at + MAX_RECORD_BYTES >= bytes.length;
      recorder.write(kind, record, last ? committed : undefined);
      if (last) return;
    }
  };

  const told = (n: number, via: string, text: string | Uint8Array, detail: JsonObject | undefined): JsonObject => {
    const shown = typeof text === "string" ? { text } : textOf(text);
    const content = { n, via, ...shown, ...(detail === undefined || isEmpty(detail) ? {} : { detail }) };
    return mask.literals && via === "exec" ? maskedExec(content, mask) : content;
  };

  const totalOf = (n: number, stream: 0 | 1 | 2): Total | undefined => {
    const statement = running.get(n);
    if (statement === undefined) return undefined;
    // A plain digest of few bytes can be guessed: what is masked has none.
    const hash = stream === 0 && mask.parameters ? undefined : createHash("sha256");
    return (statement.totals[stream] ??= { bytes: 0, kept: 0, hash });
  };

  const count = (total: Total | undefined, bytes: Uint8Array): void => {
    if (total === undefined) return;
    total.bytes += bytes.length;
    total.hash?.update(bytes);
  };

  return {
    begin(via, text, detail, committed) {
      const n = ++statements;
      const statement: Running = { sinceMs: now(), totals: [], terminal: undefined };
      running.set(n, statement);
      json(RECORD.statementStarted, n, told(n, via, text, detail), () => {
        statement.sinceMs = now();
        committed(n);
      });
      return n;
    },
    refuse(via, text, reason, detail) {
      const n = ++statements;
      refused++;
      json(RECORD.statementRefused, n, { ...told(n, via, text, detail), reason });
    },
    end(n, { tag, bytes, rows, error, detail }) {
      const statement = running.get(n);
      if (statement === undefined) return;
      running.delete(n);
      statement.terminal?.close();
      const totals = Object.fromEntries(
        statement.totals.flatMap((total, stream) =>
          total === undefined ? [] : [[STREAMS[stream] ?? "", totalJson(total, keptOutputBytes)]],
        ),
      );
      const all = { ...totals, ...detail };
      json(RECORD.statementCompleted, n, {
        n,
        ...(tag === undefined ? {} : { tag }),
        ...(rows === undefined ? {} : { rows }),
        ...(bytes === undefined ? {} : { bytes }),
        ...(error === undefined ? {} : { error: { ...error } }),
        ...(isEmpty(all) ? {} : { detail: all }),
        us: Math.round((now() - statement.sinceMs) * 1000),
      });
    },
    data(n, bytes, committed) {
      count(totalOf(n, 0), bytes);
      const shown = mask.parameters ? maskedBytes(bytes, mask) : bytes;
      raw(RECORD.data, numbered(n), shown, committed);
    },
    output(n, stream, bytes) {
      const total = totalOf(n, stream);
      count(total, bytes);
      if (total === undefined) return;
      const kept = bytes.subarray(0, Math.max(0, keptOutputBytes - total.kept));
      total.kept += kept.length;
      if (kept.length > 0) raw(RECORD.output, numbered(n, stream), kept);
    },
    total(n, stream, bytes) {
      const total = totalOf(n, stream);
      count(total, bytes);
    },
    terminal(n, { term, ...size }) {
      const { cols, rows } = known(size);
      const head = numbered(n);
      const echo = createEcho({
        ...{ cols, rows, now },
        hidden: (run, bytes, committed) =>
          recorder.write(RECORD.terminalHidden, Buffer.concat([head, u32(run), bytes]), committed),
        clear: (bytes, committed) => raw(RECORD.terminalInput, head, bytes, committed),
        reveal: (run, key) => recorder.write(RECORD.terminalReveal, Buffer.concat([head, u32(run), key])),
      });
      const statement = running.get(n);
      if (statement !== undefined) statement.terminal = echo;
      recorder.write(RECORD.terminalResize, JSON.stringify({ n, cols, rows, term }));
      return {
        input: (bytes, committed) => echo.input(bytes, committed),
        output(bytes) {
          if (bytes.length === 0) return;
          raw(RECORD.terminalOutput, head, bytes);
          echo.output(bytes);
        },
        resize(newCols, newRows, committed) {
          const now = known({ cols: newCols, rows: newRows });
          recorder.write(RECORD.terminalResize, JSON.stringify({ n, ...now }), committed);
          echo.resize(now.cols, now.rows);
        },
      };
    },
    action: (content, committed) => json(RECORD.action, 0, content, committed),
    notice: (content) => json(RECORD.notice, 0, content),
    get pendingBytes() {
      return recorder.pendingBytes;
    },
    get counts() {
      return { statements, refused };
    },
    close() {
      for (const { terminal } of running.values()) terminal?.close(true);
      running.clear();
    },
  };
}

/** A client without a window says zero, which means nothing (RFC 4254, 6.2): programs then take it for 80 × 24. */
function known({ cols, rows }: { cols: number; rows: number }): { cols: number; rows: number } {
  return { cols: cols > 0 ? cols : 80, rows: rows > 0 ? rows : 24 };
}

/** The head of a raw record: the statement's number, and the stream where there are several. */
function numbered(n: number, stream?: number): Buffer {
  const head = Buffer.alloc(stream === undefined ? 4 : 5);
  head.writeUInt32BE(n, 0);
  if (stream !== undefined) head[4] = stream;
  return head;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value, 0);
  return bytes;
}

/** Text as it is, or, where it is no UTF-8, what can be read of it beside its bytes. */
function textOf(bytes: Uint8Array): JsonObject {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const text = buffer.toString("utf8");
  return Buffer.from(text).equals(buffer) ? { text } : { text, base64: buffer.toString("base64") };
}

function totalJson({ bytes, kept, hash }: Total, bound: number): JsonObject {
  const sha256 = hash?.digest("hex");
  return {
    bytes,
    ...(sha256 === undefined ? {} : { sha256 }),
    ...(kept > 0 && kept >= bound && bytes > kept ? { keptBytes: kept } : {}),
  };
}

function isEmpty(object: JsonObject): boolean {
  return Object.keys(object).length === 0;
}

function maskedBytes(bytes: Uint8Array, { key }: MaskRules): Buffer {
  return Buffer.from(`‹masked: ${bytes.length} bytes, hmac:${keyedHash(key, bytes)}›`);
}

/** The program stays, its arguments become keyed hashes, and so does every text beside them. */
function maskedExec(content: JsonObject, { key }: MaskRules): JsonObject {
  const hash = (value: string): string => `‹hmac:${keyedHash(key, value)}›`;
  const { text, base64, detail, ...rest } = content;
  const command =
    typeof text === "string" && base64 === undefined ? maskedCommand(text, hash) : hash(JSON.stringify(content));
  return {
    ...rest,
    text: command,
    ...(detail === undefined ? {} : { detail: maskedStrings(detail, hash) }),
    masked: true,
  };
}

function maskedStrings(value: JsonValue, hash: (value: string) => string): JsonValue {
  if (typeof value === "string") return hash(value);
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map((item) => maskedStrings(item as JsonValue, hash));
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, maskedStrings(item, hash)]));
}
