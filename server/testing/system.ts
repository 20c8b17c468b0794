import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { request as httpsRequest } from "node:https";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { ConnectAnswer, GrantView } from "@glasskey/contract";
import pg from "pg";
import type { ServerConfig } from "../src/config.ts";
import { randomBase32 } from "../src/core/ids.ts";
import { hashSecret } from "../src/identity/secrets.ts";
import { startServer, type RunningServer } from "../src/main.ts";
import type { SharedCluster } from "./global.ts";
import { startTestTarget, type TestTarget } from "./target.ts";

const SECRET = "a-secret-of-the-tests";

/** A whole Glasskey on a database of its own in a shared PostgreSQL, with a target of its own, and people to play with. */
export interface TestSystem {
  readonly config: ServerConfig;
  readonly target: TestTarget;
  readonly warnings: string[];
  server(): RunningServer;
  /** Replaces files of the policy folder; takes effect with the next start or reload. */
  writePolicy(files: Record<string, string>): Promise<void>;
  /** Starts Glasskey (again). */
  start(): Promise<void>;
  stop(): Promise<void>;
  /** The same Glasskey as `glass serve` in a process of its own, on the same data folder: to be killed without mercy. */
  startProcess(): Promise<ServerProcess>;
  /** A further Glasskey process's worth of server on the same store, with a data folder of its own. */
  startSecond(): Promise<RunningServer>;
  as(person: string, server?: Reachable): Promise<Client>;
  /** Superuser's query on the store. */
  storeQuery<R extends pg.QueryResultRow>(sql: string, values?: unknown[]): Promise<R[]>;
  dispose(): Promise<void>;
}

export type Reachable = Pick<RunningServer, "url" | "caFile">;

export interface ServerProcess extends Reachable {
  readonly output: () => string;
  /** SIGKILL; resolves when it is gone. */
  kill(): Promise<void>;
  /** SIGTERM; resolves to the exit code. */
  stop(): Promise<number | null>;
}

/** What one person can do over the API. */
export interface Client {
  call<T>(method: "GET" | "POST", path: string, body?: unknown): Promise<T>;
  /** What a path answers, as it is. */
  text(path: string): Promise<string>;
  /** The status and error code of a call that is refused. */
  refused(
    method: "GET" | "POST",
    path: string,
    body?: unknown,
  ): Promise<{ status: number; code: string; message: string; next?: string }>;
  break(playbook: string, options?: { reason?: string; forMs?: number }): Promise<GrantView>;
  end(grant: string): Promise<GrantView>;
  grant(grant: string): Promise<GrantView>;
  until(grant: string, states: readonly string[], withinMs?: number): Promise<GrantView>;
  /** A connection through the gateway under that grant. */
  connect(grant: string): Promise<pg.Client>;
}

export const PEOPLE = `
- { name: ann, roles: [requester], groups: [payments], aliases: [ann@corp], secret: HASH }
- { name: amy, roles: [requester, approver, admin], groups: [payments, leads], secret: HASH }
- { name: bob, roles: [approver], groups: [leads, seniors], secret: HASH }
- { name: cas, roles: [approver], groups: [leads], secret: HASH }
- { name: sam, roles: [security_officer], secret: HASH }
- { name: ida, roles: [auditor, admin], secret: HASH }
- { name: zoe, roles: [requester], secret: HASH }
`;

/** Reason codes, and nothing else. */
const POLICY = `reasons:
  outage: Something does not work
  data-loss: Data is being lost or damaged
`;

/** A playbook on the target `prod`, with the given lines changed. */
export function playbook(name: string, changes: Record<string, string> = {}): string {
  const lines = {
    ...{ playbook: name, summary: "Repair it", target: "prod", scope: "{ role: app_rw }", who: "{ group: payments }" },
    ...{ when: "{ reason: [outage, data-loss] }", approve: "{ need: 0 }", time: "{ max: 30m }" },
    ...changes,
  };
  return Object.entries(lines)
    .map(([key, value]) => `${key}: ${value}\n`)
    .join("");
}

