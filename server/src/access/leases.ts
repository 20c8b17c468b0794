import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { sleep } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { Store, Tx } from "../store/database.ts";
import type { Access, KindControl } from "./access.ts";
import { beginClosing, cutSessions } from "./close.ts";
import { closeIfDriftedMeanwhile } from "./drift.ts";
import { fingerprint, sealLines } from "./fingerprint.ts";
import { readPlan, release, REMOTE_TIMEOUT_MS, sealPlan, secretsOf, unclaim, type LeaseRow } from "./lease-row.ts";
import { planLease } from "./open.ts";
import { move } from "./lifecycle.ts";
import { remove } from "./removal.ts";
import { openReview } from "./review.ts";
import { tell } from "./tell.ts";
import { alarmIfUntrusted, trusted } from "./untrusted.ts";

/** As it was taken; `over` says whether its end had come, by the store's clock. */
type ClaimedRow = LeaseRow & { readonly over: boolean };

const CLAIM_MS = 90_000; // longer than all steps of one attempt: three remote calls, a fingerprint, and the wait for a cut
const AT_ONCE_PER_TARGET = 4; // gentle on a production system in trouble
const AT_ONCE = 32;
const MAX_LEASES_PER_GRANT = 3; // a crash in mid-mint starts a new lease; a crash loop does not start them for ever

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
