import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { sleep } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { Confirmation } from "../targets/target.ts";
import type { Access, KindControl } from "./access.ts";
import { clearAlarmIn, raiseAlarm } from "./alarms.ts";
import { cutSessions } from "./close.ts";
import { cutReasonOf } from "./cut-bus.ts";
import { finishClosing } from "./confirm.ts";
import { compare } from "./fingerprint.ts";
import { lateAlarm, orphanAlarm, readPlan, release, REMOTE_TIMEOUT_MS, secretsOf, type LeaseRow } from "./lease-row.ts";
import { tell } from "./tell.ts";
import { alarmIfUntrusted, trusted } from "./untrusted.ts";

const CUT_MS = 3_000; // another process that is alive cuts much sooner; then the lease is looked at again
const CUT_POLL_MS = 25;

/** Fence, revoke, confirm: each step is stored, each may be repeated for ever, and only the target's answer ends it. */
export async function remove(access: Access, kind: KindControl, row: LeaseRow): Promise<void> {
  const plan = readPlan(access, row);
  const event = {
    actor: "glasskey",
    lease: row.id,
    target: row.target,
    ...(row.grant_id === null ? {} : { grant: row.grant_id }),
  };
  const mark = async (column: "fenced_at" | "revoked_at", type: "lease.fenced" | "lease.revoked"): Promise<void> => {
    if (row[column] !== null) return; // said once; doing it again is silent
    await access.store.transaction().execute(async (tx) => {
      await tx
        .updateTable("leases")
        .set({ [column]: sql`clock_timestamp()` })
        .where("id", "=", row.id)
        .execute();
      await append(tx, { type, at: new Date(), ...event });
    });
  };
  // Whoever began to close may have died before it cut anything; the first attempt leaves that to the others.
  if (row.grant_id !== null && row.attempts > 0) await cutWhatIsLeft(access, row.grant_id);
  let confirmation: Confirmation;
  try {
    await kind.driver.fence(plan, AbortSignal.timeout(REMOTE_TIMEOUT_MS));
    await mark("fenced_at", "lease.fenced");
    await kind.driver.revoke(plan, AbortSignal.timeout(REMOTE_TIMEOUT_MS));
    await mark("revoked_at", "lease.revoked");
    if (kind.driver.cutsFirst === true) await untilCut(access, row.id);
    const issued = await lastIssue(access, row);
    const signal = AbortSignal.timeout(REMOTE_TIMEOUT_MS);
    confirmation = await kind.driver.confirm(plan, secretsOf(access, row.id), signal, issued);
    if (confirmation.verdict === "unknown" && confirmation.code !== undefined)
      await alarmIfUntrusted(access, row.target, new GlassError(confirmation.code, confirmation.why));
  } catch (error) {
    confirmation = { verdict: "unknown", why: describe(error) };
    await alarmIfUntrusted(access, row.target, error);
  }
  if (confirmation.verdict !== "dead") {
    const text = confirmation.verdict === "alive" ? `still there: ${confirmation.left.join(", ")}` : confirmation.why;
    await pageIfLate(access, row, text); // with the claim: the next attempt may find the proof, and clears the alarm
    await release(access, row.id, text);
    return;
  }
  const { evidence, from } = confirmation;
  const drift = await compare(access, kind, row);
  const over = await access.store.transaction().execute(async (tx) => {
    const dead = await tx
      .updateTable("leases")
      .set({
        ...{ state: "dead", claimed_by: null, claimed_until: null, dead_at: sql`clock_timestamp()`, last_error: null },
        evidence: JSON.stringify({ from: from.toISOString(), evidence, drift }),
      })
      .where("id", "=", row.id)
      .where("state", "=", "closing")
      .returning("id")
      .executeTakeFirst();
    if (dead === undefined) return [];
    const data = {
      from: from.toISOString(),
      evidence: evidence.map(({ asked, answered }) => ({ asked: short(asked), answered: short(answered) })),
    };
    await append(tx, {
      type: row.grant_id === null ? "lease.orphan_removed" : "lease.confirmed",
      at: new Date(),
      ...event,
      data,
    });
    if (drift.known && drift.added.length + drift.removed.length > 0) {
      await append(tx, {
        ...{ type: "access.drift", at: new Date(), ...event },
        data: {
          added: drift.added.slice(0, 50).map(short),
          removed: drift.removed.slice(0, 50).map(short),
          addedCount: drift.added.length,
          removedCount: drift.removed.length,
        },
      });
    }
    // Nobody looks at a dead lease again. The orphan's also of a grant's lease, which may have been found after its end.
    const keys = [lateAlarm(row.id), orphanAlarm(row.install, row.id)];
    const texts: string[] = [];
    for (const key of keys) texts.push(...(await clearAlarmIn(tx, key, access.notifier)));
    return texts;
  });
  for (const text of over) access.warn(`alarm over: ${text}`);
  await trusted(access, row.target);
  if (row.grant_id !== null) await finishClosing(access, row.grant_id);
}

