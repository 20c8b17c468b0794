import type { JsonValue } from "../core/json.ts";
import { RECORD } from "../targets/target.ts";
import { type Content, contentOf, isContent, malformed, type StoredRecord } from "./record.ts";

/** One statement of a session, its beginning and its end put together. */
export interface Statement {
  /** Counts statements within the session, from 1. */
  readonly n: number;
  /** When it was recorded, which is before the target had it. */
  readonly at: Date;
  /** How it came, such as `simple`, `extended` or `copy`. */
  readonly via: string;
  readonly text: string;
  readonly params: JsonValue | undefined;
  readonly outcome: "done" | "failed" | "refused" | "unknown";
  readonly rows: number | undefined;
  readonly tag: string | undefined;
  /** Of the answer. */
  readonly bytes: number | undefined;
  /** From forwarding it to the end of the answer. */
  readonly us: number | undefined;
  readonly error: { readonly sqlstate: string | undefined; readonly message: string } | undefined;
  /** Of COPY data and large parameters that the user sent for it. */
  readonly sentBytes: number;
}

/** A line of a replay: a statement, or another thing that happened in between. */
export type ReplayLine =
  | { readonly what: "statement"; readonly statement: Statement }
  | {
      readonly what: "started" | "ended" | "action" | "notice";
      readonly at: Date;
      readonly content: Readonly<Record<string, JsonValue>>;
    };

/** Statements that were begun and whose end has not come: a client may pipeline. Past it the oldest is given as it is. */
const MAX_OPEN_STATEMENTS = 1_000;

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/**
 * Folds records into lines. A statement comes when its answer was complete, in that order; one whose answer never came is
 * given at the end as `unknown`. Terminal records are passed over. Memory: the statements that are open.
 * @throws GlassError `integrity` for a record whose payload is not what its kind says.
 */
export async function* statements(
  records: AsyncIterable<StoredRecord> | Iterable<StoredRecord>,
): AsyncGenerator<ReplayLine> {
  const open = new Map<number, Mutable<Statement>>();
  for await (const record of records) {
    const at = new Date(record.timeUs / 1000);
    switch (record.kind) {
      case RECORD.statementStarted: {
        const content = contentOf(record);
        if (open.size >= MAX_OPEN_STATEMENTS) {
          const [oldest] = open.values();
          if (oldest !== undefined) yield* closed(open, oldest);
        }
        open.set(numberOf(record, content), begun(record, content, at));
        break;
      }
      case RECORD.statementCompleted: {
        const content = contentOf(record);
        const statement = open.get(numberOf(record, content));
        if (statement === undefined) break; // its beginning was given already
        const { error } = content;
        statement.error = isContent(error)
          ? { sqlstate: textOf(error["sqlstate"]), message: textOf(error["message"]) ?? "" }
          : undefined;
        statement.outcome = statement.error === undefined ? "done" : "failed";
        statement.tag = textOf(content["tag"]);
        statement.rows = countOf(content["rows"]);
        statement.bytes = countOf(content["bytes"]);
        statement.us = countOf(content["us"]);
        yield* closed(open, statement);
        break;
      }
      case RECORD.statementRefused: {
        const content = contentOf(record);
        const error = { sqlstate: undefined, message: textOf(content["reason"]) ?? "" };
        yield { what: "statement", statement: { ...begun(record, content, at), outcome: "refused", error } };
        break;
      }
      case RECORD.data: {
        if (record.payload.length < 4) throw malformed(record, "has no statement number");
        const statement = open.get(record.payload.readUInt32BE(0));
        if (statement !== undefined) statement.sentBytes += record.payload.length - 4;
        break;
      }
      case RECORD.sessionStarted:
        yield { what: "started", at, content: contentOf(record) };
        break;
      case RECORD.sessionEnded: {
        for (const statement of [...open.values()]) yield* closed(open, statement);
        yield { what: "ended", at, content: contentOf(record) };
        break;
      }
      case RECORD.action:
        yield { what: "action", at, content: contentOf(record) };
        break;
      case RECORD.notice:
        yield { what: "notice", at, content: contentOf(record) };
        break;
      default: // terminals have a form of their own
    }
  }
  for (const statement of [...open.values()]) yield* closed(open, statement);
}

/** A line as one JSON document, without a line break. */
export function jsonLine(line: ReplayLine): string {
  if (line.what !== "statement") return JSON.stringify({ what: line.what, at: line.at.toISOString(), ...line.content });
  const { at, ...rest } = line.statement;
  return JSON.stringify({ what: "statement", at: at.toISOString(), ...rest });
}

/** A line for people, without control characters: what the user typed must not drive the terminal that shows it. */
export function textLine(line: ReplayLine): string {
  if (line.what !== "statement")
    return `${clockTime(line.at)}  ${line.what}  ${printable(JSON.stringify(line.content))}`;
  const { n, at, text, params, outcome, tag, rows, us, error, sentBytes } = line.statement;
  const took = us === undefined ? "" : `  ${(us / 1000).toFixed(1)} ms`;
  const sent = sentBytes === 0 ? "" : `  ${sentBytes} bytes sent`;
  const result = {
    done: `${tag ?? "done"}${rows === undefined || tag?.includes(String(rows)) === true ? "" : `, ${rows} rows`}`,
    failed: `ERROR ${error?.sqlstate ?? ""} ${error?.message ?? ""}`,
    refused: `REFUSED ${error?.message ?? ""}`,
    unknown: "no answer was recorded",
  }[outcome];
  const given = params === undefined ? "" : `\n          with ${printable(JSON.stringify(params))}`;
  return `${clockTime(at)}  #${n}  ${printable(text)}${given}\n          ${printable(result)}${took}${sent}`;
}

function* closed(open: Map<number, Mutable<Statement>>, statement: Statement): Generator<ReplayLine> {
  open.delete(statement.n);
  yield { what: "statement", statement };
}

function begun(record: StoredRecord, content: Content, at: Date): Mutable<Statement> {
  return {
    n: numberOf(record, content),
    at,
    via: textOf(content["via"]) ?? "",
    text: textOf(content["text"]) ?? "",
    params: content["params"],
    outcome: "unknown",
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

function clockTime(at: Date): string {
  return Number.isNaN(at.getTime()) ? "??:??:??.???" : at.toISOString().slice(11, 23);
}

/** Control characters, and those that turn or hide text, as visible escapes. */
function printable(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (character) =>
    character === "\n" ? "\n          " : `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`,
  );
}

function throwMalformed(record: StoredRecord, why: string): never {
  throw malformed(record, why);
}
