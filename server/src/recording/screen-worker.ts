import { parentPort, workerData } from "node:worker_threads";
import { GlassError } from "../core/errors.ts";
import type { JsonValue } from "../core/json.ts";
import { RECORD } from "../targets/target.ts";
import { matcher, type Pattern } from "./match.ts";
import { contentOf, numberedPayload, type StoredRecord } from "./record.ts";
import type { Frame } from "./screen.ts";
import { createOutputs, type Line } from "./outputs.ts";
import { createScreens, type Terminal, terminalNumber } from "./screens.ts";
import { createFold, type ReplayLine } from "./statements.ts";

/**
 * The thread that reads what strangers wrote: terminal output is drawn here and expressions are matched here, so that
 * neither can hold up the server. Its owner (screen-thread.ts) ends it when it takes too long.
 */
export type Job =
  /** Of one terminal, or, of several, the one in which something happens: the last that was quiet stays for a while. */
  | { readonly do: "draw"; readonly terminal?: number | "active" | undefined }
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
  /** The terminal, by the statement that opened it. */
  readonly n: number;
  readonly timeUs: number;
  readonly frame: Frame;
}

export interface Hit {
  readonly seq: number;
  readonly timeUs: number;
  readonly where: "statement" | "error" | "notice" | "action" | "screen" | "command" | "output";
  readonly text: string;
}

/** A byte shows one line at most: fewer than a screen keeps. */
const PART_BYTES = 16 << 10;
/** Frames of a recording come at most 25 times a second of its own time. */
const FRAME_US = 40_000;

/** Another terminal's picture comes in place of the one that is shown once that one was quiet for so long. */
const QUIET_US = 2_000_000;

const job = workerData as Job;
const work = job.do === "draw" ? draw(job.terminal) : job.do === "lines" ? lines() : search(job.pattern);

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

function draw(which: number | "active" = "active"): (question: Question) => Promise<Drawn[]> {
  const screens = createScreens(false);
  let shown: Terminal | undefined;
  screens.onClose = (terminal) => {
    if (terminal === shown) shown = undefined;
  };
  let shownUs = 0;
  let whole = false;
  let dirtyUs: number | undefined;
  let lastUs = 0;
  return async ({ records, frames, last }) => {
    const drawn: Drawn[] = [];
    const take = (): void => {
      const frame = shown?.screen.frame(whole);
      if (frame !== undefined && shown !== undefined) drawn.push({ n: shown.n, timeUs: lastUs, frame });
      dirtyUs = undefined;
      whole = false;
    };
    for (const record of records) {
      if (record.kind === RECORD.statementCompleted && contentOf(record)["n"] === shown?.n) shownUs = 0; // the next one may show
      if (!TERMINAL.has(record.kind) || (which !== "active" && terminalNumber(record) !== which)) continue;
      if (frames === "all" && dirtyUs !== undefined && Math.abs(record.timeUs - dirtyUs) >= FRAME_US) take();
      const terminal = await screens.apply(record);
      if (terminal !== shown && turn(record, shown, shownUs)) [shown, whole] = [terminal, true];
      if (terminal !== shown) continue;
      [lastUs, shownUs] = [record.timeUs, record.timeUs];
      dirtyUs ??= lastUs;
    }
    if (frames === "last" || (frames === "all" && last)) take();
    return drawn;
  };
}

/** Whether what happens in another terminal now is what is to be seen. */
function turn(record: StoredRecord, shown: Terminal | undefined, shownUs: number): boolean {
  return shown === undefined || Math.abs(record.timeUs - shownUs) >= QUIET_US;
}

function lines(): (question: Question) => Promise<Line[]> {
  let screens = createScreens(true);
  let times = createTimes();
  let outputs = createOutputs();
  return async ({ records, last }) => {
    const told: Line[] = [];
    const tell = ({ n, screen }: Terminal, all: boolean, otherwise: number): void => {
      for (const shown of screen.shown(all)) told.push({ ...shown, n, timeUs: times.of(shown.stamp, otherwise) });
    };
    screens.onClose = (terminal) => tell(terminal, true, 0);
    for (const record of records) {
      if (record.kind === RECORD.output) told.push(...outputs.take(record));
      else if (record.kind === RECORD.statementCompleted && (screens.size > 0 || outputs.size > 0)) {
        const { n } = contentOf(record);
        if (typeof n !== "number") continue;
        told.push(...outputs.end(n));
        screens.close(n);
      }
      if (!TERMINAL.has(record.kind)) continue;
      times.put(record);
      for (const part of partsOf(record)) tell(await screens.apply(part), false, record.timeUs);
    }
    if (last) {
      told.push(...outputs.end());
      screens.close();
      [screens, times, outputs] = [createScreens(true), createTimes(), createOutputs()];
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
  const { bytes } = numberedPayload(record);
  const head = record.payload.subarray(0, 4);
  for (let at = 0; at < bytes.length; at += PART_BYTES)
    yield { ...record, payload: Buffer.concat([head, bytes.subarray(at, at + PART_BYTES)]) };
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
  const { text, params, detail, error, outcome } = line.statement;
  const begins = outcome === "running" || outcome === "refused";
  return [
    ...(begins ? [{ where: "statement" as const, text }] : []),
    ...(begins && params !== undefined ? [{ where: "statement" as const, text: wordsOf(params) }] : []),
    ...(detail === undefined ? [] : [{ where: "statement" as const, text: wordsOf(detail) }]),
    ...(error === undefined
      ? []
      : [{ where: "error" as const, text: `${error.sqlstate ?? error.code ?? ""} ${error.message}` }]),
  ];
}

/** What was said, as it was said: JSON would put backslashes into it. */
function wordsOf(value: JsonValue): string {
  if (typeof value === "string") return value;
  if (value === null || typeof value !== "object") return String(value);
  return Object.values(value).map(wordsOf).join(", ");
}
