import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";

/** How a fake misbehaves; `well`: not at all. */
export type Mood =
  | "well"
  | "silent"
  | "broken"
  | "busy"
  | "html"
  | "huge"
  | "elsewhere"
  | "compressed"
  | "hang up"
  | "endless";

export interface FakeServer {
  readonly url: string;
  mood: Mood;
  /** `METHOD PATH?QUERY` of what was asked, in order. */
  readonly asked: string[];
  stop(): Promise<void>;
}

export interface Asked {
  readonly method: string;
  readonly url: URL;
  readonly headers: IncomingMessage["headers"];
  readonly body: unknown;
}

export type Answer = { readonly status: number; readonly body: unknown };

/** A fake of some vendor's API on a free port of this machine: `answer` when it is well. */
export async function startFake(answer: (asked: Asked) => Answer): Promise<FakeServer> {
  const server = createServer((request, response) => void respond(request, response));
  const respond = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString("utf8");
    const url = new URL(request.url ?? "/", "http://fake");
    const method = request.method ?? "";
    fake.asked.push(`${method} ${url.pathname}${decodeURIComponent(url.search)}`);
    const send = (status: number, body: string, headers: Record<string, string> = {}): void => {
      response.writeHead(status, { "content-type": "application/json", ...headers });
      response.end(body);
    };
    switch (fake.mood) {
      case "silent":
        return;
      case "broken":
        return send(503, "{}");
      case "busy":
        return send(429, "{}", { "retry-after": "60" });
      case "html":
        return send(200, "<html><body>Welcome</body></html>", { "content-type": "text/html" });
      case "huge":
        return send(200, JSON.stringify(Array.from({ length: 1_000_000 }, (_, index) => `entry ${index}`)));
      case "elsewhere":
        return send(302, "", { location: `http://127.0.0.1:9/?token=${request.headers.authorization ?? ""}` });
      case "compressed":
        return send(200, "{}", { "content-encoding": "gzip" });
      case "hang up":
        response.socket?.destroy();
        return;
      case "endless":
        response.writeHead(200, { "content-type": "application/json" });
        response.write("[");
        return;
      case "well": {
        const { status, body } = answer({
          method,
          url,
          headers: request.headers,
          body: text === "" ? undefined : JSON.parse(text),
        });
        return send(status, JSON.stringify(body));
      }
    }
  };
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  const fake: FakeServer = {
    ...{ url: `http://127.0.0.1:${port}`, mood: "well", asked: [] },
    async stop() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
  return fake;
}
