import { stripVTControlCharacters } from "node:util";

/** Text for a person at a terminal: wrapped, aligned, coloured only where there is a terminal to colour. */
export interface Layout {
  /** One line; text from files in it stays text. */
  say(line?: string): void;
  /** Text that begins at `indent`, and goes on there where it would pass the edge. */
  block(text: string, indent: number): void;
  /** Columns by what is visible; the last one goes on below its own beginning. */
  table(rows: readonly (readonly string[])[], indent: number): void;
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  green(text: string): string;
  yellow(text: string): string;
}

const DEFAULT_COLUMNS = 80;
const NARROWEST = 24; // a narrower last column is harder to read than one that starts on a line of its own

/** @param write gets whole lines with their ends. @param columns of the terminal, where there is one. */
export function createLayout(write: (text: string) => void, columns?: number, colour = false): Layout {
  const width = Math.max(40, columns ?? DEFAULT_COLUMNS);
  const paint = (code: number, off: number) => (text: string) =>
    colour ? `\u001B[${code}m${text}\u001B[${off}m` : text;
  const say = (line = ""): void => write(`${harmless(line).trimEnd()}\n`);
  const block = (text: string, indent: number): void => {
    for (const line of wrap(text, width - indent)) say(" ".repeat(indent) + line);
  };
  return {
    ...{ say, block },
    table: (rows, indent) => {
      const last = Math.max(0, ...rows.map((row) => row.length - 1));
      const widths = Array.from({ length: last }, (_, i) => Math.max(...rows.map((row) => visible(row[i] ?? ""))));
      const room = width - indent - widths.reduce((sum, column) => sum + column + 2, 0);
      for (const row of rows) {
        const head = widths.map((column, i) => pad(row[i] ?? "", column + 2)).join("");
        if (room < NARROWEST) {
          say(" ".repeat(indent) + head);
          block(row[last] ?? "", indent + 4);
          continue;
        }
        const [first = "", ...more] = wrap(row[last] ?? "", room);
        say(" ".repeat(indent) + head + first);
        for (const line of more) say(" ".repeat(indent + visible(head)) + line);
      }
    },
    ...{ bold: paint(1, 22), dim: paint(2, 22), red: paint(31, 39), green: paint(32, 39), yellow: paint(33, 39) },
  };
}

/** Control characters, and the invisible ones that turn or hide text: Unicode's Cc, Cf, and line and paragraph separators. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/** Our own colours pass; everything else that is not plain text is shown as its code. */
function harmless(line: string): string {
  return line
    .split(/(\u001B\[(?:1|2|22|31|32|33|39)m)/)
    .map((part, i) =>
      i % 2 === 1 ? part : part.replaceAll(UNSEEN, (char) => `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`),
    )
    .join("");
}

function visible(text: string): number {
  return stripVTControlCharacters(text).length;
}

function pad(text: string, width: number): string {
  return text + " ".repeat(Math.max(0, width - visible(text)));
}

/** Breaks at spaces. A word longer than the width stays whole: it is copied more often than it is read. */
function wrap(text: string, width: number): readonly string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && visible(line) + 1 + visible(word) > width) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}
