import { RECORD } from "../targets/target.ts";
import { asciicast } from "./asciicast.ts";
import { play } from "./play.ts";
import { contentOf, numberedPayload, type StoredRecord } from "./record.ts";
import { clockTime, isoTime, jsonLine, lineJson, printable, textLine, timeOf } from "./statements.ts";
import { hiddenOf, revealOf } from "./terminals.ts";

/**
 * `json`: a line of JSON for each statement and whatever happened in between, and for each line that a terminal showed or a
 * command wrote.
 * `text`: the same for people. `asciicast`: a terminal, to be played. `raw`: every record as it was written.
 */
export type ExportFormat = "json" | "text" | "asciicast" | "raw";

/** The content types of the formats. */
export const EXPORT_TYPES: Readonly<Record<ExportFormat, string>> = {
  json: "application/x-ndjson",
  text: "text/plain; charset=utf-8",
  asciicast: "application/x-asciicast",
  raw: "application/x-ndjson",
};

/** Lines are joined to pieces of this size: one piece a line is slow to send. */
const PIECE_CHARACTERS = 32 << 10;

/**
 * A recording as a file, piece by piece, with the records' own memory bounds.
 * @param terminal for `asciicast`: which one, by the statement that opened it; the first where absent.
 * @throws what `records` throws; GlassError `usage` where the format does not fit the session.
 */
export async function* exportAs(
  format: ExportFormat,
  session: string,
  records: AsyncIterable<StoredRecord>,
  terminal?: number,
): AsyncGenerator<string> {
  let piece = "";
  for await (const line of linesOf(format, session, records, terminal)) {
    piece += line;
    if (piece.length < PIECE_CHARACTERS) continue;
    yield piece;
    piece = "";
  }
  if (piece !== "") yield piece;
}

async function* linesOf(
  format: ExportFormat,
  session: string,
  records: AsyncIterable<StoredRecord>,
  terminal: number | undefined,
): AsyncGenerator<string> {
  if (format === "asciicast") yield* asciicast(session, records, terminal);
  else if (format === "raw") for await (const record of records) yield jsonLine(recordJson(record));
  else yield* readable(format, records);
}

async function* readable(format: "json" | "text", records: AsyncIterable<StoredRecord>): AsyncGenerator<string> {
  for await (const item of play(records, "lines")) {
    if (item.what === "line") {
      yield format === "json" ? jsonLine(lineJson(item.line)) : `${textLine(item.line)}\n`;
    } else if (item.what === "shown") {
      const { timeUs, stamp, n, what, text } = item.shown;
      const at = timeOf({ timeUs });
      yield format === "json"
        ? jsonLine({ what: what === "line" ? "shown" : what, at: isoTime(at), seq: stamp, n, text })
        : `${clockTime(at)}  #${n} ${MARKS[what]} ${printable(text)}\n`;
    }
  }
}

const KIND_NAMES = new Map<number, string>(Object.entries(RECORD).map(([name, kind]) => [kind, name]));

/** What stands before a line that a terminal showed, a command that its shell marked, a line that a command wrote. */
const MARKS = { line: "│", command: "$", output: "»" } as const;

/** A record with nothing left out. @throws GlassError `integrity` for a payload that is not what its kind says. */
export function recordJson(record: StoredRecord): Record<string, unknown> {
  const { seq, kind, payload } = record;
  const known = { seq, at: isoTime(timeOf(record)), kind: KIND_NAMES.get(kind) ?? String(kind) };
  const base64 = (bytes: Buffer): string => bytes.toString("base64");
  switch (kind) {
    case RECORD.data:
    case RECORD.terminalInput:
    case RECORD.terminalOutput: {
      const { n, bytes } = numberedPayload(record);
      return { ...known, n, bytes: base64(bytes) };
    }
    case RECORD.output: {
      const { n, bytes } = numberedPayload(record);
      return { ...known, n, stream: bytes[0], bytes: base64(bytes.subarray(1)) };
    }
    case RECORD.terminalHidden: {
      const { n, run, bytes } = hiddenOf(record);
      return { ...known, n, run, ciphertext: base64(bytes) };
    }
    case RECORD.terminalReveal: {
      const { n, run, key } = revealOf(record);
      return { ...known, n, run, key: key === undefined ? null : base64(key) };
    }
    default:
      if (!KIND_NAMES.has(kind)) return { ...known, bytes: base64(payload) };
      return { ...known, content: contentOf(record) }; // apart: it may have a `kind` or a time of its own
  }
}
