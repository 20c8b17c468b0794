import { unreachable } from "../../core/errors.ts";

/**
 * Commands that a playbook allows, and the reading of the command that a client sent: both without a shell.
 *
 * A pattern is words between spaces, each the pattern of one argument; the first is the program and has no wildcard.
 * In a word, `*` stands for any characters but `/`, `**` for any with it, `<number>` for digits, `<name>` for letters,
 * digits and `_ . @ : -` that begin with neither `-` nor `.`. A last word `...` stands for any further arguments. In
 * quotes, '…' or "…", everything stands for itself. So that a wildcard is never more than it looks like:
 * - it never matches an argument that begins with `-`, unless the word begins with `-` itself;
 * - it never matches `.` or `..` as a part of a path, so that `/srv/*` is not all of `/srv/.`, nor a control character;
 * - what it matches does not end in `/`, so that `/srv/*` is not `/srv/`, unless the word itself ends so.
 *
 * What a client sends is one string that the host gives to the account's shell (RFC 4254, 6.5). It is cut into arguments
 * by the quoting rules of POSIX (XCU 2.2); whatever else a shell would act on is refused. The arguments that matched are
 * quoted anew, and that is what runs.
 */

export type CommandLine = { ok: true; argv: readonly string[] } | { ok: false; reason: string };

const MAX_COMMAND_CHARACTERS = 128 * 1024;
const MAX_ARGUMENTS = 4_096;

/** What a shell acts on wherever it stands unquoted, with the words that tell a person. */
const ACTS: Readonly<Record<string, string>> = {
  $: "a variable or a command in $",
  "`": "a command in backquotes",
  ";": "a second command after ;",
  "|": "a pipe",
  "&": "& (in the background, or a second command)",
  "<": "a redirection",
  ">": "a redirection",
  "(": "a subshell",
  ")": "a subshell",
  "*": "the wildcard *",
  "?": "the wildcard ?",
  "[": "the wildcard [",
  "{": "braces",
  "}": "braces",
  "~": "~",
  "!": "!",
  "\n": "a line end",
  "\r": "a carriage return",
};

/** What a shell may expand in scp's paths, where the playbook gives a shell. */
const EXPANDED = "*?[{}~!";

/**
 * Cuts a command as a POSIX shell would, and refuses what a shell would do more than that. Linear in its length.
 * @param expanded lets wildcards, braces and ~ stand, as what they are: to see what is run under a shell, never to judge.
 */
export function splitCommand(command: string, expanded = false): CommandLine {
  if (command.length > MAX_COMMAND_CHARACTERS) return refused(`it is longer than ${MAX_COMMAND_CHARACTERS} characters`);
  if (command.includes("\0") || !command.isWellFormed())
    return refused("it holds a character that no argument can hold");
  const argv: string[] = [];
  let word: string | undefined; // undefined between words
  let bare: Bare = "nothing"; // of this word, what stands unquoted; it tells an assignment
  for (let at = 0; at < command.length; at++) {
    const c = command[at] ?? "";
    if (c === " " || c === "\t") {
      if (word !== undefined) argv.push(word);
      if (argv.length > MAX_ARGUMENTS) return refused(`it has more than ${MAX_ARGUMENTS} arguments`);
      word = undefined;
      bare = "nothing";
    } else if (c === "'") {
      const end = command.indexOf("'", at + 1);
      if (end < 0) return refused("a quote ' is not closed");
      word = (word ?? "") + command.slice(at + 1, end);
      bare = "other";
      at = end;
    } else if (c === '"') {
      const quoted = readDoubleQuoted(command, at + 1);
      if (typeof quoted === "string") return refused(quoted);
      word = (word ?? "") + quoted.text;
      bare = "other";
      at = quoted.end;
    } else if (c === "\\") {
      at += 1;
      const next = command[at];
      if (next === undefined || next === "\n") return refused("it ends in the middle, with a backslash");
      word = (word ?? "") + next;
      bare = "other";
    } else {
      if (ACTS[c] !== undefined && !(expanded && EXPANDED.includes(c)))
        return refused(`it has ${ACTS[c]}, which a shell would act on`);
      if (c === "#" && word === undefined) return refused("it has a comment");
      if (c < " " || c === "\x7f") return refused("it has a control character");
      if (c === "=" && argv.length === 0 && (bare === "name" || bare === "name+"))
        return refused("it sets a variable before the command");
      bare = bareWith(bare, c);
      word = (word ?? "") + c;
    }
  }
  if (word !== undefined) argv.push(word);
  if (argv.length > MAX_ARGUMENTS) return refused(`it has more than ${MAX_ARGUMENTS} arguments`);
  return argv.length === 0 || argv[0] === "" ? refused("it is empty") : { ok: true, argv };
}

