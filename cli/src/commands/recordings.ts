import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { link, open, rename, rm } from "node:fs/promises";
import type { ReplayLine, SearchAnswer, SearchRequest, ScreenLine, TerminalsLine, WatchLine } from "@glasskey/contract";
import { isErrorCode } from "@glasskey/contract/errors";
import { call, callBytes, callLines } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { CliError, usage } from "../errors.ts";
import { readLogin } from "../home.ts";
import { sessionArgument } from "../ids.ts";
import { clock, duration, jsonText, plain, quoted, type Output } from "../output.ts";
import { openPainter, type Painter } from "../painter.ts";
import { tellStory } from "../story.ts";
import { readDuration } from "./grants.ts";

const FORMATS: readonly string[] = ["json", "text", "asciicast", "raw"];
const MAX_JSON_LINES = 100_000;
/** The exit code of who was stopped by Ctrl-C, as shells have it. */
const INTERRUPTED = 130;
const IDLE_LIMIT_MS = 2_000;
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
/** The server says something every five seconds. */
const QUIET_MS = 20_000;
const EMPTY_SCREEN = { n: 0, cols: 80, rows: 24, cursor: { x: 0, y: 0 }, whole: true, lines: [] };

const sessionPath = (session: string, what: string): string => `/v1/sessions/${session}/${what}`;

/** What was done; a terminal is played as it was on a terminal, and told line by line elsewhere. */
export async function replay({ args, options, out }: Invocation): Promise<number> {
  const session = sessionArgument(args);
  const play = out.tty && !out.json;
  const speed = positive(options["speed"], "--speed") ?? 1;
  const idleMs = options["idle-limit"] === undefined ? IDLE_LIMIT_MS : readDuration(String(options["idle-limit"]));
  const all: ReplayLine[] = [];
  const stage = openStage(out, `replay of ${session}`);
  let previousMs: number | undefined;
  const terminal = terminalOption(options);
  let terminals: TerminalsLine | undefined;
  try {
    const path = sessionPath(session, `replay?terminal=${play || terminal !== "" ? "frames" : "lines"}${terminal}`);
    for await (const line of callLines<ReplayLine>(readLogin(), path, { signal: stage.left })) {
      if (out.json) {
        if (all.length >= MAX_JSON_LINES)
          throw usage("that is too much for one JSON value", `Export it: glass export ${session} -o FILE`);
        all.push(line);
      } else if (line.what === "screen") {
        const atMs = Date.parse(line.at);
        await stage.pause(Math.min(idleMs, Math.max(0, atMs - (previousMs ?? atMs))) / speed);
        previousMs = atMs;
        stage.screen(line);
        stage.status(`${clock(line.at)}  replay of ${session}  Ctrl-C leaves`);
      } else if (line.what === "terminals") terminals = line;
      else stage.tell(line);
    }
  } finally {
    stage.leave();
  }
  if (stage.left.aborted && !play) return INTERRUPTED; // a part is not the whole
  if (terminals !== undefined) out.hint(othersHint(session, terminals));
  out.value({ lines: all });
  return 0;
}

/** A session as it goes on, until it ends or Ctrl-C. */
export async function watch({ args, options, out }: Invocation): Promise<number> {
  const session = sessionArgument(args);
  const stage = openStage(out, `watching ${session}`, true);
  let over: Extract<WatchLine, { what: "over" }> | undefined;
  try {
    const lines = callLines<WatchLine>(readLogin(), sessionPath(session, `watch?${terminalOption(options)}`), {
      signal: stage.left,
      quietMs: QUIET_MS,
    });
    for await (const line of lines) {
      if (line.what === "over") over = line;
      if (out.json) {
        if (line.what !== "beat") process.stdout.write(`${jsonText(line)}\n`);
      } else if (line.what === "screen") stage.screen(line);
      else if (line.what === "watching") {
        stage.status(`watching ${plain(line.person)} in ${session}  Ctrl-C leaves`);
        out.hint(
          `Watching ${plain(line.person)} in ${session}${line.live ? "" : ", some seconds late: another Glasskey process has it"}. Ctrl-C leaves.`,
        );
        if (line.earlierLines > 0) out.hint(`${line.earlierLines} earlier lines: glass replay ${session}`);
      } else if (line.what === "behind") {
        stage.status(`too slow: ${line.records} records are read from what is sealed`);
        if (!stage.drawn()) out.hint(`… too slow: ${line.records} records passed by, and come from what is sealed.`);
      } else if (line.what !== "beat" && line.what !== "over") stage.tell(line);
    }
  } finally {
    stage.leave();
  }
  if (over === undefined && !stage.left.aborted)
    throw new CliError("server_unreachable", "the connection broke off", {
      next: `Go on with: glass watch ${session}`,
    });
  if (over?.code !== undefined)
    throw new CliError(isErrorCode(over.code) ? over.code : "internal", over.text, { next: over.next });
  return 0;
}

