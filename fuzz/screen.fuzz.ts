import { openScreen, type Size } from "../server/src/recording/screen.ts";
import type { Random } from "./random.ts";

const CONTROL = /[\p{Cc}]/u;

export const seeds: readonly Uint8Array[] = [
  "\u001B[?1049h\u001B[2J\u001B[3;10r\u001B[1;31mred\u001B[0m \u001B[38;2;1;2;3mrgb\u001B[m\r\n\u001B[5;5Hhere\u001B[K",
  "\u001B]0;title\u0007\u001B]8;;http://example.com\u0007link\u001B]8;;\u0007\u001B]52;c;aGk=\u0007",
  "\u001B]133;A\u0007$ \u001B]133;B\u0007ls\u001B]133;C\u0007\r\nfile\r\n\u001B]133;D;0\u0007",
  'a\u0301\u0301€你\u200D\u1160\u202E\u009B2J\u001BP$q"p\u001B\\\u001B(0qqq\u001B(B',
].map((text) => Buffer.from(text));

export const words: readonly string[] = [
  ...["\u001B[", "\u001B]", "\u001BP", "\u001B\\", "\u0007", "\u009B", "\u001B[?1049h", "\u001B[?1049l", "\u001B#8"],
  ...["2147483647", ";;;;", "\u001B[2147483647b", "\u001B[2147483647S", "\u001B[?69h", "\u001Bc", "\u0301", "\u202E"],
];

/** Whatever is drawn, in whatever pieces and sizes, a frame is text within its bounds. */
export async function one(input: Uint8Array, random: Random): Promise<void> {
  const size = (): Size =>
    random.int(10) === 0
      ? { cols: random.int(600), rows: random.int(250) }
      : { cols: random.int(60), rows: random.int(20) };
  const screen = openScreen(size(), true);
  try {
    for (let at = 0; at < input.length;) {
      const end = at + 1 + random.int(400);
      await screen.write(input.subarray(at, end), at);
      at = end;
      if (random.int(8) === 0) screen.resize(size());
    }
    const frame = screen.frame();
    if (frame === undefined) throw new Error("the first frame is missing");
    if (frame.cols > 500 || frame.rows > 200 || frame.lines.length > frame.rows)
      throw new Error("a frame is too large");
    for (const { runs } of frame.lines) {
      if (runs.some(({ text }) => CONTROL.test(text))) throw new Error("a frame holds a control character");
      const length = runs.reduce((sum, { text }) => sum + text.length, 0);
      if (length > frame.cols * 20) throw new Error(`a row of ${frame.cols} cells holds ${length} characters`);
    }
    for (const { text } of screen.shown(true)) {
      if (/[\u0000-\u0009\u000B-\u001F\u007F-\u009F]/.test(text)) throw new Error("a line holds a control character");
    }
  } finally {
    screen.close();
  }
}
