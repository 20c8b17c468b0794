import { createServer, type Socket } from "node:net";
import { type AddressInfo } from "node:net";
import { afterEach, expect, test } from "vitest";
import { GlassError } from "../core/errors.ts";
import { openStore, type Store } from "../store/database.ts";
import { createFigures } from "./figures.ts";
import { createHealth, type HealthParts } from "./health.ts";
import { createMetrics, type MetricsParts } from "./metrics.ts";
import { startMetricsServer } from "./server.ts";

const undo: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

/** A store at a port where something, or nothing, listens. */
function storeAt(port: number): Store {
  const store = openStore({ host: "127.0.0.1", port, user: "x", password: "x", database: "x" });
  undo.push(() => store.destroy().catch(() => {}));
  return store;
}

/** Listens as `onConnection` does; without it, takes connections and never says a word. */
async function listen(onConnection?: (socket: Socket) => void): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => {}));
    onConnection?.(socket);
  });
  await new Promise<void>((done) => void server.listen(0, "127.0.0.1", done));
  undo.push(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((done) => void server.close(done));
  });
  return (server.address() as AddressInfo).port;
}

const refusing = (): Promise<number> => listen((socket) => socket.destroy());

function healthOf(store: Store, parts: Partial<HealthParts> = {}) {
  const well = { gatewayLives: () => true, shut: () => [], hasPolicy: () => true, stopping: () => false };
  return createHealth({ store, ...well, ...parts });
}

function metricsOf(store: Store, parts: Partial<MetricsParts> = {}) {
  const nothing = { sessions: 3, unsealedFrames: 0, unsealedBytes: undefined, diskFreeBytes: 1 };
  return createMetrics({
    ...{ store, sinks: [], node: "", archive: () => undefined, witnessed: false },
    ...{ version: "1", health: healthOf(store) },
    ...{ local: () => Promise.resolve(nothing), ...parts },
  });
}

const value = (text: string, name: string): string | undefined => new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1];

test("a store that is down does not break the metrics: they say so, and tell nothing that is not known", async () => {
  const text = await metricsOf(storeAt(await refusing())).text();
  expect(value(text, "glasskey_store_up")).toBe("0");
  expect(value(text, "glasskey_ready")).toBe("0");
  expect(value(text, "glasskey_live")).toBe("1");
  expect(value(text, "glasskey_process_sessions")).toBe("3");
  for (const absent of ["glasskey_alarms", "glasskey_revocations_late", "glasskey_journal_unsealed_bytes"])
    expect(value(text, absent), absent).toBeUndefined();
});

test("a store that takes connections and never answers does not hold the metrics up for ever", async () => {
  const text = await metricsOf(storeAt(await listen()), { timeoutMs: 300 }).text();
  expect(value(text, "glasskey_store_up")).toBe("0");
}, 30_000);

test("a store that hangs is asked one question at a time, however often and for however long it is asked for", async () => {
  let connections = 0;
  const store = storeAt(await listen(() => (connections += 1)));
  const figures = createFigures({
    store,
    sinks: [],
    node: "",
    archive: () => undefined,
    witnessed: false,
    timeoutMs: 20,
  });
  for (let i = 0; i < 20; i += 1) expect(await figures()).toEqual({ up: false });
  await expect.poll(() => connections).toBe(1);
  const health = healthOf(store);
  for (let i = 0; i < 3; i += 1) expect((await health.ready()).reasons).toEqual(["store"]);
  expect(connections).toBe(2);
}, 30_000);

test("however many ask at once, it is collected once", async () => {
  let collected = 0;
  const local = () => {
    collected += 1;
    return Promise.resolve({ sessions: 0, unsealedFrames: 0, unsealedBytes: 0, diskFreeBytes: 0 });
  };
  const metrics = metricsOf(storeAt(await refusing()), { local });
  const texts = await Promise.all(Array.from({ length: 100 }, () => metrics.text()));
  expect(new Set(texts).size).toBe(1);
  expect(collected).toBe(1);
});

