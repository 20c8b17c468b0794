import { createPolicy } from "../server/src/playbooks/decide.ts";
import { reference, type World } from "../server/src/playbooks/fixtures/reference.ts";
import type { Facts, Person, Playbook, Policy, Question, Target } from "../server/src/playbooks/policy.ts";
import { percentile, result, type BenchContext, type Result } from "./result.ts";

export const summary = "playbooks: loaded, and decisions a second, for 500 playbooks, 5,000 people, 200 groups";

const [PLAYBOOKS, PEOPLE, GROUPS, TARGETS, ROTAS] = [500, 5_000, 200, 100, 50];
const LOADS = 3;
/** Of each kind and round; the first round lets the compilers of Node warm up, and is not counted. */
const QUESTIONS = 2_000;
const ROUNDS = 4;
const PEER_QUESTIONS = 200;
const NOON_MS = Date.UTC(2026, 10, 20, 12);

/** Measures in this process, without a server: what a decision costs whoever asks for it. */
export async function run({ signal, progress }: BenchContext): Promise<Result[]> {
  const world = bigWorld();
  progress(`policy: ${PLAYBOOKS} playbooks, ${PEOPLE} people and ${GROUPS} groups are compiled and checked`);
  const loadMs: number[] = [];
  let policy: Policy | undefined;
  for (let i = 0; i < LOADS; i += 1) {
    signal.throwIfAborted();
    const begun = performance.now();
    policy = createPolicy({ ...world, hash: "", rotas: [], reasons: new Map(), tests: new Map() });
    loadMs.push(performance.now() - begun);
  }
  if (policy === undefined) throw new Error("nothing was loaded");

  progress("policy: requests, openings and approvals are decided, over all playbooks and people");
  const questions = questionsFor(policy);
  const tookMs: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const [i, question] of questions.entries()) {
      if (i % 500 === 0) {
        signal.throwIfAborted();
        await new Promise(setImmediate); // so that Ctrl-C is heard
      }
      const begun = performance.now();
      const { allow } = policy.decide(question);
      if (round > 0) tookMs.push(performance.now() - begun);
      if (allow !== expected(i)) throw new Error(`the benchmark's question ${i} was not decided as it should`);
    }
  }
  progress("policy: the plain reference evaluator decides some of them too");
  const some = questions.filter((_, i) => i % Math.floor(questions.length / PEER_QUESTIONS) === 0);
  const begun = performance.now();
  const verdicts = some.map((question) => reference(world, question).allow);
  const peerMs = performance.now() - begun;
  if (some.some((question, i) => policy.decide(question).allow !== verdicts[i])) {
    throw new Error("the reference decides otherwise");
  }

  const perSecond = (count: number, ms: number): number => Math.round((count / ms) * 1_000);
  const total = tookMs.reduce((sum, ms) => sum + ms, 0);
  const begin = performance.now();
  const rows = policy.playbooks.map(({ name }) => policy.canRequest("p7", name, factsFor(name)));
  const listMs = performance.now() - begin;
  if (rows.length !== PLAYBOOKS) throw new Error("the list is not complete");
  return [
    result("load: compile, check types, parse", "s", (loadMs[0] ?? 0) / 1_000, { goal: { atMost: 3 } }),
    result("load once more, nothing changed", "s", Math.min(...loadMs.slice(1)) / 1_000),
    result("decisions, one after the other", "1/s", perSecond(tookMs.length, total), {
      peer: { name: "plain evaluator, whole world per question", value: perSecond(some.length, peerMs) },
      goal: { atLeast: 5_000 },
    }),
    result("decision, median", "ms", percentile(tookMs, 0.5)),
    result("decision, p99", "ms", percentile(tookMs, 0.99), { goal: { atMost: 1 } }),
    result(`glass ls: one person, all ${PLAYBOOKS} playbooks`, "ms", listMs),
  ];
}

