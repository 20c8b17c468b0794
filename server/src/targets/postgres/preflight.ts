import { describe, GlassError } from "../../core/errors.ts";
import type { Check } from "../target.ts";
import { quoteIdentifier, sqlState, type Endpoint, type Query } from "./admin.ts";
import { causeOnTheWay, codeOf, type Cause } from "./causes.ts";

/** What the checks are about: a target's databases and, where a lease is meant, its template role. */
export interface Wanted {
  databases: readonly string[];
  template: string | undefined;
  /** Our own time when the query is sent, to compare the target's with. */
  now: Date;
}

const OLDEST_VERSION = 15;
const SKEW_SHOWN_MS = 30_000; // beyond it, people see a grant's login end at a time they do not expect

/**
 * Predefined roles (and those of the large hosts) that reach beyond the database, or beyond what revocation can undo:
 * files and programs of the server, replication, connections outwards, rights over other roles.
 */
const REACHES_TOO_FAR = new Set([
  ...["pg_read_server_files", "pg_write_server_files", "pg_execute_server_program", "pg_create_subscription"],
  ...["rds_superuser", "rds_replication", "rds_password", "rdsadmin", "rds_ad"],
  ...["cloudsqlsuperuser", "cloudsqladmin", "alloydbsuperuser", "azure_pg_admin", "azuresu"],
]);

interface Admin {
  version: number;
  standby: boolean;
  now: Date;
  name: string;
  superuser: boolean;
  createrole: boolean;
  inherits: boolean;
}

/**
 * What Glasskey's login may do on this cluster, asked in a few statements over one connection. Changes nothing.
 * Every check that is not ok means that a lease could not be minted, or not be revoked: `mint` refuses on any of them.
 */
export async function inspect(query: Query, wanted: Wanted): Promise<readonly Check[]> {
  const [admin] = await query<Admin>(
    `select current_setting('server_version_num')::int as version, pg_is_in_recovery() as standby,
            clock_timestamp() as now, rolname as name, rolsuper as superuser, rolcreaterole as createrole,
            rolinherit as inherits
       from pg_roles where rolname = current_user`,
  );
  if (admin === undefined)
    throw new GlassError("target_unfit", "the target does not know the role we are logged in as");
  const checks: Check[] = [serverCheck(admin), clockCheck(admin, wanted.now), ...rightChecks(admin)];
  checks.push(await databasesCheck(query, admin, wanted));
  if (wanted.template !== undefined) checks.push(...(await templateChecks(query, admin, wanted.template)));
  checks.push(await keeperCheck(query));
  return checks;
}

/** @throws GlassError `target_unfit` that names the first check that failed, and what to do. */
export function requireFit(checks: readonly Check[]): void {
  const failed = checks.find((check) => !check.ok);
  if (failed === undefined) return;
  throw new GlassError("target_unfit", `${failed.check}: ${failed.detail}`, {
    ...(failed.fix === undefined ? {} : { next: failed.fix }),
    details: { checks: checks.filter((check) => !check.ok).map((check) => check.check) },
  });
}

/** Glasskey's own login, as far as a check may show it. */
export interface AdminLogin {
  readonly user: string;
  readonly database: string;
  /** The secret reference, never the secret. */
  readonly password: string;
}

/** Why Glasskey did not get into a database: by cause, with what to do about it. */
export function loginCheck(check: string, endpoint: Endpoint, login: AdminLogin, error: unknown): Check {
  const fault = error instanceof GlassError && error.cause !== undefined ? error.cause : error;
  const known = passwordCause(login, error) ?? causeOnTheWay(endpoint, fault) ?? refusalCause(login, fault);
  const cause = known ?? {
    detail: describe(error),
    fix: "Check host, port, tls.ca and admin in the target file, and what the target's own log says.",
  };
  return { check, ok: false, ...cause };
}

/** The reference to the password gives none: nothing was sent. */
function passwordCause({ user, password }: AdminLogin, error: unknown): Cause | undefined {
  if (!(error instanceof GlassError && error.code === "config_invalid")) return undefined;
  const [, from, name = ""] = /^\$\{(file|env):(.+)\}$/s.exec(password) ?? [];
  if (from === "env") {
    return {
      detail: describe(error),
      fix: `Set it to the password of ${quoteIdentifier(user)} where Glasskey is started.`,
    };
  }
  const code = codeOf(error.cause);
  const what =
    code === "ENOENT" || code === "ENOTDIR"
      ? "is missing"
      : code === "EACCES" || code === "EPERM"
        ? "cannot be read by the user that Glasskey runs as"
        : code === undefined
          ? "is empty"
          : `cannot be read (${code})`;
  return {
    detail: `the password file ${name} ${what}`,
    fix: `Write the password of ${quoteIdentifier(user)} into it, on one line, for Glasskey's own user only (mode 0600).`,
  };
}

