import { randomBytes, scrypt, timingSafeEqual } from "node:crypto";
import { GlassError } from "../core/errors.ts";

/** Cost of a new hash: 32 MiB and about 60 ms of one core; the login throttle bounds how often it is paid. */
const COST = { N: 32_768, r: 8, p: 1 } as const;
const KEY_BYTES = 32;
const MAX_MEMORY_BYTES = 256 * 1024 * 1024; // refuses a hash in a policy file that would eat the server

/** A new secret for a person: 120 bits of base 32 in groups that can be read aloud, such as `7kq2m-9x4tb-…`. */
export function newPersonSecret(): string {
  const alphabet = "0123456789abcdefghjkmnpqrstvwxyz";
  const text = [...randomBytes(24)].map((byte) => alphabet[byte & 31]).join("");
  return (text.match(/.{6}/g) ?? []).join("-");
}

/** `scrypt$N$r$p$salt$hash` (base64url), the form that people.yaml keeps. */
export async function hashSecret(secret: string): Promise<string> {
  const salt = randomBytes(16);
  const key = await derive(secret, salt, COST);
  return `scrypt$${COST.N}$${COST.r}$${COST.p}$${salt.toString("base64url")}$${key.toString("base64url")}`;
}

/**
 * Whether `secret` is the one behind `hash`. Takes the same time for a person without a hash (`undefined`): callers pass
 * it on so that an unknown name cannot be told from a wrong secret.
 */
export async function verifySecret(secret: string, hash: string | undefined): Promise<boolean> {
  const parsed = hash === undefined ? undefined : parseHash(hash);
  const { cost, salt, key } = parsed ?? { cost: COST, salt: Buffer.alloc(16), key: randomBytes(KEY_BYTES) };
  const found = await derive(secret, salt, cost);
  return timingSafeEqual(found, key) && parsed !== undefined;
}

interface ParsedHash {
  cost: { N: number; r: number; p: number };
  salt: Buffer;
  key: Buffer;
}

/** @throws GlassError `config_invalid` when the text is not a hash that `hashSecret` could have made. */
function parseHash(hash: string): ParsedHash {
  const match = /^scrypt\$(\d{4,7})\$(\d{1,2})\$(\d{1,2})\$([\w-]{22,88})\$([\w-]{43})$/.exec(hash);
  const [N, r, p] = [Number(match?.[1]), Number(match?.[2]), Number(match?.[3])];
  const sane =
    match !== null &&
    Number.isInteger(Math.log2(N)) &&
    N >= 16_384 &&
    r >= 8 &&
    p >= 1 &&
    128 * N * r * p <= MAX_MEMORY_BYTES;
  if (!sane) {
    throw new GlassError("config_invalid", "a person's secret is not a hash that Glasskey made", {
      next: "Make one with `glass secret`, and put the line it prints into people.yaml.",
    });
  }
  return {
    cost: { N, r, p },
    salt: Buffer.from(match[4] ?? "", "base64url"),
    key: Buffer.from(match[5] ?? "", "base64url"),
  };
}

function derive(secret: string, salt: Buffer, cost: { N: number; r: number; p: number }): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    scrypt(secret.normalize("NFC"), salt, KEY_BYTES, { ...cost, maxmem: 2 * MAX_MEMORY_BYTES }, (error, key) => {
      if (error === null) resolve(key);
      else reject(error);
    });
  });
}
