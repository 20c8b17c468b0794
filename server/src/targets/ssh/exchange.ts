import { CIPHERS, HOST_KEY_ALGORITHMS } from "./algorithms.ts";
import { createOpener, createSealer, needsMac, type Opener, type Sealer } from "./ciphers.ts";
import {
  agree,
  decodeInit,
  decodeOffer,
  decodeReply,
  deriveKeys,
  encodeInit,
  encodeOffer,
  encodeReply,
  exchangeHash,
  marks,
  method,
  ownOffer,
  type Agreement,
  type Offer,
} from "./kex.ts";
import { isCertificateName, keyTypeOf, plainName, subjectKey, verifySignature } from "./keys.ts";
import { DISCONNECT, SshError, type ClientTransportOptions, type Negotiated, type Signer } from "./types.ts";
import { MSG, Reader } from "./wire.ts";

/**
 * The key exchanges of one connection, one after the other: none → offered → agreed or started → (verifying) → switching →
 * none. Which message may come when is decided by these states. No I/O: messages go out through {@link ExchangeHost}.
 */

/** Key exchanges that a peer may ask for with less than `EARNED_BYTES` between two. More come back with time. */
const FREE_EXCHANGES = 20;
const EARNED_BYTES = 4 * 1024;
/** Far more often than an idle client with `RekeyLimit default 30s` asks, and of no weight. */
const FREE_EXCHANGE_EVERY_MS = 5_000;

export interface ExchangeHost {
  /** Sends a message now, before anything that waits. */
  packet(payload: Uint8Array): void;
  /** What is sent from here on goes through that. */
  sealWith(sealer: Sealer): void;
  /** What is read from here on comes through that. */
  openWith(opener: Opener): void;
  /** The peer's identification line. */
  theirVersion(): string;
  /** Bytes of login and channels, in either direction, since the last exchange. */
  earnedBytes(): number;
  /** The host key is accepted: reading may go on. */
  verified(): void;
  /** The host key is not accepted; `error` is what the verifier threw. */
  refused(error: unknown): void;
}

export type ExchangeSide =
  | { readonly role: "server"; readonly version: string; readonly hostKeys: readonly Signer[] }
  | ({ readonly role: "client"; readonly version: string } & Pick<
      ClientTransportOptions,
      "verifyHostKey" | "hostKeyAlgorithms"
    >);

interface OwnOffer {
  readonly offer: Offer;
  readonly payload: Buffer;
}
interface Agreed {
  readonly agreement: Agreement;
  readonly clientInit: Buffer;
  readonly serverInit: Buffer;
}

type State =
  | { readonly at: "none" }
  /** This side's SSH_MSG_KEXINIT is sent. */
  | { readonly at: "offered"; readonly mine: OwnOffer }
  /** Both are; a server waits for the client's share. */
  | { readonly at: "agreed"; readonly agreed: Agreed; skipGuess: boolean }
  /** A client sent its share. */
  | { readonly at: "started"; readonly agreed: Agreed; readonly start: Started; skipGuess: boolean }
  /** A client has the server's answer and asks whether it is the right server. Nothing is read meanwhile. */
  | { readonly at: "verifying" }
  /** This side's SSH_MSG_NEWKEYS is sent, the peer's is not there yet. */
  | { readonly at: "switching"; readonly opener: Opener };

interface Started {
  readonly share: Buffer;
  finish(answer: Buffer): Buffer;
}

export class KeyExchange {
  readonly #side: ExchangeSide;
  readonly #host: ExchangeHost;
  #state: State = { at: "none" };
  #sessionId: Buffer | undefined;
  #negotiated: Negotiated | undefined;
  #strict = false;
  #wantsExtInfo = false;
  /** What this side offers; a server narrows it once it knows what the client has. */
  #ciphers: readonly string[] = CIPHERS;
  #free = { exchanges: FREE_EXCHANGES, since: performance.now() };

  constructor(side: ExchangeSide, host: ExchangeHost) {
    this.#side = side;
    this.#host = host;
  }

