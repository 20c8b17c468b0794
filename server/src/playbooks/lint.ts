import type { Policy } from "./policy.ts";
import { compare } from "./problem.ts";
import { findSmells } from "./smells.ts";
import { type Comment, readSources, type Sources, type Spot } from "./sources.ts";

/**
 * Every smell, once. A policy that loads is sound; a smell is what a careful reviewer would ask about. `warning`: access may
 * be wider than meant, or shut when it is needed; `note`: tidiness. docs/playbook-lint.md has a section for each, and a
 * test keeps the two in step. A code keeps its meaning for ever, since exceptions are written with it.
 */
export const SMELLS = {
  GK001: { name: "nobody-can-approve", severity: "warning" },
  GK002: { name: "approvers-are-requesters", severity: "warning" },
  GK003: { name: "long-window", severity: "warning" },
  GK004: { name: "unreachable-clause", severity: "warning" },
  GK005: { name: "admin-scope", severity: "warning" },
  GK006: { name: "no-drill", severity: "warning" },
  GK007: { name: "no-review", severity: "warning" },
  GK008: { name: "unanswered-on-sensitive", severity: "warning" },
  GK009: { name: "no-fallback", severity: "warning" },
  GK010: { name: "no-tests", severity: "warning" },
  GK011: { name: "single-approver", severity: "warning" },
  GK012: { name: "unused-reason", severity: "note" },
  GK013: { name: "unused-template", severity: "note" },
  GK014: { name: "no-other-reviewer", severity: "warning" },
  GK015: { name: "never-usable", severity: "warning" },
  GK016: { name: "bad-exception", severity: "warning" },
  GK017: { name: "unlimited-opening", severity: "warning" },
  GK018: { name: "nobody-told", severity: "note" },
} as const satisfies Record<string, { name: string; severity: "warning" | "note" }>;

export type SmellCode = keyof typeof SMELLS;

/** What a check found; `playbook` where it is about one. */
export interface Finding {
  readonly code: SmellCode;
  readonly spot: Spot;
  readonly playbook?: string;
  readonly message: string;
  /** What to do about it. */
  readonly help: string;
}

export interface Smell extends Spot {
  readonly code: SmellCode;
  readonly name: string;
  readonly severity: "warning" | "note";
  readonly playbook?: string;
  readonly message: string;
  readonly help: string;
  /** The reason written beside an exception; undefined: there is none, and the smell counts. */
  readonly because?: string;
}

/**
 * The smells of a policy, by file and place.
 * @param files the texts that the policy was loaded from, by path below its folder: for places, and written exceptions.
 */
export function lintPolicy(policy: Policy, files: ReadonlyMap<string, string>): readonly Smell[] {
  const sources = readSources(files);
  const { exceptions, faults } = readExceptions(sources.comments);
  const used = new Set<Exception>();
  const smells = findSmells(policy, sources).map((finding): Smell => {
    const exception = exceptions.find((known) => covers(known, finding, sources));
    if (exception !== undefined) used.add(exception);
    return smellOf(finding, exception?.because);
  });
  const unused = exceptions
    .filter((exception) => !used.has(exception))
    .map(({ code, spot }): Finding => {
      const message = `the exception for ${code} has nothing to except`;
      return { code: "GK016", spot, message, help: "Remove it, so that it cannot hide the next one." };
    });
  return [...smells, ...[...faults, ...unused].map((finding) => smellOf(finding))].toSorted(
    (a, b) => compare(a.file, b.file) || a.line - b.line || a.column - b.column || compare(a.code, b.code),
  );
}

interface Exception {
  readonly code: SmellCode;
  readonly because: string;
  readonly spot: Spot;
}

function smellOf({ code, spot, playbook, message, help }: Finding, because?: string): Smell {
  const { file, line, column } = spot;
  return {
    ...{ file, line, column, code, ...SMELLS[code], message, help },
    ...(playbook === undefined ? {} : { playbook }),
    ...(because === undefined ? {} : { because }),
  };
}

/** An exception holds for its own file: for what is found there, and for the playbook that is in it. */
function covers(exception: Exception, { code, spot, playbook }: Finding, sources: Sources): boolean {
  const { file } = exception.spot;
  return (
    exception.code === code && (file === spot.file || (playbook !== undefined && file === sources.fileOf(playbook)))
  );
}

const EXAMPLE = "Write it as: # glasskey-lint: allow GK003 because migrations take five hours";

/** Comments such as `# glasskey-lint: allow GK003 because …`. What is not exactly that excepts nothing, and is said. */
function readExceptions(comments: readonly Comment[]): {
  exceptions: readonly Exception[];
  faults: readonly Finding[];
} {
  const exceptions: Exception[] = [];
  const faults: Finding[] = [];
  for (const { text, file, line, column } of comments) {
    const spot = { file, line, column };
    if (!/^#+\s*glasskey[-_ ]?lint\b/i.test(text)) continue;
    const match = /^# glasskey-lint: allow (GK\d{3}(?:, GK\d{3})*)(?: because (\S.*))?$/.exec(text);
    const codes = (match?.[1] ?? "").split(", ");
    const known = codes.filter((code): code is SmellCode => Object.hasOwn(SMELLS, code) && code !== "GK016");
    const because = match?.[2];
    const fault = (message: string): void => void faults.push({ code: "GK016", spot, message, help: EXAMPLE });
    if (match === null) fault("this is not a lint exception");
    else if (because === undefined) fault("an exception says why");
    else if (known.length < codes.length) fault("this code cannot be excepted");
    else for (const code of known) exceptions.push({ code, because, spot });
  }
  return { exceptions, faults };
}
