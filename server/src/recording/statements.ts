import type { JsonValue } from "../core/json.ts";
import { RECORD } from "../targets/target.ts";
import { type Content, contentOf, isContent, malformed, numberedPayload, type StoredRecord } from "./record.ts";

/** One statement of a session, its beginning and its end put together. */
export interface Statement {
  /** Counts statements within the session, from 1. */
  readonly n: number;
  /** Of the record that began it. */
  readonly seq: number;
  /** When it was recorded, which is before the target had it. */
  readonly at: Date;
  /** How it came, such as `simple`, `extended` or `copy`; `shell`, `exec`, `sftp`, `scp` or `forward`. */
  readonly via: string;
  readonly text: string;
  /** Length of a statement that is too long to be put together here; `text` is empty then, and the records have it whole. */
  readonly leftOutBytes: number | undefined;
  readonly params: JsonValue | undefined;
  /** What else its kind says of it, from its beginning and its end: `path`, `direction`, `sha256`, totals of its streams. */
  readonly detail: Content | undefined;
  /** `running`: sent and not answered yet, only told while a session is watched. `unknown`: its answer was never recorded. */
  readonly outcome: "running" | "done" | "failed" | "refused" | "unknown";
  readonly rows: number | undefined;
  readonly tag: string | undefined;
  /** Of the answer. */
  readonly bytes: number | undefined;
  /** From forwarding it to the end of the answer. */
  readonly us: number | undefined;
  readonly error: StatementError | undefined;
  /** Of COPY data, large parameters or standard input that the user sent for it. */
  readonly sentBytes: number;
}

export interface StatementError {
  /** PostgreSQL's code. */
  readonly sqlstate: string | undefined;
  /** That of other kinds. */
  readonly code: string | undefined;
  readonly message: string;
}

/** A line of a replay: a statement, or another thing that happened in between. */
export type ReplayLine =
  | { readonly what: "statement"; readonly statement: Statement }
  | {
      /** `prepared`: a text that was prepared and that no statement has repeated; told at the end. */
      readonly what: "started" | "ended" | "action" | "notice" | "prepared";
      readonly at: Date;
      readonly seq: number;
      readonly content: Content;
    };

/** Statements that were begun and whose end has not come: a client may pipeline. Past it the oldest is given as it is. */
const MAX_OPEN_STATEMENTS = 1_000;
const MAX_PREPARED = 1_000;
/** A statement that is longer, or does not fit beside others that are being put together, is told without its text. */
const MAX_OVERFLOW_BYTES = 16 << 20;
/** Steps of the extended protocol, which run nothing. */
const STEPS: ReadonlySet<string> = new Set(["prepare", "bind", "describe", "close"]);

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** An object that was too long for one record: its bytes come in `data` records. */
interface Overflow {
  readonly record: StoredRecord;
  readonly totalBytes: number;
  readonly parts: Buffer[];
  bytes: number;
}

/** Folds records into lines. Memory: what is open, and at most 16 MiB of long statements. */
export interface Fold {
  /** @throws GlassError `integrity` for a record whose payload is not what its kind says. */
  take(record: StoredRecord): readonly ReplayLine[];
  /** What was left open when the records ended. */
  end(): readonly ReplayLine[];
}

/**
 * A statement comes when its answer was complete, in that order; one whose answer never came is given at the end as
 * `unknown`. Terminal records are passed over.
 * @param live while the session goes on, or from the middle of it: a statement also comes when it is sent, as `running`, and
 *   the answer to one that began before, without its text.
 */
