import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { newId, randomBase32 } from "../../core/ids.ts";
import { Secret } from "../../core/secret.ts";
import { secretsFrom } from "../conformance-child.ts";
import type { LeaseDriver, LeasePlan } from "../target.ts";
import { createDriver } from "./credentials.ts";
import { startHarness, type PostgresHarness } from "./fixtures/harness.ts";

const { signal } = new AbortController();
const install = randomBase32(6);
let harness: PostgresHarness;
let driver: LeaseDriver;
let plan: LeasePlan;
let known: readonly string[] | undefined; // the state between tests: each must leave it as it was

beforeAll(async () => {
  harness = await startHarness({ version: 18, admin: "createrole" });
  driver = createDriver({ resolve: (reference) => new Secret(harness.references()[reference] ?? "") });
  plan = newPlan(install);
});
afterAll(() => harness.dispose());

function newPlan(of: string): LeasePlan {
  const endsAt = new Date(Date.now() + 600_000);
  const request = { lease: newId("lease"), target: "t", config: harness.config(), scope: harness.scope, endsAt };
  return driver.plan({ ...request, install: of });
}

async function lines(): Promise<readonly string[]> {
  return (await driver.fingerprint(plan, install, signal)).lines;
}

/** What `sql` adds to and takes from the fingerprint; `undo` must bring it back exactly. */
async function difference(
  sql: string,
  undo: string,
  database = "postgres",
): Promise<{ added: string[]; gone: string[] }> {
  known ??= await lines();
  const before = known;
  await harness.target.query(sql, { database });
  const after = await lines();
  await harness.target.query(undo, { database });
  expect(await lines()).toEqual(before);
  return { added: after.filter((l) => !before.includes(l)), gone: before.filter((l) => !after.includes(l)) };
}

test("the same state gives the same lines, sorted, one fact each, without secrets", async () => {
  const [first, second] = [await lines(), await lines()];
  expect(second).toEqual(first);
  expect(first).toEqual(first.toSorted());
  expect(first.join("\n")).not.toMatch(/SCRAM-SHA-256\$|md5[0-9a-f]{32}|password=/);
});

test.for([
  ["a role", "create role r1 login valid until '2030-01-01'", "drop role r1", /^role r1 login/],
  [
    "a membership, with its options",
    "grant orders_owner to app",
    "revoke orders_owner from app",
    /^member app in orders_owner by postgres inherit set$/,
  ],
  [
    "a privilege on a table",
    "grant select on orders to app",
    "revoke select on orders from app",
    /acl table public\.orders: app SELECT by orders_owner/,
  ],
  [
    "one that can be passed on",
    "grant select on orders to app with grant option",
    "revoke select on orders from app",
    /app SELECT\* by/,
  ],
  [
    "a privilege on a column",
    "grant update (note) on orders to app",
    "revoke update (note) on orders from app",
    /acl column public\.orders\.note: app UPDATE/,
  ],
  [
    "a privilege on a database",
    "grant create on database shop to app",
    "revoke create on database shop from app",
    /acl database shop: app CREATE/,
  ],
  [
    "a parameter",
    "grant set on parameter log_statement to app",
    "revoke set on parameter log_statement from app",
    /acl parameter log_statement: app SET/,
  ],
  [
    "a system function",
    "grant execute on function pg_read_file(text) to app",
    "revoke execute on function pg_read_file(text) from app",
    /acl routine pg_catalog\.pg_read_file\(text\): app EXECUTE/,
  ],
  [
    "a default privilege",
    "alter default privileges for role orders_owner grant select on tables to app",
    "alter default privileges for role orders_owner revoke select on tables from app",
    /acl default for orders_owner in every schema on r: app SELECT/,
  ],
  [
    "a setting of a role",
    "alter role app set search_path = evil",
    "alter role app reset search_path",
    /^setting app in all databases: search_path=evil$/,
  ],
  [
    "an owner",
    "alter table orders owner to app",
    "alter table orders owner to orders_owner",
    /owner table public\.orders: app$/,
  ],
  [
    "a policy",
    "create policy p on orders using (id > 1)",
    "drop policy p on orders",
    /policy p on public\.orders [0-9a-f]{16}$/,
  ],
  [
    "row security",
    "alter table orders enable row level security",
    "alter table orders disable row level security",
    /row security on public\.orders$/,
  ],
  [
    "a security-definer function",
    "create function f() returns int language sql security definer as 'select 1'",
    "drop function f()",
    /security definer routine public\.f\(\) [0-9a-f]{16}$/,
  ],
  [
    "a trigger",
    "create function tf() returns trigger language plpgsql as 'begin return new; end'; create trigger t before insert on orders execute function tf()",
    "drop trigger t on orders; drop function tf()",
    /trigger t on public\.orders: .*tf O$/,
  ],
  [
    "an event trigger",
    "create function ef() returns event_trigger language plpgsql as 'begin end'; create event trigger e on ddl_command_start execute function ef()",
    "drop event trigger e; drop function ef()",
    /event trigger e on ddl_command_start/,
  ],
  [
    "a foreign server and a user mapping",
    "create foreign data wrapper w; create server s foreign data wrapper w; create user mapping for app server s options (password 'hunter2')",
    "drop foreign data wrapper w cascade",
    /user mapping app on s$/,
  ],
  [
    "a rule",
    "create rule r as on delete to orders do instead nothing",
    "drop rule r on orders",
    /rule r on public\.orders [0-9a-f]{16}$/,
  ],
] as const)("%s is seen", async ([, sql, undo, line]) => {
  const { added } = await difference(sql, undo);
  expect(added.join("\n")).toMatch(new RegExp(line.source, "m".concat(line.flags)));
  expect(added.join("\n")).not.toContain("hunter2");
});

