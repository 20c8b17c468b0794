/** One step each of a minted role's life on the target, over a connection that the caller holds. */
import { sleep, systemClock } from "../../core/clock.ts";
import { GlassError } from "../../core/errors.ts";
import { quoteIdentifier, quoteLiteral, sqlState, type Query } from "./admin.ts";
import type { PostgresPlan } from "./config.ts";

const SESSIONS_GONE_WITHIN_MS = 10_000; // a backend answers SIGTERM in milliseconds unless it is stuck in the kernel
const PORTION = 100; // relations per transaction; with index, TOAST table and its index a few hundred locks

/**
 * The moment to write into VALID UNTIL: the grant's end on the target's clock where that is behind ours, and never
 * later than the grant's end as written, should the target's clock be set right afterwards.
 * @throws GlassError `target_unfit` when on the target's clock the end is over already.
 */
export async function validUntil(query: Query, endsAt: Date): Promise<Date> {
  const [row] = await query<{ now: Date }>("select clock_timestamp() as now");
  const remainingMs = endsAt.getTime() - Date.now(); // taken after the answer: an error only shortens
  const now = row?.now.getTime() ?? Number.NaN;
  const until = Math.min(endsAt.getTime(), now + remainingMs);
  if (until > now) return new Date(until);
  throw new GlassError("target_unfit", `the target's clock says ${new Date(now).toISOString()}, past the grant's end`, {
    next: "Set the clocks of Glasskey and of the target right, or ask for a later end.",
  });
}

/** One transaction; it commits only if the right to revoke what it made was shown to be there. */
export async function createRole(query: Query, plan: PostgresPlan, verifier: string, until: Date): Promise<void> {
  const [role, template] = [quoteIdentifier(plan.role), quoteIdentifier(plan.template)];
  const [server] = await query<{ options: boolean; superuser: boolean }>(
    `select current_setting('server_version_num')::int >= 160000 as options, rolsuper as superuser
       from pg_roles where rolname = current_user`,
  );
  const [inherit, rights] =
    server?.options === true ? [" with inherit true, set false", " with inherit true, set true"] : ["", ""];
  const [proof] = await query<{ usage: boolean; member: boolean }>(
    [
      "begin",
      `create role ${role} login inherit password ${quoteLiteral(verifier)}
         valid until ${quoteLiteral(until.toISOString())} connection limit ${plan.connectionLimit}`,
      `grant ${template} to ${role}${inherit}`,
      ...(server?.superuser === true ? [] : [`grant ${role} to current_user${rights}`]),
      `select pg_has_role(current_user, ${quoteLiteral(plan.role)}, 'USAGE') as usage,
              pg_has_role(${quoteLiteral(plan.role)}, ${quoteLiteral(plan.template)}, 'USAGE') as member`,
    ].join(";\n"),
  );
  if (proof === undefined || !proof.usage || !proof.member) {
    throw new GlassError("target_unfit", "the minted role did not come out as planned, so it was not committed");
  }
  await query("commit");
}

/**
 * Membership in the role, which ending its sessions and taking over its objects need; superusers need none. A server's
 * own `createrole_self_grant` may have given half of it.
 */
export async function ensureRights(query: Query, role: string): Promise<void> {
  const [state] = await query<{ usage: boolean; options: boolean }>(
    `select pg_has_role(current_user, oid, 'USAGE') and
              case when v.options then pg_has_role(current_user, oid, 'SET') else true end as usage, v.options
       from pg_roles, (select current_setting('server_version_num')::int >= 160000 as options) v where rolname = $1`,
    [role],
  );
  if (state === undefined || state.usage) return;
  await query(`grant ${quoteIdentifier(role)} to current_user${state.options ? " with inherit true, set true" : ""}`);
}

/**
 * Gives everything that `role` owns in this database to the keeper. Every object costs a lock until its transaction ends
 * and a server has some thousands of them, so many relations go in portions.
 */
