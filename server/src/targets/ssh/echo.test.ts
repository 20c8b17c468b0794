import fc from "fast-check";
import { expect, test } from "vitest";
import { startTyping, type Typing } from "./fixtures/typing.ts";

/** Key by key. */
const keys = (text: string): string[] => Array.from(text);

const type = ({ echo }: Typing, ...pieces: readonly string[]): void => {
  for (const piece of pieces) echo.input(Buffer.from(piece), () => {});
};
const print = ({ echo }: Typing, ...pieces: readonly string[]): void => {
  for (const piece of pieces) echo.output(Buffer.from(piece));
};
/** Typed key by key, each echoed before the next. */
const echoed = (typing: Typing, text: string): void => {
  for (const key of text) {
    type(typing, key);
    print(typing, key);
  }
};

test("what the terminal echoes is revealed at the line's end, keys are in clear", () => {
  const typing = startTyping();
  print(typing, "$ ");
  echoed(typing, "ls -l");
  expect(typing.read()).toBe("<1?><1?><1?><1?><1?>");
  type(typing, "\r");
  expect(typing.read()).toBe("ls -l\r");
  print(typing, "\r\ntotal 0\r\n$ ");
  echoed(typing, "id");
  type(typing, "\x1b[A", "\x03");
  expect(typing.read()).toBe("ls -l\rid\x1b[A\x03");
});

test("a password that is not echoed is in no record, in any form, and its key is gone", () => {
  for (const answer of ["\r\n", "", "\r\nSorry, try again.\r\nPassword: ", "\r\n\x1b[?2004h$ ", "*******\r\n"]) {
    for (const pieces of [
      [...keys("hunter2"), "\r"],
      ["hunter2\r"],
      ["hunter2", "\r"],
      ["\x1b[200~hunter2\x1b[201~", "\r"],
    ]) {
      const typing = startTyping();
      print(typing, "Password: ");
      type(typing, ...pieces);
      print(typing, answer);
      typing.clock.ms += 60_000;
      print(typing, "x");
      expect(typing.undecided()).toBe(0);
      expect(typing.written().includes("hunter2")).toBe(false);
      expect(typing.read()).not.toMatch(/[hunter2]{3}/);
    }
  }
});

test("masked echo reveals nothing, whether all at once or the last character for a moment", () => {
  const stars = startTyping();
  for (const key of "hunter2") {
    type(stars, key);
    print(stars, "*");
  }
  type(stars, "\r");
  print(stars, "\r\n");
  expect(stars.read()).toMatch(/^(<1>){7}\r$/);

  const moment = startTyping();
  for (const key of "hunter2") {
    type(moment, key);
    print(moment, key, "\b*");
  }
  type(moment, "\r");
  print(moment, "\r\n");
  expect(moment.read()).toMatch(/^(<1>){7}\r$/);
});

test("an echo that is taken back, or left behind for another place, is none", () => {
  for (const shown of [
    "hunter2\x1b[7D\x1b[K\x1b[7C", // erased
    "hunter2\x1b[2D\x1b[P\x1b[2C", // a character taken out
    "hunter2\x1b[7D*******", // written over
    "hunter2\x1b[7D", // the cursor is not behind it
    "hunter2\x1b[4h\x1b[7Dh\x1b[6C", // moved to the right by what was inserted
    "hunter2 ",
    "hunter2\r",
  ]) {
    const typing = startTyping();
    print(typing, "Password: ");
    type(typing, ...keys("hunter2"));
    print(typing, shown);
    type(typing, "\r");
    print(typing, "\r\n");
    expect(typing.read(), JSON.stringify(shown)).toBe(`${"<1>".repeat(7)}\r`);
  }
});

test("after its line was ended, a text has to be the next that is shown there: what comes first decides", () => {
  const typing = startTyping();
  type(typing, "1", "\r");
  print(typing, "0\r1");
  expect(typing.read()).toBe("<1>\r");
});

test("a key that was typed before its text's place is known keeps that text hidden", () => {
  const typing = startTyping();
  type(typing, "a", "\t", "b", "\r");
  print(typing, "ab\r\n");
  expect(typing.read()).toBe("a\t<1>\r");
});

test("output of another program while a password is typed reveals nothing", () => {
  const typing = startTyping();
  print(typing, "Password: ");
  for (const [i, key] of keys("hunter2").entries()) {
    type(typing, key);
    print(typing, `\r\n[log] line ${i} has hunter2 in it`);
  }
  type(typing, "\r");
  print(typing, "\r\n");
  expect(typing.undecided()).toBe(0);
  expect(typing.read()).toMatch(/^(<1>){7}\r$/);
});

