import { z } from "zod";

const time = z.iso.datetime().describe("ISO 8601, UTC");

export const sinkView = z.object({
  sink: z.string(),
  node: z.string().nullable().describe("The process that has it for itself; null where all processes share it"),
  kind: z.string(),
  configured: z.boolean().describe("Whether glasskey.yaml of the process that answers has it"),
  nextIndex: z.number().int().describe("The first entry that the receiver has not acknowledged"),
  lagEntries: z.number().int(),
  lagSeconds: z.number().describe("How long the oldest of them has been covered by a checkpoint"),
  failures: z.number().int().describe("Failed attempts in a row"),
  lastError: z.string().nullable(),
  failingSince: time.nullable(),
  deliveredAt: time.nullable(),
  parked: z
    .array(z.object({ index: z.number().int(), error: z.string(), at: time }))
    .describe("Entries that the receiver refused for what they are; at most 100"),
});
export type SinkView = z.infer<typeof sinkView>;

export const sinkList = z.object({ sinks: z.array(sinkView) });
export type SinkList = z.infer<typeof sinkList>;

export const sinkRetry = z.object({ retried: z.number().int().describe("Parked entries that are tried again") });
export type SinkRetry = z.infer<typeof sinkRetry>;
