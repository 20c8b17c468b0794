import {
  createECDH,
  createHash,
  createPublicKey,
  decapsulate,
  diffieHellman,
  encapsulate,
  generateKeyPairSync,
  randomBytes,
  type KeyObject,
} from "node:crypto";
import { CIPHERS, COMPRESSION, KEX_METHODS, MACS, MARKS } from "./algorithms.ts";
import { keySizes, needsMac, type DirectionKeys } from "./ciphers.ts";
import { DISCONNECT, SshError } from "./types.ts";
import { mpint, MSG, printable, Reader, uint32, Writer } from "./wire.ts";

/**
 * Key exchange: what is offered and agreed (RFC 4253, 7.1), the methods themselves and the keys that come out (7.2). No I/O;
 * the order of messages is transport.ts' business.
 */

export type Role = "server" | "client";

function failed(what: string, cause?: unknown): SshError {
  return new SshError(DISCONNECT.keyExchangeFailed, what, cause === undefined ? undefined : { cause });
}

// -------------------------------------------------------------------------------------------------- SSH_MSG_KEXINIT

/** The lists of SSH_MSG_KEXINIT that matter; in and out are the peer's words, client to server and back. */
export interface Offer {
  readonly kex: readonly string[];
  readonly hostKeys: readonly string[];
  readonly ciphers: { readonly toServer: readonly string[]; readonly toClient: readonly string[] };
  readonly macs: { readonly toServer: readonly string[]; readonly toClient: readonly string[] };
  readonly compression: { readonly toServer: readonly string[]; readonly toClient: readonly string[] };
  /** The next message is a guess of what will be agreed. */
  readonly firstFollows: boolean;
}

/** What this side offers. The marks stand only in the first offer of a connection. */
export function ownOffer(
  role: Role,
  hostKeys: readonly string[],
  first: boolean,
  ciphers: readonly string[] = CIPHERS,
): Offer {
  const both = (names: readonly string[]): Offer["ciphers"] => ({ toServer: names, toClient: names });
  return {
    kex: first ? [...KEX_METHODS, MARKS.extInfo[role], MARKS.strict[role]] : KEX_METHODS,
    ...{ hostKeys, ciphers: both(ciphers), macs: both(MACS), compression: both(COMPRESSION), firstFollows: false },
  };
}

/** The payload of SSH_MSG_KEXINIT, with a fresh cookie. */
export function encodeOffer(offer: Offer): Buffer {
  const writer = new Writer().byte(MSG.kexInit).raw(randomBytes(16)).nameList(offer.kex).nameList(offer.hostKeys);
  for (const list of [offer.ciphers, offer.macs, offer.compression])
    writer.nameList(list.toServer).nameList(list.toClient);
  return writer.nameList([]).nameList([]).boolean(offer.firstFollows).uint32(0).done();
}

/** @throws SshError */
export function decodeOffer(payload: Buffer): Offer {
  const reader = new Reader(payload, 1);
  reader.raw(16);
  const [kex, hostKeys] = [reader.nameList(), reader.nameList()];
  const both = (): Offer["ciphers"] => ({ toServer: reader.nameList(), toClient: reader.nameList() });
  const [ciphers, macs, compression] = [both(), both(), both()];
  reader.nameList(); // languages
  reader.nameList();
  const firstFollows = reader.boolean();
  reader.uint32(); // reserved
  reader.end();
  return { kex, hostKeys, ciphers, macs, compression, firstFollows };
}

export interface Agreement {
  readonly kex: string;
  readonly hostKey: string;
  readonly toServer: { readonly cipher: string; readonly mac: string };
  readonly toClient: { readonly cipher: string; readonly mac: string };
  /** The peer's guessed message is to be thrown away (RFC 4253, 7.1). */
  readonly wrongGuess: boolean;
}

