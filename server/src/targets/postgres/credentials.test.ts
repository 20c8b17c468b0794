import { randomBytes } from "node:crypto";
import pg from "pg";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { startTestTarget } from "../../../testing/target.ts";
import type { GlassError } from "../../core/errors.ts";
import { newId, randomBase32 } from "../../core/ids.ts";
import { Secret } from "../../core/secret.ts";
import { secretsFrom } from "../conformance-child.ts";
import type { LeaseDriver, LeasePlan, LeaseSecrets } from "../target.ts";
import { quoteIdentifier, quoteLiteral } from "./admin.ts";
import { parseConfig, planOf, type PostgresPlan } from "./config.ts";
import { createDriver } from "./credentials.ts";
import { HOSTILE_NAME, missing, startHarness, VARIANTS, type PostgresHarness } from "./fixtures/harness.ts";
import { validUntil } from "./roles.ts";

const { signal } = new AbortController();

describe.for(VARIANTS.filter((variant) => missing(variant) === undefined))(
  "leases on PostgreSQL $version, administrator with $admin",
  (variant) => {
    let harness: PostgresHarness;
    let driver: LeaseDriver;
    let install: string;

    beforeAll(async () => {
      harness = await startHarness(variant);
    });
    afterAll(() => harness.dispose());
    beforeEach(() => {
      driver = createDriver({ resolve: (reference) => new Secret(harness.references()[reference] ?? "") });
      install = randomBase32(6);
    });

    async function mint(
      options: { role?: string; endsAt?: Date } = {},
    ): Promise<{ plan: PostgresPlan; secrets: LeaseSecrets }> {
      const lease = newLease(options);
      await driver.mint(lease.plan, lease.secrets, signal);
      return lease;
    }

    function newLease({ role = "orders_rw", endsAt = new Date(Date.now() + 600_000) } = {}): {
      plan: PostgresPlan;
      secrets: LeaseSecrets;
    } {
      const request = {
        install,
        lease: newId("lease"),
        target: "t",
        config: harness.config(),
        scope: { role },
        endsAt,
      };
      return { plan: planOf(driver.plan(request)), secrets: secretsFrom(randomBytes(16).toString("hex")) };
    }

    async function removed(plan: LeasePlan, secrets: LeaseSecrets): Promise<void> {
      await driver.fence(plan, signal);
      await driver.revoke(plan, signal);
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "dead" });
    }

    async function rows(sql: string, database = "postgres"): Promise<unknown[]> {
      return (await harness.target.query(sql, { database })).rows as unknown[];
    }

    test("the minted role has the template's rights and no others, a verifier, an end and a limit", async () => {
      const { plan, secrets } = await mint();
      const [seen] = await rows(
        `select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolconnlimit, rolpassword,
                rolvaliduntil from pg_authid where rolname = '${plan.role}'`,
      );
      expect(seen).toMatchObject({
        ...{ rolsuper: false, rolcreaterole: false, rolcreatedb: false, rolreplication: false, rolbypassrls: false },
        ...{ rolconnlimit: 20, rolpassword: expect.stringMatching(/^SCRAM-SHA-256\$4096:/) },
      });
      expect((seen as { rolvaliduntil: Date }).rolvaliduntil.getTime()).toBeLessThanOrEqual(
        Date.parse(plan.validUntil),
      );
      const client = await harness.login(plan, secrets);
      await client.query("insert into orders values (1, 'x') on conflict do nothing");
      await expect(client.query("alter table orders add column z int")).rejects.toMatchObject({ code: "42501" });
      await expect(client.query("create role r")).rejects.toMatchObject({ code: "42501" });
      await expect(client.query(`alter role ${plan.role} valid until 'infinity'`)).rejects.toMatchObject({
        code: "42501",
      });
      // Up to 15 membership cannot be had without the right to SET ROLE; the gateway refuses the statement.
      const became = await client.query("set role orders_rw").then(
        () => "became",
        (error: pg.DatabaseError) => error.code,
      );
      expect(became).toBe(variant.version >= 16 ? "42501" : "became");
      await client.end();
      await removed(plan, secrets);
    });

    test("the target itself refuses logins after the end, with Glasskey dead", async () => {
      const { plan, secrets } = await mint({ endsAt: new Date(Date.now() + 1_500) });
      await (await harness.login(plan, secrets)).end();
      await expect
        .poll(
          () =>
            harness.login(plan, secrets).then(
              (client) => client.end().then(() => "let in"),
              (e: pg.DatabaseError) => e.code,
            ),
          {
            timeout: 10_000,
          },
        )
        .toBe("28P01");
      expect(Date.now()).toBeGreaterThanOrEqual(Date.parse(plan.validUntil) - 1_000);
      await removed(plan, secrets);
    });

    test("what was created in two databases stays, with its content, and belongs to a role that may do nothing", async () => {
      const { plan, secrets } = await mint();
      await harness.litter(plan, secrets);
      const client = await harness.login(plan, secrets);
      await client.query(`create table public.kept_${plan.role} as select 42 as n`);
      await client.query(`
        create function public.steal_${plan.role}() returns bigint language sql security definer
          as 'select count(*) from public.orders';
        create view public.peek_${plan.role} as select * from public.orders;
        grant select on public.peek_${plan.role} to app`);
      await client.end();
      await removed(plan, secrets);
      const keeper = `gk_${install}_keeper`;
      expect(
        await rows(`select n, (select tableowner from pg_tables where tablename = 'kept_${plan.role}') as owner
                           from public.kept_${plan.role}`),
      ).toEqual([{ n: 42, owner: keeper }]);
      for (const database of ["postgres", "shop"]) {
        const name = HOSTILE_NAME.replaceAll("'", "''");
        expect(
          await rows(
            `select distinct tableowner from pg_tables where tablename = '${name}' and schemaname like '%${plan.role}'`,
            database,
          ),
        ).toEqual([{ tableowner: keeper }]);
      }
      // A function or view left behind must not go on reading with the template's rights.
      const app = new pg.Client({
        ...{ host: "127.0.0.1", port: harness.target.port, user: "app", password: "app", database: "postgres" },
        ssl: { ca: harness.target.ca, servername: "localhost" },
      });
      await app.connect();
      await expect(app.query(`select public.steal_${plan.role}()`)).rejects.toMatchObject({ code: "42501" });
      await expect(app.query(`select * from public.peek_${plan.role}`)).rejects.toMatchObject({ code: "42501" });
      await app.end();
      // It is news for the fingerprint, which shows who keeps what.
      const { lines } = await driver.fingerprint(plan, install, signal);
      expect(lines).toContain(`"postgres": owner table public.kept_${plan.role}: ${keeper}`);
      expect(lines.filter((line) => line.includes("\n"))).toEqual([]);
      expect(await driver.list(harness.config(), install, signal)).toEqual([]);
    });

    test("sessions end under SET ROLE, with parallel workers, in COPY and inside a transaction", async () => {
      const { plan, secrets } = await mint();
      const clients = await Promise.all([1, 2, 3, 4].map(() => harness.login(plan, secrets)));
      const [first, second, third, fourth] = clients;
      if (variant.version < 16) await first?.query("set role orders_rw");
      await second?.query("begin; lock table orders in row exclusive mode");
      third?.query("copy orders to stdout").catch(() => {});
      await fourth?.query(`set debug_parallel_query = on`).catch(() => fourth.query("set force_parallel_mode = on"));
      fourth?.query("select count(pg_sleep(30))").catch(() => {});
      await removed(plan, secrets);
      for (const client of clients) await expect(client.query("select 1")).rejects.toThrow(/./);
      expect(await rows("select pid from pg_stat_activity where usesysid not in (select oid from pg_roles)")).toEqual(
        [],
      );
    });

    test("a session that holds its own catalog row cannot stop the fence", async () => {
      const { plan, secrets } = await mint();
      const client = await harness.login(plan, secrets);
      await client.query(`begin; alter role ${plan.role} password 'mine'`);
      const started = performance.now();
      await driver.fence(plan, signal);
      expect(performance.now() - started).toBeLessThan(5_000);
      await expect(harness.login(plan, secrets)).rejects.toMatchObject({ code: "28000" });
      await removed(plan, secrets);
    });

    test("nor can a prepared transaction that holds it", async () => {
      const { plan, secrets } = await mint();
      const client = await harness.login(plan, secrets, "shop");
      await client.query(`begin; alter role ${plan.role} password 'mine'; prepare transaction 'it''s mine'`);
      await client.end();
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "alive" });
      await driver.fence(plan, signal);
      await removed(plan, secrets);
      expect(await rows("select gid from pg_prepared_xacts")).toEqual([]);
    });

    test("a password that the user changed does not outlive the grant", async () => {
      const { plan, secrets } = await mint();
      const client = await harness.login(plan, secrets);
      await client.query(`alter role ${plan.role} password 'mine'`);
      await client.end();
      // The derived password is refused, and still the lease is not dead.
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "alive" });
      await removed(plan, secrets);
    });

    test("a session whose role somebody dropped by hand is not dead; revocation ends it", async () => {
      const { plan, secrets } = await mint();
      const client = await harness.login(plan, secrets);
      await harness.target.query(`drop role ${plan.role}`);
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "alive" });
      if (variant.admin === "createrole") await harness.target.query("grant pg_signal_backend to glasskey");
      await driver.revoke(plan, signal);
      await expect(client.query("select 1")).rejects.toThrow(/./);
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "dead" });
      if (variant.admin === "createrole") await harness.target.query("revoke pg_signal_backend from glasskey");
    });

    test("the user cannot pass the role on to somebody who stays", async () => {
      const { plan, secrets } = await mint();
      const client = await harness.login(plan, secrets);
      for (const sql of [`grant ${plan.role} to app`, "grant orders_rw to app"]) {
        await expect(client.query(sql)).rejects.toMatchObject({ code: "42501" });
      }
      await client.end();
      await removed(plan, secrets);
    });

    test("a mint that was left half-way cannot commit after the proof", async () => {
      const { plan, secrets } = newLease();
      const stalled = new pg.Client({
        ...{ host: "127.0.0.1", port: harness.target.port, database: "postgres", user: plan.admin.user },
        ...{
          password: harness.references()["${env:TARGET_ADMIN}"] ?? "",
          application_name: `glasskey mint ${plan.role}`,
        },
        ssl: { ca: harness.target.ca, servername: "localhost" },
      });
      stalled.on("error", () => {});
      await stalled.connect();
      await stalled.query(`begin; create role ${plan.role} login`);
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "alive" });
      await removed(plan, secrets);
      await expect(stalled.query("commit")).rejects.toThrow(/./);
      expect(await rows(`select from pg_roles where rolname = '${plan.role}'`)).toEqual([]);
    });

    test("objects in a database that takes no connections are named, and gone once it does", async () => {
      const { plan, secrets } = await mint();
      const client = await harness.login(plan, secrets, "shop");
      await client.query(`create table public.t_${plan.role} (n int)`);
      await client.end();
      await harness.target.query("alter database shop allow_connections false");
      await expect(driver.revoke(plan, signal)).rejects.toMatchObject({
        code: "not_proved",
        message: expect.stringContaining('"shop" (takes no connections)'),
      });
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "alive" });
      await harness.target.query("alter database shop allow_connections true");
      await removed(plan, secrets);
    });

    test("a lock of somebody else delays the removal, and never the fence", async () => {
      const { plan, secrets } = await mint();
      const table = `public.busy_${plan.role}`;
      const client = await harness.login(plan, secrets);
      await client.query(`create table ${table} (n int); grant select on ${table} to app`);
      await client.end();
      const app = new pg.Client({
        ...{ host: "127.0.0.1", port: harness.target.port, user: "app", password: "app", database: "postgres" },
        ssl: { ca: harness.target.ca, servername: "localhost" },
      });
      await app.connect();
      await app.query(`begin; select * from ${table}`);
      const pending = driver.revoke(plan, signal);
      await new Promise((done) => setTimeout(done, 300));
      await expect(harness.login(plan, secrets)).rejects.toMatchObject({ code: "28000" });
      await app.query("commit");
      await app.end();
      await pending;
      await removed(plan, secrets);
    });

    const many = variant.version === 18 && variant.admin === "createrole" ? 300 : 40;
    test(`lesson 12: ${many} leases leave no trace in any ACL or catalog`, async () => {
      const trace = (): Promise<unknown[]> =>
        rows(`select (select count(*)::int from pg_shdepend) as depend, (select count(*)::int from pg_authid) as roles,
                     (select count(*)::int from pg_auth_members) as members, (select count(*)::int from pg_db_role_setting) as settings,
                     (select sum(coalesce(array_length(relacl, 1), 0))::int from pg_class) as acl,
                     (select pg_column_size(relacl) from pg_class where relname = 'orders') as bytes`);
      const { plan } = newLease();
      const [before, lines] = [await trace(), (await driver.fingerprint(plan, install, signal)).lines];
      for (let round = 0; round < many / 10; round += 1) {
        const leases = await Promise.all(Array.from({ length: 10 }, () => mint()));
        await Promise.all(leases.map((lease) => driver.revoke(lease.plan, signal)));
      }
      expect(await trace()).toEqual(before);
      expect((await driver.fingerprint(plan, install, signal)).lines).toEqual(lines);
    });

    describe("mint refuses a target on which revocation could not be proved", () => {
      /** The message with which a mint for that template is refused, after a look that nothing was made. */
      async function refusal(role: string): Promise<string> {
        const { plan, secrets } = newLease({ role });
        const error = await driver.mint(plan, secrets, signal).then(
          () => "minted",
          (e: GlassError) => `${e.code} ${e.message}`,
        );
        expect(await rows(`select from pg_roles where rolname = '${plan.role}'`)).toEqual([]);
        const checks = await driver.preflight(harness.config(), { role }, signal);
        expect(checks.some((check) => !check.ok && check.fix !== undefined)).toBe(true);
        return error;
      }
      const unfit = (message: RegExp): unknown =>
        expect.stringMatching(new RegExp(`^target_unfit .*(?:${message.source})`));
      const admin = "glasskey";

      test.for([
        ["which is absent", "", /there is no role/],
        ["that can log in", "alter role bad login", /can log in/],
        ["with SUPERUSER", "alter role bad superuser", /SUPERUSER/],
        ["with CREATEROLE", "alter role bad createrole", /CREATEROLE/],
        ["with REPLICATION", "alter role bad replication", /REPLICATION/],
        ["with BYPASSRLS", "alter role bad bypassrls", /BYPASSRLS/],
        [
          "that reaches a superuser over two steps",
          "create role mid; grant postgres to mid; grant mid to bad",
          /SUPERUSER/,
        ],
        ["that reads the server's files", "grant pg_read_server_files to bad", /beyond/],
        [
          "that runs programs, by inheritance",
          "create role mid; grant pg_execute_server_program to mid; grant mid to bad",
          /beyond/,
        ],
        ["that may pass on a role", "create role mid; grant mid to bad with admin option", /pass on/],
        [
          "that is a member of Glasskey's own role",
          `revoke bad from ${admin}; grant ${admin} to bad`,
          /Glasskey|SUPERUSER/,
        ],
        [
          "that may not connect",
          "revoke connect on database shop from public; grant connect on database shop to glasskey",
          /may not connect/,
        ],
      ] as const)("a template role %s", async ([, sql, message]) => {
        await harness.target.query("create role bad nologin");
        if (variant.admin === "createrole" && variant.version >= 16) {
          await harness.target.query("grant bad to glasskey with admin true, inherit false, set false");
        }
        try {
          await harness.target.query(sql);
          expect(await refusal(sql === "" ? "nobody_at_all" : "bad")).toEqual(unfit(message));
        } finally {
          await harness.target.query(
            "drop role if exists bad; drop role if exists mid; grant connect on database shop to public; revoke connect on database shop from glasskey",
          );
        }
      });

      test("a keeper that was given powers", async () => {
        await harness.target.query(`create role gk_${install}_keeper; grant orders_owner to gk_${install}_keeper`);
        expect(await refusal("orders_rw")).toEqual(unfit(/keeper role/));
        await harness.target.query(`drop role gk_${install}_keeper`);
      });

      test.for(variant.admin === "createrole" ? ["glasskey"] : [])(
        "an administrator, %s, without CREATEROLE, without ADMIN OPTION, or without a way in",
        async () => {
          await harness.target.query("alter role glasskey nocreaterole");
          expect(await refusal("orders_rw")).toEqual(unfit(/create roles/));
          await harness.target.query("alter role glasskey createrole");
          await harness.target.query(
            "revoke connect on database shop from public; grant connect on database shop to orders_rw",
          );
          expect(await refusal("orders_rw")).toEqual(unfit(/could not clean up/));
          await harness.target.query(
            "grant connect on database shop to public; revoke connect on database shop from orders_rw",
          );
          // What the version asks for: ADMIN OPTION from 16 on, before that a role that inherits.
          const [role, take, give, missed] =
            variant.version >= 16
              ? (["unlent", "create role unlent", "drop role unlent", /ADMIN OPTION/] as const)
              : ([
                  "orders_rw",
                  "alter role glasskey noinherit",
                  "alter role glasskey inherit",
                  /end sessions/,
                ] as const);
          await harness.target.query(take);
          expect(await refusal(role)).toEqual(unfit(missed));
          await harness.target.query(give);
        },
      );
    });

    test("an orphan's plan can be revoked, and never minted", async () => {
      const { plan, secrets } = newLease();
      const orphan = driver.planForOrphan(harness.config(), { name: plan.role, lease: "ls_000000000000" });
      await expect(driver.mint(orphan, secrets, signal)).rejects.toMatchObject({ code: "target_unfit" });
      await removed(orphan, secrets);
    });
  },
);

