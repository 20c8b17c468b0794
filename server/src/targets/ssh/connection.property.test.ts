import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createConnection } from "./connection.ts";
import { transportPair } from "./fixtures/transport-pair.ts";
import type { Channel, ChannelHandlers, Connection } from "./types.ts";

const NONE = Buffer.alloc(0);
const CHANNELS = 3;

/** One direction of one channel: what was written to it, and what came out, per stream. */
interface Way {
  writer: Channel | undefined;
  reader: Channel | undefined;
  readonly written: [Buffer[], Buffer[]];
  readonly read: [Buffer[], Buffer[]];
  unconsumed: number;
  /** Written and not yet told as sent. */
  untold: number;
  eofs: number;
  closes: number;
}
const way = (): Way => ({
  ...{ writer: undefined, reader: undefined, written: [[], []], read: [[], []] },
  ...{ unconsumed: 0, untold: 0, eofs: 0, closes: 0 },
});

function handlersOf(incoming: Way, windowBytes: number): ChannelHandlers {
  return {
    onData(data, stream) {
      incoming.read[stream === 0 ? 0 : 1].push(Buffer.from(data));
      incoming.unconsumed += data.length;
      if (incoming.unconsumed > windowBytes) throw new Error("the peer is further ahead than the window");
    },
    onRequest: ({ data }) => Promise.resolve(data[0] === 1),
    onEof: () => void (incoming.eofs += 1),
    onClose: () => void (incoming.closes += 1),
  };
}

const step = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant("write" as const),
      channel: fc.nat(CHANNELS - 1),
      up: fc.boolean(),
      stream: fc.nat(1),
      bytes: fc.nat(3000),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("consume" as const),
      channel: fc.nat(CHANNELS - 1),
      up: fc.boolean(),
      bytes: fc.nat(3000),
    }),
  },
  { weight: 5, arbitrary: fc.record({ do: fc.constant("pump" as const), packets: fc.integer({ min: 1, max: 8 }) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("ask" as const),
      channel: fc.nat(CHANNELS - 1),
      up: fc.boolean(),
      yes: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.constant({ do: "wait" as const }) },
);

describe("two ends of one connection, whatever is done in whatever order", () => {
  test("keep every byte of every stream of every channel in order, run over no window, and end empty", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 150 }),
        fc.record({
          windowBytes: fc.integer({ min: 1, max: 5000 }),
          packetBytes: fc.integer({ min: 256, max: 2000 }),
          highWaterBytes: fc.integer({ min: 1, max: 3000 }),
        }),
        async (steps, { windowBytes, packetBytes, highWaterBytes }) => {
          let most = 1;
          const pair = transportPair({ highWaterBytes, schedule: () => {}, packetsPerPump: () => most });
          const [up, down] = [Array.from({ length: CHANNELS }, way), Array.from({ length: CHANNELS }, way)];
          const limits = { windowBytes, packetBytes };
          const others = { onRequest: () => Promise.resolve({ ok: false }), onClose: () => {} };
          let accepted = 0;
          createConnection(
            pair.server,
            {
              ...others,
              onOpen(_open, accept) {
                const [incoming, outgoing] = [up[accepted], down[accepted]];
                accepted += 1;
                if (incoming === undefined || outgoing === undefined) throw new Error("too many channels");
                const channel = accept.accept(handlersOf(incoming, windowBytes));
                incoming.reader = channel;
                outgoing.writer = channel;
              },
            },
            limits,
          );
          const client: Connection = createConnection(
            pair.client,
            { ...others, onOpen: (_o, a) => a.refuse(1, "no") },
            limits,
          );
          for (const [index, outgoing] of up.entries()) {
            const incoming = down[index] ?? way();
            const opening = client.open("session", NONE, handlersOf(incoming, windowBytes));
            most = 10;
            pair.pump();
            pair.pump();
            const channel = await opening;
            outgoing.writer = channel;
            incoming.reader = channel;
          }
          await new Promise(setImmediate);
          const asked: Promise<boolean>[] = [];
          const wanted: boolean[] = [];
          const at = (one: { up: boolean; channel: number }): Way => (one.up ? up : down)[one.channel] ?? way();
          const consume = (one: Way, bytes: number): void => {
            const done = Math.min(bytes, one.unconsumed);
            one.unconsumed -= done;
            one.reader?.consumed(done);
          };
          let value = 0;
          for (const one of steps) {
            if (one.do === "write") {
              const bytes = Buffer.alloc(one.bytes, (value += 1));
              const to = at(one);
              to.written[one.stream === 0 ? 0 : 1].push(bytes);
              to.untold += 1;
              to.writer?.write(bytes, one.stream, () => (to.untold -= 1));
            } else if (one.do === "consume") consume(at(one), one.bytes);
            else if (one.do === "ask") {
              wanted.push(one.yes);
              const answer = at(one).writer?.request("x", true, Buffer.of(one.yes ? 1 : 0));
              if (answer !== undefined) asked.push(answer);
            } else if (one.do === "pump") {
              most = one.packets;
              pair.pump();
            } else await new Promise(setImmediate);
          }
          const ways = [...up, ...down];
          for (const { writer } of ways) writer?.eof();
          const carryUntil = async (isDone: () => boolean): Promise<void> => {
            most = 1000;
            for (let round = 0; round < 100_000 && !isDone(); round += 1) {
              for (const one of ways) consume(one, Infinity);
              pair.pump();
              if (round % 20 === 19) await new Promise(setImmediate);
            }
          };
          await carryUntil(() => ways.every(({ eofs }) => eofs === 1));
          expect([pair.client.disconnected, pair.server.disconnected]).toEqual([undefined, undefined]);
          for (const { written, read, untold, eofs, writer } of ways) {
            for (const stream of [0, 1] as const) {
              expect(Buffer.concat(read[stream]).equals(Buffer.concat(written[stream]))).toBe(true);
            }
            expect([untold, eofs, writer?.pendingBytes]).toEqual([0, 1, 0]);
          }
          const answers: boolean[] = [];
          for (const answer of asked) void answer.then((ok) => answers.push(ok));
          await carryUntil(() => answers.length === wanted.length);
          expect(await Promise.all(asked)).toEqual(wanted);
          for (const { writer } of up) writer?.close();
          await carryUntil(() => ways.every(({ closes }) => closes === 1));
          expect(ways.map(({ closes }) => closes)).toEqual(ways.map(() => 1));
          expect(client.channels).toBe(0);
        },
      ),
      { numRuns: 200 },
    );
  });
});
