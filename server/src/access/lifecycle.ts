import { sql, type Selectable, type UpdateObject } from "kysely";
import type { LogEvent } from "../audit/append.ts";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import type { Tx } from "../store/database.ts";
import type { Database, GrantState, GrantsTable } from "../store/tables.ts";

export type GrantRow = Selectable<GrantsTable>;

/** Every legal transition of a grant's life, once. A state without successors is terminal: its row never changes again. */
const TRANSITIONS: Readonly<Record<GrantState, readonly GrantState[]>> = {
  pending: ["approved", "denied", "withdrawn", "timed_out"],
  approved: ["opening", "closing", "failed"],
  opening: ["active", "closing"],
  active: ["closing"],
  closing: ["closed"],
  closed: ["reviewed"],
  reviewed: [],
  denied: [],
  withdrawn: [],
  timed_out: [],
  failed: [],
};

/** States in which a credential may exist on the target, or is on its way. */
export const OPEN_STATES = ["approved", "opening", "active", "closing"] as const satisfies readonly GrantState[];

const EVENT_OF = {
  approved: "grant.approved",
  opening: "grant.opening",
  active: "grant.active",
  closing: "grant.closing",
  closed: "grant.closed",
  reviewed: "grant.reviewed",
  denied: "grant.denied",
  withdrawn: "grant.withdrawn",
  timed_out: "grant.timed_out",
  failed: "grant.failed",
} as const satisfies Record<Exclude<GrantState, "pending">, LogEvent["type"]>;

/** What must hold in the database at the moment of the change. Evaluated by PostgreSQL's clock, inside the update. */
export const GUARDS = {
  beforeDeadline: sql<boolean>`decide_by > clock_timestamp()`,
  afterDeadline: sql<boolean>`decide_by <= clock_timestamp()`,
  // Somebody was called, as a page channel confirmed, and nobody said no.
  unanswered: sql<boolean>`decide_by > clock_timestamp()
    and exists (select from notices where notices.grant_id = grants.id and notices.event = 'approval_wanted'
      and notices.page and notices.delivered_at is not null)
    and not exists (select from approvals where approvals.grant_id = grants.id and approvals.verdict = 'deny')`,
  beforeEnd: sql<boolean>`ends_at > clock_timestamp()`,
  afterEnd: sql<boolean>`ends_at <= clock_timestamp()`,
  idleTooLong: sql<boolean>`idle_ms is not null
    and greatest(active_at, last_busy_at) + idle_ms * interval '1 millisecond' <= clock_timestamp()`,
} as const;

export interface Move {
  grant: string;
  to: Exclude<GrantState, "pending">;
  /** Narrower than the table allows, where the caller means only some of the states. */
  from?: readonly GrantState[];
  guard?: keyof typeof GUARDS;
  set?: UpdateObject<Database, "grants">;
  /** Pseudonymous id of the person, or "glasskey". */
  actor: string;
  data?: LogEvent["data"];
}

/**
 * The only place where a grant's state changes: one compare-and-set with its guard, and its log entry in the same
 * transaction. @returns the changed row, or undefined when the grant was no longer in a state that allows the change.
 */
export async function move(tx: Tx, { grant, to, from, guard, set, actor, data }: Move): Promise<GrantRow | undefined> {
  const legal = (Object.keys(TRANSITIONS) as GrantState[]).filter((state) => TRANSITIONS[state].includes(to));
  const allowed = from === undefined ? legal : from.filter((state) => legal.includes(state));
  if (allowed.length === 0) throw new GlassError("internal", `no legal transition to ${to} from ${String(from)}`);
  let update = tx
    .updateTable("grants")
    .set({ ...set, state: to })
    .where("id", "=", grant)
    .where("state", "in", allowed);
  if (guard !== undefined) update = update.where(GUARDS[guard]);
  const row = await update.returningAll().executeTakeFirst();
  if (row !== undefined) {
    await append(tx, {
      ...{ type: EVENT_OF[to], at: new Date(), actor, grant, target: row.target, playbook: row.playbook },
      ...(data === undefined ? {} : { data }),
    });
  }
  return row;
}
