import { z } from "zod";

/** The archive over HTTP. Times are ISO 8601 in UTC, durations milliseconds. */

const time = z.iso.datetime().describe("ISO 8601, UTC");
const count = z.number().int().min(0);

export const archiveView = z.object({
  place: z.string().describe("The bucket and prefix, or the folder"),
  size: count.describe("Entries under the newest dated checkpoint there; all of them are there"),
  logSize: count.describe("Entries of the log"),
  datedAt: time.nullable().describe("When that checkpoint was written; null before the first"),
  lagMs: count.describe("For how long the oldest entry that is not there has been signed"),
  everyMs: count.describe("How often a checkpoint is dated"),
  retainMs: count.describe("How long nobody may delete what is there of the log"),
  recordingsRetainMs: count.describe("The same for recordings"),
  objects: count,
  bytes: count,
  owed: count.describe("Chunks that could not be read when their turn came"),
  faults: z
    .array(z.object({ path: z.string(), fault: z.string() }))
    .describe("Objects found changed, the first of them"),
  refused: z.boolean().describe("Nothing is archived until somebody does something; `lastError` says what"),
  lastError: z.string().nullable(),
  failedAt: time.nullable(),
});
export type ArchiveView = z.infer<typeof archiveView>;

export const archiveAnswer = z.object({ archive: archiveView.nullable().describe("null: none is configured") });
export type ArchiveAnswer = z.infer<typeof archiveAnswer>;
