import { existsSync, rmSync } from "node:fs";
import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { startCluster, type Cluster } from "../src/store/cluster.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** One shared PostgreSQL 18 for tests that need only a database of their own in it. */
    pg18: SharedCluster;
    /** The same on Debian's PostgreSQL 15, where its programs are installed. */
    pg15: SharedCluster | undefined;
  }
}

export interface SharedCluster {
  port: number;
  superuser: string;
  password: string;
}

/** Debian's PostgreSQL 15, or undefined where it is not installed. */
export const PG15_BIN = existsSync("/usr/lib/postgresql/15/bin/postgres") ? "/usr/lib/postgresql/15/bin" : undefined;

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-test-"));
  await chmod(folder, 0o755);
  const clusters: Cluster[] = [];
  // A run that is cut short has no teardown: whatever still runs goes with this process.
  process.on("exit", () => {
    for (const { pid } of clusters) {
      try {
        process.kill(pid, "SIGQUIT");
      } catch {
        // gone
      }
    }
    rmSync(folder, { recursive: true, force: true });
  });
  const start = async (name: string, binDir?: string): Promise<SharedCluster> => {
    const cluster = await startCluster({
      ...{ dataDir: join(folder, name), superuser: "postgres", ...(binDir === undefined ? {} : { binDir }) },
      settings: { fsync: "off", max_connections: "300", shared_buffers: "32MB" }, // throw-away data
    });
    clusters.push(cluster);
    return { port: cluster.port, superuser: cluster.superuser, password: cluster.password };
  };
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "README"), "Glasskey's tests; safe to delete when no test runs.\n");
  project.provide("pg18", await start("pg18"));
  project.provide("pg15", PG15_BIN === undefined ? undefined : await start("pg15", PG15_BIN));
  return async () => {
    await Promise.all(clusters.splice(0).map((cluster) => cluster.stop()));
    await rm(folder, { recursive: true, force: true });
  };
}
