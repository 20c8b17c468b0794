import { loadFiles } from "../../playbooks/fixtures/folder.ts";
import type { Policy } from "../../playbooks/policy.ts";
import { formatProblems } from "../../playbooks/problem.ts";

const PEOPLE = `- { name: ann, roles: [requester], groups: [payments], aliases: [ann@shop.example, Ann.Smith@shop.example] }
- { name: bob, roles: [requester, approver], groups: [payments, leads], aliases: [bob@shop.example] }
- { name: carla, roles: [approver], groups: [leads] }
- { name: sam, roles: [security_officer] }
`;

/** A policy with a few people and these rotas; what its playbook says does not matter here. */
export async function policyWith(oncall: string): Promise<Policy> {
  const playbook = `playbook: read
summary: Look
target: orders
scope: { role: ro }
who: { group: payments }
when: { reason: [outage] }
approve: { need: 0 }
time: { max: 30m }
`;
  const loaded = await loadFiles({ "people.yaml": PEOPLE, "oncall.yaml": oncall, "playbooks/read.yaml": playbook });
  if (!loaded.ok) throw new Error(formatProblems(loaded.problems));
  return loaded.policy;
}