/** What the unquoted beginning of a word is: `name=` and `name+=` are assignments (XCU 2.9.1). */
type Bare = "nothing" | "name" | "name+" | "other";

function bareWith(bare: Bare, c: string): Bare {
  const isName = bare === "nothing" || bare === "name";
  if (isName && /[A-Za-z_]/.test(c)) return "name";
  if (bare === "name" && c >= "0" && c <= "9") return "name";
  return bare === "name" && c === "+" ? "name+" : "other";
}

function refused(reason: string): CommandLine {
  return { ok: false, reason };
}

function readDoubleQuoted(command: string, from: number): { text: string; end: number } | string {
  let text = "";
  for (let at = from; at < command.length; at++) {
    const c = command[at] ?? "";
    if (c === '"') return { text, end: at };
    if (c === "$" || c === "`") return `it has ${ACTS[c]}, which a shell would act on also between double quotes`;
    if (c !== "\\") {
      text += c;
      continue;
    }
    const next = command[at + 1] ?? "";
    if (next === "\n") return "it has a line that goes on in the next one";
    if (next !== "" && '$`"\\'.includes(next)) {
      text += next;
      at += 1;
    } else text += c;
  }
  return 'a quote " is not closed';
}

/**
 * The command that gives exactly these arguments in any POSIX shell: each in single quotes, where nothing but a single quote
 * means anything. Without NUL, which no argument can hold.
 */
export function quoteCommand(argv: readonly string[]): string {
  return argv.map((argument) => `'${argument.replaceAll("'", `'\\''`)}'`).join(" ");
}

// -------------------------------------------------------------------------------------------------------- patterns

/** Part of a word: itself, or a class of characters so many times. */
type Piece = { readonly is: "text"; readonly text: string } | { readonly is: "star" | "deep" | "number" | "name" };

export interface CommandWord {
  readonly pieces: readonly Piece[];
  readonly wild: boolean;
}

export interface CommandPattern {
  readonly text: string;
  readonly words: readonly CommandWord[];
  /** Whether it ends in `...`. */
  readonly open: boolean;
}

/** What is wrong with a pattern; undefined for a good one. */
export function patternProblem(text: string): string | undefined {
  const parsed = parsePattern(text);
  return typeof parsed === "string" ? parsed : undefined;
}

/** @returns the pattern, or what is wrong with it. */
export function parsePattern(text: string): CommandPattern | string {
  if (/\p{Cc}/u.test(text) || !text.isWellFormed()) return "must be one line of text";
  const words: CommandWord[] = [];
  let open = false;
  for (const source of text.matchAll(/(?:'[^']*'|"[^"]*"|[^\s'"]|['"])+/g)) {
    if (open) return "... stands for any further arguments, so it can only be the last word";
    if (source[0] === "...") open = true;
    else {
      const word = parseWord(source[0]);
      if (typeof word === "string") return word;
      words.push(word);
    }
  }
  const [program] = words;
  if (program === undefined) return "must begin with a program, such as systemctl or /usr/bin/tail";
  if (program.wild) return "must begin with a program that is written out, without wildcards";
  if (literalOf(program) === "") return "must begin with a program that is not empty";
  return { text, words, open };
}

function parseWord(source: string): CommandWord | string {
  const pieces: Piece[] = [];
  const add = (text: string): void => {
    const last = pieces.at(-1);
    if (last?.is === "text") pieces[pieces.length - 1] = { is: "text", text: last.text + text };
    else pieces.push({ is: "text", text });
  };
  for (const [part, single, double, wildcard, named] of source.matchAll(
    /'([^']*)'|"([^"]*)"|(\*{1,2})|<([^<>]*)>|[^*<'"]+|[<'"]/g,
  )) {
    if (single !== undefined) add(single);
    else if (double !== undefined) add(double);
    else if (wildcard !== undefined) {
      if (pieces.at(-1)?.is === "star" || pieces.at(-1)?.is === "deep") return "has more than two * in a row";
      pieces.push({ is: wildcard === "*" ? "star" : "deep" });
    } else if (named !== undefined) {
      if (named !== "number" && named !== "name") return `<${named}> is not known; known are <number> and <name>`;
      pieces.push({ is: named });
    } else if (part === "<" || part === "'" || part === '"') return `has a ${part} that is not closed`;
    else if (/[$`;|&<>\\?[\]{}~!#()]/.test(part) && !/^[\w./:=@%+,-]*$/.test(part)) {
      return `has ${JSON.stringify(/[$`;|&<>\\?[\]{}~!#()]/.exec(part)?.[0])}, which means nothing here; put it in quotes if it is meant`;
    } else add(part);
  }
  return { pieces, wild: pieces.some(({ is }) => is !== "text") };
}

