import { z } from "zod";

/** The audit log over HTTP. Times are ISO 8601 in UTC. */

const time = z.iso.datetime().describe("ISO 8601, UTC");
const size = z.number().int().min(0);

/**
 * How far an entry has come. Before the first of them it is durable: committed, and not shown here. A word for what is not
 * configured does not appear.
 */
export const ENTRY_STATES = ["checkpointed", "witnessed", "archived"] as const;
export type EntryState = (typeof ENTRY_STATES)[number];

export const logEntryView = z.object({
  index: z.number().int(),
  leafHash: z.string().describe("hex"),
  state: z.enum(ENTRY_STATES),
  entry: z.record(z.string(), z.unknown()),
  people: z.record(z.string(), z.string()).describe("Names of the pseudonymous ids in it, where still known"),
});
export type LogEntryView = z.infer<typeof logEntryView>;

const progress = {
  size: size.describe("Entries under the newest checkpoint"),
  witnessed: size
    .nullable()
    .describe("Entries under a checkpoint that enough witnesses cosigned; null: none configured"),
  archived: size.nullable().describe("Entries that the archive has; null: none configured"),
};

export const logPage = z.object({ ...progress, entries: z.array(logEntryView) });
export type LogPage = z.infer<typeof logPage>;

export const logProof = z.object({
  proof: z.string().describe("C2SP tlog-proof"),
  entry: z.string().describe("The entry's bytes, canonical JSON: what the leaf hash is of"),
  size: size.describe("Size of the checkpoint in the proof"),
  witnessed: z.boolean().describe("Whether that checkpoint has the cosignatures that the policy asks for"),
});
export type LogProof = z.infer<typeof logProof>;

export const logKeyView = z.object({
  generation: z.number().int().min(1),
  vkey: z.string().describe("C2SP verifier key, as auditors keep it"),
  addedAt: time,
  retiredAt: time.nullable().describe("null while it signs"),
});
export type LogKeyView = z.infer<typeof logKeyView>;

export const logKeyList = z.object({ keys: z.array(logKeyView) });
export type LogKeyList = z.infer<typeof logKeyList>;

export const logStatus = z.object({
  ...progress,
  origin: z.string(),
  now: time.describe("The server's clock, to take ages from"),
  signedAt: time.nullable().describe("When the newest checkpoint was signed; null before the first"),
  waiting: size.describe("Committed events that no checkpoint covers yet"),
  waitingSince: time.nullable().describe("When the oldest of them happened"),
  unwitnessedSince: time.nullable().describe("Since when a checkpoint has waited for its witnesses; null: none waits"),
  keys: z.array(logKeyView).describe("Those that sign now"),
});
export type LogStatus = z.infer<typeof logStatus>;
