import { existsSync } from "node:fs";
import { chmod, cp, mkdir, mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import pg from "pg";
import { afterEach, expect, inject, test } from "vitest";
import { randomBase32 } from "../core/ids.ts";
import { embeddedBinDir, startCluster } from "./cluster.ts";
import { openStore, type Store, type StoreAddress } from "./database.ts";
import { openKeyring } from "./keyring.ts";
import { migrate } from "./migrate.ts";

const undo: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

async function emptyStore(): Promise<StoreAddress> {
  const { port, superuser: user, password } = inject("pg18");
  const database = `gk_${randomBase32(10)}`;
  const admin = async (sql: string): Promise<void> => {
    const client = new pg.Client({ host: "127.0.0.1", port, user, password, database: "postgres" });
    await client.connect();
    try {
      await client.query(sql);
    } finally {
      await client.end();
    }
  };
  await admin(`create database ${database}`);
  undo.push(async () => admin(`drop database ${database} with (force)`));
  return { host: "127.0.0.1", port, user, password, database };
}

function open(address: StoreAddress): Store {
  const store = openStore(address);
  undo.push(() => store.destroy());
  return store;
}

async function folder(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), "glasskey-store-"));
  await chmod(dir, 0o755);
  undo.push(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

const place = { table: "grants", row: "gr_1", column: "why" };

test("four processes that migrate an empty store at once: each migration is applied once, and all of them are content", async () => {
  const address = await emptyStore();
  const done = await Promise.all([1, 2, 3, 4].map(() => migrate(address)));
  expect(done.filter((names) => names.length > 0)).toHaveLength(1);
  expect(await migrate(address)).toEqual([]);
});

test("a store that a newer version migrated is refused, and so is a migration whose text changed since", async () => {
  const address = await emptyStore();
  await migrate(address);
  const store = new pg.Client(address);
  await store.connect();
  await store.query("insert into schema_migrations (name, sha256) values ('9999_future.sql', 'x')");
  await expect(migrate(address)).rejects.toThrow(/newer Glasskey/);
  await store.query("delete from schema_migrations where name = '9999_future.sql'");
  await store.query("update schema_migrations set sha256 = 'other' where name = '0001_init.sql'");
  await expect(migrate(address)).rejects.toThrow(/0001_init.sql is applied, but its text has changed/);
  await store.end();
});

test("a store that is not there is said so, with what to check", async () => {
  const address = { host: "127.0.0.1", port: 1, user: "x", password: "x", database: "x" };
  await expect(migrate(address)).rejects.toMatchObject({
    code: "store_unavailable",
    next: expect.stringContaining("database:"),
  });
});

test("insider who adds a row to the keyring keeps nothing from starting: what does not open is no key", async () => {
  const address = await emptyStore();
  await migrate(address);
  const store = open(address);
  const root = Buffer.alloc(32, 9);
  const before = await openKeyring(store, root);
  const sealed = before.seal(place, Buffer.from("secret words"));
  await store
    .insertInto("keyring")
    .values({ version: 2_000_000_000, wrapped: Buffer.alloc(80, 1) })
    .execute();
  const after = await openKeyring(store, root);
  expect(after.open(place, sealed).toString()).toBe("secret words");
  expect(before.open(place, after.seal(place, Buffer.from("more"))).toString()).toBe("more");
  await expect(openKeyring(store, Buffer.alloc(32, 8))).rejects.toMatchObject({ code: "integrity" });
});

test("what the keyring sealed opens in its own place only, with its own root key only, and not after one bit changed", async () => {
  const address = await emptyStore();
  await migrate(address);
  const store = open(address);
  const root = Buffer.alloc(32, 1);
  const keyring = await openKeyring(store, root);
  const sealed = keyring.seal(place, Buffer.from("secret words"));
  expect(sealed.includes("secret words")).toBe(false);
  expect((await openKeyring(store, root)).open(place, sealed).toString()).toBe("secret words"); // another process
  expect(keyring.seal(place, Buffer.from("secret words"))).not.toEqual(sealed);
  for (const elsewhere of [{ row: "gr_2" }, { column: "plan" }, { table: "leases" }]) {
    expect(() => keyring.open({ ...place, ...elsewhere }, sealed)).toThrow(/does not open/);
  }
  for (let at = 0; at < sealed.length; at += 1) {
    const changed = Buffer.from(sealed);
    changed[at] = (changed[at] ?? 0) ^ 1;
    expect(() => keyring.open(place, changed), `byte ${at}`).toThrow(/does not open|does not have/);
  }
  await expect(openKeyring(store, Buffer.alloc(32, 2))).rejects.toThrow(/root key does not open/);
});

test("derived keys are the same in every process, and differ by purpose and by id", async () => {
  const address = await emptyStore();
  await migrate(address);
  const store = open(address);
  const [one, two] = await Promise.all([
    openKeyring(store, Buffer.alloc(32, 1)),
    openKeyring(store, Buffer.alloc(32, 1)),
  ]);
  expect(one.derive("lease", "ls_a")).toEqual(two.derive("lease", "ls_a"));
  const keys = [one.derive("lease", "ls_a"), one.derive("lease", "ls_b"), one.derive("connect", "ls_a")].map((key) =>
    key.toString("hex"),
  );
  expect(new Set(keys).size).toBe(3);
});

test("the embedded PostgreSQL takes another port when its own is taken, and survives kill -9 of whoever started it: it is adopted", async () => {
  const dir = await folder();
  const squatter = createServer();
  await new Promise<void>((resolve) => squatter.listen(0, "127.0.0.1", resolve));
  const taken = (squatter.address() as { port: number }).port;
  const options = { dataDir: join(dir, "store"), superuser: "glasskey", port: taken };
  const first = await startCluster(options);
  undo.push(() => first.stop());
  expect(first.port).not.toBe(taken);
  const second = await startCluster(options); // as a process would that finds the orphan of a killed one
  expect(second).toMatchObject({ pid: first.pid, port: first.port });
  await second.stop();
  expect(() => process.kill(first.pid, 0)).toThrow(/ESRCH/);
  squatter.close();
});

test("data whose password file is gone is never initialised over: the start is refused, and the data stays", async () => {
  const dir = await folder();
  const options = { dataDir: join(dir, "store"), superuser: "glasskey" };
  await (await startCluster(options)).stop();
  const version = await readFile(join(dir, "store", "PG_VERSION"), "utf8");
  await rm(join(dir, "store.password"));
  await expect(startCluster(options)).rejects.toThrow(/password .* is not/);
  expect(await readFile(join(dir, "store", "PG_VERSION"), "utf8")).toBe(version);
  expect(existsSync(join(dir, "store.new"))).toBe(false);
});

test.runIf(process.getuid?.() === 0)(
  "below a folder that only root may enter, programs and data alike, PostgreSQL starts as another user",
  async () => {
    const dir = await folder();
    const closed = join(dir, "closed");
    await mkdir(closed, { mode: 0o700 });
    await cp(dirname(embeddedBinDir()), join(closed, "native"), { recursive: true });
    const cluster = await startCluster({
      ...{ binDir: join(closed, "native", "bin"), dataDir: join(closed, "data", "store"), superuser: "glasskey" },
    });
    const owner = (await stat(`/proc/${cluster.pid}`)).uid;
    await cluster.stop();
    expect(owner).not.toBe(0);
  },
);
