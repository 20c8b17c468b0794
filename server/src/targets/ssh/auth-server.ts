import { equalSecret } from "../../core/bytes.ts";
import { GlassError } from "../../core/errors.ts";
import { Secret } from "../../core/secret.ts";
import type { Gate } from "../target.ts";
import { violation } from "./channel.ts";
import { hold } from "./held.ts";
import { createInbox } from "./inbox.ts";
import {
  fingerprint,
  isCertificateName,
  keyTypeOf,
  plainName,
  subjectKey,
  verifySignature,
  type PublicKey,
} from "./keys.ts";
import { DISCONNECT, SshError, type Transport } from "./types.ts";
import { MSG, printable, Reader, Writer } from "./wire.ts";

/** Message numbers of user authentication (RFC 4252, 6; RFC 4256, 5). 60 and 61 mean what the method says. */
export const USERAUTH = {
  request: 50,
  failure: 51,
  success: 52,
  banner: 53,
  publicKeyOk: 60,
  infoRequest: 60,
  infoResponse: 61,
} as const;

export const AUTH_SERVICE = "ssh-userauth";
export const CONNECTION_SERVICE = "ssh-connection";

/** The same for everybody, always: what a grant could be opened with says nothing about whether there is one. */
const METHODS = ["publickey", "keyboard-interactive", "password"];
/** Wrong secrets and wrong signatures that a connection is allowed; as many as OpenSSH's MaxAuthTries. */
const MAX_FAILURES = 6;
/** Keys that a client may show without signing, and dialogues: people have several keys, and agents offer them all. */
const MAX_OFFERS = 32;
/** A person has to find the secret and paste it; OpenSSH's LoginGraceTime is the same. */
const LOGIN_MS = 120_000;
/** A grant's id is 15 characters long. */
const MAX_USER_BYTES = 256;
const MAX_SECRET_BYTES = 1024;
const MAX_BANNER_LENGTH = 2048;

/** How somebody proved to be who they say. */
export interface Proof {
  readonly user: string;
  readonly method: "publickey" | "password" | "keyboard-interactive";
  /** Of the key that signed, `SHA256:…`; and the public key algorithm. */
  readonly key?: { readonly fingerprint: string; readonly algorithm: string };
}

/** Judges what a client shows. Takes the same steps for a user that does not exist. */
export interface AuthPolicy {
  /** Whether this key or certificate may sign in as this user. Asked before a signature, and again with one. */
  verifyKey(user: string, algorithm: string, blob: Buffer): Promise<boolean>;
  verifySecret(user: string, secret: Secret): Promise<boolean>;
  /** A wrong secret, or a wrong signature: never a key that was only offered, and never an empty answer. */
  failed(user: string): void;
  /**
   * The last word, after the proof and before the client hears of success. A rejection with a GlassError is told to the
   * client, message and `next`, and ends the connection.
   */
  admit(proof: Proof): Promise<void>;
  /** Shown once to whoever's certificate or secret is not taken, whatever the reason; the same for all users. */
  readonly advice?: string;
}

export interface AuthOptions {
  /** From the end of the key exchange to the proof, in ms. */
  readonly loginMs?: number;
}

/** What a request came to. `refused` is a failure in the sense of RFC 4252, 5.1; `offered` was not even an attempt. */
type Outcome =
  | { readonly is: "proved"; readonly proof: Proof }
  | { readonly is: "refused"; readonly counts: boolean; readonly tell: boolean }
  | { readonly is: "offered"; readonly taken: boolean; readonly tell: boolean }
  | { readonly is: "asked" };

interface AuthRequest {
  readonly user: string;
  readonly method: string;
  readonly rest: Reader;
}

/**
 * Authentication (RFC 4252) in the server's role: public keys, and a secret as password or by keyboard-interactive (RFC 4256).
 * Afterwards the transport is held until {@link createConnection} takes it.
 * @throws SshError, or what `policy` rejected with; the client was told and the connection is ended then
 */
export async function authenticateClient(
  transport: Transport,
  policy: AuthPolicy,
  options: AuthOptions = {},
): Promise<Proof> {
  const inbox = createInbox(transport);
  const loginMs = options.loginMs ?? LOGIN_MS;
  const late = (): void => {
    inbox.fail(
      new SshError(DISCONNECT.byApplication, `nobody proved who they are within ${Math.round(loginMs / 1000)} s`),
    );
  };
  const deadline = setTimeout(late, loginMs);
  try {
    const proof = await prove(transport, policy, () => inbox.next());
    clearTimeout(deadline);
    await policy.admit(proof);
    inbox.check();
    hold(transport);
    transport.send(Buffer.of(USERAUTH.success));
    return proof;
  } catch (error) {
    if (error instanceof SshError) transport.disconnect(error.reason, error.message);
    else if (error instanceof GlassError) transport.disconnect(DISCONNECT.byApplication, sentences(error));
    else transport.disconnect(DISCONNECT.byApplication, "internal error");
    throw error;
  } finally {
    clearTimeout(deadline);
  }
}

