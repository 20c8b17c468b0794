import { evidencePush, evidenceTaken, incidentList } from "@glasskey/contract";
import type { ZodTypeProvider } from "fastify-type-provider-zod";
import { z } from "zod";
import type { EvidenceService } from "../access/access.ts";
import { denied } from "../access/request.ts";
import { parseDuration } from "../core/duration.ts";
import { GlassError } from "../core/errors.ts";
import type { PushedFacts, PushReceiver } from "../evidence/push.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

const MAX_BODY_BYTES = 64 * 1024;
const MAX_LISTED = 100;

/** What sources push, and the incidents that they know of. */
export function evidenceRoutes(app: Routes, api: Api, evidence: EvidenceService & PushReceiver): void {
  app.get(
    "/v1/incidents",
    {
      schema: {
        summary: "Open incidents that the sources of evidence know of now",
        response: answers(incidentList),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const decision = api.access.policy().decide({ action: "list_playbooks", person });
      if (!decision.allow) throw denied(decision);
      return { incidents: (await evidence.openIncidents()).slice(0, MAX_LISTED) };
    },
  );

  // A scope of its own: here the body stays the bytes that were signed.
  void app.register((scope, _options, done) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", { parseAs: "buffer", bodyLimit: MAX_BODY_BYTES }, (_request, body, parsed) =>
      parsed(null, body),
    );
    scope.withTypeProvider<ZodTypeProvider>().post(
      "/v1/evidence/:source",
      {
        bodyLimit: MAX_BODY_BYTES,
        schema: {
          summary:
            "A source pushes facts, signed per Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature)",
          security: [],
          params: z.object({ source: z.string().max(64) }),
          body: evidencePush,
          response: answers(evidenceTaken),
        },
        // Nothing of the body is looked at before its signature.
        validatorCompiler:
          ({ schema, httpPart }) =>
          (value: unknown) =>
            httpPart === "params" && schema instanceof z.ZodType ? { value: schema.parse(value) } : { value },
      },
      async (request) => {
        const header = (name: string): string | undefined => {
          const value = request.headers[name];
          return typeof value === "string" ? value : undefined;
        };
        const body: unknown = request.body;
        return evidence.receive(
          {
            source: request.params.source,
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body: Buffer.isBuffer(body) ? body : Buffer.alloc(0),
          },
          readPush,
        );
      },
    );
    done();
  });
}

/** @throws GlassError `usage` that names what is wrong; what the sender wrote is not repeated. */
function readPush(body: Buffer): PushedFacts {
  const parsed = evidencePush.safeParse(parseJson(body));
  if (!parsed.success) {
    const places = parsed.error.issues
      .slice(0, 5)
      .map(({ path: [top] }) => (typeof top === "string" ? top : "the body"));
    throw new GlassError("usage", `not well-formed: ${[...new Set(places)].join(", ")}`, {
      next: "docs/evidence.md shows what a push has.",
    });
  }
  const { oncall = {}, incidents = {}, observedAt, ttl } = parsed.data;
  return {
    oncall: new Map(Object.entries(oncall)),
    incidents: new Map(Object.entries(incidents)),
    observedAt: new Date(observedAt),
    ttlMs: parseDuration(ttl),
  };
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder("utf8", { fatal: true }).decode(body), (key: string, value: unknown) => {
      if (key === "__proto__") throw new Error("no such key");
      return value;
    });
  } catch {
    throw new GlassError("usage", "the body is not JSON");
  }
}
