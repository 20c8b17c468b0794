import { createHash, createHmac, hkdfSync, pbkdf2Sync, randomBytes } from "node:crypto";
import pg from "pg";
import { describe, GlassError } from "../core/errors.ts";
import type { StoreAddress } from "./database.ts";

/** A login of the store. */
export interface StoreLogin {
  readonly user: string;
  readonly password: string;
}

/** The three roles of a store whose log is append-only also for Glasskey itself. */
export interface StoreRoles {
  /** Works on everything but the log's tables. `managed`: Glasskey sets its password at each start. */
  readonly app: StoreLogin & { readonly managed: boolean };
  /** Moves events from the queue into the log, and does nothing else. */
  readonly log: StoreLogin;
}

type Rights = "" | "select" | `select, ${"insert" | "insert, update" | "insert, update, delete" | "update" | "delete"}`;

const WORK = { app: "select, insert, update, delete", log: "" } as const;
const KEPT = { app: "select, insert", log: "" } as const;

/**
 * What either role may do with each table, once. A table that is not here stops the start: nobody can forget to say.
 * `KEPT` is what is written once and never changed by a running Glasskey.
 */
export const RIGHTS: Readonly<Record<string, { readonly app: Rights; readonly log: Rights }>> = {
  schema_migrations: { app: "", log: "" },
  // The log: an event goes in by `insert`, and comes out as an entry by the hands of the sequencer alone.
  log_queue: { app: "select, insert", log: "select, delete" },
  log_entries: { app: "select", log: "select, insert" },
  log_checkpoints: { app: "select", log: "select, insert" },
  log_tiles: { app: "select", log: "select, insert, update" },
  log_head: { app: "select", log: "select, update" },
  // Which keys sign, and what witnesses said, is written by a command and by their client; triggers let nothing be undone.
  log_keys: { app: "select, insert, update", log: "select" },
  witnessed_checkpoints: KEPT,
  witness_claim: WORK,
  installation: KEPT,
  keyring: KEPT,
  ...{ pseudonyms: WORK, nodes: WORK, tokens: WORK, alarms: WORK },
  ...{ playbook_versions: WORK, grants: WORK, approvals: WORK, leases: WORK, reviews: WORK },
  ...{ sessions: WORK, session_keys: WORK, chunks: WORK, journals: WORK, holds: WORK, erasures: WORK },
  ...{ bundles: WORK, bundle_generations: WORK, notices: WORK, evidence_facts: WORK, evidence_pushes: WORK },
  ...{ sinks: WORK, sink_parked: WORK, archives: WORK, archive_objects: WORK },
};

const MAINTAIN_SINCE = 170_000; // PostgreSQL's server_version_num

/**
 * The login of a role that Glasskey manages. Its password is derived from the root key: every process has the same, it is
 * on no disk, and the store keeps only its SCRAM verifier.
 */
export function derivedLogin(rootKey: Uint8Array, user: string): StoreLogin {
  const key = hkdfSync("sha256", rootKey, "", `glasskey store role ${user}`, 32);
  return { user, password: Buffer.from(key).toString("base64url") };
}

/**
 * Makes the roles where they are missing, and brings the rights of both to exactly what {@link RIGHTS} says, in one
 * transaction. On the owner's connection, after the migrations and under their lock. Idempotent.
 * @throws GlassError `config_invalid` where the separation would be one in name only: says what is wrong and what to do.
 */
