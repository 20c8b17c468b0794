import { connect, type Socket } from "node:net";
import { describe, GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import { credentialSigner } from "./authority.ts";
import { dial, type Dialled, type DialTarget } from "./dial.ts";
import { verifyHost, wantedAlgorithms } from "./host-keys.ts";
import { HOST_KEY_ALGORITHMS } from "./algorithms.ts";
import { signedData, USERAUTH } from "./auth-server.ts";
import { createInbox } from "./inbox.ts";
import { fingerprint, subjectKey } from "./keys.ts";
import { createClientTransport } from "./transport.ts";
import type { Signer, Transport } from "./types.ts";
import { MSG, Reader, Writer } from "./wire.ts";

const CONNECT_MS = 10_000;
const MAX_ANSWERS = 100; // banners, before an answer
const MAX_OFFERS = 4; // sshd hangs up after six

/** Logs in with a certificate, for work on the host. @throws GlassError that says which login it was about */
export async function reach(
  target: DialTarget,
  credential: JsonObject,
  what: string,
  signal: AbortSignal,
): Promise<Dialled> {
  try {
    return await dial(target, credentialSigner(credential), signal);
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof GlassError) || error.code === "target_untrusted") throw error;
    throw new GlassError(error.code, `${what}: ${error.message}`, {
      ...(error.next === undefined ? {} : { next: error.next }),
      cause: error,
    });
  }
}

/**
 * Offers certificates as one user, one after the other on one connection, until one is let in; then hangs up without having
 * opened anything. A connection that ends in a login is no failed one, which sshd would count against this machine's address
 * (PerSourcePenalties, since OpenSSH 9.8); so whoever wants to see a refusal puts a certificate that is let in behind it.
 * @returns for each, whether it was let in; those after the first yes, and after a hang-up, were not tried and are false
 * @throws GlassError `target_unreachable`, `target_untrusted` when the question could not be put
 */
export async function offer(
  target: DialTarget,
  credentials: readonly JsonObject[],
  signal: AbortSignal,
): Promise<readonly boolean[]> {
  const signers = credentials.slice(0, MAX_OFFERS).map(credentialSigner);
  const { transport } = await open(target, signal);
  const answers = signers.map(() => false);
  const packets = createInbox(transport);
  const abort = (): void => packets.fail(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    signal.throwIfAborted();
    transport.send(new Writer().byte(MSG.serviceRequest).string("ssh-userauth").done());
    for (let n = 0; ; n += 1) {
      const answer = await packets.next();
      if (answer[0] === MSG.serviceAccept) break;
      if (n > MAX_ANSWERS || answer[0] !== USERAUTH.banner) throw new Error("it does not let anybody log in");
    }
    for (const [index, signer] of signers.entries()) {
      transport.send(signedRequest(transport.sessionId, target.user, signer));
      if ((await answerOf(packets)) === "failure") continue;
      answers[index] = true;
      break;
    }
    transport.disconnect(11, "asked");
    return answers;
  } catch (error) {
    transport.destroy();
    signal.throwIfAborted();
    if (error instanceof GlassError) throw error;
    throw unreachable(target, error);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** Fingerprint and type of the key that the host shows, once it is found to be the right one. */
export async function hostKeyShown(
  target: Pick<DialTarget, "host" | "port" | "hostKeys">,
  signal: AbortSignal,
): Promise<string> {
  const { transport, key } = await open(target, signal);
  transport.destroy();
  return key;
}

async function answerOf(packets: ReturnType<typeof createInbox>): Promise<"success" | "failure"> {
  for (let n = 0; n < MAX_ANSWERS; n += 1) {
    const answer = await packets.next();
    if (answer[0] === USERAUTH.success) return "success";
    if (answer[0] === USERAUTH.failure) {
      const reader = new Reader(answer, 1);
      reader.nameList();
      if (!reader.boolean()) return "failure";
      // Neither yes nor no: the certificate is good, and something else is wanted that Glasskey does not have.
      throw new GlassError("target_unfit", "the host wants more than a certificate", {
        next: "In its sshd_config: AuthenticationMethods publickey, for Glasskey's users.",
      });
    }
    if (answer[0] !== USERAUTH.banner) throw new Error("it answers a login with something else");
  }
  throw new Error("it sends banners without end");
}

/** RFC 4252, 7: the request that is signed, with the signature behind it. */
function signedRequest(sessionId: Buffer, user: string, signer: Signer): Buffer {
  const signed = signedData(sessionId, user, signer.algorithm, signer.blob);
  const request = new Writer().byte(USERAUTH.request).string(user).string("ssh-connection").string("publickey");
  return request.boolean(true).string(signer.algorithm).string(signer.blob).string(signer.sign(signed)).done();
}

async function open(
  target: Pick<DialTarget, "host" | "port" | "hostKeys">,
  signal: AbortSignal,
): Promise<{ transport: Transport; key: string }> {
  const within = AbortSignal.any([signal, AbortSignal.timeout(CONNECT_MS)]);
  let socket: Socket | undefined;
  const abort = (): void => void socket?.destroy(within.reason instanceof Error ? within.reason : undefined);
  within.addEventListener("abort", abort, { once: true });
  let key = "";
  try {
    within.throwIfAborted();
    socket = connect({ host: target.host, port: target.port, noDelay: true });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    socket
      .once("connect", resolve)
      .once("error", reject)
      .once("close", () => reject(new Error("it hung up")));
    await promise;
    const wanted = wantedAlgorithms(target.hostKeys);
    const transport = await createClientTransport({
      ...{ socket, limits: { handshakeMs: CONNECT_MS } },
      // The others as well: a host with none of the wanted keys then says which it has.
      hostKeyAlgorithms: [...wanted, ...HOST_KEY_ALGORITHMS.filter((name) => !wanted.includes(name))],
      verifyHostKey(shown) {
        verifyHost(target, shown, new Date());
        const { type, blob } = subjectKey(shown.blob);
        key = `${fingerprint(blob)} ${type}`;
      },
    });
    return { transport, key };
  } catch (error) {
    socket?.destroy();
    signal.throwIfAborted();
    if (error instanceof GlassError) throw error;
    throw unreachable(target, within.aborted ? within.reason : error);
  } finally {
    within.removeEventListener("abort", abort);
  }
}

function unreachable({ host, port }: { host: string; port: number }, error: unknown): GlassError {
  return new GlassError("target_unreachable", `${host}:${port} cannot be reached: ${describe(error)}`, {
    next: "Check that sshd runs there, `host:` and `port:` in the target file, and firewalls on the way.",
    cause: error,
  });
}
