import { createServer, request, type IncomingHttpHeaders, type RequestListener } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { once } from "node:events";

/** What stands between us and the real answer: gets both and says what we see; undefined: the connection is cut. */
export interface Meddling {
  before?: (
    seen: Seen,
  ) => { status: number; headers?: Record<string, string>; body?: string } | "cut" | "hang" | undefined;
  after?: (seen: Seen, answer: Answer) => Answer;
}
export interface Seen {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
}
export interface Answer {
  readonly status: number;
  readonly headers: Record<string, string | string[] | undefined>;
  readonly body: Buffer;
  /** Send this many bytes of the body, and cut. */
  readonly cutAfter?: number;
}

/** A server in front of the emulator that lies in a way that the test says. */
export interface Meddler {
  readonly url: string;
  meddling: Meddling;
  readonly seen: Seen[];
  stop(): Promise<void>;
}

export async function startMeddler(target: string, tls?: { key: string; cert: string }): Promise<Meddler> {
  const seen: Seen[] = [];
  const state: { meddling: Meddling } = { meddling: {} };
  const listener: RequestListener = (incoming, outgoing) => {
    const parts: Buffer[] = [];
    incoming.on("data", (part: Buffer) => parts.push(part));
    incoming.on("error", () => {});
    incoming.on("end", () => {
      const one: Seen = { method: incoming.method ?? "", path: incoming.url ?? "", headers: incoming.headers };
      seen.push(one);
      const instead = state.meddling.before?.(one);
      if (instead === "hang") return;
      if (instead === "cut") {
        outgoing.socket?.destroy();
        return;
      }
      if (instead !== undefined) {
        outgoing.writeHead(instead.status, instead.headers);
        outgoing.end(instead.body ?? "");
        return;
      }
      const forward = request(
        new URL(incoming.url ?? "/", target),
        { method: incoming.method, headers: incoming.headers },
        (answer) => {
          const body: Buffer[] = [];
          answer.on("data", (part: Buffer) => body.push(part));
          answer.on("end", () => {
            const real: Answer = {
              status: answer.statusCode ?? 0,
              headers: { ...answer.headers },
              body: Buffer.concat(body),
            };
            const shown = state.meddling.after?.(one, real) ?? real;
            for (const [name, value] of Object.entries(shown.headers)) {
              if (value !== undefined) outgoing.setHeader(name, value);
            }
            outgoing.writeHead(shown.status);
            if (shown.cutAfter === undefined) outgoing.end(shown.body);
            else outgoing.write(shown.body.subarray(0, shown.cutAfter), () => outgoing.socket?.destroy());
          });
        },
      );
      forward.on("error", () => outgoing.socket?.destroy());
      forward.end(Buffer.concat(parts));
    });
  };
  const server = tls === undefined ? createServer(listener) : createTlsServer(tls, listener);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    url: `${tls === undefined ? "http" : "https"}://127.0.0.1:${port}`,
    get meddling() {
      return state.meddling;
    },
    set meddling(meddling) {
      state.meddling = meddling;
    },
    seen,
    async stop() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
