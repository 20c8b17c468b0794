import { z } from "zod";

/** How a native client reaches a target under a grant, and what a target needs before any lease can be minted on it. */

const time = z.iso.datetime().describe("ISO 8601, UTC");

/** The largest RSA key that anybody has, with its comment, is half of that. */
const PUBLIC_KEY_MAX = 8_192;

export const connectRequest = z
  .strictObject({
    publicKey: z
      .string()
      .max(PUBLIC_KEY_MAX)
      .optional()
      .describe("For kinds with client certificates: the client's own public key, one line as in its file"),
  })
  .nullish();

export const connectAnswer = z.object({
  grant: z.string(),
  kind: z.string(),
  host: z.string(),
  port: z.number().int(),
  user: z.string(),
  secret: z.string().describe("The connect secret of this grant; works until its end"),
  secretEnv: z.string().describe("Environment variable that the native client reads the secret from"),
  env: z
    .record(z.string(), z.string())
    .describe("Environment for any other client of this protocol; `{ca}` as in `argv`"),
  ca: z.string().describe("PEM that the gateway's certificate chains to"),
  trust: z
    .string()
    .describe("What a client knows the gateway by in this protocol, such as a line for known_hosts; may be empty"),
  argv: z.array(z.string()).describe("The native client's command; `{ca}` stands for a file with `ca`"),
  certificate: z
    .string()
    .nullable()
    .describe(
      "For `publicKey`, as the client's file has it; opens this grant at the gateway and nothing else. Null without a key, and for kinds that have no such certificates",
    ),
  certificateUntil: time.nullable(),
  endsAt: time,
});
export type ConnectAnswer = z.infer<typeof connectAnswer>;

export const targetSetup = z.object({
  kind: z.string(),
  target: z.string().nullable().describe("Null where only the kind was asked for"),
  steps: z.array(
    z.object({
      title: z.string(),
      file: z.string().optional().describe("What the text is put into; absent for a command"),
      text: z.string(),
    }),
  ),
  formats: z.record(z.string(), z.string()).describe("The same as a whole, by tool, such as `shell`"),
});
export type TargetSetup = z.infer<typeof targetSetup>;