export async function handOver(query: Query, role: string, keeper: string): Promise<void> {
  await ensureKeeper(query, keeper);
  const [from, to] = [quoteIdentifier(role), quoteIdentifier(keeper)];
  const [state] = await query<{ superuser: boolean; options: boolean }>(
    `select rolsuper as superuser, current_setting('server_version_num')::int >= 160000 as options
       from pg_roles where rolname = current_user`,
  );
  // A new owner must be allowed to create in the schema. Inside one message, so one transaction, and never visible outside
  // of it, the keeper may do what the lease could.
  const lent = async (steps: readonly string[]): Promise<void> => {
    const lend = `grant ${from} to ${to}${state?.options === true ? " with inherit true" : ""}`;
    const all = state?.superuser === true ? steps : [lend, ...steps, `revoke ${from} from ${to}`];
    await query(all.join(";\n"));
  };
  for (;;) {
    const portion = await query<{ name: string }>(
      `select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relowner = (select oid from pg_roles where rolname = $1)
        order by c.oid limit ${PORTION}`,
      [role],
    );
    if (portion.length < PORTION) break;
    await lent(portion.map(({ name }) => `alter table ${name} owner to ${to}`));
  }
  await lent([`reassign owned by ${from} to ${to}`]);
}

/** Creates the powerless owner of left objects when first needed. */
async function ensureKeeper(query: Query, keeper: string): Promise<void> {
  const name = quoteIdentifier(keeper);
  if (!(await exists(query, keeper))) {
    await query(`create role ${name} nologin inherit`).catch((error: unknown) => {
      if (!["42710", "23505"].includes(sqlState(error) ?? "")) throw error; // another process was faster
    });
  }
  await ensureRights(query, keeper);
}

export async function exists(query: Query, role: string): Promise<boolean> {
  return (await query(`select from pg_roles where rolname = $1`, [role])).length > 0;
}

/** By the role's OID: that is what a session keeps through SET ROLE, and what its parallel workers carry. */
export async function endSessions(query: Query, role: string, signal: AbortSignal): Promise<void> {
  await untilNone(signal, `sessions of ${role}`, () =>
    query(
      `select pid, pg_terminate_backend(pid) from pg_stat_activity
        where usesysid = (select oid from pg_roles where rolname = $1)`,
      [role],
    ),
  );
}

/** A mint that another process left half-way must not commit after this revocation. */
export async function endMints(query: Query, role: string, signal: AbortSignal): Promise<void> {
  await untilNone(signal, `an unfinished mint of ${role}`, () =>
    query(`select pid, pg_terminate_backend(pid) from pg_stat_activity where ${MINTS}`, [`glasskey mint ${role}`]),
  );
}

/**
 * A login that was half-way when the role was dropped becomes a session whose user is nobody. It has no privileges left
 * but those of PUBLIC; still it must not stay.
 */
export async function endStrays(query: Query, signal: AbortSignal): Promise<void> {
  await untilNone(signal, "sessions of roles that no longer exist", () =>
    query(`select pid, pg_terminate_backend(pid) from pg_stat_activity where ${STRAYS}`),
  );
}

export const MINTS = `usename = session_user and application_name = $1 and pid <> pg_backend_pid()`;
// The kind of a backend is hidden from administrators that are no superusers, for sessions of other roles and of none.
export const STRAYS = `coalesce(backend_type, 'client backend') = 'client backend' and usesysid <> 0 and usesysid not in (select oid from pg_roles)`;

async function untilNone(signal: AbortSignal, what: string, find: () => Promise<readonly object[]>): Promise<void> {
  const giveUpMs = systemClock.monotonicMs() + SESSIONS_GONE_WITHIN_MS;
  for (let pauseMs = 2; ; pauseMs = Math.min(pauseMs * 2, 250)) {
    const left = await find();
    if (left.length === 0) return;
    if (systemClock.monotonicMs() > giveUpMs) {
      throw new GlassError("not_proved", `${left.length} of ${what} did not end within 10 s of pg_terminate_backend`);
    }
    await sleep(pauseMs, signal);
  }
}
