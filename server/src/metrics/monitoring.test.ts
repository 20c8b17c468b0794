import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { openStore } from "../store/database.ts";
import { createFigures } from "./figures.ts";
import { createHealth } from "./health.ts";
import { playbook, startTestSystem, type Client, type TestSystem } from "../../testing/system.ts";

/* The metrics of a whole Glasskey, and the examples that are made for them, judged by Prometheus's own programs. */

const root = join(import.meta.dirname, "../../..");
const EXAMPLES = join(root, "examples/monitoring");
const PROMTOOL = "/usr/bin/promtool";
const PROMETHEUS = "/usr/bin/prometheus";

let system: TestSystem;
let ann: Client;
let folder: string;

beforeAll(async () => {
  const policy = { "playbooks/repair.yaml": playbook("repair") };
  system = await startTestSystem(inject("pg18"), policy, { metrics: { host: "127.0.0.1", port: 0 } });
  ann = await system.as("ann");
  folder = await mkdtemp(join(tmpdir(), "glasskey-monitoring-"));
}, 120_000);
afterAll(async () => {
  await system?.dispose();
  await rm(folder, { recursive: true, force: true });
});

const address = (): string => `127.0.0.1:${system.server().metricsPort}`;
const scrape = async (): Promise<string> => (await fetch(`http://${address()}/metrics`)).text();
const value = (text: string, name: string): number => {
  const line = text.split("\n").find((one) => one.startsWith(`${name} `));
  return Number(line?.split(" ")[1] ?? Number.NaN);
};