export function createFold(live = false): Fold {
  const open = new Map<number, Mutable<Statement>>();
  const prepared = new Map<string, ReplayLine>();
  const overflows = new Map<number, Overflow>();
  let overflowBytes = 0;

  const close = (statement: Mutable<Statement>): ReplayLine => {
    open.delete(statement.n);
    return { what: "statement", statement: { ...statement, outcome: outcomeOf(statement) } };
  };

  const begin = (record: StoredRecord, content: Content): ReplayLine[] => {
    const lines: ReplayLine[] = [];
    if (open.size >= MAX_OPEN_STATEMENTS) {
      const [oldest] = open.values();
      if (oldest !== undefined) lines.push(close(oldest));
    }
    const statement = begun(record, content);
    open.set(statement.n, statement);
    prepared.delete(statement.text);
    if (live) lines.push({ what: "statement", statement: { ...statement } });
    return lines;
  };

  const complete = (record: StoredRecord, content: Content): ReplayLine[] => {
    const statement = open.get(numberOf(record, content));
    // Its beginning was given already, or came before this reading.
    if (statement === undefined) return live ? [close(answered(begun(record, content), content))] : [];
    return [close(answered(statement, content))];
  };

  const answered = (statement: Mutable<Statement>, content: Content): Mutable<Statement> => {
    const { error } = content;
    statement.error = isContent(error)
      ? {
          ...{ sqlstate: textOf(error["sqlstate"]), code: textOf(error["code"]) },
          message: textOf(error["message"]) ?? "",
        }
      : undefined;
    statement.outcome = statement.error === undefined ? "done" : "failed";
    statement.tag = textOf(content["tag"]);
    statement.rows = countOf(content["rows"]);
    statement.bytes = countOf(content["bytes"]);
    statement.us = countOf(content["us"]);
    if (isContent(content["detail"])) statement.detail = { ...statement.detail, ...content["detail"] };
    return statement;
  };

  const data = (record: StoredRecord): ReplayLine[] => {
    const { n, bytes } = numberedPayload(record);
    const overflow = overflows.get(n);
    if (overflow === undefined) {
      const statement = open.get(n);
      if (statement !== undefined) statement.sentBytes += bytes.length;
      return [];
    }
    overflow.bytes += bytes.length;
    const whole = overflow.totalBytes <= MAX_OVERFLOW_BYTES;
    if (whole) overflow.parts.push(bytes);
    if (overflow.bytes < overflow.totalBytes) return [];
    overflows.delete(n);
    overflowBytes -= whole ? overflow.totalBytes : 0;
    if (!whole) return [];
    const payload = Buffer.concat(overflow.parts).subarray(0, overflow.totalBytes);
    const put = { ...overflow.record, payload };
    return meaning(put, contentOf(put));
  };

  const meaning = (record: StoredRecord, content: Content): ReplayLine[] => {
    const at = timeOf(record);
    const { seq } = record;
    switch (record.kind) {
      case RECORD.statementStarted:
        return begin(record, content);
      case RECORD.statementCompleted:
        return complete(record, content);
      case RECORD.statementRefused: {
        const error = { sqlstate: undefined, code: undefined, message: textOf(content["reason"]) ?? "" };
        return [{ what: "statement", statement: { ...begun(record, content), outcome: "refused", error } }];
      }
      case RECORD.sessionStarted:
        return [{ what: "started", at, seq, content }];
      case RECORD.sessionEnded:
        return [...flush(), { what: "ended", at, seq, content }];
      case RECORD.action: {
        const text = textOf(content["text"]);
        if (content["what"] === "prepare" && text !== undefined && prepared.size < MAX_PREPARED)
          prepared.set(text, { what: "prepared", at, seq, content });
        return STEPS.has(textOf(content["what"]) ?? "") ? [] : [{ what: "action", at, seq, content }];
      }
      case RECORD.notice:
        return [{ what: "notice", at, seq, content }];
      default:
        return [];
    }
  };

  const flush = (): ReplayLine[] => {
    const lines = [...[...open.values()].map(close), ...[...overflows.values()].flatMap(cutOff), ...prepared.values()];
    prepared.clear();
    overflows.clear();
    overflowBytes = 0;
    return lines;
  };

  /** A long statement of which the rest was never recorded: it did not reach the target, and is told all the same. */
  const cutOff = ({ record, totalBytes }: Overflow): ReplayLine[] => {
    const told = totalBytes > MAX_OVERFLOW_BYTES || !STATEMENTS.has(record.kind);
    return told ? [] : [close(begun(record, contentOf(record)))];
  };

  return {
    take(record) {
      if (record.kind === RECORD.data) return data(record);
      if (!FOLDED.has(record.kind)) return [];
      const content = contentOf(record);
      const totalBytes = countOf(content["overflow"]);
      if (totalBytes === undefined) return meaning(record, content);
      const fits = overflowBytes + totalBytes <= MAX_OVERFLOW_BYTES;
      const held = { record, totalBytes: fits ? totalBytes : Math.max(totalBytes, MAX_OVERFLOW_BYTES + 1) };
      overflows.set(numberOf(record, content), { ...held, parts: [], bytes: held.totalBytes - totalBytes });
      overflowBytes += fits ? totalBytes : 0;
      return fits ? [] : meaning(record, content);
    },
    end: flush,
  };
}

/**
 * All lines of a recording.
 * @throws GlassError `integrity` for a record whose payload is not what its kind says.
 */
export async function* statements(
  records: AsyncIterable<StoredRecord> | Iterable<StoredRecord>,
): AsyncGenerator<ReplayLine> {
  const fold = createFold();
  for await (const record of records) yield* fold.take(record);
  yield* fold.end();
}

/** A line as the API and an export give it. */
export function lineJson(line: ReplayLine): Record<string, unknown> {
  if (line.what !== "statement") return { ...line, at: isoTime(line.at) };
  const { at, leftOutBytes, ...rest } = line.statement;
  return { what: "statement", at: isoTime(at), ...rest, ...(leftOutBytes === undefined ? {} : { leftOutBytes }) };
}

