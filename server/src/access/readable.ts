import { sql, type RawBuilder } from "kysely";
import type { Policy } from "../playbooks/policy.ts";

/**
 * A condition on `grants` that holds for those which this person may read, so that a list's room is not used up by what
 * somebody else asked for. It is wide rather than exact: the policy is still asked about each row.
 */
export function readableGrants(policy: Policy, person: string): RawBuilder<boolean> {
  // Of a requester that nobody is: what the person may read whoever asked.
  const whoeverAsked = (playbook: string): boolean =>
    policy.decide({ action: "read_grant", person, playbook, requester: "" }).allow;
  if (whoeverAsked("")) return sql<boolean>`true`; // by a role, under whatever playbook
  const human = policy.person(person);
  const own = human === undefined ? [] : [human.name, ...human.aliases];
  const playbooks = policy.playbooks.map(({ name }) => name).filter(whoeverAsked);
  return sql<boolean>`(grants.requester = any(${own}) or grants.playbook = any(${playbooks}))`;
}
