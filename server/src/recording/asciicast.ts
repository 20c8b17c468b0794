import { GlassError } from "../core/errors.ts";
import { RECORD } from "../targets/target.ts";
import { contentOf, type StoredRecord } from "./record.ts";
import { clamped, DEFAULT_SIZE, type Size } from "./screen.ts";
import { jsonLine } from "./statements.ts";

const ASCIICAST_VERSION = 3;
/** What is recorded before the terminal's size is known; more of it is no terminal's beginning. */
const MAX_HELD_RECORDS = 10_000;

/**
 * A terminal session in the format asciicast v3, https://docs.asciinema.org/manual/asciicast/v3/: a header line, then one
 * event a line: output, input where it was recorded, resizes, and as markers what Glasskey told the user. Intervals are in
 * seconds since the event before; a clock that was set back makes one of zero. UTF-8 that is cut between records is put
 * together, and bytes that are none become U+FFFD. Memory: one record.
 * @throws GlassError `usage` for a session without a terminal.
 */
export async function* asciicast(session: string, records: AsyncIterable<StoredRecord>): AsyncGenerator<string> {
  const decoders = { o: decoder(), i: decoder() };
  let previousUs: number | undefined;
  const event = (timeUs: number, code: string, data: string): string => {
    const interval = Math.max(0, timeUs - (previousUs ?? timeUs)) / 1_000_000;
    previousUs = timeUs;
    return jsonLine([interval, code, data]);
  };
  const eventsOf = function* (record: StoredRecord): Generator<string> {
    const { kind, timeUs, payload } = record;
    if (kind === RECORD.terminalOutput || kind === RECORD.terminalInput) {
      const code = kind === RECORD.terminalOutput ? "o" : "i";
      const text = decoders[code].decode(payload, { stream: true });
      if (text !== "") yield event(timeUs, code, text); // else the rest of a character comes with the next record
    } else if (kind === RECORD.terminalResize) {
      const { cols, rows } = sizeOf(record);
      yield event(timeUs, "r", `${cols}x${rows}`);
    } else if (kind === RECORD.notice || kind === RECORD.sessionEnded) {
      const content = contentOf(record);
      const text = content["text"] ?? content["detail"] ?? content["cause"] ?? content["what"];
      if (kind === RECORD.sessionEnded) yield* flush(timeUs);
      yield event(
        timeUs,
        "m",
        `${kind === RECORD.notice ? "Glasskey" : "session ended"}: ${typeof text === "string" ? text : ""}`,
      );
      if (typeof content["exit"] === "number") yield event(timeUs, "x", String(content["exit"]));
    }
  };
  const flush = function* (timeUs: number): Generator<string> {
    for (const code of ["o", "i"] as const) {
      const text = decoders[code].decode();
      if (text !== "") yield event(timeUs, code, text);
    }
  };

  let held: StoredRecord[] | undefined = [];
  for await (const record of records) {
    if (held === undefined) {
      yield* eventsOf(record);
      continue;
    }
    const resize = record.kind === RECORD.terminalResize;
    if (!resize && record.kind !== RECORD.terminalOutput && record.kind !== RECORD.terminalInput) {
      if (record.kind === RECORD.statementStarted || held.length >= MAX_HELD_RECORDS) throw noTerminal(session);
      held.push(record);
      continue;
    }
    const begun = held[0] ?? record;
    yield header(session, resize ? sizeOf(record) : DEFAULT_SIZE, begun.timeUs);
    previousUs = begun.timeUs;
    for (const earlier of held) yield* eventsOf(earlier);
    held = undefined;
    if (!resize) yield* eventsOf(record);
  }
  if (held !== undefined) throw noTerminal(session);
  yield* flush(previousUs ?? 0);
}

function header(session: string, { cols, rows }: Size, timeUs: number): string {
  const line = {
    version: ASCIICAST_VERSION,
    term: { cols, rows },
    timestamp: Math.floor(timeUs / 1_000_000),
    title: session,
  };
  return jsonLine(line);
}

/** The same bounds as where it is drawn: zero and huge sizes are no player's. */
function sizeOf(record: StoredRecord): Size {
  const { cols, rows } = contentOf(record);
  return clamped({ cols, rows });
}

function decoder(): TextDecoder {
  return new TextDecoder("utf-8", { ignoreBOM: true });
}

function noTerminal(session: string): GlassError {
  return new GlassError("usage", `${session} has no terminal to export`, {
    next: `Its statements: glass export ${session} --format json`,
  });
}