/** @param settings of glasskey.yaml, beside those that every test has; a process of its own does not get them. */
export async function startTestSystem(
  cluster: SharedCluster,
  files: Record<string, string> = {},
  settings: Partial<ServerConfig> = {},
): Promise<TestSystem> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-system-"));
  const target = await startTestTarget();
  await target.query("create role app_rw nologin; create role app_ro nologin");
  await target.query(
    "create table t (id int primary key, note text); insert into t select n, 'row ' || n from generate_series(1, 100) n",
  );
  await target.query("grant select, insert, update, delete on t to app_rw; grant select on t to app_ro");
  const database = `gk_${randomBase32(10)}`;
  const admin = async <R extends pg.QueryResultRow>(
    sql: string,
    db = "postgres",
    values: unknown[] = [],
  ): Promise<R[]> => {
    const client = new pg.Client({
      host: "127.0.0.1",
      port: cluster.port,
      user: cluster.superuser,
      password: cluster.password,
      database: db,
    });
    client.on("error", () => {});
    await client.connect();
    try {
      return (await client.query<R>(sql, values)).rows;
    } finally {
      await client.end();
    }
  };
  await admin(`create database ${database}`);

  const policyDir = join(folder, "policy");
  const hash = await hashSecret(SECRET);
  const writePolicy = async (changed: Record<string, string>): Promise<void> => {
    for (const [name, text] of Object.entries(changed)) {
      await mkdir(dirname(join(policyDir, name)), { recursive: true });
      if (text === "") await rm(join(policyDir, name), { force: true });
      else await writeFile(join(policyDir, name), text.replaceAll("HASH", `"${hash}"`));
    }
  };
  await writeFile(join(folder, "target.password"), target.password, { mode: 0o600 });
  await writeFile(join(folder, "store.password"), cluster.password, { mode: 0o600 });
  await writePolicy({
    "policy.yaml": POLICY,
    "people.yaml": PEOPLE,
    "targets/prod.yaml": `target: prod
kind: postgres
config:
  host: 127.0.0.1
  port: ${target.port}
  tls: { ca: "${target.caFile}" }
  admin: { user: postgres, password: "\${file:${join(folder, "target.password")}}" }
  databases: [postgres]
`,
    "playbooks/repair.yaml": playbook("repair"),
    "playbooks/consent.yaml": playbook("consent", { approve: "{ need: 1, from: { group: leads } }" }),
    ...files,
  });
  const rootKey = join(folder, "root.key");
  await writeFile(rootKey, Buffer.alloc(32, 7).toString("base64"));
  const configFor = (name: string): ServerConfig => ({
    ...{
      policyDir,
      dataDir: join(folder, name),
      api: { host: "127.0.0.1", port: 0 },
      gateway: { postgres: { host: "127.0.0.1", port: 0 }, ssh: { host: "127.0.0.1", port: 0 } },
    },
    ...{
      hosts: ["127.0.0.1", "localhost"],
      tls: undefined,
      recording: "durable",
      recordings: { mirror: undefined, keepMs: undefined },
      tokenTtlMs: 3_600_000,
      plaintextLoopback: false,
      origin: undefined,
      evidence: [],
      notify: { channels: new Map(), alarms: [] },
      sinks: [],
    },
    ...settings,
    rootKey: `\${file:${rootKey}}`,
    database: {
      ...{
        host: "127.0.0.1",
        port: cluster.port,
        user: `${database}_app`,
        password: `\${file:${join(folder, "store.password")}}`,
        owner: { user: cluster.superuser, password: `\${file:${join(folder, "store.password")}}` },
      },
      ...{ database, ca: undefined },
    },
  });

  const warnings: string[] = [];
  const running: RunningServer[] = [];
  const processes: ServerProcess[] = [];
  let current: RunningServer | undefined;
  const start = async (): Promise<void> => {
    current = await startServer(configFor("data"), (line) => warnings.push(line));
    running.push(current);
  };
  await start();
  const server = (): RunningServer => {
    if (current === undefined) throw new Error("Glasskey is stopped");
    return current;
  };
  return {
    ...{ config: configFor("data"), target, warnings, server, writePolicy, start },
    async stop() {
      await current?.stop();
      current = undefined;
    },
    async startProcess() {
      const external = configFor("data").database;
      const yaml = {
        ...{
          policy: policyDir,
          data: join(folder, "data"),
          listen: { api: "127.0.0.1:0", postgres: "127.0.0.1:0", ssh: "127.0.0.1:0" },
          hosts: ["127.0.0.1", "localhost"],
        },
        ...{ root_key: `\${file:${rootKey}}`, database: { ...external, ca: undefined } },
      };
      const file = join(folder, "glasskey.yaml");
      await writeFile(file, JSON.stringify(yaml)); // JSON is YAML
      const started = await startProcess(file, join(folder, "data", "ca.pem"));
      processes.push(started);
      return started;
    },
    async startSecond() {
      const second = await startServer(configFor("data-2"), (line) => warnings.push(`second: ${line}`));
      running.push(second);
      return second;
    },
    as: (person, which = server()) => clientOf(which, person),
    storeQuery: (sql, values) => admin(sql, database, values),
    async dispose() {
      for (const one of processes) await one.kill();
      for (const one of running) await one.stop();
      await target.dispose();
      await admin(`drop database ${database} with (force)`);
      await admin(`drop role if exists ${database}_app, ${database}_app_log`);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function startProcess(configFile: string, caFile: string): Promise<ServerProcess> {
  const glass = join(import.meta.dirname, "../../cli/bin/glass.mjs");
  const child = spawn(process.execPath, [glass, "serve", "--config", configFile], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const gone = once(child, "exit").then(([code]) => code as number | null);
  let output = "";
  const url = new Promise<string>((resolve, reject) => {
    const take = (chunk: Buffer): void => {
      output += chunk.toString();
      const found = /API +(https:\S+)[^]*Next:/.exec(output)?.[1];
      if (found !== undefined) resolve(found);
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    void gone.then((code) => reject(new Error(`glass serve ended with ${code}: ${output}`)));
  });
  const end = (signal: NodeJS.Signals): Promise<number | null> => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal);
    return gone;
  };
  return {
    ...{ url: await url, caFile, output: () => output, stop: () => end("SIGTERM") },
    async kill() {
      await end("SIGKILL");
    },
  };
}

async function clientOf(server: Reachable, person: string): Promise<Client> {
  const ca = await readFile(server.caFile, "utf8");
  let token = "";
  const send = async (method: string, path: string, body?: unknown): Promise<{ status: number; text: string }> => {
    const payload = body === undefined ? undefined : JSON.stringify(body);
    return new Promise((resolve, reject) => {
      const request = httpsRequest(new URL(path, server.url), {
        ...{ method, ca },
        headers: {
          ...(token === "" ? {} : { authorization: `Bearer ${token}` }),
          ...(payload === undefined ? {} : { "content-type": "application/json" }),
        },
      });
      request.once("error", reject);
      request.once("response", (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
        response.once("end", () => resolve({ status: response.statusCode ?? 0, text }));
        response.once("error", reject);
      });
      request.end(payload);
    });
  };
  const said = async (method: string, path: string, body?: unknown): Promise<string> => {
    const { status, text } = await send(method, path, body);
    if (status !== 200) throw new Error(`${method} ${path} as ${person}: ${status} ${text}`);
    return text;
  };
  const call = async <T>(method: "GET" | "POST", path: string, body?: unknown): Promise<T> =>
    JSON.parse(await said(method, path, body)) as T;
  if (person !== "") ({ token } = await call<{ token: string }>("POST", "/v1/login", { name: person, secret: SECRET }));
  const grant = (id: string): Promise<GrantView> => call("GET", `/v1/grants/${id}`);
  return {
    ...{ call, grant, text: (path) => said("GET", path) },
    async refused(method, path, body) {
      const { status, text } = await send(method, path, body);
      if (status === 200) throw new Error(`${method} ${path} as ${person} was not refused: ${text}`);
      const { error } = JSON.parse(text) as { error: { code: string; message: string; next?: string } };
      return { status, ...error };
    },
    break: (name, { reason = "outage", forMs } = {}) =>
      call("POST", "/v1/grants", {
        playbook: name,
        reason,
        why: "the tests say so",
        ...(forMs === undefined ? {} : { forMs }),
      }),
    end: (id) => call("POST", `/v1/grants/${id}/end`, {}),
    async until(id, states, withinMs = 20_000) {
      const deadline = performance.now() + withinMs;
      for (;;) {
        const view = await grant(id);
        if (states.includes(view.state)) return view;
        if (performance.now() > deadline)
          throw new Error(
            `grant ${id} is ${view.state} (${view.lastError ?? view.endText ?? ""}), not ${states.join(" or ")}`,
          );
        await new Promise((done) => setTimeout(done, 25));
      }
    },
    async connect(id) {
      const answer = await call<ConnectAnswer>("POST", `/v1/grants/${id}/connect`);
      const client = new pg.Client({
        ...{ host: "127.0.0.1", port: answer.port, user: answer.user, password: answer.secret, database: "postgres" },
        ssl: { ca: answer.ca },
      });
      client.on("error", () => {});
      await client.connect();
      return client;
    },
  };
}
