import type { Socket } from "node:net";
import type { PacketWriter } from "./packet.ts";

/**
 * Sealed packets on their way into a socket: what is written in one turn of the event loop leaves in one write, and while
 * the socket is busy what comes is gathered, so that many small packets that wait cost no more memory than their bytes.
 */

/** Room for the packets of one read of 64 KiB, and more. */
const BATCH_BYTES = 128 * 1024;
/** Below it, bytes are copied and the batch goes back at once: idle connections hold none. */
const SMALL_BYTES = 16 * 1024;
/** Batches that are kept for all connections of this process. */
const KEPT_BATCHES = 16;
const free: Buffer[] = [];

export class Output {
  readonly #socket: Socket;
  readonly #packets: PacketWriter;
  readonly #written: () => void;
  #batch: Buffer | undefined;
  #used = 0;
  #inFlight = 0;
  #scheduled = false;
  #wroteInTurn = false;
  #ended = false;

  /** @param written runs whenever the socket took bytes */
  constructor(socket: Socket, packets: PacketWriter, written: () => void) {
    this.#socket = socket;
    this.#packets = packets;
    this.#written = written;
  }

  /** Bytes that wait in this process. */
  get pendingBytes(): number {
    return this.#used + this.#inFlight;
  }

  /** Seals a payload given in parts. Its bytes are taken before it returns. */
  packet(parts: readonly Uint8Array[]): void {
    if (this.#ended) return;
    let payloadBytes = 0;
    for (const part of parts) payloadBytes += part.length;
    const batch = this.#room(this.#packets.sizeOf(payloadBytes));
    this.#used = this.#packets.write(parts, payloadBytes, batch, this.#used);
    this.#schedule();
  }

  /** Bytes as they are, before there are packets. */
  raw(bytes: Uint8Array): void {
    if (this.#ended) return;
    this.#room(bytes.length).set(bytes, this.#used);
    this.#used += bytes.length;
    this.#schedule();
  }

  #room(bytes: number): Buffer {
    if (this.#batch !== undefined && this.#batch.length - this.#used < bytes) this.#hand();
    this.#batch ??=
      bytes > BATCH_BYTES ? Buffer.allocUnsafeSlow(bytes) : (free.pop() ?? Buffer.allocUnsafeSlow(BATCH_BYTES));
    return this.#batch;
  }

  /**
   * What is written leaves after the event that made it, so that the other side works meanwhile. Of small packets that holds
   * for the first ones in a turn of the event loop: a turn can bring many reads of a transfer, and a write for each of their
   * acknowledgements would cost more than their data. The others go together at the turn's end.
   */
  #schedule(): void {
    if (this.#scheduled || this.#inFlight > 0 || (this.#wroteInTurn && this.#used < SMALL_BYTES)) return;
    this.#scheduled = true;
    process.nextTick(() => {
      this.#scheduled = false;
      if (this.#inFlight === 0) this.#hand();
    });
  }

  readonly #turnOver = (): void => {
    this.#wroteInTurn = false;
    if (this.#inFlight === 0) this.#hand();
  };

  /** Hands what there is to the socket. */
  #hand(): void {
    const batch = this.#batch;
    const used = this.#used;
    this.#batch = undefined;
    this.#used = 0;
    if (batch === undefined) return;
    if (used === 0 || this.#socket.destroyed) return release(batch);
    const small = used <= SMALL_BYTES;
    const bytes = small ? Buffer.from(batch.subarray(0, used)) : batch.subarray(0, used);
    if (small) release(batch);
    if (!this.#wroteInTurn) setImmediate(this.#turnOver);
    this.#wroteInTurn = true;
    this.#inFlight += used;
    this.#socket.write(bytes, () => {
      this.#inFlight -= used;
      if (!small) release(batch);
      if (this.#inFlight === 0 && !this.#ended) this.#hand();
      this.#written();
    });
  }

  /** Hands over what there is and ends the socket behind it. */
  end(): void {
    if (this.#ended) return;
    this.#hand();
    this.#ended = true;
    this.#socket.end();
  }

  /** Forgets what waits. */
  drop(): void {
    this.#ended = true;
    if (this.#batch !== undefined) release(this.#batch);
    this.#batch = undefined;
    this.#used = 0;
  }
}

function release(batch: Buffer): void {
  if (batch.length === BATCH_BYTES && free.length < KEPT_BATCHES) free.push(batch);
}
