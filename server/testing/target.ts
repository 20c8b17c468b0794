import { chownSync } from "node:fs";
import { chmod, mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { createAuthority, issueServerCertificate } from "../src/core/certificates.ts";
import { startCluster, type Cluster } from "../src/store/cluster.ts";

/** A PostgreSQL of the test's own, with TLS, to be opened, stopped, restarted and broken at will. */
export interface TestTarget {
  readonly port: number;
  /** PEM of the CA that signed its certificate (for host `localhost` and 127.0.0.1), and a file with it. */
  readonly ca: string;
  readonly caFile: string;
  readonly superuser: string;
  readonly password: string;
  /** Runs SQL as superuser over TLS, on a connection of its own. */
  query(sql: string, options?: { database?: string; values?: unknown[] }): Promise<pg.QueryResult>;
  stop(): Promise<void>;
  /** Starts it again on the same port and data. */
  start(): Promise<void>;
  /** Stops it and removes its files. */
  dispose(): Promise<void>;
}

export async function startTestTarget(
  options: { binDir?: string; settings?: Record<string, string> } = {},
): Promise<TestTarget> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-target-"));
  await chmod(folder, 0o755);
  const authority = await createAuthority("Glasskey test target CA", 2);
  const identity = await issueServerCertificate(authority, ["localhost", "127.0.0.1"], 2);
  const [caFile, certFile, keyFile] = [join(folder, "ca.pem"), join(folder, "server.pem"), join(folder, "server.key")];
  await writeFile(caFile, authority.cert);
  await writeFile(certFile, identity.cert);
  await writeFile(keyFile, identity.key, { mode: 0o600 });
  let port = 0;
  let cluster: Cluster | undefined;
  const start = async (tls: boolean): Promise<void> => {
    cluster = await startCluster({
      ...{ dataDir: join(folder, "data"), superuser: "postgres", port },
      ...(options.binDir === undefined ? {} : { binDir: options.binDir }),
      hba: ["host all all 127.0.0.1/32 scram-sha-256"],
      settings: {
        ...{ fsync: "off", shared_buffers: "32MB", max_connections: "300", max_prepared_transactions: "5" },
        ...(tls ? { ssl: "on", ssl_cert_file: certFile, ssl_key_file: keyFile } : {}),
        ...options.settings,
      },
    });
    port = cluster.port;
  };
  await start(false); // creates the data directory, whose owner must own the key too
  const owner = await stat(join(folder, "data"));
  chownSync(keyFile, owner.uid, owner.gid);
  await cluster?.stop();
  await start(true);
  const running = (): Cluster => {
    if (cluster === undefined) throw new Error("the test target is stopped");
    return cluster;
  };
  const { superuser, password } = running();
  return {
    ...{ port, ca: authority.cert, caFile, superuser, password },
    async query(sql, { database = "postgres", values } = {}) {
      const client = new pg.Client({
        ...{ host: "127.0.0.1", port, user: superuser, password, database },
        ssl: { ca: authority.cert, servername: "localhost" },
      });
      client.on("error", () => {});
      await client.connect();
      try {
        return await client.query(sql, values);
      } finally {
        await client.end();
      }
    },
    async stop() {
      await running().stop();
      cluster = undefined;
    },
    start: () => start(true),
    async dispose() {
      await cluster?.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
