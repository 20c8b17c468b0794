import { sql } from "kysely";
import type { Access } from "./access.ts";
import type { Drift } from "./fingerprint.ts";
import { move } from "./lifecycle.ts";
import { tell } from "./tell.ts";

export interface LeaseProof {
  from: string;
  evidence: readonly { asked: string; answered: string }[];
  drift: Drift;
}

/** The proof that a grant left nothing: what the target itself answered, for each of its leases. */
export interface Proof {
  provedAt: string;
  leases: readonly {
    lease: string;
    name: string;
    deadFrom: string;
    evidence: readonly { asked: string; answered: string }[];
  }[];
  drift: Drift;
}

/**
 * From closing to closed, once every lease of the grant is proved dead and no session of it is on the books. Safe to call
 * at any time, from any process; does nothing while something is left.
 */
export async function finishClosing(access: Access, grant: string): Promise<boolean> {
  return access.store.transaction().execute(async (tx) => {
    const row = await tx.selectFrom("grants").select("state").where("id", "=", grant).forUpdate().executeTakeFirst();
    if (row?.state !== "closing") return false;
    const leases = await tx
      .selectFrom("leases")
      .select(["id", "state", "install", "evidence"])
      .where("grant_id", "=", grant)
      .orderBy("created_at")
      .execute();
    const open = await tx
      .selectFrom("sessions")
      .select("id")
      .where("grant_id", "=", grant)
      .where("closed_at", "is", null)
      .executeTakeFirst();
    if (open !== undefined || leases.some((lease) => lease.state !== "dead")) return false;
    const proofs = leases.map((lease) => ({ ...lease, proof: lease.evidence as unknown as LeaseProof }));
    const proof: Proof = {
      provedAt: new Date().toISOString(),
      leases: proofs.map(({ id, install, proof: { from, evidence } }) => ({
        ...{ lease: id, name: `gk_${install}_${id.slice(3)}`, deadFrom: from, evidence },
      })),
      drift: {
        known: proofs.every(({ proof: { drift } }) => drift.known),
        added: proofs.flatMap(({ proof: { drift } }) => drift.added),
        removed: proofs.flatMap(({ proof: { drift } }) => drift.removed),
      },
    };
    const moved = await move(tx, {
      ...{ grant, to: "closed", actor: "glasskey" },
      set: { closed_at: sql`clock_timestamp()`, proof: JSON.stringify(proof) },
      data: {
        leases: leases.map((lease) => lease.id),
        drift: proof.drift.known ? proof.drift.added.length + proof.drift.removed.length : -1,
      },
    });
    if (moved === undefined) return false;
    await tell(access, tx, moved, { event: "closed", text: summary(moved.end_text, proof) });
    return true;
  });
}

function summary(endText: string | null, { leases, drift }: Proof): string {
  const changes = drift.added.length + drift.removed.length;
  const state = !drift.known
    ? "could not be compared"
    : changes === 0
      ? "is as it was"
      : `differs in ${changes} places`;
  const asked = leases.length === 0 ? "no credential was ever made" : "the target itself proved the access gone";
  return `Closed (${endText ?? "ended"}): ${asked}; its access state ${state}.`;
}