export async function applyRoles(client: pg.Client, { app, log }: StoreRoles): Promise<void> {
  const { rows } = await client.query<{ owner: string; schema: string; version: number }>(
    `select current_user as owner, relnamespace::regnamespace::text as schema,
       current_setting('server_version_num')::int as version
     from pg_class where oid = 'log_entries'::regclass`,
  );
  const { owner = "", schema = "public", version = 0 } = rows[0] ?? {};
  if (new Set([owner, app.user, log.user]).size < 3) {
    throw refused(
      `the store's owner "${owner}" is also the user that Glasskey works as`,
      "Give `database:` a `user` of its own, beside `owner:`.",
    );
  }
  await client.query("begin");
  try {
    await ensureRole(client, app, app.managed);
    await ensureRole(client, log, true);
    // A login may set for itself what its sessions begin with: to read only, say, and nothing would be revoked any more.
    for (const login of app.managed ? [app, log] : [log]) await forgetSettings(client, login.user);
    const users = [app.user, log.user];
    none(await attributesOf(client, users));
    await takeOwnership(client, owner, app.user);
    await grantRights(client, { schema, version, app: app.user, log: log.user });
    none(await faultsOf(client, users));
    await client.query("commit");
  } catch (error) {
    await client.query("rollback").catch(() => {});
    throw error;
  }
}

/**
 * Whether the login that Glasskey works with could change the log's tables: one sentence, or undefined where it cannot.
 * @param client a connection of that login.
 */
export async function standingOf(client: pg.ClientBase): Promise<string | undefined> {
  const { rows } = await client.query<{ able: boolean }>(
    `select (select rolsuper from pg_roles where rolname = current_user) or bool_or(pg_has_role(relowner, 'USAGE')) as able
     from pg_class where relname ~ '^log_' and relkind in ('r', 'p') and relnamespace = any (current_schemas(false)::regnamespace[])`,
  );
  if (rows[0]?.able !== true) return undefined;
  return "the store's user owns the log's tables, so whoever has its password can change them, and only verification finds that. Give `database:` in glasskey.yaml an `owner:`, and a `user` that is another (docs/retention.md, \"Roles of the store\")";
}

async function ensureRole(client: pg.Client, login: StoreLogin, managed: boolean): Promise<void> {
  const name = pg.escapeIdentifier(login.user);
  const { rows } = await client.query<{ rolsuper: boolean }>("select rolsuper from pg_roles where rolname = $1", [
    login.user,
  ]);
  const password = (): string => `password ${pg.escapeLiteral(scramVerifier(login.password))}`;
  try {
    if (rows[0] === undefined) await client.query(`create role ${name} login ${password()}`);
    else if (managed && !rows[0].rolsuper) await client.query(`alter role ${name} login ${password()}`);
  } catch (cause) {
    throw refused(
      `the store's owner cannot make or change the role "${login.user}": ${describe(cause)}`,
      "Give the owner CREATEROLE, or ADMIN OPTION on that role.",
      cause,
    );
  }
}

async function forgetSettings(client: pg.Client, user: string): Promise<void> {
  const { rows } = await client.query<{ database: string }>("select current_database() as database");
  const [role, database] = [pg.escapeIdentifier(user), pg.escapeIdentifier(rows[0]?.database ?? "")];
  await client.query(`alter role ${role} reset all; alter role ${role} in database ${database} reset all`);
}

/** What an older Glasskey made as the user that it worked as goes to the owner. */
async function takeOwnership(client: pg.Client, owner: string, app: string): Promise<void> {
  const { rows } = await client.query<{ name: string; owner: string }>(
    `select relname as name, pg_get_userbyid(relowner) as owner from pg_class
     where relnamespace = (select relnamespace from pg_class where oid = 'log_entries'::regclass)
       and relkind in ('r', 'p', 'S', 'v', 'm') and relowner <> current_user::regrole`,
  );
  if (rows.length === 0) return;
  const others = rows.filter((row) => row.owner !== app);
  const [from, to] = [pg.escapeIdentifier(others[0]?.owner ?? app), pg.escapeIdentifier(owner)];
  const next = `As a superuser of the store: REASSIGN OWNED BY ${from} TO ${to}`;
  if (others[0] !== undefined) throw refused(`table "${others[0].name}" belongs to "${others[0].owner}"`, next);
  try {
    await client.query(`reassign owned by ${from} to ${to}`);
  } catch (cause) {
    throw refused(`the tables belong to "${app}", and the owner cannot take them: ${describe(cause)}`, next, cause);
  }
}

