import { createHash } from "node:crypto";
import type { Fingerprint } from "../target.ts";
import { quoteIdentifier, quoteLiteral, type Query } from "./admin.ts";

/** Databases that are read at the same time: people wait for it, and the target may be in trouble. */
const AT_ONCE = 3;

/** Runs work on a connection of its own to one database of the cluster. */
export type Enter = <T>(database: string, work: (query: Query) => Promise<T>) => Promise<T>;

interface Line {
  line: string;
  /** A definition to be told apart by its hash only: it may be long, and it may hold what must not be shown. */
  body?: string | null;
}

/**
 * Who can do what on a cluster: roles, memberships, ownership, privileges, policies and the code that runs with other
 * people's rights, in every database. One fact per line, sorted. No passwords, verifiers or user-mapping options.
 * Facts about this installation's live leases are left out *by role OID*: a hostile object name hides nothing.
 */
export async function readFingerprint(home: string, install: string, enter: Enter): Promise<Fingerprint> {
  const own = `select oid from pg_roles where rolname ~ ${quoteLiteral(`^gk_${install}_[0-9a-hjkmnp-tv-z]{12}$`)}`;
  // The keeper of left objects is ours too, but what it owns is news.
  const ours = `${own} union select oid from pg_roles where rolname = ${quoteLiteral(`gk_${install}_keeper`)}`;
  const lines: string[] = [];
  const see = async (name: string, query: Query): Promise<void> => {
    lines.push(...(await run(query, databaseFacts(own), `${quoteIdentifier(name)}: `)));
  };
  const databases = await enter(home, async (query) => {
    lines.push(...(await run(query, clusterFacts(own, ours), "")));
    await see(home, query);
    return query<{ name: string; open: boolean }>(
      `select datname as name, has_database_privilege(oid, 'CONNECT') as open from pg_database where datallowconn`,
    );
  });
  const others = databases.filter(({ name }) => name !== home);
  for (let at = 0; at < others.length; at += AT_ONCE) {
    await Promise.all(
      others.slice(at, at + AT_ONCE).map(async ({ name, open }) => {
        if (open) await enter(name, (query) => see(name, query));
        else lines.push(`${quoteIdentifier(name)}: not seen, Glasskey may not connect to it`);
      }),
    );
  }
  return { lines: [...new Set(lines)].toSorted() };
}

async function run(query: Query, facts: readonly string[], prefix: string): Promise<string[]> {
  const rows = await query<Line>(facts.map((fact) => `(${fact})`).join("\nunion all\n"));
  return rows.map(({ line, body }) => {
    const hash = typeof body === "string" ? ` ${createHash("sha256").update(body).digest("hex").slice(0, 16)}` : "";
    return prefix + oneLine(line) + hash;
  });
}

