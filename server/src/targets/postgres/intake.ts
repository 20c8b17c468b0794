import type { Socket } from "node:net";
import { ProtocolViolation } from "./wire.ts";

/** The peer went away, or was given up. */
export class Gone extends Error {
  override readonly name = "Gone";
}

/**
 * Reads exactly `length` bytes; more stays in the socket. For the short dialogues before a session: it waits, and takes no
 * more from the peer than it needs. @throws Gone
 */
export function readExactly(socket: Socket, length: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const done = (bytes: Buffer | undefined, why: string): void => {
      socket.off("readable", look);
      socket.off("end", onEnd);
      socket.off("close", onEnd);
      socket.off("error", onError);
      if (bytes === undefined) reject(new Gone(why));
      else resolve(bytes);
    };
    const look = (): void => {
      if (socket.destroyed) return onEnd();
      const bytes = socket.read(length) as Buffer | null;
      if (bytes === null) return;
      // At the end of the stream, read() gives what is left, however short.
      if (bytes.length === length) done(bytes, "");
      else done(undefined, "the connection was closed in the middle of a message");
    };
    const onEnd = (): void => done(undefined, "the connection was closed");
    const onError = (error: Error): void => done(undefined, error.message);
    socket.on("readable", look);
    socket.on("end", onEnd);
    socket.on("close", onEnd);
    socket.on("error", onError);
    look();
  });
}

/** The next message's type and body. @throws Gone, ProtocolViolation when it announces more than `limit` bytes. */
export async function readMessage(socket: Socket, limit: number): Promise<{ type: number; body: Buffer }> {
  const head = await readExactly(socket, 5);
  const length = head.readUInt32BE(1);
  if (length < 4 || length > limit) throw new ProtocolViolation(`invalid message length ${length}`);
  const body = length === 4 ? Buffer.alloc(0) : await readExactly(socket, length - 4);
  return { type: head[0] ?? 0, body };
}

/** Rejects with the signal's reason as soon as it is aborted; the work goes on unseen. */
export function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
