import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { formatDuration } from "../core/duration.ts";
import { deriveSecret } from "../core/derive.ts";
import { describe, GlassError } from "../core/errors.ts";
import { isId, newId } from "../core/ids.ts";
import type { JsonObject } from "../core/json.ts";
import type { Secret } from "../core/secret.ts";
import type { Playbook } from "../playbooks/policy.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import { storeError } from "../store/database.ts";
import type { IssueRequest, LeasePlan, MaskRules, OpenRequest, SessionEnd } from "../targets/target.ts";
import type { Access, SessionActivity } from "./access.ts";
import { finishClosing } from "./confirm.ts";
import { leaseKey, readPlan, secretsOf } from "./lease-row.ts";
import type { GrantRow } from "./lifecycle.ts";
import { pinned } from "./pins.ts";
import { alarmIfUntrusted } from "./untrusted.ts";

/** What the data plane needs to begin a session; plain data, it crosses a thread. */
export interface OpenedGrant {
  session: string;
  grant: string;
  person: string;
  playbook: string;
  target: string;
  kind: string;
  reason: string;
  endsAtMs: number;
  plan: LeasePlan;
  scope: JsonObject;
  /** What the driver issued for this session alone. Secret, and stored nowhere. */
  credential: JsonObject;
  leaseKey: Uint8Array;
  mask: MaskRules;
}

const MAX_SESSIONS_PER_GRANT = 200;

/** The secret that a grant's requester proves at the gateway. Derived, so it is the same in every process and stored nowhere. */
export function connectSecret(access: Pick<Access, "keyring">, grant: string): Secret {
  return deriveSecret(access.keyring.derive("connect", grant), "connect");
}

/**
 * The secret that this user name must prove. For a name that is no live grant it is a decoy that nobody can know, derived
 * in the same way; neither the answer nor its time tells which names exist.
 */
export async function challenge(access: Access, user: string): Promise<{ connectSecret: string }> {
  const name = user.slice(0, 128);
  const row = await access.store
    .selectFrom("grants")
    .select("id")
    .where("id", "=", name)
    .where("state", "=", "active")
    .where("ends_at", ">", sql<Date>`clock_timestamp()`)
    .executeTakeFirst()
    .catch((error: unknown) => {
      throw storeError(error);
    });
  const known = row !== undefined;
  const secret = deriveSecret(access.keyring.derive(known ? "connect" : "decoy", name), "connect");
  return { connectSecret: secret.reveal() };
}

/**
 * Begins a session under a grant: the only door, for every channel of every protocol. The grant's row is locked against
 * closing while the session's row is written, so that no session escapes a cut. What the driver issues for it is issued
 * once that row is there: the row's start is the latest moment from which any credential of the lease can count.
 * @throws GlassError for the person at the client: what is wrong, and what to do.
 */
