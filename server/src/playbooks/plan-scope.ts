import canonicalize from "canonicalize";
import type { JsonObject, JsonValue } from "../core/json.ts";
import { byText } from "./plan-people.ts";
import type { Effect, RuleChange } from "./plan-rules.ts";
import type { KindChecks, KindScopeChange } from "./targets.ts";

const EFFECTS: Readonly<Record<KindScopeChange["effect"], Effect>> = {
  same: "neutral",
  narrower: "narrows",
  wider: "widens",
  other: "unproved",
};

/**
 * What differs between two scopes. What a scope's keys mean is the kind's business. Where the kind does not say which way
 * they went, a difference is `unproved` unless it is one of the two that mean the same for every kind: `allow` that lists
 * less, though not nothing, and `never` that lists more.
 * @param kind of the target before and after; undefined where it is another one, or not known.
 */
export function compareScopes(
  old: JsonObject,
  next: JsonObject,
  kind: Pick<KindChecks, "compareScopes"> | undefined,
): readonly RuleChange[] {
  if (textOf(old) === textOf(next)) return [];
  const told = kind?.compareScopes?.(old, next) ?? [];
  // A kind that says nothing of a difference has not proved anything about it.
  if (told.length > 0) {
    return told.map(({ key, effect, what }) => ({
      ...{ effect: EFFECTS[effect], rule: key === "" ? "scope" : `scope.${key}`, what },
    }));
  }
  const keys = [...new Set([...Object.keys(old), ...Object.keys(next)])].toSorted(byText);
  return keys.flatMap((key): RuleChange[] => {
    const [before, after] = [old[key], next[key]];
    if (textOf(before) === textOf(after)) return [];
    const effect = isNarrower(key, before, after) ? "narrows" : "unproved";
    return [{ effect, rule: `scope.${key}`, what: `${textOf(before)} → ${textOf(after)}` }];
  });
}

function isNarrower(key: string, before: JsonValue | undefined, after: JsonValue | undefined): boolean {
  const [old, next] = [wordsOf(before), wordsOf(after)];
  if (next === undefined) return false;
  if (key === "never") return before === undefined || (old !== undefined && old.every((word) => next.includes(word)));
  if (key !== "allow" || old === undefined) return false;
  // Nothing may be left out for an empty list: to some kind it might mean what is usual.
  return next.length > 0 && next.every((word) => old.includes(word));
}

function wordsOf(value: JsonValue | undefined): readonly string[] | undefined {
  if (!isList(value)) return undefined;
  const words = value.filter((item) => typeof item === "string");
  return words.length === value.length ? words : undefined;
}

function isList(value: JsonValue | undefined): value is readonly JsonValue[] {
  return Array.isArray(value);
}

/** RFC 8785, so that the order of keys is no difference. */
export function textOf(value: JsonValue | undefined): string {
  return value === undefined ? "none" : (canonicalize(value) ?? "none");
}
