import { GlassError } from "../core/errors.ts";
import { RECORD } from "../targets/target.ts";
import { contentOf, numberedPayload, type StoredRecord } from "./record.ts";
import { clamped, DEFAULT_SIZE, type Size } from "./screen.ts";
import { terminalNumber } from "./screens.ts";
import { jsonLine } from "./statements.ts";
import { hiddenOf, isTerminal, noSuchTerminal, openRun, revealOf } from "./terminals.ts";

const ASCIICAST_VERSION = 3;
/** What is recorded before the first terminal; of more only the last is kept. */
const MAX_HELD_NOTICES = 100;
const MAX_TERMINALS = 1_000;
/** What waits for the word whether typed text was echoed; of more, the oldest text is taken for hidden. */
const MAX_WAITING_BYTES = 4 << 20;

/**
 * One terminal of a session in the format asciicast v3, https://docs.asciinema.org/manual/asciicast/v3/: a header line, then
 * one event a line: output, input, resizes, and as markers what Glasskey told the user. Of what was typed there are keys, and
 * the text that the terminal echoed; text that it did not, such as a password, is not there. Intervals are in seconds since
 * the event before; a clock that was set back makes one of zero. UTF-8 that is cut between records is put together, and bytes
 * that are none become U+FFFD. A comment at the end names the session's other terminals. Memory: at most 4 MiB of records.
 * @param which the terminal, by the statement that opened it; the first one where absent.
 * @throws GlassError `usage` for a session without a terminal, or without that one.
 */
export async function* asciicast(
  session: string,
  records: AsyncIterable<StoredRecord>,
  which?: number,
): AsyncGenerator<string> {
  const terminals = new Set<number>();
  const events = createEvents();
  const typed = createTyped();
  let before: StoredRecord[] = [];
  let chosen = which;
  let begun = false;
  let over = false;

  for await (const record of records) {
    if (!isTerminal(record)) {
      const end = isEndOf(record, chosen);
      if (over || (!TOLD.has(record.kind) && !end)) continue;
      if (begun) for (const ready of typed.take(record)) yield* events.of(ready);
      else before = [...before.slice(1 - MAX_HELD_NOTICES), record];
      over = begun && end;
      continue;
    }
    const n = numberOf(record);
    if (terminals.size < MAX_TERMINALS) terminals.add(n);
    chosen ??= n;
    if (n !== chosen || over) continue;
    if (!begun) {
      begun = true;
      const [first = record] = before;
      const resize = record.kind === RECORD.terminalResize;
      yield header(session, resize ? sizeOf(record) : DEFAULT_SIZE, first.timeUs);
      events.from(first.timeUs);
      for (const earlier of before) yield* events.of(earlier);
      if (resize) continue;
    }
    for (const ready of typed.take(record)) yield* events.of(ready);
  }
  if (!begun)
    throw which === undefined || terminals.size === 0 ? noTerminal(session) : noSuchTerminal(which, terminals);
  for (const ready of typed.end()) yield* events.of(ready);
  yield* events.end();
  const others = [...terminals].filter((n) => n !== chosen);
  if (others.length > 0) yield `# this is terminal ${chosen} of ${session}; others: ${others.join(", ")}\n`;
}

const TOLD: ReadonlySet<number> = new Set([RECORD.notice, RECORD.sessionStarted, RECORD.sessionEnded]);

function isEndOf(record: StoredRecord, n: number | undefined): boolean {
  return record.kind === RECORD.statementCompleted && contentOf(record)["n"] === n;
}

function numberOf(record: StoredRecord): number {
  return record.kind === RECORD.terminalResize ? terminalNumber(record) : numberedPayload(record).n;
}

/** What is ready to be told: a record, or a part of what was typed, as it was typed. */
type Ready = StoredRecord;

interface Typed {
  /** @returns what can be told now, in order, `hidden` records as `input` ones. */
  take(record: StoredRecord): Ready[];
  end(): Ready[];
}