/** What two offers come to: in each list the client's first that the server has too. @throws SshError that names both lists */
export function agree(role: Role, mine: Offer, theirs: Offer): Agreement {
  const [client, server] = role === "client" ? [mine, theirs] : [theirs, mine];
  const pick = (what: string, of: (offer: Offer) => readonly string[]): string => {
    const found = of(client).find((name) => of(server).includes(name));
    if (found !== undefined) return found;
    const list = (names: readonly string[]): string => printable(names.filter((name) => !isMark(name)).join(","), 400);
    throw failed(
      `no common ${what}: this side takes ${list(of(mine))}; the other offers ${list(of(theirs)) || "none"}`,
    );
  };
  const kex = pick("key exchange method", (offer) => offer.kex.filter((name) => !isMark(name)));
  const hostKey = pick("host key type", (offer) => offer.hostKeys);
  const direction = (way: "toServer" | "toClient"): { cipher: string; mac: string } => {
    const cipher = pick("cipher", (offer) => offer.ciphers[way]);
    const mac = needsMac(cipher) ? pick("MAC", (offer) => offer.macs[way]) : "";
    pick("compression", (offer) => offer.compression[way]);
    return { cipher, mac };
  };
  const [toServer, toClient] = [direction("toServer"), direction("toClient")];
  const wanted = (offer: Offer): string | undefined => offer.kex.find((name) => !isMark(name));
  const guessedRight = wanted(mine) === wanted(theirs) && mine.hostKeys[0] === theirs.hostKeys[0];
  return { kex, hostKey, toServer, toClient, wrongGuess: theirs.firstFollows && !guessedRight };
}

const ALL_MARKS: ReadonlySet<string> = new Set([...Object.values(MARKS.extInfo), ...Object.values(MARKS.strict)]);
const isMark = (name: string): boolean => ALL_MARKS.has(name);

/** Whether the peer's first offer carries a mark of its role. */
export function marks(role: Role, theirs: Offer): { strict: boolean; extInfo: boolean } {
  const peer = role === "client" ? "server" : "client";
  return { strict: theirs.kex.includes(MARKS.strict[peer]), extInfo: theirs.kex.includes(MARKS.extInfo[peer]) };
}

// ---------------------------------------------------------------------------------------------------------- methods

/** A secret as it goes into hashes: an mpint, or a string where the method says so. */
type EncodedSecret = Buffer;

interface Method {
  readonly hash: string;
  /** The client's half: what it sends, and what it makes of the answer. */
  start(): { readonly share: Buffer; finish(answer: Buffer): EncodedSecret };
  /** The server's half. */
  answer(share: Buffer): { readonly share: Buffer; readonly secret: EncodedSecret };
}

/** RFC 8731, 3: the 32 bytes of X25519, read as a number. */
const curve25519: Method = {
  hash: "sha256",
  start() {
    const pair = generateKeyPairSync("x25519");
    return { share: rawX25519(pair.publicKey), finish: (answer) => mpint(x25519(pair.privateKey, answer)) };
  },
  answer(share) {
    const pair = generateKeyPairSync("x25519");
    return { share: rawX25519(pair.publicKey), secret: mpint(x25519(pair.privateKey, share)) };
  },
};

function rawX25519(key: KeyObject): Buffer {
  return key.export({ format: "raw-public" });
}

/** @throws SshError also for a result of zeros, which a peer without a key of its own can force (RFC 7748, 6.1) */
function x25519(privateKey: KeyObject, theirs: Buffer): Buffer {
  if (theirs.length !== 32) throw failed("an X25519 value that is not 32 bytes long");
  let secret: Buffer;
  try {
    const publicKey = createPublicKey({ key: theirs, format: "raw-public", asymmetricKeyType: "x25519" });
    secret = diffieHellman({ privateKey, publicKey });
  } catch (cause) {
    throw failed("an X25519 value that gives no secret", cause);
  }
  if (secret.every((byte) => byte === 0)) throw failed("an X25519 value that gives no secret");
  return secret;
}

