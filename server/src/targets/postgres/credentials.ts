import { systemClock, sleep } from "../../core/clock.ts";
import { describe, GlassError } from "../../core/errors.ts";
import { isId } from "../../core/ids.ts";
import type { JsonObject } from "../../core/json.ts";
import type { Secret } from "../../core/secret.ts";
import type {
  Check,
  Confirmation,
  DriverTools,
  Evidence,
  LeaseDriver,
  LeasePlan,
  LeaseRequest,
  LeaseSecrets,
  RemoteLease,
} from "../target.ts";
import {
  createLanes,
  isContention,
  quoteIdentifier,
  quoteLiteral,
  sqlState,
  targetError,
  withConnection,
  type Query,
} from "./admin.ts";
import { configOf, planOf, type PostgresConfig, type PostgresPlan } from "./config.ts";
import { readFingerprint } from "./fingerprint.ts";
import { inspect, loginCheck, requireFit } from "./preflight.ts";
import {
  createRole,
  endMints,
  endSessions,
  endStrays,
  ensureRights,
  exists,
  handOver,
  MINTS,
  STRAYS,
  validUntil,
} from "./roles.ts";
import { computeVerifier, formatVerifier } from "./scram.ts";

const INSTALL = /^[0-9a-hjkmnp-tv-z]{6}$/;
const MINT_WITHIN_MS = 15_000; // from the call to CREATE ROLE; a process that was stopped for longer must not mint late
const ADMIN_CONNECTIONS = 2; // per target, besides one for fences
const FENCE_TRIES = 5;
const CLEAN_ROUNDS = 3; // a shared object may show up only once another database is clean