export async function openSession(access: Access, request: OpenRequest): Promise<OpenedGrant> {
  const user = request.user;
  if (!isId("grant", user)) throw new GlassError("unauthenticated", "unknown grant");
  const session = newId("session");
  const begun = await access.store
    .transaction()
    .execute(async (tx) => {
      const grant = await tx.selectFrom("grants").selectAll().where("id", "=", user).forShare().executeTakeFirst();
      if (grant === undefined) throw new GlassError("unauthenticated", "unknown grant");
      const shut = access.mayOpen();
      if (shut !== undefined) throw shut;
      const lease = await tx
        .selectFrom("leases")
        .selectAll()
        .where("grant_id", "=", user)
        .where("state", "=", "live")
        .executeTakeFirst();
      const now = await tx.selectNoFrom(sql<Date>`clock_timestamp()`.as("now")).executeTakeFirstOrThrow();
      if (grant.state !== "active" || lease === undefined || grant.ends_at === null || grant.ends_at <= now.now)
        throw over(grant);
      const policy = access.policy();
      const decision = policy.decide({
        action: "connect",
        person: grant.requester,
        playbook: grant.playbook,
        requester: grant.requester,
      });
      if (!decision.allow) {
        throw new GlassError("policy_denied", decision.reasons.join(" "), {
          next: "Ask the people who keep the playbooks.",
        });
      }
      const { count } = await tx
        .selectFrom("sessions")
        .select((eb) => eb.fn.countAll<number>().as("count"))
        .where("grant_id", "=", user)
        .where("closed_at", "is", null)
        .executeTakeFirstOrThrow();
      if (count >= MAX_SESSIONS_PER_GRANT) {
        throw new GlassError(
          "conflict",
          `this grant has ${MAX_SESSIONS_PER_GRANT} open sessions, the most it may have`,
          { next: "Close some, or use a smaller pool." },
        );
      }
      const { opened_at: at } = await tx
        .insertInto("sessions")
        .values({
          ...{ id: session, grant_id: user, lease_id: lease.id, node: access.node, person: grant.requester },
          ...{ remote_address: request.remoteAddress, client: JSON.stringify(request.client) },
        })
        .returning("opened_at")
        .executeTakeFirstOrThrow();
      const actor = await pseudonymOf(tx, grant.requester);
      await append(tx, {
        ...{ type: "session.opened", at: new Date(), actor, grant: user, lease: lease.id, session },
        ...{ target: grant.target, playbook: grant.playbook },
      });
      const { playbook } = await pinned(tx, grant.playbook_hash);
      const granted = {
        ...{
          session,
          grant: user,
          person: grant.requester,
          playbook: grant.playbook,
          target: grant.target,
          kind: grant.kind,
        },
        ...{
          reason: grant.reason,
          endsAtMs: grant.ends_at.getTime(),
          plan: readPlan(access, lease),
          scope: playbook.scope,
        },
        leaseKey: leaseKey(access, lease.id),
        mask: maskOf(access, playbook),
      };
      return { granted, lease: lease.id, to: { session, at, endsAt: lease.ends_at } };
    })
    .catch(async (error: unknown) => {
      const known = storeError(error);
      // Whether its row is there is not known: the answer to the commit may be what was lost.
      if (!(known instanceof GlassError) || known.code === "store_unavailable") neverBegan(access, session);
      if (known instanceof GlassError && known.code !== "store_unavailable")
        await logRefusal(access, user, known.code).catch(() => {});
      throw known;
    });
  return { ...begun.granted, credential: await issue(access, begun.granted, begun.lease, begun.to) };
}

/** What the target's driver makes for one session. Without it there is no session: its row is closed again. */
async function issue(
  access: Access,
  { kind: name, plan }: Pick<OpenedGrant, "kind" | "plan">,
  lease: string,
  to: IssueRequest,
): Promise<JsonObject> {
  try {
    const kind = access.kinds.get(name);
    if (kind === undefined) throw new GlassError("config_invalid", `no target kind ${name} in this Glasskey`);
    return await kind.driver.issue(plan, secretsOf(access, lease), to);
  } catch (error) {
    const nothing = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
    const detail = `no credential was issued: ${describe(error)}`;
    await sessionClosed(access, to.session, { cause: "error", detail, ...nothing }).catch((problem: unknown) => {
      neverBegan(access, to.session);
      access.warn(`session ${to.session} is not closed in the store yet: ${describe(problem)}`);
    });
    throw error;
  }
}

/** Sessions of this process that the data plane never got, and when each was seen to be one (monotonic). */
const unbegun = new WeakMap<Access, Map<string, number>>();
const MAX_UNBEGUN = 10_000;
const UNBEGUN_MS = 60_000; // a commit whose answer was lost is through by then, or never will be

function neverBegan(access: Access, session: string): void {
  const known = unbegun.get(access) ?? new Map<string, number>();
  unbegun.set(access, known);
  if (known.size < MAX_UNBEGUN) known.set(session, performance.now());
}

/** Closes the sessions that nobody got; an open row of one would keep its grant from the proof as long as this process lives. */
export async function closeUnbegun(access: Access): Promise<void> {
  const known = unbegun.get(access);
  if (known === undefined || known.size === 0) return;
  const nowMs = performance.now();
  const open = await access.store
    .selectFrom("sessions")
    .select("id")
    .where("id", "in", [...known.keys()])
    .where("closed_at", "is", null)
    .execute();
  const nothing = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
  for (const { id } of open) {
    await sessionClosed(access, id, { cause: "error", detail: "it never began", ...nothing });
  }
  for (const [session, sinceMs] of known) if (nowMs - sinceMs >= UNBEGUN_MS) known.delete(session);
}

/** What the pinned playbook masks. The key depends on the playbook's name alone: its versions can be compared. */
function maskOf(access: Pick<Access, "keyring">, { name, record }: Playbook): MaskRules {
  const mask = record?.mask;
  return { parameters: mask !== undefined, literals: mask === "all", key: access.keyring.derive("mask", name) };
}

