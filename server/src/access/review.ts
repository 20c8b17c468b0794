import { sql } from "kysely";
import type { Selectable } from "kysely";
import { append } from "../audit/append.ts";
import { sha256 } from "../core/bytes.ts";
import { describe, GlassError } from "../core/errors.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Tx } from "../store/database.ts";
import type { ReviewsTable } from "../store/tables-policy.ts";
import type { Access } from "./access.ts";
import { clearAlarm, clearAlarmIn, raiseAlarm } from "./alarms.ts";
import { move, type GrantRow } from "./lifecycle.ts";
import { pinned } from "./pins.ts";
import { readableGrants } from "./readable.ts";
import { denied } from "./request.ts";
import { tell } from "./tell.ts";

export type ReviewRow = Selectable<ReviewsTable>;
export type Verdict = NonNullable<ReviewRow["verdict"]>;

const MAX_NOTE_LENGTH = 2_000;
const LIST_LIMIT = 500;

/**
 * A use began: its review is due from here. Called in the transaction in which the grant becomes active; a grant that
 * never was has nothing to look back on.
 */
export async function openReview(tx: Tx, grant: GrantRow): Promise<void> {
  const { playbook } = await pinned(tx, grant.playbook_hash);
  const row = await tx
    .insertInto("reviews")
    .values({
      ...{ grant_id: grant.id, playbook: grant.playbook, requester: grant.requester },
      opened_at: sql`clock_timestamp()`,
      due_at: sql`clock_timestamp() + ${playbook.review.withinMs} * interval '1 millisecond'`,
    })
    .onConflict((c) => c.column("grant_id").doNothing())
    .returning("due_at")
    .executeTakeFirst();
  if (row === undefined) return;
  await append(tx, {
    ...{ type: "review.opened", at: new Date(), actor: "glasskey", grant: grant.id },
    ...{ target: grant.target, playbook: grant.playbook, data: { dueAt: row.due_at.toISOString() } },
  });
}

/**
 * Somebody other than the requester signs the look back on a closed grant, once and for ever.
 * @param note free text; stored encrypted, committed to in the log by the hash of the ciphertext.
 * @throws GlassError `policy_denied`; `conflict` before the proof, for a use that never was, and for a second signature.
 */
export async function signReview(
  access: Access,
  person: string,
  grantId: string,
  { verdict, note }: { verdict: Verdict; note: string },
): Promise<void> {
  const length = note.trim().length;
  if (length < 3 || length > MAX_NOTE_LENGTH) {
    throw new GlassError("usage", "a note is required, in 3 to 2,000 characters", {
      next: "Say in a few words what you looked at.",
    });
  }
  const name = access.policy().person(person)?.name ?? person;
  const over = await access.store.transaction().execute(async (tx) => {
    const grant = await tx.selectFrom("grants").selectAll().where("id", "=", grantId).forUpdate().executeTakeFirst();
    if (grant === undefined) throw new GlassError("not_found", `there is no grant ${grantId.slice(0, 40)}`);
    const policy = access.policy();
    const { playbook, requester } = grant;
    const decision = policy.decide({ action: "sign_review", person: name, playbook, requester });
    if (!decision.allow) throw denied(decision);
    const review = await tx.selectFrom("reviews").selectAll().where("grant_id", "=", grantId).executeTakeFirst();
    if (review === undefined) throw new GlassError("conflict", `${grantId} was never open; there is nothing to review`);
    if (review.signed_at !== null) {
      throw new GlassError("conflict", `${review.signed_by ?? "somebody"} has signed the review of ${grantId} already`);
    }
    if (grant.state !== "closed") {
      throw new GlassError("conflict", `grant ${grantId} is ${grant.state}; its review is signed once it is closed`, {
        next: grant.state === "closing" ? "Its revocation is not proved yet." : `End it first: glass end ${grantId}`,
      });
    }
    const sealed = access.keyring.seal({ table: "reviews", row: grantId, column: "note" }, Buffer.from(note, "utf8"));
    await tx
      .updateTable("reviews")
      .set({ signed_at: sql`clock_timestamp()`, signed_by: name, verdict, note: sealed })
      .where("grant_id", "=", grantId)
      .where("signed_at", "is", null)
      .execute();
    const actor = await pseudonymOf(tx, name);
    const data = { verdict, noteSha256: sha256(sealed).toString("hex") };
    const event = { actor, grant: grantId, target: grant.target, playbook };
    await append(tx, { type: "review.signed", at: new Date(), ...event, data });
    const moved = await move(tx, { grant: grantId, to: "reviewed", actor, data: { verdict } });
    if (moved !== undefined && review.overdue_at !== null) {
      await tell(access, tx, moved, {
        event: "review_signed",
        text: `${name} signed the overdue review of ${grantId}.`,
      });
    }
    if (moved === undefined) throw new GlassError("conflict", `grant ${grantId} is not closed any more`);
    return clearAlarmIn(tx, overdueAlarm(grantId), access.notifier);
  });
  for (const text of over) access.warn(`alarm over: ${text}`);
}

