import { existsSync } from "node:fs";
import fc from "fast-check";
import { expect, test } from "vitest";
import { RECORD } from "../targets/target.ts";
import type { StoredRecord } from "./record.ts";
import { type Frame, openScreen } from "./screen.ts";
import { startScreenThread } from "./screen-thread.ts";
import { numbered, programOutput } from "./testing/terminal.ts";

const rowsOf = (frame: Frame | undefined): string[] =>
  (frame?.lines ?? []).map(({ runs }) => runs.map(({ text }) => text).join(""));

async function draw(bytes: Buffer | string, size = { cols: 20, rows: 5 }): Promise<Frame> {
  const screen = openScreen(size);
  await screen.write(Buffer.from(bytes));
  const frame = screen.frame() as Frame;
  screen.close();
  return frame;
}

const output = (seq: number, bytes: Buffer | string): StoredRecord => ({
  ...{ session: "se_0123456789ab", seq, kind: RECORD.terminalOutput, timeUs: seq * 50_000 },
  payload: numbered(bytes),
});

test("a frame has text, colours and the cursor, and later ones only the rows that changed", async () => {
  const screen = openScreen({ cols: 20, rows: 5 });
  await screen.write(Buffer.from("plain \x1b[1;31mred\x1b[0m \x1b[48;2;1;2;3mrgb\x1b[0m\r\nzwei"));
  expect(screen.frame()).toEqual({
    ...{ cols: 20, rows: 5, cursor: { x: 4, y: 1 }, whole: true },
    lines: [
      {
        y: 0,
        runs: [{ text: "plain " }, { text: "red", bold: true, fg: 1 }, { text: " " }, { text: "rgb", bg: "#010203" }],
      },
      { y: 1, runs: [{ text: "zwei" }] },
    ],
  });
  expect(screen.frame()).toBeUndefined();
  await screen.write(Buffer.from("\x1b[1;1HP"));
  expect(screen.frame()).toMatchObject({ whole: false, lines: [{ y: 0 }], cursor: { x: 1, y: 0 } });
  screen.resize({ cols: 30, rows: 3 });
  expect(screen.frame()).toMatchObject({ whole: true, cols: 30, rows: 3 });
  screen.close();
});

test("characters that are cut between two writes are drawn whole, and bytes that are none as U+FFFD", async () => {
  const screen = openScreen({ cols: 20, rows: 2 });
  const bytes = Buffer.from("a€你b");
  for (const byte of bytes) await screen.write(Buffer.from([byte]));
  await screen.write(Buffer.from([0xff]));
  expect(rowsOf(screen.frame())).toEqual(["a€你b\uFFFD"]);
  screen.close();
});

test("zero, negative and huge sizes are brought to what can be drawn", async () => {
  for (const [cols, rows] of [
    [0, 0],
    [-5, -5],
    [1e9, 1e9],
    [Number.NaN, Number.POSITIVE_INFINITY],
  ] as const) {
    const screen = openScreen({ cols, rows });
    await screen.write(Buffer.from("x".repeat(1_000)));
    screen.resize({ cols: rows, rows: cols });
    const frame = screen.frame() as Frame;
    expect(frame.cols).toBeGreaterThanOrEqual(2);
    expect(frame.cols).toBeLessThanOrEqual(500);
    expect(frame.rows).toBeGreaterThanOrEqual(1);
    expect(frame.rows).toBeLessThanOrEqual(200);
    screen.close();
  }
});

test("numbers without end in escape sequences do not make work or memory without end", async () => {
  const huge = "2147483647";
  const bombs = ["b", "L", "M", "S", "T", "I", "Z", "P", "@", "X", "E", "A", "B", "C", "D", "G", "d"];
  for (const final of bombs) {
    const frame = await draw(`ok\x1b[${huge}${final}${`\x1b[${huge};${huge}${final}`.repeat(50)}`);
    expect(frame.rows).toBe(5);
  }
});

test("characters that join the one before do not gather in one cell", async () => {
  const frame = await draw(`e${"\u0301".repeat(200_000)}`);
  expect(rowsOf(frame)[0]?.length).toBeLessThanOrEqual(9);
  const screen = openScreen({ cols: 20, rows: 5 });
  await screen.write(Buffer.from("e"));
  for (let i = 0; i < 500; i++) await screen.write(Buffer.from("\u0301\u200D\u1160"));
  expect(rowsOf(screen.frame())[0]?.length).toBeLessThanOrEqual(9);
  screen.close();
});

test("strings for the terminal itself, titles, links and the clipboard leave nothing on the screen", async () => {
  const evil = [
    "\x1b]0;title\x07",
    "\x1b]52;c;cm0gLXJmIC8K\x07",
    "\x1b]8;;http://evil.example/\x07link\x1b]8;;\x07",
    '\x1bP$q"p\x1b\\',
    "\x1b[6n\x1b[c\x1b[>c\x1b[?1003h\x1b[?2004h\x1b[21t",
    `\x1b]2;${"x".repeat(300_000)}\x07`,
    `\x1bP1;1|${"x".repeat(300_000)}\x1b\\`,
  ].join("");
  const frame = await draw(`${evil}done`);
  expect(rowsOf(frame)).toEqual(["linkdone"]);
});

test("whatever bytes a program writes, a frame holds nothing but text", { timeout: 120_000 }, async () => {
  const piece = fc.oneof(
    fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
    fc
      .constantFrom("\x1b[", "\x1b]", "\x1bP", "\x9b", "\x1b\\", "\x07", "\x1b[?1049h", "\u202e", "\x1b(0")
      .map((text) => Buffer.from(text)),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 20 }), async (pieces) => {
      const frame = await draw(Buffer.concat(pieces));
      for (const row of rowsOf(frame)) expect(row).not.toMatch(/[\p{Cc}]/u);
      expect(frame.lines.length).toBeLessThanOrEqual(frame.rows);
    }),
    { numRuns: 150 },
  );
});

