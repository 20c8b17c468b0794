import type { JsonObject, JsonValue } from "../core/json.ts";

const MAX_LINES = 20;
/** As whom somebody works on the target: read first. */
const AS_WHOM = new Set(["user", "role"]);

/** A scope as words, whatever the kind: one line per key, as whom first, and last what it expressly does not allow. */
export function scopeWords(scope: JsonObject): readonly string[] {
  // The store gives keys back in an order of its own.
  const entries = Object.entries(scope).toSorted(
    ([a], [b]) => Number(AS_WHOM.has(b)) - Number(AS_WHOM.has(a)) || (a < b ? -1 : 1),
  );
  const lines = entries
    .filter(([, value]) => value !== false && (!Array.isArray(value) || value.length > 0))
    .map(([key, value]) => `${key}: ${words(value)}`);
  const not = entries.filter(([, value]) => value === false).map(([key]) => key);
  if (not.length > 0) lines.push(`not: ${not.join(", ")}`);
  return lines.length > MAX_LINES ? [...lines.slice(0, MAX_LINES), "and more"] : lines;
}

function words(value: JsonValue): string {
  if (Array.isArray(value)) return value.map(words).join(", ");
  if (typeof value === "object" && value !== null) {
    return Object.entries(value)
      .map(([key, inner]) => `${key} ${words(inner)}`)
      .join(", ");
  }
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}