/** Puts typed text back to where it was typed, once it is known that it was echoed. */
function createTyped(): Typed {
  /** In order; `text` is undefined while it is not known, and null for what nobody can read. */
  let waiting: { readonly record: StoredRecord; readonly run?: number; text?: Buffer | null }[] = [];
  let bytes = 0;

  const drain = (all: boolean): Ready[] => {
    const ready: Ready[] = [];
    let taken = 0;
    for (const { record, run, text } of waiting) {
      if (run !== undefined && text === undefined && !all) break;
      taken++;
      bytes -= record.payload.length;
      if (run === undefined) ready.push(record);
      else if (text !== undefined && text !== null) {
        const payload = Buffer.concat([record.payload.subarray(0, 4), text]);
        ready.push({ ...record, kind: RECORD.terminalInput, payload });
      }
    }
    if (taken > 0) waiting = waiting.slice(taken);
    return ready;
  };

  return {
    take(record) {
      if (record.kind === RECORD.terminalReveal) {
        const { run, key } = revealOf(record);
        const parts = waiting.filter((one) => one.run === run && one.text === undefined);
        const texts =
          key === undefined
            ? []
            : openRun(
                key,
                parts.map((one) => hiddenOf(one.record).bytes),
              );
        for (const [i, part] of parts.entries()) part.text = texts[i] ?? null;
        return drain(false);
      }
      const hidden = record.kind === RECORD.terminalHidden;
      if (!hidden && waiting.length === 0) return [record];
      // A copy: the record is a view into a chunk that is much longer than it.
      waiting.push({
        record: { ...record, payload: Buffer.from(record.payload) },
        ...(hidden ? { run: hiddenOf(record).run } : {}),
      });
      bytes += record.payload.length;
      if (bytes <= MAX_WAITING_BYTES) return [];
      return drain(true);
    },
    end: () => drain(true),
  };
}

interface Events {
  from(timeUs: number): void;
  of(record: StoredRecord): Generator<string>;
  end(): Generator<string>;
}

function createEvents(): Events {
  const decoders = { o: decoder(), i: decoder() };
  let previousUs = 0;
  const event = (timeUs: number, code: string, data: string): string => {
    const interval = Math.max(0, timeUs - previousUs) / 1_000_000;
    previousUs = timeUs;
    return jsonLine([interval, code, data]);
  };
  const flush = function* (timeUs: number): Generator<string> {
    for (const code of ["o", "i"] as const) {
      const text = decoders[code].decode();
      if (text !== "") yield event(timeUs, code, text);
    }
  };
  const marker = (timeUs: number, who: string, content: Readonly<Record<string, unknown>>): string => {
    const text = content["text"] ?? content["detail"] ?? content["cause"] ?? content["what"];
    return event(timeUs, "m", `${who}: ${typeof text === "string" ? text : ""}`);
  };
  return {
    from(timeUs) {
      previousUs = timeUs;
    },
    *of(record) {
      const { kind, timeUs } = record;
      if (kind === RECORD.terminalOutput || kind === RECORD.terminalInput) {
        const code = kind === RECORD.terminalOutput ? "o" : "i";
        const text = decoders[code].decode(numberedPayload(record).bytes, { stream: true });
        if (text !== "") yield event(timeUs, code, text); // else the rest of a character comes with the next record
      } else if (kind === RECORD.terminalResize) {
        const { cols, rows } = sizeOf(record);
        yield event(timeUs, "r", `${cols}x${rows}`);
      } else if (kind === RECORD.notice) yield marker(timeUs, "Glasskey", contentOf(record));
      else if (kind === RECORD.sessionEnded) {
        yield* flush(timeUs);
        yield marker(timeUs, "session ended", contentOf(record));
      } else if (kind === RECORD.statementCompleted) {
        const { tag } = contentOf(record);
        const [, code] = /^exit (\d{1,3})$/.exec(typeof tag === "string" ? tag : "") ?? [];
        if (code === undefined) return;
        yield* flush(timeUs);
        yield event(timeUs, "x", code);
      }
    },
    *end() {
      yield* flush(previousUs);
    },
  };
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
