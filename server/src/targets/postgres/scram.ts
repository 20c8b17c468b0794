import { createHash, createHmac, pbkdf2, randomBytes, X509Certificate } from "node:crypto";
import { promisify } from "node:util";
import { equalSecret, sha256 } from "../../core/bytes.ts";

/**
 * SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides. RFC 5802 (exchange), RFC 7677 (SHA-256), RFC 5929 section 4
 * (tls-server-end-point). PostgreSQL ignores the user name inside SCRAM, and so does this.
 *
 * Passwords must be printable ASCII, for which SASLprep (RFC 4013) changes nothing; all of Glasskey's are base64url.
 */

const pbkdf2Async = promisify(pbkdf2);

/** RFC 7677's minimum and PostgreSQL's default. Our secrets have 256 random bits, so more would only cost time. */
export const SCRAM_ITERATIONS = 4096;
/** A hostile target could otherwise ask for minutes of work. */
const MAX_ITERATIONS = 1_000_000;
const MAX_SCRAM_TEXT = 2048;

export const PLAIN = "SCRAM-SHA-256";
export const PLUS = "SCRAM-SHA-256-PLUS";

/** The other side broke the exchange. The message is fit to be sent to it. */
export class ScramError extends Error {
  override readonly name = "ScramError";
}

/** What a server keeps: enough to check a proof, not enough to make one. */
export interface ScramVerifier {
  iterations: number;
  salt: Buffer;
  storedKey: Buffer;
  serverKey: Buffer;
}

/** Salted passwords by password, salt and iterations, so that a connection does not pay for PBKDF2 twice. */
export interface SaltedPasswords {
  get(password: string, salt: Buffer, iterations: number): Promise<Buffer>;
}

/** Remembers the last `capacity` results, by digest: the cache holds no password. */
export function createSaltedPasswords(capacity = 1_000): SaltedPasswords {
  const known = new Map<string, Promise<Buffer>>();
  return {
    get(password, salt, iterations) {
      const key = sha256(`${iterations}.${salt.toString("base64")}.${password}`).toString("base64");
      let found = known.get(key);
      if (found === undefined) {
        found = saltPassword(password, salt, iterations);
        found.catch(() => known.delete(key));
      } else {
        known.delete(key); // to the young end
      }
      known.set(key, found);
      if (known.size > capacity) {
        for (const oldest of known.keys()) {
          known.delete(oldest);
          break;
        }
      }
      return found;
    },
  };
}

async function saltPassword(password: string, salt: Buffer, iterations: number): Promise<Buffer> {
  if (!/^[\x20-\x7e]*$/.test(password)) throw new ScramError("the password is not printable ASCII");
  return pbkdf2Async(password, salt, iterations, 32, "sha256");
}

export function verifierFrom(saltedPassword: Buffer, salt: Buffer, iterations: number): ScramVerifier {
  const storedKey = createHash("sha256").update(hmac(saltedPassword, "Client Key")).digest();
  return { iterations, salt, storedKey, serverKey: hmac(saltedPassword, "Server Key") };
}

/** The verifier of a password, with a random salt unless one is given. */
export async function computeVerifier(
  password: string,
  salt: Buffer = randomBytes(16),
  iterations: number = SCRAM_ITERATIONS,
): Promise<ScramVerifier> {
  return verifierFrom(await saltPassword(password, salt, iterations), salt, iterations);
}

/** As PostgreSQL stores it in pg_authid.rolpassword and takes it in `CREATE ROLE … PASSWORD`. */
export function formatVerifier(verifier: ScramVerifier): string {
  const [salt, stored, server] = [verifier.salt, verifier.storedKey, verifier.serverKey].map((b) =>
    b.toString("base64"),
  );
  return `SCRAM-SHA-256$${verifier.iterations}:${salt}$${stored}:${server}`;
}

// ------------------------------------------------------------------------------------------------- server side

/** How the server's TLS end point enters the exchange: undefined without TLS, or where the certificate has no hash. */
export type ChannelBinding = Buffer | undefined;

export interface ServerExchange {
  /** Text to send as server-first-message. */
  serverFirst: string;
  /**
   * Checks client-final-message. Undefined: the proof is wrong. @throws ScramError when it is malformed or the channel
   * binding does not fit, which means somebody in the middle.
   */
  finish(clientFinal: string, verifier: ScramVerifier): string | undefined;
}

