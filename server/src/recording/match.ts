import { GlassError } from "../core/errors.ts";

/** What is looked for: words as they are, whatever their case, or a regular expression. */
export interface Pattern {
  readonly text: string;
  readonly regex: boolean;
}

const MAX_PATTERN_LENGTH = 200;
const AROUND = 100;

/**
 * @returns a function that gives the found words with what stands around them, or undefined.
 * @throws GlassError `usage` for a pattern that is empty, too long, or no expression.
 */
export function matcher(pattern: Pattern): (text: string) => string | undefined {
  checkPattern(pattern);
  // Words too: text in lower case has its characters at other places than the text itself.
  const expression = new RegExp(pattern.regex ? pattern.text : RegExp.escape(pattern.text), "iu");
  return (text) => {
    try {
      const found = expression.exec(text);
      return found === null ? undefined : around(text, found.index, found[0].length);
    } catch (cause) {
      throw tooSlow(cause); // it is compiled when it is first used, and may be too large for that
    }
  };
}

/** Said of an expression that cannot be matched within its limits. */
export function tooSlow(cause?: unknown): GlassError {
  return new GlassError("usage", "this expression takes too long", {
    next: "Use a simpler one, without nested repetition, or search for plain words.",
    cause,
  });
}

/** @throws GlassError `usage`, as {@link matcher}. */
export function checkPattern({ text, regex }: Pattern): void {
  if (text.trim() === "" || text.length > MAX_PATTERN_LENGTH) {
    throw new GlassError("usage", `a search text has 1 to ${MAX_PATTERN_LENGTH} characters`);
  }
  if (!regex) return;
  try {
    void new RegExp(text, "iu");
  } catch (cause) {
    throw new GlassError("usage", "that is not a regular expression", {
      next: "Without --regex it is looked for as it is.",
      cause,
    });
  }
}

function around(text: string, at: number, length: number): string {
  const [from, to] = [Math.max(0, at - AROUND), Math.min(text.length, at + Math.min(length, AROUND) + AROUND)];
  return `${from > 0 ? "…" : ""}${text.slice(from, to)}${to < text.length ? "…" : ""}`.toWellFormed();
}
