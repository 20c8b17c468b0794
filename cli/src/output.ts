import { stripVTControlCharacters } from "node:util";

/** How a verb speaks: `--json` gives exactly one JSON value on standard output; else text for a person. */
export interface Output {
  readonly json: boolean;
  readonly tty: boolean;
  /** One line for a person on standard output; nothing with `--json`. Whatever text is in it, it stays one line of text. */
  say(line?: string): void;
  /** Several of them. */
  sayAll(lines: readonly string[]): void;
  /** A line on standard error, also with `--json`: progress, hints. */
  hint(line: string): void;
  /** The value of `--json`. */
  value(value: unknown): void;
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  green(text: string): string;
  yellow(text: string): string;
}

export function createOutput(json: boolean): Output {
  const tty = process.stdout.isTTY;
  const colour = tty && process.env["NO_COLOR"] === undefined && process.env["TERM"] !== "dumb";
  const paint = (code: number, off: number) => (text: string) =>
    colour ? `\u001B[${code}m${text}\u001B[${off}m` : text;
  return {
    ...{ json, tty },
    say: (line = "") => void (json || process.stdout.write(`${harmless(line)}\n`)),
    sayAll: (lines) => {
      for (const line of lines) void (json || process.stdout.write(`${harmless(line)}\n`));
    },
    hint: (line) => void process.stderr.write(`${harmless(line)}\n`),
    value: (value) => void (json && process.stdout.write(`${jsonText(value, 2)}\n`)),
    ...{ bold: paint(1, 22), dim: paint(2, 22), red: paint(31, 39), green: paint(32, 39), yellow: paint(33, 39) },
  };
}

/** Our own colours pass; everything else that would not be plain text on a terminal is shown as text. */
function harmless(line: string): string {
  return line
    .split(/(\u001B\[(?:1|2|22|31|32|33|39)m)/)
    .map((part, i) => (i % 2 === 1 ? part : plain(part)))
    .join("");
}

/** Marks what goes on from the line above. */
const GOES_ON = "        │ ";

/**
 * A beginning of ours, and what a stranger wrote: its lines, and what a terminal would break into further ones, go on below
 * behind a mark. So nothing in it can pass for a line of ours.
 */
export function quoted(
  out: Output,
  head: string,
  text: string,
  paint: (text: string) => string = (part) => part,
  columns = out.tty ? (process.stdout.columns ?? Infinity) : Infinity,
): string[] {
  const room = (begin: string): number => Math.max(NARROWEST, columns - visible(begin));
  const [first = "", ...rest] = text.split(/\r?\n/).map(plain);
  const [begin = "", ...more] = broken(first, room(head), room(GOES_ON));
  return [
    `${head}${paint(begin)}`,
    ...[...more, ...rest.flatMap((line) => broken(line, room(GOES_ON)))].map((line) => out.dim(GOES_ON) + paint(line)),
  ];
}

/** Parts that fit into so many cells each. What may take two cells counts as two. */
function broken(text: string, firstCells: number, cells = firstCells): string[] {
  if (text.length * 2 <= firstCells) return [text];
  const parts: string[] = [];
  let [part, room] = ["", firstCells];
  for (const char of text) {
    const width = (char.codePointAt(0) ?? 0) < 0x11_00 ? 1 : 2;
    if (width > room) {
      parts.push(part);
      [part, room] = ["", cells];
    }
    part += char;
    room -= width;
  }
  return [...parts, part];
}

/** How wide lines may be: the terminal, or what `COLUMNS` says of one at the end of a pipe; without either, any width. */
function terminalColumns(): number {
  const wanted = Number(process.env["COLUMNS"] ?? "");
  return process.stdout.columns ?? (wanted >= 40 ? wanted : Infinity);
}

const visible = (text: string): number => stripVTControlCharacters(text).length;

/**
 * Columns aligned by what is visible; the last one runs free and, where it would pass the terminal's edge, goes on below
 * its own beginning. @returns the lines of each row.
 */
export function table(rows: readonly (readonly string[])[], columns = terminalColumns()): string[][] {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => visible(row[i] ?? ""))));
  return rows.map((row) => {
    const last = row.length - 1;
    const head = row
      .slice(0, last)
      .map((cell, i) => cell + " ".repeat((widths[i] ?? 0) - visible(cell) + 2))
      .join("");
    const indent = visible(head);
    const text = row[last] ?? "";
    // No room beside a wide table: below it.
    if (columns - indent < NARROWEST && visible(text) > columns - indent)
      return [head.trimEnd(), ...paragraph(text, 6)];
    const lines = wrap(text, columns - indent);
    return lines.map((line, i) => (i === 0 ? head + line : " ".repeat(indent) + line).trimEnd());
  });
}

/** Text that begins at `indent` and goes on two further in, where it would pass the terminal's edge. */
export function paragraph(text: string, indent: number, columns = terminalColumns()): string[] {
  return wrap(text, columns - indent - 2).map((line, i) => " ".repeat(i === 0 ? indent : indent + 2) + line);
}

const NARROWEST = 12; // a narrower column is harder to read than a line that the terminal breaks

/** Breaks at spaces. A word longer than the width stays whole: it is copied more often than it is read. */
function wrap(text: string, width: number): string[] {
  if (width < NARROWEST || visible(text) <= width) return [text];
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && visible(line) + 1 + visible(word) > width) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}

/**
 * A value as JSON. What JSON leaves as it is although a terminal takes it for more than text is escaped: it means the same,
 * and whoever looks at it on a terminal sees all of it.
 */
export function jsonText(value: unknown, indent?: number): string {
  return JSON.stringify(value, null, indent).replaceAll(UNSEEN, (char) =>
    char === "\n"
      ? char // JSON's own, between the values
      : Array.from({ length: char.length }, (_, i) => `\\u${char.charCodeAt(i).toString(16).padStart(4, "0")}`).join(
          "",
        ),
  );
}

/** Control characters, and the invisible ones that turn or hide text: Unicode's Cc, Cf, and line and paragraph separators. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/** Text from elsewhere as one line that a terminal takes for nothing but text: a line end shows as ⏎, other controls as codes. */
export function plain(text: string): string {
  return text
    .replaceAll(/\r?\n/g, "⏎")
    .replaceAll("\t", " ")
    .replaceAll(UNSEEN, (char) => `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`);
}

/** `02:31:07` on this machine's clock, with the date when it is not today. */
export function clock(time: string): string {
  const date = new Date(time);
  const day =
    date.toDateString() === new Date().toDateString()
      ? ""
      : `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} `;
  return `${day}${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

const two = (n: number): string => String(n).padStart(2, "0");

/** `1h30m`, `45m`, `59s`. */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const parts = [
    Math.floor(seconds / 86_400),
    Math.floor(seconds / 3600) % 24,
    Math.floor(seconds / 60) % 60,
    seconds % 60,
  ];
  return parts.map((n, i) => (n === 0 ? "" : `${n}${"dhms"[i]}`)).join("") || "0s";
}

export function bytes(n: number): string {
  if (n < 1024) return `${n} B`;
  const unit = Math.min(4, Math.floor(Math.log2(n) / 10));
  return `${(n / 1024 ** unit).toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}