/**
 * A value as JSON with a line end. What JSON leaves as it is although a terminal takes it for more than text (C1 controls,
 * characters that turn or hide text) is escaped: it means the same, and `cat` is safe.
 */
export function jsonLine(value: unknown): string {
  const text = JSON.stringify(value).replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (character) =>
    Array.from(
      { length: character.length },
      (_, i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, "0")}`,
    ).join(""),
  );
  return `${text}\n`;
}

/** A line for people, without control characters: what the user typed must not drive the terminal that shows it. */
export function textLine(line: ReplayLine): string {
  if (line.what !== "statement")
    return `${clockTime(line.at)}  ${line.what}  ${printable(JSON.stringify(line.content))}`;
  const { n, at, via, text, leftOutBytes, params, outcome, tag, rows, bytes, us, error, sentBytes, detail } =
    line.statement;
  const took = us === undefined ? "" : `  ${(us / 1000).toFixed(1)} ms`;
  const sent = sentBytes === 0 ? "" : `  ${sentBytes} bytes sent`;
  const result = {
    done: `${tag ?? "done"}${rows === undefined || tag?.includes(String(rows)) === true ? "" : `, ${rows} rows`}`,
    failed: `ERROR ${error?.sqlstate ?? error?.code ?? ""} ${error?.message ?? ""}`,
    refused: `REFUSED ${error?.message ?? ""}`,
    running: "sent",
    unknown: "no answer was recorded",
  }[outcome];
  const given = params === undefined ? "" : `\n          with ${printable(JSON.stringify(params))}`;
  const shown = leftOutBytes === undefined ? printable(text) : `(a statement of ${leftOutBytes} bytes)`;
  const long = bytes === undefined || detail === undefined ? "" : `  ${bytes} bytes`;
  const more = detail === undefined ? "" : `\n          ${printable(detailText(detail))}`;
  const how = detail === undefined ? "" : `${printable(via)}: `;
  return `${clockTime(at)}  #${n}  ${how}${shown}${given}\n          ${printable(result)}${long}${took}${sent}${more}`;
}

/** `direction to the target, sha256 9f86…, stdout 12 bytes`: names and values, one level deep as people read it. */
function detailText(detail: Content): string {
  const valueText = (value: JsonValue): string => {
    if (typeof value === "string") return value;
    if (!isContent(value)) return JSON.stringify(value);
    return Object.entries(value)
      .map(([name, inner]) => (name === "bytes" ? `${JSON.stringify(inner)} bytes` : `${name} ${valueText(inner)}`))
      .join(" ");
  };
  return Object.entries(detail)
    .map(([name, value]) => `${name} ${valueText(value)}`)
    .join(", ");
}

/** Control characters, and those that turn or hide text, as visible escapes; lines go on below their beginning. */
export function printable(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu, (character) =>
    character === "\n" ? "\n          " : `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`,
  );
}

/** `02:31:07.250`, UTC. */
export function clockTime(at: Date): string {
  return Number.isNaN(at.getTime()) ? "??:??:??.???" : at.toISOString().slice(11, 23);
}

/** A record's time, also where the number in it is none that a date can have. */
export function timeOf(record: Pick<StoredRecord, "timeUs">): Date {
  return new Date(record.timeUs / 1000);
}

export function isoTime(at: Date): string {
  return Number.isNaN(at.getTime()) ? "" : at.toISOString();
}

const STATEMENTS: ReadonlySet<number> = new Set([RECORD.statementStarted, RECORD.statementRefused]);
const FOLDED: ReadonlySet<number> = new Set([
  ...[RECORD.sessionStarted, RECORD.sessionEnded, RECORD.statementStarted, RECORD.statementCompleted],
  ...[RECORD.statementRefused, RECORD.action, RECORD.notice],
]);

function outcomeOf({ outcome }: Statement): Statement["outcome"] {
  return outcome === "running" ? "unknown" : outcome;
}

function begun(record: StoredRecord, content: Content): Mutable<Statement> {
  return {
    n: numberOf(record, content),
    seq: record.seq,
    at: timeOf(record),
    via: textOf(content["via"]) ?? "",
    text: textOf(content["text"]) ?? "",
    leftOutBytes: countOf(content["overflow"]),
    params: content["params"],
    detail: isContent(content["detail"]) ? content["detail"] : undefined,
    outcome: "running",
    rows: undefined,
    tag: undefined,
    bytes: undefined,
    us: undefined,
    error: undefined,
    sentBytes: 0,
  };
}

function numberOf(record: StoredRecord, content: Content): number {
  return countOf(content["n"]) ?? throwMalformed(record, "has no statement number");
}

function textOf(value: JsonValue | undefined): string | undefined {
  return typeof value === "string" ? value : undefined;
}

function countOf(value: JsonValue | undefined): number | undefined {
  return typeof value === "number" ? value : undefined;
}

function throwMalformed(record: StoredRecord, why: string): never {
  throw malformed(record, why);
}
