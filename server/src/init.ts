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
 * Makes a folder to start from: a working configuration, two playbooks, one target to be filled in, one person.
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
policy: policy
data: data # keys, embedded store, recordings: back it up, and let nobody else read it
listen:
  api: 127.0.0.1:7443
  postgres: 127.0.0.1:7432
hosts: [localhost, 127.0.0.1] # names that people reach this server by
recording: durable
`,
    "policy/policy.yaml": `# What holds for all playbooks. docs/playbooks.md explains each key.
reasons: # every reason code there is; playbooks name those that count for them
  customer-impact: Customers cannot use the product, or see wrong data
  data-loss: Data is being lost or damaged
  security: Somebody is where they must not be
zone: UTC # what hours are told in
defaults:
  approve: { within: 15m }
  time: { idle: 15m }
`,
    "policy/people.yaml": `# Who there is. No role implies another. Secrets are hashes: make one with \`glass secret\`.
- name: ${person}
  roles: [requester, auditor, admin]
  groups: [payments]
  secret: ${hash}
- name: second-person # playbooks that need an approval need somebody else to give it
  roles: [approver, security_officer]
  groups: [payments-leads]
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
    "policy/playbooks/orders-db-read.yaml": `playbook: orders-db-read
summary: Look at customer orders
target: orders-prod
scope: { role: orders_ro }
who: { group: payments }
when: { reason: [customer-impact, data-loss, security] }
approve: { need: 0 }
time: { max: 1h, idle: 15m }
`,
    "policy/playbooks/orders-db-write.yaml": `playbook: orders-db-write
summary: Repair customer orders while checkout is broken
target: orders-prod
scope: { role: orders_rw, never: [drop, truncate, grant] }
who: { group: payments }
when: { reason: [customer-impact, data-loss, security] }
approve: { need: 1, from: { group: payments-leads }, within: 15m }
time: { max: 45m, idle: 15m, extend: 2x30m }
`,
  };
}
