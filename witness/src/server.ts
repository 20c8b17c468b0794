import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo } from "node:net";
import type { WitnessFolder } from "./folder.ts";
import { addCheckpoint } from "./witness.ts";

export interface ServeOptions {
  readonly witness: WitnessFolder;
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** PEM. Without it the server speaks plain HTTP. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  /** Told what went wrong inside, such as a disk that is full. The client is not. */
  onProblem(error: unknown): void;
}

export interface WitnessServer {
  readonly port: number;
  stop(): Promise<void>;
}

/** 63 proof lines and a checkpoint with sixteen of the largest signatures fit several times. */
const MAX_BODY_BYTES = 256 << 10;
/** Each may hold a body; a log needs one. */
const MAX_CONNECTIONS = 128;
/** A request is one small body: more time than this is somebody who holds a connection open. */
const REQUEST_TIMEOUT_MS = 10_000;
/** Long enough for a log that asks every second to keep its connection, as tlog-witness recommends. */
const KEEP_ALIVE_MS = 30_000;

/** Serves `POST /add-checkpoint` and nothing else. @throws when the address cannot be had. */
export async function serveWitness(options: ServeOptions): Promise<WitnessServer> {
  const handle = (request: IncomingMessage, response: ServerResponse): void => {
    // What rejects is the reading of a body whose sender left: nobody is there to be told.
    answer(options, request, response).catch(() => response.destroy());
  };
  const limits = {
    ...{ requestTimeout: REQUEST_TIMEOUT_MS, headersTimeout: REQUEST_TIMEOUT_MS, maxHeaderSize: 8 << 10 },
    ...{ keepAliveTimeout: KEEP_ALIVE_MS, connectionsCheckingInterval: 1_000 },
  };
  const server =
    options.tls === undefined
      ? createHttpServer(limits, handle)
      : createHttpsServer({ ...limits, ...options.tls, minVersion: "TLSv1.2" }, handle);
  server.maxConnections = MAX_CONNECTIONS;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.host, () => {
      server.off("error", reject);
      resolve();
    });
  });
  server.on("error", options.onProblem);
  return {
    port: (server.address() as AddressInfo).port,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections(); // what was cosigned is on the disk; whoever did not hear asks again
      }),
  };
}

async function answer(
  { witness, onProblem }: ServeOptions,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  if (request.method !== "POST" || request.url !== "/add-checkpoint") return end(request, response, 404, "not found\n");
  const body = await readBody(request);
  if (body === undefined) return end(request, response, 413, "the body is too large\n");
  let found;
  try {
    found = addCheckpoint(witness, body);
  } catch (error) {
    onProblem(error);
    return end(request, response, 500, "this witness cannot cosign now\n");
  }
  const contentType = found.status === 409 ? found.contentType : undefined;
  return end(request, response, found.status, found.body, contentType);
}

/** Undefined when there is more than the limit; what follows is not read. */
async function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  if (Number(request.headers["content-length"] ?? 0) > MAX_BODY_BYTES) return undefined;
  const parts: Buffer[] = [];
  let length = 0;
  for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += part.length;
    if (length > MAX_BODY_BYTES) return undefined;
    parts.push(part);
  }
  return Buffer.concat(parts);
}

function end(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  body: string,
  contentType = "text/plain; charset=utf-8",
): void {
  // A body that was not read to its end leaves the connection unusable for the next request.
  const headers = {
    "content-type": contentType,
    "content-length": Buffer.byteLength(body),
    "cache-control": "no-store",
  };
  response.writeHead(status, request.complete ? headers : { ...headers, connection: "close" });
  response.end(body);
}
