import {
  EMPTY_ROOT,
  FormatError,
  formatSignature,
  openCheckpoint,
  openNote,
  signatureLine,
  VerifyError,
  verifyConsistency,
} from "@glasskey/verify";
import type { WitnessFolder } from "./folder.ts";
import { parseAddCheckpoint, type AddCheckpoint } from "./request.ts";

/** An answer of https://c2sp.org/tlog-witness. */
export type Answer =
  /** The cosignature's line. It is given only after the checkpoint is recorded on the disk. */
  | { readonly status: 200; readonly body: string }
  /** The size that this witness knows, and a line end. */
  | { readonly status: 409; readonly body: string; readonly contentType: "text/x.tlog.size" }
  | { readonly status: 400 | 403 | 404 | 422; readonly body: string };

/**
 * Answers `add-checkpoint`: cosigns a checkpoint that the log signed and that goes on from the last one cosigned. It
 * runs to its end without waiting for anything, so that of any number of requests each sees what the one before left.
 * @throws whatever the disk or a damaged folder throws. Nothing is cosigned then.
 */
export function addCheckpoint(folder: WitnessFolder, body: Uint8Array): Answer {
  let request: AddCheckpoint;
  try {
    request = parseAddCheckpoint(body);
  } catch (error) {
    if (error instanceof FormatError) return refuse(400, error.message);
    throw error;
  }
  const { oldSize, proof, note, checkpoint } = request;
  const log = folder.log(checkpoint.origin);
  if (log === undefined) return refuse(404, "not found");
  try {
    openCheckpoint(note, log.vkeys);
  } catch (error) {
    if (error instanceof VerifyError) return refuse(403, "the checkpoint is not signed by a key of that log");
    if (error instanceof FormatError) return refuse(400, error.message);
    throw error;
  }
  if (oldSize > checkpoint.size) return refuse(400, "the old size is larger than the checkpoint's");
  const last = log.cosigned?.checkpoint ?? { size: 0, root: EMPTY_ROOT };
  // Two signed roots at one size are a proof against the log, whatever else is wrong with the request.
  const fork = checkpoint.size === last.size && last.size > 0 && Buffer.compare(checkpoint.root, last.root) !== 0;
  if (fork) log.keepConflict(note);
  if (oldSize !== last.size) return { status: 409, body: `${last.size}\n`, contentType: "text/x.tlog.size" };
  if (!verifyConsistency(last.size, checkpoint.size, proof, last.root, checkpoint.root)) {
    return refuse(422, "the checkpoint does not go on from the one cosigned last");
  }
  // Only what was verified is kept: lines by others could be so many that the copy is no note any more.
  const { text, signatures } = openNote(note, log.vkeys);
  const line = signatureLine(folder.signer, Buffer.from(text, "utf8"));
  log.record(`${text}\n${signatures.map(formatSignature).join("")}${line}`);
  return { status: 200, body: line };
}

function refuse(status: 400 | 403 | 404 | 422, why: string): Answer {
  return { status, body: `${why}\n` };
}
