import { GlassError } from "./errors.ts";

const UNIT_MS = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** The longest that anything is kept: 27 years. What was mistyped beyond that is no duration. */
export const LONGEST_KEEP_MS: number = 9_999 * UNIT_MS.d;

/**
 * Parses `30m`, `90s`, `2h`, `7d` or a compound such as `1h30m` into milliseconds.
 * Strict: no spaces, no fractions, no bare numbers, units from large to small, at most `maxMs` (366 days when left out).
 * @throws GlassError `usage` that names the accepted form.
 */
export function parseDuration(text: string, maxMs: number = 366 * UNIT_MS.d): number {
  const match = /^(?:(\d{1,4})d)?(?:(\d{1,4})h)?(?:(\d{1,4})m)?(?:(\d{1,6})s)?$/.exec(text);
  const [, d, h, m, s] = match ?? [];
  const ms =
    Number(d ?? 0) * UNIT_MS.d + Number(h ?? 0) * UNIT_MS.h + Number(m ?? 0) * UNIT_MS.m + Number(s ?? 0) * UNIT_MS.s;
  if (match === null || text === "" || ms <= 0 || ms > maxMs) {
    throw new GlassError("usage", `"${text.slice(0, 40)}" is not a duration`, {
      next: "Write it as 30m, 90s, 2h or 1h30m.",
    });
  }
  return ms;
}

/** The inverse for people: `5400000` → `1h30m`. Below one second: `0s`. */
export function formatDuration(ms: number): string {
  let rest = Math.max(0, Math.floor(ms / 1000)) * 1000;
  let text = "";
  for (const unit of ["d", "h", "m", "s"] as const) {
    const count = Math.floor(rest / UNIT_MS[unit]);
    if (count > 0) text += `${count}${unit}`;
    rest -= count * UNIT_MS[unit];
  }
  return text === "" ? "0s" : text;
}
