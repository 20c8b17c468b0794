import pg from "pg";
import { afterEach, expect, inject, test } from "vitest";
import { randomBase32 } from "../core/ids.ts";
import type { SharedCluster } from "../../testing/global.ts";
import { clientConfig, type StoreAddress } from "./database.ts";
import { migrate } from "./migrate.ts";
import { applyRoles, derivedLogin, RIGHTS, standingOf, withLogin } from "./roles.ts";

const ROOT = Buffer.alloc(32, 5);
const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

/** A store of its own, with an owner who is no superuser, as on somebody else's PostgreSQL. */
interface RoleStore {
  readonly owner: StoreAddress;
  readonly app: StoreAddress;
  readonly log: StoreAddress;
  /** As the superuser. */
  admin(sql: string): Promise<Record<string, unknown>[]>;
  /** Migrates and gives the rights, as a start does. */
  start(): Promise<void>;
}

async function emptyStore(cluster: SharedCluster): Promise<RoleStore> {
  const database = `gk_${randomBase32(10)}`;
  const place = { host: "127.0.0.1", port: cluster.port, database };
  const superuser = { ...place, user: cluster.superuser, password: cluster.password };
  const owner = { ...place, user: `${database}_owner`, password: "owner" };
  const app = { ...place, user: `${database}_app`, password: "the application's own" };
  const login = derivedLogin(ROOT, `${app.user}_log`);
  const elsewhere = (sql: string) => query({ ...superuser, database: "postgres" }, sql);
  await elsewhere(`create role ${owner.user} login createrole password 'owner'`);
  await elsewhere(`create database ${database} owner ${owner.user}`);
  undo.push(async () => {
    await elsewhere(`drop database ${database} with (force)`);
    await elsewhere(`drop role if exists ${app.user}, ${login.user}, ${owner.user}`);
  });
  return {
    ...{ owner, app, log: withLogin(owner, login) },
    admin: (sql) => query(superuser, sql),
    async start() {
      await migrate(owner, (client) => applyRoles(client, { app: { ...app, managed: false }, log: login }));
    },
  };
}

async function query(address: StoreAddress, sql: string, values: unknown[] = []): Promise<Record<string, unknown>[]> {
  const client = new pg.Client(clientConfig(address));
  client.on("error", () => {});
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(sql, values)).rows;
  } finally {
    await client.end();
  }
}

const CLUSTERS: readonly (readonly [string, () => SharedCluster | undefined])[] = [
  ["PostgreSQL 18", () => inject("pg18")],
  ["PostgreSQL 15", () => inject("pg15")],
];

/** What somebody with one of the two logins would try. */
const ATTACKS: readonly string[] = [
  "update log_entries set entry = '\\x7b7d'",
  "delete from log_entries",
  "truncate log_entries",
  "truncate log_entries cascade",
  "update log_checkpoints set note = ''",
  "delete from log_checkpoints",
  "delete from log_tiles",
  "delete from log_head",
  "truncate log_queue",
  "update log_queue set entry = '\\x7b7d'",
  "merge into log_entries e using log_queue q on e.idx = q.id when matched then delete",
  "insert into log_entries (idx, entry, leaf_hash) values (0, '\\x7b7d', sha256('')) on conflict (idx) do update set entry = excluded.entry",
  "drop trigger log_entries_append_only on log_entries",
  "alter table log_entries disable trigger all",
  "alter table log_entries drop column grant_id",
  "drop table log_entries",
  "drop table log_entries cascade",
  "create trigger t before insert on log_entries for each row execute function log_append_only()",
  "create constraint trigger t after insert on log_entries deferrable initially deferred for each row execute function log_append_only()",
  "create rule r as on insert to log_entries do instead nothing",
  "create policy p on log_entries",
  "begin; lock table log_entries in access exclusive mode",
  "set session_replication_role = replica",
  "create or replace function log_append_only() returns trigger language plpgsql as 'begin return old; end'",
  "alter function log_append_only() owner to current_user",
  "drop function log_append_only() cascade",
  "alter table log_entries owner to current_user",
  "alter default privileges grant all on tables to public; create table t (n int)",
  "copy log_entries from program 'true'",
  "copy log_entries to program 'true'",
  "copy log_entries to '/tmp/x'",
  "create schema shadow",
  "create schema authorization current_user",
  "create table log_entries_2 (n int)",
  "create temp table log_entries (n int)",
  "create temp view log_head as select 1",
  "create view v as select * from log_entries",
  "create operator public.<> (leftarg = bytea, rightarg = bytea, function = byteane)",
  "create function public.octet_length(bytea) returns int language sql as 'select 1'",
  "create extension pageinspect",
  "create publication p for all tables",
  "create role evil superuser",
  "alter role current_user superuser",
  "alter role current_user createrole",
  "alter system set fsync = off",
  "alter database DATABASE set search_path = shadow, public",
  "alter database DATABASE set session_replication_role = replica",
  "alter database DATABASE owner to current_user",
  "drop database DATABASE",
  "alter schema public rename to gone",
  "comment on table log_entries is 'mine'",
  "reindex table log_entries",
  "cluster log_entries using log_entries_pkey",
  "do $$ begin execute 'alter table log_entries disable trigger user'; end $$",
  "set role OWNER",
  "set session authorization OWNER",
  "set local role SUPERUSER",
  "select lo_import('/etc/passwd')",
  "select pg_read_file('/etc/passwd')",
  "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'OWNER'",
  "update pg_trigger set tgenabled = 'D'",
  "update pg_class set relowner = current_user::regrole",
  "update pg_authid set rolsuper = true",
  "insert into schema_migrations (name, sha256) values ('x', 'x')",
];