/** A word's text; of one with wildcards, without them. */
export function literalOf({ pieces }: CommandWord): string {
  return pieces.map((piece) => (piece.is === "text" ? piece.text : "")).join("");
}

/** Whether a pattern allows exactly these arguments. */
export function matchesCommand({ words, open }: CommandPattern, argv: readonly string[]): boolean {
  if (open ? argv.length < words.length : argv.length !== words.length) return false;
  return words.every((word, i) => matchesWord(word, argv[i] ?? ""));
}

/** Whether a word allows this argument. */
export function matchesWord(word: CommandWord, argument: string): boolean {
  if (!word.wild) return literalOf(word) === argument;
  const [first] = word.pieces;
  if (argument.startsWith("-") && !(first?.is === "text" && first.text.startsWith("-"))) return false;
  if (/\p{Cc}/u.test(argument) || argument.split("/").some((part) => part === "." || part === "..")) return false;
  if (argument.endsWith("/") && !endsInSlash(word)) return false;
  return matchesPieces(word.pieces, argument);
}

/** Whether what a word with wildcards stands for ends in a `/` that it writes. */
export function endsInSlash({ pieces }: CommandWord): boolean {
  const last = pieces.at(-1);
  return last?.is === "text" && last.text.endsWith("/");
}

/** Which ends a word's beginning can have in the argument, piece by piece: no backtracking, pieces × length steps. */
function matchesPieces(pieces: readonly Piece[], argument: string): boolean {
  let ends = new Set([0]);
  for (const piece of pieces) {
    const next = new Set<number>();
    for (const at of ends) {
      if (piece.is === "text") {
        if (argument.startsWith(piece.text, at)) next.add(at + piece.text.length);
        continue;
      }
      if (piece.is === "star" || piece.is === "deep") next.add(at);
      for (let end = at; end < argument.length && isOf(piece.is, argument[end] ?? "", end === at); end++) {
        if (next.has(end + 1)) break; // from here on another start has been everywhere
        next.add(end + 1);
      }
    }
    if (next.size === 0) return false;
    ends = next;
  }
  return ends.has(argument.length);
}

function isOf(is: "star" | "deep" | "number" | "name", c: string, first: boolean): boolean {
  switch (is) {
    case "star":
      return c !== "/";
    case "deep":
      return true;
    case "number":
      return c >= "0" && c <= "9";
    case "name":
      return /[A-Za-z0-9_]/.test(c) || (!first && /[.@:-]/.test(c));
    default:
      return unreachable(is);
  }
}
