import type { GrantView, ObservationView, ProofView, ReviewView, SessionView } from "@glasskey/contract";
import type { Selectable } from "kysely";
import type { Access } from "../access/access.ts";
import { observationsOf } from "../access/facts.ts";
import type { GrantRow } from "../access/lifecycle.ts";
import { noteOf, type ReviewRow } from "../access/review.ts";
import { pinned } from "../access/pins.ts";
import { whyOf } from "../access/tell.ts";
import { waitingFor } from "../access/waiting.ts";
import { describe } from "../core/errors.ts";
import type { SessionsTable } from "../store/tables.ts";
import { scopeWords } from "./scope-words.ts";
import type { Api } from "./services.ts";

/** In place of sealed words that do not open. */
export const UNREADABLE = "(these words do not open: they were changed in the store, or their key is lost)";

const iso = (date: Date | null): string | null => date?.toISOString() ?? null;

export async function grantViewOf(
  { access, endpoint }: Pick<Api, "access" | "endpoint">,
  row: GrantRow,
): Promise<GrantView> {
  const gateway = row.state === "active" ? endpoint(row.kind) : undefined;
  const [approvals, lease, review, waiting, mayDo] = await Promise.all([
    access.store
      .selectFrom("approvals")
      .select(["person", "verdict", "at"])
      .where("grant_id", "=", row.id)
      .orderBy("at")
      .execute(),
    access.store
      .selectFrom("leases")
      .select(["last_error", "attempts"])
      .where("grant_id", "=", row.id)
      .orderBy("created_at", "desc")
      .executeTakeFirst(),
    access.store.selectFrom("reviews").selectAll().where("grant_id", "=", row.id).executeTakeFirst(),
    waitingFor(access, row),
    pinned(access.store, row.playbook_hash).then(
      ({ playbook }) => scopeWords(playbook.scope),
      () => ["(not known: the playbook that was decided upon is not in the store)"],
    ),
  ]);
  return {
    ...{
      grant: row.id,
      state: row.state,
      playbook: row.playbook,
      playbookHash: row.playbook_hash,
      target: row.target,
      kind: row.kind,
      mayDo: [...mayDo],
    },
    ...{
      requester: row.requester,
      reason: row.reason,
      why: whyOf(access, row) ?? UNREADABLE,
      incident: row.incident,
      forMs: row.duration_ms,
    },
    ...{
      bundle: row.bundle,
      evidence: observationsOf(row).map((observation): ObservationView => ({ ...observation })),
    },
    ...{ need: waiting?.need ?? row.need, missing: waiting?.missing ?? 0 },
    quorum: [...(waiting?.quorum ?? (Array.isArray(row.quorum) ? row.quorum.map(String) : []))],
    ...{ sidesMissing: [...(waiting?.sidesMissing ?? [])], paged: waiting?.paged ?? false },
    unansweredAt: iso(waiting?.unansweredAt ?? null),
    ...{
      openedUnanswered: row.opened_unanswered,
      extensionWanted: row.extension_round !== null && row.state === "active",
    },
    approvals: approvals.map(({ person, verdict, at }) => ({ person, verdict, at: at.toISOString() })),
    ...{
      createdAt: row.created_at.toISOString(),
      decideBy: row.decide_by.toISOString(),
      approvedAt: iso(row.approved_at),
    },
    ...{ endsAt: iso(row.ends_at), activeAt: iso(row.active_at), closedAt: iso(row.closed_at) },
    ...{ endCause: row.end_cause, endText: row.end_text },
    gateway: gateway === undefined ? null : { host: gateway.host, port: gateway.port },
    mayApprove: [...(waiting?.mayDecide ?? [])],
    ...{ lastError: lease?.last_error ?? null, attempts: lease?.attempts ?? 0 },
    proof: row.proof as unknown as ProofView | null,
    review: review === undefined ? null : reviewViewOf(access, review),
  };
}

/** One row that somebody changed in the store hides no list, least of all from those who would find that out. */
function noteShown(access: Access, row: ReviewRow): string | null {
  try {
    return noteOf(access, row) ?? null;
  } catch (error) {
    access.warn(`the note of the review of ${row.grant_id} is not shown: ${describe(error)}`);
    return UNREADABLE;
  }
}

export function reviewViewOf(access: Access, row: ReviewRow): ReviewView {
  return {
    ...{ grant: row.grant_id, playbook: row.playbook, requester: row.requester },
    ...{ openedAt: row.opened_at.toISOString(), dueAt: row.due_at.toISOString() },
    overdue: row.signed_at === null && (row.overdue_at !== null || row.due_at.getTime() <= Date.now()),
    ...{ signedAt: iso(row.signed_at), signedBy: row.signed_by, verdict: row.verdict },
    note: noteShown(access, row),
  };
}

export function sessionViewOf(row: Selectable<SessionsTable> & { target: string }): SessionView {
  return {
    ...{
      session: row.id,
      grant: row.grant_id,
      person: row.person,
      target: row.target,
      remoteAddress: row.remote_address,
    },
    ...{
      client: row.client,
      openedAt: row.opened_at.toISOString(),
      closedAt: iso(row.closed_at),
      cause: row.cause,
      detail: row.detail,
    },
    ...{ statements: row.statements, refused: row.refused, bytesIn: row.bytes_in, bytesOut: row.bytes_out },
    recordingComplete: row.recording_complete,
  };
}
