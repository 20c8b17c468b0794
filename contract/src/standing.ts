import { z } from "zod";
import { ERRORS, type ErrorCode } from "./errors.ts";

/** Whether anything new can be opened, and what of the installation a person should know before they rely on it. */
export const standingView = z.object({
  opening: z.boolean().describe("Whether anything new may be opened on this process"),
  shut: z
    .array(
      z.object({
        reason: z.string().describe("What found it, such as `log`, `journal` or `disk`"),
        code: z.enum(Object.keys(ERRORS) as [ErrorCode, ...ErrorCode[]]),
        message: z.string(),
        next: z.string().nullable(),
        since: z.iso.datetime(),
      }),
    )
    .describe("What keeps everything new closed; ending, revoking and proving go on"),
  store: z.object({
    separate: z.boolean().describe("Whether the login that Glasskey works with can change nothing in the log"),
    detail: z.string().nullable().describe("Where it can: what to do"),
  }),
});
export type StandingView = z.infer<typeof standingView>;