/** What the target itself answered to the login. */
function refusalCause({ user, database }: AdminLogin, fault: unknown): Cause | undefined {
  const [role, place] = [quoteIdentifier(user), quoteIdentifier(database)];
  const hba = `hostssl ${place} ${role} ADDRESS scram-sha-256`;
  switch (sqlState(fault) ?? "") {
    case "28P01":
      return {
        detail: `wrong password, or there is no role ${role}`,
        fix: `CREATE ROLE ${role} LOGIN CREATEROLE PASSWORD '…'; or correct the password that admin.password refers to.`,
      };
    case "28000":
      return {
        detail: `the target does not let ${role} in: ${describe(fault)}`,
        fix: `ALTER ROLE ${role} LOGIN; and in pg_hba.conf, with Glasskey's address, ahead of broader lines: ${hba}`,
      };
    case "3D000":
      return {
        detail: `there is no database ${place}`,
        fix: "Correct `admin.database` or `databases:` in the target file.",
      };
    case "42501":
      return { detail: `${role} may not connect to ${place}`, fix: `GRANT CONNECT ON DATABASE ${place} TO ${role};` };
    case "53300":
      return {
        detail: "the target has no connection left",
        fix: "End sessions there that nobody needs, or raise its max_connections.",
      };
    case "57P03":
      return { detail: "the target is starting up or shutting down", fix: "Try again in a moment." };
  }
  if (describe(fault).includes("without SCRAM-SHA-256")) {
    const again = `SET password_encryption = 'scram-sha-256'; ALTER ROLE ${role} PASSWORD '…';`;
    return { detail: describe(fault), fix: `${again} and in pg_hba.conf: ${hba}` };
  }
  return undefined;
}

function serverCheck(admin: Admin): Check {
  const major = Math.floor(admin.version / 10_000);
  const detail = `PostgreSQL ${major}, ${admin.standby ? "a standby" : "primary"}`;
  if (admin.standby) {
    return {
      check: "server",
      ok: false,
      detail,
      fix: "Point `host:` at the primary: roles cannot be made on a standby.",
    };
  }
  if (major >= OLDEST_VERSION) return { check: "server", ok: true, detail };
  return { check: "server", ok: false, detail, fix: `Upgrade to PostgreSQL ${OLDEST_VERSION} or later.` };
}

/** Never a reason to keep the door shut: the earlier of both clocks counts for the role's expiry. */
function clockCheck(admin: Admin, now: Date): Check {
  const skewMs = admin.now.getTime() - now.getTime();
  const size = `${(Math.abs(skewMs) / 1000).toFixed(1)} s`;
  const detail = `the target's clock is ${size} ${skewMs < 0 ? "behind" : "ahead"}`;
  return Math.abs(skewMs) < SKEW_SHOWN_MS
    ? { check: "clock", ok: true, detail }
    : { check: "clock", ok: true, detail: `${detail}: logins may end earlier than the grant, never later` };
}

function rightChecks(admin: Admin): Check[] {
  const self = quoteIdentifier(admin.name);
  const may = admin.superuser || admin.createrole;
  const checks: Check[] = [
    may
      ? { check: "create roles", ok: true, detail: admin.superuser ? "superuser" : "CREATEROLE" }
      : {
          ...{ check: "create roles", ok: false, detail: `${self} has no CREATEROLE` },
          fix: `ALTER ROLE ${self} CREATEROLE;`,
        },
  ];
  // Up to 15 a membership gives its rights only to a role that inherits; from 16 on that is said at each grant.
  const inherits = admin.superuser || admin.inherits || admin.version >= 160_000;
  checks.push(
    may && inherits
      ? { check: "end sessions", ok: true, detail: admin.superuser ? "superuser" : "as a member of each minted role" }
      : {
          ...{ check: "end sessions", ok: false, detail: `${self} would not have the rights of the roles it mints` },
          fix: `ALTER ROLE ${self} CREATEROLE INHERIT;`,
        },
  );
  return checks;
}

/** A lease leaves nothing in a database that it cannot enter; where it can, the administrator must be able to follow. */
async function databasesCheck(query: Query, admin: Admin, wanted: Wanted): Promise<Check> {
  const rows = await query<{ name: string; ours: boolean; theirs: boolean }>(
    `select d.datname as name, has_database_privilege(d.oid, 'CONNECT') as ours,
            coalesce(has_database_privilege(t.oid, d.oid, 'CONNECT'), true) as theirs
       from pg_database d left join pg_roles t on t.rolname = $1 where d.datallowconn order by 1`,
    [wanted.template ?? null],
  );
  const missing = wanted.databases.find((name) => !rows.some((row) => row.name === name));
  if (missing !== undefined) {
    const detail = `there is no database ${quoteIdentifier(missing)} that takes connections`;
    return { check: "databases", ok: false, detail, fix: "Correct `databases:` in the target file." };
  }
  const shut = rows.find(
    (row) => row.theirs && !row.ours && (wanted.template !== undefined || wanted.databases.includes(row.name)),
  );
  if (shut !== undefined) {
    const detail = `Glasskey may not connect to ${quoteIdentifier(shut.name)}, so it could not clean up there`;
    const fix = `GRANT CONNECT ON DATABASE ${quoteIdentifier(shut.name)} TO ${quoteIdentifier(admin.name)};`;
    return { check: "databases", ok: false, detail, fix };
  }
  const closed = rows.find((row) => !row.theirs && wanted.databases.includes(row.name));
  if (closed !== undefined) {
    const detail = `${quoteIdentifier(wanted.template ?? "")} may not connect to ${quoteIdentifier(closed.name)}`;
    const fix = `GRANT CONNECT ON DATABASE ${quoteIdentifier(closed.name)} TO ${quoteIdentifier(wanted.template ?? "")};`;
    return { check: "databases", ok: false, detail, fix };
  }
  return {
    check: "databases",
    ok: true,
    detail: `all ${rows.filter((row) => row.ours).length} can be entered and cleaned`,
  };
}

