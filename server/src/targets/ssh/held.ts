import { DISCONNECT, SshError, type Transport } from "./types.ts";

/** What came in between authentication and the connection protocol, whose start a caller decides. */
interface Held {
  readonly packets: Buffer[];
  bytes: number;
  ended: { readonly error: SshError | undefined } | undefined;
}

/** One socket's read is not much more; the rest stays in the kernel, because the transport is paused. */
const MAX_HELD_BYTES = 1024 * 1024;
const MAX_HELD_PACKETS = 1024;

const heldBy = new WeakMap<Transport, Held>();

/** Keeps what the transport says until {@link takeOver}, and stops it from reading more. */
export function hold(transport: Transport): void {
  const held: Held = { packets: [], bytes: 0, ended: undefined };
  heldBy.set(transport, held);
  transport.onPacket = (payload) => {
    held.bytes += payload.length;
    if (held.bytes > MAX_HELD_BYTES || held.packets.length >= MAX_HELD_PACKETS) {
      held.packets.length = 0;
      held.ended = { error: new SshError(DISCONNECT.protocolError, "too much came before the connection could begin") };
      transport.disconnect(DISCONNECT.protocolError, "too much came before the connection could begin");
    } else if (held.ended === undefined) held.packets.push(Buffer.from(payload));
  };
  transport.onDrain = () => {};
  transport.onClose = (error) => {
    held.ended ??= { error };
  };
  transport.pause();
}

/**
 * Sets a transport's handlers. What was held is handed to them first, in a microtask: the caller has got what it makes by
 * then.
 */
export function takeOver(transport: Transport, to: Pick<Transport, "onPacket" | "onDrain" | "onClose">): void {
  const held = heldBy.get(transport);
  if (held === undefined) {
    Object.assign(transport, to);
    return;
  }
  queueMicrotask(() => {
    heldBy.delete(transport);
    for (const payload of held.packets) to.onPacket(payload);
    if (held.ended !== undefined) {
      to.onClose(held.ended.error);
      return;
    }
    Object.assign(transport, to);
    transport.resume();
    to.onDrain();
  });
}
