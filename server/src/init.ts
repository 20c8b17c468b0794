import { existsSync } from "node:fs";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { dirname, join, resolve } from "node:path";
import { GlassError } from "./core/errors.ts";
import { hashSecret, newPersonSecret } from "./identity/secrets.ts";

export interface InitResult {
  dir: string;
  files: readonly string[];
  person: string;
  /** Shown once; only its hash is in the folder. */
  secret: string;
}

/**
 * Makes a folder to start from: a working configuration, one target to be filled in, two playbooks with their tests, one
 * person who can log in and two who are still to get a secret.
 * @throws GlassError `usage` when the folder is not empty: nothing is ever overwritten.
 */
export async function initFolder(folder: string): Promise<InitResult> {
  const dir = resolve(folder);
  if (existsSync(dir) && (await readdir(dir)).length > 0) {
    throw new GlassError("usage", `${dir} is not empty`, { next: "Give a folder that does not exist yet." });
  }
  const person = personName();
  const secret = newPersonSecret();
  const files = template(person, await hashSecret(secret));
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, name)), { recursive: true });
    await writeFile(join(dir, name), text, { mode: name.endsWith("people.yaml") ? 0o600 : 0o644 });
  }
  return { dir, files: Object.keys(files), person, secret };
}

function personName(): string {
  const name = userInfo()
    .username.toLowerCase()
    .replaceAll(/[^a-z0-9._-]/g, "");
  return /^[a-z][a-z0-9._-]{0,62}$/.test(name) ? name : "operator";
}

function template(person: string, hash: string): Readonly<Record<string, string>> {
  return {
    "glasskey.yaml": `# Glasskey's own settings; docs/operations.md explains each. Paths are relative to this file.
policy: policy # a folder; docs/policy-bundles.md has the way to signed commits in git
data: data # keys, embedded store, recordings: back it up, and let nobody else read it
listen:
  api: 127.0.0.1:7443
  postgres: 127.0.0.1:7432
  ssh: 127.0.0.1:7422
hosts: [localhost, 127.0.0.1] # names that people reach this server by
recording: durable

# Where people are told of things, and who knows what is open and who is on call. Secrets are references, read at each use.
# docs/notifications.md and docs/evidence.md have every kind and key.
# notify:
#   slack:incidents: { webhook: "\${file:secrets/slack-incidents}" }
#   alarms: [slack:incidents]
# evidence:
#   pagerduty:main: { token: "\${file:secrets/pagerduty}" }

# The log, in your SIEM (docs/sinks.md), seen by witnesses (docs/witnesses.md) and archived (docs/archive.md); how long
# recordings are kept (docs/retention.md); metrics and probes (docs/monitoring.md: \`metrics:\` goes below \`listen:\` above).
# sinks:
#   siem: { kind: syslog, host: siem.example.com, ca: siem-ca.pem }
# log:
#   witnesses: { need: 1, of: [{ key: "…", url: "https://witness.example.com" }] }
# archive: { folder: /srv/archive, retain: 400d }
# recordings: { keep: 400d }
`,
    "policy/policy.yaml": `# What holds for all playbooks. docs/playbooks.md explains each key.
reasons:
  # every reason code there is; playbooks name those that count for them
  customer-impact: Customers cannot use the product, or see wrong data
  data-loss: Data is being lost or damaged
  security: Somebody is where they must not be

zone: UTC # what hours are told in

defaults:
  # what a playbook does not say itself
  approve: { within: 15m }
  time: { idle: 15m }
  limit: { uses: 3, per: 7d }
  review: { by: { group: payments-leads }, within: 2d }
`,
    "policy/people.yaml": `# Who there is. No role implies another. Secrets are hashes: \`glass secret\` prints a new one and its line.
- name: ${person}
  roles: [requester, auditor, admin]
  groups: [payments]
  secret: ${hash}
# Somebody else gives approvals and signs reviews. Two of them: one may be asleep, and repeated use needs two.
- name: second-person
  roles: [approver, security_officer]
  groups: [payments-leads]
- name: third-person
  roles: [approver]
  groups: [payments-leads]
`,
    "policy/oncall.yaml": `# Who is on call: a list, the word unknown, or a schedule of a source of evidence (docs/evidence.md).
payments: [${person}]
`,
    "policy/targets/orders-prod.yaml": `# A production database. docs/postgres-target.md has the SQL that prepares it.
target: orders-prod
kind: postgres
summary: Orders and payments of the shop
config:
  host: db.example.com
  port: 5432
  tls: { ca: system }
  admin: { user: glasskey, password: "\${env:ORDERS_PROD_PASSWORD}" }
  databases: [orders]
`,
    "policy/playbooks/orders-db-read.yaml": `# glasskey-lint: allow GK006, GK018 because there is no target to drill on and no channel to notify yet
playbook: orders-db-read
summary: Look at customer orders
target: orders-prod
scope: { role: orders_ro, allow: [read] }
who: { oncall: payments }
when: { reason: [customer-impact, data-loss, security] }
approve:
  need: 0 # opens at once, and its review begins at once
  from: { group: payments-leads } # asked while it is unknown who is on call, and after repeated use
time: { max: 1h }
tests:
  - allow: { who: ${person}, oncall: [payments], for: 1h }
  - allow: { who: ${person}, unknown: [payments], approvedBy: [second-person] }
  - deny: { who: ${person} } # not on call
  - deny: { who: ${person}, unknown: [payments] }
  - deny: { who: ${person}, oncall: [payments], for: 90m }
  - deny: { who: ${person}, oncall: [payments], unsigned: 3 } # the fourth use without a signed review
`,
    "policy/playbooks/orders-db-write.yaml": `# glasskey-lint: allow GK006, GK018 because there is no target to drill on and no channel to notify yet
playbook: orders-db-write
summary: Repair customer orders while checkout is broken
target: orders-prod
scope: { role: orders_rw, never: [drop, truncate, grant] }
who: { oncall: payments }
when: { reason: [customer-impact, data-loss] }
approve: { need: 1, from: { group: payments-leads } }
time: { max: 45m, extend: 2x30m }
tests:
  - allow: { who: ${person}, oncall: [payments], for: 45m, approvedBy: [second-person] }
  - deny: { who: ${person}, oncall: [payments] } # nobody has said yes
  - deny: { who: ${person}, oncall: [payments], approvedBy: [${person}] }
  - deny: { who: ${person}, approvedBy: [second-person] } # not on call
  - deny: { who: ${person}, oncall: [payments], reason: security, approvedBy: [second-person] }
  - deny: { who: ${person}, oncall: [payments], for: 2h, approvedBy: [second-person] }
  - deny: { who: ${person}, oncall: [payments], approvedBy: [third-person], unsigned: 3 }
  - allow: { who: ${person}, oncall: [payments], approvedBy: [second-person, third-person], unsigned: 3 }
`,
  };
}
