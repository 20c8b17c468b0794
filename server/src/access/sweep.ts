import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { describe } from "../core/errors.ts";
import { sweepTokens } from "../identity/tokens.ts";
import type { Access } from "./access.ts";
import { raiseAlarm } from "./alarms.ts";
import { beginClosing, carryOut } from "./close.ts";
import { finishClosing } from "./confirm.ts";
import { orphanAlarm } from "./lease-row.ts";
import { GUARDS, move } from "./lifecycle.ts";
import { tellOverdue } from "./review.ts";
import { closeUnbegun, idleText, noteActivity, sessionClosed } from "./sessions.ts";
import { tell } from "./tell.ts";
import { alarmIfUntrusted } from "./untrusted.ts";

const NODE_DEAD_AFTER_MS = 30_000; // several missed heartbeats; its sessions died with its sockets
const ORPHAN_GRACE_MS = 120_000; // a lease's row is committed before its role exists; anything younger may be in the making
const LIST_TIMEOUT_MS = 20_000;
const ORPHANS_AT_ONCE = 20; // of one target: on a host anybody can make names up, and each is an alarm and minutes of work
const REPORTS_MS = 15_000; // what another process last told of its sessions may be a few reports old

/**
 * What runs on time alone. Each pass may run in any number of processes at once, and finds what a crash left. A pass that
 * fails keeps no other from its work. @throws the first failure, once all have run.
 */
export async function sweepGrants(access: Access): Promise<void> {
  const passes = [
    ...[timeOutPending, closeIdle, closeUnbegun, closeLostSessions, finishForgotten, tellOverdue],
    () => sweepTokens(access.store),
  ];
  await each(passes, (pass) => pass(access));
}

/** One after the other, and one that fails keeps no other from its turn. @throws the first failure, once all had theirs. */
async function each<T>(items: readonly T[], work: (item: T) => Promise<unknown>): Promise<void> {
  const failures: unknown[] = [];
  for (const item of items) await work(item).catch((error: unknown) => failures.push(error));
  if (failures.length > 0) throw failures[0];
}

/** Says that this process lives. Its own loop: nothing slow may make other processes take it for dead. */
export async function heartbeat(access: Access): Promise<void> {
  await access.store
    .insertInto("nodes")
    .values({ id: access.node })
    .onConflict((c) => c.column("id").doUpdateSet({ seen_at: sql`clock_timestamp()` }))
    .execute();
}

async function timeOutPending(access: Access): Promise<void> {
  const late = await access.store
    .selectFrom("grants")
    .select("id")
    .where("state", "=", "pending")
    .where(GUARDS.afterDeadline)
    .execute();
  for (const { id } of late) {
    try {
      await access.store.transaction().execute(async (tx) => {
        const moved = await move(tx, {
          ...{ grant: id, to: "timed_out", guard: "afterDeadline", actor: "glasskey" },
          set: { end_cause: "timed_out", end_text: "nobody decided in time", closed_at: sql`clock_timestamp()` },
        });
        if (moved === undefined) return;
        await tell(access, tx, moved, {
          event: "timed_out",
          text: `Nobody decided in time on ${moved.requester}'s request.`,
        });
      });
    } catch (error) {
      access.warn(`timing ${id} out: ${describe(error)}`); // the others must not wait for this one
    }
  }
}

async function closeIdle(access: Access): Promise<void> {
  const since = sql`greatest(active_at, last_busy_at) + (idle_ms + ${REPORTS_MS}) * interval '1 millisecond'`;
  const candidates = access.store
    .selectFrom("grants")
    .select(["id", "idle_ms"])
    .where("state", "=", "active")
    .where(GUARDS.idleTooLong)
    .where((eb) => {
      const elsewhere = eb
        .selectFrom("sessions")
        .select("id")
        .whereRef("grant_id", "=", "grants.id")
        .where("closed_at", "is", null)
        .where("node", "<>", access.node);
      return eb.or([eb.not(eb.exists(elsewhere)), sql<boolean>`${since} <= clock_timestamp()`]);
    });
  if ((await candidates.execute()).length === 0) return;
  await noteActivity(access, await access.cutter().activity()); // reports come every few seconds; a statement may run since
  await each(await candidates.execute(), async ({ id, idle_ms }) => {
    const text = idleText(idle_ms ?? 0);
    const moved = await access.store
      .transaction()
      .execute((tx) =>
        beginClosing(access, tx, { grant: id, actor: "glasskey", cause: "idle", text, guard: "idleTooLong" }),
      );
    if (moved !== undefined) void carryOut(access, id, { code: "idle", text });
  });
}

/** Sessions of a process that is dead are over, and must not stay in the list. */
async function closeLostSessions(access: Access): Promise<void> {
  const lost = await access.store
    .selectFrom("sessions")
    .leftJoin("nodes", "nodes.id", "sessions.node")
    .select("sessions.id")
    .where("sessions.closed_at", "is", null)
    .where("sessions.node", "<>", access.node)
    .where((eb) =>
      eb.or([
        eb("nodes.id", "is", null),
        eb("nodes.seen_at", "<", sql<Date>`clock_timestamp() - ${NODE_DEAD_AFTER_MS} * interval '1 millisecond'`),
      ]),
    )
    .execute();
  await each(lost, ({ id }) => closeLost(access, id));
}

