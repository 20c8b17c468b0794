import { readDocument } from "../server/src/playbooks/document.ts";
import { readRotas } from "../server/src/playbooks/oncall.ts";
import { readPeople } from "../server/src/playbooks/people.ts";
import { readPlaybook } from "../server/src/playbooks/playbook.ts";
import { readPolicyFile } from "../server/src/playbooks/policy-file.ts";
import { readTarget, type KindChecks } from "../server/src/playbooks/targets.ts";

const SECRET = "hunter2-do-not-show";

const playbook = `playbook: orders-db-write
summary: Repair customer orders while checkout is broken
target: orders-prod
scope: { role: orders_rw, never: [drop, truncate, grant] }
who: { oncall: payments }
when: { incident: [SEV1, SEV2], reason: [customer-impact, data-loss, security] }
approve:
  need: 1
  from: [{ group: payments-leads }, { user: bob }]
  unanswered: { after: 10m, then: open, for: 15m }
time: { max: 45m, idle: 15m, extend: 2x30m }
limit: { uses: 2, per: 7d, concurrent: 1, cooldown: 1h }
notify: [slack:incidents, pagerduty:duty-manager]
review: { by: { group: payments-leads }, within: 2d }
drill: { every: 30d, on: orders-staging }
tests:
  - allow: { who: ann, oncall: [payments], incident: SEV1, reason: data-loss, for: 30m, approvedBy: [bob], at: 2026-11-20T02:14Z }
`;
const template = `template: careful
extends: careful
when: { reason: [outage], hours: [{ days: [mon, sat-sun], from: "08:00", to: "24:00" }], zone: Europe/Berlin }
time: { extend: none }
notify: none
`;
const policy = `reasons:
  data-loss: Data is being lost
zone: Europe/Berlin
defaults:
  approve: { within: 15m }
  limit: { uses: 2, per: 7d }
forbid:
  - { rule: weekend, why: Frozen, who: { oncall: payments }, target: { tag: pci }, hours: { days: sat-sun } }
`;
const people = `- name: ann
  aliases: [ann@example.org]
  groups: [payments]
  roles: [requester]
- name: bob
  roles: [approver, auditor]
`;
const target = `target: orders-prod
kind: postgres
config:
  host: db.internal
  port: 5432
  admin: { user: glasskey, password: "${SECRET}" }
`;

const oncall = "payments: [ann, bob]\nbilling: unknown\nduty: { source: pagerduty:main, schedule: P1 }\n";
export const seeds: readonly Uint8Array[] = [playbook, template, policy, people, oncall, target].map((text) =>
  Buffer.from(text),
);
export const words: readonly string[] = [
  ...["&a ", "*a", "<<: *a\n", "!!binary ", "!!js/function ", "---\n", "...\n", "? ", "| \n", ">\n", "# ", "\t"],
  ...[
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "__proto__: ",
    "constructor: ",
    "toString",
    "null",
    "true",
    "yes",
    "0x1f",
    "1e999",
  ],
  ...["45m", "99999999999999d", "-1", "group: ", "who: ", "need: 0\n", "\u202e", "\u0000", "\ud83d", "\u212a"],
];

const accepts: KindChecks = {
  parseConfig: () => ({ ok: true, value: {} }),
  parseScope: () => ({ ok: true, value: {} }),
};
const kinds = new Map([["postgres", accepts]]);

/** A policy file is accepted or has problems with a line and column inside it; nothing is thrown, and no secret shown. */
export async function one(input: Uint8Array): Promise<void> {
  const text = Buffer.from(input).toString("utf8");
  const lines = text.split("\n").length;
  for (const read of [readPlaybook, readPolicyFile, readPeople, readRotas]) {
    const document = readDocument("file.yaml", text);
    read(document);
    check(document.problems(), lines);
  }
  const document = readDocument("file.yaml", text);
  readTarget(document, kinds, new Map());
  check(document.problems(), lines);
  if (Object.getOwnPropertyNames(Object.prototype).includes("polluted")) throw new Error("a prototype was changed");
}

function check(problems: ReturnType<ReturnType<typeof readDocument>["problems"]>, lines: number): void {
  for (const { line, column, message } of problems) {
    if (!(line >= 1 && line <= lines && column >= 1))
      throw new Error(`a problem at ${line}:${column} of ${lines} lines`);
    if (message.includes(SECRET)) throw new Error(`a problem shows a secret: ${message}`);
  }
}
