import headless, { type IBufferCell, type Terminal } from "@xterm/headless";
import { GlassError } from "../core/errors.ts";

/** The size of a terminal in cells. */
export interface Size {
  readonly cols: number;
  readonly rows: number;
}

/**
 * Cells of one row that look alike: text, and how it looks. `fg` and `bg` are a palette number 0 to 255 or `#rrggbb`;
 * undefined is the terminal's own.
 */
export interface Run {
  readonly text: string;
  readonly bold?: true;
  readonly dim?: true;
  readonly italic?: true;
  readonly underline?: true;
  readonly inverse?: true;
  readonly fg?: number | string;
  readonly bg?: number | string;
}

/** What a screen shows now: text and colours, never an escape sequence. */
export interface Frame extends Size {
  readonly cursor: { readonly x: number; readonly y: number };
  /** Whether rows that are missing are as they were in the frame before. */
  readonly whole: boolean;
  readonly lines: readonly { readonly y: number; readonly runs: readonly Run[] }[];
}

/** A line of text that stood on the screen, or a command that the shell marked with OSC 133. */
export interface Shown {
  readonly what: "line" | "command";
  readonly text: string;
  /** What {@link Screen.write} was given with the output that first showed it. */
  readonly stamp: number;
}

export interface Screen {
  /** Bytes of the program's output, and a number to tell where shown lines came from. Resolves when they are drawn. */
  write(bytes: Uint8Array, stamp?: number): Promise<void>;
  /** Any numbers: a size is brought to 2 × 1 at least and 500 × 200 at most. */
  resize(size: Size): void;
  /** Rows that changed since the last frame; all of them after a resize, at first and on request. Undefined: none. */
  frame(whole?: boolean): Frame | undefined;
  /**
   * Lines that were shown and are complete: left with a line feed, or replaced by something else. A line that grows is told
   * once, when it is done.
   * @param all also those that stand there still.
   */
  shown(all?: boolean): Shown[];
  close(): void;
}

export const DEFAULT_SIZE: Size = { cols: 80, rows: 24 };
const MAX_SIZE: Size = { cols: 500, rows: 200 };
/** Output is drawn in pieces of this size; what changed is looked at between them. */
const PIECE_BYTES = 4 << 10;
/** Only for {@link Screen.shown}: what one piece may scroll away before it is looked at. */
const SCROLLBACK = 100;
const MAX_JOINED = 8;
const MAX_SHOWN = 20_000;
const MAX_COMMAND_LENGTH = 4_096;
/** Lines that were told lately and are not told again while they stay where they are. */
const REMEMBERED = 1_000;
/** Characters that take no cell of their own: they would gather in one cell without end. */
const JOINED = new RegExp(`([\\p{M}\\p{Cf}\\u1160-\\u11FF]{${MAX_JOINED}})[\\p{M}\\p{Cf}\\u1160-\\u11FF]+`, "gu");
const JOINED_TAIL = new RegExp(`[\\p{M}\\p{Cf}\\u1160-\\u11FF]{1,${MAX_JOINED}}$`, "u");
/** CSI sequences whose work grows with their number: a number above what the screen has is no program's. */
const COUNTED = ["L", "M", "S", "T", "I", "Z"];

/**
 * A terminal without a window. Untrusted output: it answers nothing, keeps no scrollback, no titles and no links, and
 * its memory is bounded by its size. Its time is not: run it in a thread of its own (screen-thread.ts).
 * @param lines whether {@link Screen.shown} is wanted.
 */