/** What one of the two may not, and the other must be able to. */
const APP_ATTACKS: readonly string[] = [
  "copy log_entries from stdin",
  "insert into log_entries (idx, entry, leaf_hash) values (0, '\\x7b7d', sha256(''))",
  "insert into log_checkpoints (size, root, note) values (1, sha256(''), 'x')",
  "insert into log_tiles (level, idx, hashes) values (0, 0, sha256(''))",
  "update log_tiles set hashes = hashes",
  "update log_head set size = size + 1",
  "delete from log_queue",
  "select from log_head for update",
  "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'LOGROLE'",
  "select pg_cancel_backend(pid) from pg_stat_activity where usename = 'LOGROLE'",
  "begin; lock table log_queue in share mode",
  "select from log_queue for update",
  "select setval('log_queue_id_seq', 1)",
  "set role LOGROLE",
  "alter role LOGROLE password 'mine'",
  "update keyring set version = 2",
  "delete from keyring",
  "update installation set install = 'x'",
];
const LOG_ATTACKS: readonly string[] = [
  "insert into log_queue (entry) values ('\\x7b7d')",
  "insert into log_head (size, root) values (1, sha256(''))",
  ...["sessions", "grants", "leases", "session_keys", "keyring", "tokens", "chunks", "alarms", "holds"].map(
    (table) => `select from ${table}`,
  ),
  "insert into tokens (hash, person, expires_at) values ('', 'ann', now())",
  "set role APPROLE",
  "alter role APPROLE password 'mine'",
];

/** What the two logins may really do with each table, in the form of RIGHTS. */
async function rightsIn(store: RoleStore): Promise<Record<string, { app: string; log: string }>> {
  const rows = await store.admin(
    `select relname as name, ${["app", "log"]
      .map(
        (role) => `array_to_string(array(
          select lower(privilege) from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
            with ordinality as p(privilege, n)
          where has_table_privilege('${role === "app" ? store.app.user : store.log.user}', c.oid, privilege)
             or (privilege not in ('DELETE', 'TRUNCATE', 'TRIGGER')
                 and has_any_column_privilege('${role === "app" ? store.app.user : store.log.user}', c.oid, privilege))
          order by n), ', ') as ${role}`,
      )
      .join(", ")}
     from pg_class c where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')`,
  );
  return Object.fromEntries(
    rows.map((row) => [String(row["name"]), { app: String(row["app"]), log: String(row["log"]) }]),
  );
}
const RIGHTS_IN_WORDS = Object.fromEntries(Object.entries(RIGHTS).map(([name, { app, log }]) => [name, { app, log }]));

for (const [name, find] of CLUSTERS) {
  const cluster = find();
  test.runIf(cluster !== undefined)(
    `neither of Glasskey's two logins can change what is in the log, by any statement (${name})`,
    async () => {
      const store = await emptyStore(cluster as SharedCluster);
      await store.start();
      await store.admin("insert into log_queue (entry) values ('\\x7b7d')");
      await store.admin(
        "insert into log_entries (idx, entry, leaf_hash) values (0, '\\x7b7d', sha256('\\x00'::bytea || '\\x7b7d'))",
      );
      const logged = () =>
        store.admin(
          "select (select array_agg(e::text) from log_entries e) as e, (select array_agg(c::text) from log_checkpoints c) as c",
        );
      const before = await logged();
      for (const address of [store.owner, store.log]) {
        const victim = new pg.Client(clientConfig(address)); // somebody to try and throw out
        await victim.connect();
        undo.push(() => victim.end());
      }
      const wrong: string[] = []; // a slip of form would say nothing about rights
      for (const [address, attacks] of [
        [store.app, [...ATTACKS, ...APP_ATTACKS]],
        [store.log, [...ATTACKS, ...LOG_ATTACKS]],
      ] as const) {
        for (const attack of attacks) {
          const sql = attack
            .replaceAll("DATABASE", store.owner.database)
            .replaceAll("OWNER", store.owner.user)
            .replaceAll("SUPERUSER", cluster?.superuser ?? "")
            .replaceAll("LOGROLE", store.log.user)
            .replaceAll("APPROLE", store.app.user);
          const code = await query(address, sql).then(
            () => "done",
            (error: unknown) => (error instanceof pg.DatabaseError ? `${error.code} ${error.message}` : String(error)),
          );
          if (!code.startsWith("42501")) wrong.push(`${address.user}: ${sql}: ${code}`);
        }
      }
      expect(wrong).toEqual([]);
      // PostgreSQL answers these with a warning, and grants nothing.
      for (const address of [store.app, store.log]) {
        await query(address, `grant update on log_entries to current_user; grant all on log_queue to public`);
      }
      expect(await rightsIn(store)).toEqual(RIGHTS_IN_WORDS);
      expect(await logged()).toEqual(before);
    },
  );
}

