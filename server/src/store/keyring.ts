import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { GlassError } from "../core/errors.ts";
import type { Store } from "./database.ts";

/** Where sealed bytes belong. Part of the associated data, so that they open nowhere else. */
export interface Place {
  table: string;
  row: string;
  column: string;
}

/**
 * Envelope encryption for the store: root key (outside) → versioned keys (table `keyring`) → one data key per record.
 * Layout of sealed bytes: version u32 BE ‖ salt 16 ‖ nonce 12 ‖ AES-256-GCM ciphertext ‖ tag 16. The record's key is
 * HKDF-SHA256(key of that version, salt); the associated data is the place and the version.
 */
export interface Keyring {
  seal(place: Place, plain: Uint8Array): Buffer;
  /** @throws GlassError `integrity` when the bytes were changed, moved, or sealed under another root key. */
  open(place: Place, sealed: Uint8Array): Buffer;
  /** 32 bytes that depend on the first key, a purpose and an id, such as ("lease", "ls_…"): the same in every process. */
  derive(purpose: string, id: string): Buffer;
}

const VERSION_BYTES = 4;
const SALT_BYTES = 16;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const HEAD_BYTES = VERSION_BYTES + SALT_BYTES + NONCE_BYTES;

/**
 * Opens the keyring with the installation's root key (32 bytes), making version 1 on first use.
 * @throws GlassError `integrity` when the root key is not the one that this store was made with.
 */
export async function openKeyring(store: Store, rootKey: Uint8Array): Promise<Keyring> {
  const first = wrap(rootKey, 1, randomBytes(32));
  await store
    .insertInto("keyring")
    .values({ version: 1, wrapped: first })
    .onConflict((c) => c.doNothing())
    .execute();
  const rows = await store.selectFrom("keyring").select(["version", "wrapped"]).orderBy("version").execute();
  const keys = new Map<number, Buffer>();
  for (const { version, wrapped } of rows) {
    try {
      keys.set(version, unwrap(rootKey, version, wrapped));
    } catch (error) {
      // The first key opens what revokes. A later row that does not open must not keep everything from being revoked: whoever
      // may add rows to the store could see to that. What it had sealed, if anything, says so by itself.
      if (version === 1) throw error;
    }
  }
  const newest = Math.max(...keys.keys());

  const keyOf = (version: number): Buffer => {
    const key = keys.get(version);
    if (key === undefined)
      throw new GlassError("integrity", `sealed with key version ${version}, which the keyring does not have`);
    return key;
  };
  return {
    seal(place, plain) {
      const head = Buffer.alloc(HEAD_BYTES);
      head.writeUInt32BE(newest);
      randomBytes(SALT_BYTES + NONCE_BYTES).copy(head, VERSION_BYTES);
      return encrypt(keyOf(newest), head, aad(place, newest), plain);
    },
    open(place, sealed) {
      const bytes = Buffer.from(sealed.buffer, sealed.byteOffset, sealed.byteLength);
      if (bytes.length < HEAD_BYTES + TAG_BYTES)
        throw new GlassError("integrity", `${place.table}.${place.column} is too short to be sealed`);
      const version = bytes.readUInt32BE(0);
      try {
        return decrypt(keyOf(version), bytes, aad(place, version));
      } catch (cause) {
        throw new GlassError(
          "integrity",
          `${place.table}.${place.column} of ${place.row} does not open: changed, moved, or another key`,
          { cause },
        );
      }
    },
    derive: (purpose, id) => Buffer.from(hkdfSync("sha256", keyOf(1), "", `glasskey ${purpose} ${id}`, 32)),
  };
}

function wrap(rootKey: Uint8Array, version: number, key: Uint8Array): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  randomBytes(SALT_BYTES + NONCE_BYTES).copy(head, VERSION_BYTES);
  return encrypt(rootKey, head, Buffer.from(`keyring ${version}`), key);
}

function unwrap(rootKey: Uint8Array, version: number, wrapped: Buffer): Buffer {
  try {
    return decrypt(rootKey, wrapped, Buffer.from(`keyring ${version}`));
  } catch (cause) {
    throw new GlassError("integrity", "the root key does not open this store's keyring", {
      next: "Start with the root key that belongs to this store (see `root_key:` in glasskey.yaml).",
      cause,
    });
  }
}

function aad(place: Place, version: number): Buffer {
  return Buffer.from(JSON.stringify([place.table, place.row, place.column, version]));
}

function encrypt(key: Uint8Array, head: Buffer, associated: Buffer, plain: Uint8Array): Buffer {
  const salt = head.subarray(VERSION_BYTES, VERSION_BYTES + SALT_BYTES);
  const cipher = createCipheriv("aes-256-gcm", recordKey(key, salt), head.subarray(VERSION_BYTES + SALT_BYTES));
  cipher.setAAD(associated);
  return Buffer.concat([head, cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}

function decrypt(key: Uint8Array, bytes: Buffer, associated: Buffer): Buffer {
  const salt = bytes.subarray(VERSION_BYTES, VERSION_BYTES + SALT_BYTES);
  const nonce = bytes.subarray(VERSION_BYTES + SALT_BYTES, HEAD_BYTES);
  const decipher = createDecipheriv("aes-256-gcm", recordKey(key, salt), nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(associated);
  decipher.setAuthTag(bytes.subarray(bytes.length - TAG_BYTES));
  return Buffer.concat([decipher.update(bytes.subarray(HEAD_BYTES, bytes.length - TAG_BYTES)), decipher.final()]);
}

function recordKey(key: Uint8Array, salt: Uint8Array): Buffer {
  return Buffer.from(hkdfSync("sha256", key, salt, "glasskey record", 32));
}