/** Cuts the sessions of a closing grant that are still on the books, wherever they are; they were told so before, or not. */
async function cutWhatIsLeft(access: Access, grant: string): Promise<void> {
  const left = await access.store
    .selectFrom("grants as g")
    .select(["g.end_cause", "g.end_text"])
    .where("g.id", "=", grant)
    .where((eb) =>
      eb.exists(
        eb
          .selectFrom("sessions as s")
          .select("s.id")
          .whereRef("s.grant_id", "=", "g.id")
          .where("s.closed_at", "is", null),
      ),
    )
    .executeTakeFirst();
  if (left === undefined) return;
  void cutSessions(access, grant, cutReasonOf(left));
}

/** Waits a little for the end of the lease's sessions, wherever they are. @throws GlassError when one goes on */
async function untilCut(access: Access, lease: string): Promise<void> {
  const deadline = performance.now() + CUT_MS;
  for (;;) {
    const open = await access.store
      .selectFrom("sessions")
      .select("id")
      .where("lease_id", "=", lease)
      .where("closed_at", "is", null)
      .executeTakeFirst();
    if (open === undefined) return;
    if (performance.now() > deadline) throw new GlassError("not_proved", `session ${open.id} is not known to be cut`);
    await sleep(CUT_POLL_MS);
  }
}

/**
 * Nothing was issued for the lease after that instant. Sessions begin only while it is live, and each has its row before
 * anything is issued for it; its own probe came before that. A lease that never was live had the probe alone, which is over
 * once somebody else holds the claim: by its fence. Undefined for an orphan: nobody knows who issued what.
 */
async function lastIssue(access: Access, row: LeaseRow): Promise<Date | undefined> {
  if (row.grant_id === null) return undefined;
  const known = await access.store
    .selectFrom("leases as l")
    .innerJoin("grants as g", "g.id", "l.grant_id")
    .select([
      sql<boolean>`g.active_at is not null and not exists
        (select from leases later where later.grant_id = g.id and later.created_at > l.created_at)`.as("was_live"),
      sql<Date | null>`greatest(g.active_at, (select max(s.opened_at) from sessions s where s.lease_id = l.id))`.as(
        "at",
      ),
      "l.fenced_at",
    ])
    .where("l.id", "=", row.id)
    .executeTakeFirst();
  return (known?.was_live === true ? known.at : known?.fenced_at) ?? undefined;
}

async function pageIfLate(access: Access, row: LeaseRow, text: string): Promise<void> {
  const late = await access.store
    .selectFrom("leases")
    .leftJoin("grants", "grants.id", "leases.grant_id")
    .select("leases.id")
    .where("leases.id", "=", row.id)
    .where(
      sql<boolean>`coalesce(grants.closing_at, leases.created_at) + leases.worst_case_revoke_ms * interval '1 millisecond' < clock_timestamp()`,
    )
    .executeTakeFirst();
  if (late === undefined || row.paged_at !== null) return;
  const what = row.grant_id === null ? `orphan lease ${row.id}` : `grant ${row.grant_id}`;
  await raiseAlarm(
    access.store,
    access.warn,
    lateAlarm(row.id),
    `access of ${what} to ${row.target} is not proved gone: ${text}`,
    access.notifier,
  );
  // Remembered after it was raised: a crash in between raises it again, which is silent.
  await access.store.transaction().execute(async (tx) => {
    const first = await tx
      .updateTable("leases")
      .set({ paged_at: sql`clock_timestamp()` })
      .where("id", "=", row.id)
      .where("paged_at", "is", null)
      .returning("id")
      .executeTakeFirst();
    if (first === undefined || row.grant_id === null) return;
    const grant = await tx.selectFrom("grants").selectAll().where("id", "=", row.grant_id).executeTakeFirstOrThrow();
    const said = `It is not proved that the access to ${row.target} is gone. Glasskey keeps trying. The target says: ${short(text)}`;
    await tell(access, tx, grant, { event: "not_proved", text: said });
  });
}

/** Bounded, so that any number of long lines fits an entry of the log; the proof in the store has them whole. */
const short = (line: string): string => line.slice(0, 200).toWellFormed();