export function openScreen(size: Size = DEFAULT_SIZE, lines = false): Screen {
  const terminal = new headless.Terminal({
    ...clamped(size),
    ...{
      allowProposedApi: true,
      scrollback: lines ? SCROLLBACK : 0,
      logLevel: "off",
      convertEol: false,
      windowOptions: {},
    },
  });
  const { parser } = terminal;
  for (const final of COUNTED) {
    parser.registerCsiHandler({ final }, (params) => numberOf(params) > terminal.rows + terminal.cols);
  }
  parser.registerCsiHandler({ final: "b" }, (params) => numberOf(params) > terminal.cols * terminal.rows);
  parser.registerOscHandler(8, () => true); // links are kept until their lines are gone
  parser.registerOscHandler(52, () => true);

  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const told: Shown[] = [];
  const remembered = new Set<string>();
  /** Text of each row and where it came from, as it stood when it was last looked at. */
  let standing: { text: string; stamp: number }[] = [];
  let stamp = 0;
  let drawn: string[] = [];
  let drawnCursor = "";
  let everything = true;
  let joinedTail = "";

  const tell = (what: Shown["what"], text: string, from: number): void => {
    if (text.trim() !== "" && told.length < MAX_SHOWN) told.push({ what, text: text.trimEnd(), stamp: from });
  };

  const remember = (text: string): void => {
    remembered.delete(text);
    remembered.add(text);
    const [oldest] = remembered;
    if (remembered.size > REMEMBERED && oldest !== undefined) remembered.delete(oldest);
  };

  /** The line that the cursor left, with what was wrapped into it. */
  const leaveLine = (): void => {
    const { active } = terminal.buffer;
    const parts: string[] = [];
    for (let y = active.baseY + active.cursorY - 1; y >= 0; y--) {
      const line = active.getLine(y);
      if (line === undefined) break;
      parts.unshift(line.translateToString(parts.length === 0));
      if (!line.isWrapped) break;
    }
    const text = parts.join("");
    const before = standing[active.baseY + active.cursorY - parts.length];
    const grew = before !== undefined && before.text !== "" && text.startsWith(before.text);
    tell("line", text, grew ? before.stamp : stamp);
    for (const part of parts) remember(part.trimEnd());
  };

  const settle = ({ text, stamp: from }: { text: string; stamp: number }): void => {
    if (remembered.has(text)) return;
    tell("line", text, from);
    remember(text);
  };

  /** What a program drew by moving the cursor is complete when something else stands there. */
  const look = (): void => {
    const { active } = terminal.buffer;
    const now: typeof standing = [];
    for (let y = 0; y < active.length; y++) {
      const text = active.getLine(y)?.translateToString(true) ?? "";
      const before = standing[y];
      const grows = before !== undefined && text.startsWith(before.text) && before.text !== "";
      if (before !== undefined && !grows) settle(before);
      now.push(grows ? { text, stamp: before.stamp } : { text, stamp });
    }
    for (const gone of standing.slice(active.length)) settle(gone);
    standing = now;
  };

  let command: { row: number; x: number } | undefined;
  if (lines) {
    terminal.onLineFeed(leaveLine);
    parser.registerOscHandler(133, (data) => {
      const { active } = terminal.buffer;
      if (data.startsWith("B")) command = { row: active.cursorY, x: active.cursorX };
      if (data.startsWith("C") && command !== undefined) {
        const text: string[] = [];
        for (let y = command.row; y < active.cursorY || y === command.row; y++) {
          const line = active.getLine(active.baseY + y)?.translateToString(true, y === command.row ? command.x : 0);
          text.push(line ?? "");
        }
        tell("command", text.join("\n").slice(0, MAX_COMMAND_LENGTH), stamp);
        command = undefined;
      }
      return true;
    });
  }

  const decode = (bytes: Uint8Array): string => {
    const text = decoder.decode(bytes, { stream: true });
    const kept = (joinedTail + text).replaceAll(JOINED, "$1").slice(joinedTail.length);
    joinedTail = JOINED_TAIL.exec(joinedTail + kept)?.[0] ?? "";
    return kept;
  };

  return {
    async write(bytes, from = 0) {
      const pieceBytes = Math.min(PIECE_BYTES, terminal.cols * (terminal.rows + SCROLLBACK));
      for (let at = 0; at < bytes.length; at += pieceBytes) {
        const done = Promise.withResolvers<void>();
        stamp = from;
        terminal.write(decode(bytes.subarray(at, at + pieceBytes)), () => {
          if (lines) look();
          done.resolve();
        });
        if (at + pieceBytes >= bytes.length) await done.promise; // pieces are drawn in order
      }
    },
    resize(wanted) {
      const { cols, rows } = clamped(wanted);
      terminal.resize(cols, rows);
      everything = true;
    },
    frame(whole = false) {
      const { active } = terminal.buffer;
      const cursor = { x: Math.min(active.cursorX, terminal.cols - 1), y: active.cursorY };
      const cell = active.getNullCell();
      const rows = Array.from({ length: terminal.rows }, (_, y) => ({ y, runs: runsOf(terminal, y, cell) }));
      const encoded = rows.map(({ runs }) => JSON.stringify(runs));
      const all = everything || whole;
      const changed = rows.filter(({ y }) => (all ? encoded[y] !== "[]" : encoded[y] !== drawn[y]));
      const at = `${cursor.x},${cursor.y}`;
      if (!all && changed.length === 0 && at === drawnCursor) return undefined;
      [drawn, drawnCursor, everything] = [encoded, at, false];
      return { cols: terminal.cols, rows: terminal.rows, cursor, whole: all, lines: changed };
    },
    shown(all = false) {
      if (all) for (const row of standing.splice(0)) settle(row);
      return told.splice(0);
    },
    close: () => terminal.dispose(),
  };
}

