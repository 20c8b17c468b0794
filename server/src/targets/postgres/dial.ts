import { once } from "node:events";
import { connect, isIP, type Socket } from "node:net";
import * as tls from "node:tls";
import { causeOnTheWay } from "./causes.ts";
import { describe, GlassError } from "../../core/errors.ts";
import type { Secret } from "../../core/secret.ts";
import type { PostgresPlan } from "./config.ts";
import { Gone, readExactly, readMessage } from "./intake.ts";
import {
  endPointBinding,
  ScramError,
  startClientExchange,
  type ClientExchange,
  type SaltedPasswords,
} from "./scram.ts";
import * as wire from "./wire.ts";

/** A logged-in connection to the target. Nothing of it was read after the first ReadyForQuery. */
export interface TargetConnection {
  socket: tls.TLSSocket;
  /** The target's ParameterStatus messages (and notices) of the login, as they came. */
  greeting: readonly Buffer[];
  parameters: ReadonlyMap<string, string>;
  cancelKey: { pid: number; key: Buffer } | undefined;
  /** Ends the connection at once; the target finds out at its next word. */
  reset(): void;
}

export type TargetAddress = Pick<PostgresPlan, "host" | "port" | "tls">;

/** A message before the session starts; certificates and settings are far below it. */
const MAX_LOGIN_BYTES = 64 * 1024;

/** Makes TLS contexts once per authority, since parsing certificates costs more than a handshake. */
export type TlsContexts = (ca: string | null) => tls.SecureContext;

export function createTlsContexts(capacity = 64): TlsContexts {
  const known = new Map<string | null, tls.SecureContext>();
  return (ca) => {
    let context = known.get(ca);
    if (context === undefined) {
      context = tls.createSecureContext({ ca: ca ?? tls.getCACertificates("system"), minVersion: "TLSv1.2" });
      if (known.size >= capacity) known.clear();
      known.set(ca, context);
    }
    return context;
  };
}

/**
 * Opens a verified TLS connection by SSLRequest. Never falls back to plain text.
 * @throws GlassError `target_unreachable`
 */
