import type { JsonObject } from "../core/json.ts";
import type { Playbook, Target } from "../playbooks/policy.ts";
import type { Tx } from "../store/database.ts";
import type { Access } from "./access.ts";

const DAY_MS = 86_400_000;

/** What a grant pins: the playbook and the target exactly as they were decided upon. */
export interface Pinned {
  playbook: Playbook;
  target: { name: string; kind: string; config: JsonObject };
}

export async function pin(tx: Tx, playbook: Playbook, target: Target): Promise<void> {
  const content: Pinned = { playbook, target: { name: target.name, kind: target.kind, config: target.config } };
  await tx
    .insertInto("playbook_versions")
    .values({ hash: playbook.hash, playbook: playbook.name, content: JSON.stringify(content) })
    .onConflict((c) => c.column("hash").doNothing())
    .execute();
}

export async function pinned(tx: Tx | Access["store"], hash: string): Promise<Pinned> {
  const row = await tx
    .selectFrom("playbook_versions")
    .select("content")
    .where("hash", "=", hash)
    .executeTakeFirstOrThrow();
  const content = row.content as unknown as Pinned;
  return { ...content, playbook: { ...BEFORE_REVIEWS, ...content.playbook } };
}

/** Keys that a playbook pinned by an older version does not have. */
const BEFORE_REVIEWS = { notify: [], limit: {}, review: { by: [], withinMs: 2 * DAY_MS } } as const;