/** Names may hold anything; a line must not be able to pass for two. */
function oneLine(text: string): string {
  return text.replaceAll(
    /[\u0000-\u001f\u007f\u2028\u2029]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** A role as people write it; PUBLIC for the grantee 0. */
const role = (oid: string): string =>
  `case when ${oid} = 0 then 'PUBLIC' else coalesce((select quote_ident(rolname) from pg_roles where oid = ${oid}), '#' || ${oid}) end`;

/** One line per entry of an ACL, without those that a live lease gave or has. */
function acl(from: string, column: string, what: string, own: string, where = "true"): string {
  return `select format('acl %s: %s %s by %s', ${what}, ${role("x.grantee")},
                 string_agg(x.privilege_type || case when x.is_grantable then '*' else '' end, ',' order by x.privilege_type),
                 ${role("x.grantor")}) as line, null::text as body
            from ${from} cross join lateral aclexplode(${column}) x
           where ${where} and ${column} is not null and x.grantee not in (${own}) and x.grantor not in (${own})
           group by ${what}, x.grantee, x.grantor`;
}

function clusterFacts(own: string, ours: string): string[] {
  return [
    `select format('role %I%s%s%s', rolname,
              case when rolsuper then ' superuser' else '' end || case when rolinherit then '' else ' noinherit' end ||
              case when rolcreaterole then ' createrole' else '' end || case when rolcreatedb then ' createdb' else '' end ||
              case when rolcanlogin then ' login' else '' end || case when rolreplication then ' replication' else '' end ||
              case when rolbypassrls then ' bypassrls' else '' end,
              ' connlimit=' || rolconnlimit, coalesce(' until ' || rolvaliduntil::text, '')) as line, null::text as body
       from pg_roles where oid not in (${ours})`,
    `select format('member %s in %s by %s%s%s%s', ${role("m.member")}, ${role("m.roleid")}, ${role("m.grantor")},
              case when m.admin_option then ' admin' else '' end,
              case to_jsonb(m) ->> 'inherit_option' when 'true' then ' inherit' when 'false' then ' noinherit' else '' end,
              case to_jsonb(m) ->> 'set_option' when 'true' then ' set' when 'false' then ' noset' else '' end), null
       from pg_auth_members m where m.member not in (${ours}) and m.roleid not in (${ours})`,
    `select format('setting %s in %s: %s', ${role("s.setrole")},
              coalesce((select quote_ident(datname) from pg_database where oid = s.setdatabase), 'all databases'), c), null
       from pg_db_role_setting s cross join lateral unnest(s.setconfig) c where s.setrole not in (${ours})`,
    `select format('owner database %I: %s%s', datname, ${role("datdba")}, case when datallowconn then '' else ' closed' end), null
       from pg_database where datdba not in (${own})`,
    `select format('owner tablespace %I: %s', spcname, ${role("spcowner")}), null from pg_tablespace where spcowner not in (${own})`,
    acl("pg_database d", "d.datacl", "format('database %I', d.datname)", own),
    acl("pg_tablespace t", "t.spcacl", "format('tablespace %I', t.spcname)", own),
    acl("pg_parameter_acl p", "p.paracl", "format('parameter %I', p.parname)", own),
  ];
}

/** `catalog`, its alias's owner and name columns, and how the object is named in a line. */
function owner(from: string, column: string, what: string, own: string, where = "true"): string {
  return `select format('owner %s: %s', ${what}, ${role(column)}), null from ${from}
           where ${where} and ${column} not in (${own})`;
}

function databaseFacts(own: string): string[] {
  const relation = `format('%s %I.%I', case c.relkind when 'r' then 'table' when 'p' then 'table' when 'v' then 'view'
      when 'm' then 'materialized view' when 'S' then 'sequence' when 'f' then 'foreign table' else 'relation' end, n.nspname, c.relname)`;
  const relations = "pg_class c join pg_namespace n on n.oid = c.relnamespace";
  const routine = `format('routine %I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))`;
  const routines = "pg_proc p join pg_namespace n on n.oid = p.pronamespace";
  const type = `format('type %I.%I', n.nspname, t.typname)`;
  const types = "pg_type t join pg_namespace n on n.oid = t.typnamespace";
  const large = `format('large object %s', l.oid)`;
  // Temporary schemas come and go with sessions.
  const lasting = "n.nspname !~ '^pg_(toast|temp|toast_temp)'";
  const users = `n.nspname <> 'pg_catalog' and n.nspname <> 'information_schema' and ${lasting}`;
  const others = (column: string): string => `${column} not in (${own})`;
  const defaults = `format('default for %s in %s on %s', ${role("d.defaclrole")},
      coalesce((select quote_ident(nspname) from pg_namespace where oid = d.defaclnamespace), 'every schema'), d.defaclobjtype)`;
  const attributes = `${relations} join pg_attribute a on a.attrelid = c.oid`;
  const attribute = `format('column %I.%I.%I', n.nspname, c.relname, a.attname)`;
  return [
    acl(relations, "c.relacl", relation, own, `${lasting} and ${others("c.relowner")}`),
    acl(attributes, "a.attacl", attribute, own, `${lasting} and ${others("c.relowner")}`),
    acl(routines, "p.proacl", routine, own, others("p.proowner")),
    acl("pg_namespace n", "n.nspacl", "format('schema %I', n.nspname)", own, `${lasting} and ${others("n.nspowner")}`),
    acl(types, "t.typacl", type, own, others("t.typowner")),
    acl("pg_language l", "l.lanacl", "format('language %I', l.lanname)", own),
    acl("pg_foreign_data_wrapper w", "w.fdwacl", "format('foreign-data wrapper %I', w.fdwname)", own),
    acl("pg_foreign_server s", "s.srvacl", "format('foreign server %I', s.srvname)", own),
    acl("pg_largeobject_metadata l", "l.lomacl", large, own, others("l.lomowner")),
    acl("pg_default_acl d", "d.defaclacl", defaults, own, others("d.defaclrole")),
    owner("pg_namespace n", "n.nspowner", "format('schema %I', n.nspname)", own, lasting),
    owner(relations, "c.relowner", relation, own, `${users} and c.relkind in ('r','p','v','m','S','f')`),
    owner(routines, "p.proowner", routine, own, users),
    owner(types, "t.typowner", type, own, `${users} and t.typrelid = 0 and t.typcategory <> 'A'`),
    owner("pg_largeobject_metadata l", "l.lomowner", large, own),
    owner("pg_extension e", "e.extowner", "format('extension %I', e.extname)", own),
    owner("pg_language l", "l.lanowner", "format('language %I', l.lanname)", own),
    owner("pg_publication p", "p.pubowner", "format('publication %I', p.pubname)", own),
    owner("pg_foreign_data_wrapper w", "w.fdwowner", "format('foreign-data wrapper %I', w.fdwname)", own),
    owner("pg_foreign_server s", "s.srvowner", "format('foreign server %I', s.srvname)", own),
    `select format('subscription %I: %s', s.subname, ${role("s.subowner")}), null from pg_subscription s
       where s.subdbid = (select oid from pg_database where datname = current_database())`,
    `select format('user mapping %s on %I', ${role("u.umuser")}, u.srvname), null from pg_user_mappings u
       where u.umuser not in (${own})`,
    `select format('event trigger %I on %s: %s %s', e.evtname, e.evtevent, e.evtfoid::regproc, e.evtenabled), null
       from pg_event_trigger e where e.evtowner not in (${own})`,
    `select format('trigger %I on %I.%I: %s %s', t.tgname, n.nspname, c.relname, t.tgfoid::regproc, t.tgenabled), null
       from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
      where not t.tgisinternal and c.relowner not in (${own})`,
    `select format('rule %I on %I.%I', r.rulename, n.nspname, c.relname), pg_get_ruledef(r.oid)
       from pg_rewrite r join pg_class c on c.oid = r.ev_class join pg_namespace n on n.oid = c.relnamespace
      where ${users} and c.relowner not in (${own})`,
    `select format('policy %I on %I.%I', p.polname, n.nspname, c.relname),
            concat_ws(' ', p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid),
              (select string_agg(${role("x")}, ',' order by x) from unnest(p.polroles) x where x not in (${own})))
       from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
      where c.relowner not in (${own})`,
    `select format('row security on %I.%I%s', n.nspname, c.relname, case when c.relforcerowsecurity then ' forced' else '' end), null
       from ${relations} where c.relrowsecurity and c.relowner not in (${own})`,
    `select format('security definer %s', ${routine}), concat_ws(' ', p.prosrc, p.probin, p.proconfig::text)
       from ${routines} where p.prosecdef and ${users} and p.proowner not in (${own})`,
  ];
}
