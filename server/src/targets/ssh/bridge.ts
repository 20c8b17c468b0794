import type { Channel, ChannelHandlers } from "./types.ts";

/** Two channels joined byte for byte, such as the two ends of a forward. Nothing waits here but what came before the join. */
export interface Bridge {
  /** Handlers of the client's channel and of the target's. */
  readonly client: ChannelHandlers;
  readonly target: ChannelHandlers;
  join(client: Channel, target: Channel): void;
  /** Both channels are closed at once, and what is queued is forgotten. */
  abort(): void;
}

export interface BridgeParts {
  /** Before the bytes go on; they may be read until it returns. `in` is from the user's client to the target. */
  moved(direction: "in" | "out", data: Buffer): void;
  /** Both ends are closed. Once. */
  over(): void;
}

export function createBridge(parts: BridgeParts): Bridge {
  const channels: { client: Channel | undefined; target: Channel | undefined } = {
    client: undefined,
    target: undefined,
  };
  /** What came before both ends were there: at most a window, because nothing of it is given back. */
  let early: (() => void)[] | undefined = [];
  let closed = 0;

  const handlers = (from: "client" | "target", to: "client" | "target", direction: "in" | "out"): ChannelHandlers => {
    const pass = (data: Buffer): void => {
      const { length } = data;
      parts.moved(direction, data);
      channels[to]?.write(data, 0, () => channels[from]?.consumed(length));
    };
    const whenJoined = (act: () => void): void => {
      if (early === undefined) act();
      else early.push(act);
    };
    return {
      onData(data) {
        if (early === undefined) return pass(data);
        const copy = Buffer.from(data);
        early.push(() => pass(copy));
      },
      onRequest: () => Promise.resolve(false),
      onEof: () => whenJoined(() => channels[to]?.eof()),
      // Answered when the other end is closed: until then what waits for it counts as a channel's.
      onClosing: () => whenJoined(() => channels[to]?.close()),
      onClose() {
        whenJoined(() => channels[to]?.close());
        closed += 1;
        if (closed === 2) parts.over();
      },
    };
  };

  return {
    client: handlers("client", "target", "in"),
    target: handlers("target", "client", "out"),
    join(client, target) {
      channels.client = client;
      channels.target = target;
      const waiting = early ?? [];
      early = undefined;
      for (const act of waiting) act();
    },
    abort() {
      channels.client?.abort();
      channels.target?.abort();
    },
  };
}
