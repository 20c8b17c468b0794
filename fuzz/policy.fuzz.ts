import { compilePolicy } from "../server/src/playbooks/load.ts";
import type { KindChecks } from "../server/src/playbooks/targets.ts";

const SECRET = "hunter2-do-not-show";

/** A whole policy that loads; the input takes the place of one of its files. */
const GOOD: readonly (readonly [path: string, text: string])[] = [
  [
    "policy.yaml",
    `reasons: { data-loss: Data is being lost, outage: Something does not work }
zone: Europe/Berlin
defaults: { approve: { within: 20m }, limit: { uses: 2, per: 7d }, notify: "pager:duty" }
forbid: [{ rule: weekend, why: Frozen, who: { oncall: payments }, target: { tag: pci }, hours: { days: sat-sun } }]
`,
  ],
  [
    "people.yaml",
    `- { name: ann, roles: [requester], groups: [payments], aliases: [ann@example.org] }
- { name: bob, roles: [approver], groups: [leads] }
- { name: carla, roles: [approver], groups: [leads, duty], notify: "chat:carla" }
`,
  ],
  ["oncall.yaml", "payments: [ann]\nnights: unknown\nduty: { source: pagerduty:main, schedule: P1 }\n"],
  [
    "targets/orders.yaml",
    `target: orders
kind: postgres
tags: [pci]
config: { host: db, tls: { ca: ca.pem }, password: "\${file:../secrets/orders}" }
`,
  ],
  [
    "playbooks/base.yaml",
    `template: base
summary: Look
target: orders
scope: { role: ro }
who: { oncall: payments }
when: { reason: [outage] }
approve: { need: 2, from: [{ group: leads }, { group: duty }], unanswered: { after: 10m, then: open, for: 15m } }
time: { max: 45m, idle: 15m, extend: 2x30m }
`,
  ],
  [
    "playbooks/short.yaml",
    `playbook: short
extends: base
who: { user: ann }
when: { incident: [SEV1] }
time: { extend: none }
review: { by: { group: leads } }
tests: [{ allow: { who: ann, incident: SEV1, approvedBy: [bob, carla], at: 2026-11-20T02:14Z } }]
`,
  ],
];

export const seeds: readonly Uint8Array[] = GOOD.map(([, text]) => Buffer.from(text));
export const words: readonly string[] = [
  ...[
    "extends: base\n",
    "extends: short\n",
    "template: base\n",
    "playbook: base\n",
    "none",
    "unknown",
    "[]",
    "{}",
    "~",
  ],
  ...["group: ", "user: ", "oncall: ", "leads", "payments", "ann", "need: 0\n", "need: 5\n", "45m", "0s", "mon-fri"],
  ...["../", "/etc/passwd", "${file:x}", SECRET, "\u202e", "\u0000", "\u212a", "&a ", "*a", "<<: "],
];

const accepts: KindChecks = {
  parseConfig: () => ({ ok: true, value: {} }),
  parseScope: () => ({ ok: true, value: {} }),
};
const kinds = new Map([["postgres", accepts]]);

/** A bundle loads, or has problems in files that it has; nothing is thrown. The first byte says which file is replaced. */
export async function one(input: Uint8Array): Promise<void> {
  const place = GOOD[(input[0] ?? 0) % GOOD.length]?.[0] ?? "policy.yaml";
  const text = Buffer.from(input).toString("utf8");
  const own = GOOD.findIndex(([, seed]) => seed.slice(0, 8) === text.slice(0, 8));
  const path = GOOD[own]?.[0] ?? place; // what still begins like a seed goes where it makes sense
  const files = new Map([...GOOD, ["targets/ca.pem", "PEM"] as const]).set(path, text);
  const compiled = compilePolicy({ files, kinds });
  if (compiled.ok) return;
  if (compiled.problems.length === 0) throw new Error("refused without a problem");
  for (const { file, line, column } of compiled.problems) {
    if (!files.has(file)) throw new Error(`a problem in ${file}, which is not there`);
    if (!(line >= 1 && column >= 1)) throw new Error(`a problem at ${line}:${column}`);
  }
}
