import { findMoment } from "./plan-hours.ts";
import type { Decision, Evidence, Facts, Playbook, PlaybookTest, Policy, Question } from "./policy.ts";

/** How one `tests:` entry came out. */
export interface TestOutcome {
  readonly playbook: string;
  readonly test: PlaybookTest;
  readonly passed: boolean;
  /** The decision that settled it: a no to the request or to the opening, or the yes to the opening. */
  readonly decision: Decision;
  /** Which of the two it was. */
  readonly asked: "request" | "open";
  /** The moment at which it was decided, in milliseconds since the epoch. */
  readonly atMs: number;
}

/** Monday 2026-01-05, 10:00 UTC, where no hours matter. */
const ANY_MOMENT_MS = Date.UTC(2026, 0, 5, 10);

/** Runs the tests of all playbooks, or of one, through the decision that the server makes. */
export function runTests(policy: Policy, only?: string): readonly TestOutcome[] {
  return policy.playbooks
    .filter(({ name }) => only === undefined || name === only)
    .flatMap((playbook) => {
      const tests = policy.tests.get(playbook.name) ?? [];
      const usualMs = tests.some(({ atMs }) => atMs === undefined) ? usualMoment(policy, playbook) : ANY_MOMENT_MS;
      return tests.map((test) => runTest(policy, playbook.name, test, usualMs));
    });
}

/**
 * `allow`: the request is allowed, and so is the opening with the approvals that the test names. `deny`: one of the two
 * is not.
 * @param usualMs the moment for a test that names none; see {@link usualMoment}.
 */
export function runTest(policy: Policy, playbook: string, test: PlaybookTest, usualMs: number): TestOutcome {
  const atMs = test.atMs ?? usualMs;
  const question = {
    ...{ person: test.who, playbook, reason: test.reason, durationMs: test.forMs, approvedBy: test.approvedBy },
    facts: factsFor(policy, { ...test, atMs }),
  };
  let asked: Extract<Question["action"], "request" | "open"> = "request";
  let decision = policy.decide({ ...question, action: asked });
  if (decision.allow) {
    asked = "open";
    decision = policy.decide({ ...question, action: asked });
  }
  return { playbook, test, passed: decision.allow === (test.expect === "allow"), decision, asked, atMs };
}

/** What is assumed for a question that is not asked in earnest. */
export interface Assumed {
  /** Rotas that the person is on call for; all others are "no", unless they are among the unknown. */
  readonly oncall: readonly string[];
  /** Rotas, or "incident", that nobody knows about. */
  readonly unknown: readonly string[];
  /** The severity of the incident that the person names. */
  readonly incident?: string;
  readonly usage: Facts["usage"];
  readonly atMs: number;
}

export function factsFor(policy: Policy, assumed: Assumed): Facts {
  const oncall = policy.rotas.map(({ name }): [string, Evidence] => {
    if (assumed.unknown.includes(name)) return [name, "unknown"];
    return [name, assumed.oncall.includes(name) ? "true" : "false"];
  });
  const { incident: severity, usage, atMs } = assumed;
  const told: Facts["incident"] = severity === undefined ? { state: "none" } : { state: "open", severity };
  const incident: Facts["incident"] = assumed.unknown.includes("incident") ? { state: "unknown" } : told;
  return { oncall: Object.fromEntries(oncall), incident, usage, atMs };
}

/**
 * A moment within the playbook's hours and outside those of every rule of `forbid` that concerns its target, in the first
 * full week of 2026; where there is none, one within its hours.
 */
export function usualMoment(policy: Policy, playbook: Playbook): number {
  const target = policy.target(playbook.target);
  const denied = policy.denials.filter(
    ({ hours, targets, tags }) =>
      hours !== undefined &&
      ((targets.length === 0 && tags.length === 0) ||
        targets.includes(playbook.target) ||
        tags.some((tag) => target?.tags.includes(tag) === true)),
  );
  const found = findMoment([playbook.when], denied);
  return found ?? findMoment([playbook.when]) ?? ANY_MOMENT_MS;
}
