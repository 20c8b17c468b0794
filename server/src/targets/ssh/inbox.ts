import { violation } from "./channel.ts";
import { DISCONNECT, SshError, type Transport } from "./types.ts";

/** Messages that came from a peer while nobody waited for one; a login sends a handful. */
const MAX_PACKETS = 64;
const MAX_BYTES = 512 * 1024;

/** A transport's packets one by one, for protocols of question and answer. */
export interface Inbox {
  /** @throws SshError when the connection ends before there is one; what `fail` said */
  next(): Promise<Buffer>;
  /** Lets whoever waits, and whoever asks from here on, fail. The first reason stays. */
  fail(error: unknown): void;
  /** @throws what it failed with, where it did */
  check(): void;
}

/** Takes the transport's handlers. A peer that sends faster than it is answered is cut. */
export function createInbox(transport: Transport): Inbox {
  const packets: Buffer[] = [];
  let bytes = 0;
  let waiting: PromiseWithResolvers<Buffer> | undefined;
  let failed: { readonly error: unknown } | undefined;

  const fail = (error: unknown): void => {
    failed ??= { error };
    waiting?.reject(failed.error);
    waiting = undefined;
  };
  transport.onPacket = (payload) => {
    if (failed !== undefined) return;
    const packet = Buffer.from(payload);
    if (waiting !== undefined) {
      waiting.resolve(packet);
      waiting = undefined;
      return;
    }
    bytes += packet.length;
    packets.push(packet);
    if (packets.length > MAX_PACKETS || bytes > MAX_BYTES) throw violation("more login messages than can be answered");
  };
  transport.onDrain = () => {};
  transport.onClose = (error) => {
    fail(error ?? new SshError(DISCONNECT.connectionLost, "the connection was closed before the login was done"));
  };
  return {
    next() {
      // What came before the end still counts: the peer's last words say why.
      const packet = packets.shift();
      if (packet !== undefined) {
        bytes -= packet.length;
        return Promise.resolve(packet);
      }
      if (failed !== undefined) return Promise.reject(failed.error);
      waiting = Promise.withResolvers<Buffer>();
      return waiting.promise;
    },
    fail,
    check() {
      if (failed !== undefined) throw failed.error;
    },
  };
}
