import { describe, GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { ClientConnection, Gate, OpenSession } from "../target.ts";
import { authenticateClient, gatePolicy, type Proof } from "./auth-server.ts";
import { planOf, type SshPlan } from "./config.ts";
import { createConnection, type ConnectionLimits } from "./connection.ts";
import { credentialSigner } from "./authority.ts";
import { dial } from "./dial.ts";
import { checkUserCertificate, gatewayKeys } from "./entry.ts";
import { startRelay, type Relay } from "./relay.ts";
import { scopeOf, type SshScope } from "./scope.ts";
import { createServerTransport } from "./transport.ts";
import {
  DISCONNECT,
  OPEN_FAILURE,
  type Connection,
  type ConnectionHandlers,
  type SshError,
  type Transport,
} from "./types.ts";
import { printable } from "./wire.ts";

export interface ServeParts {
  /** To connect and log in to the target, in ms; default {@link DIAL_MS}. */
  readonly dialMs?: number;
  /** Between signs of life that are asked for; default is the target's configuration. */
  readonly keepaliveMs?: number;
  readonly limits?: Partial<ConnectionLimits>;
}

/** A target that takes longer to let one in is as good as down, and somebody is waiting at a prompt. */
const DIAL_MS = 15_000;
/** Time for the last words to be read by a client that is not let in. */
const FAREWELL_MS = 2_000;
/** Signs of life that may be missed: a laptop's lid is closed for minutes, a server's network is not. */
const CLIENT_MISSED = 10;
const TARGET_MISSED = 3;

/** Makes the `serve` of this kind. */
export function createServe(parts: ServeParts = {}): (connection: ClientConnection, gate: Gate) => void {
  return (connection, gate) => void serve(connection, gate, parts);
}

async function serve(connection: ClientConnection, gate: Gate, parts: ServeParts): Promise<void> {
  const { socket, remoteAddress } = connection;
  socket.on("error", () => {}); // told by "close"
  let opening: Opening | undefined;
  try {
    const transport = await createServerTransport({ socket, hostKeys: gatewayKeys(connection.identity) });
    const admit = async (proof: Proof): Promise<void> => {
      const client = describeClient(transport, proof);
      const session = await gate.open({ user: proof.user, remoteAddress, client });
      opening = createOpening(session, connection, parts);
      await opening.reach();
    };
    await authenticateClient(transport, gatePolicy(gate, remoteAddress, checkUserCertificate, admit));
    opening?.go(transport);
  } catch (error) {
    opening?.fail(error);
    // Whoever is not let in was told so where it was decided; that closes the socket once it is read, or now is late.
    const timer = setTimeout(() => socket.destroy(), FAREWELL_MS);
    socket.once("close", () => clearTimeout(timer));
  }
}

/** What a client says of itself, and how it proved what. Bounded: the version line by the RFC, the rest by us. */
function describeClient({ peerVersion, negotiated }: Transport, { method, key }: Proof): JsonObject {
  return {
    ...{ version: printable(peerVersion), method, kex: negotiated.kex, cipher: negotiated.cipher.in },
    ...(key === undefined ? {} : { key: key.fingerprint, algorithm: key.algorithm }),
  };
}

/** A session from the control plane's yes to its relay. */
interface Opening {
  /** Connects and logs in to the target. @throws GlassError for the person */
  reach(): Promise<void>;
  /** The client was let in: its channels begin. */
  go(transport: Transport): void;
  /** It came to nothing. Idempotent, and nothing once `go` was called. */
  fail(error: unknown): void;
}

function createOpening(session: OpenSession, { socket }: ClientConnection, parts: ServeParts): Opening {
  const stop = new AbortController();
  let relay: Relay | undefined;
  let reached: { plan: SshPlan; scope: SshScope; target: Connection } | undefined;
  let lost: { error: SshError | undefined } | undefined; // the target, before the relay was there
  let failed = false;

  const gone = (): void => stop.abort(new Gone());
  socket.once("close", gone);
  session.attach({
    warn: (text) => relay?.warn(text),
    cut(text) {
      if (relay === undefined) stop.abort(new GlassError("grant_over", text));
      else relay.cut(text);
    },
    destroy() {
      stop.abort(new Gone());
      relay?.destroy();
      socket.destroy();
    },
  });

  const fail = (error: unknown): void => {
    if (relay !== undefined || failed) return;
    failed = true;
    socket.off("close", gone);
    reached?.target.destroy();
    const why: unknown = stop.signal.aborted ? stop.signal.reason : error;
    const cause =
      why instanceof Gone ? "client" : why instanceof GlassError && why.code === "grant_over" ? "cut" : "error";
    const code = why instanceof GlassError ? { code: why.code } : {};
    session.close({ cause, detail: describe(why), ...code, statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 });
  };

  return {
    async reach() {
      const seconds = (parts.dialMs ?? DIAL_MS) / 1000;
      const late = new GlassError("target_unreachable", `${session.target} did not answer within ${seconds} s`, {
        next: "Ask whoever looks after the host; `glass target check` shows what answers.",
      });
      const timer = setTimeout(() => stop.abort(late), parts.dialMs ?? DIAL_MS);
      const handlers: ConnectionHandlers = {
        onOpen: (open, accept) => {
          if (relay !== undefined) relay.target.onOpen(open, accept);
          else accept.refuse(OPEN_FAILURE.administrativelyProhibited, "nobody asked for this channel");
        },
        onRequest: (request) => relay?.target.onRequest(request) ?? Promise.resolve({ ok: false }),
        onDefect: (error) => relay?.target.onDefect?.(error),
        onClose(error) {
          if (relay === undefined) lost = { error };
          else relay.target.onClose(error);
        },
      };
      try {
        const [plan, scope] = [planOf(session.plan), scopeOf(session.scope)];
        const signer = credentialSigner(session.credential);
        const limits = parts.limits === undefined ? {} : { limits: parts.limits };
        const { connection: target } = await dial(plan, signer, stop.signal, { handlers, ...limits });
        reached = { plan, scope, target };
        stop.signal.throwIfAborted();
      } catch (error) {
        fail(error);
        throw stop.signal.aborted ? stop.signal.reason : error;
      } finally {
        clearTimeout(timer);
        forget(session.credential);
      }
    },
    go(transport) {
      if (reached === undefined || failed) return transport.destroy();
      if (stop.signal.aborted) {
        transport.disconnect(DISCONNECT.byApplication, describe(stop.signal.reason));
        return fail(stop.signal.reason);
      }
      socket.off("close", gone);
      const handlers: ConnectionHandlers = {
        onOpen: (open, accept) => relay?.client.onOpen(open, accept),
        onRequest: (request) => relay?.client.onRequest(request) ?? Promise.resolve({ ok: false }),
        onDefect: (error) => relay?.client.onDefect?.(error),
        onClose: (error) => relay?.client.onClose(error),
      };
      const client = createConnection(transport, handlers, parts.limits);
      const everyMs = parts.keepaliveMs ?? reached.plan.keepaliveSeconds * 1000;
      relay = startRelay({
        ...{ session, client, ...reached },
        keepalive: { everyMs, clientMissed: CLIENT_MISSED, targetMissed: TARGET_MISSED },
      });
      if (lost !== undefined) relay.target.onClose(lost.error);
    },
    fail,
  };
}

/** The client left before it was let in: nobody is there to be told. */
class Gone extends Error {
  constructor() {
    super("the client went away");
  }
}

/** The key is of no use after the login, to nobody whom it belongs to. */
function forget(credential: JsonObject): void {
  for (const name of Object.keys(credential)) Reflect.deleteProperty(credential, name);
}