async function dialTls(
  address: TargetAddress,
  contexts: TlsContexts,
  signal: AbortSignal,
): Promise<{ socket: tls.TLSSocket; raw: Socket }> {
  const raw = connect({
    host: address.host,
    port: address.port,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 30_000,
  });
  let socket: tls.TLSSocket | undefined;
  raw.on("error", () => {});
  const abort = (): void => {
    raw.destroy();
    socket?.destroy();
  };
  signal.addEventListener("abort", abort, { once: true });
  try {
    if (signal.aborted) throw signal.reason as Error;
    await once(raw, "connect", { signal });
    raw.write(wire.SSL_REQUEST);
    const answer = await readExactly(raw, 1);
    if (answer[0] !== 0x53) throw new Error("it does not offer TLS");
    // Bytes that came before the handshake were not protected by it (CVE-2021-23222).
    if (raw.readableLength > 0) throw new Error("it sent bytes ahead of the TLS handshake");
    const { servername } = address.tls;
    socket = tls.connect({
      ...{ socket: raw, secureContext: contexts(address.tls.ca), ALPNProtocols: ["postgresql"] },
      // An IP address must not be sent as server name (RFC 6066), but is verified all the same.
      ...(isIP(servername) === 0 ? { servername } : { host: servername }),
    });
    socket.on("error", () => {});
    await once(socket, "secureConnect", { signal });
    return { socket, raw };
  } catch (error) {
    abort();
    const why = signal.aborted && signal.reason instanceof Error ? signal.reason : error;
    throw new GlassError(
      "target_unreachable",
      `${address.host}:${address.port} cannot be reached: ${causeOnTheWay(address, why)?.detail ?? describe(why)}`,
      {
        next: "Check that the target is up, its address, and that its certificate fits tls.ca and tls.servername.",
        cause: error,
      },
    );
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** Texts of refusals that say nothing about names or secrets. */
const LOGIN_REFUSALS: Readonly<Record<string, string>> = {
  "28P01": "it refused the lease's password",
  "28000": "it refused the lease's role: ended, or not let in by pg_hba.conf",
  "3D000": "the database does not exist there",
  "53300": "it has no connection left for this lease",
  "57P03": "it is starting up or shutting down",
  "42501": "the lease may not connect to this database",
};

/**
 * Logs in as the lease's role: verified TLS, SCRAM-SHA-256 (with channel binding where the target offers it), nothing weaker.
 * @throws GlassError `target_unreachable` in words that hold no secret.
 */
export async function dial(
  plan: PostgresPlan,
  login: { password: Secret; database: string; settings: Readonly<Record<string, string>> },
  tools: { contexts: TlsContexts; passwords: SaltedPasswords },
  signal: AbortSignal,
): Promise<TargetConnection> {
  const { socket, raw } = await dialTls(plan, tools.contexts, signal);
  const abort = (): void => void socket.destroy();
  signal.addEventListener("abort", abort, { once: true });
  try {
    socket.write(wire.encodeStartup({ ...login.settings, user: plan.role, database: login.database }));
    // Of a TLS socket only the one below it can be reset.
    return { ...(await logIn(socket, login.password, tools.passwords)), reset: () => void raw.resetAndDestroy() };
  } catch (error) {
    socket.destroy();
    if (error instanceof GlassError) throw error;
    const why = signal.aborted ? describe(signal.reason) : describe(error);
    throw new GlassError("target_unreachable", `the target did not let Glasskey in: ${why}`, { cause: error });
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

async function logIn(
  socket: tls.TLSSocket,
  password: Secret,
  passwords: SaltedPasswords,
): Promise<Omit<TargetConnection, "reset">> {
  const greeting: Buffer[] = [];
  const parameters = new Map<string, string>();
  let cancelKey: TargetConnection["cancelKey"];
  let exchange: ClientExchange | undefined;
  let proved = false;
  for (;;) {
    const { type, body } = await readMessage(socket, MAX_LOGIN_BYTES);
    switch (type) {
      case wire.BACKEND.authentication: {
        const code = body.length < 4 ? -1 : body.readInt32BE(0);
        if (code === 0 && proved) break;
        // Also "ok" without a proof (trust): then anybody may be the target, and anybody may be the role.
        if (code === 10) exchange = startSasl(socket, body);
        else if (code === 11 && exchange !== undefined) {
          const final = await exchange.proceed(body.toString("latin1", 4), password.reveal(), passwords);
          socket.write(wire.message(wire.FRONTEND.password, Buffer.from(final)));
        } else if (code === 12 && exchange !== undefined) {
          exchange.verify(body.toString("latin1", 4));
          proved = true;
        } else throw new ScramError("it asks for a login other than SCRAM-SHA-256");
        break;
      }
      case wire.BACKEND.errorResponse: {
        const { sqlstate } = wire.decodeError(body, 0, body.length);
        const known = LOGIN_REFUSALS[sqlstate] ?? "it refused the login";
        const code = /^[0-9A-Z]{5}$/.test(sqlstate) ? sqlstate : "XX000";
        throw new GlassError("target_unreachable", `the target did not let Glasskey in: ${known} (SQLSTATE ${code})`);
      }
      case wire.BACKEND.parameterStatus: {
        if (!proved) throw new wire.ProtocolViolation("it sent settings before the login");
        const { name, value } = wire.decodeParameterStatus(body, 0, body.length);
        parameters.set(name, value);
        greeting.push(wire.message(type, body));
        break;
      }
      case wire.BACKEND.noticeResponse:
        if (proved) greeting.push(wire.message(type, body));
        break;
      case wire.BACKEND.backendKeyData:
        if (body.length >= 8) cancelKey = { pid: body.readInt32BE(0), key: body.subarray(4) };
        break;
      case wire.BACKEND.readyForQuery:
        if (!proved) throw new ScramError("it asks for a login other than SCRAM-SHA-256");
        return { socket, greeting, parameters, cancelKey };
      default:
        throw new wire.ProtocolViolation(`it sent a message of type ${type} during the login`);
    }
    if (greeting.length > 200) throw new wire.ProtocolViolation("it sent too many settings");
  }
}

function startSasl(socket: tls.TLSSocket, body: Buffer): ClientExchange {
  const offered = body.toString("latin1", 4).split("\0");
  const certificate = socket.getPeerX509Certificate()?.raw;
  const exchange = startClientExchange(offered, certificate === undefined ? undefined : endPointBinding(certificate));
  const first = Buffer.from(exchange.clientFirst);
  socket.write(wire.message(wire.FRONTEND.password, exchange.mechanism, wire.int32(first.length), first));
  return exchange;
}

/** How long a CancelRequest may take before it is given up; the client waits for it. */
const CANCEL_MS = 5_000;

/** Asks the target to cancel what a backend runs. Resolves when the target has acted on it, or it failed; never rejects. */
export async function sendCancel(
  address: TargetAddress,
  cancelKey: { pid: number; key: Buffer },
  contexts: TlsContexts,
): Promise<void> {
  let socket: Socket | undefined;
  try {
    const signal = AbortSignal.timeout(CANCEL_MS);
    ({ socket } = await dialTls(address, contexts, signal));
    socket.write(wire.encodeCancel(cancelKey.pid, cancelKey.key));
    // The target closes without an answer once it has sent the signal.
    const abort = (): void => void socket?.destroy();
    signal.addEventListener("abort", abort, { once: true });
    await readExactly(socket, 1).catch((error: unknown) => {
      if (!(error instanceof Gone)) throw error;
    });
  } catch {
    // The statement goes on, as it does when a cancel request is lost on any other way to PostgreSQL.
  } finally {
    socket?.destroy();
  }
}
