import { randomBytes } from "node:crypto";

const ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"; // Crockford's base 32, lower case

/** One prefix per kind of object, so that an id says what it names. */
export const ID_PREFIX = { grant: "gr", lease: "ls", session: "se", alarm: "al", person: "pe", hold: "ho" } as const;
export type IdKind = keyof typeof ID_PREFIX;

/** A new random id such as `gr_7kq2m9x4tbzc`: 12 characters of base 32, 60 bits, safe as a PostgreSQL or SSH user name. */
export function newId(kind: IdKind): string {
  return `${ID_PREFIX[kind]}_${randomBase32(12)}`;
}

/** `length` random characters of Crockford base 32 (5 bits each). */
export function randomBase32(length: number): string {
  let text = "";
  for (const byte of randomBytes(length)) text += ALPHABET[byte & 31];
  return text;
}

/** Whether `text` has the exact form of an id of that kind. */
export function isId(kind: IdKind, text: string): boolean {
  return text.length === 15 && text.startsWith(`${ID_PREFIX[kind]}_`) && /^[0-9a-hjkmnp-tv-z]{12}$/.test(text.slice(3));
}
