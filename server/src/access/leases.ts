import { sql, type Selectable } from "kysely";
import { append } from "../audit/append.ts";
import { sleep } from "../core/clock.ts";
import { deriveSecret } from "../core/derive.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { Store, Tx } from "../store/database.ts";
import type { LeasesTable } from "../store/tables.ts";
import type { Confirmation, LeasePlan, LeaseSecrets } from "../targets/target.ts";
import type { Access, KindControl } from "./access.ts";
import { clearAlarmIn, raiseAlarm } from "./alarms.ts";
import { beginClosing, cutSessions } from "./close.ts";
import { cutReasonOf } from "./cut-bus.ts";
import { finishClosing } from "./confirm.ts";
import { closeIfDriftedMeanwhile } from "./drift.ts";
import { planLease } from "./open.ts";
import { move } from "./lifecycle.ts";
import { openReview } from "./review.ts";
import { tell } from "./tell.ts";
import { alarmIfUntrusted, trusted } from "./untrusted.ts";

export type LeaseRow = Selectable<LeasesTable>;
/** As it was taken; `over` says whether its end had come, by the store's clock. */
type ClaimedRow = LeaseRow & { readonly over: boolean };

const REMOTE_TIMEOUT_MS = 20_000; // one step on a target; slower is "not known"
const CLAIM_MS = 90_000; // longer than all steps of one attempt: three remote calls, a fingerprint, and the wait for a cut
const CUT_MS = 3_000; // another process that is alive cuts much sooner; then the lease is looked at again
const CUT_POLL_MS = 25;
const AT_ONCE_PER_TARGET = 4; // gentle on a production system in trouble
const AT_ONCE = 32;
const MAX_LEASES_PER_GRANT = 3; // a crash in mid-mint starts a new lease; a crash loop does not start them for ever
const FINGERPRINT_TIMEOUT_MS = 5_000;
/** Seconds, minutes, at most hourly, for ever. */
const BACKOFF_MS = [500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 900_000, 3_600_000] as const;

/**
 * The loop that opens, expires and removes credentials. The lease table is its schedule; any process may take any due
 * lease, one at a time (`FOR UPDATE SKIP LOCKED`, then a claim that a dead process loses).
 */
export interface LeaseWorker {
  /** Works on this lease now, waiting for a claim that is in flight in this process. Never rejects. */
  kick(lease: string): Promise<void>;
  /** Looks for due leases now. */
  wake(): void;
  stop(): Promise<void>;
}

export function startLeaseWorker(access: Access, { pollMs = 1_000 } = {}): LeaseWorker {
  const stopped = new AbortController();
  const inFlight = new Map<string, Promise<void>>();
  const perTarget = new Map<string, number>();
  let wakeUp = (): void => {};

  const work = async (row: ClaimedRow): Promise<void> => {
    perTarget.set(row.target, (perTarget.get(row.target) ?? 0) + 1);
    try {
      await step(access, row);
    } catch (error) {
      access.warn(`lease ${row.id} on ${row.target}: ${describe(error)}`);
      await release(access, row.id, describe(error)).catch(() => {}); // the claim runs out by itself
    } finally {
      perTarget.set(row.target, (perTarget.get(row.target) ?? 1) - 1);
    }
  };
  const track = (row: ClaimedRow): Promise<void> => {
    const promise = work(row).finally(() => inFlight.delete(row.id));
    inFlight.set(row.id, promise);
    return promise;
  };
  const loop = async (): Promise<void> => {
    while (!stopped.signal.aborted) {
      const woken = new Promise<void>((resolve) => (wakeUp = resolve));
      const busy = [...perTarget].filter(([, count]) => count >= AT_ONCE_PER_TARGET).map(([target]) => target);
      try {
        const room = AT_ONCE - inFlight.size;
        const rows =
          room > 0 ? await claim(access, { limit: Math.min(room, AT_ONCE_PER_TARGET), exceptTargets: busy }) : [];
        for (const row of rows) void track(row).then(() => wakeUp());
        if (rows.length > 0) continue;
      } catch (error) {
        access.warn(`leases wait for the store: ${describe(error)}`);
      }
      await Promise.race([woken, sleep(await untilNext(access.store, pollMs, busy), stopped.signal).catch(() => {})]);
    }
  };
  const running = loop();
  return {
    async kick(lease) {
      for (let round = 0; round < 50; round += 1) {
        await inFlight.get(lease);
        try {
          const [row] = await claim(access, { limit: 1, id: lease });
          if (row !== undefined) {
            await track(row);
            // A lease that was asked to close while it was being minted is removed now; anything else is done.
            const now = await access.store
              .selectFrom("leases")
              .select("state")
              .where("id", "=", lease)
              .executeTakeFirst();
            if (row.state === "closing" || now?.state !== "closing") return;
            continue;
          }
        } catch (error) {
          access.warn(`lease ${lease} waits for the store: ${describe(error)}`);
        }
        if (!inFlight.has(lease)) return;
      }
    },
    wake: () => wakeUp(),
    async stop() {
      stopped.abort();
      wakeUp();
      await running;
      await Promise.all(inFlight.values());
    },
  };
}