/** In one line: OpenSSH shows the text of a disconnect as one, up to 400 characters. */
function sentences({ message, next }: GlassError): string {
  return next === undefined ? message : `${message.replace(/[.\s]+$/, "")}. ${next}`;
}

async function prove(transport: Transport, policy: AuthPolicy, next: () => Promise<Buffer>): Promise<Proof> {
  await serve(transport, await next());
  let user: string | undefined;
  let failures = 0;
  let offers = 0;
  let advised = false;
  let asking = false; // keyboard-interactive, the prompt is out
  let greeted = false; // the first `none`, by which clients ask for the methods
  for (;;) {
    const payload = await next();
    let outcome: Outcome;
    if (payload[0] === USERAUTH.infoResponse && asking && user !== undefined) {
      asking = false;
      outcome = await judgeSecret(policy, user, "keyboard-interactive", readAnswer(payload));
    } else if (payload[0] === USERAUTH.request) {
      asking = false; // RFC 4256, 3.1: another request abandons the dialogue
      const request = readRequest(payload);
      user ??= request.user;
      // RFC 4252, 5: what was proved for one user must not count for another.
      if (request.user !== user) throw violation("the user name was changed during the login");
      if (request.method === "none" && !greeted) {
        request.rest.end();
        greeted = true;
        outcome = { is: "refused", counts: false, tell: false };
      } else outcome = await judge(transport, policy, request);
    } else if (payload[0] === MSG.serviceRequest) {
      throw violation("a service was asked for during the login");
    } else {
      transport.unimplemented();
      continue;
    }
    switch (outcome.is) {
      case "proved":
        return outcome.proof;
      case "asked":
        asking = true;
        offers += 1; // a dialogue that is begun again and again without an answer
        if (offers > MAX_OFFERS) break;
        continue;
      case "offered":
        offers += 1;
        if (outcome.taken) {
          if (offers > MAX_OFFERS) break;
          continue;
        }
        break;
      case "refused":
        failures += outcome.counts ? 1 : 0;
        break;
    }
    if (outcome.is !== "asked" && outcome.tell && !advised && policy.advice !== undefined) {
      advised = true;
      transport.send(banner(policy.advice));
    }
    if (failures >= MAX_FAILURES || offers > MAX_OFFERS) {
      const what = failures >= MAX_FAILURES ? "failed attempts" : "keys or questions without an answer";
      throw new SshError(
        DISCONNECT.noMoreAuthMethods,
        `too many ${what}; connect again with the grant's own certificate or secret`,
      );
    }
    transport.send(new Writer().byte(USERAUTH.failure).nameList(METHODS).boolean(false).done());
  }
}

/** The service request that begins it (RFC 4253, 10). */
async function serve(transport: Transport, payload: Buffer): Promise<void> {
  if (payload[0] !== MSG.serviceRequest) throw violation("a login that does not begin with a service request");
  const reader = new Reader(payload, 1);
  const name = reader.name();
  reader.end();
  if (name !== AUTH_SERVICE)
    throw new SshError(DISCONNECT.serviceNotAvailable, "log in first: the service is ssh-userauth");
  transport.send(new Writer().byte(MSG.serviceAccept).string(name).done());
}

function readRequest(payload: Buffer): AuthRequest {
  const rest = new Reader(payload, 1);
  const user = rest.text(MAX_USER_BYTES);
  const service = rest.name();
  const method = rest.name();
  if (service !== CONNECTION_SERVICE) {
    throw new SshError(DISCONNECT.serviceNotAvailable, "there is no service but ssh-connection here");
  }
  return { user, method, rest };
}

async function judge(transport: Transport, policy: AuthPolicy, { user, method, rest }: AuthRequest): Promise<Outcome> {
  switch (method) {
    case "publickey":
      return judgeKey(transport, policy, user, rest);
    case "password": {
      const isChange = rest.boolean();
      const secret = rest.string(MAX_SECRET_BYTES).toString("utf8");
      if (isChange) return { is: "refused", counts: true, tell: true };
      rest.end();
      return judgeSecret(policy, user, "password", secret);
    }
    case "keyboard-interactive": {
      rest.string(); // language
      rest.string(); // submethods
      rest.end();
      const prompt = new Writer().byte(USERAUTH.infoRequest).string("").string("").string("").uint32(1);
      transport.send(prompt.string("Glasskey secret: ").boolean(false).done());
      return { is: "asked" };
    }
    default:
      return { is: "refused", counts: true, tell: false };
  }
}

/** RFC 4256, 3.4. */
function readAnswer(payload: Buffer): string {
  const reader = new Reader(payload, 1);
  const count = reader.uint32();
  if (count !== 1) throw violation("another number of answers than questions");
  const answer = reader.string(MAX_SECRET_BYTES).toString("utf8");
  reader.end();
  return answer;
}

