import swagger from "@fastify/swagger";
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import {
  jsonSchemaTransform,
  serializerCompiler,
  validatorCompiler,
  type ZodTypeProvider,
} from "fastify-type-provider-zod";
import { describe, GlassError } from "../core/errors.ts";
import { storeError } from "../store/database.ts";
import { archiveRoutes } from "./archive.ts";
import { evidenceRoutes } from "./evidence.ts";
import { grantRoutes } from "./grants.ts";
import { linkRoutes } from "./links.ts";
import { logRoutes } from "./log.ts";
import { probeRoutes } from "./metrics.ts";
import { personRoutes } from "./people.ts";
import { policyRoutes } from "./policy.ts";
import { recordingRoutes } from "./recordings.ts";
import { reportRoutes } from "./reports.ts";
import { reviewRoutes } from "./reviews.ts";
import type { Api } from "./services.ts";
import { sessionRoutes } from "./sessions.ts";
import { sinkRoutes } from "./sinks.ts";
import { retentionRoutes } from "./retention.ts";
import { standingRoutes } from "./standing.ts";
import { targetRoutes } from "./targets.ts";

export type App = FastifyInstance;

const BODY_LIMIT_BYTES = 64 * 1024;
const REQUEST_TIMEOUT_MS = 150_000; // ending a grant may wait up to two minutes for its proof

/** The HTTP API over the domain. Maps the contract to it and back, and decides nothing itself. */
export async function buildApp(api: Api, tls?: { key: string; cert: string }): Promise<App> {
  const common = {
    bodyLimit: BODY_LIMIT_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    trustProxy: false,
    forceCloseConnections: true,
  } as const;
  const app = (
    tls === undefined ? fastify(common) : fastify({ ...common, https: { ...tls, minVersion: "TLSv1.2" } })
  ) as App;
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler((error, request, reply) => sendError(api, error, request, reply));
  app.setNotFoundHandler((request, reply) =>
    sendError(
      api,
      new GlassError("not_found", `there is no ${request.method} ${request.url.slice(0, 200)}`),
      request,
      reply,
    ),
  );
  app.addHook("onSend", (_request, reply, _payload, done) => {
    void reply
      .header("x-content-type-options", "nosniff")
      .header("cache-control", reply.getHeader("cache-control") ?? "no-store");
    done();
  });
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Glasskey",
        version: "1",
        description: "Break-glass access: ask, approve, connect, end, prove, read the log.",
      },
      components: { securitySchemes: { token: { type: "http", scheme: "bearer" } } },
      security: [{ token: [] }],
    },
    transform: jsonSchemaTransform,
  });
  await app.register((scope, _options, done) => {
    const routes = scope.withTypeProvider<ZodTypeProvider>();
    personRoutes(routes, api);
    grantRoutes(routes, api);
    reviewRoutes(routes, api);
    reportRoutes(routes, api);
    sessionRoutes(routes, api);
    recordingRoutes(routes, api);
    retentionRoutes(routes, api);
    standingRoutes(routes, api);
    targetRoutes(routes, api);
    policyRoutes(routes, api);
    logRoutes(routes, api);
    archiveRoutes(routes, api);
    evidenceRoutes(routes, api, api.evidence);
    sinkRoutes(routes, api, api.sinks);
    probeRoutes(routes, api);
    done();
  });
  await app.register(
    (scope, _options, done) => {
      linkRoutes(scope, api);
      done();
    },
    { prefix: "/a" },
  );
  await app.ready();
  return app;
}

async function sendError(api: Api, thrown: unknown, request: FastifyRequest, reply: FastifyReply): Promise<void> {
  const error = toGlassError(thrown);
  if (error.code === "internal") api.warn(`${request.method} ${request.routeOptions.url ?? "?"}: ${describe(thrown)}`);
  const { code, message, next, details } = error;
  await reply
    .status(error.status)
    .type("application/json")
    .serializer(JSON.stringify)
    .send({
      error: { code, message, ...(next === undefined ? {} : { next }), ...(details === undefined ? {} : { details }) },
    });
}

function toGlassError(thrown: unknown): GlassError {
  const error = storeError(thrown);
  if (error instanceof GlassError) return error;
  const status = error instanceof Error && "statusCode" in error ? Number(error.statusCode) : 500;
  if (error instanceof Error && "validation" in error && Array.isArray(error.validation)) {
    const faults = (error.validation as { instancePath?: string; message?: string }[]).map(
      ({ instancePath = "", message = "is not valid" }) =>
        `${instancePath.slice(1).replaceAll("/", ".")} ${message}`.trim(),
    );
    return new GlassError("usage", faults.slice(0, 5).join("; "));
  }
  if (status >= 400 && status < 500) return new GlassError("usage", describe(error));
  return new GlassError("internal", "something went wrong in Glasskey", {
    next: "The server's output has the details.",
    cause: error,
  });
}
