import { formatDuration } from "../core/duration.ts";
import type { TestOutcome } from "./check-tests.ts";
import { type ClauseCoverage, percentOf } from "./coverage.ts";
import type { Layout } from "./layout.ts";
import type { Smell } from "./lint.ts";
import type { ClauseResult } from "./policy.ts";
import type { Explanation } from "./what-if.ts";

/** One smell: where, which, and what to do. */
export function printSmell(out: Layout, smell: Smell): void {
  const { file, line, column, code, name, severity, message, help } = smell;
  const mark = severity === "warning" ? out.yellow(`${code} ${name}`) : out.dim(`${code} ${name} (note)`);
  out.say(`${out.bold(`${file}:${line}:${column}`)} ${mark}`);
  out.block(message, 2);
  out.block(help, 2);
  out.say();
}

/** Why a test of a playbook failed. */
export function printFailure(out: Layout, { test: tested, decision, asked, atMs }: TestOutcome): void {
  const { place, expect, who, reason, forMs, approvedBy, incident } = tested;
  const said = [
    ...[`${expect} ${who}`, `reason ${reason}`, `for ${formatDuration(forMs)}`],
    ...(incident === undefined ? [] : [`incident ${incident}`]),
    ...(approvedBy.length === 0 ? [] : [`approved by ${approvedBy.join(", ")}`]),
    `at ${momentText(atMs)}`,
  ];
  out.say(`  ${out.bold(`${place.file}:${place.line}`)}`);
  out.block(said.join(", "), 4);
  if (expect === "deny") {
    out.block("It was allowed. Each of these held:", 4);
    out.table(clauseRows(out, decision.clauses), 6);
    return;
  }
  out.block(asked === "request" ? "It could not even be asked for:" : "It was asked for, and did not open:", 4);
  for (const sentence of [...decision.reasons, ...decision.wouldHold]) out.block(sentence, 6);
  const isIn = decision.clauses.some(({ clause, held }) => held && clause.startsWith("who."));
  const failing = decision.clauses.filter(({ clause, held }) => !held && !(isIn && clause.startsWith("who.")));
  out.table(clauseRows(out, failing), 6);
}

/** How much the tests exercise, and which tests are missing. */
export function printCoverage(out: Layout, coverage: readonly ClauseCoverage[]): void {
  const missing = coverage.filter(({ covered }) => !covered);
  const share = `${coverage.length - missing.length} of ${countOf(coverage.length, "clause")}`;
  out.block(`${percentOf(coverage)}% covered: for ${share} a test fails if the clause is taken away.`, 0);
  if (missing.length === 0) return;
  out.say();
  out.block("No test exercises these. To add:", 0);
  for (const playbook of new Set(missing.map(({ playbook: name }) => name))) {
    out.say(`  ${out.bold(playbook ?? "policy.yaml")}`);
    const own = missing.filter(({ playbook: name }) => name === playbook);
    const rows = own.map(({ clause, wanted }) => [out.yellow(clause), wanted]);
    out.table(rows, 4);
  }
}

/** The answer of `glass playbook explain`, with every clause. */
export function printExplanation(out: Layout, found: Explanation): void {
  const { person, playbook, asked, answer, missing, quorum, clauses } = found;
  const approvals = `${missing} more ${missing === 1 ? "person" : "people"} to agree`;
  const verdict = { yes: out.green("yes"), waits: out.yellow(`it waits for ${approvals}`), no: out.red("no") }[answer];
  out.say(`${out.bold(`May ${person.name} open ${playbook.name}?`)} ${verdict}`);
  const assumed = (key: Explanation["asked"]["assumed"][number], words: string): string =>
    asked.assumed.includes(key) ? ` ${out.dim(`(${words})`)}` : "";
  const rows = [
    ["reason", `${asked.reason}${assumed("reason", "the playbook's first")}`],
    ["for", `${formatDuration(asked.durationMs)}${assumed("duration", "the playbook's max")}`],
    ["at", `${momentText(asked.atMs)}${assumed("at", "now")}`],
    ["on call", `${asked.oncall.join(", ") || "no"}${assumed("oncall", "as oncall.yaml says")}`],
    ...(asked.unknown.length === 0 ? [] : [["unknown", asked.unknown.join(", ")]]),
    ...(playbook.when.incident === undefined ? [] : [["incident", asked.incident ?? "none"]]),
  ];
  out.table(rows, 2);
  out.say();
  out.table(clauseRows(out, clauses), 2);
  const section = (title: string, sentences: readonly string[]): void => {
    if (sentences.length === 0) return;
    out.say();
    out.say(out.bold(title));
    for (const sentence of sentences) out.block(sentence, 2);
  };
  section("A quorum decides, because", quorum);
  if (answer === "no") {
    section("Why not", found.reasons);
    section("What would have to be true", found.wouldHold);
  }
  if (answer === "waits") section("Whose yes would count", [found.couldApprove.slice(0, 20).join(", ") || "Nobody's."]);
}

/** An alternative that does not hold is no cross where another one does. */
function clauseRows(out: Layout, clauses: readonly ClauseResult[]): readonly (readonly string[])[] {
  const isIn = clauses.some(({ clause, held }) => held && clause.startsWith("who."));
  return clauses.map(({ clause, held, unknown, text: words }) => {
    const spare = isIn && clause.startsWith("who.");
    const mark = held ? out.green("✓") : spare ? out.dim("-") : unknown ? out.yellow("?") : out.red("✗");
    return [mark, clause, words];
  });
}

/** `1 test`, `2 tests`. */
export function countOf(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

/** In UTC, and without seconds, as `--at` and `at:` take it. */
function momentText(atMs: number): string {
  return `${new Date(atMs).toISOString().slice(0, 16)}Z`;
}
