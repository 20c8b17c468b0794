import { z } from "zod";

const time = z.iso.datetime().describe("ISO 8601, UTC");

export const policyInForce = z.object({
  generation: z.number().int().describe("Grows by one with every change of what is in force"),
  hash: z.string().describe("Names the bundle: SHA-256 over its files, the same on every machine"),
  source: z.string().describe("The folder, or the repository with branch and path"),
  commit: z.string().nullable(),
  author: z.string().nullable().describe("The commit's author, or who asked for the reload"),
  signer: z.string().nullable().describe("Fingerprint of the key that signed the commit"),
  node: z.string().describe("The process that put it into force"),
  since: time,
});
export type PolicyInForce = z.infer<typeof policyInForce>;

export const policyChange = policyInForce.extend({
  widened: z.boolean().nullable().describe("Whether somebody gained by it; null where there is no plan"),
  plan: z.unknown().describe("Who gained and who lost; null for the first"),
});
export type PolicyChange = z.infer<typeof policyChange>;

export const policyHistory = z.object({ changes: z.array(policyChange).describe("Newest first") });
export type PolicyHistory = z.infer<typeof policyHistory>;

export const policyReload = z.object({
  inForce: z.boolean(),
  problems: z.string().nullable().describe("What is wrong with it, for a person"),
  hash: z.string().describe("Of the policy in force now"),
});
export type PolicyReload = z.infer<typeof policyReload>;
