import type { GrantView, ProofView, SessionView } from "@glasskey/contract";
import type { Selectable } from "kysely";
import type { Access } from "../access/access.ts";
import type { GrantRow } from "../access/lifecycle.ts";
import type { SessionsTable } from "../store/tables.ts";

const iso = (date: Date | null): string | null => date?.toISOString() ?? null;

export async function grantViewOf(access: Access, row: GrantRow): Promise<GrantView> {
  const [approvals, lease] = await Promise.all([
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
  ]);
  const pending = row.state === "pending" || row.extension_round !== null;
  const why = access.keyring.open({ table: "grants", row: row.id, column: "why" }, row.why).toString("utf8");
  return {
    ...{
      grant: row.id,
      state: row.state,
      playbook: row.playbook,
      playbookHash: row.playbook_hash,
      target: row.target,
      kind: row.kind,
    },
    ...{
      requester: row.requester,
      reason: row.reason,
      why,
      incident: row.incident,
      need: row.need,
      forMs: row.duration_ms,
    },
    approvals: approvals.map(({ person, verdict, at }) => ({ person, verdict, at: at.toISOString() })),
    ...{
      createdAt: row.created_at.toISOString(),
      decideBy: row.decide_by.toISOString(),
      approvedAt: iso(row.approved_at),
    },
    ...{ endsAt: iso(row.ends_at), activeAt: iso(row.active_at), closedAt: iso(row.closed_at) },
    ...{ endCause: row.end_cause, endText: row.end_text },
    mayApprove: pending
      ? access
          .policy()
          .eligibleApprovers(row.playbook, row.requester)
          .map((person) => person.name)
      : [],
    ...{ lastError: lease?.last_error ?? null, attempts: lease?.attempts ?? 0 },
    proof: row.proof as unknown as ProofView | null,
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