test("a password that the program shows later, or elsewhere, is not revealed by that", () => {
  for (const later of ["\r\nyou said hunter2\r\n", "\x1b[5;5Hhunter2", "ok hunter2", "\r\x1b[Khunter2"]) {
    const typing = startTyping();
    print(typing, "Password: ");
    type(typing, ...keys("hunter2"), "\r");
    print(typing, later);
    typing.clock.ms += 60_000;
    print(typing, "x");
    expect(typing.read(), later).toMatch(/^(<1>){7}\r$/);
  }
});

test("text that stood there before it was typed is no echo of it", () => {
  // Asked twice for the same at the same place of the screen, as dialogues do.
  const typing = startTyping();
  print(typing, "\x1b[H\x1b[2JPIN: ");
  echoed(typing, "1234");
  type(typing, "\r");
  expect(typing.read()).toBe("1234\r");
  print(typing, "\x1b[H\x1b[6G");
  type(typing, ...keys("1234"));
  print(typing, "\x1b[10G"); // the cursor goes to where it would be
  type(typing, "\r");
  print(typing, "\r\n");
  expect(typing.read()).toBe("1234\r<1><1><1><1>\r");

  // A program that shows a guess ahead, and is right.
  const guess = startTyping();
  type(guess, "h");
  print(guess, "hunter2\b\b\b\b\b\b");
  type(guess, ...keys("unter2"));
  print(guess, "\x1b[6C");
  type(guess, "\r");
  print(guess, "\r\n");
  expect(guess.read()).toMatch(/^(<1>){7}\r$/);
});

test("what a program on the host can get revealed is what it wrote itself, as one text, after it had it", () => {
  // A hostile program echoes one character less, one wrong, or all but in pieces; and then what it received as it is.
  for (const [shown, all] of [
    ["hunter", false],
    ["huntar2", false],
    ["2retnuh", false],
    ["hun ter2", false],
    ["hun\x1b[31mter\x1b[0m2", true],
    ["hunter2", true],
  ] as const) {
    const typing = startTyping();
    type(typing, ...keys("hunter2"));
    print(typing, shown);
    type(typing, "\r");
    print(typing, "\r\n");
    expect(typing.read(), shown).toBe(all ? "hunter2\r" : `${"<1>".repeat(7)}\r`);
  }
});

test("an echo that is late, by characters or by lines, is found", () => {
  const typing = startTyping();
  print(typing, "$ ");
  type(typing, "l", "s", "\r");
  print(typing, "l", "s", "\r\n", "$ ");
  expect(typing.read()).toBe("ls\r");
  // A paste with line ends into a program that reads lines.
  type(typing, "one\rtwo words\rthree\r");
  print(typing, "one\r\ntwo wor", "ds\r\nthree\r\n");
  expect(typing.read()).toBe("ls\rone\rtwo words\rthree\r");
});

test("typed ahead of a password's prompt: the first line is revealed, the password is not", () => {
  const typing = startTyping();
  print(typing, "$ ");
  type(typing, "sudo id\rhunter2\r");
  print(typing, "sudo id\r\n", "Password: ", "\r\n", "uid=0(root)\r\n");
  typing.clock.ms += 30_000;
  print(typing, "$ ");
  expect(typing.read()).toBe("sudo id\r<7>\r");
});

test("the line is drawn again, coloured, suggested, inserted into and wrapped: still revealed", () => {
  const zsh = startTyping();
  print(zsh, "% ");
  type(zsh, "l");
  print(zsh, "\x1b[1m\x1b[31ml\x1b[0m");
  type(zsh, "s");
  print(zsh, "\b\x1b[0m\x1b[32ml\x1b[32ms\x1b[39m");
  type(zsh, "\r");
  expect(zsh.read()).toBe("ls\r");

  const fish = startTyping();
  print(fish, "> ");
  type(fish, "l");
  print(fish, "l\x1b[90ms -la\x1b[5D");
  type(fish, "s");
  print(fish, "s\x1b[90m -la\x1b[4D");
  type(fish, "\r");
  expect(fish.read()).toBe("ls\r");

  const insert = startTyping();
  print(insert, "$ abc\b\b");
  type(insert, "X");
  print(insert, "Xbc\b\b");
  type(insert, "Y");
  print(insert, "\x1b[1@Y");
  type(insert, "\r");
  expect(insert.read()).toBe("XY\r");

  const prompt = startTyping();
  print(prompt, "$ ");
  type(prompt, "i");
  print(prompt, "\r$ i");
  type(prompt, "d");
  print(prompt, "\r\x1b[K$ id");
  type(prompt, "\r");
  expect(prompt.read()).toBe("id\r");

  const wrapped = startTyping({ cols: 10 });
  print(wrapped, "$ ");
  for (const [i, key] of keys("abcdefghijklmno").entries()) {
    type(wrapped, key);
    print(wrapped, i === 7 ? `${key} \r` : key); // readline at the right edge
  }
  type(wrapped, "\r");
  expect(wrapped.read()).toBe("abcdefghijklmno\r");
});

