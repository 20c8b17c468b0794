import { chmod, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { afterEach, expect, test } from "vitest";
import { readConfig } from "../config.ts";
import { initFolder } from "../init.ts";
import { startServer, type RunningServer } from "../main.ts";
import { startCluster } from "./cluster.ts";
import { migrate } from "./migrate.ts";

const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

/** A folder as `glass init` makes it, with ports that are free. */
async function installation(): Promise<ReturnType<typeof readConfig>> {
  const dir = await mkdtemp(join(tmpdir(), "glasskey-embedded-"));
  await chmod(dir, 0o755);
  undo.push(() => rm(dir, { recursive: true, force: true }));
  await initFolder(join(dir, "gk"));
  const config = readConfig(join(dir, "gk", "glasskey.yaml"));
  const free = { host: "127.0.0.1", port: 0 };
  return { ...config, api: free, gateway: { postgres: free } };
}

async function start(config: ReturnType<typeof readConfig>): Promise<RunningServer> {
  const server = await startServer(config, () => {});
  undo.push(() => server.stop());
  return server;
}

/** As the superuser, on the port that the embedded server took. */
async function query(config: ReturnType<typeof readConfig>, sql: string): Promise<Record<string, unknown>[]> {
  const store = join(config.dataDir, "store");
  const port = Number((await readFile(join(store, "postmaster.pid"), "utf8")).split("\n")[3]);
  const password = (await readFile(`${store}.password`, "utf8")).trim();
  const client = new pg.Client({ host: "127.0.0.1", port, user: "glasskey", password, database: "glasskey" });
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(sql)).rows;
  } finally {
    await client.end();
  }
}

const USERS = `select usename, bool_or(application_name = 'glasskey log') as log from pg_stat_activity
  where datname = 'glasskey' and pid <> pg_backend_pid() and backend_type = 'client backend' group by usename order by usename`;

test("on the embedded store Glasskey works as two roles that can change nothing in the log; its superuser is not connected any more", async () => {
  const config = await installation();
  const server = await start(config);
  expect(await query(config, USERS)).toEqual([
    { usename: "glasskey_app", log: false },
    { usename: "glasskey_log", log: true },
  ]);
  const [head] = await query(config, "select size > 0 as signed from log_checkpoints limit 1");
  expect(head).toEqual({ signed: true });
  const passwords = await query(
    config,
    "select count(*)::int as n from pg_authid where rolpassword like 'SCRAM-SHA-256%'",
  );
  expect(passwords).toEqual([{ n: 3 }]);
  await server.stop();
  await start(config); // the passwords are derived again
});

test("an embedded store of an older Glasskey, where the superuser did everything, is separated at the next start, without a manual step", async () => {
  const config = await installation();
  const cluster = await startCluster({ dataDir: join(config.dataDir, "store"), superuser: "glasskey" });
  const superuser = { host: "127.0.0.1", port: cluster.port, user: "glasskey", password: cluster.password };
  const admin = new pg.Client({ ...superuser, database: "postgres" });
  await admin.connect();
  await admin.query("create database glasskey");
  await admin.end();
  await migrate({ ...superuser, database: "glasskey" }); // and no roles
  await cluster.stop();
  await start(config);
  expect((await query(config, USERS)).map(({ usename }) => usename)).toEqual(["glasskey_app", "glasskey_log"]);
});