const overdueAlarm = (grant: string): string => `review ${grant}`;

/** The note, for people who may read the grant. */
export function noteOf(access: Pick<Access, "keyring">, review: ReviewRow): string | undefined {
  return review.note === null
    ? undefined
    : access.keyring.open({ table: "reviews", row: review.grant_id, column: "note" }, review.note).toString("utf8");
}

/** Reviews that wait for a signature, the most overdue first, of grants that this person may see. */
export async function waitingReviews(
  access: Access,
  person: string,
): Promise<readonly { review: ReviewRow; grant: GrantRow; maySign: boolean; overdue: boolean }[]> {
  const policy = access.policy();
  const rows = await access.store
    .selectFrom("reviews")
    .innerJoin("grants", "grants.id", "reviews.grant_id")
    .selectAll("grants")
    .select(["reviews.opened_at as review_opened_at", "reviews.due_at", "reviews.overdue_at"])
    .select(sql<boolean>`reviews.due_at <= clock_timestamp()`.as("overdue"))
    .where("reviews.signed_at", "is", null)
    .where(readableGrants(policy, person))
    .orderBy("reviews.due_at")
    .limit(LIST_LIMIT)
    .execute();
  return rows.flatMap(({ review_opened_at, due_at, overdue_at, overdue, ...grant }) => {
    const about = { person, playbook: grant.playbook, requester: grant.requester };
    const maySign = policy.decide({ action: "sign_review", ...about }).allow;
    if (!maySign && !policy.decide({ action: "read_grant", ...about }).allow) return [];
    const review: ReviewRow = {
      ...{ grant_id: grant.id, playbook: grant.playbook, requester: grant.requester },
      ...{ opened_at: review_opened_at, due_at, overdue_at },
      ...{ signed_at: null, signed_by: null, verdict: null, note: null },
    };
    return [{ review, grant, maySign, overdue }];
  });
}

/** Says, once for each, that a review should have been signed by now. */
export async function tellOverdue(access: Access): Promise<void> {
  const late = await access.store
    .selectFrom("reviews")
    .select(["grant_id", "playbook"])
    .where("signed_at", "is", null)
    .where("overdue_at", "is", null)
    .where(sql<boolean>`due_at <= clock_timestamp()`)
    .limit(LIST_LIMIT)
    .execute();
  for (const { grant_id: id, playbook } of late) {
    try {
      const text = `the review of ${id} is overdue; ${playbook} needs a quorum until somebody signs it: glass review ${id}`;
      // Raised first: a crash before the row says so raises it again, which is silent.
      await raiseAlarm(access.store, access.warn, overdueAlarm(id), text, access.notifier);
      const marked = await access.store.transaction().execute((tx) => markOverdue(access, tx, id, text));
      // Signed in between.
      if (!marked) await clearAlarm(access.store, access.warn, overdueAlarm(id), access.notifier);
    } catch (error) {
      access.warn(`the overdue review of ${id}: ${describe(error)}`);
    }
  }
}

/** @returns false when the review was signed meanwhile; true also when another process was faster. */
async function markOverdue(access: Access, tx: Tx, id: string, text: string): Promise<boolean> {
  const grant = await tx.selectFrom("grants").selectAll().where("id", "=", id).forUpdate().executeTakeFirstOrThrow();
  const review = await tx
    .selectFrom("reviews")
    .select(["signed_at", "overdue_at", "due_at"])
    .where("grant_id", "=", id)
    .executeTakeFirstOrThrow();
  if (review.signed_at !== null) return false;
  if (review.overdue_at !== null) return true;
  await tx
    .updateTable("reviews")
    .set({ overdue_at: sql`clock_timestamp()` })
    .where("grant_id", "=", id)
    .execute();
  const event = { actor: "glasskey", grant: id, target: grant.target, playbook: grant.playbook };
  await append(tx, { type: "review.overdue", at: new Date(), ...event, data: { dueAt: review.due_at.toISOString() } });
  await tell(access, tx, grant, { event: "review_overdue", text: `${text[0]?.toUpperCase()}${text.slice(1)}` });
  return true;
}