/** Every fifth question is refused. */
function expected(i: number): boolean {
  return i % 5 !== 0;
}

function questionsFor(policy: Policy): Question[] {
  return Array.from({ length: 3 * QUESTIONS }, (_, i): Question => {
    const playbook = `b${(i * 17) % PLAYBOOKS}`;
    const requester = `p${(i * 31) % PEOPLE}`;
    const approver = policy.eligibleApprovers(playbook, requester)[i % 7]?.name ?? "";
    const use = {
      person: requester,
      playbook,
      facts: factsFor(playbook),
      durationMs: expected(i) ? 600_000 : 86_400_000,
    };
    if (i % 3 === 0) return { action: "request", reason: "outage", ...use };
    if (i % 3 === 1) return { action: "open", reason: "outage", ...use, approvedBy: [approver] };
    return {
      action: "approve",
      person: approver,
      playbook,
      requester,
      ageMs: expected(i) ? 1 : 86_400_000,
      approvedBy: [],
    };
  });
}

function factsFor(playbook: string): Facts {
  const rota = `r${Number(playbook.slice(1)) % ROTAS}`;
  return {
    ...{ oncall: { [rota]: "true" }, incident: { state: "open", severity: "SEV1" }, atMs: NOON_MS },
    usage: { unsigned: 0, open: 0, overdue: 0 },
  };
}

/** Everybody in three groups, every third an approver; playbooks that use all of the language in turn. */
export function bigWorld(): World {
  const people = Array.from({ length: PEOPLE }, (_, i): Person => ({
    ...{ name: `p${i}`, enabled: true, aliases: [`p${i}@shop.example`], notify: [] },
    roles: i % 3 === 0 ? ["requester", "approver"] : ["requester"],
    groups: [...new Set([i, i * 7 + 1, i * 13 + 5].map((n) => `g${n % GROUPS}`))],
  }));
  const targets = Array.from({ length: TARGETS }, (_, i): Target => ({
    ...{ name: `t${i}`, kind: "postgres", summary: "", config: {}, hash: "" },
    tags: i % 5 === 0 ? ["pci"] : [],
  }));
  const playbooks = Array.from({ length: PLAYBOOKS }, (_, i): Playbook => {
    const group = (n: number): { by: "group"; name: string } => ({ by: "group", name: `g${(i + n) % GROUPS}` });
    return {
      ...{ name: `b${i}`, summary: "", target: `t${i % TARGETS}`, scope: {}, hash: "", notify: [] },
      who: [{ by: "oncall", name: `r${i % ROTAS}` }, group(0)],
      when: {
        ...{ reasons: ["outage", "data-loss"], zone: "Europe/Berlin" },
        ...(i % 2 === 0 ? { incident: ["SEV1", "SEV2"] } : {}),
        ...(i % 3 === 0 ? { hours: [{ days: [1, 2, 3, 4, 5], fromMinute: 480, toMinute: 1_080 }] } : {}),
      },
      approve: {
        ...{ need: i % 4 === 0 ? 0 : 1, from: [[group(1), group(2)]], withinMs: 900_000 },
        ...(i % 10 === 1 ? { unanswered: { afterMs: 600_000, forMs: 900_000 } } : {}),
      },
      time: { maxMs: 2_700_000, capMs: 6_300_000, extend: { times: 2, byMs: 1_800_000 } },
      limit: {
        uses: { count: 2, perMs: 604_800_000 },
        ...(i % 3 === 1 ? { concurrent: 2, cooldownMs: 3_600_000 } : {}),
      },
      review: { by: [group(2)], withinMs: 172_800_000 },
    };
  });
  const denial = { why: "Contractors never reach cardholder data", targets: [], tags: ["pci"], zone: "UTC" };
  const denials = [{ ...denial, name: "no-contractors", who: [{ by: "group" as const, name: "contractors" }] }];
  return { people, targets, playbooks, denials };
}
