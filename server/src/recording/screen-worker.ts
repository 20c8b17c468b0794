import { parentPort, workerData } from "node:worker_threads";
import { GlassError } from "../core/errors.ts";
import type { JsonValue } from "../core/json.ts";
import { RECORD } from "../targets/target.ts";
import { matcher, type Pattern } from "./match.ts";
import { contentOf, type StoredRecord } from "./record.ts";
import { clamped, openScreen, type Frame, type Screen, type Shown } from "./screen.ts";
import { createFold, type ReplayLine } from "./statements.ts";

/**
 * The thread that reads what strangers wrote: terminal output is drawn here and expressions are matched here, so that
 * neither can hold up the server. Its owner (screen-thread.ts) ends it when it takes too long.
 */
export type Job =
  | { readonly do: "draw" }
  | { readonly do: "lines" }
  | { readonly do: "search"; readonly pattern: Pattern };

/** One question: records of one session in order, and whether they were the last. */
export interface Question {
  readonly records: readonly StoredRecord[];
  /** Of `draw`: every frame, the state after the last record, or none. */
  readonly frames: "all" | "last" | "none";
  readonly last: boolean;
}

export interface Drawn {
  readonly timeUs: number;
  readonly frame: Frame;
}

export interface Line extends Shown {
  readonly timeUs: number;
}

export interface Hit {
  readonly seq: number;
  readonly timeUs: number;
  readonly where: "statement" | "error" | "notice" | "action" | "screen" | "command";
  readonly text: string;
}

/** A byte shows one line at most: fewer than a screen keeps. */
const PART_BYTES = 16 << 10;
/** Frames of a recording come at most 25 times a second of its own time. */
const FRAME_US = 40_000;

const job = workerData as Job;
const work = job.do === "draw" ? draw() : job.do === "lines" ? lines() : search(job.pattern);

parentPort?.on("message", (question: Question) => {
  void work({ ...question, records: question.records.map(withBuffer) }).then(
    (answer) => parentPort?.postMessage({ answer }),
    (error: unknown) =>
      parentPort?.postMessage({
        code: error instanceof GlassError ? error.code : "integrity",
        error: error instanceof Error ? error.message : String(error),
      }),
  );
});

/** A buffer arrives from the other thread as a plain array of bytes. */
function withBuffer(record: StoredRecord): StoredRecord {
  const { buffer, byteOffset, length } = record.payload;
  return { ...record, payload: Buffer.from(buffer, byteOffset, length) };
}

function draw(): (question: Question) => Promise<Drawn[]> {
  let screen: Screen | undefined;
  let dirtyUs: number | undefined;
  let lastUs = 0;
  return async ({ records, frames, last }) => {
    const drawn: Drawn[] = [];
    const take = (): void => {
      const frame = screen?.frame();
      if (frame !== undefined) drawn.push({ timeUs: lastUs, frame });
      dirtyUs = undefined;
    };
    for (const record of records) {
      if (!TERMINAL.has(record.kind)) continue;
      if (frames === "all" && dirtyUs !== undefined && Math.abs(record.timeUs - dirtyUs) >= FRAME_US) take();
      screen = await apply(screen, record, false);
      lastUs = record.timeUs;
      dirtyUs ??= lastUs;
    }
    if (frames === "last" || (frames === "all" && last)) take();
    return drawn;
  };
}

function lines(): (question: Question) => Promise<Line[]> {
  let screen: Screen | undefined;
  let times = createTimes();
  return async ({ records, last }) => {
    const told: Line[] = [];
    for (const record of records) {
      if (!TERMINAL.has(record.kind)) continue;
      times.put(record);
      for (const part of partsOf(record)) {
        screen = await apply(screen, part, true);
        for (const shown of screen.shown()) told.push({ ...shown, timeUs: times.of(shown.stamp, record.timeUs) });
      }
    }
    if (last) {
      told.push(...(screen?.shown(true) ?? []).map((shown) => ({ ...shown, timeUs: times.of(shown.stamp, 0) })));
      screen?.close();
      [screen, times] = [undefined, createTimes()];
    }
    return told;
  };
}

function search(pattern: Pattern): (question: Question) => Promise<Hit[]> {
  const find = matcher(pattern);
  const terminal = lines();
  let fold = createFold(true);
  return async (question) => {
    const hits: Hit[] = [];
    const judge = (line: ReplayLine): void => {
      for (const { where, text } of textsOf(line)) {
        const found = find(text);
        if (found === undefined) continue;
        const statement = line.what === "statement" ? line.statement : line;
        hits.push({ seq: statement.seq, timeUs: statement.at.getTime() * 1000, where, text: found });
        return;
      }
    };
    for (const record of question.records) for (const line of fold.take(record)) judge(line);
    if (question.last) {
      for (const line of fold.end()) judge(line);
      fold = createFold(true);
    }
    for (const { what, text, stamp, timeUs } of await terminal(question)) {
      const found = find(text);
      if (found !== undefined) hits.push({ seq: stamp, timeUs, where: what === "line" ? "screen" : what, text: found });
    }
    return hits;
  };
}

const TERMINAL: ReadonlySet<number> = new Set([RECORD.terminalOutput, RECORD.terminalResize]);

/** Output is asked for its lines after each part: a screen keeps only so many, and one record may show more. */
function* partsOf(record: StoredRecord): Generator<StoredRecord> {
  if (record.kind !== RECORD.terminalOutput) {
    yield record;
    return;
  }
  for (let at = 0; at < record.payload.length; at += PART_BYTES)
    yield { ...record, payload: record.payload.subarray(at, at + PART_BYTES) };
}

/** One record on the screen, which is made when the first one comes. */
async function apply(screen: Screen | undefined, record: StoredRecord, shown: boolean): Promise<Screen> {
  if (record.kind === RECORD.terminalResize) {
    const { cols, rows } = contentOf(record);
    if (screen === undefined) return openScreen(clamped({ cols, rows }), shown);
    screen.resize(clamped({ cols, rows }));
    return screen;
  }
  const open = screen ?? openScreen(undefined, shown);
  await open.write(record.payload, record.seq);
  return open;
}

/** When the latest records were, by their sequence: a line is told after the record that showed it. */
function createTimes(): { put(record: StoredRecord): void; of(seq: number, otherwise: number): number } {
  const times = new Map<number, number>();
  return {
    put({ seq, timeUs }) {
      times.set(seq, timeUs);
      const [oldest] = times.keys();
      if (times.size > 100_000 && oldest !== undefined) times.delete(oldest);
    },
    of: (seq, otherwise) => times.get(seq) ?? otherwise,
  };
}

/** A statement is looked at when it begins, and its error when it is answered: that may be in another page. */
function textsOf(line: ReplayLine): { where: Hit["where"]; text: string }[] {
  if (line.what === "notice") return [{ where: "notice", text: wordsOf(line.content) }];
  if (line.what !== "statement") return [{ where: "action", text: wordsOf(line.content) }];
  const { text, params, error, outcome } = line.statement;
  const begins = outcome === "running" || outcome === "refused";
  return [
    ...(begins ? [{ where: "statement" as const, text }] : []),
    ...(begins && params !== undefined ? [{ where: "statement" as const, text: wordsOf(params) }] : []),
    ...(error === undefined ? [] : [{ where: "error" as const, text: `${error.sqlstate ?? ""} ${error.message}` }]),
  ];
}

/** What was said, as it was said: JSON would put backslashes into it. */
function wordsOf(value: JsonValue): string {
  if (typeof value === "string") return value;
  if (value === null || typeof value !== "object") return String(value);
  return Object.values(value).map(wordsOf).join(", ");
}