test("identifiers and literals survive hostile names, whatever the server's settings", () => {
  expect(quoteIdentifier(`a"b`)).toBe(`"a""b"`);
  expect(quoteLiteral(`it's`)).toBe(`'it''s'`);
  expect(quoteLiteral(`a\\'b`)).toBe(` E'a\\\\''b'`);
  expect(() => quoteIdentifier("a\0b")).toThrow("NUL");
  expect(() => quoteLiteral("a\0b")).toThrow("NUL");
});

describe("clock skew", () => {
  const minute = (): Date => new Date(Date.now() + 60_000);
  const clock = (skewMs: number): Parameters<typeof validUntil>[0] =>
    (async () => [{ now: new Date(Date.now() + skewMs) }]) as Parameters<typeof validUntil>[0];

  test("a target behind us ends the login at the grant's end in its own time", async () => {
    const endsAt = minute();
    const until = await validUntil(clock(-20_000), endsAt);
    expect(until.getTime()).toBeLessThanOrEqual(endsAt.getTime() - 20_000);
    expect(until.getTime()).toBeGreaterThan(endsAt.getTime() - 25_000);
  });

  test("a target ahead of us never gets a later end than the grant's", async () => {
    const endsAt = minute();
    expect(await validUntil(clock(20_000), endsAt)).toEqual(endsAt);
  });

  test("a target for which the grant is over already is refused", async () => {
    await expect(validUntil(clock(61_000), minute())).rejects.toMatchObject({ code: "target_unfit" });
  });
});

