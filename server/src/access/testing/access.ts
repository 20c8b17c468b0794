import { setTimeout as sleep } from "node:timers/promises";
import { sql } from "kysely";
import pg from "pg";
import type { SharedCluster } from "../../../testing/global.ts";
import { newId, randomBase32 } from "../../core/ids.ts";
import type { JsonObject } from "../../core/json.ts";
import { policyOf, type Files } from "../../playbooks/fixtures/folder.ts";
import type { Evidence, Policy } from "../../playbooks/policy.ts";
import type { Store, StoreAddress } from "../../store/database.ts";
import { openStore } from "../../store/database.ts";
import { openKeyring, type Keyring } from "../../store/keyring.ts";
import { migrate } from "../../store/migrate.ts";
import type { IssueRequest, LeaseDriver } from "../../targets/target.ts";
import type { Access, Notice, Observation } from "../access.ts";
import { createDoors, type Doors } from "../doors.ts";
import { startLeaseWorker } from "../leases.ts";
import type { GrantRow } from "../lifecycle.ts";
import { requestGrant, type BreakRequest } from "../request.ts";

/** What the sources of evidence say; tests change it at will. `fail` makes everything unknown, as an outage does. */
export interface TestEvidence {
  oncall: Record<string, readonly string[]>;
  incidents: Record<string, string>;
  down: boolean;
  /** How often the sources were asked. */
  asked: number;
  /** Called while a question is on its way, before the answer. */
  during: () => Promise<void> | void;
}

/** A target that lives in memory. */
export interface TestTargetState {
  readonly live: Set<string>;
  readonly minted: string[];
  /** What was issued for sessions, in order. */
  readonly issued: IssueRequest[];
  /** What each question for the proof was told of the last issue. */
  readonly lastIssues: (Date | undefined)[];
  down: boolean;
  /** {@link LeaseDriver.cutsFirst}. */
  cutsFirst: boolean;
  /** Called while the target is asked to extend, before it answers. */
  extending: () => Promise<void> | void;
  /** In place of an answer, from everything that asks the target; and from what issues. */
  failure: Error | undefined;
  issueFailure: Error | undefined;
}

/** The parts of a grant's life on a real store and a real policy, with sources, channels and a target that live in memory. */
export interface TestAccess extends AsyncDisposable {
  readonly access: Access;
  readonly address: StoreAddress;
  readonly store: Store;
  readonly evidence: TestEvidence;
  readonly target: TestTargetState;
  /** What keeps everything new closed; empty unless a test shuts something. */
  readonly doors: Doors;
  readonly warnings: string[];
  /** Another process's worth of access on the same store. */
  second(): Access;
  /** Puts another policy in force. */
  policy(files: Files): Promise<void>;
  break(playbook: string, changes?: Partial<BreakRequest>): Promise<string>;
  grant(id: string): Promise<GrantRow>;
  until(id: string, ...states: string[]): Promise<GrantRow>;
  /** Notices of a grant, or of none, in the order in which they were posted. */
  notices(grant?: string): Promise<readonly Notice[]>;
  /** A channel that wakes people confirms that it delivered the call. */
  delivered(grant: string): Promise<void>;
  /** Types of the log's entries about a grant, in order; and the entries themselves. */
  types(grant: string): Promise<readonly string[]>;
  entries(grant?: string): Promise<readonly JsonObject[]>;
  /** Moves the grant and its review into the past, as if so much time had gone by. */
  age(grant: string, byMs: number): Promise<void>;
}

/** People and the frame of a playbook; a test adds what it is about. */
export const TEAM: Files = {
  "policy.yaml": "reasons: { outage: Something does not work, data-loss: Data is being lost }\n",
  "people.yaml": `- { name: ann, roles: [requester], groups: [payments], aliases: [ann@shop.example] }
- { name: pat, roles: [requester], groups: [payments] }
- { name: amy, roles: [requester, approver, admin, security_officer], groups: [payments, leads], aliases: [amy.admin] }
- { name: bob, roles: [approver], groups: [leads, seniors] }
- { name: cas, roles: [approver], groups: [leads] }
- { name: dot, roles: [approver], groups: [seniors] }
- { name: sam, roles: [security_officer] }
- { name: ida, roles: [auditor] }
- { name: zoe, roles: [requester] }
`,
  "oncall.yaml": "payments: [ann]\n",
  "playbooks/read.yaml": undefined,
};

/** A playbook on the target `orders`, with the given lines changed. */
export function book(name: string, changes: Record<string, string> = {}): Files {
  const lines = {
    ...{ playbook: name, summary: "Repair it", target: "orders", scope: "{ role: rw }", who: "{ group: payments }" },
    ...{
      when: "{ reason: [outage, data-loss] }",
      approve: "{ need: 0, from: { group: leads } }",
      time: "{ max: 30m }",
    },
    ...changes,
  };
  const text = Object.entries(lines).map(([key, value]) => `${key}: ${value}\n`);
  return { [`playbooks/${name}.yaml`]: text.join("") };
}

