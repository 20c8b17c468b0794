import { chownSync } from "node:fs";
import { mkdir, stat, writeFile } from "node:fs/promises";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import pg from "pg";
import { createAuthority, issueServerCertificate } from "../server/src/core/certificates.ts";
import { startCluster, type Cluster } from "../server/src/store/cluster.ts";

/** A PostgreSQL that plays the production database: TLS, realistic data, prepared as docs/postgres-target.md says. */
export interface DemoTarget {
  readonly port: number;
  readonly caFile: string;
  /** File with the password of Glasskey's own login there. */
  readonly passwordFile: string;
  /** Superuser, for looking from the side. */
  readonly superuser: { user: string; password: string };
  readonly database: string;
  readonly rows: number;
  stop(): Promise<void>;
}

export interface DemoTargetOptions {
  dir: string;
  binDir?: string;
  settings?: Readonly<Record<string, string>>;
}

export async function startDemoTarget({ dir, binDir, settings = {} }: DemoTargetOptions): Promise<DemoTarget> {
  await mkdir(dir, { recursive: true });
  const [caFile, certFile, keyFile] = [join(dir, "ca.pem"), join(dir, "server.pem"), join(dir, "server.key")];
  const passwordFile = join(dir, "glasskey.password");
  const authority = await createAuthority("orders-prod CA", 30);
  const identity = await issueServerCertificate(authority, ["localhost", "127.0.0.1"], 30);
  await writeFile(caFile, authority.cert);
  await writeFile(certFile, identity.cert);
  await writeFile(keyFile, identity.key, { mode: 0o600 });
  const cluster = {
    dataDir: join(dir, "data"),
    superuser: "postgres",
    ...(binDir === undefined ? {} : { binDir }),
    settings,
  };
  const plain = await startCluster(cluster); // makes the data folder, whose owner must own the key too
  const owner = await stat(cluster.dataDir);
  await plain.stop();
  if (process.getuid?.() === 0) chownSync(keyFile, owner.uid, owner.gid);
  const running = await startCluster({
    ...cluster,
    hba: ["hostssl all all 127.0.0.1/32 scram-sha-256", "hostnossl all postgres 127.0.0.1/32 scram-sha-256"],
    settings: { ssl: "on", ssl_cert_file: certFile, ssl_key_file: keyFile, max_connections: "600", ...settings },
  });
  try {
    const rows = await fill(running, passwordFile);
    return {
      ...{ port: running.port, caFile, passwordFile, database: "orders", rows },
      superuser: { user: running.superuser, password: running.password },
      stop: () => running.stop(),
    };
  } catch (error) {
    await running.stop();
    throw error;
  }
}

const SCHEMA = `
  create table customers (
    id integer primary key generated always as identity,
    name text not null, email text not null unique, country text not null, since date not null);
  create table products (
    id integer primary key generated always as identity, sku text not null unique, title text not null, cents integer not null);
  create table orders (
    id integer primary key generated always as identity,
    customer integer not null references customers, placed timestamptz not null,
    status text not null check (status in ('open', 'paid', 'shipped', 'returned', 'stuck')), cents integer not null);
  create table payments (
    id integer primary key generated always as identity,
    order_id integer not null references orders, at timestamptz not null, provider text not null, cents integer not null);
  insert into customers (name, email, country, since)
    select 'Customer ' || n, 'customer' || n || '@shop.example', (array['DE','FR','DK','PL','IT'])[1 + n % 5], date '2019-01-01' + n % 2000
    from generate_series(1, 20000) n;
  insert into products (sku, title, cents)
    select 'SKU-' || lpad(n::text, 5, '0'), 'Product ' || n, 199 + (n * 37) % 20000 from generate_series(1, 2000) n;
  insert into orders (customer, placed, status, cents)
    select 1 + (n * 7919) % 20000, now() - n * interval '3 minutes',
           case when n <= 212 then 'stuck' when n % 50 = 0 then 'returned' when n % 9 = 0 then 'open' else 'shipped' end, 500 + (n * 131) % 30000
    from generate_series(1, 48000) n;
  insert into payments (order_id, at, provider, cents)
    select id, placed + interval '1 minute', (array['card','invoice','wallet'])[1 + id % 3], cents from orders where status <> 'open' limit 30000;
  create index on orders (customer);
  create index on orders (status) where status = 'stuck';
  analyze;
`;

const PREPARE = `
  create role orders_ro nologin;
  create role orders_rw nologin;
  grant usage on schema public to orders_ro, orders_rw;
  grant select on all tables in schema public to orders_ro, orders_rw;
  grant insert, update, delete on orders, payments to orders_rw;
`;

async function fill(cluster: Cluster, passwordFile: string): Promise<number> {
  const password = randomBytes(24).toString("base64url");
  await writeFile(passwordFile, `${password}\n`, { mode: 0o600 });
  const connection = { host: "127.0.0.1", port: cluster.port, user: cluster.superuser, password: cluster.password };
  const admin = new pg.Client({ ...connection, database: "postgres" });
  await admin.connect();
  await admin.query("create database orders");
  const modern =
    Number((await admin.query<{ v: string }>("select current_setting('server_version_num') v")).rows[0]?.v) >= 160_000;
  await admin.query(`create role glasskey login createrole password '${password}'`);
  await admin.end();
  const orders = new pg.Client({ ...connection, database: "orders" });
  await orders.connect();
  try {
    await orders.query(SCHEMA);
    await orders.query(PREPARE);
    if (modern) await orders.query("grant orders_ro, orders_rw to glasskey with admin true, inherit false, set false");
    await orders.query("grant pg_signal_backend, pg_read_all_stats to glasskey");
    const counted = await orders.query<{ n: string }>(
      "select ((select count(*) from customers) + (select count(*) from products) + (select count(*) from orders) + (select count(*) from payments))::text n",
    );
    return Number(counted.rows[0]?.n);
  } finally {
    await orders.end();
  }
}