/** RFC 5656, 4: elliptic curve Diffie-Hellman; points go uncompressed and must lie on the curve. */
function nist(curve: string, coordinateBytes: number, hash: string): Method {
  const secretOf = (own: ReturnType<typeof createECDH>, theirs: Buffer): EncodedSecret => {
    if (theirs.length !== 1 + 2 * coordinateBytes || theirs[0] !== 4)
      throw failed("an ECDH value that is no uncompressed point");
    try {
      return mpint(own.computeSecret(theirs));
    } catch (cause) {
      throw failed("an ECDH value that is not on its curve", cause);
    }
  };
  return {
    hash,
    start() {
      const own = createECDH(curve);
      return { share: own.generateKeys(), finish: (answer) => secretOf(own, answer) };
    },
    answer(share) {
      const own = createECDH(curve);
      const mine = own.generateKeys();
      return { share: mine, secret: secretOf(own, share) };
    },
  };
}

const MLKEM_KEY_BYTES = 1184;
const MLKEM_CIPHERTEXT_BYTES = 1088;

/**
 * draft-ietf-sshm-mlkem-hybrid-kex: the client sends an ML-KEM-768 key and an X25519 one, the server answers a ciphertext
 * and an X25519 key; the secret is SHA-256 over both secrets, and goes into hashes as a string.
 */
const mlkem768x25519: Method = {
  hash: "sha256",
  start() {
    const kem = generateKeyPairSync("ml-kem-768");
    const pair = generateKeyPairSync("x25519");
    return {
      share: Buffer.concat([kem.publicKey.export({ format: "raw-public" }), rawX25519(pair.publicKey)]),
      finish(answer) {
        const [ciphertext, theirs] = split(answer, MLKEM_CIPHERTEXT_BYTES);
        return combined(decapsulate(kem.privateKey, ciphertext), x25519(pair.privateKey, theirs));
      },
    };
  },
  answer(share) {
    const [key, theirs] = split(share, MLKEM_KEY_BYTES);
    let kem: { sharedKey: Buffer; ciphertext: Buffer };
    try {
      kem = encapsulate(createPublicKey({ key, format: "raw-public", asymmetricKeyType: "ml-kem-768" }));
    } catch (cause) {
      throw failed("a damaged ML-KEM key", cause);
    }
    const pair = generateKeyPairSync("x25519");
    return {
      share: Buffer.concat([kem.ciphertext, rawX25519(pair.publicKey)]),
      secret: combined(kem.sharedKey, x25519(pair.privateKey, theirs)),
    };
  },
};

function split(both: Buffer, firstBytes: number): [Buffer, Buffer] {
  if (both.length !== firstBytes + 32) throw failed("an ML-KEM and X25519 value of a wrong length");
  return [both.subarray(0, firstBytes), both.subarray(firstBytes)];
}

function combined(kem: Buffer, classic: Buffer): EncodedSecret {
  return new Writer().string(createHash("sha256").update(kem).update(classic).digest()).done();
}

const METHODS: Readonly<Record<string, Method>> = {
  "mlkem768x25519-sha256": mlkem768x25519,
  "curve25519-sha256": curve25519,
  "curve25519-sha256@libssh.org": curve25519,
  "ecdh-sha2-nistp256": nist("prime256v1", 32, "sha256"),
  "ecdh-sha2-nistp384": nist("secp384r1", 48, "sha384"),
  "ecdh-sha2-nistp521": nist("secp521r1", 66, "sha512"),
};

export function method(name: string): Method {
  const found = METHODS[name];
  if (found === undefined) throw new Error(`${name} was negotiated and is not known`);
  return found;
}

// ------------------------------------------------------------------------------------------------------------- keys

/** Everything that the exchange hash covers (RFC 5656, 4), each as it went over the wire. */
export interface Transcript {
  readonly clientVersion: string;
  readonly serverVersion: string;
  readonly clientInit: Buffer;
  readonly serverInit: Buffer;
  readonly hostKey: Uint8Array;
  readonly clientShare: Buffer;
  readonly serverShare: Buffer;
  readonly secret: EncodedSecret;
}