/** How long nothing is due that could be taken: what waits for a busy target is looked at when that has room. */
async function untilNext(store: Store, pollMs: number, busy: readonly string[]): Promise<number> {
  try {
    let next = store
      .selectFrom("leases")
      .select(sql<number | null>`extract(epoch from min(next_at) - clock_timestamp()) * 1000`.as("ms"))
      .where("state", "<>", "dead")
      .where((eb) => eb.or([eb("claimed_until", "is", null), eb("claimed_until", "<", sql<Date>`clock_timestamp()`)]));
    if (busy.length > 0) next = next.where("target", "not in", busy);
    const row = await next.executeTakeFirst();
    const ms = row?.ms ?? null;
    return ms === null ? pollMs : Math.min(pollMs, Math.max(5, Math.ceil(ms)));
  } catch {
    return pollMs;
  }
}

async function claim(
  access: Access,
  { limit, id, exceptTargets = [] }: { limit: number; id?: string; exceptTargets?: readonly string[] },
): Promise<readonly ClaimedRow[]> {
  return access.store
    .updateTable("leases")
    .set({ claimed_by: access.node, claimed_until: sql`clock_timestamp() + ${CLAIM_MS} * interval '1 millisecond'` })
    .where("id", "in", (eb) => {
      let due = eb
        .selectFrom("leases")
        .select("id")
        .where("state", "<>", "dead")
        .where((w) => w.or([w("claimed_until", "is", null), w("claimed_until", "<", sql<Date>`clock_timestamp()`)]));
      if (id === undefined) due = due.where("next_at", "<=", sql<Date>`clock_timestamp()`);
      else due = due.where("id", "=", id);
      if (exceptTargets.length > 0) due = due.where("target", "not in", exceptTargets);
      return due.orderBy("next_at").limit(limit).forUpdate().skipLocked();
    })
    .returningAll()
    .returning(sql<boolean>`ends_at <= clock_timestamp()`.as("over"))
    .execute();
}

async function release(access: Access, lease: string, error: string): Promise<void> {
  // By the attempts that the row has then: whoever asks for the proof at this moment begins to count anew.
  const waitMs = sql`(${[...BACKOFF_MS]}::bigint[])[least(attempts, ${BACKOFF_MS.length - 1}::integer) + 1]`;
  const due = sql`clock_timestamp() + ${waitMs} * interval '1 millisecond'`;
  await access.store
    .updateTable("leases")
    .set((eb) => ({
      claimed_by: null,
      claimed_until: null,
      attempts: eb("attempts", "+", 1),
      last_error: error,
      // What lives is looked at again at its end, however long the pause.
      next_at: sql`case state when 'live' then least(ends_at, ${due}) else ${due} end`,
    }))
    .where("id", "=", lease)
    .where("state", "<>", "dead")
    .execute();
}

/** One attempt at what the lease's state asks for. */
async function step(access: Access, row: ClaimedRow): Promise<void> {
  const kind = access.kinds.get(row.kind);
  if (kind === undefined) throw new GlassError("config_invalid", `no target kind ${row.kind} in this Glasskey`);
  switch (row.state) {
    case "planned":
      return mint(access, kind, row);
    case "minting":
      return abandonMint(access, row);
    case "live":
      return row.extend_due && !row.over ? prolong(access, kind, row) : expire(access, row);
    case "closing":
      return remove(access, kind, row);
    case "dead":
      return;
  }
}

/** Key of the alarm about a credential that is not proved gone in time. */
const lateAlarm = (lease: string): string => `lease ${lease}`;

/** Key of the alarm about a credential that no grant accounts for. */
export function orphanAlarm(install: string, lease: string): string {
  return `orphan gk_${install}_${lease.slice(3)}`;
}

export function readPlan(access: Access, row: Pick<LeaseRow, "id" | "plan">): LeasePlan {
  return JSON.parse(
    access.keyring.open({ table: "leases", row: row.id, column: "plan" }, row.plan).toString("utf8"),
  ) as JsonObject;
}

function sealPlan(access: Access, lease: string, plan: LeasePlan): Buffer {
  return access.keyring.seal({ table: "leases", row: lease, column: "plan" }, Buffer.from(JSON.stringify(plan)));
}

export function leaseKey(access: Pick<Access, "keyring">, lease: string): Buffer {
  return access.keyring.derive("lease", lease);
}

