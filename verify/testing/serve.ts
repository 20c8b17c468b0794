import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";

export interface TestServer {
  /** Of the log, ending in `/log/`. */
  readonly url: string;
  readonly requests: IncomingMessage[];
  stop(): Promise<void>;
}

/** What a test answers itself; false: the file is served. */
export type Hook = (request: IncomingMessage, response: ServerResponse) => boolean;

/** Serves files under /log/ on a free loopback port, as a Glasskey does. */
export async function serveLog(
  files: ReadonlyMap<string, Uint8Array>,
  hook: Hook = () => false,
  tls?: { cert: string; key: string },
): Promise<TestServer> {
  const requests: IncomingMessage[] = [];
  const listener: RequestListener = (request, response) => {
    requests.push(request);
    if (hook(request, response)) return;
    const bytes = files.get(request.url?.replace("/log/", "") ?? "");
    response.writeHead(bytes === undefined ? 404 : 200, { "content-type": "application/octet-stream" });
    response.end(bytes);
  };
  const server = tls === undefined ? createServer(listener) : createTlsServer(tls, listener);
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    url: `${tls === undefined ? "http" : "https"}://127.0.0.1:${port}/log/`,
    requests,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