test("lines are told as they stood on the screen, once, with the record that first showed them", async () => {
  await using thread = startScreenThread({ do: "lines" });
  const told = await thread.feed(
    [
      output(1, "$ l"),
      output(2, "s -l"),
      output(3, "\r\nfi\x1b[31mle\x1b[0m.txt\r\n"),
      output(4, "typo\b\b\b\bfixed\r\n"),
      output(5, "\x1b[?1049h\x1b[2J\x1b[3;3Hfull screen"),
      output(6, "\x1b[2J\x1b[?1049l"),
      output(7, `${"w".repeat(100)}\r\n`),
    ],
    { last: true },
  );
  expect(told.map(({ text, stamp }) => [stamp, text.trim()])).toEqual([
    [1, "$ ls -l"],
    [3, "file.txt"],
    [4, "fixed"],
    [5, "full screen"],
    [7, "w".repeat(100)],
  ]);
});

test("however many lines one record shows, the last one is told too", { timeout: 120_000 }, async () => {
  await using thread = startScreenThread({ do: "lines" });
  const told = await thread.feed([output(1, `${"x\r\n".repeat(50_000)}needle\r\n`)], { last: true });
  expect(told).toHaveLength(50_001);
  expect(told.at(-1)?.text).toBe("needle");
});

test("prompt marks of a shell (OSC 133) tell its commands", async () => {
  await using thread = startScreenThread({ do: "lines" });
  const told = await thread.feed(
    [output(1, "\x1b]133;A\x07$ \x1b]133;B\x07rm -rf /tm"), output(2, "p/x\x1b]133;C\x07\r\n\x1b]133;D;0\x07")],
    { last: true },
  );
  expect(told.filter(({ what }) => what === "command").map(({ text }) => text)).toEqual(["rm -rf /tmp/x"]);
});

test("output that is made to be slow ends the thread that draws it, not the server", { timeout: 120_000 }, async () => {
  await using thread = startScreenThread({ do: "draw" }, 1_500);
  const slow = "\x1b[5S\x1b[5L".repeat(8_000_000 / 8);
  let alive = 0;
  const timer = setInterval(() => alive++, 10);
  await expect(thread.feed([output(1, slow)])).rejects.toMatchObject({ code: "usage" });
  clearInterval(timer);
  expect(alive).toBeGreaterThan(5); // this thread went on
  await expect(thread.feed([output(2, "x")])).rejects.toMatchObject({ code: "usage" });
});

test("an expression that never ends is stopped", { timeout: 120_000 }, async () => {
  await using thread = startScreenThread({ do: "search", pattern: { text: "(a+)+$", regex: true } }, 1_500);
  await expect(thread.feed([output(1, `${"a".repeat(79)}b\r\n`)])).rejects.toMatchObject({
    code: "usage",
    message: "this expression takes too long",
  });
});

test.skipIf(!existsSync("/usr/bin/vi") || !existsSync("/usr/bin/python3"))(
  "the screen of a real editor is what a real terminal shows",
  { timeout: 60_000 },
  async () => {
    const pieces = await programOutput(["vi", "-u", "NONE", "-n", "--", "/etc/hostname"], {
      ...{ cols: 60, rows: 10 },
      input: "ihello\x1b:q!\r",
    });
    await using thread = startScreenThread({ do: "lines" });
    const told = await thread.feed(
      pieces.map((piece, i) => output(i + 1, piece)),
      { last: true },
    );
    expect(told.map(({ text }) => text).join("\n")).toContain("hello");
  },
);
