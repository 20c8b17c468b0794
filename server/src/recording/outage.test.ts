import { execFileSync } from "node:child_process";
import { appendFile, chmod, cp, mkdtemp, rm, statfs, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ConnectAnswer } from "@glasskey/contract";
import pg from "pg";
import { expect, inject, test } from "vitest";
import { lookFromOutside, lookInto } from "../../testing/crash-loop.ts";
import type { SharedCluster } from "../../testing/global.ts";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";
import { type RunningServer, startServer } from "../main.ts";
import { startCluster, type Cluster } from "../store/cluster.ts";

interface OwnCluster extends AsyncDisposable {
  readonly shared: SharedCluster;
  stop(): Promise<void>;
  start(): Promise<void>;
}

/** A PostgreSQL of the test's own, to be taken away from under a Glasskey. */
async function ownCluster(): Promise<OwnCluster> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-outage-"));
  await chmod(folder, 0o755);
  const options = { dataDir: join(folder, "pg"), superuser: "postgres", settings: { max_connections: "100" } };
  let cluster: Cluster | undefined = await startCluster(options);
  const { port, superuser, password } = cluster;
  return {
    shared: { port, superuser, password },
    async stop() {
      await cluster?.stop();
      cluster = undefined;
    },
    async start() {
      cluster = await startCluster({ ...options, port });
      expect(cluster.port).toBe(port);
    },
    async [Symbol.asyncDispose]() {
      await cluster?.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Runs statements until told to stop, or until an error, which it gives. */
function load(
  client: pg.Client,
  marker: string,
  acknowledged: Set<string>,
  bytes = 100,
): { readonly ended: Promise<string | undefined>; stop(): Promise<string | undefined> } {
  let stopped = false;
  let told: string | undefined; // between two statements, why the session ended comes by itself
  client.on("error", ({ message }) => (told ??= message));
  const run = async (): Promise<string | undefined> => {
    for (let n = 0; !stopped; n++) {
      try {
        await client.query(`select '${marker}-${n}' as marker, length('${"x".repeat(bytes)}')`);
      } catch (error) {
        return told ?? (error instanceof Error ? error.message : String(error));
      }
      acknowledged.add(`${marker}-${n}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return undefined;
  };
  const running = run();
  return {
    ended: running,
    stop() {
      stopped = true;
      return running;
    },
  };
}

function door(answer: ConnectAnswer): pg.Client {
  const client = new pg.Client({
    ...{ host: "127.0.0.1", port: answer.port, user: answer.user, password: answer.secret, database: "postgres" },
    ssl: { ca: answer.ca },
  });
  client.on("error", () => {});
  return client;
}

const NO_MOUNT = "only root on Linux may mount a small file system, and not in most containers";

/** A file system of that size at `path`; undefined where this user, or this machine, lets none be mounted. */
function smallDisk(path: string, megabytes: number): AsyncDisposable | undefined {
  if (process.platform !== "linux" || process.getuid?.() !== 0) return undefined;
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${megabytes}m,mode=700`, "tmpfs", path], { stdio: "pipe" });
  } catch {
    return undefined;
  }
  return { [Symbol.asyncDispose]: async () => void execFileSync("umount", [path], { stdio: "pipe" }) };
}

async function sealed(system: TestSystem): Promise<void> {
  const open = async (): Promise<number> =>
    (await system.storeQuery("select id from sessions where not recording_complete")).length;
  await expect.poll(open, { timeout: 60_000 }).toBe(0);
}

test(
  "the store is away for 20 s of load: running sessions go on, nothing new opens, and afterwards everything is sealed and in the log",
  { timeout: 240_000 },
  async () => {
    await using cluster = await ownCluster();
    const system = await startTestSystem(cluster.shared);
    try {
      const ann = await system.as("ann");
      const { grant } = await ann.break("repair");
      const answer = await ann.call<ConnectAnswer>("POST", `/v1/grants/${grant}/connect`);
      const clients = await Promise.all([1, 2, 3].map(() => ann.connect(grant)));
      const acknowledged = new Set<string>();
      const loads = clients.map((client, i) => load(client, `outage-0-${i}`, acknowledged));
      await expect.poll(() => acknowledged.size, { timeout: 30_000 }).toBeGreaterThan(20);
      await cluster.stop();
      const before = acknowledged.size;
      const until = performance.now() + 20_000;
      await expect(door(answer).connect()).rejects.toThrow();
      expect(
        (await ann.refused("POST", "/v1/grants", { playbook: "repair", reason: "outage", why: "the tests" })).status,
      ).toBe(503);
      while (performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 100));
      expect(acknowledged.size).toBeGreaterThan(before + 100);
      await cluster.start();
      const during = acknowledged.size;
      await expect.poll(() => acknowledged.size, { timeout: 30_000 }).toBeGreaterThan(during + 20);
      expect(await Promise.all(loads.map((one) => one.stop()))).toEqual([undefined, undefined, undefined]); // nobody was cut
      await expect
        .poll(() => ann.break("repair").then(({ state }) => state, String), { timeout: 60_000 })
        .toBe("active");
      await Promise.all(clients.map((client) => client.end()));
      await sealed(system);
      await system.stop();
      const found = await lookFromOutside(system, acknowledged);
      expect(found.problems).toEqual([]);
      expect(found.recorded).toBeGreaterThanOrEqual(acknowledged.size);
    } finally {
      await cluster.start().catch(() => {});
      await system.dispose();
    }
  },
);

test(
  "the store is away for longer than the journal has room: sessions end, told why, their ends are recorded, and with the store it all opens again",
  { timeout: 240_000 },
  async () => {
    await using cluster = await ownCluster();
    const limits = { fileBytes: 256 << 10, maxUnsealedBytes: 1 << 20 };
    const system = await startTestSystem(
      cluster.shared,
      {},
      { recordings: { mirror: undefined, keepMs: undefined, limits } },
    );
    try {
      const ann = await system.as("ann");
      const { grant } = await ann.break("repair");
      const clients = await Promise.all([1, 2].map(() => ann.connect(grant)));
      const acknowledged = new Set<string>();
      await cluster.stop();
      const loads = clients.map((client, i) => load(client, `full-0-${i}`, acknowledged, 4_000));
      for (const one of loads) expect(await one.ended).toContain("the recording cannot be written");
      expect(acknowledged.size).toBeGreaterThan(50);
      await cluster.start();
      await expect
        .poll(() => ann.break("repair").then(({ state }) => state, String), { timeout: 60_000 })
        .toBe("active");
      await sealed(system);
      const { sessions } = await ann.call<{ sessions: { cause: string; session: string }[] }>(
        "GET",
        `/v1/sessions?grant=${grant}`,
      );
      expect(sessions.map(({ cause }) => cause)).toEqual(["recording_unavailable", "recording_unavailable"]);
      const alarms = async (): Promise<unknown> =>
        (
          await system.storeQuery<{ key: string; over: boolean }>(
            "select key, cleared_at is not null as over from alarms order by key",
          )
        ).filter(({ key }) => /^(?:room|recording) /.test(key));
      await expect
        .poll(alarms, { timeout: 30_000 })
        .toSatisfy((all: { over: boolean }[]) => all.every(({ over }) => over));
      await system.stop();
      const found = await lookFromOutside(system, acknowledged);
      expect(found.problems).toEqual([]);
    } finally {
      await cluster.start().catch(() => {});
      await system.dispose();
    }
  },
);

test(
  "a disk that fills up: first no grant and no session, then the sessions end, told why and recorded; with room it opens by itself",
  { timeout: 240_000 },
  async ({ skip }) => {
    const limits = { fileBytes: 1 << 20 };
    const system = await startTestSystem(
      inject("pg18"),
      {},
      { recordings: { mirror: undefined, keepMs: undefined, limits } },
    );
    const journal = join(system.config.dataDir, "journal");
    const ballast = join(journal, "ballast");
    let disk: AsyncDisposable | undefined;
    try {
      await system.stop();
      await cp(journal, `${journal}-before`, { recursive: true });
      disk = smallDisk(journal, 6);
      if (disk === undefined) skip(NO_MOUNT);
      await cp(`${journal}-before`, journal, { recursive: true });
      await system.start();
      const ann = await system.as("ann");
      const { grant } = await ann.break("repair");
      const client = await ann.connect(grant);
      await client.query("select 'disk-0-0-0'");
      let filling = true; // sealing frees files of the journal, which must not help
      const fill = (async () => {
        while (filling) {
          const { bavail, bsize } = await statfs(journal);
          await appendFile(ballast, Buffer.alloc(bavail * bsize)).catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      })();
      const acknowledged = new Set<string>(["disk-0-0-0"]);
      const loading = load(client, "disk-0-1", acknowledged, 4_000);
      const asked = { playbook: "repair", reason: "outage", why: "the tests" };
      const refusal = (): Promise<string> =>
        ann.break("repair").then(
          async ({ grant: opened }) => {
            await ann.end(opened);
            return "opened";
          },
          () => "refused",
        );
      await expect.poll(refusal, { timeout: 60_000 }).toBe("refused");
      expect(await ann.refused("POST", "/v1/grants", asked)).toMatchObject({
        ...{
          status: 503,
          code: "recording_unavailable",
          message: expect.stringContaining("there is no room for the recording in"),
        },
        next: expect.stringContaining("Make room"),
      });
      expect(await loading.ended).toContain("the recording cannot be written");
      const alarms = async (): Promise<string[]> =>
        (await system.storeQuery<{ key: string }>("select key from alarms where cleared_at is null"))
          .map(({ key }) => key.replace(/ nd_.*/, ""))
          .toSorted();
      await expect.poll(alarms, { timeout: 30_000 }).toEqual(["recording", "room"]);
      filling = false;
      await fill;
      await rm(ballast);
      await expect.poll(refusal, { timeout: 60_000 }).toBe("opened");
      await expect.poll(alarms, { timeout: 30_000 }).toEqual([]);
      const { sessions } = await ann.call<{ sessions: { cause: string }[] }>("GET", `/v1/sessions?grant=${grant}`);
      expect(sessions.map(({ cause }) => cause)).toEqual(["recording_unavailable"]);
      await sealed(system);
      await system.stop();
      expect((await lookFromOutside(system, acknowledged)).problems).toEqual([]);
    } finally {
      await system.stop();
      await disk?.[Symbol.asyncDispose]();
      await system.dispose();
    }
  },
);

test(
  "one of the journal's two disks fills up: nobody is cut or refused, an alarm says so, and a restart with room makes them equal again",
  { timeout: 240_000 },
  async ({ skip }) => {
    const folder = await mkdtemp(join(tmpdir(), "glasskey-mirror-"));
    const disk = smallDisk(folder, 3);
    if (disk === undefined) {
      await rm(folder, { recursive: true });
      skip(NO_MOUNT);
    }
    const recordings = { mirror: folder, keepMs: undefined, limits: { fileBytes: 1 << 20 } };
    const system = await startTestSystem(inject("pg18"), {}, { recordings });
    try {
      const ann = await system.as("ann");
      const { grant } = await ann.break("repair");
      const client = await ann.connect(grant);
      const acknowledged = new Set<string>();
      const loading = load(client, "mirror-0-0", acknowledged, 8_000);
      await expect.poll(() => acknowledged.size, { timeout: 30_000 }).toBeGreaterThan(5);
      const { bavail, bsize } = await statfs(folder);
      await writeFile(join(folder, "ballast"), Buffer.alloc(bavail * bsize));
      const alarms = async (): Promise<string[]> =>
        (
          await system.storeQuery<{ text: string }>(
            "select text from alarms where cleared_at is null and key like 'journal copy%'",
          )
        ).map(({ text }) => text);
      await expect
        .poll(alarms, { timeout: 120_000 })
        .toEqual([expect.stringContaining(`without its copy in ${folder}`)]);
      const then = acknowledged.size;
      await expect.poll(() => acknowledged.size, { timeout: 30_000 }).toBeGreaterThan(then + 20);
      expect((await ann.break("repair")).state).toBe("active");
      expect(await loading.stop()).toBeUndefined();
      await client.end();
      await sealed(system);
      await rm(join(folder, "ballast"));
      await system.stop();
      await system.start();
      await expect.poll(alarms, { timeout: 30_000 }).toEqual([]);
      await system.stop();
      expect(system.warnings.join("\n")).not.toContain("sealing:");
      expect((await lookFromOutside(system, acknowledged)).problems).toEqual([]);
    } finally {
      await system.dispose();
      await disk?.[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
    }
  },
);

test(
  "a session that is open while another process takes the sequencer over is sealed into the one log",
  { timeout: 240_000 },
  async () => {
    const system = await startTestSystem(inject("pg18"));
    try {
      const ann = await system.as("ann");
      const { grant } = await ann.break("repair");
      const client = await ann.connect(grant);
      const acknowledged = new Set<string>();
      const loading = load(client, "takeover-0-0", acknowledged);
      await system.startSecond();
      for (let turn = 0; turn < 3; turn++) {
        const before = acknowledged.size;
        const ended = await system.storeQuery(
          "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'glasskey log'",
        );
        expect(ended.length).toBeGreaterThan(0);
        await expect.poll(() => acknowledged.size, { timeout: 30_000 }).toBeGreaterThan(before + 20);
        const size = async (): Promise<number> =>
          Number((await system.storeQuery<{ size: string }>("select size from log_head"))[0]?.size);
        const covered = await size();
        await ann.break("repair");
        await expect.poll(size, { timeout: 60_000 }).toBeGreaterThan(covered);
      }
      expect(await loading.stop()).toBeUndefined();
      await client.end();
      await sealed(system);
      const queued = async (): Promise<number> => (await system.storeQuery("select id from log_queue")).length;
      await expect.poll(queued, { timeout: 30_000 }).toBe(0); // the other process has the sequencer: its export is not this one's
      await system.stop();
      const found = await lookFromOutside(system, acknowledged);
      expect(found.problems).toEqual([]);
      expect(found.recorded).toBeGreaterThanOrEqual(acknowledged.size);
    } finally {
      await system.dispose();
    }
  },
);

test(
  "the embedded store's disk is full: sessions go on, nothing new opens, and with room everything is there",
  { timeout: 240_000 },
  async ({ skip }) => {
    const system = await startTestSystem(inject("pg18"));
    const dataDir = await mkdtemp(join(tmpdir(), "glasskey-store-full-"));
    const journal = await mkdtemp(join(tmpdir(), "glasskey-journal-elsewhere-"));
    await chmod(dataDir, 0o755);
    const disk = smallDisk(dataDir, 420);
    let server: RunningServer | undefined;
    try {
      if (disk === undefined) skip(NO_MOUNT);
      await system.stop();
      await chmod(dataDir, 0o755); // the store runs as another user
      await symlink(journal, join(dataDir, "journal"));
      const config = { ...system.config, dataDir, database: undefined };
      server = await startServer(config, (line) => system.warnings.push(line));
      const ann = await system.as("ann", server);
      const { grant } = await ann.break("repair");
      const client = await ann.connect(grant);
      const acknowledged = new Set<string>();
      const loading = load(client, "store-0-0", acknowledged, 2_000);
      await expect.poll(() => acknowledged.size, { timeout: 30_000 }).toBeGreaterThan(5);
      const ballast = join(dataDir, "ballast");
      let filling = true;
      const fill = (async () => {
        while (filling) {
          const { bavail, bsize } = await statfs(dataDir);
          await appendFile(ballast, Buffer.alloc(Math.min(bavail * bsize, 16 << 20))).catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      })();
      const refused = (): Promise<string> => ann.break("repair").then(() => "opened", String);
      await expect.poll(refused, { timeout: 60_000 }).toMatch(/recording_unavailable|store_unavailable/);
      const then = acknowledged.size;
      await expect.poll(() => acknowledged.size, { timeout: 60_000 }).toBeGreaterThan(then + 200);
      expect(await loading.stop()).toBeUndefined(); // nobody was cut
      filling = false;
      await fill;
      await rm(ballast);
      await server.stop();
      server = await startServer(config, (line) => system.warnings.push(line));
      expect((await (await system.as("ann", server)).end(grant)).state).toBe("closed");
      await server.stop(); // seals and exports everything
      const store = await startCluster({ dataDir: join(dataDir, "store"), superuser: "glasskey" });
      try {
        const { port, superuser: user, password } = store;
        const address = { host: "127.0.0.1", port, user, password, database: "glasskey" };
        const found = await lookInto(join(dataDir, "log"), address, acknowledged);
        expect(found.problems).toEqual([]);
        expect(found.recorded).toBeGreaterThanOrEqual(acknowledged.size);
      } finally {
        await store.stop();
      }
    } finally {
      await server?.stop();
      await disk?.[Symbol.asyncDispose]();
      for (const path of [dataDir, journal]) await rm(path, { recursive: true, force: true });
      await system.dispose();
    }
  },
);