  /** No exchange is under way. */
  get idle(): boolean {
    return this.#state.at === "none";
  }
  /** From this side's SSH_MSG_KEXINIT to its SSH_MSG_NEWKEYS, nothing else is sent. */
  get holdsSending(): boolean {
    return this.#state.at !== "none" && this.#state.at !== "switching";
  }
  /** From the peer's SSH_MSG_KEXINIT to its SSH_MSG_NEWKEYS, nothing else may come. */
  get holdsPeer(): boolean {
    return this.#state.at !== "none" && this.#state.at !== "offered";
  }
  get verifying(): boolean {
    return this.#state.at === "verifying";
  }
  get strict(): boolean {
    return this.#strict;
  }
  /** Whether the peer takes SSH_MSG_EXT_INFO. */
  get wantsExtInfo(): boolean {
    return this.#wantsExtInfo;
  }
  get sessionId(): Buffer {
    if (this.#sessionId === undefined) throw new Error("there is no session id before the first key exchange");
    return this.#sessionId;
  }
  get negotiated(): Negotiated {
    if (this.#negotiated === undefined) throw new Error("nothing is negotiated before the first key exchange");
    return this.#negotiated;
  }

  /** Sends this side's SSH_MSG_KEXINIT. */
  offer(): OwnOffer {
    const side = this.#side;
    const hostKeys =
      side.role === "server"
        ? side.hostKeys.map(({ algorithm }) => algorithm)
        : (side.hostKeyAlgorithms ?? HOST_KEY_ALGORITHMS);
    const offer = ownOffer(side.role, hostKeys, this.#sessionId === undefined, this.#ciphers);
    const mine = { offer, payload: encodeOffer(offer) };
    this.#state = { at: "offered", mine };
    this.#host.packet(mine.payload);
    return mine;
  }

  /**
   * A message of numbers 20 to 49.
   * @param sequence its packet's number
   * @returns `done` when the exchange is over, `unknown` for a message that no method here has, else `more`
   */
  handle(payload: Buffer, sequence: number): "done" | "more" | "unknown" {
    const type = payload[0] ?? 0;
    const state = this.#state;
    if (type === MSG.kexInit) {
      this.#onOffer(payload, sequence);
      return "more";
    }
    if (type === MSG.newKeys) {
      if (state.at !== "switching" || payload.length !== 1) throw outOfPlace(type, this.#strict);
      this.#host.openWith(state.opener);
      this.#state = { at: "none" };
      return "done";
    }
    if ((state.at === "agreed" || state.at === "started") && state.skipGuess) {
      state.skipGuess = false; // RFC 4253, 7.1: of whatever method it is
      return "more";
    }
    if (state.at === "agreed" && type === MSG.kexEcdhInit) this.#answer(state.agreed, decodeInit(payload));
    else if (state.at === "started" && type === MSG.kexEcdhReply) this.#finish(state.agreed, state.start, payload);
    else if (type === MSG.kexEcdhInit || type === MSG.kexEcdhReply || this.#sessionId === undefined)
      throw outOfPlace(type, this.#strict);
    else return "unknown";
    return "more";
  }

  #onOffer(payload: Buffer, sequence: number): void {
    const { role } = this.#side;
    const theirs = decodeOffer(payload);
    const isFirst = this.#sessionId === undefined;
    if (isFirst) {
      const { strict, extInfo } = marks(role, theirs);
      if (strict && sequence !== 0) throw protocolError("a message before the first offer of keys");
      this.#strict = strict;
      this.#wantsExtInfo = extInfo;
    }
    let mine: OwnOffer;
    if (this.#state.at === "offered") mine = this.#state.mine;
    else if (this.#state.at === "none") {
      if (!isFirst) this.#countExchange();
      if (role === "server") this.#ciphers = fastest(theirs);
      mine = this.offer();
    } else throw protocolError("an offer of keys in the middle of a key exchange");
    const agreement = agree(role, mine.offer, theirs);
    const skipGuess = agreement.wrongGuess;
    const copy = Buffer.from(payload);
    if (role === "server") {
      const agreed = { agreement, clientInit: copy, serverInit: mine.payload };
      this.#state = { at: "agreed", agreed, skipGuess };
      return;
    }
    const agreed = { agreement, clientInit: mine.payload, serverInit: copy };
    const start = method(agreement.kex).start();
    this.#state = { at: "started", agreed, start, skipGuess };
    this.#host.packet(encodeInit(start.share));
  }

  /** A peer may not keep this side busy with key exchanges that nothing needs. */
  #countExchange(): void {
    if (this.#host.earnedBytes() >= EARNED_BYTES) return;
    const free = this.#free;
    const back = Math.floor((performance.now() - free.since) / FREE_EXCHANGE_EVERY_MS);
    if (back > 0) {
      free.exchanges = Math.min(FREE_EXCHANGES, free.exchanges + back);
      free.since += back * FREE_EXCHANGE_EVERY_MS;
    }
    free.exchanges -= 1;
    if (free.exchanges < 0) throw protocolError("keys were exchanged again and again with nothing in between");
  }

  /** The server's part. */
  #answer(agreed: Agreed, clientShare: Buffer): void {
    const { agreement } = agreed;
    const hostKeys = this.#side.role === "server" ? this.#side.hostKeys : [];
    const signer = hostKeys.find(({ algorithm }) => algorithm === agreement.hostKey);
    if (signer === undefined) throw new Error(`${agreement.hostKey} was negotiated and there is no such host key`);
    const { share, secret } = method(agreement.kex).answer(clientShare);
    const hash = this.#hash(agreed, signer.blob, clientShare, share, secret);
    this.#host.packet(encodeReply(signer.blob, share, signer.sign(hash)));
    this.#switch(agreement, secret, hash);
  }

  /** The client's part: the signature is checked, then somebody is asked whether the key is the right one. */
  #finish(agreed: Agreed, start: Started, payload: Buffer): void {
    const side = this.#side;
    if (side.role !== "client") return;
    const { hostKey: algorithm } = agreed.agreement;
    const reply = decodeReply(payload);
    const blob = Buffer.from(reply.hostKey);
    const secret = start.finish(reply.share);
    const hash = this.#hash(agreed, blob, start.share, reply.share, secret);
    if (!isOfAlgorithm(blob, algorithm)) throw failed(`the host key is not of the type agreed on, ${algorithm}`);
    if (!verifySignature(algorithm, subjectKey(blob), hash, reply.signature))
      throw failed("the host key's signature is wrong");
    const verifying: State = { at: "verifying" };
    this.#state = verifying;
    const accepted = (): void => {
      if (this.#state !== verifying) return; // the connection ended meanwhile
      this.#switch(agreed.agreement, secret, hash);
      this.#host.verified();
    };
    Promise.resolve()
      .then(() => side.verifyHostKey({ algorithm, blob }))
      .then(accepted)
      .catch((error: unknown) => this.#host.refused(error));
  }

  #hash(agreed: Agreed, hostKey: Uint8Array, clientShare: Buffer, serverShare: Buffer, secret: Buffer): Buffer {
    const [own, theirs] = [this.#side.version, this.#host.theirVersion()];
    const [clientVersion, serverVersion] = this.#side.role === "client" ? [own, theirs] : [theirs, own];
    return exchangeHash(method(agreed.agreement.kex).hash, {
      ...{ clientVersion, serverVersion, clientInit: agreed.clientInit, serverInit: agreed.serverInit },
      ...{ hostKey, clientShare, serverShare, secret },
    });
  }

  /** Sends SSH_MSG_NEWKEYS and uses the new keys from the next packet on. */
  #switch(agreement: Agreement, secret: Buffer, hash: Buffer): void {
    this.#sessionId ??= hash;
    const keys = deriveKeys(agreement, secret, hash, this.#sessionId);
    const client = this.#side.role === "client";
    const [outWay, inWay] = client ? (["toServer", "toClient"] as const) : (["toClient", "toServer"] as const);
    const [out, in_] = [agreement[outWay], agreement[inWay]];
    this.#host.packet(Buffer.of(MSG.newKeys));
    this.#host.sealWith(createSealer(out.cipher, out.mac, keys[outWay]));
    this.#state = { at: "switching", opener: createOpener(in_.cipher, in_.mac, keys[inWay]) };
    const { kex, hostKey } = agreement;
    this.#negotiated = { kex, hostKey, strict: this.#strict, cipher: { in: in_.cipher, out: out.cipher } };
  }

  /** The connection is over: an answer about the host key comes too late. */
  stop(): void {
    this.#state = { at: "none" };
  }
}

/** GCM only for a client that has it, whatever it likes best; else all. */
function fastest(theirs: Offer): readonly string[] {
  const gcm = CIPHERS.filter((name) => !needsMac(name));
  const has = (names: readonly string[]): boolean => names.some((name) => gcm.includes(name));
  return has(theirs.ciphers.toServer) && has(theirs.ciphers.toClient) ? gcm : CIPHERS;
}

/** Whether a blob's format is what the agreed algorithm signs with: a certificate where one was agreed on, and only then. */
function isOfAlgorithm(blob: Buffer, algorithm: string): boolean {
  const format = new Reader(blob).name();
  return isCertificateName(format) === isCertificateName(algorithm) && plainName(format) === keyTypeOf(algorithm);
}

function failed(what: string): SshError {
  return new SshError(DISCONNECT.keyExchangeFailed, what);
}

function protocolError(what: string): SshError {
  return new SshError(DISCONNECT.protocolError, what);
}

/** A message that may not come now. */
export function outOfPlace(type: number, strict: boolean): SshError {
  return protocolError(`message ${type} is out of place${strict ? " (strict key exchange)" : ""}`);
}
