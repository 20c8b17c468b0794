import { hkdfSync } from "node:crypto";
import { GlassError } from "./errors.ts";
import { Secret } from "./secret.ts";

/**
 * One secret of a lease: HKDF-SHA256 (RFC 5869) of the lease's 32-byte key, no salt, with `purpose` as info.
 * Both threads, and a restarted process, come to the same value. 43 characters of base64url, 256 bits.
 * @throws GlassError `internal` for a key of another length: it would be a weaker secret in silence.
 */
export function deriveSecret(leaseKey: Uint8Array, purpose: string): Secret {
  if (leaseKey.length !== 32) throw new GlassError("internal", "a lease key must be 32 bytes");
  return new Secret(Buffer.from(hkdfSync("sha256", leaseKey, new Uint8Array(0), purpose, 32)).toString("base64url"));
}
