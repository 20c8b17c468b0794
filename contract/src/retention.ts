import { z } from "zod";
import { params } from "./api.ts";

const time = z.iso.datetime().describe("ISO 8601, UTC");
const holdId = z.string().regex(/^ho_[0-9a-hjkmnp-tv-z]{12}$/, "is not a hold's id such as ho_7kq2m9x4tbzc");
const why = z
  .string()
  .trim()
  .min(3, "is too short: say in a few words why")
  .max(2000, "is too long: 2,000 characters are enough")
  .regex(/^(?:[^\p{Cc}\p{Cs}]|[\n\r\t])*$/u, "has control characters")
  .describe("In one's own words; kept encrypted");

export const holdRequest = z.strictObject({
  id: z
    .union([params.grant.shape.grant, params.session.shape.session])
    .describe("A session, or a grant with all its sessions, also those still to come"),
  why,
});
export const holdView = z.object({
  hold: z.string(),
  grant: z.string(),
  session: z.string().nullable().describe("Null: every session of the grant"),
  why: z.string(),
  heldBy: z.string(),
  heldAt: time,
  releasedBy: z.string().nullable(),
  releasedAt: time.nullable(),
});
export type HoldView = z.infer<typeof holdView>;
export const holdList = z.object({
  holds: z.array(holdView).describe("Newest first"),
  keepMs: z
    .number()
    .int()
    .nullable()
    .describe("How long a recording is kept where its playbook says nothing; null: for ever"),
});
export type HoldList = z.infer<typeof holdList>;
export const holdParams = z.object({ hold: holdId });

export const eraseRequest = z.strictObject({ why });
export const eraseAnswer = z.object({
  session: z.string(),
  chunks: z.number().int().describe("Encrypted chunks that stay, and still match the log"),
});
export type EraseAnswer = z.infer<typeof eraseAnswer>;
