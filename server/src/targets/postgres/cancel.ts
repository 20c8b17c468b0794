import { randomBytes } from "node:crypto";
import { equalSecret } from "../../core/bytes.ts";

/** Keys that clients use to cancel: ours, which say nothing about the target's. One per listener process. */
export interface CancelKeys {
  /** A new key of `keyBytes` bytes (4 in protocol 3.0, 32 in 3.2). `cancel` runs when somebody shows it. */
  issue(keyBytes: number, cancel: (done: () => void) => void): IssuedKey;
  /** Resolves when the request was carried out, or at once when the key is not one of ours. */
  present(pid: number, key: Buffer): Promise<void>;
}

export interface IssuedKey {
  pid: number;
  key: Buffer;
  revoke(): void;
}

export function createCancelKeys(): CancelKeys {
  const keys = new Map<number, { key: Buffer; cancel: (done: () => void) => void }>();
  const decoy = randomBytes(32);
  return {
    issue(keyBytes, cancel) {
      let pid: number;
      do pid = randomBytes(4).readUInt32BE(0) & 0x7fff_ffff;
      while (pid === 0 || keys.has(pid));
      const key = randomBytes(keyBytes);
      keys.set(pid, { key, cancel });
      return { pid, key, revoke: () => void keys.delete(pid) };
    },
    present(pid, key) {
      const issued = keys.get(pid);
      // Compared in constant time, and also when there is nothing to compare with.
      const equal = equalSecret(key, issued?.key ?? decoy);
      if (issued === undefined || !equal) return Promise.resolve();
      return new Promise((done) => issued.cancel(done));
    },
  };
}
