import { RECORD } from "../targets/target.ts";
import { createBatch } from "./follow.ts";
import type { StoredRecord } from "./record.ts";
import { type ScreenThread, startScreenThread } from "./screen-thread.ts";
import type { Drawn, Line } from "./screen-worker.ts";
import { createFold, type ReplayLine } from "./statements.ts";

/** A line of what happened, what a terminal showed from then on, or a line of text that it showed. */
export type Played =
  | { readonly what: "line"; readonly line: ReplayLine }
  | { readonly what: "screen"; readonly drawn: Drawn }
  | { readonly what: "shown"; readonly shown: Line };

/**
 * A recording as people read it. Memory: a batch of records, and one screen in a thread of its own.
 * @throws what `records` throws; GlassError `usage` where a terminal's output cannot be drawn.
 */
export async function* play(
  records: AsyncIterable<StoredRecord>,
  terminal: "frames" | "lines",
): AsyncGenerator<Played> {
  const fold = createFold();
  let thread: ScreenThread<Drawn | Line> | undefined;
  const feed = async function* (batch: readonly StoredRecord[], last: boolean): AsyncGenerator<Played> {
    thread ??= startScreenThread(terminal === "frames" ? { do: "draw" } : { do: "lines" });
    for (const item of await thread.feed(batch, { last }))
      yield "frame" in item ? { what: "screen", drawn: item } : { what: "shown", shown: item };
  };
  try {
    let batch = createBatch();
    for await (const record of records) {
      if (isTerminal(record)) {
        if (!batch.add(record)) continue;
        yield* feed(batch.records, false);
        batch = createBatch();
        continue;
      }
      // Before a line, what was shown until then.
      if (thread !== undefined || batch.records.length > 0) {
        yield* feed(batch.records, record.kind === RECORD.sessionEnded);
        batch = createBatch();
      }
      for (const line of fold.take(record)) yield { what: "line", line };
    }
    if (thread !== undefined || batch.records.length > 0) yield* feed(batch.records, true);
    for (const line of fold.end()) yield { what: "line", line };
  } finally {
    await thread?.[Symbol.asyncDispose]();
  }
}

export function isTerminal({ kind }: Pick<StoredRecord, "kind">): boolean {
  return kind === RECORD.terminalOutput || kind === RECORD.terminalInput || kind === RECORD.terminalResize;
}