/** A recording as a file: all of it, or none. */
export async function exportRecording({ args, options, out }: Invocation): Promise<number> {
  const session = sessionArgument(args);
  const format = options["format"] === undefined ? "json" : String(options["format"]);
  if (!FORMATS.includes(format)) throw usage(`"${plain(format)}" is no format`, `One of: ${FORMATS.join(", ")}`);
  const pieces = callBytes(readLogin(), sessionPath(session, `export?format=${format}${terminalOption(options)}`));
  const file = options["output"] === undefined ? undefined : String(options["output"]);
  if (file === undefined) {
    if (out.json) throw usage("--json needs a file to write to", "Add: -o FILE");
    for await (const piece of pieces)
      if (!process.stdout.write(piece)) await new Promise((done) => process.stdout.once("drain", done));
    return 0;
  }
  const bytes = await writeWhole(file, pieces, options["force"] === true);
  out.say(`${session} is in ${file}, ${bytes} bytes.`);
  out.value({ file, bytes });
  return 0;
}

export async function search({ args, options, out }: Invocation): Promise<number> {
  const time = (name: "since" | "until"): string | undefined =>
    options[name] === undefined ? undefined : readTime(String(options[name]), `--${name}`);
  const text = (name: string): string | undefined => (options[name] === undefined ? undefined : String(options[name]));
  const request: SearchRequest = {
    ...{ text: args[0] ?? "", regex: options["regex"] === true, person: text("person"), target: text("target") },
    ...{ playbook: text("playbook"), since: time("since"), until: time("until") },
  };
  const found: SearchAnswer["hits"] = [];
  const problems: SearchAnswer["problems"] = [];
  let [sessions, erased, hits] = [0, 0, 0];
  let cursor: string | undefined;
  do {
    const body = { ...request, ...(cursor === undefined ? {} : { cursor }) };
    const page = await call<SearchAnswer>(readLogin(), "POST", "/v1/recordings/search", body);
    sessions += page.sessions;
    erased += page.erased;
    hits += page.hits.length;
    problems.push(...page.problems);
    if (out.json) {
      found.push(...page.hits);
      if (found.length > MAX_JSON_LINES)
        throw usage(
          "that is too much for one JSON value",
          "Look for something rarer, or in less: --since, --person, …",
        );
    }
    for (const hit of page.hits) {
      const head = `${out.dim(clock(hit.at))}  ${out.bold(hit.session)} ${plain(hit.person)} on ${plain(hit.target)}`;
      const where = hit.where === "statement" || hit.where === "screen" ? "" : `${out.yellow(hit.where)}: `;
      out.say(head);
      out.sayAll(quoted(out, `          ${where}`, plain(hit.text)));
    }
    for (const problem of page.problems) out.hint(`${plain(problem.session)}: ${plain(problem.message)}`);
    cursor = page.next ?? undefined;
  } while (cursor !== undefined);
  const gone = erased === 0 ? "" : `; ${erased} of them ${erased === 1 ? "is" : "are"} erased`;
  const nothing = hits === 0 ? "Nothing found. " : "";
  out.hint(`${nothing}Looked through ${sessions} session${sessions === 1 ? "" : "s"}${gone}.`);
  out.value({ hits: found, sessions, erased, problems });
  return 0;
}

type Told = Exclude<ReplayLine, ScreenLine | TerminalsLine>;

/** Where lines go to: below each other, or around a terminal's screen. */
interface Stage {
  tell(line: Told): void;
  screen(frame: ScreenLine): void;
  status(text: string): void;
  pause(ms: number): Promise<void>;
  drawn(): boolean;
  leave(): void;
  /** Aborts with Ctrl-C. */
  readonly left: AbortSignal;
}

