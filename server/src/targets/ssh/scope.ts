/** The `scope:` of a playbook whose target is a host: its shape, its defaults and what is wrong with a bad one. */
import { z } from "zod";
import { GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { Parsed, Problem } from "../target.ts";
import { globProblem } from "./paths.ts";
import { patternProblem } from "./patterns.ts";
import { addressProblem } from "./scope-addresses.ts";

const MAX_LIST = 1_000;

/** A list of texts of which each is checked by a function that says what is wrong with it. */
const listOf = (problem: (text: string) => string | undefined): z.ZodDefault<z.ZodArray<z.ZodString>> =>
  z
    .array(
      z
        .string()
        .max(1_024)
        .superRefine((text, context) => {
          const message = problem(text);
          if (message !== undefined) context.addIssue({ code: "custom", message });
        }),
    )
    .max(MAX_LIST)
    .default([]);

const sftpSchema = z.strictObject({
  /** Files that may be read, and folders that may be listed. */
  read: listOf(globProblem),
  /** Files that may be written, made, renamed and removed. Reading them back is `read`'s. */
  write: listOf(globProblem),
});

const scopeSchema = z.strictObject({
  /** The account on the host. */
  user: z
    .string()
    .regex(
      /^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/,
      "must be an account's name in letters, digits, _, . and -, not beginning with a digit, at most 32",
    ),
  /** A shell, and with it any command. */
  shell: z.boolean().default(false),
  /** Commands that may be run without a shell, each a pattern (patterns.ts). */
  commands: listOf(patternProblem),
  sftp: sftpSchema.optional(),
  /** Where connections through the host may go: `host:port`, or the absolute path of a socket. */
  forward: listOf(addressProblem),
  /** Where the host may listen for the client, in the same form. */
  remoteForward: listOf(addressProblem),
  /** The client's agent on the host: whoever is root there can use its keys while the session lasts. */
  agent: z.boolean().default(false),
  x11: z.boolean().default(false),
  /** Variables that the client may set, besides LANG and LC_*: names, or a beginning and `*`. */
  env: listOf((text) =>
    /^[A-Za-z_][A-Za-z0-9_]{0,62}\*?$/.test(text) ? undefined : "must be a variable's name, or its beginning and *",
  ),
  /** Of files that pass: their digest only, or also their content up to a bound. */
  files: z.enum(["digest", "keep"]).default("digest"),
});
export type SshScope = z.output<typeof scopeSchema>;

const KEYS = Object.keys(scopeSchema.shape);

/** Checks a playbook's `scope:`. The result is plain JSON with every default filled in. Never throws. */
export function parseScope(input: unknown): Parsed {
  const parsed = scopeSchema.safeParse(input);
  if (!parsed.success) return { ok: false, problems: parsed.error.issues.flatMap(problemsOf) };
  const variable = parsed.data.env.findIndex((name) => name.startsWith("LC_GLASSKEY"));
  if (variable >= 0) return { ok: false, problems: [{ path: ["env", variable], message: "is Glasskey's own" }] };
  return { ok: true, value: JSON.parse(JSON.stringify(parsed.data)) as JsonObject };
}

/** A stored scope as this code uses it. @throws GlassError `config_invalid` if it is not what {@link parseScope} accepts. */
export function scopeOf(scope: JsonObject): SshScope {
  const parsed = parseScope(scope);
  if (parsed.ok) return parsed.value as unknown as SshScope;
  const why = parsed.problems[0]?.message ?? "it is not valid";
  throw new GlassError("config_invalid", `the scope cannot be used: ${why}`);
}

function problemsOf(issue: z.core.$ZodIssue): readonly Problem[] {
  const path = issue.path.filter((part): part is string | number => typeof part !== "symbol");
  if (issue.code === "unrecognized_keys") {
    const known = path[0] === "sftp" ? ["read", "write"] : KEYS;
    return issue.keys.map((key) => ({
      path: [...path, key],
      message: `unknown key "${key}"${didYouMean(key, known)}`,
    }));
  }
  if (path.length === 1 && path[0] === "user" && issue.code === "invalid_type" && issue.input === undefined) {
    return [{ path, message: "user is missing: name the account on the host that the session gets" }];
  }
  return [{ path, message: issue.message }];
}

function didYouMean(word: string, known: readonly string[]): string {
  const near = known.find((key) => isNear(word.toLowerCase(), key.toLowerCase()));
  return near === undefined ? `; known are ${known.join(", ")}` : `; did you mean "${near}"?`;
}

/** Whether one slip makes the one of the other, or one is the other's beginning. */
function isNear(a: string, b: string): boolean {
  if (a.length > 2 && (b.startsWith(a) || a.startsWith(b))) return true;
  let start = 0;
  while (start < a.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const [left, right] = [a.length - start - end, b.length - start - end];
  return (
    Math.max(left, right) <= 1 || (left === 2 && right === 2 && a[start] === b[start + 1] && a[start + 1] === b[start])
  );
}