test("every table of the store is named with who may do what, and the two logins may do just that", async () => {
  const store = await emptyStore(inject("pg18"));
  await store.start();
  expect(await rightsIn(store)).toEqual(RIGHTS_IN_WORDS);
  for (const [name, { app, log }] of Object.entries(RIGHTS)) {
    if (!/^(log_|witnessed_)/.test(name)) continue;
    const changes = name === "log_keys" ? "delete" : "update|delete"; // a key is retired by an update, which a trigger guards
    expect(app, name).not.toMatch(new RegExp(changes));
    if (name !== "log_queue") expect(log, name).not.toContain("delete");
  }
  const stranger = await store.admin(
    "select relname from pg_class, aclexplode(relacl) where grantee = 0 and relnamespace = 'public'::regnamespace",
  );
  expect(stranger).toEqual([]);
});

test("a table that nobody said anything about stops the start, and so does one in front of ours", async () => {
  const store = await emptyStore(inject("pg18"));
  await store.start();
  await query(store.owner, "create table forgotten (n int)");
  await expect(store.start()).rejects.toMatchObject({
    code: "config_invalid",
    message: expect.stringContaining("forgotten"),
  });
  await query(store.owner, "drop table forgotten; create view v as select * from tokens");
  await expect(store.start()).rejects.toThrow(/table "v"/);
});

test("rights that somebody gave by hand are taken back at the next start, columns and sequences as well", async () => {
  const store = await emptyStore(inject("pg18"));
  await store.start();
  await query(
    store.owner,
    `grant all on all tables in schema public to ${store.app.user}, ${store.log.user}; grant update (entry) on log_entries to ${store.app.user};
     grant create on schema public to public, ${store.app.user}; grant all on all functions in schema public to public;
     grant update on log_entries to public; alter default privileges in schema public grant all on tables to public`,
  );
  await store.start();
  expect(await rightsIn(store)).toEqual(RIGHTS_IN_WORDS);
  await expect(query(store.app, "create table t (n int)")).rejects.toThrow(/permission denied/);
  const functions = await store.admin(
    `select proname from pg_proc where pronamespace = 'public'::regnamespace and has_function_privilege('${store.app.user}', oid, 'execute')`,
  );
  expect(functions).toEqual([]);
});

test("what somebody set for a login that is Glasskey's own, such as to read only, is gone at the next start", async () => {
  const store = await emptyStore(inject("pg18"));
  const start = () =>
    migrate(store.owner, (client) =>
      applyRoles(client, { app: { ...store.app, managed: true }, log: derivedLogin(ROOT, store.log.user) }),
    );
  await start();
  for (const address of [store.app, store.log]) {
    await query(
      address,
      `alter role current_user in database ${address.database} set default_transaction_isolation = 'serializable'`,
    );
    await query(address, "alter role current_user set default_transaction_read_only = on");
    expect(await query(address, "show default_transaction_read_only")).toEqual([
      { default_transaction_read_only: "on" },
    ]);
  }
  await start();
  for (const address of [store.app, store.log]) {
    expect(
      await query(
        address,
        `select current_setting('default_transaction_read_only') as readonly,
           current_setting('default_transaction_isolation') as isolation, current_setting('search_path') as path`,
      ),
    ).toEqual([{ readonly: "off", isolation: "read committed", path: "pg_catalog, public, pg_temp" }]);
  }
});

