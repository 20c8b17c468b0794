import { z } from "zod";

/** What `/healthz` and `/readyz` answer, to anybody: a word for each thing that is not as it should be, and no more. */
export const probeAnswer = z.object({
  ok: z.boolean(),
  reasons: z.array(z.string()),
  notes: z.array(z.string()).optional().describe("What is weaker than it could be, and stops nothing"),
});
export type ProbeAnswer = z.infer<typeof probeAnswer>;