/** A terminal record's payload: JSON `{ cols, rows }`. @returns the default for numbers that are none. */
export function clamped(size: { cols: unknown; rows: unknown }): Size {
  const within = (value: unknown, least: number, most: number, otherwise: number): number =>
    typeof value === "number" && Number.isFinite(value)
      ? Math.min(most, Math.max(least, Math.floor(value)))
      : otherwise;
  return {
    cols: within(size.cols, 2, MAX_SIZE.cols, DEFAULT_SIZE.cols),
    rows: within(size.rows, 1, MAX_SIZE.rows, DEFAULT_SIZE.rows),
  };
}

/** Said when a terminal's output cannot be drawn within its limits. */
export function undrawable(cause?: unknown): GlassError {
  return new GlassError("usage", "the terminal's output takes too long or too much memory to draw", {
    next: "Export it as it is: glass export SESSION --format asciicast -o FILE",
    cause,
  });
}

function numberOf(params: readonly (number | number[])[]): number {
  const [first] = params;
  return typeof first === "number" ? first : 0;
}

function runsOf(terminal: Terminal, y: number, cell: IBufferCell): Run[] {
  const { active } = terminal.buffer;
  const line = active.getLine(active.baseY + y);
  if (line === undefined) return [];
  const runs: { key: string; style: Omit<Run, "text">; text: string }[] = [];
  for (let x = 0; x < Math.min(line.length, terminal.cols); x++) {
    if (line.getCell(x, cell) === undefined || cell.getWidth() === 0) continue; // the second half of a wide character
    const style = styleOf(cell);
    const key = JSON.stringify(style);
    const text = cell.isInvisible() === 0 && cell.getChars() !== "" ? cell.getChars() : " ".repeat(cell.getWidth());
    const last = runs.at(-1);
    if (last?.key === key) last.text += text;
    else runs.push({ key, style, text });
  }
  const last = runs.at(-1);
  if (last?.key === "{}") last.text = last.text.trimEnd();
  return runs.filter(({ text }) => text !== "").map(({ style, text }) => ({ text, ...style }));
}

function styleOf(cell: IBufferCell): Omit<Run, "text"> {
  const fg = colourOf(cell.isFgDefault(), cell.isFgRGB(), cell.getFgColor());
  const bg = colourOf(cell.isBgDefault(), cell.isBgRGB(), cell.getBgColor());
  return {
    ...(cell.isBold() === 0 ? {} : { bold: true }),
    ...(cell.isDim() === 0 ? {} : { dim: true }),
    ...(cell.isItalic() === 0 ? {} : { italic: true }),
    ...(cell.isUnderline() === 0 ? {} : { underline: true }),
    ...(cell.isInverse() === 0 ? {} : { inverse: true }),
    ...(fg === undefined ? {} : { fg }),
    ...(bg === undefined ? {} : { bg }),
  };
}

function colourOf(isDefault: boolean, isRgb: boolean, value: number): number | string | undefined {
  if (isDefault) return undefined;
  return isRgb ? `#${value.toString(16).padStart(6, "0")}` : value;
}
