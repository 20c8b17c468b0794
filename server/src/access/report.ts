import { sql } from "kysely";
import type { Access } from "./access.ts";

export interface Report {
  readonly from: Date;
  readonly to: Date;
  /** Every declared reason code, also without a use, and codes of uses that are not declared any more. */
  readonly reasons: readonly { code: string; means: string | undefined; uses: number; requests: number }[];
  /** Every playbook in force, also without a use, and those of uses that are gone. */
  readonly playbooks: readonly {
    playbook: string;
    uses: number;
    requests: number;
    notJustified: number;
    unsigned: number;
    overdue: number;
  }[];
  readonly requests: {
    total: number;
    denied: number;
    withdrawn: number;
    timedOut: number;
    failed: number;
    openedAtOnce: number;
    openedUnanswered: number;
  };
  readonly approvals: { given: number; denied: number };
  /** Half of the grants that a human approved were approved faster; undefined when there was none. */
  readonly medianApproveMs: number | undefined;
  readonly overdueReviews: readonly { grant: string; playbook: string; dueAt: Date }[];
}

const OVERDUE_LIMIT = 200;

/** Counts what was asked for since then; a use is a grant that became active. Numbers and ids only: no person, no free text. */
export async function reportOf(access: Access, sinceMs: number): Promise<Report> {
  const policy = access.policy();
  return access.store
    .transaction()
    .setIsolationLevel("repeatable read") // all numbers of one report are of one moment
    .setAccessMode("read only")
    .execute(async (tx) => {
      const { from, to } = await tx
        .selectNoFrom([
          sql<Date>`transaction_timestamp() - ${sinceMs} * interval '1 millisecond'`.as("from"),
          sql<Date>`transaction_timestamp()`.as("to"),
        ])
        .executeTakeFirstOrThrow();
      const { rows: groups } = await sql<{ playbook: string; reason: string; requests: number; uses: number }>`
        select playbook, reason, count(*)::int as requests, count(active_at)::int as uses
        from grants where created_at >= ${from} group by playbook, reason`.execute(tx);
      const { rows: states } = await sql<Record<keyof Report["requests"], number> & { median: number | null }>`
        select count(*)::int as total,
          count(*) filter (where state = 'denied')::int as denied,
          count(*) filter (where state = 'withdrawn')::int as withdrawn,
          count(*) filter (where state = 'timed_out')::int as "timedOut",
          count(*) filter (where state = 'failed' or end_cause = 'opening_failed')::int as failed,
          count(*) filter (where need = 0 and active_at is not null)::int as "openedAtOnce",
          count(*) filter (where opened_unanswered)::int as "openedUnanswered",
          percentile_cont(0.5) within group (order by extract(epoch from approved_at - created_at) * 1000)
            filter (where need > 0 and approved_at is not null and not opened_unanswered) as median
        from grants where created_at >= ${from}`.execute(tx);
      const { rows: votes } = await sql<{ given: number; denied: number }>`
        select count(*) filter (where verdict = 'approve')::int as given, count(*) filter (where verdict = 'deny')::int as denied
        from approvals where at >= ${from}`.execute(tx);
      const { rows: reviews } = await sql<{ playbook: string; wrong: number; unsigned: number; overdue: number }>`
        select playbook, count(*) filter (where verdict = 'not_justified' and opened_at >= ${from})::int as wrong,
          count(*) filter (where signed_at is null)::int as unsigned,
          count(*) filter (where signed_at is null and due_at <= ${to})::int as overdue
        from reviews where signed_at is null or opened_at >= ${from} group by playbook`.execute(tx);
      const late = await tx
        .selectFrom("reviews")
        .select(["grant_id", "playbook", "due_at"])
        .where("signed_at", "is", null)
        .where("due_at", "<=", to)
        .orderBy("due_at")
        .limit(OVERDUE_LIMIT)
        .execute();

      const sum = (key: "playbook" | "reason", value: string, of: "uses" | "requests"): number =>
        groups.reduce((total, group) => (group[key] === value ? total + group[of] : total), 0);
      const codes = new Set([...policy.reasons.keys(), ...groups.map(({ reason }) => reason)]);
      const playbooks = new Set([
        ...policy.playbooks.map(({ name }) => name),
        ...[...groups, ...reviews].map(({ playbook }) => playbook),
      ]);
      const [all] = states;
      const { median, ...requests } = all ?? { ...NO_REQUESTS, median: null };
      return {
        ...{ from, to, requests, approvals: votes[0] ?? { given: 0, denied: 0 } },
        reasons: [...codes].toSorted().map((code) => ({
          ...{ code, means: policy.reasons.get(code) },
          ...{ uses: sum("reason", code, "uses"), requests: sum("reason", code, "requests") },
        })),
        playbooks: [...playbooks].toSorted().map((playbook) => {
          const review = reviews.find((row) => row.playbook === playbook);
          return {
            ...{ playbook, uses: sum("playbook", playbook, "uses"), requests: sum("playbook", playbook, "requests") },
            ...{ notJustified: review?.wrong ?? 0, unsigned: review?.unsigned ?? 0, overdue: review?.overdue ?? 0 },
          };
        }),
        medianApproveMs: median === null ? undefined : Math.round(median),
        overdueReviews: late.map(({ grant_id, playbook, due_at }) => ({ grant: grant_id, playbook, dueAt: due_at })),
      };
    });
}

const NO_REQUESTS: Report["requests"] = {
  ...{ total: 0, denied: 0, withdrawn: 0, timedOut: 0, failed: 0 },
  ...{ openedAtOnce: 0, openedUnanswered: 0 },
};