function closeLost(access: Access, session: string): Promise<void> {
  const nothing = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
  return sessionClosed(access, session, {
    cause: "error",
    detail: "the Glasskey process that held it is gone",
    ...nothing,
  });
}

/** At start: a process that used this data folder before is gone for certain, without waiting for its heartbeat to age. */
export async function forgetNode(access: Access, node: string): Promise<void> {
  await access.store.deleteFrom("nodes").where("id", "=", node).execute();
  const lost = await access.store
    .selectFrom("sessions")
    .select("id")
    .where("closed_at", "is", null)
    .where("node", "=", node)
    .execute();
  for (const { id } of lost) await closeLost(access, id);
  await access.store
    .updateTable("leases")
    .set({ claimed_by: null, claimed_until: null, next_at: sql`least(next_at, clock_timestamp())` })
    .where("claimed_by", "=", node)
    .where("state", "<>", "dead")
    .execute();
}

/** A grant whose last lease died, or whose opening lost its lease, in a process that crashed before saying so. */
async function finishForgotten(access: Access): Promise<void> {
  const rows = await access.store
    .selectFrom("grants")
    .select(["id", "state"])
    .where("state", "in", ["closing", "approved", "opening"])
    .where((eb) =>
      eb.not(
        eb.exists(
          eb
            .selectFrom("leases")
            .select("id")
            .whereRef("leases.grant_id", "=", "grants.id")
            .where("leases.state", "<>", "dead"),
        ),
      ),
    )
    .execute();
  await each(rows, async ({ id, state }) => {
    if (state !== "closing") {
      await access.store.transaction().execute((tx) =>
        beginClosing(access, tx, {
          grant: id,
          actor: "glasskey",
          cause: "opening_failed",
          text: "the opening was lost",
        }),
      );
    }
    await finishClosing(access, id);
  });
}

/** Asks every target for credentials in this installation's name that no living lease accounts for, and removes them. */
export async function sweepOrphans(access: Access): Promise<void> {
  for (const target of access.policy().targets) {
    const kind = access.kinds.get(target.kind);
    if (kind === undefined) continue;
    let taken = 0;
    try {
      for (const remote of await kind.driver.list(
        target.config,
        access.install,
        AbortSignal.timeout(LIST_TIMEOUT_MS),
      )) {
        const known = await access.store
          .selectFrom("leases")
          .select(["state", "dead_at"])
          .where("id", "=", remote.lease)
          .executeTakeFirst();
        if (known !== undefined && known.state !== "dead") continue;
        if (known !== undefined && known.dead_at !== null && Date.now() - known.dead_at.getTime() < ORPHAN_GRACE_MS)
          continue;
        if ((taken += 1) > ORPHANS_AT_ONCE) break; // the next sweep finds the others
        const plan = kind.driver.planForOrphan(target.config, remote);
        // Before its row: from there on anybody may remove it, and clear the alarm with the proof.
        await raiseAlarm(
          access.store,
          access.warn,
          orphanAlarm(access.install, remote.lease),
          `${target.name} has a credential ${remote.name} that no grant accounts for; removing it`,
          access.notifier,
        );
        await access.store.transaction().execute(async (tx) => {
          await append(tx, {
            type: "lease.orphan_found",
            at: new Date(),
            actor: "glasskey",
            lease: remote.lease,
            target: target.name,
            data: { name: remote.name },
          });
          await tx
            .insertInto("leases")
            .values({
              ...{
                id: remote.lease,
                grant_id: null,
                target: target.name,
                kind: target.kind,
                state: "closing",
                install: access.install,
              },
              plan: access.keyring.seal(
                { table: "leases", row: remote.lease, column: "plan" },
                Buffer.from(JSON.stringify(plan)),
              ),
              ...{
                ends_at: sql`clock_timestamp()`,
                worst_case_revoke_ms: kind.promises(target.config).worstCaseRevokeMs,
              },
            })
            .onConflict((c) =>
              c
                .column("id")
                .doUpdateSet({
                  state: "closing",
                  attempts: 0,
                  next_at: sql`clock_timestamp()`,
                  evidence: null,
                  dead_at: null,
                  // Its own plan knows more, but not of a place where the lease never was.
                  plan: sql`case when leases.target = excluded.target then leases.plan else excluded.plan end`,
                  target: sql`excluded.target`,
                  kind: sql`excluded.kind`,
                })
                .where("leases.state", "=", "dead"),
            )
            .execute();
        });
        await access.kick(remote.lease);
      }
    } catch (error) {
      access.warn(`orphan sweep of ${target.name} waits: ${describe(error)}`);
      await alarmIfUntrusted(access, target.name, error);
    }
  }
}