test("UTF-8, also cut between pieces, is one text; wide characters take two cells", () => {
  const typing = startTyping();
  const bytes = Buffer.from("grüße 漢字");
  for (const byte of bytes) typing.echo.input(Buffer.of(byte), () => {});
  for (const byte of bytes) typing.echo.output(Buffer.of(byte));
  type(typing, "\r");
  expect(typing.read()).toBe("grüße 漢字\r");

  // What cannot be followed stays hidden: bytes that are no text, marks without a cell.
  for (const text of [
    Buffer.of(0xff, 0xfe),
    Buffer.from("e\u0301"),
    Buffer.of(0xc3),
    Buffer.of(0x61, 0xc3),
    Buffer.from("\u009b31m"),
  ]) {
    const strange = startTyping();
    strange.echo.input(text, () => {});
    strange.echo.output(text.at(-1) === 0xc3 ? text.subarray(0, -1) : text);
    type(strange, "\r");
    print(strange, "\r\n");
    expect(strange.read()).toMatch(/^(<\d>)+\r$/);
  }
});

test("no way of typing puts text into the clear", () => {
  // Behind ESC, within a sequence, as key codes (kitty, modifyOtherKeys), in answers of the terminal, and as Alt and a key.
  for (const pieces of [
    ["\x1b", ...keys("hunter2")],
    ["\x1bhunter2"],
    ["\x1b[", ...keys("hunter2")],
    ["\x1b[hunter2"],
    ["\x1bOhunter2"],
    ["\x1b]52;c;hunter2\x07"],
    ["\x1bPhunter2\x1b\\"],
    ["\x1b[104u", "\x1b[117u", "\x1b[110u", "\x1b[116u"],
    ["\x1b[27;1;104~", "\x1b[27;1;117~"],
    ["\x1b[104;1;104_"],
    ["\x1bh", "\x1bu", "\x1bn"],
  ]) {
    const typing = startTyping();
    type(typing, ...pieces, "\r");
    print(typing, "\r\n");
    expect(typing.read(), pieces.join("")).not.toMatch(/hu|unt|nter|104/);
  }
  const plain = startTyping();
  type(plain, "\x1b[A", "\x1b[1;5C", "\x1bOP", "\x1b[3~", "\x1b[12;40R", "\x1b[<0;3;4M", "\t", "\x7f");
  expect(plain.read()).toBe("\x1b[A\x1b[1;5C\x1bOP\x1b[3~\x1b[12;40R\x1b[<0;3;4M\t\x7f");
});

test("a run ends at 1 KiB and after ten seconds, and each part is revealed by its own echo", () => {
  const long = startTyping();
  const text = "0123456789".repeat(250);
  type(long, text);
  print(long, text);
  type(long, "\r");
  expect(long.read()).toBe(`${text}\r`);

  const slow = startTyping();
  echoed(slow, "ab");
  slow.clock.ms += 11_000;
  echoed(slow, "cd");
  expect(slow.read()).toBe("ab<1?><1?>");
  slow.clock.ms += 11_000;
  print(slow, "");
  expect(slow.read()).toBe("abcd");

  const never = startTyping();
  type(never, "ab");
  never.clock.ms += 11_000;
  print(never, "");
  expect(never.undecided()).toBe(1);
  never.clock.ms += 11_000;
  print(never, "ab");
  expect(never.read()).toBe("<2>");
});

test("a resize and the end decide what waits; the end of the session silently", () => {
  const resized = startTyping();
  type(resized, "abc");
  resized.echo.resize(100, 30);
  print(resized, "abc");
  expect(resized.read()).toBe("<3>");

  const ended = startTyping();
  echoed(ended, "abc");
  ended.echo.close();
  expect(ended.read()).toBe("<1?><1?><1?>".replaceAll(/<1\?>/g, (_, at: number) => "abc"[at / 4] ?? ""));

  const silent = startTyping();
  type(silent, "abc");
  silent.echo.close(true);
  expect(silent.undecided()).toBe(1);
});