export async function startTestAccess(cluster: SharedCluster, files: Files): Promise<TestAccess> {
  const database = `gk_${randomBase32(10)}`;
  const address: StoreAddress = {
    ...{ host: "127.0.0.1", port: cluster.port, user: cluster.superuser, password: cluster.password, database },
  };
  await admin(address, `create database ${database}`);
  await migrate(address);
  const store = openStore(address);
  const keyring = await openKeyring(store, Buffer.alloc(32, 3));
  let policy: Policy = await policyOf({ ...TEAM, ...files });
  const evidence: TestEvidence = {
    oncall: { payments: ["ann"] },
    incidents: {},
    down: false,
    asked: 0,
    during: () => {},
  };
  const target: TestTargetState = {
    ...{ live: new Set(), minted: [], issued: [], lastIssues: [], down: false, cutsFirst: false },
    ...{ extending: () => {}, failure: undefined, issueFailure: undefined },
  };
  const warnings: string[] = [];
  const stop: (() => Promise<void>)[] = [];
  const doors = createDoors();
  const make = (node: string): Access => {
    let kick = (_lease: string): Promise<void> => Promise.resolve();
    const access: Access = {
      ...{ store, keyring, install: "abc123", node, policy: () => policy },
      kinds: new Map([["fake", { driver: driverOf(target), promises: () => PROMISES }]]),
      evidence: evidenceService(evidence),
      notifier: notifier(keyring),
      cutter: () => ({
        cut: () => Promise.resolve(0),
        extend: () => Promise.resolve(),
        activity: () => Promise.resolve([]),
      }),
      kick: (lease) => kick(lease),
      mayOpen: () => doors.mayOpen(),
      warn: (line) => warnings.push(line),
    };
    const worker = startLeaseWorker(access, { pollMs: 50 });
    kick = (lease) => worker.kick(lease);
    stop.push(() => worker.stop());
    return access;
  };
  const access = make("nd_1");
  const grant = (id: string): Promise<GrantRow> =>
    store.selectFrom("grants").selectAll().where("id", "=", id).executeTakeFirstOrThrow();
  const entries = async (id?: string): Promise<readonly JsonObject[]> => {
    const rows = await sql<{ entry: Buffer }>`select entry from log_queue
      where ${id ?? null}::text is null or grant_id = ${id ?? null} order by id`.execute(store);
    return rows.rows.map((row) => JSON.parse(row.entry.toString("utf8")) as JsonObject);
  };
  return {
    ...{ access, address, store, evidence, target, doors, warnings, grant, entries },
    second: () => make(`nd_${stop.length + 1}`),
    policy: async (changed) => {
      policy = await policyOf({ ...TEAM, ...files, ...changed });
    },
    break: (playbook, changes = {}) =>
      requestGrant(access, { person: "ann", playbook, reason: "outage", why: "checkout is down", ...changes }),
    async until(id, ...states) {
      for (let tries = 0; ; tries += 1) {
        const row = await grant(id);
        if (states.includes(row.state)) return row;
        if (tries > 1_200) throw new Error(`${id} is ${row.state} (${row.end_text ?? ""}), not ${states.join(" or ")}`);
        await sleep(25);
      }
    },
    async notices(id) {
      let query = store.selectFrom("notices").select(["id", "content"]).orderBy("created_at");
      query = id === undefined ? query.where("grant_id", "is", null) : query.where("grant_id", "=", id);
      return (await query.execute()).map(
        (row) =>
          JSON.parse(
            keyring.open({ table: "notices", row: row.id, column: "content" }, row.content).toString("utf8"),
          ) as Notice,
      );
    },
    async delivered(id) {
      const called = await store
        .updateTable("notices")
        .set({ page: true, delivered_at: sql`clock_timestamp()`, receipt: "test" })
        .where("grant_id", "=", id)
        .where("event", "=", "approval_wanted")
        .returning("id")
        .execute();
      if (called.length === 0) throw new Error(`nobody was called for ${id}`);
    },
    types: async (id) => (await entries(id)).map(({ type }) => (typeof type === "string" ? type : "")),
    async age(id, byMs) {
      const earlier = (column: string) => sql<Date>`${sql.ref(column)} - ${byMs} * interval '1 millisecond'`;
      await store
        .updateTable("notices")
        .set({ delivered_at: earlier("delivered_at") })
        .where("grant_id", "=", id)
        .execute();
      await store
        .updateTable("grants")
        .set({ created_at: earlier("created_at"), closed_at: earlier("closed_at") })
        .where("id", "=", id)
        .execute();
      await store
        .updateTable("reviews")
        .set({ opened_at: earlier("opened_at"), due_at: earlier("due_at") })
        .where("grant_id", "=", id)
        .execute();
    },
    async [Symbol.asyncDispose]() {
      for (const one of stop) await one();
      await store.destroy();
      await admin(address, `drop database ${database} with (force)`);
    },
  };
}

