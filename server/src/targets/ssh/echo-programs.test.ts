import { expect, test } from "vitest";
import { missingPrograms, startPty } from "./fixtures/pty.ts";
import { startTyping } from "./fixtures/typing.ts";

const without = (...names: readonly string[]): boolean => missingPrograms(...names).length > 0;
const SLOW = { timeout: 120_000 };

/** What a person does at each of these prompts: the password must not be found, and what follows must be readable. */
const PROMPTS: readonly (readonly [
  name: string,
  needs: string,
  argv: readonly string[],
  prompt: RegExp,
  done: RegExp,
])[] = [
  [
    "bash's read -s",
    "bash",
    ["bash", "-c", 'read -rsp "Password: " p; printf "\\nlen %s\\n" "${#p}"; read -r x'],
    /Password: $/,
    /len 7/,
  ],
  [
    "dash with stty -echo",
    "dash",
    ["dash", "-c", 'stty -echo; printf "Password: "; read -r p; stty echo; printf "\\nlen %s\\n" "${#p}"; read -r x'],
    /Password: $/,
    /len 7/,
  ],
  [
    "python's getpass",
    "python3",
    ["python3", "-c", 'import getpass; p = getpass.getpass(); print("len", len(p)); input()'],
    /Password: $/,
    /len 7/,
  ],
  [
    "a program that prints stars",
    "python3",
    [
      "python3",
      "-c",
      `
import sys, termios, tty
old = termios.tcgetattr(0); tty.setcbreak(0); sys.stdout.write("Password: "); sys.stdout.flush()
n = 0
while True:
    c = sys.stdin.read(1)
    if c == "\\n": break
    n += 1; sys.stdout.write("*"); sys.stdout.flush()
termios.tcsetattr(0, termios.TCSADRAIN, old); print("\\nlen", n); input()`,
    ],
    /Password: $/,
    /len 7/,
  ],
  [
    "a program that goes on logging meanwhile",
    "bash",
    [
      "bash",
      "-c",
      '(for i in 1 2 3 4 5 6 7 8; do printf "log h%s\\r\\n" "$i"; sleep 0.05; done) & read -rsp "Password: " p; wait; printf "\\nlen %s\\n" "${#p}"; read -r x',
    ],
    /Password: /,
    /len 7/,
  ],
];

test.for(PROMPTS)(
  "a password typed or pasted at %s is in no record, and the next line is",
  SLOW,
  async ([, needs, argv, prompt, done], { skip }) => {
    if (without(needs)) skip(`without ${needs}`);
    for (const pieces of [[...Array.from("hunter2"), "\r"], ["hunter2\r"]]) {
      const typing = startTyping();
      await using program = startPty(argv, typing.echo);
      await program.until(prompt);
      for (const piece of pieces) program.type(piece);
      await program.until(done);
      program.mark();
      await program.typeSlowly("next line");
      program.type("\r");
      await program.ended;
      expect(typing.written().includes("hunter2")).toBe(false);
      expect(typing.read()).toMatch(/^(<\d+>)+\rnext line\r$/);
    }
  },
);

test(
  "a shell with readline: commands, editing, a paste, searching and text of several languages are readable, blind ones are not",
  SLOW,
  async ({ skip }) => {
    if (without("bash")) skip("without bash");
    const typing = startTyping();
    await using bash = startPty(["bash", "--norc", "--noprofile"], typing.echo);
    const command = async (text: string, answer: RegExp): Promise<void> => {
      await bash.until(/[$#] (\x1b\[\?2004h)?$/);
      bash.mark();
      await bash.typeSlowly(text);
      bash.type("\r");
      await bash.until(answer);
    };
    await bash.until(/[$#] /);
    await command("echo hello", /[\r\n]hello/);
    await command("echo grüße 漢字", /[\r\n]grüße/);
    await command(`echo ${"long ".repeat(30)}end`, /end\r\n/);
    await command("echo ac", /[\r\n]ac/);
    // Into the middle of the line before.
    await bash.until(/[$#] (\x1b\[\?2004h)?$/);
    bash.mark();
    bash.type("\x1b[A");
    await bash.until(/echo ac$/);
    bash.mark();
    bash.type("\x1b[D");
    await bash.until(/\x08/);
    bash.mark();
    await bash.typeSlowly("b");
    bash.type("\r");
    await bash.until(/[\r\n]abc/);
    // A paste as terminals mark it.
    await bash.until(/[$#] (\x1b\[\?2004h)?$/);
    bash.mark();
    bash.type("\x1b[200~echo pasted\x1b[201~");
    await bash.until(/pasted/);
    bash.type("\r");
    await bash.until(/[\r\n]pasted/);
    // Ctrl-R shows what is looked for within a line of its own making.
    await bash.until(/[$#] (\x1b\[\?2004h)?$/);
    bash.mark();
    bash.type("\x12");
    await bash.until(/reverse-i-search/);
    bash.type("hello");
    await bash.until(/hello\x1b\[27m/);
    bash.type("\r");
    await bash.until(/[\r\n]hello/);
    await command("stty -echo", /./);
    bash.type("hunter2\r");
    await bash.until(/hunter2: command not found|not found/);
    const read = typing.read();
    for (const line of ["echo hello\r", "echo grüße 漢字\r", `echo ${"long ".repeat(30)}end\r`, "echo ac\r"])
      expect(read).toContain(line);
    expect(read).toContain("\x1b[A\x1b[Db\r");
    expect(read).toContain("\x1b[200~echo pasted\x1b[201~\r");
    expect(read).not.toContain("hunter2");
  },
);

test(
  "an editor and a pager: what is inserted is readable where it was drawn, keys that draw nothing are not",
  SLOW,
  async ({ skip }) => {
    if (without("vi")) skip("without vi");
    const typing = startTyping();
    await using vi = startPty(["vi", "-u", "NONE", "-n"], typing.echo);
    await vi.until(/~/);
    vi.type("i");
    await vi.typeSlowly("some words");
    vi.type("\x1b");
    vi.type(":q!\r");
    await vi.ended;
    expect(typing.undecided()).toBe(0);
    expect(typing.read()).toMatch(/(some words|<10>|<11>|(<1>)+)\x1b/);
  },
);

test("a password at a prompt within tmux is in no record", SLOW, async ({ skip }) => {
  if (without("tmux", "bash")) skip("without tmux");
  const typing = startTyping();
  const socket = `gk${process.pid}`;
  const script = 'read -rsp "Password: " p; printf "\\nlen %s\\n" "${#p}"; read -r x';
  await using tmux = startPty(
    ["tmux", "-L", socket, "-f", "/dev/null", "new-session", "bash", "-c", script],
    typing.echo,
    {
      env: { TMUX_TMPDIR: process.env["TMPDIR"] ?? "/tmp" },
    },
  );
  await tmux.until(/Password: /);
  for (const key of "hunter2\r") tmux.type(key);
  await tmux.until(/len 7/);
  tmux.mark();
  await tmux.typeSlowly("words");
  tmux.type("\r");
  await tmux.ended;
  expect(typing.written().includes("hunter2")).toBe(false);
  expect(typing.read().startsWith("<")).toBe(true);
  expect(typing.read()).not.toMatch(/hu|unt|ter/);
});
