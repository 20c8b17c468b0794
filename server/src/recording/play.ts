import { RECORD } from "../targets/target.ts";
import { createBatch } from "./follow.ts";
import { contentOf, numberedPayload, type StoredRecord } from "./record.ts";
import { terminalNumber } from "./screens.ts";
import { type ScreenThread, startScreenThread } from "./screen-thread.ts";
import type { Line } from "./outputs.ts";
import type { Drawn } from "./screen-worker.ts";
import { createFold, type ReplayLine } from "./statements.ts";
import { isTerminal, noSuchTerminal } from "./terminals.ts";

/** A line of what happened, what a terminal showed from then on, or a line of text that it showed or a command wrote. */
export type Played =
  | { readonly what: "line"; readonly line: ReplayLine }
  | { readonly what: "screen"; readonly drawn: Drawn }
  | { readonly what: "shown"; readonly shown: Line }
  /** Last, where frames were asked for and there are several terminals: which one was shown. */
  | { readonly what: "terminals"; readonly shown: number; readonly others: readonly number[] };

/** More are not told. */
const MAX_TERMINALS = 1_000;

/**
 * A recording as people read it. Memory: a batch of records, and a few screens in a thread of their own.
 * @param which of `frames`: the terminal, by the statement that opened it; the first one where absent.
 * @throws what `records` throws; GlassError `usage` where a terminal's output cannot be drawn, or there is no such terminal.
 */
export async function* play(
  records: AsyncIterable<StoredRecord>,
  terminal: "frames" | "lines",
  which?: number,
): AsyncGenerator<Played> {
  const fold = createFold();
  const terminals = new Set<number>();
  /** Statements that have lines of their own, which come before their end. */
  const writing = new Set<number>();
  let thread: ScreenThread<Drawn | Line> | undefined;
  const feed = async function* (batch: readonly StoredRecord[], last: boolean): AsyncGenerator<Played> {
    const [first] = terminals;
    thread ??= startScreenThread(terminal === "frames" ? { do: "draw", terminal: which ?? first } : { do: "lines" });
    for (const item of await thread.feed(batch, { last }))
      yield "frame" in item ? { what: "screen", drawn: item } : { what: "shown", shown: item };
  };
  const isShown = (record: StoredRecord): boolean => {
    if (record.kind === RECORD.terminalOutput || record.kind === RECORD.terminalResize) {
      const n = terminalNumber(record);
      if (terminals.size < MAX_TERMINALS) terminals.add(n);
      writing.add(n);
      return true;
    }
    if (record.kind !== RECORD.output) return isTerminal(record);
    writing.add(numberedPayload(record).n);
    return true;
  };
  try {
    let batch = createBatch();
    for await (const record of records) {
      if (isShown(record)) {
        if (!batch.add(record)) continue;
        yield* feed(batch.records, false);
        batch = createBatch();
        continue;
      }
      // Before a line, what was shown until then; before a statement's end, all that it showed.
      if (record.kind === RECORD.statementCompleted) {
        const { n } = contentOf(record);
        if (typeof n === "number" && writing.delete(n)) batch.add(record);
      }
      if (thread !== undefined || batch.records.length > 0) {
        yield* feed(batch.records, record.kind === RECORD.sessionEnded);
        batch = createBatch();
      }
      for (const line of fold.take(record)) yield { what: "line", line };
    }
    if (thread !== undefined || batch.records.length > 0) yield* feed(batch.records, true);
    for (const line of fold.end()) yield { what: "line", line };
    if (terminal === "frames") yield* whichWasShown(terminals, which);
  } finally {
    await thread?.[Symbol.asyncDispose]();
  }
}

function* whichWasShown(terminals: ReadonlySet<number>, which: number | undefined): Generator<Played> {
  const [first] = terminals;
  const shown = which ?? first;
  if (which !== undefined && !terminals.has(which)) throw noSuchTerminal(which, terminals);
  const others = [...terminals].filter((n) => n !== shown);
  if (shown !== undefined && others.length > 0) yield { what: "terminals", shown, others };
}