test("lesson 14: the target's log, at its most talkative, holds no password", async () => {
  const target = await startTestTarget({
    settings: {
      log_statement: "all",
      log_min_duration_statement: "0",
      logging_collector: "on",
      log_directory: "log",
      log_filename: "all.log",
    },
  });
  try {
    await target.query("create role orders_rw nologin");
    const parsed = parseConfig({
      ...{ host: "127.0.0.1", port: target.port, tls: { ca: target.ca }, databases: ["postgres"] },
      admin: { user: target.superuser, password: "${env:ADMIN}" },
    });
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
    const driver = createDriver({ resolve: () => new Secret(target.password) });
    const secrets = secretsFrom("key");
    const request = {
      install: "ab12cd",
      lease: newId("lease"),
      target: "t",
      config: parsed.value,
      scope: { role: "orders_rw" },
    };
    const plan = driver.plan({ ...request, endsAt: new Date(Date.now() + 60_000) });
    await driver.mint(plan, secrets, signal);
    await driver.probe(plan, secrets, signal);
    await driver.revoke(plan, signal);
    await driver.confirm(plan, secrets, signal);
    const { rows } = await target.query("select pg_read_file('log/all.log') as log");
    const { log } = rows[0] as { log: string };
    expect(log).toContain(`create role "${planOf(plan).role}"`);
    expect(log).not.toContain(secrets.derive("password").reveal());
    expect(log).not.toContain(target.password);
  } finally {
    await target.dispose();
  }
});

