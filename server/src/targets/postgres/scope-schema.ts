/** The `scope:` of a playbook whose target is a PostgreSQL: its shape, its defaults and what is wrong with a bad one. */
import { z } from "zod";
import type { JsonObject } from "../../core/json.ts";
import type { Parsed, Problem } from "../target.ts";
import { CLASSES, GROUPS, type StatementClass } from "./scope-classes.ts";
import { NAME_PATTERN } from "./scope-names.ts";

const CLASS_WORDS: readonly string[] = [...Object.keys(CLASSES), ...Object.keys(GROUPS)];
const MAX_LIST = 1_000;

const className = z.string().superRefine((word, context) => {
  if (CLASS_WORDS.includes(word)) return;
  context.addIssue({ code: "custom", message: `unknown statement class "${word}"${didYouMean(word, CLASS_WORDS)}` });
});

const pattern = z
  .string()
  .max(130)
  .regex(
    NAME_PATTERN,
    'must be "schema.name", "schema.*", "name" or "*", in letters, digits, _ and $, where * stands for any part',
  );

const searchPathSchema = z
  .string()
  .regex(
    /^(?!pg_)[A-Za-z_][\w$]{0,62}$/,
    "must be a schema's name in letters, digits, _ and $, not one of PostgreSQL's own",
  );

const scopeSchema = z.strictObject({
  /** The template role whose privileges the lease's own role inherits. */
  role: z
    .string()
    .regex(/^[a-z_][a-z0-9_$]{0,62}$/, "must be a role's name in lower-case letters, digits, _ and $, at most 63")
    .refine((role) => !/^(?:pg_|gk_)/.test(role) && !["public", "none", "postgres"].includes(role), {
      message:
        "must be a template role of your own: not PUBLIC, a superuser, a predefined role (pg_…) or a lease (gk_…)",
    }),
  /** Databases that a session may open; without it, those that the role may connect to. */
  databases: z
    .array(z.string().regex(/^[A-Za-z0-9_][\w$.-]{0,62}$/, "must be a database's name"))
    .max(MAX_LIST)
    .optional(),
  /** Statement classes and groups of them. */
  allow: z.array(className).max(MAX_LIST).default(["default"]),
  /** Wins over `allow`. */
  never: z.array(className).max(MAX_LIST).default([]),
  relations: z
    .strictObject({
      read: z.array(pattern).max(MAX_LIST).default([]),
      /** What may be written may be read as well. */
      write: z.array(pattern).max(MAX_LIST).default([]),
    })
    .optional(),
  /**
   * What unqualified names mean: the session starts with it, and can only leave out parts of it. With `relations` or
   * `functions` it is `[public]` if not given; without them, nothing is pinned unless it is given.
   */
  searchPath: z.array(searchPathSchema).min(1).max(20).optional(),
  /** Functions that may be called, besides PostgreSQL's own; without it, the target's EXECUTE privileges decide. */
  functions: z.array(pattern).max(MAX_LIST).optional(),
});
export type PostgresScope = z.output<typeof scopeSchema>;

/** Checks a playbook's `scope:`. The result is plain JSON with every default filled in. Never throws. */
export function parseScope(input: unknown): Parsed {
  const parsed = scopeSchema.safeParse(input);
  if (!parsed.success) return { ok: false, problems: parsed.error.issues.flatMap(problemsOf) };
  const { relations, functions, searchPath } = parsed.data;
  const pinned = searchPath ?? (relations === undefined && functions === undefined ? undefined : ["public"]);
  return { ok: true, value: JSON.parse(JSON.stringify({ ...parsed.data, searchPath: pinned })) as JsonObject };
}

/** The classes that a list of class and group names stands for. */
export function expandClasses(words: readonly string[]): ReadonlySet<StatementClass> {
  return new Set(
    words.flatMap((word): readonly StatementClass[] =>
      Object.hasOwn(GROUPS, word) ? GROUPS[word as keyof typeof GROUPS] : [word as StatementClass],
    ),
  );
}

function problemsOf(issue: z.core.$ZodIssue): readonly Problem[] {
  const path = issue.path.filter((part): part is string | number => typeof part !== "symbol");
  if (issue.code !== "unrecognized_keys") {
    if (path.length === 1 && path[0] === "role" && issue.code === "invalid_type" && issue.input === undefined) {
      return [{ path, message: "role is missing: name the template role whose privileges the session gets" }];
    }
    return [{ path, message: issue.message }];
  }
  const known = Object.keys(path[0] === "relations" ? { read: 0, write: 0 } : scopeSchema.shape);
  return issue.keys.map((key) => ({ path: [...path, key], message: `unknown key "${key}"${didYouMean(key, known)}` }));
}

function didYouMean(word: string, known: readonly string[]): string {
  const near = known
    .map((candidate) => ({
      candidate,
      distance: editDistance(word.slice(0, 40).toLowerCase(), candidate.toLowerCase()),
    }))
    .toSorted((a, b) => a.distance - b.distance)[0];
  return near !== undefined && near.distance <= Math.max(1, Math.floor(word.length / 3))
    ? `; did you mean "${near.candidate}"?`
    : `; known are ${known.join(", ")}`;
}

/** Levenshtein's, and a swap of two neighbours counts as one slip. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      let cost = Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, change);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) cost = Math.min(cost, (before[j - 2] ?? 0) + 1);
      next.push(cost);
    }
    before = row;
    row = next;
  }
  return row[b.length] ?? 0;
}