async function grantRights(
  client: pg.Client,
  to: { schema: string; version: number; app: string; log: string },
): Promise<void> {
  const [app, log] = [pg.escapeIdentifier(to.app), pg.escapeIdentifier(to.log)];
  const { rows: tables } = await client.query<{ name: string; sequences: string[] }>(
    `select relname as name, array(
         select s.oid::regclass::text from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
         where d.refobjid = c.oid and d.classid = 'pg_class'::regclass and d.deptype = 'a') as sequences
     from pg_class c where relkind in ('r', 'p', 'v', 'm', 'f') and relnamespace = $1::regnamespace order by relname`,
    [to.schema],
  );
  const unknown = tables.find(({ name }) => !Object.hasOwn(RIGHTS, name));
  if (unknown !== undefined) {
    throw refused(
      `there is a table "${unknown.name}" in the store, and nothing says who may do what with it`,
      "A table of Glasskey's own belongs into server/src/store/roles.ts; any other, into another schema.",
    );
  }
  const database = (await client.query<{ name: string }>("select current_database() as name")).rows[0]?.name ?? "";
  const db = pg.escapeIdentifier(database);
  const { rows: functions } = await client.query<{ name: string }>(
    "select oid::regprocedure::text as name from pg_proc where pronamespace = $1::regnamespace and proowner = current_user::regrole",
    [to.schema],
  );
  const everybody = `public, ${app}, ${log}`;
  const path = `in database ${db} set search_path = pg_catalog, ${to.schema}, pg_temp`;
  const statements = [
    // Neither may make anything, so nothing of theirs can stand before what it is not: no table, no operator, no schema.
    `revoke create, temporary on database ${db} from ${everybody}`,
    `grant connect on database ${db} to ${app}, ${log}`,
    `revoke create on schema ${to.schema} from ${everybody}`,
    `grant usage on schema ${to.schema} to ${app}, ${log}`,
    `alter role ${log} ${path}`,
    ...functions.map(({ name }) => `revoke all on function ${name} from ${everybody}`),
    `alter default privileges in schema ${to.schema} revoke all on tables from ${everybody}`,
    "alter default privileges revoke execute on functions from public",
    `revoke all on all sequences in schema ${to.schema} from ${everybody}`,
    ...tables.flatMap(({ name, sequences }) => {
      const table = `${to.schema}.${pg.escapeIdentifier(name)}`;
      const rights = RIGHTS[name] ?? { app: "", log: "" };
      const grants = [
        `revoke all on table ${table} from ${everybody}`,
        ...(rights.app === "" ? [] : [`grant ${rights.app} on table ${table} to ${app}`]),
        ...(rights.log === "" ? [] : [`grant ${rights.log} on table ${table} to ${log}`]),
      ];
      if (rights.app.includes("insert"))
        for (const sequence of sequences) grants.push(`grant usage on sequence ${sequence} to ${app}`);
      return grants;
    }),
    // So that what an erasure left behind can be cleared away; it changes no row.
    ...(to.version >= MAINTAIN_SINCE ? [`grant maintain on table ${to.schema}.session_keys to ${app}`] : []),
  ];
  await client.query(statements.join(";\n"));
  // Belt and braces, as it can make nothing that a path could lead to. A role that an administrator made is not ours to set.
  const { rows } = await client.query<{ ours: boolean }>(
    `select coalesce((select rolsuper from pg_roles where rolname = current_user), false)
       or exists (select from pg_auth_members where roleid = $1::regrole and member = current_user::regrole and admin_option)
       or ($2 < 160000 and (select rolcreaterole from pg_roles where rolname = current_user)) as ours`,
    [app, to.version],
  );
  if (rows[0]?.ours === true) await client.query(`alter role ${app} ${path}`);
}

