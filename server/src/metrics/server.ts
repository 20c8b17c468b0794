import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, GlassError } from "../core/errors.ts";
import type { Health, Probe } from "./health.ts";
import type { Metrics } from "./metrics.ts";

export interface MetricsServer {
  /** The port that was really taken. */
  readonly port: number;
  stop(): Promise<void>;
}

const MAX_CONNECTIONS = 32;
const REQUEST_MS = 10_000;

/**
 * `/metrics`, `/healthz` and `/readyz` over plain HTTP, and nothing else. Asks nobody who he is: what it tells are counts.
 * @throws GlassError `config_invalid` when it cannot listen.
 */
export async function startMetricsServer(
  at: { host: string; port: number },
  { metrics, health }: { metrics: Pick<Metrics, "text" | "contentType">; health: Health },
): Promise<MetricsServer> {
  const server = createServer({ requestTimeout: REQUEST_MS, headersTimeout: REQUEST_MS, maxHeaderSize: 8_192 });
  server.maxConnections = MAX_CONNECTIONS;
  server.keepAliveTimeout = 5_000;
  server.on("request", (request, response) => {
    request.resume(); // no body is read, and none is kept
    const get = request.method === "GET" || request.method === "HEAD";
    const path = (request.url ?? "").split("?", 1)[0];
    void answer(get ? path : undefined, { metrics, health }, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) => {
      const next = "Set another port under `listen: metrics:` in glasskey.yaml, or stop what has it.";
      reject(
        new GlassError("config_invalid", `cannot listen on ${at.host}:${at.port}: ${describe(cause)}`, { next, cause }),
      );
    });
    server.listen(at.port, at.host, resolve);
  });
  return { port: (server.address() as AddressInfo).port, stop: () => stop(server) };
}

async function answer(
  path: string | undefined,
  { metrics, health }: { metrics: Pick<Metrics, "text" | "contentType">; health: Health },
  response: ServerResponse,
): Promise<void> {
  response.setHeader("cache-control", "no-store");
  response.setHeader("x-content-type-options", "nosniff");
  switch (path) {
    case "/metrics":
      response.setHeader("content-type", metrics.contentType);
      response.end(await metrics.text());
      return;
    case "/healthz":
      return tell(response, health.live());
    case "/readyz":
      return tell(response, await health.ready());
    case undefined:
      response.writeHead(405, { allow: "GET, HEAD" }).end();
      return;
    default:
      response.writeHead(404).end();
  }
}

function tell(response: ServerResponse, { ok, reasons, notes }: Probe): void {
  response.writeHead(ok ? 200 : 503, { "content-type": "application/json", ...(ok ? {} : { "retry-after": "5" }) });
  response.end(JSON.stringify({ ok, reasons, notes }));
}

function stop(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
