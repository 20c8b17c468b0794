import { createHmac } from "node:crypto";
import { equalSecret } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import { isId } from "../core/ids.ts";
import { Secret } from "../core/secret.ts";
import type { Keyring } from "../store/keyring.ts";

/** What a signed link is good for: one person's vote in one round of one grant, until a moment. */
export interface LinkClaim {
  readonly grant: string;
  /** 0: the grant itself; n: the round of votes on an extension. Rounds only count up, some numbers are left out. */
  readonly round: number;
  /** Pseudonymous id: the address of a page ends up in histories and proxies. */
  readonly person: string;
  readonly expiresAtMs: number;
}

/**
 * Makes and reads the tokens of signed links. A token is 66 bytes in base64url (88 characters): version u8 ‖ round u24 ‖
 * expiry u48 (ms) ‖ grant 12 ‖ person 12 ‖ HMAC-SHA-256 of all that. It carries no secret but the MAC, and is the whole
 * authority to vote as that person, so it is never stored, logged or shown.
 */
export interface Links {
  make(claim: LinkClaim): Secret;
  /** The claim of a token that was made here and is not over, else undefined: nothing is read before the MAC held. */
  read(token: string, nowMs: number): LinkClaim | undefined;
}

const VERSION = 1;
const BODY_BYTES = 34;
const TOKEN_LENGTH = 88;
const MAX_ROUND = 2 ** 24 - 1;

/** @param keyring whose derived key signs: the same in every process, stored nowhere. */
export function createLinks(keyring: Pick<Keyring, "derive">): Links {
  const key = keyring.derive("link", "approval");
  const mac = (body: Uint8Array): Buffer => createHmac("sha256", key).update("glasskey link 1\0").update(body).digest();
  return {
    make({ grant, round, person, expiresAtMs }) {
      const fits = Number.isSafeInteger(expiresAtMs) && expiresAtMs > 0 && expiresAtMs < 2 ** 48;
      if (!isId("grant", grant) || !isId("person", person) || !fits || !(round >= 0 && round <= MAX_ROUND)) {
        throw new GlassError("internal", "a link needs a grant, a round, a person and a moment");
      }
      const body = Buffer.alloc(BODY_BYTES);
      body.writeUInt8(VERSION, 0);
      body.writeUIntBE(round, 1, 3);
      body.writeUIntBE(expiresAtMs, 4, 6);
      body.write(grant.slice(3), 10, "latin1");
      body.write(person.slice(3), 22, "latin1");
      return new Secret(Buffer.concat([body, mac(body)]).toString("base64url"));
    },
    read(token, nowMs) {
      if (token.length !== TOKEN_LENGTH || !/^[A-Za-z0-9_-]+$/.test(token)) return undefined;
      const bytes = Buffer.from(token, "base64url");
      const body = bytes.subarray(0, BODY_BYTES);
      if (!equalSecret(bytes.subarray(BODY_BYTES), mac(body))) return undefined;
      if (body.readUInt8(0) !== VERSION) return undefined;
      const expiresAtMs = body.readUIntBE(4, 6);
      if (expiresAtMs <= nowMs) return undefined;
      return {
        grant: `gr_${body.toString("latin1", 10, 22)}`,
        round: body.readUIntBE(1, 3),
        person: `pe_${body.toString("latin1", 22, 34)}`,
        expiresAtMs,
      };
    },
  };
}
