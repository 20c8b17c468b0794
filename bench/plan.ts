import { createPolicy } from "../server/src/playbooks/decide.ts";
import { formatPlan } from "../server/src/playbooks/plan-format.ts";
import { planPolicies } from "../server/src/playbooks/plan.ts";
import type { Person, Playbook, Policy } from "../server/src/playbooks/policy.ts";
import { bigWorld } from "./policy.ts";
import { result, type BenchContext, type Result } from "./result.ts";

export const summary = "glass playbook plan, for 500 playbooks, 5,000 people, 200 groups, where little or most changes";

const GOAL_SECONDS = 10;

/** Measures the comparison and its Markdown; both policies are compiled before, as `policy` measures. */
export async function run({ signal, progress }: BenchContext): Promise<Result[]> {
  const world = bigWorld();
  const compile = (part: Partial<typeof world>): Policy => {
    signal.throwIfAborted();
    const rest = { hash: "", rotas: [], reasons: new Map(), tests: new Map() };
    return createPolicy({ ...world, ...part, ...rest });
  };
  progress("plan: three versions are compiled");
  const old = compile({});
  const one = compile({ playbooks: world.playbooks.map((playbook, i) => (i === 7 ? longer(playbook, i) : playbook)) });
  const most = compile({
    people: world.people.map((person, i) => (i % 50 === 0 ? person : moved(person, i))),
    playbooks: world.playbooks.map((playbook, i) => loosened(longer(playbook, i), i)),
    denials: [],
  });
  const results: Result[] = [];
  for (const { name, next } of [
    { name: "nothing changes", next: old },
    { name: "one playbook changes", next: one },
    { name: "98 % of the people and all playbooks change", next: most },
  ]) {
    signal.throwIfAborted();
    progress(`plan: ${name}`);
    const begun = performance.now();
    const plan = planPolicies(old, next);
    const text = formatPlan(plan, "markdown");
    const seconds = (performance.now() - begun) / 1_000;
    if (plan.widened !== (next !== old) || text.length > 65_536) throw new Error(`the plan is wrong: ${name}`);
    const witnessed = plan.changes.filter(({ witness }) => witness !== undefined).length;
    progress(`plan: ${plan.changes.length} changes, ${witnessed} with a witness, ${plan.unwitnessed} not looked for`);
    results.push(result(`plan, ${name}`, "s", seconds, { goal: { atMost: GOAL_SECONDS } }));
  }
  return results;
}

/** Each by another time, so that no two playbooks are told together. */
function longer(playbook: Playbook, i: number): Playbook {
  const { maxMs, capMs } = playbook.time;
  const more = (i + 1) * 1_000;
  return { ...playbook, time: { ...playbook.time, maxMs: maxMs + more, capMs: capMs + more } };
}

function loosened(playbook: Playbook, i: number): Playbook {
  const group = { by: "group" as const, name: `g${(i * 3 + 11) % 200}` };
  const { approve, when } = playbook;
  return {
    ...playbook,
    ...{ who: [...playbook.who, group], limit: {}, scope: { role: `role_${i}` } },
    when: { ...when, reasons: [...when.reasons, "security"], incident: ["SEV1", "SEV2", "SEV3"] },
    approve: {
      ...{
        ...approve,
        need: 0,
        from: approve.from.map((side) => [...side, group]),
        withinMs: approve.withinMs + i + 1,
      },
    },
  };
}

function moved(person: Person, i: number): Person {
  const roles: Person["roles"] = i % 3 === 1 ? ["requester", "approver"] : person.roles;
  return { ...person, roles, groups: [...person.groups.slice(1), `g${(i * 17 + 3) % 200}`] };
}
