import { z } from "zod";

/** Evidence that a source pushes, signed per Standard Webhooks, and incidents that a person may name. */

const rota = z.string().regex(/^[a-z][a-z0-9._-]{0,62}$/, "is not the name of a rota");
const personId = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._@:+/|-]{0,127}$/, "is not a person's name or alias");
const incidentRef = z.string().regex(/^[A-Za-z0-9#][A-Za-z0-9._:#/@+-]{0,127}$/, "is not an incident's reference");
const severity = z.string().regex(/^[A-Za-z][A-Za-z0-9_-]{0,31}$/, "is not a severity such as SEV1");
const MAX_ENTRIES = 100;

const few = (map: object): boolean => Object.keys(map).length <= MAX_ENTRIES;
const tooMany = `has more than ${MAX_ENTRIES} entries`;

/** The body of `POST /v1/evidence/{name}`. */
export const evidencePush = z.strictObject({
  observedAt: z.iso.datetime({ offset: true }).describe("When the source looked; a later one is never overwritten"),
  ttl: z
    .string()
    .regex(/^(?:\d{1,2}h)?(?:\d{1,4}m)?(?:\d{1,5}s)?$/, "is not a duration such as 15m")
    .describe("How long the facts hold, from observedAt: 15m, 2h; a day at most"),
  oncall: z
    .record(rota, z.array(personId).max(50))
    .refine(few, tooMany)
    .optional()
    .describe("Rota → everybody who is on call, by name or alias; an empty list: nobody"),
  incidents: z
    .record(
      incidentRef,
      z.discriminatedUnion("state", [
        z.strictObject({ state: z.literal("open"), severity }),
        z.strictObject({ state: z.literal("closed") }),
      ]),
    )
    .refine(few, tooMany)
    .optional()
    .describe("Reference → what is known of the incident"),
});

export const evidenceTaken = z.object({
  taken: z.number().int().describe("Facts that were news"),
  outdated: z.number().int().describe("Facts of which a later observation was there already"),
});

export const incidentList = z.object({
  incidents: z.array(z.object({ ref: z.string(), severity: z.string(), summary: z.string(), source: z.string() })),
});
export type IncidentList = z.infer<typeof incidentList>;
