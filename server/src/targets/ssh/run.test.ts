import { expect, test } from "vitest";
import { createConnection } from "./connection.ts";
import { transportPair } from "./fixtures/transport-pair.ts";
import { run } from "./run.ts";
import type { Accept, ConnectionHandlers } from "./types.ts";

/** Commands of Glasskey's own on a target that lies: the other end is a fake. */

const QUIET: ConnectionHandlers = {
  onOpen: () => {},
  onRequest: () => Promise.resolve({ ok: false }),
  onClose: () => {},
};

test("a command for which the target opens no channel is given up when the caller says so, and what opens late is closed", async () => {
  const pair = transportPair();
  const client = createConnection(pair.client, QUIET);
  const asked = Promise.withResolvers<Accept>();
  createConnection(pair.server, { ...QUIET, onOpen: (_open, accept) => asked.resolve(accept) });
  const stop = new AbortController();
  const running = run(client, "fence", { limitBytes: 1000, signal: stop.signal });
  const accept = await asked.promise;
  stop.abort(new Error("enough"));
  await expect(running).rejects.toThrow("enough");

  const closed = Promise.withResolvers<void>();
  const requests: string[] = [];
  accept.accept({
    onData: () => expect.unreachable(),
    onRequest({ type }) {
      requests.push(type);
      return Promise.resolve(true);
    },
    onEof: () => {},
    onClose: () => closed.resolve(),
  });
  await closed.promise;
  expect([requests, client.channels]).toEqual([[], 0]);
});