test("in a full-screen program what is typed where the cursor is is revealed, and what only moves it is not", () => {
  const vi = startTyping();
  print(vi, "\x1b[?1049h\x1b[H\x1b[2J~\r\n~\x1b[1;1H");
  type(vi, "i");
  print(vi, "\x1b[24;1H-- INSERT --\x1b[1;1H");
  type(vi, "\x1b");
  expect(vi.read()).toMatch(/^<1\??>\x1b$/);
  print(vi, "\x1b[24;1H\x1b[K\x1b[1;1H");
  vi.clock.ms += 11_000;
  print(vi, "");
  for (const key of "word") {
    type(vi, key);
    print(vi, `\x1b[?25l${key}\x1b[24;60H1,5\x1b[1;${" word".indexOf(key) + 1}H\x1b[?25h`);
  }
  type(vi, "\x1b");
  expect(vi.read()).toBe("<1>\x1bword\x1b");
});

test("whatever is typed and printed: every byte has its record and its commit, each run is decided once, and nothing is read as another", () => {
  const piece = fc.oneof(
    fc.string({ maxLength: 6 }),
    fc.constantFrom("\r", "\n", "\x1b", "\x1b[A", "\t", "\x7f", "ab", "a", "b", "\x1b[200~", "é", "漢"),
  );
  const shown = fc.oneof(
    piece,
    fc.constantFrom(
      "\r\n",
      "\b",
      "\x1b[K",
      "\x1b[2J",
      "\x1b[H",
      "\x1b[3;4H",
      "\x1b[?1049h",
      "\x1b[1@",
      "\x1b[4h",
      "\x1b7",
      "\x1b8",
      "\x1bM",
    ),
  );
  const step = fc.oneof(
    fc.record({ type: piece }),
    fc.record({ print: shown }),
    fc.record({ both: piece }),
    fc.record({ ms: fc.integer({ min: 0, max: 12_000 }) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const typing = startTyping({ cols: 12, rows: 5 });
      let typed = "";
      let commits = 0;
      let pieces = 0;
      for (const one of steps) {
        if ("ms" in one) typing.clock.ms += one.ms;
        const input = "type" in one ? one.type : "both" in one ? one.both : undefined;
        if (input !== undefined) {
          pieces++;
          typed += input;
          typing.echo.input(Buffer.from(input), () => commits++);
        }
        const output = "print" in one ? one.print : "both" in one ? one.both : undefined;
        if (output !== undefined) print(typing, output);
      }
      typing.echo.close();
      expect(commits).toBe(pieces);
      expect(typing.undecided()).toBe(0);
      const read = typing.readBytes();
      const was = Buffer.from(typed);
      expect(read.length).toBe(was.length);
      for (const [at, byte] of read.entries()) if (byte !== 0) expect(byte).toBe(was[at]);
    }),
    { numRuns: 300 },
  );
});

test("whatever a program prints, a text of which it prints a character never is not revealed", () => {
  const part = fc.oneof(
    fc.constantFrom(...Array.from("hunter2"), "hunter", "hunte", "unter2", " ", "*"),
    fc.constantFrom(
      "\b",
      "\r",
      "\r\n",
      "\x1b[K",
      "\x1b[C",
      "\x1b[D",
      "\x1b[1G",
      "\x1b[H",
      "\x1b[2;3H",
      "\x1b[P",
      "\x1b[@",
    ),
    fc.constantFrom(
      "\x1b7",
      "\x1b8",
      "\x1b[?1049h",
      "\x1b[?1049l",
      "\x1b[4h",
      "\x1bc",
      "\x1b]0;hunter2Z\x07",
      "\x1b[31m",
    ),
  );
  fc.assert(
    fc.property(fc.array(fc.array(part, { maxLength: 8 }), { minLength: 9, maxLength: 12 }), (outputs) => {
      const typing = startTyping({ cols: 20, rows: 4 });
      for (const [i, output] of outputs.entries()) {
        type(typing, "hunter2Z"[i] ?? "\r");
        print(typing, ...output);
      }
      typing.echo.close();
      expect(typing.read()).not.toContain("Z");
    }),
    { numRuns: 500 },
  );
});
