import { GlassError } from "../../core/errors.ts";
import { AUTH_SERVICE, CONNECTION_SERVICE, signedData, USERAUTH } from "./auth-server.ts";
import { hold } from "./held.ts";
import { createInbox } from "./inbox.ts";
import { plainName } from "./keys.ts";
import { DISCONNECT, SshError, type Signer, type Transport } from "./types.ts";
import { MSG, printable, Reader, Writer } from "./wire.ts";

/** What the host says before it lets anybody in; more is not read. */
const MAX_BANNERS = 20;
const MAX_BANNER_LENGTH = 300;

/**
 * Logs in as `user` with a certificate (RFC 4252, 7), and with nothing else. Afterwards the transport is held until
 * {@link createConnection} takes it.
 * @throws GlassError `target_unreachable` that says what to look for on the host; SshError when the connection ended; the
 *   signal's reason
 */
export async function authenticateToServer(
  transport: Transport,
  user: string,
  signer: Signer,
  signal: AbortSignal,
): Promise<void> {
  const inbox = createInbox(transport);
  const abort = (): void => inbox.fail(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    signal.throwIfAborted();
    // Both at once: one round trip less, and a server that grants no login service would refuse either.
    transport.send(new Writer().byte(MSG.serviceRequest).string(AUTH_SERVICE).done());
    const signed = signedData(transport.sessionId, user, signer.algorithm, signer.blob);
    const request = new Writer().byte(USERAUTH.request).string(user).string(CONNECTION_SERVICE).string("publickey");
    transport.send(
      request.boolean(true).string(signer.algorithm).string(signer.blob).string(signer.sign(signed)).done(),
    );
    const said: string[] = [];
    for (;;) {
      const payload = await inbox.next();
      switch (payload[0]) {
        case MSG.serviceAccept:
          break;
        case USERAUTH.banner:
          if (said.length >= MAX_BANNERS) throw new SshError(DISCONNECT.protocolError, "it talks instead of answering");
          said.push(printable(new Reader(payload, 1).string().toString("utf8"), MAX_BANNER_LENGTH));
          break;
        case USERAUTH.success:
          return hold(transport);
        case USERAUTH.failure:
          throw refusal(transport, user, signer, payload, said);
        default:
          transport.unimplemented();
          throw new SshError(
            DISCONNECT.protocolError,
            `it answered the login with a message of number ${payload[0] ?? 0}`,
          );
      }
    }
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

function refusal(
  { peerSignatureAlgorithms }: Transport,
  user: string,
  signer: Signer,
  payload: Buffer,
  said: readonly string[],
): GlassError {
  const reader = new Reader(payload, 1);
  const methods = reader.nameList();
  const isPartial = reader.boolean();
  const words = said.filter((text) => text !== "");
  const quoted = words.length === 0 ? "" : `; it says: ${printable(words.join(" "), MAX_BANNER_LENGTH)}`;
  if (isPartial) {
    return refused(
      `it took the certificate of ${user} and wants another proof as well (${methods.join(", ")})${quoted}`,
      {
        next: "Let its AuthenticationMethods be publickey alone for Glasskey's user.",
      },
    );
  }
  if (!methods.includes("publickey")) {
    return refused(`it lets ${user} in by no key or certificate${quoted}`, {
      next: "Set PubkeyAuthentication yes in its sshd_config, and look for AuthenticationMethods, AllowUsers and Match blocks.",
    });
  }
  const algorithm = plainName(signer.algorithm);
  if (peerSignatureAlgorithms.length > 0 && !peerSignatureAlgorithms.includes(algorithm)) {
    return refused(`it takes no ${algorithm} keys${quoted}`, {
      next: `Add ${algorithm} and ${signer.algorithm} to PubkeyAcceptedAlgorithms in its sshd_config.`,
    });
  }
  return refused(`it refused the certificate for ${user}${quoted}`, {
    next: "`glass target check` says which line is missing there: TrustedUserCAKeys, the principal, the user, or the gateway's address.",
  });
}

function refused(why: string, options: { next: string }): GlassError {
  return new GlassError("target_unreachable", `the target did not let Glasskey in: ${why}`, options);
}