/** Mints, fences, revokes and proves roles on a PostgreSQL cluster. `resolve` reads the admin's password at each use. */
export function createDriver({ resolve }: Pick<DriverTools, "resolve">): LeaseDriver {
  const lanes = createLanes(ADMIN_CONNECTIONS);
  const fences = createLanes(1);

  /** One connection as the administrator, for one verb. Errors come out in the product's words. */
  async function asAdmin<T>(
    target: Pick<PostgresPlan, "host" | "port" | "tls" | "admin">,
    verb: string,
    signal: AbortSignal,
    work: (query: Query) => Promise<T>,
    database = target.admin.database,
  ): Promise<T> {
    const { user } = target.admin;
    const login = { user, password: resolve(target.admin.password), database, application: `glasskey ${verb}` };
    try {
      return await withConnection(target, login, signal, work);
    } catch (error) {
      signal.throwIfAborted();
      throw targetError(target, verb, error);
    }
  }

  const inLane = <T>(plan: PostgresPlan, signal: AbortSignal, work: () => Promise<T>): Promise<T> =>
    lanes(`${plan.host}:${plan.port}`, signal, work);

  /** Ends sessions and prepared transactions of the role: whoever holds a lock on its catalog row would stop the fence. */
  async function clear(plan: PostgresPlan, query: Query, signal: AbortSignal): Promise<void> {
    await endSessions(query, plan.role, signal);
    const rows = await query<{ gid: string; database: string; superuser: boolean }>(
      `select gid, database, (select rolsuper from pg_roles where rolname = current_user) as superuser
         from pg_prepared_xacts where owner = $1`,
      [plan.role],
    );
    for (const { gid, database, superuser } of rows) {
      // Only its owner or a superuser may roll it back, and only from inside its database.
      const become = superuser ? "" : `set role ${quoteIdentifier(plan.role)}`;
      const roll = async (there: Query): Promise<void> => {
        if (become !== "") await there(become);
        await there(`rollback prepared ${quoteLiteral(gid)}`).catch((error: unknown) => {
          if (sqlState(error) !== "42704") throw error; // somebody else finished it meanwhile
        });
      };
      await asAdmin(plan, `roll back a prepared transaction in ${quoteIdentifier(database)}`, signal, roll, database);
    }
  }

  async function fenceNow(plan: PostgresPlan, query: Query, signal: AbortSignal): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        // One message, so one transaction: committed when this returns, before anything else is tried.
        await query(`set local lock_timeout = '500ms'; alter role ${quoteIdentifier(plan.role)} nologin`);
        return;
      } catch (error) {
        if (sqlState(error) === "42704") return; // no such role: nobody logs in as it
        if (!isContention(error) || attempt >= FENCE_TRIES) throw error;
      }
      // The lease itself may hold its row, by an open ALTER ROLE of its own password.
      await ensureRights(query, plan.role);
      await clear(plan, query, signal);
    }
  }

  /** Hands what the role owns to the keeper and drops every privilege that names it, in one database. */
  async function clean(plan: PostgresPlan, database: string, signal: AbortSignal): Promise<void> {
    const work = async (query: Query): Promise<void> => {
      const [state] = await query<{ owns: boolean }>(
        `select exists (select from pg_shdepend s join pg_roles r on r.oid = s.refobjid
                         where r.rolname = $1 and s.refclassid = 'pg_authid'::regclass and s.deptype = 'o'
                           and s.dbid in (0, (select oid from pg_database where datname = current_database()))) as owns`,
        [plan.role],
      );
      if (state?.owns === true) await handOver(query, plan.role, keeperOf(plan.role));
      await query(`drop owned by ${quoteIdentifier(plan.role)}`);
    };
    await retried(signal, () => asAdmin(plan, `clean ${quoteIdentifier(database)}`, signal, work, database));
  }

  /** Databases in which anything still depends on the role. */
  async function dependents(query: Query, role: string): Promise<readonly { name: string; open: boolean }[]> {
    return query(
      `select distinct coalesce(d.datname, current_database()) as name, coalesce(d.datallowconn, true) as open
         from pg_shdepend s join pg_roles r on r.oid = s.refobjid left join pg_database d on d.oid = s.dbid
        where s.refclassid = 'pg_authid'::regclass and r.rolname = $1 order by 1`,
      [role],
    );
  }

  return {
    async preflight(config, scope, signal) {
      const target = configOf(config);
      const endpoint = endpointOf(target);
      try {
        const wanted = { databases: target.databases, template: templateOf(scope), now: new Date() };
        const checks = await asAdmin(endpoint, "check", signal, (query) => inspect(query, wanted));
        const login = `as ${quoteIdentifier(target.admin.user)}, verified TLS for ${target.tls.servername}, SCRAM-SHA-256`;
        const entered = await enterDatabases(endpoint, target.databases, signal);
        return [{ check: "login", ok: true, detail: login }, ...checks, ...entered];
      } catch (error) {
        if (!ranOut(signal)) signal.throwIfAborted();
        return [loginCheck("login", endpoint, endpoint.admin, error)];
      }
    },

    plan(request) {
      return createPlan(request);
    },

    async mint(lease, secrets, signal) {
      const plan = planOf(lease);
      const startedMs = systemClock.monotonicMs();
      if (plan.template === "")
        throw new GlassError("target_unfit", "an orphan's plan can only be revoked, not minted");
      const verifier = formatVerifier(await computeVerifier(secrets.derive("password").reveal()));
      const create = async (query: Query): Promise<void> => {
        requireFit(await inspect(query, { databases: plan.databases, template: plan.template, now: new Date() }));
        const until = await validUntil(query, new Date(plan.validUntil));
        if (systemClock.monotonicMs() - startedMs > MINT_WITHIN_MS) {
          throw new GlassError("target_unreachable", "the mint took too long to start; nothing was created");
        }
        await createRole(query, plan, verifier, until);
      };
      await inLane(plan, signal, () => asAdmin(plan, `mint ${plan.role}`, signal, create));
    },

    async probe(lease, secrets, signal) {
      const plan = planOf(lease);
      try {
        const seen = await withConnection(plan, leaseLogin(plan, secrets), signal, (query) =>
          query<{ one: number; role: string; ssl: boolean }>(
            `select 1 as one, session_user::text as role, ssl from pg_stat_ssl where pid = pg_backend_pid()`,
          ),
        );
        const ok = seen[0]?.one === 1 && seen[0].role === plan.role && seen[0].ssl;
        if (!ok) throw new GlassError("target_unfit", "the target let us in, but not as the minted role over TLS");
      } catch (error) {
        signal.throwIfAborted();
        throw targetError(plan, `probe ${plan.role}`, error);
      }
    },

    // The role and its password are all that the data plane needs, for any number of sessions.
    issue: () => Promise.resolve({}),

    async extend(lease, endsAt, signal) {
      const plan = planOf(lease);
      const alter = async (query: Query): Promise<void> => {
        const until = await validUntil(query, endsAt);
        await query(`alter role ${quoteIdentifier(plan.role)} valid until ${quoteLiteral(until.toISOString())}`);
      };
      await inLane(plan, signal, () => asAdmin(plan, `extend ${plan.role}`, signal, alter));
      return { ...plan, validUntil: endsAt.toISOString() };
    },

    async fence(lease, signal) {
      const plan = planOf(lease);
      const work = (query: Query): Promise<void> => fenceNow(plan, query, signal);
      await fences(`${plan.host}:${plan.port}`, signal, () => asAdmin(plan, `fence ${plan.role}`, signal, work));
    },

    async revoke(lease, signal) {
      const plan = planOf(lease);
      const work = async (query: Query): Promise<void> => {
        await endMints(query, plan.role, signal);
        if (await exists(query, plan.role)) {
          await fenceNow(plan, query, signal);
          await ensureRights(query, plan.role);
          await clear(plan, query, signal);
          let left = await dependents(query, plan.role);
          for (let round = 1; left.length > 0 && round <= CLEAN_ROUNDS; round += 1) {
            for (const { name } of left.filter((database) => database.open)) await clean(plan, name, signal);
            left = await dependents(query, plan.role);
            if (left.every((database) => !database.open)) break;
          }
          if (left.length > 0) throw stuck(plan, left);
          await endSessions(query, plan.role, signal);
          await retried(signal, () => query(`drop role if exists ${quoteIdentifier(plan.role)}`));
        }
        await endStrays(query, signal);
      };
      await inLane(plan, signal, () => asAdmin(plan, `revoke ${plan.role}`, signal, work));
    },

    async confirm(lease, secrets, signal) {
      const plan = planOf(lease);
      try {
        const refusal = await freshLogin(plan, secrets, signal);
        if (refusal === "let in") return { verdict: "alive", left: [`role ${plan.role} can still log in`] };
        return await inLane(plan, signal, () =>
          asAdmin(plan, `confirm ${plan.role}`, signal, (query) => takeEvidence(query, plan, refusal)),
        );
      } catch (error) {
        signal.throwIfAborted();
        return { verdict: "unknown", why: describe(error) };
      }
    },

    async list(config, install, signal) {
      const target = endpointOf(configOf(config));
      if (!INSTALL.test(install)) throw new GlassError("usage", "an installation id has 6 characters of base 32");
      const find = (query: Query): Promise<readonly { name: string }[]> =>
        query(`select rolname as name from pg_roles where rolname like $1 order by 1`, [`gk\\_${install}\\_%`]);
      const rows = await lanes(`${target.host}:${target.port}`, signal, () => asAdmin(target, "list", signal, find));
      return rows.flatMap(({ name }) => {
        const lease = `ls_${name.slice(`gk_${install}_`.length)}`;
        return isId("lease", lease) ? [{ name, lease }] : []; // the keeper is no lease
      });
    },

    planForOrphan(config, orphan) {
      return orphanPlan(configOf(config), orphan);
    },

    async fingerprint(lease, install, signal) {
      const plan = planOf(lease);
      if (!INSTALL.test(install)) throw new GlassError("usage", "an installation id has 6 characters of base 32");
      const enter = <T>(database: string, work: (query: Query) => Promise<T>): Promise<T> =>
        asAdmin(plan, `fingerprint ${quoteIdentifier(database)}`, signal, work, database);
      return inLane(plan, signal, () => readFingerprint(plan.admin.database, install, enter));
    },
  };

  async function enterDatabases(
    target: ReturnType<typeof endpointOf>,
    databases: readonly string[],
    signal: AbortSignal,
  ): Promise<readonly Check[]> {
    const checks: Check[] = [];
    for (const database of databases) {
      const check = `enter ${quoteIdentifier(database)}`;
      try {
        await asAdmin(target, "check", signal, (query) => query("select 1"), database);
        checks.push({ check, ok: true, detail: "over verified TLS" });
      } catch (error) {
        if (!ranOut(signal)) signal.throwIfAborted();
        checks.push(loginCheck(check, target, { ...target.admin, database }, error));
      }
    }
    return checks;
  }
}