function openStage(out: Output, title: string, live = false): Stage {
  const story = tellStory(out, live);
  const after: Told[] = [];
  let painter: Painter | undefined;
  const left = new AbortController();
  const leave = (): void => {
    painter?.leave();
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", interrupt);
    process.off("SIGTSTP", suspend);
    process.stdout.off("resize", redraw);
    painter = undefined;
    for (const line of after.splice(0)) story.tell(line);
    story.end();
  };
  const interrupt = (): void => {
    left.abort();
    leave();
  };
  let rows = new Map<number, ScreenLine["lines"][number]>();
  let last: ScreenLine | undefined;
  const redraw = (): void => {
    if (last !== undefined) painter?.draw({ ...last, whole: true, lines: [...rows.values()] });
  };
  const enter = (at: string): Painter => {
    const entered = openPainter(process.stdout, process.env["NO_COLOR"] === undefined);
    entered.draw({ what: "screen", at, ...EMPTY_SCREEN });
    entered.status(`${title}  Ctrl-C leaves`);
    return entered;
  };
  /** Ctrl-Z: the shell gets its own screen, and afterwards the picture is drawn again. */
  const suspend = (): void => {
    painter?.leave();
    process.kill(process.pid, "SIGSTOP");
    painter = enter(last?.at ?? "");
    redraw();
  };
  process.once("SIGINT", interrupt);
  process.once("SIGTERM", interrupt);
  return {
    left: left.signal,
    tell(line) {
      if (painter === undefined) return story.tell(line);
      if (line.what === "notice") painter.status(`Glasskey told them: ${JSON.stringify(line.content["text"] ?? "")}`);
      after.push(line); // told when the screen is gone
      if (after.length > 100) after.shift();
    },
    screen(frame) {
      if (left.signal.aborted) return;
      if (!out.tty) {
        for (const { runs } of frame.lines) {
          const text = runs
            .map((run) => run.text)
            .join("")
            .trimEnd();
          if (text !== "") out.say(`${out.dim(clock(frame.at))}  ${out.dim("│")} ${plain(text)}`);
        }
        return;
      }
      if (painter === undefined) {
        painter = enter(frame.at);
        process.stdout.on("resize", redraw);
        process.on("SIGTSTP", suspend);
      }
      if (frame.whole) rows = new Map();
      for (const line of frame.lines) if (rows.size < 1_000 || rows.has(line.y)) rows.set(line.y, line);
      last = frame;
      painter.draw(frame);
    },
    status: (text) => painter?.status(text),
    drawn: () => painter !== undefined,
    pause: (ms) =>
      new Promise((resolve) => {
        if (ms < 1 || left.signal.aborted) return resolve();
        const done = (): void => {
          clearTimeout(timer);
          resolve();
        };
        const timer = setTimeout(done, ms);
        left.signal.addEventListener("abort", done, { once: true });
      }),
    leave,
  };
}

/** @returns how many bytes. The file is there when all of it is, and nothing of it otherwise. */
async function writeWhole(file: string, pieces: AsyncIterable<Buffer>, force: boolean): Promise<number> {
  const partial = `${file}.${randomBytes(6).toString("hex")}.partial`;
  const interrupt = (): never => {
    rmSync(partial, { force: true });
    process.exit(INTERRUPTED);
  };
  for (const signal of SIGNALS) process.once(signal, interrupt);
  let bytes = 0;
  try {
    const handle = await open(partial, "wx", 0o600);
    try {
      for await (const piece of pieces) {
        await handle.appendFile(piece);
        bytes += piece.length;
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    if (force) await rename(partial, file);
    else await link(partial, file);
    return bytes;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EEXIST")
      throw new CliError("conflict", `${file} is there already`, {
        next: "Give another name, or --force.",
        cause: error,
      });
    if (error instanceof CliError || !(error instanceof Error)) throw error;
    throw new CliError("usage", `cannot write ${file}: ${reasonOf(error)}`, { cause: error });
  } finally {
    await rm(partial, { force: true });
    for (const signal of SIGNALS) process.off(signal, interrupt);
  }
}

/** What a person can do something about; the operating system's words name a file that was only in the making. */
function reasonOf(error: Error): string {
  const code = "code" in error ? error.code : undefined;
  if (code === "ENOENT" || code === "ENOTDIR") return "its folder is not there";
  if (code === "EACCES" || code === "EPERM" || code === "EROFS") return "you may not write there";
  if (code === "EISDIR") return "it is a folder";
  return code === "ENOSPC" ? "the disk is full" : error.message;
}

/** A date and time, or how long ago. */
function readTime(text: string, option: string): string {
  if (/^\d+[smhd]/.test(text)) return new Date(Date.now() - readDuration(text)).toISOString();
  const date = new Date(text);
  if (!/^\d{4}-\d{2}-\d{2}/.test(text) || Number.isNaN(date.getTime()))
    throw usage(
      `${option} is no time: "${plain(text)}"`,
      `Such as ${duration(7 * 86_400_000)} (ago), 2026-05-01 or 2026-05-01T02:14:00Z`,
    );
  return date.toISOString();
}

/** `--terminal N` as the API has it. */
function terminalOption(options: Invocation["options"]): string {
  const value = options["terminal"];
  if (value === undefined) return "";
  if (!/^[1-9]\d{0,8}$/.test(String(value)))
    throw usage("--terminal is the number of the statement that opened it", "Such as 3; glass replay shows it as #3");
  return `&n=${String(value)}`;
}

function othersHint(session: string, { shown, others }: TerminalsLine): string {
  const some = others.slice(0, 20).join(", ");
  return `That was terminal ${shown}. There are ${others.length} more: glass replay ${session} --terminal ${some}`;
}

function positive(value: string | boolean | undefined, option: string): number | undefined {
  if (value === undefined) return undefined;
  const number = Number(value);
  if (!Number.isFinite(number) || number <= 0 || number > 1_000)
    throw usage(`${option} is a number above 0`, "Such as 2, or 0.5");
  return number;
}