function over(grant: GrantRow): GlassError {
  const again = `Break the glass again: glass break ${grant.playbook} --reason CODE --why "…"`;
  switch (grant.state) {
    case "pending":
    case "approved":
    case "opening":
      return new GlassError("waiting_for_human", `grant ${grant.id} is ${grant.state}, not open yet`, {
        next: `glass status ${grant.id}`,
      });
    case "active":
      return new GlassError("grant_over", `grant ${grant.id} ended at ${grant.ends_at?.toISOString() ?? "its time"}`, {
        next: again,
      });
    default:
      return new GlassError("grant_over", `grant ${grant.id} is over: ${grant.end_text ?? grant.state}`, {
        next: again,
      });
  }
}

async function logRefusal(access: Access, grant: string, code: string): Promise<void> {
  await access.store.transaction().execute(async (tx) => {
    const known = await tx.selectFrom("grants").select(["id", "requester"]).where("id", "=", grant).executeTakeFirst();
    if (known === undefined) return;
    const actor = await pseudonymOf(tx, known.requester);
    await append(tx, { type: "session.refused", at: new Date(), actor, grant, data: { code } });
  });
}

/** The data plane says that a session is over. Idempotent. */
export async function sessionClosed(
  access: Access,
  session: string,
  end: SessionEnd,
  cut?: { code: string; text: string },
): Promise<void> {
  const grant = await access.store.transaction().execute(async (tx) => {
    const row = await tx
      .updateTable("sessions")
      .set({
        ...{
          closed_at: sql`clock_timestamp()`,
          cause: cut?.code ?? end.cause,
          detail: (cut?.text ?? end.detail).slice(0, 500),
        },
        ...{ statements: end.statements, refused: end.refused, bytes_in: end.bytesIn, bytes_out: end.bytesOut },
      })
      .where("id", "=", session)
      .where("closed_at", "is", null)
      .returning(["grant_id", "person"])
      .executeTakeFirst();
    if (row === undefined) return undefined;
    await append(tx, {
      ...{
        type: "session.closed",
        at: new Date(),
        actor: await pseudonymOf(tx, row.person),
        grant: row.grant_id,
        session,
      },
      data: {
        cause: cut?.code ?? end.cause,
        statements: end.statements,
        refused: end.refused,
        bytesIn: end.bytesIn,
        bytesOut: end.bytesOut,
      },
    });
    return row.grant_id;
  });
  if (grant === undefined) return;
  if (end.code === "target_untrusted") {
    const of = await access.store.selectFrom("grants").select("target").where("id", "=", grant).executeTakeFirst();
    if (of !== undefined) await alarmIfUntrusted(access, of.target, new GlassError(end.code, end.detail));
  }
  if (!(await finishClosing(access, grant))) await askAgain(access, grant);
}

/** The proof may have waited for this session's end: with the last one gone it is asked for now, and not after its next pause. */
async function askAgain(access: Access, grant: string): Promise<void> {
  await access.store
    .updateTable("leases as l")
    .set({ next_at: sql`clock_timestamp()`, attempts: 0 })
    .where("l.grant_id", "=", grant)
    .where("l.state", "=", "closing")
    .where((eb) =>
      eb.not(
        eb.exists(
          eb
            .selectFrom("sessions as s")
            .select("s.id")
            .whereRef("s.lease_id", "=", "l.id")
            .where("s.closed_at", "is", null),
        ),
      ),
    )
    .execute();
}

/** Remembers when grants were last busy, so that only time without work counts as idle, whichever process saw it. */
export async function noteActivity(access: Access, reports: readonly SessionActivity[]): Promise<void> {
  const idle = new Map<string, number>();
  for (const { grant, idleMs, busy } of reports)
    idle.set(grant, Math.min(idle.get(grant) ?? Infinity, busy ? 0 : idleMs));
  for (const [grant, idleMs] of idle) {
    await access.store
      .updateTable("grants")
      .set({
        last_busy_at: sql`greatest(last_busy_at, clock_timestamp() - ${Math.floor(idleMs)} * interval '1 millisecond')`,
      })
      .where("id", "=", grant)
      .where("state", "=", "active")
      .execute();
  }
}

/** What a person whose session went idle reads. */
export function idleText(idleMs: number): string {
  return `nothing happened for ${formatDuration(idleMs)}`;
}
