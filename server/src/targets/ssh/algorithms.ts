import { certificateName, SIGNATURE_ALGORITHMS } from "./keys.ts";

/** Which algorithms are negotiated, most wanted first in each list. There is no other place that names them all. */

/**
 * Key exchange methods. mlkem768x25519-sha256 is what OpenSSH prefers since 10.0: it also holds against a recording that
 * is kept until there are quantum computers. No finite-field groups: slow, and nothing current needs them.
 */
export const KEX_METHODS: readonly string[] = [
  "mlkem768x25519-sha256",
  "curve25519-sha256",
  "curve25519-sha256@libssh.org",
  "ecdh-sha2-nistp256",
  "ecdh-sha2-nistp384",
  "ecdh-sha2-nistp521",
];

/**
 * GCM first: a third of the work of counter mode with a MAC. Counter mode is there for clients without GCM, such as
 * Debian 12's paramiko, which has no strict key exchange either. That is safe: the prefix truncation of "Terrapin"
 * (CVE-2023-48795) breaks ChaCha20-Poly1305, whose nonce is the sequence number, and CBC with encrypt-then-MAC. In counter
 * mode a dropped packet moves the key stream, so that all that follows is noise and the connection ends.
 */
export const CIPHERS: readonly string[] = [
  "aes128-gcm@openssh.com",
  "aes256-gcm@openssh.com",
  "aes256-ctr",
  "aes128-ctr",
];

/** Encrypt-then-MAC only. */
export const MACS: readonly string[] = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"];

export const COMPRESSION: readonly string[] = ["none"];

/** Host key algorithms that a client can ask for: certificates first, no hardware keys. */
export const HOST_KEY_ALGORITHMS: readonly string[] = (() => {
  const plain = SIGNATURE_ALGORITHMS.filter((name) => !name.startsWith("sk-"));
  return [...plain.map(certificateName), ...plain];
})();

/** Marks in the list of key exchange methods that are no methods. */
export const MARKS = {
  /** RFC 8308, 2.1: this side takes SSH_MSG_EXT_INFO. */
  extInfo: { client: "ext-info-c", server: "ext-info-s" },
  /** OpenSSH's PROTOCOL, 1.10: strict key exchange, the answer to Terrapin. */
  strict: { client: "kex-strict-c-v00@openssh.com", server: "kex-strict-s-v00@openssh.com" },
} as const;