test("more objects than the server can lock at once are handed over all the same", async () => {
  const target = await startTestTarget({
    settings: { max_locks_per_transaction: "10", max_connections: "20", max_prepared_transactions: "0" },
  });
  try {
    await target.query("create role orders_rw nologin; grant create on schema public to orders_rw");
    await target.query(
      "create role glasskey login createrole password 'first'; alter role glasskey set createrole_self_grant = 'inherit'; grant orders_rw to glasskey with admin true, inherit false, set false",
    );
    const parsed = parseConfig({
      ...{ host: "127.0.0.1", port: target.port, tls: { ca: target.ca }, databases: ["postgres"] },
      admin: { user: "glasskey", password: "${env:ADMIN}" },
    });
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
    const driver = createDriver({ resolve: () => new Secret("first") });
    const secrets = secretsFrom("key");
    const request = {
      install: "ab12cd",
      lease: newId("lease"),
      target: "t",
      config: parsed.value,
      scope: { role: "orders_rw" },
    };
    const plan = driver.plan({ ...request, endsAt: new Date(Date.now() + 60_000) });
    await driver.mint(plan, secrets, signal);
    const user = planOf(plan).role;
    const client = new pg.Client({
      ...{
        host: "127.0.0.1",
        port: target.port,
        user,
        password: secrets.derive("password").reveal(),
        database: "postgres",
      },
      ssl: { ca: target.ca, servername: "localhost" },
    });
    await client.connect();
    for (let n = 0; n < 1_500; n += 50) {
      const tables = Array.from({ length: 50 }, (_, i) => `create table public."t'${n + i}" (n int)`);
      await client.query(tables.join(";"));
    }
    await client.query("create function public.f() returns int language sql as 'select 1'");
    await client.end();
    // What one transaction would have met:
    await target.query("create role somebody");
    await expect(target.query(`reassign owned by ${user} to somebody`)).rejects.toMatchObject({ code: "53200" });
    await driver.revoke(plan, signal);
    expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "dead" });
    const { rows } = await target.query(
      "select count(*)::int as kept from pg_tables where tableowner = 'gk_ab12cd_keeper'",
    );
    expect(rows).toEqual([{ kept: 1_500 }]);
  } finally {
    await target.dispose();
  }
});
