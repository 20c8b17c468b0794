import { expect, test, vi } from "vitest";
import { createConnection } from "./connection.ts";
import { transportPair } from "./fixtures/transport-pair.ts";
import type { Channel, ChannelHandlers } from "./types.ts";

const silent = (onData: (bytes: Buffer) => void): ChannelHandlers => ({
  onData,
  onRequest: () => Promise.resolve(true),
  onEof: () => undefined,
  onClose: () => undefined,
});

test("200 channels that nobody reads hold less than 64 MiB in all, whoever opened them; a few get a whole window each", async () => {
  for (const opener of ["client", "server"] as const) {
    const pair = transportPair({ highWaterBytes: 1 << 20 });
    const received: number[] = [];
    const reader = (): ChannelHandlers => {
      const at = received.push(0) - 1;
      return silent((bytes) => void (received[at] = (received[at] ?? 0) + bytes.length));
    };
    const senders: Channel[] = [];
    const side = (accepts: () => ChannelHandlers, accepted: (channel: Channel) => void) => ({
      onOpen: (_open: unknown, accept: { accept(handlers: ChannelHandlers): Channel }) =>
        accepted(accept.accept(accepts())),
      onRequest: () => Promise.resolve({ ok: false }),
      onClose: () => undefined,
    });
    const noop = (): ChannelHandlers => silent(() => undefined);
    // What is sent goes from client to server, whoever opened the channel.
    const client = createConnection(
      pair.client,
      side(noop, (channel) => senders.push(channel)),
    );
    const server = createConnection(
      pair.server,
      side(reader, () => undefined),
    );
    for (let n = 0; n < 200; n += 1) {
      if (opener === "client") senders.push(await client.open("session", Buffer.alloc(0), noop()));
      else await server.open("session", Buffer.alloc(0), reader());
    }
    const much = Buffer.alloc(2 * 1024 * 1024);
    for (const channel of senders) channel.write(much);
    const total = (): number => received.reduce((sum, bytes) => sum + bytes, 0);
    await vi.waitFor(() => expect(total()).toBe(16 * 2 * 1024 * 1024 + 184 * 128 * 1024), { timeout: 20_000 });
    expect(total()).toBeLessThan(64 * 1024 * 1024);
    client.destroy();
    server.destroy();
  }
});
