import canonicalize from "canonicalize";
import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { sha256 } from "../core/bytes.ts";
import type { JsonObject, JsonValue } from "../core/json.ts";
import { bundleHash } from "../playbooks/files.ts";
import type { Policy } from "../playbooks/policy.ts";
import type { Store } from "../store/database.ts";
import { packBundle, unpackBundle, type BundleFiles } from "./bundle.ts";

/** What was put into force, when, and by whom. The newest generation is in force, in every process. */
export interface Generation {
  /** From 1, without gaps. */
  readonly generation: number;
  /** Names the bundle. */
  readonly hash: string;
  /** The folder, or the repository with branch and path. */
  readonly source: string;
  readonly commit: string | null;
  /** A person's name in clear: the commit's author, or who asked for the reload. */
  readonly author: string | null;
  /** Fingerprint of the key that signed the commit. */
  readonly signer: string | null;
  /** Who gained and who lost; null for the first. */
  readonly plan: JsonValue;
  readonly node: string;
  readonly at: Date;
}

/** Who asked for a reload. */
export interface Asker {
  readonly name: string;
  readonly pseudonym: string;
}

/** A bundle that was read and checked. */
export interface Candidate {
  readonly files: BundleFiles;
  readonly policy: Policy;
  readonly source: string;
  readonly kind: "folder" | "git";
  readonly commit?: string;
  readonly author?: string;
  readonly signer?: string;
}

/** A bundle that was checked, about to come into force. */
export interface Activation {
  readonly files: BundleFiles;
  /** `folder` or `git`. */
  readonly kind: string;
  readonly source: string;
  readonly commit?: string | undefined;
  readonly author?: string | undefined;
  readonly signer?: string | undefined;
  /** The plan from what is in force; its counts go into the log, and the SHA-256 of its canonical JSON (RFC 8785). */
  readonly plan?: { readonly json: JsonValue; readonly counts: JsonObject } | undefined;
  /** Pseudonym of who asked for it, or `glasskey`. */
  readonly actor: string;
  readonly node: string;
}

const COLUMNS = ["generation", "hash", "source", "commit_id", "author", "signer", "plan", "node", "at"] as const;

/** The number of the generation in force and its bundle's hash: cheap enough to ask every second. */
export async function newestNumber(store: Store): Promise<{ generation: number; hash: string } | undefined> {
  return store
    .selectFrom("bundle_generations")
    .select(["generation", "hash"])
    .orderBy("generation", "desc")
    .limit(1)
    .executeTakeFirst();
}

const MAX_PLANS_CHARACTERS = 8 * 1024 * 1024; // of one answer

/** Generations, newest first: `limit` at the most, and fewer, but one, where their plans together are large. */
export async function generations(store: Store, limit: number, before?: number): Promise<readonly Generation[]> {
  const page = store
    .selectFrom("bundle_generations")
    .$if(before !== undefined, (query) => query.where("generation", "<", before ?? 0))
    .orderBy("generation", "desc");
  const sizes = await page
    .select(sql<number>`coalesce(length(plan::text), 0)`.as("characters"))
    .limit(limit)
    .execute();
  let total = 0;
  const fitting = sizes.filter(({ characters }) => (total += characters) <= MAX_PLANS_CHARACTERS).length;
  const rows = await page.select(COLUMNS).limit(Math.max(1, fitting)).execute();
  return rows.map(({ commit_id, ...row }) => ({ ...row, commit: commit_id }));
}

/** The commit that came into force last, also where a folder came after it. */
export async function newestCommit(store: Store): Promise<string | undefined> {
  const row = await store
    .selectFrom("bundle_generations")
    .select("commit_id")
    .where("commit_id", "is not", null)
    .orderBy("generation", "desc")
    .limit(1)
    .executeTakeFirst();
  return row?.commit_id ?? undefined;
}

/** The files of a bundle. @throws GlassError `integrity` when the store's copy was tampered with. */
export async function readBundle(store: Store, hash: string): Promise<BundleFiles> {
  const { files } = await store
    .selectFrom("bundles")
    .select("files")
    .where("hash", "=", hash)
    .executeTakeFirstOrThrow();
  return unpackBundle(hash, files);
}

/**
 * Puts a bundle into force as the generation after `after` (0: as the first), with its log entry in the same transaction.
 * @returns false when another process was faster: there is a generation after `after` already, and nothing was changed.
 */
export async function activate(store: Store, after: number, next: Activation): Promise<boolean> {
  const hash = bundleHash(next.files);
  const files = packBundle(next.files);
  const plan = next.plan === undefined ? undefined : canonicalize(next.plan.json);
  return store.transaction().execute(async (tx) => {
    await tx
      .insertInto("bundles")
      .values({ hash, files })
      .onConflict((c) => c.doNothing())
      .execute();
    const row = await tx
      .insertInto("bundle_generations")
      .values({
        ...{ generation: after + 1, hash, source: next.source, node: next.node, plan: plan ?? null },
        ...{ commit_id: next.commit ?? null, author: next.author ?? null, signer: next.signer ?? null },
        at: sql<Date>`clock_timestamp()`,
      })
      .onConflict((c) => c.column("generation").doNothing())
      .returning("generation")
      .executeTakeFirst();
    if (row === undefined) return false;
    const data: JsonObject = {
      ...{ hash, generation: row.generation, source: next.kind, node: next.node },
      ...(next.commit === undefined ? {} : { commit: next.commit }),
      ...(next.signer === undefined ? {} : { signer: next.signer }),
      // An entry can never be taken back, so the name itself stays in the row.
      ...(next.author === undefined ? {} : { author: sha256(next.author).toString("hex") }),
      ...(plan === undefined ? {} : { plan: { ...next.plan?.counts, sha256: sha256(plan).toString("hex") } }),
    };
    await append(tx, { type: "policy.loaded", at: new Date(), actor: next.actor, data });
    return true;
  });
}

/** Whether `accept` let this commit in before: it does so once, so that the same history cannot be forced on us again. */
export async function acceptedBefore(store: Store, commit: string): Promise<boolean> {
  const row = await store
    .selectFrom("bundle_generations")
    .select("generation")
    .where("commit_id", "=", commit)
    .where("source", "like", `%${ACCEPTED}`)
    .executeTakeFirst();
  return row !== undefined;
}

/** Marks a generation's source where `accept` let it in. */
export const ACCEPTED = " (accepted)";

const NODE_DEAD_AFTER_MS = 30_000; // as access/sweep.ts: several missed heartbeats

/** Whether another process works on this store, by the store's clock. */
export async function othersAlive(store: Store, node: string): Promise<boolean> {
  const row = await store
    .selectFrom("nodes")
    .select("id")
    .where("id", "<>", node)
    .where("seen_at", ">", sql<Date>`clock_timestamp() - ${NODE_DEAD_AFTER_MS} * interval '1 millisecond'`)
    .executeTakeFirst();
  return row !== undefined;
}
