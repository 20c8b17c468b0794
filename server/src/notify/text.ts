/**
 * Characters that a screen does not show, or that make it show something else than was written: controls (but tab and
 * line feed), marks and overrides of direction (Unicode TR 9), zero-width and other ignorable characters, tags, separators.
 * U+FE0F stays: it only makes an emoji of the sign before it.
 */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
const HARMLESS: ReadonlySet<string> = new Set(["\t", "\n", "\uFE0F"]);

/** Text of strangers with everything unseen made visible (`‹U+202E›`), so that it cannot pretend to be something else. */
export function visible(text: string): string {
  return text
    .toWellFormed()
    .replaceAll("\r\n", "\n")
    .replaceAll(UNSEEN, (char) => (HARMLESS.has(char) ? char : `‹U+${codePoint(char)}›`));
}

/** The same in one line, cut to `max` characters. */
export function oneLine(text: string, max: number): string {
  const line = visible(text).replaceAll(/\s+/g, " ").trim();
  const chars = Array.from(line);
  return chars.length <= max ? line : `${chars.slice(0, max - 1).join("")}…`;
}

/** A moment for people, to the minute: `2026-11-20 14:05 UTC`. */
export function moment(at: Date): string {
  return `${at.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}

function codePoint(char: string): string {
  return (char.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
}
