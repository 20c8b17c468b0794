import { RECORD } from "../targets/target.ts";
import { followRecords } from "./follow.ts";
import { createOutputs, type Line } from "./outputs.ts";
import { contentOf, type StoredRecord } from "./record.ts";
import { type ScreenThread, startScreenThread } from "./screen-thread.ts";
import type { Drawn } from "./screen-worker.ts";
import { readSealed, type Sealed } from "./sealed.ts";
import type { Sealer } from "./sealer.ts";
import { createFold, type ReplayLine } from "./statements.ts";
import { isTerminal } from "./terminals.ts";

/** What a watcher is told. */
export type Watched =
  /** Who is watched; `live`: within a second, otherwise some seconds late, from what is sealed. */
  | { readonly what: "watching"; readonly live: boolean; readonly person: string; readonly earlierLines: number }
  | { readonly what: "line"; readonly line: ReplayLine }
  | { readonly what: "screen"; readonly drawn: Drawn }
  /** A line that a command without a terminal wrote; what it wrote before somebody watched is in the replay. */
  | { readonly what: "shown"; readonly shown: Line }
  /** The watcher was too slow: so many records come from what is sealed, late, before the rest. */
  | { readonly what: "behind"; readonly records: number };

export interface WatchOptions extends Sealed {
  node?: string;
  live?: Pick<Sealer, "follow">;
  /** Of several terminals, the one to show; else the one in which something happens. */
  terminal?: number | undefined;
}

/** What is read of a session that has been going on: at most so much of its end. */
const HISTORY_BYTES = 32 << 20;
const HISTORY_CHUNKS = 4_096; // small ones, of a session in which little was done
const BEGINNING_RECORDS = 1_000;
/** And told: so many lines. */
const HISTORY_LINES = 20;

/**
 * A session as it goes on: first its last statements, or the screen as it is now; then everything, until it ends.
 * @throws what `followRecords` throws; GlassError `usage` where a terminal's output cannot be drawn.
 */
export async function* watchSession(
  options: WatchOptions,
  session: string,
  signal: AbortSignal,
): AsyncGenerator<Watched, void> {
  const row = await options.store
    .selectFrom("sessions")
    .select(["node", "person", "recording_complete"])
    .where("id", "=", session)
    .executeTakeFirst();
  const live = row?.node === options.node ? options.live : undefined;
  const from = await historyFrom(options, session);
  const fold = createFold(true);
  const outputs = createOutputs();
  let thread: ScreenThread<Drawn> | undefined;
  let joining = true;
  const history = createHistory();

  const take = async function* (records: readonly StoredRecord[]): AsyncGenerator<Watched> {
    for (const { terminal, run } of runs(records)) {
      if (terminal) {
        thread ??= startScreenThread({ do: "draw", terminal: options.terminal ?? "active" });
        for (const drawn of await thread.feed(run, { frames: joining ? "none" : "last" }))
          yield { what: "screen", drawn };
        continue;
      }
      for (const record of run) {
        const shown = record.kind === RECORD.output ? outputs.take(record) : [];
        if (record.kind === RECORD.statementCompleted && outputs.size > 0) {
          const { n } = contentOf(record);
          if (typeof n === "number") shown.push(...outputs.end(n));
        }
        if (!joining) for (const line of shown) yield { what: "shown", shown: line };
        for (const line of fold.take(record)) {
          if (joining) history.add(line);
          else yield { what: "line", line };
        }
      }
    }
  };
  const joined = async function* (): AsyncGenerator<Watched> {
    joining = false;
    yield { what: "watching", live: live !== undefined, person: row?.person ?? "", earlierLines: history.dropped() };
    for (const line of history.lines()) yield { what: "line", line };
    for (const drawn of (await thread?.feed([], { frames: "last" })) ?? []) yield { what: "screen", drawn };
  };

  try {
    if (from.chunk > 0) {
      // How the session began: who, and the terminals' first sizes.
      const beginning: StoredRecord[] = [];
      for await (const record of readSealed(options, session)) {
        if (record.kind === RECORD.sessionStarted || record.kind === RECORD.terminalResize) beginning.push(record);
        if (record.seq > BEGINNING_RECORDS) break;
      }
      yield* take(beginning.filter(({ seq }) => seq < from.seq));
    }
    const follow = {
      ...{ session, live, signal, afterSeq: from.seq - 1 },
      sealed: (seq: number) =>
        readSealed(options, session, seq === from.seq - 1 ? { chunk: from.chunk } : { afterSeq: seq }),
    };
    for await (const followed of followRecords(follow)) {
      if (followed.what === "records") yield* take(followed.records);
      else if (followed.what === "caught up") yield* joining ? joined() : [];
      else if (!joining) yield followed;
    }
    if (joining) yield* joined();
    for (const line of fold.end()) yield { what: "line", line };
  } finally {
    await thread?.[Symbol.asyncDispose]();
  }
}

/** The chunk to begin with so that about {@link HISTORY_BYTES} are read, and its first record. */
async function historyFrom({ store }: Sealed, session: string): Promise<{ chunk: number; seq: number }> {
  let [bytes, from] = [0, { chunk: 0, seq: 1 }];
  const rows = await store
    .selectFrom("chunks")
    .select(["chunk", "bytes", "first_seq"])
    .where("session", "=", session)
    .orderBy("chunk", "desc")
    .limit(HISTORY_CHUNKS)
    .execute();
  for (const row of rows) {
    bytes += row.bytes;
    if (bytes > HISTORY_BYTES) break;
    from = { chunk: row.chunk, seq: row.first_seq };
  }
  return from;
}

/** The last lines: of a statement that was answered only what it became. */
function createHistory(): { add(line: ReplayLine): void; lines(): ReplayLine[]; dropped(): number } {
  const kept: ReplayLine[] = [];
  let dropped = 0;
  return {
    add(line) {
      if (line.what === "statement") {
        const before = kept.findIndex((other) => other.what === "statement" && other.statement.n === line.statement.n);
        if (before !== -1) kept.splice(before, 1);
      }
      kept.push(line);
      if (kept.length <= HISTORY_LINES) return;
      // The beginning of the session stays.
      kept.splice(kept[0]?.what === "started" ? 1 : 0, 1);
      dropped++;
    },
    lines: () => kept,
    dropped: () => dropped,
  };
}

function runs(records: readonly StoredRecord[]): { terminal: boolean; run: StoredRecord[] }[] {
  const found: { terminal: boolean; run: StoredRecord[] }[] = [];
  for (const record of records) {
    const terminal = isTerminal(record);
    const last = found.at(-1);
    if (last?.terminal === terminal) last.run.push(record);
    else found.push({ terminal, run: [record] });
  }
  return found;
}