/** @throws ScramError */
export function startServerExchange(
  mechanism: string,
  clientFirst: string,
  options: { salt: Buffer; iterations: number; binding: ChannelBinding; nonce?: string },
): ServerExchange {
  if (mechanism !== PLAIN && (mechanism !== PLUS || options.binding === undefined)) {
    throw new ScramError("the client chose a SASL mechanism that was not offered");
  }
  if (clientFirst.length > MAX_SCRAM_TEXT) throw new ScramError("the SCRAM message is too long");
  const match = /^(n|y|p=([A-Za-z0-9.-]+)),(?:a=[^,]*)?,(n=[^,]*,r=([\x21-\x2b\x2d-\x7e]+)(?:,.*)?)$/.exec(clientFirst);
  if (match === null) throw new ScramError("malformed SCRAM message");
  const [, flag = "", bindingType, bare = "", clientNonce = ""] = match;
  if (flag.startsWith("p") !== (mechanism === PLUS)) throw new ScramError("malformed SCRAM message: channel binding");
  if (bindingType !== undefined && bindingType !== "tls-server-end-point") {
    throw new ScramError("unsupported SCRAM channel-binding type");
  }
  // The client could bind, but believes that we cannot: somebody took our offer away (RFC 5802 section 6).
  if (flag === "y" && options.binding !== undefined) {
    throw new ScramError(
      "SCRAM channel binding negotiation error: the offer of channel binding was removed on the way",
    );
  }
  const header = clientFirst.slice(0, clientFirst.length - bare.length);
  const nonce = clientNonce + (options.nonce ?? randomBytes(18).toString("base64"));
  const serverFirst = `r=${nonce},s=${options.salt.toString("base64")},i=${options.iterations}`;
  return {
    serverFirst,
    finish(clientFinal, verifier) {
      if (clientFinal.length > MAX_SCRAM_TEXT) throw new ScramError("the SCRAM message is too long");
      const final = /^(c=([A-Za-z0-9+/=]+),r=([^,]+)(?:,[^p].*)?),p=([A-Za-z0-9+/]{43}=)$/.exec(clientFinal);
      if (final === null) throw new ScramError("malformed SCRAM message");
      const [, withoutProof = "", channel = "", echoed = "", proofText = ""] = final;
      const expected = Buffer.concat([
        Buffer.from(header),
        flag.startsWith("p") ? (options.binding ?? Buffer.alloc(0)) : Buffer.alloc(0),
      ]);
      if (!equalSecret(Buffer.from(channel, "base64"), expected))
        throw new ScramError("SCRAM channel binding check failed");
      if (echoed !== nonce) throw new ScramError("malformed SCRAM message: nonce does not match");
      const authMessage = `${bare},${serverFirst},${withoutProof}`;
      const clientKey = xor(Buffer.from(proofText, "base64"), hmac(verifier.storedKey, authMessage));
      if (!equalSecret(createHash("sha256").update(clientKey).digest(), verifier.storedKey)) return undefined;
      return `v=${hmac(verifier.serverKey, authMessage).toString("base64")}`;
    },
  };
}

// ------------------------------------------------------------------------------------------------- client side

export interface ClientExchange {
  mechanism: string;
  clientFirst: string;
  /** Text to send as client-final-message. @throws ScramError */
  proceed(serverFirst: string, password: string, passwords: SaltedPasswords): Promise<string>;
  /** @throws ScramError unless the server proved that it knows the verifier. */
  verify(serverFinal: string): void;
}

/** @throws ScramError when the server offers no SCRAM-SHA-256. */
export function startClientExchange(
  offered: readonly string[],
  binding: ChannelBinding,
  nonce: string = randomBytes(18).toString("base64"),
  user = "",
): ClientExchange {
  const plus = binding !== undefined && offered.includes(PLUS);
  if (!plus && !offered.includes(PLAIN)) throw new ScramError("the server offers no SCRAM-SHA-256");
  const header = plus ? "p=tls-server-end-point,," : binding === undefined ? "n,," : "y,,";
  const bare = `n=${user},r=${nonce}`;
  let expected: Buffer | undefined;
  return {
    mechanism: plus ? PLUS : PLAIN,
    clientFirst: header + bare,
    async proceed(serverFirst, password, passwords) {
      const match = /^r=([^,]+),s=([A-Za-z0-9+/]+={0,2}),i=(\d{1,9})(?:,.*)?$/.exec(
        serverFirst.slice(0, MAX_SCRAM_TEXT),
      );
      if (match === null) throw new ScramError("malformed SCRAM message from the server");
      const [, combined = "", saltText = "", iterationText = ""] = match;
      const iterations = Number(iterationText);
      if (!combined.startsWith(nonce) || combined.length <= nonce.length)
        throw new ScramError("the server's nonce is not ours");
      if (iterations < SCRAM_ITERATIONS || iterations > MAX_ITERATIONS)
        throw new ScramError(`the server asks for ${iterations} iterations`);
      const salted = await passwords.get(password, Buffer.from(saltText, "base64"), iterations);
      const channel = Buffer.concat([Buffer.from(header), plus ? binding : Buffer.alloc(0)]).toString("base64");
      const withoutProof = `c=${channel},r=${combined}`;
      const authMessage = `${bare},${serverFirst},${withoutProof}`;
      const clientKey = hmac(salted, "Client Key");
      const proof = xor(clientKey, hmac(createHash("sha256").update(clientKey).digest(), authMessage));
      expected = hmac(hmac(salted, "Server Key"), authMessage);
      return `${withoutProof},p=${proof.toString("base64")}`;
    },
    verify(serverFinal) {
      const text = /^v=([A-Za-z0-9+/]+={0,2})(?:,.*)?$/.exec(serverFinal)?.[1];
      if (text === undefined || expected === undefined || !equalSecret(Buffer.from(text, "base64"), expected)) {
        throw new ScramError("the server did not prove that it knows the password");
      }
    },
  };
}

/**
 * tls-server-end-point of a certificate (PEM or DER): its hash by the hash of its own signature, SHA-256 in place of MD5
 * and SHA-1. Undefined where the signature names no single hash, such as Ed25519, for which RFC 5929 defines nothing.
 */
export function endPointBinding(certificate: string | Buffer): ChannelBinding {
  const parsed = new X509Certificate(certificate);
  const match = /^(?:ecdsa-with-)?(MD5|SHA1|SHA224|SHA256|SHA384|SHA512)(?:WithRSAEncryption)?$/i.exec(
    parsed.signatureAlgorithm ?? "",
  );
  if (match === null) return undefined;
  const name = (match[1] ?? "").toLowerCase();
  return createHash(name === "md5" || name === "sha1" ? "sha256" : name)
    .update(parsed.raw)
    .digest();
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}

function xor(a: Buffer, b: Buffer): Buffer {
  return Buffer.from(a.map((byte, i) => byte ^ (b[i] ?? 0)));
}
