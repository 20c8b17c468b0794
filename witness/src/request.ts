import { FormatError, parseCheckpointText, type Checkpoint } from "@glasskey/verify";

/** The body of `add-checkpoint` (https://c2sp.org/tlog-witness), of good form. Nothing in it is verified yet. */
export interface AddCheckpoint {
  readonly oldSize: number;
  /** RFC 6962 consistency proof. */
  readonly proof: readonly Uint8Array[];
  /** The signed note, verbatim. */
  readonly note: string;
  readonly checkpoint: Checkpoint;
}

const MAX_PROOF_LINES = 63;
const STRICT_UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** @throws FormatError that names what the body lacks. */
export function parseAddCheckpoint(body: Uint8Array): AddCheckpoint {
  const text = decode(body);
  const end = text.indexOf("\n\n");
  if (end < 0) throw new FormatError("there is no empty line between proof and checkpoint");
  const [first = "", ...lines] = text.slice(0, end).split("\n");
  const old = /^old (0|[1-9]\d{0,15})$/.exec(first)?.[1];
  const oldSize = old === undefined ? NaN : Number(old);
  if (!Number.isSafeInteger(oldSize)) throw new FormatError("the first line is not: old SIZE");
  if (lines.length > MAX_PROOF_LINES) throw new FormatError(`a proof has at most ${MAX_PROOF_LINES} lines`);
  const note = text.slice(end + 2);
  // A note's text goes up to its last empty line; a checkpoint's has none within, so the first ends it too.
  const checkpoint = parseCheckpointText(note.slice(0, note.lastIndexOf("\n\n") + 1));
  return { oldSize, proof: lines.map(parseHash), note, checkpoint };
}

function parseHash(line: string): Uint8Array {
  const bytes = Buffer.from(line, "base64");
  if (bytes.length !== 32 || bytes.toString("base64") !== line) {
    throw new FormatError("a proof line is not the base64 of 32 bytes");
  }
  return bytes;
}

function decode(body: Uint8Array): string {
  try {
    return STRICT_UTF8.decode(body);
  } catch {
    throw new FormatError("the body is not valid UTF-8");
  }
}