interface Ancestor {
  name: string;
  powers: string[];
  login: boolean;
  passesOn: boolean;
  grantable: boolean;
}

async function templateChecks(query: Query, admin: Admin, template: string): Promise<Check[]> {
  const quoted = quoteIdentifier(template);
  const ancestors = await query<Ancestor>(
    `with recursive up(oid) as (
       select oid from pg_roles where rolname = $1
       union select m.roleid from pg_auth_members m join up on m.member = up.oid
     )
     select r.rolname as name, r.rolcanlogin as login,
            array_remove(array[case when r.rolsuper then 'SUPERUSER' end, case when r.rolcreaterole then 'CREATEROLE' end,
              case when r.rolreplication then 'REPLICATION' end, case when r.rolbypassrls then 'BYPASSRLS' end], null) as powers,
            exists (select from pg_auth_members m where m.member = r.oid and m.admin_option) as "passesOn",
            pg_has_role(r.oid, 'MEMBER WITH ADMIN OPTION') as grantable
       from up join pg_roles r using (oid) order by r.rolname <> $1, r.rolname`,
    [template],
  );
  const [self] = ancestors;
  if (self === undefined) {
    const fix = `CREATE ROLE ${quoted} NOLOGIN; -- then grant it exactly what its playbooks may do`;
    return [{ check: "template role", ok: false, detail: `there is no role ${quoted}`, fix }];
  }
  return [
    self.login
      ? {
          check: "template role",
          ok: false,
          detail: `${quoted} can log in by itself`,
          fix: `ALTER ROLE ${quoted} NOLOGIN;`,
        }
      : { check: "template role", ok: true, detail: `${quoted} exists, NOLOGIN` },
    reachCheck(template, ancestors, admin),
    admin.superuser || admin.version < 160_000 || self.grantable
      ? { check: "grant the template", ok: true, detail: `${quoted} can be granted to a lease` }
      : {
          ...{ check: "grant the template", ok: false, detail: `no ADMIN OPTION on ${quoted}` },
          fix: `GRANT ${quoted} TO ${quoteIdentifier(admin.name)} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;`,
        },
  ];
}

/** What a lease would have by way of the template, through any number of memberships. */
function reachCheck(template: string, ancestors: readonly Ancestor[], admin: Admin): Check {
  const via = (name: string): string =>
    name === template ? quoteIdentifier(template) : `${quoteIdentifier(template)}, through ${quoteIdentifier(name)},`;
  for (const { name, powers, passesOn } of ancestors) {
    const problem =
      powers.length > 0
        ? `${via(name)} is ${powers.join(" and ")}`
        : REACHES_TOO_FAR.has(name)
          ? `${via(name)} reaches beyond what revocation can undo`
          : name === admin.name
            ? `${quoteIdentifier(template)} is a member of Glasskey's own role`
            : isOwnRole(name)
              ? `${quoteIdentifier(template)} is a member of ${quoteIdentifier(name)}, a role that Glasskey made`
              : passesOn
                ? `${via(name)} may pass on roles (ADMIN OPTION), which would outlive the grant`
                : undefined;
    if (problem !== undefined) {
      const fix = `Make a template role without it: REVOKE … FROM ${quoteIdentifier(name)}, or ALTER ROLE ${quoteIdentifier(name)} ….`;
      return { check: "template's reach", ok: false, detail: problem, fix };
    }
  }
  return { check: "template's reach", ok: true, detail: "no role in it can outlive or undo a revocation" };
}

/** The keeper takes over what leases leave behind, so it must stay without any power of its own. */
async function keeperCheck(query: Query): Promise<Check> {
  const [bad] = await query<{ name: string }>(
    `select r.rolname as name from pg_roles r where r.rolname ~ '^gk_[0-9a-hjkmnp-tv-z]{6}_keeper$'
        and (r.rolcanlogin or r.rolsuper or r.rolcreaterole or r.rolreplication or r.rolbypassrls
             or exists (select from pg_auth_members m where m.member = r.oid))
      order by 1 limit 1`,
  );
  if (bad === undefined) return { check: "keeper role", ok: true, detail: "absent, or without privileges" };
  const fix = `Take its memberships and attributes away: it owns what leases created, functions included.`;
  return { check: "keeper role", ok: false, detail: `${quoteIdentifier(bad.name)} has been given powers`, fix };
}

/** Whether Glasskey, this installation or another, made the role. */
function isOwnRole(name: string): boolean {
  return /^gk_[0-9a-hjkmnp-tv-z]{6}_/.test(name);
}
