import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { describe, GlassError } from "../../core/errors.ts";
import { HOST_KEY_ALGORITHMS } from "./algorithms.ts";
import { authenticateToServer } from "./auth-client.ts";
import type { SshPlan } from "./config.ts";
import { createConnection, type ConnectionLimits } from "./connection.ts";
import { verifyHost, wantedAlgorithms } from "./host-keys.ts";
import { fingerprint, subjectKey } from "./keys.ts";
import { createClientTransport } from "./transport.ts";
import {
  OPEN_FAILURE,
  SshError,
  type Connection,
  type ConnectionHandlers,
  type Signer,
  type Transport,
} from "./types.ts";

/** Where a host is, how it is known, and whom to log in as. */
export type DialTarget = Pick<SshPlan, "host" | "port" | "hostKeys" | "user">;

export interface DialOptions {
  /** What becomes of the host's own channels and requests; refused where absent. */
  readonly handlers?: ConnectionHandlers;
  readonly limits?: Partial<ConnectionLimits>;
}

export interface Dialled {
  readonly connection: Connection;
  readonly transport: Transport;
  /** What the host showed: a key, or a certificate's. */
  readonly hostKey: { readonly algorithm: string; readonly fingerprint: string };
}

/** Longer than a SYN that was lost twice; callers who cannot wait so long bring a signal. */
const CONNECT_MS = 10_000;
/** From the connection to the login: sshd may look up names and ask PAM meanwhile. */
const LOGIN_MS = 30_000;

const REFUSING: ConnectionHandlers = {
  onOpen: (_, accept) => accept.refuse(OPEN_FAILURE.administrativelyProhibited, "nobody asked for this channel"),
  onRequest: () => Promise.resolve({ ok: false }),
  onClose: () => {},
};

/**
 * Connects to a host, checks its key, and logs in with a certificate and nothing else: no agent, no password, no
 * configuration of the machine.
 * @param signer such as `credentialSigner(session.credential)`
 * @throws GlassError `target_unreachable`; `target_untrusted` when the host key is not the one that is known; the signal's
 *   reason where that is a GlassError
 */
export async function dial(
  target: DialTarget,
  signer: Signer,
  signal: AbortSignal,
  options: DialOptions = {},
): Promise<Dialled> {
  const { host, port, hostKeys, user } = target;
  const where = host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
  const limit = AbortSignal.any([signal, AbortSignal.timeout(LOGIN_MS)]);
  let socket: Socket | undefined;
  const abort = (): void => void socket?.destroy();
  limit.addEventListener("abort", abort, { once: true });
  try {
    limit.throwIfAborted();
    socket = await reach(host, port, where, limit);
    let shown: Dialled["hostKey"] | undefined;
    const wanted = wantedAlgorithms(hostKeys);
    const transport = await createClientTransport({
      socket,
      // Others too, after the wanted ones: a host that has only another key says which, instead of failing to agree.
      hostKeyAlgorithms: [...wanted, ...HOST_KEY_ALGORITHMS.filter((name) => !wanted.includes(name))],
      verifyHostKey(key) {
        verifyHost({ host, hostKeys }, key, new Date());
        shown = { algorithm: key.algorithm, fingerprint: fingerprint(subjectKey(key.blob).blob) };
      },
    });
    try {
      await authenticateToServer(transport, user, signer, limit);
    } catch (error) {
      transport.disconnect(11, "not let in");
      throw error;
    }
    if (shown === undefined) throw new GlassError("internal", "a host that showed no key was logged in to");
    const connection = createConnection(transport, options.handlers ?? REFUSING, options.limits);
    return { connection, transport, hostKey: shown };
  } catch (error) {
    if (limit.aborted) socket?.destroy();
    else socket?.destroySoon();
    const why: unknown = limit.aborted ? limit.reason : error;
    if (why instanceof GlassError) throw why;
    throw new GlassError("target_unreachable", `${where} cannot be reached: ${wordsOf(why)}`, {
      next: "Check that sshd runs there and what its own log says.",
      cause: error,
    });
  } finally {
    limit.removeEventListener("abort", abort);
  }
}

function wordsOf(error: unknown): string {
  if (error instanceof DOMException && error.name === "TimeoutError") return "the login took too long";
  // A peer's words have been made printable by the transport.
  return error instanceof SshError && error.message !== "" ? error.message : describe(error);
}

/** Tries each address of the name, those of both families side by side (RFC 8305). */
async function reach(host: string, port: number, where: string, signal: AbortSignal): Promise<Socket> {
  const timeout = AbortSignal.timeout(CONNECT_MS);
  const socket = connect({ host, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 30_000 });
  socket.on("error", () => {}); // told by "close", also long after this
  try {
    await once(socket, "connect", { signal: AbortSignal.any([signal, timeout]) });
    return socket;
  } catch (error) {
    socket.destroy();
    signal.throwIfAborted();
    const { detail, next } = causeOf(host, where, timeout.aborted ? "ETIMEDOUT" : codeOf(error), error);
    throw new GlassError("target_unreachable", `${where} cannot be reached: ${detail}`, { next, cause: error });
  }
}

function causeOf(
  host: string,
  where: string,
  code: string | undefined,
  error: unknown,
): { detail: string; next: string } {
  const file = "`host:` and `port:` in the target file";
  switch (code) {
    case "ENOTFOUND":
      return {
        detail: `there is no host named ${host}`,
        next: "Correct `host:` in the target file, or the name service of this machine.",
      };
    case "EAI_AGAIN":
      return { detail: `the name ${host} cannot be looked up now`, next: "Check the name service of this machine." };
    case "ECONNREFUSED":
      return {
        detail: "nothing listens there: the connection was refused",
        next: `Start sshd on the target, or correct ${file}.`,
      };
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "EADDRNOTAVAIL":
      return { detail: "there is no way to it", next: "Check `host:` in the target file, routes and firewalls." };
    case "ETIMEDOUT":
      return { detail: "it does not answer", next: `Check ${file}, that the target is up, and firewalls on the way.` };
    default:
      return { detail: describe(error), next: `Check that sshd answers at ${where}.` };
  }
}

/** The code of a system error; of several attempts, of the first. */
function codeOf(error: unknown): string | undefined {
  if (error instanceof Error && "code" in error && typeof error.code === "string") return error.code;
  return error instanceof AggregateError ? codeOf(error.errors[0]) : undefined;
}
