import type { ScreenLine } from "@glasskey/contract";
import fc from "fast-check";
import { expect, test } from "vitest";
import { openPainter } from "./painter.ts";

const OURS = /\u001B\[(?:\d*(?:;\d+)*[mHJK]|\?(?:1049|7|25)[hl])/g;

function paint(frames: readonly ScreenLine[], { columns = 80, rows = 24, colour = true } = {}): string {
  let written = "";
  const sink = { columns, rows, write: (text: string | Uint8Array) => ((written += String(text)), true) };
  const painter = openPainter(sink, colour);
  for (const frame of frames) painter.draw(frame);
  painter.leave();
  painter.leave();
  return written;
}

const frame = (changes: Partial<ScreenLine> = {}): ScreenLine => ({
  ...{ what: "screen", n: 1, at: "2026-01-01T00:00:00.000Z", cols: 80, rows: 24, cursor: { x: 0, y: 0 }, whole: true },
  lines: [],
  ...changes,
});

test("a screen is drawn with its colours, and this terminal is put back once", () => {
  const shown = paint([frame({ lines: [{ y: 1, runs: [{ text: "hot", bold: true, fg: 1, bg: "#0a0b0c" }] }] })]);
  expect(shown).toContain("\u001B[2;1H\u001B[0;1;38;5;1;48;2;10;11;12mhot");
  expect(shown.split("\u001B[?1049l")).toHaveLength(2);
  expect(shown.endsWith("\u001B[?1049l")).toBe(true);
  expect(paint([frame({ lines: [{ y: 0, runs: [{ text: "x", fg: 1 }] }] })], { colour: false })).toContain(
    "\u001B[0mx",
  );
});

test("a screen that is higher than this terminal is shown around its cursor", () => {
  const lines = Array.from({ length: 50 }, (_, y) => ({ y, runs: [{ text: `row ${y};` }] }));
  const shown = paint([frame({ rows: 50, cursor: { x: 0, y: 40 }, lines })], { rows: 11 });
  expect(shown).toContain("row 40;");
  expect(shown).not.toContain("row 20;");
  expect(shown).not.toContain("row 45;");
});

test("whatever a server sends, every escape sequence that is written is one of ours", () => {
  const nasty = fc.oneof(
    fc.string({ unit: "binary", maxLength: 30 }),
    fc.constantFrom("\u001B]52;c;aGk=\u0007", "\u009B2J", "\u001B[c", "\r\n", "\u202E", "\u0090"),
  );
  const number = fc.oneof(fc.integer(), fc.constantFrom(Number.NaN, -1, 1e9, 0.5));
  const colour = fc.oneof(number, nasty, fc.constant("#ffffff;5"));
  const run = fc.record({ text: nasty, fg: colour, bg: colour });
  fc.assert(
    fc.property(
      fc.array(fc.record({ y: number, runs: fc.array(run, { maxLength: 3 }) }), { maxLength: 5 }),
      number,
      number,
      (lines, x, y) => {
        const shown = paint([frame({ lines, cursor: { x, y }, cols: x, rows: y })]);
        expect(shown.replaceAll(OURS, "")).not.toMatch(/[\p{Cc}\p{Cf}]/u);
      },
    ),
  );
});
