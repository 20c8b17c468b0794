import type { ScreenLine, ScreenRun } from "@glasskey/contract";
import { plain } from "./output.ts";

/** Draws another terminal's screen into this one. */
export interface Painter {
  draw(frame: ScreenLine): void;
  /** The line at the bottom, which is ours. */
  status(text: string): void;
  /** Puts this terminal back to what it was. Idempotent. */
  leave(): void;
}

type Sink = Pick<NodeJS.WriteStream, "write" | "columns" | "rows">;

const ENTER = "\u001B[?1049h\u001B[?7l\u001B[2J"; // another screen; what is too long is cut at the edge
const LEAVE = "\u001B[0m\u001B[?7h\u001B[?25h\u001B[?1049l";
const MAX_ROWS = 200;
const MAX_ROW_CHARACTERS = 2_000;

/**
 * What comes from the server is cells: text and colours. Every escape sequence that is written is made here, and text is
 * stripped of all that is not text, so that neither the watched program nor a server can drive this terminal.
 * A screen that is larger is cut; the rows around the cursor are shown.
 */
export function openPainter(sink: Sink, colour: boolean): Painter {
  let rows: (readonly ScreenRun[])[] = [];
  let size = { cols: 0, rows: 0 };
  let cursor = { x: 0, y: 0 };
  let line = "";
  let from = 0;
  let painted = "";
  let left = false;
  sink.write(ENTER);

  const room = (): number => Math.max(1, (sink.rows || 24) - 1);
  const paintRow = (y: number): string =>
    y - from < 0 || y - from >= room()
      ? ""
      : `\u001B[${y - from + 1};1H${(rows[y] ?? []).map((run) => paintRun(run, colour)).join("")}\u001B[0m\u001B[K`;
  const paintStatus = (): string =>
    `\u001B[${room() + 1};1H\u001B[7m${plain(line).slice(0, Math.max(1, (sink.columns || 80) - 1))}\u001B[0m\u001B[K`;
  const paintCursor = (): string =>
    `\u001B[${cursor.y - from + 1};${Math.min(cursor.x + 1, sink.columns || 80)}H\u001B[?25h`;

  return {
    draw(frame) {
      if (left) return;
      if (frame.whole) rows = [];
      for (const { y, runs } of frame.lines) if (Number.isInteger(y) && y >= 0 && y < MAX_ROWS) rows[y] = runs;
      cursor = { x: whole(frame.cursor.x), y: whole(frame.cursor.y) };
      size = { cols: whole(frame.cols), rows: whole(frame.rows) };
      from = Math.max(0, Math.min(size.rows - room(), Math.max(0, cursor.y - room() + 1)));
      const layout = `${from} ${room()} ${sink.columns}`;
      const all = frame.whole || layout !== painted;
      painted = layout;
      const changed = all ? Array.from({ length: room() }, (_, i) => from + i) : frame.lines.map(({ y }) => y);
      sink.write(`\u001B[?25l${changed.map(paintRow).join("")}${all ? paintStatus() : ""}${paintCursor()}`);
    },
    status(text) {
      line = text;
      if (!left) sink.write(`\u001B[?25l${paintStatus()}${paintCursor()}`);
    },
    leave() {
      if (!left) sink.write(LEAVE);
      left = true;
    },
  };
}

function paintRun(run: ScreenRun, colour: boolean): string {
  const codes = ["0"];
  if (run.bold === true) codes.push("1");
  if (run.dim === true) codes.push("2");
  if (run.italic === true) codes.push("3");
  if (run.underline === true) codes.push("4");
  if (run.inverse === true) codes.push("7");
  if (colour) codes.push(...colourCodes(38, run.fg), ...colourCodes(48, run.bg));
  return `\u001B[${codes.join(";")}m${plain(run.text).slice(0, MAX_ROW_CHARACTERS)}`;
}

/** SGR codes for a palette number or `#rrggbb`; none for anything else. */
function colourCodes(layer: 38 | 48, colour: unknown): string[] {
  if (typeof colour === "number" && Number.isInteger(colour) && colour >= 0 && colour <= 255)
    return [`${layer};5;${colour}`];
  const rgb = typeof colour === "string" ? /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/.exec(colour) : null;
  if (rgb === null) return [];
  return [
    `${layer};2;${rgb
      .slice(1)
      .map((part) => Number.parseInt(part, 16))
      .join(";")}`,
  ];
}

function whole(value: unknown): number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 1_000 ? value : 0;
}
