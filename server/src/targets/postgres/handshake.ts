import { constants, createHmac, randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import * as tls from "node:tls";
import type { Secret } from "../../core/secret.ts";
import type { ClientConnection } from "../target.ts";
import { Gone, readExactly, readMessage } from "./intake.ts";
import * as scram from "./scram.ts";
import * as wire from "./wire.ts";

/**
 * A client's way in, up to the proof of its secret: TLS by SSLRequest or directly (PostgreSQL 17, ALPN `postgresql`), the
 * startup packet, and SCRAM-SHA-256. Everything here talks to somebody who has proved nothing yet.
 */

/** Refused: the report is for the client, who is then let go. */
export class Refused extends Error {
  override readonly name = "Refused";
  readonly report: wire.Report;
  constructor(sqlstate: string, message: string, hint?: string) {
    super(message);
    this.report = { severity: "FATAL", sqlstate, message, hint };
  }
}

/** The gateway's TLS towards clients, prepared once per certificate. */
export interface ServerTls {
  context: tls.SecureContext;
  binding: scram.ChannelBinding;
}

export function createServerTls(): (identity: ClientConnection["tls"]) => ServerTls {
  let known: { cert: string; key: string; made: ServerTls } | undefined;
  return ({ cert, key }) => {
    if (known?.cert !== cert || known.key !== key) {
      // As PostgreSQL itself: no renegotiation, and no tickets, since every session proves its secret anyway.
      const secureOptions = constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION;
      const context = tls.createSecureContext({ cert, key, minVersion: "TLSv1.2", secureOptions });
      known = { cert, key, made: { context, binding: scram.endPointBinding(cert) } };
    }
    return known.made;
  };
}

export interface Startup {
  kind: "startup";
  socket: Socket;
  encrypted: boolean;
  minor: number;
  parameters: ReadonlyMap<string, string>;
}

/** What the client wants, once it is known. @throws Gone, Refused, wire.ProtocolViolation */
export async function greet(
  connection: Pick<ClientConnection, "socket" | "plaintextAllowed">,
  serverTls: ServerTls,
  /** Called without a socket when a TLS handshake starts, and with the one that carries the protocol afterwards. */
  upgraded: (socket: Socket | undefined) => void,
): Promise<Startup | { kind: "cancel"; pid: number; key: Buffer; socket: Socket }> {
  let socket: Socket = connection.socket;
  let encrypted = false;
  const encrypt = async (direct: boolean): Promise<void> => {
    upgraded(undefined);
    const secured = await acceptTls(socket, serverTls.context);
    if (direct && secured.alpnProtocol !== "postgresql") {
      secured.destroy();
      throw new Gone("direct TLS without ALPN");
    }
    socket = secured;
    encrypted = true;
    upgraded(socket);
  };
  // At most GSSENCRequest, SSLRequest, startup.
  for (let packets = 0; packets < 3; packets += 1) {
    const first = await readExactly(socket, 1);
    if (first[0] === 0x16 && !encrypted && packets === 0) {
      socket.unshift(first); // a TLS handshake, without asking first
      await encrypt(true);
      packets -= 1;
      continue;
    }
    const length = Buffer.concat([first, await readExactly(socket, 3)]).readUInt32BE(0);
    if (length < 8 || length > wire.MAX_STARTUP_BYTES)
      throw new wire.ProtocolViolation("invalid length of startup packet");
    const packet = wire.decodeFirstPacket(await readExactly(socket, length - 4));
    switch (packet.kind) {
      case "tls":
        if (encrypted) throw new wire.ProtocolViolation("TLS was asked for inside of TLS");
        // Whoever put bytes behind the request wants them taken for part of the encrypted session (CVE-2021-23222).
        if (socket.readableLength > 0) throw new wire.ProtocolViolation("received unencrypted data after SSL request");
        socket.write("S");
        await encrypt(false);
        break;
      case "gss":
        if (encrypted) throw new wire.ProtocolViolation("GSSAPI encryption was asked for inside of TLS");
        socket.write("N");
        break;
      case "cancel":
        return { kind: "cancel", pid: packet.pid, key: packet.key, socket };
      case "startup":
        if (!encrypted && !connection.plaintextAllowed) {
          throw new Refused(
            "28000",
            "Glasskey takes connections over TLS only",
            "Use sslmode=verify-full or sslmode=require.",
          );
        }
        return { kind: "startup", socket, encrypted, minor: packet.minor, parameters: packet.parameters };
    }
  }
  throw new wire.ProtocolViolation("too many requests before the startup packet");
}

async function acceptTls(raw: Socket, context: tls.SecureContext): Promise<tls.TLSSocket> {
  const socket = new tls.TLSSocket(raw, {
    ...{ isServer: true, secureContext: context },
    // A client that names protocols must mean this one, so that no other server's TLS can be redirected here.
    ALPNCallback: ({ protocols }) => (protocols.includes("postgresql") ? "postgresql" : undefined),
  });
  socket.on("error", () => {});
  // Without a tls.Server, Node reports a TLS error by this event only, and leaves the socket open.
  socket.on("_tlsError", () => socket.destroy());
  return new Promise((resolve, reject) => {
    socket.once("secure", () => resolve(socket));
    socket.once("close", () => reject(new Gone("the TLS handshake failed")));
    raw.once("close", () => socket.destroy());
  });
}

/** Gives every user name, known or not, the same salt each time, so that salts tell nothing. */
export type Salts = (user: string) => Buffer;

export function createSalts(): Salts {
  const key = randomBytes(32);
  return (user) => createHmac("sha256", key).update(user).digest().subarray(0, 16);
}

/**
 * Makes the client prove the connect secret by SCRAM. The exchange is the same, to its end, for names that do not exist.
 * @throws Refused when the proof is wrong, Gone when the client leaves (psql does, to ask for a password),
 * wire.ProtocolViolation
 */
export async function authenticate(
  startup: Startup,
  user: string,
  challenge: Promise<{ connectSecret: Secret }>,
  tools: { salts: Salts; passwords: scram.SaltedPasswords; binding: scram.ChannelBinding },
): Promise<void> {
  const { socket } = startup;
  const binding = startup.encrypted ? tools.binding : undefined;
  const mechanisms = binding === undefined ? [scram.PLAIN] : [scram.PLUS, scram.PLAIN];
  socket.write(wire.encodeAuthentication(10, ...mechanisms, ""));
  const salt = tools.salts(user);
  const verifier = challenge.then(async ({ connectSecret }) => {
    const salted = await tools.passwords.get(connectSecret.reveal(), salt, scram.SCRAM_ITERATIONS);
    return scram.verifierFrom(salted, salt, scram.SCRAM_ITERATIONS);
  });
  verifier.catch(() => {}); // awaited below, unless the client leaves first
  try {
    const initial = wire.decodeSaslInitial(await readPassword(socket));
    const options = { salt, iterations: scram.SCRAM_ITERATIONS, binding };
    const exchange = scram.startServerExchange(initial.mechanism, initial.data, options);
    socket.write(wire.encodeAuthentication(11, Buffer.from(exchange.serverFirst)));
    const final = exchange.finish((await readPassword(socket)).toString("latin1"), await verifier);
    if (final === undefined) throw wrongSecret(user);
    socket.write(Buffer.concat([wire.encodeAuthentication(12, Buffer.from(final)), wire.encodeAuthentication(0)]));
  } catch (error) {
    if (error instanceof scram.ScramError) throw new Refused("28P01", error.message);
    throw error;
  }
}

function wrongSecret(user: string): Refused {
  return new Refused(
    "28P01",
    `password authentication failed for user "${user.slice(0, 63)}"`,
    "The user is the grant's id and the password its connect secret; both end with the grant.",
  );
}

async function readPassword(socket: Socket): Promise<Buffer> {
  const { type, body } = await readMessage(socket, wire.MAX_PASSWORD_BYTES);
  if (type !== wire.FRONTEND.password)
    throw new wire.ProtocolViolation(`expected a SASL response, got message type ${type}`);
  return body;
}