/** Whether the signal is one of `AbortSignal.timeout`: to a check, a target that does not answer in time is a finding. */
function ranOut(signal: AbortSignal): boolean {
  return signal.reason instanceof DOMException && signal.reason.name === "TimeoutError";
}

/** Pure: the same request gives the same plan. @throws GlassError `internal` for ids that are not ids. */
function createPlan(request: LeaseRequest): LeasePlan {
  const config = configOf(request.config);
  const template = templateOf(request.scope);
  if (!INSTALL.test(request.install) || !isId("lease", request.lease) || template === undefined) {
    throw new GlassError("internal", "a lease needs an installation id, a lease id and a scope with a role");
  }
  const role = `gk_${request.install}_${request.lease.slice("ls_".length)}`;
  return planFrom(config, role, template, request.endsAt);
}

function orphanPlan(config: PostgresConfig, orphan: RemoteLease): LeasePlan {
  return planFrom(config, orphan.name, "", new Date(0));
}

function planFrom(config: PostgresConfig, role: string, template: string, endsAt: Date): PostgresPlan {
  const { databases, connections } = config;
  const validUntil = endsAt.toISOString();
  return { v: 1, ...endpointOf(config), role, template, databases, validUntil, connectionLimit: connections };
}

function endpointOf(config: PostgresConfig): Pick<PostgresPlan, "host" | "port" | "tls" | "admin"> {
  const { host, port, tls, admin } = config;
  return { host, port, tls: { ca: tls.ca === "system" ? null : tls.ca, servername: tls.servername }, admin };
}

