import { createHash, timingSafeEqual } from "node:crypto";

export function sha256(...parts: readonly (Uint8Array | string)[]): Buffer {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
}

/** Constant-time comparison of two byte strings or texts of any lengths; the digests are compared, so no length shows. */
export function equalSecret(a: Uint8Array | string, b: Uint8Array | string): boolean {
  return timingSafeEqual(sha256(a), sha256(b));
}