export function secretsOf(access: Pick<Access, "keyring">, lease: string): LeaseSecrets {
  const key = leaseKey(access, lease);
  return { derive: (purpose) => deriveSecret(key, purpose) };
}

async function mint(access: Access, kind: KindControl, row: LeaseRow): Promise<void> {
  const shut = access.mayOpen();
  if (shut !== undefined) return failOpening(access, row, shut); // planned before it was found
  const plan = readPlan(access, row);
  const event = {
    at: new Date(),
    actor: "glasskey",
    lease: row.id,
    target: row.target,
    ...(row.grant_id === null ? {} : { grant: row.grant_id }),
  };
  const mine = await access.store.transaction().execute(async (tx) => {
    const taken = await tx
      .updateTable("leases")
      .set({ state: "minting" })
      .where("id", "=", row.id)
      .where("state", "=", "planned")
      .where("claimed_by", "=", access.node)
      .returning("id")
      .executeTakeFirst();
    if (taken !== undefined) await append(tx, { type: "lease.minting", ...event });
    return taken !== undefined;
  });
  if (!mine) return unclaim(access.store, row.id);

  const secrets = secretsOf(access, row.id);
  const before = fingerprint(access, kind, row).catch((error: unknown) => describe(error));
  try {
    await kind.driver.mint(plan, secrets, AbortSignal.timeout(REMOTE_TIMEOUT_MS));
    await kind.driver.probe(plan, secrets, AbortSignal.timeout(REMOTE_TIMEOUT_MS));
  } catch (error) {
    await failOpening(access, row, error);
    return;
  }
  const found = await before;
  await trusted(access, row.target);
  await access.store.transaction().execute(async (tx) => {
    // The grant's row first, as whoever ends it takes it: in the other order the two would wait for each other.
    if (row.grant_id !== null) await closeIfDriftedMeanwhile(access, tx, row.grant_id);
    const live = await tx
      .updateTable("leases")
      .set({
        ...{
          state: "live",
          claimed_by: null,
          claimed_until: null,
          next_at: row.ends_at,
          attempts: 0,
          last_error: null,
        },
        before: typeof found === "string" ? null : sealLines(access, row.id, found),
      })
      .where("id", "=", row.id)
      .where("state", "=", "minting")
      .returning("id")
      .executeTakeFirst();
    if (live !== undefined) await append(tx, { type: "lease.minted", ...event, at: new Date() });
    const active =
      live === undefined || row.grant_id === null
        ? undefined
        : await move(tx, {
            grant: row.grant_id,
            to: "active",
            guard: "beforeEnd",
            actor: "glasskey",
            set: { active_at: sql`clock_timestamp()` },
            data: { endsAt: row.ends_at.toISOString() },
          });
    if (active === undefined) {
      await closeLease(tx, row.id); // asked to close, or over, while it was being minted
      return;
    }
    await openReview(tx, active);
    if (active.opened_unanswered) return; // told already, and louder
    const until = row.ends_at;
    const text = `${active.requester} is in ${row.target} until ${until.toISOString()}. Everything is recorded.`;
    await tell(access, tx, active, { event: "opened", text, until });
  });
}

/** A process died between the remote call and its answer: whatever is there goes, and a new lease starts if time is left. */
async function abandonMint(access: Access, row: LeaseRow): Promise<void> {
  const next = await access.store.transaction().execute(async (tx) => {
    if (row.grant_id === null) {
      await closeLease(tx, row.id);
      return undefined;
    }
    // The grant's row first, as whoever ends it takes it.
    const grant = await tx
      .selectFrom("grants")
      .selectAll()
      .where("id", "=", row.grant_id)
      .forUpdate()
      .executeTakeFirstOrThrow();
    await closeLease(tx, row.id);
    const { count } = await tx
      .selectFrom("leases")
      .select((eb) => eb.fn.countAll<number>().as("count"))
      .where("grant_id", "=", row.grant_id)
      .executeTakeFirstOrThrow();
    if (grant.state === "opening" && count < MAX_LEASES_PER_GRANT) return planLease(access, tx, grant);
    if (grant.state === "opening") {
      await beginClosing(access, tx, {
        grant: grant.id,
        actor: "glasskey",
        cause: "opening_failed",
        text: "Glasskey restarted too often while opening",
      });
    }
    return undefined;
  });
  if (next !== undefined) void access.kick(next); // the abandoned one is due too; the loop takes it
}

async function failOpening(access: Access, row: LeaseRow, error: unknown): Promise<void> {
  const text = describe(error);
  await alarmIfUntrusted(access, row.target, error);
  await access.store.transaction().execute(async (tx) => {
    await append(tx, {
      ...{
        type: "lease.failed",
        at: new Date(),
        actor: "glasskey",
        lease: row.id,
        target: row.target,
        data: { code: error instanceof GlassError ? error.code : "internal" },
      },
      ...(row.grant_id === null ? {} : { grant: row.grant_id }),
    });
    if (row.grant_id !== null) {
      await beginClosing(access, tx, { grant: row.grant_id, actor: "glasskey", cause: "opening_failed", text });
    }
    await closeLease(tx, row.id, text);
  });
}

