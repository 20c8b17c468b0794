/**
 * A command with keyed hashes in the place of its arguments: the program's name stays. Where the text holds what a shell
 * would interpret beyond words and quotes, everything behind the first word is one value.
 */
export function maskedCommand(text: string, hash: (value: string) => string): string {
  const [program = ""] = /^\s*[\w./+-]*/.exec(text) ?? [];
  const rest = text.slice(program.length);
  // `NAME=value program`, a quoted program: the value is not told from the name's look.
  if (program.trim() === "" || (rest !== "" && !/^\s/.test(rest))) return hash(text);
  if (rest.trim() === "") return text;
  const words = wordsOf(rest);
  return `${program.trim()} ${words === undefined ? hash(rest.trim()) : words.map(hash).join(" ")}`;
}

/** Words between spaces with their quotes resolved; undefined for anything that is more than that. */
function wordsOf(text: string): string[] | undefined {
  const words: string[] = [];
  const word = /\s+|'([^']*)'|"([^"$`\\]*)"|([^\s'"\\$`;&|<>()*?[\]#~{}]+)/gy;
  let open = false;
  while (word.lastIndex < text.length) {
    const found = word.exec(text);
    if (found === null) return undefined;
    const part = found[1] ?? found[2] ?? found[3];
    if (part === undefined) open = false;
    else if (open) words.push((words.pop() ?? "") + part);
    else {
      words.push(part);
      open = true;
    }
  }
  return words.length > MAX_WORDS ? undefined : words;
}

/** More are masked as one. */
const MAX_WORDS = 1_000;
