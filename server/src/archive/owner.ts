import { FormatError, openCheckpoint, parseVerifierKeys, VerifyError } from "@glasskey/verify";
import { readStoredTile } from "../audit/read.ts";
import { rootAt } from "../audit/tree.ts";
import { GlassError } from "../core/errors.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import type { Store } from "../store/database.ts";
import { CHECKPOINTS, datedPath, MAX_NOTE_BYTES } from "./layout.ts";

const LOOKED_AT = 100; // of one log there is at least one among them

/**
 * Is the newest dated checkpoint there? It cannot have gone: where it is not, this is another bucket, or the folder below
 * one that is not mounted, and what follows would lie there alone.
 * @throws GlassError `integrity`.
 */
export async function checkSamePlace(objects: ObjectStore, size: number): Promise<void> {
  if (size === 0) return;
  const versions = await objects.versions(datedPath(size));
  if (versions.some(({ deleted }) => !deleted)) return;
  throw new GlassError(
    "integrity",
    `${objects.place} is not the place that was archived to: ${datedPath(size)} is not there`,
    {
      next: "Mount the folder, or name the bucket that it was. To begin anew, name another folder, bucket or prefix: everything is archived there again.",
    },
  );
}

/**
 * Is what lies at a mirror an earlier part of this very log, or nothing?
 * @throws GlassError `integrity` when it is anything else.
 */
export async function checkMirror(options: { store: Store; objects: ObjectStore; keys: string }): Promise<void> {
  const note = await options.objects.get("checkpoint", MAX_NOTE_BYTES);
  if (note !== undefined) await mustBeOurs({ ...options, what: "mirror", path: "checkpoint", note });
}

/**
 * Before the first object: is the place empty, or an earlier part of this very log?
 * @throws GlassError `integrity` when it holds another log, or another history of this one.
 */
export async function checkOwner(options: { store: Store; objects: ObjectStore; keys: string }): Promise<void> {
  const { objects } = options;
  let looked = 0;
  for await (const path of objects.list(CHECKPOINTS)) {
    if ((looked += 1) > LOOKED_AT) return;
    const note = await objects.get(path, MAX_NOTE_BYTES);
    if (note !== undefined) await mustBeOurs({ ...options, what: "archive", path, note });
  }
}

interface Found {
  readonly store: Store;
  readonly objects: ObjectStore;
  readonly keys: string;
  readonly what: "archive" | "mirror";
  readonly path: string;
  readonly note: Uint8Array;
}

async function mustBeOurs(found: Found): Promise<void> {
  const { store, note } = found;
  const keys = parseVerifierKeys(found.keys);
  let head;
  try {
    head = openCheckpoint(note, keys);
  } catch (error) {
    // Half a note is what a crash left of one, and says nothing of whose it was; it is put in again.
    if (error instanceof FormatError && found.what === "archive") return;
    if (!(error instanceof FormatError || error instanceof VerifyError)) throw error;
    throw another(found, error.message);
  }
  const { size } = await store.selectFrom("log_head").select("size").executeTakeFirstOrThrow();
  if (head.size > size) throw another(found, `the log has only ${size} entries`);
  if (!(await rootAt(head.size, readStoredTile(store))).equals(head.root)) {
    throw another(found, "it has another history");
  }
}

function another({ objects, what, path }: Found, why: string): GlassError {
  return new GlassError("integrity", `${objects.place} is the ${what} of another log: ${path}: ${why}`, {
    next: "Give this installation a place of its own (another folder, bucket or prefix), and keep that one as it is.",
  });
}