/** Moves the target's own expiry to where the grant's end is now. Until it answers, new logins stop at the old end. */
async function prolong(access: Access, kind: KindControl, row: LeaseRow): Promise<void> {
  const plan = await kind.driver.extend(readPlan(access, row), row.ends_at, AbortSignal.timeout(REMOTE_TIMEOUT_MS));
  // Extended once more meanwhile: that is still to be done. The row's time came here without its microseconds.
  const later = sql<boolean>`ends_at >= ${row.ends_at}::timestamptz + interval '1 millisecond'`;
  // Asked to close meanwhile: it stays due for removal, with the plan that says what the target has now.
  await access.store
    .updateTable("leases")
    .set({
      ...{ plan: sealPlan(access, row.id, plan), attempts: 0, last_error: null, claimed_by: null, claimed_until: null },
      extend_due: later,
      next_at: sql`case when state <> 'live' then next_at when ${later} then clock_timestamp() else ends_at end`,
    })
    .where("id", "=", row.id)
    .where("state", "in", ["live", "closing"])
    .where("claimed_by", "=", access.node)
    .execute();
}

async function expire(access: Access, row: LeaseRow): Promise<void> {
  if (row.grant_id === null) return unclaim(access.store, row.id);
  const over = await access.store.transaction().execute(async (tx) => {
    const moved = await beginClosing(access, tx, {
      ...{ grant: row.grant_id ?? "", actor: "glasskey", cause: "expired", text: "the grant's time is over" },
      guard: "afterEnd",
    });
    // Given back with the end, which a crash must not delay; now the loop removes it at once. Ended meanwhile by somebody
    // else: the same. Extended meanwhile: the row holds the later end, which the target may not know yet.
    await tx
      .updateTable("leases")
      .set({
        ...{ claimed_by: null, claimed_until: null },
        next_at: sql`case when state <> 'live' then next_at
          when extend_due and ends_at > clock_timestamp() then clock_timestamp() else ends_at end`,
      })
      .where("id", "=", row.id)
      .where("state", "in", ["live", "closing"])
      .where("claimed_by", "=", access.node)
      .execute();
    return moved;
  });
  if (over !== undefined) void cutSessions(access, row.grant_id, { code: "expired", text: "the grant's time is over" });
}

/** Marks a lease for removal, due now. The claim of whoever works on it is given back. */
async function closeLease(tx: Tx, lease: string, error?: string): Promise<void> {
  await tx
    .updateTable("leases")
    .set({
      ...{ state: "closing", claimed_by: null, claimed_until: null, attempts: 0, next_at: sql`clock_timestamp()` },
      ...(error === undefined ? {} : { last_error: error }),
    })
    .where("id", "=", lease)
    .where("state", "in", ["planned", "minting", "live", "closing"])
    .execute();
}

async function unclaim(store: Store, lease: string): Promise<void> {
  await store.updateTable("leases").set({ claimed_by: null, claimed_until: null }).where("id", "=", lease).execute();
}

/** Fence, revoke, confirm: each step is stored, each may be repeated for ever, and only the target's answer ends it. */
async function remove(access: Access, kind: KindControl, row: LeaseRow): Promise<void> {
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

export interface Drift {
  known: boolean;
  added: readonly string[];
  removed: readonly string[];
}

async function compare(access: Access, kind: KindControl, row: LeaseRow): Promise<Drift> {
  if (row.before === null) return { known: false, added: [], removed: [] };
  try {
    const before = new Set(openLines(access, row.id, row.before));
    const after = new Set(await fingerprint(access, kind, row));
    return { known: true, added: [...after.difference(before)], removed: [...before.difference(after)] };
  } catch {
    return { known: false, added: [], removed: [] };
  }
}

async function fingerprint(access: Access, kind: KindControl, row: LeaseRow): Promise<readonly string[]> {
  const plan = readPlan(access, row);
  const { lines } = await kind.driver.fingerprint(plan, row.install, AbortSignal.timeout(FINGERPRINT_TIMEOUT_MS));
  return lines;
}

function sealLines(access: Access, lease: string, lines: readonly string[]): Buffer {
  return access.keyring.seal({ table: "leases", row: lease, column: "before" }, Buffer.from(lines.join("\n")));
}

function openLines(access: Access, lease: string, sealed: Buffer): readonly string[] {
  return access.keyring.open({ table: "leases", row: lease, column: "before" }, sealed).toString("utf8").split("\n");
}
