import { randomBytes } from "node:crypto";
import pg from "pg";
import { newId } from "../../core/ids.ts";
import { openStore, type Store, type StoreAddress } from "../../store/database.ts";
import { type Keyring, openKeyring } from "../../store/keyring.ts";
import { migrate } from "../../store/migrate.ts";

export interface TestStore extends AsyncDisposable {
  readonly store: Store;
  readonly keyring: Keyring;
  /** A session row with what it refers to. */
  session(): Promise<string>;
}

/** A migrated database of a test's own in a shared cluster; dropped at the end of the block. */
export async function testStore(cluster: {
  port: number;
  superuser: string;
  password: string;
}): Promise<TestStore & { readonly address: StoreAddress }> {
  const database = `recording_${randomBytes(6).toString("hex")}`;
  const address: StoreAddress = {
    host: "127.0.0.1",
    port: cluster.port,
    user: cluster.superuser,
    password: cluster.password,
    database,
  };
  const admin = async (sql: string): Promise<void> => {
    const client = new pg.Client({ ...address, database: "postgres" });
    await client.connect();
    try {
      await client.query(sql);
    } finally {
      await client.end();
    }
  };
  await admin(`create database ${database}`);
  await migrate(address);
  const store = openStore(address);
  const keyring = await openKeyring(store, Buffer.alloc(32, 3));
  const grant = newId("grant");
  const lease = newId("lease");
  const soon = new Date(Date.now() + 3_600_000);
  await store.insertInto("playbook_versions").values({ hash: "h", playbook: "p", content: "{}" }).execute();
  await store
    .insertInto("grants")
    .values({
      ...{
        id: grant,
        state: "active",
        playbook: "p",
        playbook_hash: "h",
        target: "t",
        kind: "postgres",
        requester: "ann",
        reason: "r",
      },
      ...{
        why: Buffer.alloc(0),
        incident: null,
        need: 0,
        duration_ms: 1,
        max_ms: 1,
        idle_ms: null,
        decision: "{}",
        decide_by: soon,
        ends_at: soon,
      },
    })
    .execute();
  await store
    .insertInto("leases")
    .values({
      ...{
        id: lease,
        grant_id: grant,
        target: "t",
        kind: "postgres",
        state: "live",
        plan: Buffer.alloc(0),
        install: "abc123",
        ends_at: soon,
      },
      ...{ worst_case_revoke_ms: 1, last_error: null, before: null, evidence: null },
    })
    .execute();
  return {
    address,
    store,
    keyring,
    async session() {
      const id = newId("session");
      const row = {
        id,
        grant_id: grant,
        lease_id: lease,
        node: "nd_1",
        person: "ann",
        remote_address: "127.0.0.1",
        client: "{}",
        cause: null,
        detail: null,
      };
      await store.insertInto("sessions").values(row).execute();
      return id;
    },
    async [Symbol.asyncDispose]() {
      await store.destroy();
      await admin(`drop database ${database} with (force)`);
    },
  };
}