test("decisions are counted by action and outcome, and a decision without knowledge is neither a yes nor a no", async () => {
  const metrics = metricsOf(storeAt(await refusing()));
  const policy = {
    name: "p",
    decide: ({ allow, unknown }: { action: string; allow: boolean; unknown: boolean }) => ({
      allow,
      clauses: [{ unknown: false }, { unknown }],
    }),
  };
  const counted = metrics.counted(policy as never) as typeof policy;
  expect(metrics.counted(policy as never)).toBe(counted);
  expect(counted.name).toBe("p");
  expect(counted.decide({ action: "open", allow: true, unknown: false })).toEqual({
    allow: true,
    clauses: [{ unknown: false }, { unknown: false }],
  });
  counted.decide({ action: "open", allow: false, unknown: false });
  counted.decide({ action: "open", allow: true, unknown: true });
  const text = await metrics.text();
  for (const outcome of ["allow", "deny", "unknown"])
    expect(text).toContain(`glasskey_decisions_total{action="open",outcome="${outcome}"} 1`);
});

test("a login that is refused is counted; one that fails because the store is away is not", async () => {
  const metrics = metricsOf(storeAt(await refusing()));
  await expect(metrics.login(Promise.reject(new GlassError("unauthenticated", "no")))).rejects.toThrow("no");
  await expect(metrics.login(Promise.reject(new GlassError("store_unavailable", "away")))).rejects.toThrow("away");
  await expect(metrics.login(Promise.resolve(1))).resolves.toBe(1);
  metrics.proofFailed();
  const text = await metrics.text();
  expect(value(text, "glasskey_logins_failed_total")).toBe("1");
  expect(value(text, "glasskey_gateway_proofs_failed_total")).toBe("1");
});

test("a process is ready when nothing is in the way, and says in words what is; a store that is down kills nobody", async () => {
  const store = storeAt(await refusing());
  const health = healthOf(store, { shut: () => ["log of another process", "room"], hasPolicy: () => false });
  expect(await health.ready()).toEqual({ ok: false, reasons: ["store", "policy", "log_of_another_process", "room"] });
  expect(health.live()).toEqual({ ok: true, reasons: [] });
  expect(await healthOf(store, { notes: ["store_owner"] }).ready()).toMatchObject({ notes: ["store_owner"] });
  const dead = healthOf(store, { gatewayLives: () => false, stopping: () => true });
  expect((await dead.ready()).reasons).toEqual(["stopping", "gateway", "store"]);
  expect(dead.live()).toEqual({ ok: false, reasons: ["gateway"] });
});

test("the port for metrics serves three paths to GET and HEAD, and nothing else", async () => {
  const store = storeAt(await refusing());
  const health = healthOf(store);
  const at = { host: "127.0.0.1", port: 0 };
  const server = await startMetricsServer(at, { metrics: metricsOf(store, { health }), health });
  undo.push(() => server.stop());
  const ask = (path: string, init?: RequestInit) => fetch(`http://127.0.0.1:${server.port}${path}`, init);
  const metrics = await ask("/metrics");
  expect([metrics.status, metrics.headers.get("content-type")]).toEqual([
    200,
    "text/plain; version=0.0.4; charset=utf-8",
  ]);
  expect((await metrics.text()).split("\n").filter((line) => line.startsWith("glasskey_")).length).toBeGreaterThan(4);
  expect([(await ask("/healthz")).status, (await ask("/readyz")).status]).toEqual([200, 503]);
  expect(await (await ask("/readyz")).json()).toEqual({ ok: false, reasons: ["store"] });
  expect((await ask("/metrics", { method: "HEAD" })).status).toBe(200);
  for (const path of ["/", "/v1/grants", "/metrics/", "//metrics", "/log/checkpoint"])
    expect((await ask(path)).status, path).toBe(404);
  for (const method of ["POST", "PUT", "DELETE", "OPTIONS"])
    expect((await ask("/metrics", { method })).status, method).toBe(405);
  await expect(
    startMetricsServer({ host: "127.0.0.1", port: server.port }, { metrics: metricsOf(store), health }),
  ).rejects.toThrow(/cannot listen on 127\.0\.0\.1:\d+/);
});