test("a change in another database is seen, and where", async () => {
  const { added } = await difference("grant delete on items to app", "revoke delete on items from app", "shop");
  expect(added).toContain('"shop": acl table public.items: app DELETE by postgres');
});

test("a changed body of a security-definer function is a difference", async () => {
  await harness.target.query("create function g() returns int language sql security definer as 'select 1'");
  known = undefined;
  const body = (n: number): string =>
    `create or replace function g() returns int language sql security definer as 'select ${n}'`;
  const { added, gone } = await difference(body(2), body(1));
  expect([added.length, gone.length]).toEqual([1, 1]);
  await harness.target.query("drop function g()");
  known = undefined;
});

test("a hostile name stays one line, and cannot pass for a lease to hide", async () => {
  const { added } = await difference(
    `create table "gk_${install}_000000000000" (n int); create table "a\nrole root superuser" (n int)`,
    `drop table "gk_${install}_000000000000", "a\nrole root superuser"`,
  );
  expect(added.some((line) => line.includes(`gk_${install}_000000000000`))).toBe(true);
  expect(added.every((line) => !line.includes("\n") && !line.startsWith("role root"))).toBe(true);
});

test("own live leases are left out with all they made; another installation's are not", async () => {
  const before = await lines();
  const secrets = secretsFrom(randomBytes(16).toString("hex"));
  await driver.mint(plan, secrets, signal);
  const client = await harness.login(plan, secrets);
  await client.query(
    "create table mine (n int); grant select on mine to app; alter default privileges grant select on tables to app",
  );
  expect(await lines()).toEqual(before);
  const other = newPlan(randomBase32(6));
  await driver.mint(other, secrets, signal);
  expect((await lines()).filter((line) => !before.includes(line)).length).toBeGreaterThan(1);
  await client.query("drop table mine");
  await client.end();
  for (const each of [plan, other]) await driver.revoke(each, signal);
  expect(await lines()).toEqual(before);
});

test("a database that Glasskey may not enter is said to be unseen", async () => {
  const { added } = await difference(
    "revoke connect on database shop from public",
    "grant connect on database shop to public",
  );
  expect(added).toContain('"shop": not seen, Glasskey may not connect to it');
});