test("a separation in name only is refused: a user who is superuser, makes roles, belongs to another role or owns something", async () => {
  const store = await emptyStore(inject("pg18"));
  // Made beforehand, as administrators do: a role that the owner made could not be a member of the owner.
  await store.admin(`create role ${store.app.user} login password 'the application''s own'`);
  await store.start();
  const { app, log, owner } = { app: store.app.user, log: store.log.user, owner: store.owner.user };
  const cases: readonly (readonly [string, string, RegExp])[] = [
    [`alter role ${app} superuser`, `alter role ${app} nosuperuser`, /attribute SUPERUSER/],
    [`alter role ${app} createrole`, `alter role ${app} nocreaterole`, /attribute CREATEROLE/],
    [`alter role ${log} bypassrls`, `alter role ${log} nobypassrls`, /attribute BYPASSRLS/],
    [`grant ${owner} to ${app}`, `revoke ${owner} from ${app}`, /member of/],
    [`grant pg_write_all_data to ${app}`, `revoke pg_write_all_data from ${app}`, /member of "pg_write_all_data"/],
    [`grant pg_write_server_files to ${log}`, `revoke pg_write_server_files from ${log}`, /pg_write_server_files/],
    [`create schema ours authorization ${app}`, "drop schema ours", /owns the schema "ours"/],
    [
      `create schema open; grant create on schema open to public`,
      "drop schema open",
      /may make things in the schema "open"/,
    ],
    [
      `grant delete on log_entries to pg_monitor`,
      "revoke delete on log_entries from pg_monitor",
      /"pg_monitor" has DELETE on "log_entries"/,
    ],
  ];
  for (const [harm, mend, message] of cases) {
    await store.admin(harm);
    await expect(store.start(), harm).rejects.toMatchObject({
      code: "config_invalid",
      message: expect.stringMatching(message),
    });
    await store.admin(mend);
  }
  await store.start();
});

test("an owner that is also the user, and one that may not make roles, are told what to do", async () => {
  const store = await emptyStore(inject("pg18"));
  await migrate(store.owner);
  const same = { ...store.owner, managed: false };
  const log = derivedLogin(ROOT, store.log.user);
  await expect(migrate(store.owner, (client) => applyRoles(client, { app: same, log }))).rejects.toThrow(
    /also the user/,
  );
  await store.admin(`alter role ${store.owner.user} nocreaterole`);
  await expect(store.start()).rejects.toMatchObject({
    code: "config_invalid",
    next: expect.stringContaining("CREATEROLE"),
  });
});

test("an installation whose one user owned everything upgrades: the owner takes the tables, or says what a superuser must do", async () => {
  const cluster = inject("pg18");
  const store = await emptyStore(cluster);
  await store.admin(
    `create role ${store.app.user} login password 'the application''s own'; grant create on schema public to ${store.app.user}`,
  );
  await migrate(store.app);
  expect(await query(store.app, "select 1 as n")).toHaveLength(1);
  const standing = async (address: StoreAddress): Promise<string | undefined> => {
    const client = new pg.Client(clientConfig(address));
    await client.connect();
    try {
      return await standingOf(client);
    } finally {
      await client.end();
    }
  };
  expect(await standing(store.app)).toMatch(/owns the log's tables/);
  const superuser = { ...store.owner, user: cluster.superuser, password: cluster.password };
  expect(await standing(superuser)).toMatch(/owns the log's tables/);
  const roles = { app: { ...store.app, managed: false }, log: derivedLogin(ROOT, store.log.user) };
  const next = expect.stringContaining("REASSIGN OWNED BY");
  await expect(store.start()).rejects.toMatchObject({ code: "config_invalid", next });
  await store.admin(`grant select, insert on schema_migrations to ${store.owner.user}`);
  await expect(store.start()).rejects.toMatchObject({ code: "config_invalid", next });
  await migrate(superuser, (client) => applyRoles(client, roles)); // as the embedded store's superuser does at its next start
  expect(await rightsIn(store)).toEqual(RIGHTS_IN_WORDS);
  expect(await standing(store.app)).toBeUndefined();
});

test("four processes that start at once on one store agree on the roles, and each can log in as both afterwards", async () => {
  const store = await emptyStore(inject("pg18"));
  await Promise.all([1, 2, 3, 4].map(() => store.start()));
  for (const address of [store.app, store.log])
    expect(await query(address, "select size from log_head")).toEqual([{ size: 0 }]);
  const kept = await store.admin(
    `select rolpassword from pg_authid where rolname in ('${store.app.user}', '${store.log.user}')`,
  );
  for (const { rolpassword } of kept) expect(rolpassword).toMatch(/^SCRAM-SHA-256\$4096:/);
});

test("a derived password differs by root key and by role, and is the same in every process", () => {
  const passwords = [derivedLogin(ROOT, "a"), derivedLogin(ROOT, "b"), derivedLogin(Buffer.alloc(32, 6), "a")];
  expect(new Set(passwords.map(({ password }) => password)).size).toBe(3);
  expect(derivedLogin(ROOT, "a")).toEqual(passwords[0]);
});
