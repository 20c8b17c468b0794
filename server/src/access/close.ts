import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { describe, GlassError } from "../core/errors.ts";
import { isId } from "../core/ids.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Tx } from "../store/database.ts";
import type { GrantState } from "../store/tables.ts";
import type { Access, CutReason } from "./access.ts";
import { finishClosing } from "./confirm.ts";
import type { GUARDS } from "./lifecycle.ts";
import { move, type GrantRow } from "./lifecycle.ts";
import { tell } from "./tell.ts";

export type EndCause = CutReason["code"] | "opening_failed";

/**
 * From approved, opening or active to closing: always allowed. Every lease of the grant becomes due for removal in the
 * same transaction. The caller cuts the sessions and kicks the leases after the commit.
 */
export async function beginClosing(
  access: Access,
  tx: Tx,
  end: { grant: string; actor: string; person?: string; cause: EndCause; text: string; guard?: keyof typeof GUARDS },
): Promise<GrantRow | undefined> {
  const moved = await move(tx, {
    ...{ grant: end.grant, to: "closing", actor: end.actor, data: { cause: end.cause } },
    ...(end.guard === undefined ? {} : { guard: end.guard }),
    set: {
      closing_at: sql`clock_timestamp()`,
      end_cause: end.cause,
      end_text: end.text.slice(0, 500),
      ended_by: end.person ?? null,
    },
  });
  if (moved === undefined) return undefined;
  await tx
    .updateTable("leases")
    .set({ state: "closing", attempts: 0, next_at: sql`clock_timestamp()` })
    .where("grant_id", "=", end.grant)
    .where("state", "in", ["planned", "live"])
    .execute();
  // A lease that is being minted right now is taken over when its mint has answered, or when its claim has run out.
  await tx
    .updateTable("leases")
    .set({ next_at: sql`clock_timestamp()` })
    .where("grant_id", "=", end.grant)
    .where("state", "in", ["minting", "closing"])
    .execute();
  return moved;
}

/**
 * Cuts the sessions of a grant that is closing. Never rejects, at whatever moment the data plane fails: its sessions are
 * gone with it, and the proof asks the target. @returns how many this process cut.
 */
export async function cutSessions(access: Access, grant: string, reason: CutReason): Promise<number> {
  try {
    return await access.cutter().cut({ grant }, reason);
  } catch (error) {
    access.warn(`cutting the sessions of ${grant}: ${describe(error)}`);
    return 0;
  }
}

/** After the commit of {@link beginClosing}: sessions go at once, then the credential; resolves when this attempt is over. Never rejects. */
export async function carryOut(access: Access, grant: string, reason: CutReason): Promise<number> {
  const cut = cutSessions(access, grant, reason);
  try {
    const leases = await access.store
      .selectFrom("leases")
      .select("id")
      .where("grant_id", "=", grant)
      .where("state", "<>", "dead")
      .execute();
    const [count] = await Promise.all([cut, ...leases.map((lease) => access.kick(lease.id))]);
    await finishClosing(access, grant);
    return count;
  } catch (error) {
    access.warn(`closing ${grant} goes on in the background: ${describe(error)}`);
    return cut;
  }
}

/**
 * Ends a grant in whatever state it is: a pending one is withdrawn, an open one is closed. Ending what has ended is no
 * error. Resolves after the first attempt at the proof; look at the state for whether it succeeded.
 */
export async function endGrant(access: Access, person: string, grant: GrantRow, text: string): Promise<void> {
  const actor = await pseudonymOf(access.store, person);
  const done = await access.store.transaction().execute(async (tx) => {
    if (grant.state === "pending") {
      const set = { end_cause: "withdrawn", end_text: text, ended_by: person, closed_at: sql<Date>`clock_timestamp()` };
      const withdrawn = await move(tx, { grant: grant.id, to: "withdrawn", actor, set });
      if (withdrawn !== undefined) {
        const told = `${withdrawn.requester} took the request back; nothing was opened.`;
        await tell(access, tx, withdrawn, { event: "withdrawn", text: told });
        return true;
      }
    }
    await beginClosing(access, tx, { grant: grant.id, actor, person, cause: "ended", text });
    return false;
  });
  if (!done) await carryOut(access, grant.id, { code: "ended", text });
}

const NOTHING_LEFT: readonly GrantState[] = ["denied", "withdrawn", "timed_out", "failed", "closed", "reviewed"];

/**
 * The security officer's kill: any grant in any state, or one session. @returns the grant, and how many sessions this
 * process cut; other processes are told, and the proof asks the target itself.
 */
export async function kill(
  access: Access,
  person: string,
  id: string,
  why: string,
): Promise<{ grant: string; cut: number }> {
  const actor = await pseudonymOf(access.store, person);
  const text = why === "" ? "killed by a security officer" : `killed by a security officer: ${why}`;
  if (isId("session", id)) return killSession(access, person, actor, id, text);
  const grant = await access.store.selectFrom("grants").selectAll().where("id", "=", id).executeTakeFirst();
  if (grant === undefined) throw new GlassError("not_found", `there is no grant ${id.slice(0, 40)}`);
  if (NOTHING_LEFT.includes(grant.state)) return { grant: id, cut: 0 };
  await access.store.transaction().execute(async (tx) => {
    const set = { end_cause: "killed", end_text: text, ended_by: person, closed_at: sql<Date>`clock_timestamp()` };
    const pending = await move(tx, {
      grant: id,
      to: "denied",
      from: ["pending"],
      actor,
      set,
      data: { cause: "killed" },
    });
    if (pending !== undefined) await tell(access, tx, pending, { event: "denied", text: `The request was ${text}.` });
    else await beginClosing(access, tx, { grant: id, actor, person, cause: "killed", text });
  });
  return { grant: id, cut: await carryOut(access, id, { code: "killed", text }) };
}

async function killSession(
  access: Access,
  person: string,
  actor: string,
  id: string,
  text: string,
): Promise<{ grant: string; cut: number }> {
  const session = await access.store.transaction().execute(async (tx) => {
    const row = await tx
      .updateTable("sessions")
      .set({ kill_asked_at: sql`clock_timestamp()`, kill_asked_by: person })
      .where("id", "=", id)
      .returning(["grant_id", "closed_at"])
      .executeTakeFirst();
    if (row === undefined) throw new GlassError("not_found", `there is no session ${id}`);
    if (row.closed_at === null) {
      await append(tx, { type: "session.killed", at: new Date(), actor, grant: row.grant_id, session: id });
    }
    return row;
  });
  const cut = await access.cutter().cut({ session: id }, { code: "killed", text });
  return { grant: session.grant_id, cut };
}