/** What a role is that would make every right a formality. Each a phrase. */
async function attributesOf(client: pg.Client, roles: readonly string[]): Promise<readonly string[]> {
  const { rows } = await client.query<{ fault: string }>(
    `select format('"%s" has the attribute %s', rolname, attribute) as fault
     from pg_roles, unnest(array['SUPERUSER', 'CREATEROLE', 'CREATEDB', 'REPLICATION', 'BYPASSRLS'],
                           array[rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls]) as a(attribute, has)
     where rolname = any ($1) and has
     union all
     select format('"%s" is a member of "%s"', pg_get_userbyid(member), pg_get_userbyid(roleid))
     from pg_auth_members where pg_get_userbyid(member) = any ($1)`,
    [roles],
  );
  return rows.map(({ fault }) => fault);
}

/** What would let one of these roles, or somebody else, change the log after all. Each a phrase. */
async function faultsOf(client: pg.Client, roles: readonly string[]): Promise<readonly string[]> {
  const { rows } = await client.query<{ fault: string }>(
    `select format('"%s" owns the %s "%s"', pg_get_userbyid(owner), what, name) as fault
     from (select 'database', datname::text, datdba from pg_database where datname = current_database()
           union all select 'schema', nspname::text, nspowner from pg_namespace
           union all select 'function', proname::text, proowner from pg_proc
           union all select 'relation', relname::text, relowner from pg_class) as o(what, name, owner)
     where pg_get_userbyid(owner) = any ($1)
     union all
     select format('"%s" may make things in the schema "%s"', role, nspname)
     from pg_namespace, unnest($1::text[]) as role
     where has_schema_privilege(role, oid, 'create') and nspname !~ '^pg_(toast_)?temp_'
     union all
     select format('"%s" may make schemas', role) from unnest($1::text[]) as role
     where has_database_privilege(role, current_database(), 'create')
     union all
     select format('"%s" has %s on "%s"', coalesce(pg_get_userbyid(nullif(grantee, 0)), 'PUBLIC'), privilege_type, relname)
     from pg_class, aclexplode(relacl)
     where relnamespace = (select relnamespace from pg_class where oid = 'log_entries'::regclass) and relname ~ '^log_'
       and grantee <> relowner and privilege_type not in ('SELECT', 'USAGE')
       and (grantee = 0 or not (pg_get_userbyid(grantee) = any ($1)))`,
    [roles],
  );
  return rows.map(({ fault }) => fault);
}

/**
 * What the store keeps of a password (RFC 5803, as PostgreSQL writes it), so that the password itself is in no statement
 * and in no log of the server. The password is ASCII: others would have to be prepared as RFC 4013 says.
 */
function scramVerifier(password: string): string {
  if (!/^[\x20-\x7e]+$/.test(password)) {
    throw refused(
      "the store's user is not there, and its password has characters beyond ASCII",
      "Make that role yourself, or choose another password.",
    );
  }
  const iterations = 4_096;
  const salt = randomBytes(16);
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256");
  const hmac = (text: string): Buffer => createHmac("sha256", salted).update(text).digest();
  const stored = createHash("sha256").update(hmac("Client Key")).digest("base64");
  return `SCRAM-SHA-256$${iterations}:${salt.toString("base64")}$${stored}:${hmac("Server Key").toString("base64")}`;
}

function none(faults: readonly string[]): void {
  if (faults.length === 0) return;
  throw refused(
    `the store's users are not separate: ${faults.join("; ")}`,
    "Mend that as a superuser of the store, and start again.",
  );
}

function refused(message: string, next: string, cause?: unknown): GlassError {
  return new GlassError("config_invalid", message, { next, ...(cause === undefined ? {} : { cause }) });
}

/** The same place under another login. */
export function withLogin(address: StoreAddress, { user, password }: StoreLogin): StoreAddress {
  return { ...address, user, password };
}