async function run(argv: readonly string[], input = ""): Promise<{ code: number | null; out: string }> {
  const child = spawn(argv[0] ?? "", argv.slice(1), { cwd: EXAMPLES, stdio: ["pipe", "pipe", "pipe"] });
  let out = "";
  child.stdout.on("data", (chunk: Buffer) => (out += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (out += chunk.toString()));
  child.stdin.end(input);
  const [code] = (await once(child, "close")) as [number | null];
  return { code, out };
}

test("what happens is in the metrics, and nobody's name, no grant and no session is", async () => {
  const grant = await ann.break("repair");
  const client = await ann.connect(grant.grant);
  await client.query("select 1");
  await (await system.as("")).refused("POST", "/v1/login", { name: "ann", secret: "guessed" });
  await expect.poll(async () => value(await scrape(), "glasskey_process_sessions"), { timeout: 20_000 }).toBe(1);
  const text = await scrape();
  expect(value(text, "glasskey_store_up")).toBe(1);
  expect(value(text, "glasskey_ready")).toBe(1);
  expect(value(text, "glasskey_sessions")).toBe(1);
  expect(value(text, 'glasskey_grants{state="active"}')).toBe(1);
  expect(value(text, 'glasskey_leases{state="live"}')).toBe(1);
  expect(value(text, "glasskey_revocations_late")).toBe(0);
  expect(value(text, "glasskey_logins_failed_total")).toBe(1);
  expect(value(text, 'glasskey_decisions_total{action="connect",outcome="allow"}')).toBeGreaterThan(0);
  expect(value(text, "glasskey_log_entries")).toBeGreaterThan(3);
  expect(value(text, "glasskey_disk_free_bytes")).toBeGreaterThan(0);
  expect(text).not.toMatch(/\b(?:gr|se|ls|pe)_[0-9a-z]{12}|\bann\b|\brepair\b|127\.0\.0\.1/);
  await client.end();
  await ann.end(grant.grant);
  await expect.poll(async () => value(await scrape(), "glasskey_sessions"), { timeout: 20_000 }).toBe(0);
  await expect.poll(async () => value(await scrape(), "glasskey_log_unsigned_entries"), { timeout: 20_000 }).toBe(0);
});

test("a sink that is behind shows its lag in entries and in seconds, and an archive too", async () => {
  // Rows as their owners write them. Only a sink that glasskey.yaml names counts.
  await system.storeQuery(
    `insert into sinks (name, node, kind, next_index, before_index)
     values ('siem', '', 'syslog', 1, 0), ('copy', 'nd_1', 'file', 2, 0), ('copy', 'nd_2', 'file', 1, 0), ('gone', '', 'file', 0, 0)`,
  );
  await system.storeQuery("insert into sink_parked (sink, idx, error) values ('siem', 0, 'too long')");
  const store = openStore({ ...superuser(), host: "127.0.0.1" });
  try {
    const own = { store, sinks: ["siem", "copy"], witnessed: true, node: "nd_2", archive: () => "s3://bucket/log" };
    const figures = await createFigures(own)();
    const lag = { entries: expect.any(Number) as number, seconds: expect.any(Number) as number };
    expect(figures.sinks).toEqual([
      { name: "copy", ...lag, parked: 0 },
      { name: "siem", ...lag, parked: 1 },
    ]);
    const [copy, siem] = figures.sinks ?? [];
    expect(copy?.entries).toBe(siem?.entries);
    // A machine that is gone writes its copy no more: that is no lag of one that works.
    const other = await createFigures({ ...own, node: "nd_1" })();
    expect(other.sinks?.[0]?.entries).toBe((copy?.entries ?? 0) - 1);
    expect(siem?.entries).toBeGreaterThan(3);
    expect(siem?.seconds).toBeGreaterThan(0);
    expect(figures.witnessed?.lagEntries).toBeGreaterThan(3);
    expect(figures.witnessed?.lagSeconds).toBeGreaterThan(0);
    expect(figures.archives).toEqual([]);
    await system.storeQuery(
      "insert into archives (place, size, next_index) values ('s3://bucket/log', 0, 0), ('/old', 0, 0)",
    );
    const { archives } = await createFigures(own)();
    expect(archives).toEqual([{ name: "s3://bucket/log", ...lag }]);
    expect(archives?.[0]?.entries).toBeGreaterThan(3);
    expect(archives?.[0]?.seconds).toBeGreaterThan(0);
    // Nothing is archived here any more, and an old row must not wake anybody for ever.
    expect(await scrape()).not.toContain("glasskey_archive_lag_entries{");
  } finally {
    await store.destroy();
    for (const table of ["sink_parked", "sinks", "archives"]) await system.storeQuery(`delete from ${table}`);
  }
});

test("a store that answers and cannot be written, such as a standby, makes a process not ready", async () => {
  const { database } = superuser();
  const ready = async (): Promise<readonly string[]> => {
    const store = openStore({ ...superuser(), host: "127.0.0.1" });
    const well = { gatewayLives: () => true, shut: () => [], hasPolicy: () => true, stopping: () => false };
    const { reasons } = await createHealth({ store, ...well }).ready();
    await store.destroy();
    return reasons;
  };
  expect(await ready()).toEqual([]);
  await system.storeQuery(
    `alter role ${superuser().user} in database ${database} set default_transaction_read_only = on`,
  );
  try {
    expect(await ready()).toEqual(["store"]);
  } finally {
    await system.storeQuery(
      `begin read write; alter role ${superuser().user} in database ${database} reset default_transaction_read_only; commit`,
    );
  }
});

test("probes on the API ask nobody who he is, and tell a word for what is wrong", async () => {
  const anybody = await system.as("");
  expect(await anybody.call("GET", "/healthz")).toEqual({ ok: true, reasons: [] });
  expect(await anybody.call("GET", "/readyz")).toEqual({ ok: true, reasons: [] });
});

describe("the example alerts and dashboard", () => {
  const alerts = readFileSync(join(EXAMPLES, "alerts.yaml"), "utf8");
  const dashboard = readFileSync(join(EXAMPLES, "dashboard.json"), "utf8");

  test("use metrics that exist, and no other", async () => {
    const text = await scrape();
    const known = new Set([...text.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name));
    const expressions = [
      ...[...alerts.matchAll(/^ +expr: (.+)$/gm)].map(([, expr = ""]) => expr),
      ...(JSON.parse(dashboard) as { panels: { targets: { expr: string }[] }[] }).panels.flatMap(({ targets }) =>
        targets.map(({ expr }) => expr),
      ),
    ];
    expect(expressions.length).toBeGreaterThan(30);
    const used = new Set(expressions.flatMap((expr) => expr.match(/\b(?:glasskey|nodejs|process)_\w+/g) ?? []));
    expect(used.size).toBeGreaterThan(20);
    expect([...used].filter((name) => !known.has(name))).toEqual([]);
  });

  test("each alert has a runbook, which is a section of docs/monitoring.md", () => {
    const names = [...alerts.matchAll(/- alert: (\w+)/g)].map(([, name = ""]) => name);
    const runbooks = [...alerts.matchAll(/runbook: docs\/monitoring\.md#(\w+)/g)].map(([, anchor]) => anchor);
    expect(runbooks).toEqual(names.map((name) => name.toLowerCase()));
    const docs = readFileSync(join(root, "docs/monitoring.md"), "utf8");
    const headings = [...docs.matchAll(/^#+ (\w+)$/gm)].map(([, heading]) => heading);
    expect(names.filter((name) => !headings.includes(name))).toEqual([]);
  });

  test.runIf(existsSync(PROMTOOL))(
    "promtool finds nothing wrong with the rules, their tests and the metrics",
    async () => {
      expect(await run([PROMTOOL, "check", "rules", "alerts.yaml"])).toMatchObject({ code: 0 });
      expect(await run([PROMTOOL, "test", "rules", "alerts.test.yaml"])).toMatchObject({ code: 0 });
      const own = (await scrape()).split("\n").filter((line) => /^(?:# \w+ )?glasskey_/.test(line));
      expect(await run([PROMTOOL, "check", "metrics"], `${own.join("\n")}\n`)).toEqual({ code: 0, out: "" });
    },
  );
});

test.runIf(existsSync(PROMETHEUS))(
  "a real Prometheus scrapes a real Glasskey, and its alert fires when a credential cannot be proved gone",
  async () => {
    const port = await freePort();
    const config = {
      global: { scrape_interval: "1s", evaluation_interval: "1s" },
      rule_files: [join(EXAMPLES, "alerts.yaml")],
      scrape_configs: [{ job_name: "glasskey", static_configs: [{ targets: [address()] }] }],
    };
    await writeFile(join(folder, "prometheus.yml"), JSON.stringify(config)); // JSON is YAML
    const flags = [`--config.file=${join(folder, "prometheus.yml")}`, `--storage.tsdb.path=${join(folder, "tsdb")}`];
    const prometheus = spawn(PROMETHEUS, [...flags, `--web.listen-address=127.0.0.1:${port}`], { stdio: "ignore" });
    const gone = once(prometheus, "exit");
    const ask = async <T>(path: string): Promise<T | undefined> => {
      const response = await fetch(`http://127.0.0.1:${port}/api/v1/${path}`).catch(() => undefined);
      return response?.ok === true ? ((await response.json()) as { data: T }).data : undefined;
    };
    const firing = async (): Promise<string[]> => {
      const found = await ask<{ alerts: { state: string; labels: { alertname: string } }[] }>("alerts");
      return (found?.alerts ?? []).filter(({ state }) => state === "firing").map(({ labels }) => labels.alertname);
    };
    try {
      const scraped = async (): Promise<unknown> =>
        (await ask<{ result: { value: [number, string] }[] }>("query?query=glasskey_ready"))?.result[0]?.value[1];
      await expect.poll(scraped, { timeout: 60_000, interval: 250 }).toBe("1");
      expect(await firing()).not.toContain("GlasskeyRevocationNotProved");

      const grant = await ann.break("repair");
      await system.target.stop();
      await ann.call("POST", `/v1/grants/${grant.grant}/end`, { waitMs: 1 });
      // The kind promises a minute; this lease's promise is made shorter, so that the test need not wait for it.
      await system.storeQuery("update leases set worst_case_revoke_ms = 1 where state = 'closing'");
      await expect.poll(firing, { timeout: 60_000, interval: 250 }).toContain("GlasskeyRevocationNotProved");

      await system.target.start();
      await ann.until(grant.grant, ["closed"], 60_000);
      await expect.poll(firing, { timeout: 60_000, interval: 250 }).not.toContain("GlasskeyRevocationNotProved");
    } finally {
      prometheus.kill();
      await gone;
    }
  },
  240_000,
);

/** The login that may write rows of others. */
function superuser(): { port: number; user: string; password: string; database: string } {
  const { port, superuser: user, password } = inject("pg18");
  return { port, user, password, database: system.config.database?.database ?? "" };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => void server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => void server.close(done));
  return port;
}
