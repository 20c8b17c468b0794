import fc from "fast-check";
import { expect, test } from "vitest";
import { missingPrograms, startPty } from "./fixtures/pty.ts";
import { startTyping } from "./fixtures/typing.ts";
import { createScreenState, farewell, notice, type ScreenState, titleBack } from "./screen-state.ts";

function after(...pieces: readonly (string | Uint8Array)[]): ScreenState {
  const state = createScreenState();
  for (const piece of pieces) state.feed(Buffer.from(piece));
  return state;
}

test("in the normal screen a notice is a line of its own, wherever the cursor is", () => {
  expect(notice("5 minutes left", after("$ ")).toString()).toBe("\r\n5 minutes left\r\n");
  expect(notice("5 minutes left", after("done\r\n")).toString()).toBe("5 minutes left\r\n");
  expect(notice("5 minutes left", after("done\r\n\x1b[5C")).toString()).toBe("\r\n5 minutes left\r\n");
  expect(notice("5 minutes left", after("")).toString()).toBe("5 minutes left\r\n");
});

test.for([47, 1047, 1049])("in the alternate screen (mode %i) a notice is a title and a bell, and no text", (mode) => {
  const state = after(`$ vim\r\n\x1b[?${mode}h\x1b[H`);
  expect(state.alternate).toBe(true);
  const bytes = notice("5 minutes left", state).toString();
  expect(bytes).toBe("\x1b[22;2t\x1b]2;5 minutes left\x1b\\\x07");
  expect(notice("1 minute left", state).toString()).toBe("\x1b]2;1 minute left\x1b\\\x07");
  expect(titleBack(state)).toHaveLength(0);
  state.feed(Buffer.from(`\x1b[?${mode}l`));
  expect(titleBack(state).toString()).toBe("\x1b[23;2t");
  expect(titleBack(state)).toHaveLength(0);
  expect(notice("now", state).toString()).toContain("\r\nnow\r\n");
});

test("the last words leave the alternate screen, put back what was switched on, and are text", () => {
  const state = after("\x1b[?1049h\x1b[?1000;1006h\x1b[?25l\x1b[?2004h");
  const words = farewell("grant is over", state).toString();
  for (const mode of [1049, 1000, 1006, 2004]) expect(words).toContain(`\x1b[?${mode}l`);
  expect(words).toContain("\x1b[?25h");
  expect(words.endsWith("\r\ngrant is over\r\n")).toBe(true);
  expect(farewell("grant is over", after("$ ")).toString()).toBe("\x1b[0m\r\ngrant is over\r\n");
});

test("words cannot drive the terminal that they are shown on", () => {
  for (const state of [after("$ "), after("\x1b[?1049h")]) {
    const shown = notice("a\x1b]0;x\x07\u009b2J\u202e\nb", state).toString();
    expect(shown).toContain("a ]0;x 2J b");
    expect(shown).not.toMatch(/[\u0080-\u009f\u202e]/);
  }
});

test("a notice in the middle of a sequence breaks that off, and becomes no part of it", () => {
  for (const begun of ["\x1b", "\x1b[", "\x1b[31", "\x1b]0;title", "\x1bP1", "\x1b]0;a\x1b", "\u00e9"]) {
    const bytes = Buffer.from(begun);
    const state = after(begun === "\u00e9" ? bytes.subarray(0, 1) : bytes);
    expect(state.midSequence, JSON.stringify(begun)).toBe(true);
    expect(notice("5 minutes left", state)[0]).toBe(0x18);
  }
  expect(after("\x1b[31m\x1b]0;title\x07é").midSequence).toBe(false);
});

test("the title is the program's last one, however it is ended, and a huge one is not remembered", () => {
  expect(after("\x1b]0;one\x07\x1b]2;two\x1b\\").title).toBe("two");
  expect(after(`\x1b]2;one\x07\x1b]2;${"x".repeat(10_000)}\x07`).title).toBeUndefined();
  expect(after("\x1b]52;c;aGk=\x07").title).toBeUndefined();
});

test("however the output is cut, and whatever it is, the state is the same", () => {
  const part = fc.oneof(
    fc.string(),
    fc.constantFrom(
      "\x1b[?1049h",
      "\x1b[?1049l",
      "\x1b[?47h",
      "\x1b]2;t\x07",
      "\r\n",
      "\x1b[3;1H",
      "\x1bc",
      "\x18",
      "漢",
    ),
    fc.uint8Array({ maxLength: 8 }).map((bytes) => Buffer.from(bytes).toString("latin1")),
  );
  fc.assert(
    fc.property(fc.array(part, { maxLength: 30 }), (parts) => {
      const bytes = Buffer.from(parts.join(""));
      const whole = after(bytes);
      const cut = after(...Array.from(bytes, (byte) => Uint8Array.of(byte)));
      for (const key of ["alternate", "atLineStart", "midSequence", "title"] as const)
        expect(cut[key]).toBe(whole[key]);
      expect([...cut.modes]).toEqual([...whole.modes]);
    }),
  );
});

test("vi is seen to enter and to leave the alternate screen", { timeout: 60_000 }, async ({ skip }) => {
  if (missingPrograms("vi").length > 0) skip("without vi");
  await using vi = startPty(["vi", "-u", "NONE", "-n"], startTyping().echo);
  await vi.until(/~/);
  expect(after(vi.output).alternate).toBe(true);
  vi.type(":q!\r");
  await vi.ended;
  expect(after(vi.output).alternate).toBe(false);
});