export function exchangeHash(hash: string, transcript: Transcript): Buffer {
  const { clientVersion, serverVersion, clientInit, serverInit, hostKey, clientShare, serverShare } = transcript;
  const writer = new Writer();
  for (const part of [clientVersion, serverVersion, clientInit, serverInit, hostKey, clientShare, serverShare])
    writer.string(part);
  return createHash(hash).update(writer.raw(transcript.secret).done()).digest();
}

/** Keys of both directions (RFC 4253, 7.2). */
export function deriveKeys(
  agreement: Agreement,
  secret: EncodedSecret,
  exchange: Buffer,
  sessionId: Buffer,
): { toServer: DirectionKeys; toClient: DirectionKeys } {
  const { hash } = method(agreement.kex);
  const derive = (letter: string, bytes: number): Buffer => {
    let key = createHash(hash).update(secret).update(exchange).update(letter).update(sessionId).digest();
    while (key.length < bytes)
      key = Buffer.concat([key, createHash(hash).update(secret).update(exchange).update(key).digest()]);
    return key.subarray(0, bytes);
  };
  const direction = (way: "toServer" | "toClient", letters: readonly [string, string, string]): DirectionKeys => {
    const sizes = keySizes(agreement[way].cipher, agreement[way].mac);
    const [iv, key, mac] = letters;
    return { iv: derive(iv, sizes.iv), key: derive(key, sizes.key), mac: derive(mac, sizes.mac) };
  };
  return { toServer: direction("toServer", ["A", "C", "E"]), toClient: direction("toClient", ["B", "D", "F"]) };
}

// ---------------------------------------------------------------------------------------- the messages of the methods

/** SSH_MSG_KEX_ECDH_INIT. */
export function encodeInit(share: Buffer): Buffer {
  return new Writer().byte(MSG.kexEcdhInit).string(share).done();
}

/** Longest share: ML-KEM's. */
const MAX_SHARE_BYTES = MLKEM_KEY_BYTES + 32;

export function decodeInit(payload: Buffer): Buffer {
  const reader = new Reader(payload, 1);
  const share = reader.string(MAX_SHARE_BYTES);
  reader.end();
  return share;
}

/** SSH_MSG_KEX_ECDH_REPLY. */
export function encodeReply(hostKey: Uint8Array, share: Buffer, signature: Buffer): Buffer {
  return new Writer().byte(MSG.kexEcdhReply).string(hostKey).string(share).string(signature).done();
}

export function decodeReply(payload: Buffer): { hostKey: Buffer; share: Buffer; signature: Buffer } {
  const reader = new Reader(payload, 1);
  const [hostKey, share, signature] = [
    reader.string(64 * 1024),
    reader.string(MAX_SHARE_BYTES),
    reader.string(8 * 1024),
  ];
  reader.end();
  return { hostKey, share, signature };
}

/** SSH_MSG_EXT_INFO with what this server takes as signatures (RFC 8308, 3.1). */
export function encodeExtInfo(signatureAlgorithms: readonly string[]): Buffer {
  const names = signatureAlgorithms.join(",");
  return Buffer.concat([
    Buffer.of(MSG.extInfo),
    uint32(1),
    new Writer().string("server-sig-algs").string(names).done(),
  ]);
}

/** Extensions in an SSH_MSG_EXT_INFO; more of them than anybody sends are an error. */
const MAX_EXTENSIONS = 32;

/** @returns server-sig-algs, where it is among them */
export function decodeExtInfo(payload: Buffer): readonly string[] | undefined {
  const reader = new Reader(payload, 1);
  const count = reader.uint32();
  if (count > MAX_EXTENSIONS) throw new SshError(DISCONNECT.protocolError, `${count} extensions in one message`);
  let found: readonly string[] | undefined;
  for (let i = 0; i < count; i += 1) {
    const name = reader.string(256).toString("latin1");
    const value = reader.string(16 * 1024);
    if (name === "server-sig-algs")
      found = value
        .toString("latin1")
        .split(",")
        .filter((each) => each !== "");
  }
  reader.end();
  return found;
}