async function judgeSecret(policy: AuthPolicy, user: string, method: Proof["method"], said: string): Promise<Outcome> {
  const secret = said.trim(); // a paste often has a space or an end of line too many
  if (await policy.verifySecret(user, new Secret(secret))) return { is: "proved", proof: { user, method } };
  // A client without anybody to ask answers with nothing; that is no guess, and locks nobody out.
  if (secret !== "") policy.failed(user);
  return { is: "refused", counts: true, tell: true };
}

/** RFC 4252, 7. */
async function judgeKey(transport: Transport, policy: AuthPolicy, user: string, rest: Reader): Promise<Outcome> {
  const isSigned = rest.boolean();
  const algorithm = rest.name();
  const blob = Buffer.from(rest.string());
  const signature = isSigned ? rest.string() : undefined;
  rest.end();
  const key = keyFor(algorithm, blob);
  const taken = key !== undefined && (await policy.verifyKey(user, algorithm, blob));
  // A person's other keys are not worth a word; a certificate that is not taken is.
  const tell = isCertificateName(algorithm);
  if (signature === undefined) {
    if (taken) transport.send(new Writer().byte(USERAUTH.publicKeyOk).string(algorithm).string(blob).done());
    return { is: "offered", taken, tell };
  }
  if (
    key !== undefined &&
    taken &&
    verifySignature(algorithm, key, signedData(transport.sessionId, user, algorithm, blob), signature)
  ) {
    return {
      is: "proved",
      proof: { user, method: "publickey", key: { fingerprint: fingerprint(key.blob), algorithm } },
    };
  }
  policy.failed(user);
  return { is: "refused", counts: true, tell };
}

/**
 * The key in a blob, where the algorithm is one that it can sign with: the announced algorithm, the blob's own format, and
 * later the signature's must all say the same (RFC 8332, 3.2; PROTOCOL.certkeys).
 */
function keyFor(algorithm: string, blob: Buffer): PublicKey | undefined {
  try {
    const format = new Reader(blob).name();
    if (isCertificateName(algorithm) !== isCertificateName(format)) return undefined;
    const key = subjectKey(blob);
    return keyTypeOf(algorithm) === key.type && plainName(format) === key.type ? key : undefined;
  } catch (error) {
    if (error instanceof SshError) return undefined;
    throw error;
  }
}

/** What a client signs to log in with a key (RFC 4252, 7): bound to this connection by the session id. */
export function signedData(sessionId: Uint8Array, user: string, algorithm: string, blob: Uint8Array): Buffer {
  const head = new Writer().string(sessionId).byte(USERAUTH.request).string(user).string(CONNECTION_SERVICE);
  return head.string("publickey").boolean(true).string(algorithm).string(blob).done();
}

/** SSH_MSG_USERAUTH_BANNER (RFC 4252, 5.4): printable lines. */
function banner(text: string): Buffer {
  const lines = text
    .slice(0, MAX_BANNER_LENGTH)
    .split("\n")
    .map((line) => printable(line, MAX_BANNER_LENGTH));
  return new Writer()
    .byte(USERAUTH.banner)
    .string(`${lines.join("\r\n").trimEnd()}\r\n`)
    .string("")
    .done();
}

/** What everybody reads who is not let in: it must hold for a grant that never was. */
const ADVICE =
  "Glasskey does not let you in with this. The user's name is the grant: ssh GRANT@…\n" +
  "Its secret and its certificates end with it. Is it open: glass status GRANT\n" +
  "Its secret: glass connect GRANT --print. If it is over, break the glass again.";

/** The policy of the gateway: the connect secret of a grant, or a certificate of the grant's own authority. */
export function gatePolicy(
  gate: Gate,
  remoteAddress: string,
  checkCertificate: (grant: string, blob: Uint8Array, connectSecret: Secret, now: Date) => void,
  admit: (proof: Proof) => Promise<void>,
): AuthPolicy {
  // One user name per connection, so one question; the gate looks at the grant again when it opens.
  let challenge: ReturnType<Gate["challenge"]> | undefined;
  const secretOf = async (user: string): Promise<Secret> => {
    challenge ??= gate.challenge(user);
    return (await challenge).connectSecret;
  };
  return {
    async verifyKey(user, algorithm, blob) {
      if (!isCertificateName(algorithm)) return false;
      const secret = await secretOf(user);
      try {
        checkCertificate(user, blob, secret, new Date());
        return true;
      } catch (error) {
        if (error instanceof SshError) return false;
        throw error;
      }
    },
    async verifySecret(user, secret) {
      return equalSecret((await secretOf(user)).reveal(), secret.reveal());
    },
    failed: (user) => gate.failed(user, remoteAddress),
    admit,
    advice: ADVICE,
  };
}
