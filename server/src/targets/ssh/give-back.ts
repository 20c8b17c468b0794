/** Smaller ones cost less to collect than to give back. */
const WORTH_BYTES = 8 * 1024;

/**
 * Frees the memory of a large buffer now. A collection would free it later, and would be due the sooner: V8 starts one for
 * every so many bytes outside of its heap, which at 32 KiB a packet was a third of the cost of a transfer.
 *
 * The bytes, and every view of them, are empty afterwards. Does nothing for a small one, and for a part of another.
 */
export function giveBack(bytes: Buffer): void {
  const { buffer } = bytes;
  if (bytes.length >= WORTH_BYTES && bytes.length === buffer.byteLength && buffer instanceof ArrayBuffer)
    buffer.transfer(0);
}
