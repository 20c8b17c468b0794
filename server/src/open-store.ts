import { readFileSync } from "node:fs";
import { join } from "node:path";
import pg from "pg";
import { resolveSecret, type ServerConfig } from "./config.ts";
import { s3Store } from "./objects/s3.ts";
import type { Parts } from "./parts.ts";
import { folderChunkStore, objectChunkStore, type ChunkStore } from "./recording/chunk-store.ts";
import { startCluster, type Cluster } from "./store/cluster.ts";
import type { StoreAddress } from "./store/database.ts";
import { migrate } from "./store/migrate.ts";
import { applyRoles, derivedLogin, standingOf, withLogin } from "./store/roles.ts";

/** Where the store is, for its owner; the embedded one is started. */
export async function storeAddress(config: ServerConfig, parts: Parts): Promise<StoreAddress> {
  const external = config.database;
  if (external !== undefined) {
    const { host, port, database, ca } = external;
    const { user, password } = external.owner ?? external;
    const address = { host, port, user, password: resolveSecret(password).reveal(), database };
    return { ...address, ...(ca === undefined ? {} : { ca: readFileSync(ca, "utf8") }) };
  }
  const cluster: Cluster = await startCluster({ dataDir: join(config.dataDir, "store"), superuser: "glasskey" });
  parts.set("cluster", () => cluster.stop());
  const address = { host: "127.0.0.1", port: cluster.port, user: cluster.superuser, password: cluster.password };
  const client = new pg.Client({ ...address, database: "postgres" });
  await client.connect();
  try {
    const { rowCount } = await client.query("select from pg_database where datname = 'glasskey'");
    if (rowCount === 0) await client.query("create database glasskey");
  } finally {
    await client.end();
  }
  return { ...address, database: "glasskey" };
}

/**
 * Brings the store up to date as its owner, whose connection is closed then, and gives the logins to work with: one for
 * everything but the log, one for the log. Where no owner is configured, the one user is all of them.
 * @returns `standing`: why the log's tables are not out of reach of the application, for a person; undefined where they are.
 */
export async function openStoreRoles(
  owner: StoreAddress,
  config: ServerConfig,
  root: Buffer,
): Promise<{ address: StoreAddress; logAddress: StoreAddress; standing: string | undefined }> {
  const external = config.database;
  if (external !== undefined && external.owner === undefined) {
    let standing: string | undefined;
    await migrate(owner, async (client) => void (standing = await standingOf(client)));
    return { address: owner, logAddress: owner, standing };
  }
  const app =
    external === undefined
      ? { ...derivedLogin(root, "glasskey_app"), managed: true }
      : { user: external.user, password: resolveSecret(external.password).reveal(), managed: false };
  const log = derivedLogin(root, external === undefined ? "glasskey_log" : `${external.user}_log`);
  await migrate(owner, (client) => applyRoles(client, { app, log }));
  return { address: withLogin(owner, app), logAddress: withLogin(owner, log), standing: undefined };
}

/** Where sealed chunks are: in the data folder, or where other processes have theirs too. */
export function chunkStoreOf(config: ServerConfig): ChunkStore {
  const { store } = config.recordings;
  if (store === undefined) return folderChunkStore(join(config.dataDir, "chunks"));
  return objectChunkStore(s3Store(store, resolveSecret));
}