function templateOf(scope: JsonObject | undefined): string | undefined {
  const role = scope?.["role"];
  return typeof role === "string" && role !== "" ? role : undefined;
}

/** `gk_ab12cd_7kq2m9x4tbzc` → `gk_ab12cd_keeper`: owns what this installation's leases created, and may do nothing. */
function keeperOf(role: string): string {
  return `${role.slice(0, "gk_ab12cd_".length)}keeper`;
}

function leaseLogin(
  plan: PostgresPlan,
  secrets: LeaseSecrets,
): { user: string; password: Secret; database: string; application: string } {
  const database = plan.databases[0] ?? plan.admin.database;
  return { user: plan.role, password: secrets.derive("password"), database, application: "glasskey probe" };
}

async function retried<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await work();
    } catch (error) {
      const cause = error instanceof GlassError ? error.cause : error;
      if (attempt >= 3 || !isContention(cause)) throw error;
      await sleep(50 * attempt, signal);
    }
  }
}

function stuck(plan: PostgresPlan, left: readonly { name: string; open: boolean }[]): GlassError {
  const names = left
    .map(({ name, open }) => quoteIdentifier(name) + (open ? "" : " (takes no connections)"))
    .join(", ");
  return new GlassError("not_proved", `something still depends on ${plan.role} in database ${names}`, {
    next: `There, as its owner or a superuser: REASSIGN OWNED BY ${plan.role} TO …; DROP OWNED BY ${plan.role};`,
  });
}

/** Tries the credential as a client would. @throws whatever kept the target from answering the question. */
async function freshLogin(plan: PostgresPlan, secrets: LeaseSecrets, signal: AbortSignal): Promise<string> {
  try {
    await withConnection(plan, leaseLogin(plan, secrets), signal, () => Promise.resolve());
    return "let in";
  } catch (error) {
    const code = sqlState(error);
    if (code === "28P01" || code === "28000") return `FATAL ${code} ${describe(error)}`;
    throw targetError(plan, `a fresh login as ${plan.role}`, error);
  }
}

async function takeEvidence(query: Query, plan: PostgresPlan, refusal: string): Promise<Confirmation> {
  const [seen] = await query<{
    now: Date;
    roles: number;
    sessions: number;
    strays: number;
    mints: number;
    prepared: number;
  }>(
    `select clock_timestamp() as now,
            (select count(*)::int from pg_roles where rolname = $2) as roles,
            (select count(*)::int from pg_stat_activity
              where usename = $2 or usesysid = (select oid from pg_roles where rolname = $2)) as sessions,
            (select count(*)::int from pg_stat_activity where ${STRAYS}) as strays,
            (select count(*)::int from pg_stat_activity where ${MINTS}) as mints,
            (select count(*)::int from pg_prepared_xacts where owner = $2) as prepared`,
    [`glasskey mint ${plan.role}`, plan.role],
  );
  if (seen === undefined) return { verdict: "unknown", why: "the target gave no answer to a question that has one" };
  const facts: [number, string][] = [
    [seen.roles, `role ${plan.role} in pg_roles`],
    [seen.sessions, `sessions of ${plan.role} in pg_stat_activity`],
    [seen.strays, "sessions of roles that no longer exist"],
    [seen.mints, `unfinished mints of ${plan.role}`],
    [seen.prepared, `prepared transactions of ${plan.role}`],
  ];
  const left = facts.filter(([count]) => count !== 0).map(([count, what]) => `${count} ${what}`);
  if (left.length > 0) return { verdict: "alive", left };
  const evidence: Evidence[] = facts.map(([, asked]) => ({ asked, answered: "absent" }));
  evidence.push({ asked: `a fresh login as ${plan.role} with its password, over TLS`, answered: refusal });
  return { verdict: "dead", from: seen.now, evidence };
}
