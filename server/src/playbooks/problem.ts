/** One mistake in a policy file, placed so that an editor can jump to it. Never holds a secret's text. */
export interface PolicyProblem {
  /** Relative to the policy folder, with `/`. */
  readonly file: string;
  /** From 1. */
  readonly line: number;
  /** From 1, in UTF-16 units as editors count. */
  readonly column: number;
  readonly message: string;
  /** What to do, where that can be said. */
  readonly help?: string;
  /** The line itself, secrets masked; absent where there is none to show. */
  readonly source?: string;
  /** Where in `source` the mistake begins (from 0) and how many characters it has. */
  readonly mark?: { readonly at: number; readonly length: number };
}

const MAX_SOURCE = 160; // a longer line is cut around the mark, so that it stays one line on a terminal

/** Sorted by file and place; the same mistake at the same place once. */
export function sortProblems(problems: readonly PolicyProblem[]): readonly PolicyProblem[] {
  const seen = new Set<string>();
  return problems
    .filter((problem) => {
      const key = `${problem.file}\0${problem.line}\0${problem.column}\0${problem.message}`;
      if (seen.has(key)) return false;
      seen.add(key);
      return true;
    })
    .toSorted((a, b) => compare(a.file, b.file) || a.line - b.line || a.column - b.column);
}

/**
 * All problems as text for a terminal: place, sentence, the source line with a caret under the mistake, and what to do.
 * Control characters of the source are shown as `\u{…}`, so that a file cannot paint on the terminal.
 */
export function formatProblems(problems: readonly PolicyProblem[]): string {
  const files = new Set(problems.map((problem) => problem.file)).size;
  const blocks = problems.map((problem) => {
    const lines = [`${problem.file}:${problem.line}:${problem.column}: ${problem.message}`];
    if (problem.source !== undefined && problem.mark !== undefined) {
      const { text, at, length } = excerpt(problem.source, problem.mark);
      const number = String(problem.line);
      lines.push(`  ${number} | ${text}`);
      lines.push(`  ${" ".repeat(number.length)} | ${" ".repeat(at)}${"^".repeat(Math.max(1, length))}`);
    }
    if (problem.help !== undefined) lines.push(`  ${problem.help}`);
    return lines.join("\n");
  });
  const count = `${problems.length} problem${problems.length === 1 ? "" : "s"} in ${files} file${files === 1 ? "" : "s"}`;
  return `${blocks.join("\n\n")}\n\n${count}. Nothing was loaded.\n`;
}

/** The nearest of `known` by edit distance, if it is near enough to be a slip of the fingers. */
export function nearest(word: string, known: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1;
  if (word.length > 128) return undefined;
  for (const candidate of known) {
    if (Math.abs(candidate.length - word.length) >= bestDistance) continue;
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** "did you mean" where something is near, else the list itself where it is short enough to read. */
export function suggest(word: string, known: Iterable<string>): string | undefined {
  const all = [...known];
  const near = nearest(word, all);
  if (near !== undefined) return `Did you mean "${near}"?`;
  return all.length > 0 && all.length <= 12 ? `Known here: ${all.toSorted(compare).join(", ")}.` : undefined;
}

/** Order of code units: the same on every machine, unlike `localeCompare`. */
export function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Optimal string alignment: insert, delete, replace, or swap two neighbours. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let above = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (above[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      let cost = Math.min((row[j - 1] ?? 0) + 1, (above[j] ?? 0) + 1, replaced);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) cost = Math.min(cost, (before[j - 2] ?? 0) + 1);
      row.push(cost);
    }
    before = above;
    above = row;
  }
  return above[b.length] ?? 0;
}

function excerpt(source: string, mark: { at: number; length: number }): { text: string; at: number; length: number } {
  const start = mark.at > MAX_SOURCE - 40 ? mark.at - 40 : 0;
  const end = Math.min(source.length, start + MAX_SOURCE);
  const lead = start > 0 ? "…" : "";
  const before = visible(source.slice(start, mark.at));
  const marked = visible(source.slice(mark.at, Math.min(end, mark.at + mark.length)));
  const after = visible(source.slice(Math.min(end, mark.at + mark.length), end));
  return {
    text: `${lead}${before}${marked}${after}${end < source.length ? "…" : ""}`,
    at: lead.length + before.length,
    length: marked.length,
  };
}

function visible(text: string): string {
  return text
    .replaceAll("\t", " ")
    .replaceAll(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (char) => `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`);
}
