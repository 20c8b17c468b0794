import { GlassError } from "../server/src/core/errors.ts";
import {
  decodeFileHeader,
  encodeFileHeader,
  fileKey,
  frameBytes,
  openFrame,
  sealFrame,
} from "../server/src/recording/frame.ts";
import { decodeRecords, encodeRecord } from "../server/src/recording/record.ts";
import type { Random } from "./random.ts";

const journalKey = Buffer.alloc(32, 1);
const fileId = Buffer.alloc(16, 2);
const key = fileKey(journalKey, fileId);
const session = "se_7kq2m9x4tbzc";

const records = [1, 2, 3].map((seq) =>
  encodeRecord({
    session,
    seq,
    kind: 3,
    timeUs: 1_700_000_000_000_000 + seq,
    payload: Buffer.from(`{"n":${seq},"text":"select 1"}`),
  }),
);
const plain = Buffer.concat(records);
const frames = [1, 2].map((sequence) => {
  const out = Buffer.alloc(frameBytes(plain.length));
  sealFrame(key, sequence, sequence - 1, Buffer.concat([plain, Buffer.alloc(16)]), plain.length, out, 0);
  return out;
});
const genuine = new Set(frames.map((frame) => frame.toString("latin1")));
const header = encodeFileHeader(journalKey, { number: 1, fileId, journalId: Buffer.alloc(16, 3), createdUs: 1 });

export const seeds: readonly Uint8Array[] = [Buffer.concat(frames), ...frames, header, plain, ...records];

/** Damage is an answer or the declared error; no frame opens that was not sealed. */
export function one(input: Uint8Array, random: Random): void {
  const bytes = Buffer.from(input);
  const at = random.int(4) * 16;
  const opened = openFrame(key, bytes, at);
  if (opened.ok && !genuine.has(bytes.toString("latin1", at, at + opened.frame.bytes))) {
    throw new Error("a frame opened that nobody sealed");
  }
  if (!opened.ok && opened.bytes < 0) throw new Error("a failed frame claims a negative length");
  attempt(() => decodeFileHeader(journalKey, bytes));
  const decoded = attempt(() => decodeRecords(bytes));
  const total = (decoded ?? []).reduce((sum, record) => sum + record.payload.length, 0);
  if (total > bytes.length) throw new Error("the records hold more bytes than there were");
}

function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof GlassError) return undefined;
    throw error;
  }
}
