import { describe } from "../core/errors.ts";
import type { Tx } from "../store/database.ts";
import type { Access, Notice, NoticeEvent } from "./access.ts";
import type { GrantRow } from "./lifecycle.ts";
import { pinned } from "./pins.ts";

/**
 * Tells the playbook's channels what happens to a grant, in the transaction in which it happens. With `deciders`, people
 * who may decide get a link of their own; the requester is never one of them.
 */
export async function tell(
  access: Access,
  tx: Tx,
  grant: GrantRow,
  about: {
    event: NoticeEvent;
    text: string;
    deciders?: readonly string[];
    round?: number;
    until?: Date;
    expiresAt?: Date;
  },
): Promise<void> {
  const { playbook } = await pinned(tx, grant.playbook_hash);
  const why = whyOf(access, grant);
  const notice: Notice = {
    ...{ grant: grant.id, playbook: grant.playbook, target: grant.target, requester: grant.requester },
    ...{ reason: grant.reason, channels: playbook.notify, ...about },
    ...(why === undefined ? {} : { why }),
    ...(grant.incident === null ? {} : { incident: grant.incident }),
  };
  await access.notifier.post(tx, notice);
}

/**
 * The reason in the requester's words. Undefined where it does not open, changed or under a lost key: what cannot be told
 * must keep no grant from its end, and nobody from seeing the rest.
 */
export function whyOf({ keyring, warn }: Access, { id, why }: GrantRow): string | undefined {
  try {
    return keyring.open({ table: "grants", row: id, column: "why" }, why).toString("utf8");
  } catch (error) {
    warn(`the reason of ${id} is not told: ${describe(error)}`);
    return undefined;
  }
}

/** Different people who may decide on this grant now. */
export function decidersOf(access: Access, grant: Pick<GrantRow, "playbook" | "requester">): readonly string[] {
  return access
    .policy()
    .eligibleApprovers(grant.playbook, grant.requester)
    .map((person) => person.name);
}
