import type { KindChecks } from "../../playbooks/targets.ts";
import type { BundleFiles } from "../bundle.ts";

/** A target kind that takes any configuration and scope. */
export const ANY_KIND: ReadonlyMap<string, KindChecks> = new Map([
  [
    "postgres",
    {
      parseConfig: (input) => ({ ok: true, value: input as Record<string, never> }),
      parseScope: (input) => ({ ok: true, value: input as Record<string, never> }),
    },
  ],
]);

/** A small policy, different for each `max`. */
export function policyFiles(max: string, more: Record<string, string> = {}): BundleFiles {
  return new Map(
    Object.entries({
      "policy.yaml": "reasons:\n  outage: Something does not work\n",
      "people.yaml": `- { name: ann, roles: [requester], groups: [payments] }
- { name: bob, roles: [approver], groups: [leads] }
- { name: ida, roles: [auditor, admin] }
`,
      "targets/prod.yaml": "target: prod\nkind: postgres\nconfig: { host: db }\n",
      "playbooks/repair.yaml": `playbook: repair
summary: Repair it
target: prod
scope: { role: app_rw }
who: { group: payments }
when: { reason: [outage] }
approve: { need: 0 }
time: { max: ${max} }
`,
      ...more,
    }),
  );
}
