import { parseDuration } from "../core/duration.ts";
import { GlassError } from "../core/errors.ts";
import { factsFor } from "./check-tests.ts";
import type { ClauseResult, Decision, Person, Playbook, Policy } from "./policy.ts";
import { suggest } from "./problem.ts";

/** What somebody wants to know about a playbook, as it was typed; what is left out is assumed. */
export interface WhatIf {
  readonly playbook: string;
  readonly person: string;
  readonly reason?: string;
  readonly duration?: string;
  /** The severity of the incident that is named. */
  readonly incident?: string;
  /** Rotas; left out: as oncall.yaml says. */
  readonly oncall?: readonly string[];
  /** Rotas, or "incident". */
  readonly unknown: readonly string[];
  readonly approvedBy: readonly string[];
  /** RFC 3339. */
  readonly at?: string;
  readonly unsigned?: string;
  readonly open?: string;
  readonly overdue?: string;
  readonly sinceLast?: string;
}

export interface Explanation {
  readonly person: Person;
  readonly playbook: Playbook;
  /** `no`: the policy denies it. `waits`: it may be asked for, and so many approvals are missing. `yes`: it opens. */
  readonly answer: "yes" | "waits" | "no";
  /** What was asked, with everything that was assumed. */
  readonly asked: {
    readonly reason: string;
    readonly durationMs: number;
    readonly atMs: number;
    /** `assumed` of what was not typed. */
    readonly assumed: readonly ("reason" | "duration" | "oncall" | "at")[];
    readonly oncall: readonly string[];
    readonly unknown: readonly string[];
    readonly incident?: string;
  };
  readonly need: number;
  readonly missing: number;
  readonly quorum: readonly string[];
  readonly clauses: readonly ClauseResult[];
  readonly reasons: readonly string[];
  readonly wouldHold: readonly string[];
  /** Names of those whose yes would count and has not been given. */
  readonly couldApprove: readonly string[];
}

/**
 * Asks the policy as the server would: may this person ask for it, and does it then open?
 * @param nowMs for what is asked without a moment.
 * @throws GlassError `usage` for a name that the policy does not have, or a value that cannot be read.
 */
export function explain(policy: Policy, asked: WhatIf, nowMs: number): Explanation {
  const playbook = policy.playbook(asked.playbook);
  if (playbook === undefined) throw unknownName("playbook", asked.playbook, policy.playbooks.map(nameOf));
  const person = personOf(policy, asked.person);
  const rotas = policy.rotas.map(nameOf);
  for (const name of asked.oncall ?? []) if (!rotas.includes(name)) throw unknownName("rota", name, rotas);
  for (const name of asked.unknown) {
    if (name !== "incident" && !rotas.includes(name)) throw unknownName("rota", name, [...rotas, "incident"]);
  }
  const reason = asked.reason ?? playbook.when.reasons[0] ?? "";
  if (!policy.reasons.has(reason)) throw unknownName("reason", reason, [...policy.reasons.keys()]);
  const approvedBy = asked.approvedBy.map((name) => personOf(policy, name));
  const durationMs = asked.duration === undefined ? playbook.time.maxMs : parseDuration(asked.duration);
  const atMs = asked.at === undefined ? nowMs : momentOf(asked.at);
  const { oncall, unknown } = onCall(policy, person, asked);
  const facts = factsFor(policy, {
    ...{ oncall, unknown, atMs },
    ...(asked.incident === undefined ? {} : { incident: asked.incident }),
    usage: {
      unsigned: countOf("unsigned", asked.unsigned),
      open: countOf("open", asked.open),
      overdue: countOf("overdue", asked.overdue),
      ...(asked.sinceLast === undefined ? {} : { sinceLastMs: parseDuration(asked.sinceLast) }),
    },
  });
  const question = { person: person.name, playbook: playbook.name, reason, durationMs, facts };
  const request = policy.decide({ ...question, action: "request" });
  const decision: Decision = request.allow
    ? policy.decide({ ...question, action: "open", approvedBy: approvedBy.map(nameOf) })
    : request;
  const waits = request.allow && !decision.allow && decision.missing > 0;
  const couldApprove = policy
    .eligibleApprovers(playbook.name, person.name)
    .filter((other) => !approvedBy.includes(other))
    .map(nameOf);
  const assumed = (["reason", "duration", "oncall", "at"] as const).filter((key) => asked[key] === undefined);
  const concerned = new Set(playbook.who.flatMap(({ by, name }) => (by === "oncall" ? [name] : [])));
  return {
    ...{ person, playbook, answer: decision.allow ? "yes" : waits ? "waits" : "no" },
    asked: {
      ...{ reason, durationMs, atMs, oncall: oncall.filter((name) => concerned.has(name)), assumed },
      unknown: unknown.filter((name) => concerned.has(name) || name === "incident"),
      ...(asked.incident === undefined ? {} : { incident: asked.incident }),
    },
    ...{ need: decision.need, missing: decision.missing, quorum: decision.quorum, clauses: decision.clauses },
    ...{ reasons: decision.reasons, wouldHold: decision.wouldHold, couldApprove },
  };
}

/** As typed; else a list of people in oncall.yaml says yes or no, and what only a source knows is unknown. */
function onCall(policy: Policy, person: Person, asked: WhatIf): { oncall: string[]; unknown: string[] } {
  const unknown = [...asked.unknown];
  if (asked.oncall !== undefined) return { oncall: [...asked.oncall], unknown };
  const oncall: string[] = [];
  for (const rota of policy.rotas) {
    if (!("people" in rota)) unknown.push(rota.name);
    else if (rota.people.some((name) => policy.person(name) === person)) oncall.push(rota.name);
  }
  return { oncall, unknown };
}

function personOf(policy: Policy, name: string): Person {
  const person = policy.person(name);
  if (person === undefined) throw unknownName("person", name, policy.people.map(nameOf));
  return person;
}

function momentOf(text: string): number {
  const form = /^\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:\d\d))?$/;
  const atMs = form.test(text) ? Date.parse(text) : Number.NaN;
  if (Number.isFinite(atMs)) return atMs;
  throw new GlassError("usage", "--at is not a moment", {
    next: "Write it as 2026-11-20T02:14Z, or with +01:00 for Z.",
  });
}

function countOf(option: string, text = "0"): number {
  const count = /^\d{1,6}$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isFinite(count)) return count;
  throw new GlassError("usage", `--${option} is not a count`, { next: `Write it as --${option} 2.` });
}

function unknownName(what: string, name: string, known: readonly string[]): GlassError {
  const next = suggest(name, known);
  const message = `there is no ${what} ${JSON.stringify(name.slice(0, 64))} in this policy`;
  return new GlassError("usage", message, next === undefined ? {} : { next });
}

function nameOf({ name }: { readonly name: string }): string {
  return name;
}
