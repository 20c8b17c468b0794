import { FormatError, openCheckpoint, parseVerifierKeys, VerifyError } from "@glasskey/verify";
import { readStoredTile } from "../audit/read.ts";
import { rootAt } from "../audit/tree.ts";
import { GlassError } from "../core/errors.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import type { Store } from "../store/database.ts";
import { CHECKPOINTS, MAX_NOTE_BYTES } from "./layout.ts";

const LOOKED_AT = 100; // of one log there is at least one among them

/**
 * Before the first object: is the place empty, or an earlier part of this very log?
 * @throws GlassError `integrity` when it holds another log, or another history of this one.
 */
export async function checkOwner(options: { store: Store; objects: ObjectStore; keys: string }): Promise<void> {
  const { store, objects } = options;
  const verifiers = parseVerifierKeys(options.keys);
  let looked = 0;
  for await (const path of objects.list(CHECKPOINTS)) {
    if ((looked += 1) > LOOKED_AT) return;
    const note = await objects.get(path, MAX_NOTE_BYTES);
    if (note === undefined) continue;
    let head;
    try {
      head = openCheckpoint(note, verifiers);
    } catch (error) {
      if (!(error instanceof FormatError || error instanceof VerifyError)) throw error;
      throw another(objects.place, path, error.message);
    }
    const { size } = await store.selectFrom("log_head").select("size").executeTakeFirstOrThrow();
    if (head.size > size) throw another(objects.place, path, `the log has only ${size} entries`);
    if (!(await rootAt(head.size, readStoredTile(store))).equals(head.root)) {
      throw another(objects.place, path, "it has another history");
    }
  }
}

function another(place: string, path: string, why: string): GlassError {
  return new GlassError("integrity", `${place} is the archive of another log: ${path}: ${why}`, {
    next: "Give this installation a place of its own (another folder, bucket or prefix), and keep that one as it is.",
  });
}