const PROMISES = { nativeExpiry: "none", killsLiveSessions: true, worstCaseRevokeMs: 5_000 } as const;

async function admin(address: StoreAddress, statement: string): Promise<void> {
  const client = new pg.Client({ ...address, database: "postgres" });
  await client.connect();
  try {
    await client.query(statement);
  } finally {
    await client.end();
  }
}

function driverOf(target: TestTargetState): LeaseDriver {
  const up = (): void => {
    if (target.down) throw new Error("the target does not answer");
    if (target.failure !== undefined) throw target.failure;
  };
  const name = ({ lease }: JsonObject): string => (typeof lease === "string" ? lease : "");
  return {
    get cutsFirst() {
      return target.cutsFirst;
    },
    preflight: () => Promise.resolve([]),
    plan: ({ lease }) => ({ lease }),
    mint: async (plan) => {
      up();
      target.minted.push(name(plan));
      target.live.add(name(plan));
    },
    probe: async () => up(),
    issue: async (_plan, _secrets, to) => {
      if (target.issueFailure !== undefined) throw target.issueFailure;
      target.issued.push(to);
      return { token: to.session };
    },
    extend: async (plan) => {
      await target.extending();
      return plan;
    },
    fence: async () => up(),
    revoke: async (plan) => {
      up();
      target.live.delete(name(plan));
    },
    confirm: async (plan, _secrets, _signal, lastIssue) => {
      target.lastIssues.push(lastIssue);
      return target.live.has(name(plan))
        ? { verdict: "alive", left: [name(plan)] }
        : { verdict: "dead", from: new Date(), evidence: [{ asked: "the role", answered: "absent" }] };
    },
    list: () => Promise.resolve([...target.live].map((lease) => ({ name: `gk_test_${lease}`, lease }))),
    planForOrphan: (config, { lease }) => ({ lease, config }),
    fingerprint: () => Promise.resolve({ lines: [] }),
  };
}

function evidenceService(told: TestEvidence): Access["evidence"] {
  return {
    async observe({ policy, person, rotas, incident }) {
      told.asked += 1;
      await told.during();
      const at = { source: "static", observedAt: new Date().toISOString(), ageMs: 0 };
      const known = (rota: string): Evidence => {
        const people = told.oncall[rota];
        if (told.down || people === undefined) return "unknown";
        return people.some((id) => policy.person(id)?.name === policy.person(person)?.name) ? "true" : "false";
      };
      const oncall = Object.fromEntries(rotas.map((rota) => [rota, known(rota)]));
      const observations: Observation[] = rotas.map((rota) => ({ fact: `oncall:${rota}`, value: known(rota), ...at }));
      if (incident === undefined) return { oncall, incident: { state: "none" }, observations };
      const severity = told.incidents[incident];
      const fact = `incident:${incident}`;
      if (told.down) {
        observations.push({ fact, value: "unknown", ...at, detail: "the source does not answer" });
        return { oncall, incident: { state: "unknown" }, observations };
      }
      const value = severity === undefined ? "false" : "true";
      observations.push({ fact, value, ...at, ...(severity === undefined ? {} : { severity }) });
      return {
        oncall,
        incident: severity === undefined ? { state: "none" } : { state: "open", severity },
        observations,
      };
    },
    openIncidents: () =>
      Promise.resolve(
        Object.entries(told.incidents).map(([ref, severity]) => ({
          ...{ ref, severity, summary: ref === "INC-bare" ? "" : `summary of ${ref}`, source: "static" },
        })),
      ),
  };
}

/** Keeps the notice whole, so that a test reads what was told; what is rolled back was never told. */
function notifier(keyring: Keyring): Access["notifier"] {
  return {
    async post(tx, notice) {
      const id = newId("alarm").replace("al_", "no_");
      const content = keyring.seal(
        { table: "notices", row: id, column: "content" },
        Buffer.from(JSON.stringify(notice)),
      );
      await tx
        .insertInto("notices")
        .values({
          ...{
            id,
            grant_id: notice.grant ?? null,
            channel: notice.channels[0] ?? "test:none",
            event: notice.event,
            content,
          },
          ...{ round: notice.round ?? 0, person: null, page: false, created_at: sql`clock_timestamp()` },
        })
        .execute();
    },
    channel: (name) => ({ page: name.startsWith("pagerduty:") }),
  };
}
