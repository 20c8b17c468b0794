import { createServer, type Server, type Socket } from "node:net";
import { describe, GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { Gate, TargetKind } from "../targets/target.ts";
import { MAX_SESSIONS_PER_CONNECTION } from "./gate.ts";
import type { GatewayLimits, ListenerOptions } from "./messages.ts";
import type { Connection } from "./session.ts";
import { addressGroup, isLoopback, plainAddress } from "./throttle.ts";

/** Bounds on connections, over all listeners together. */
export interface Lobby {
  /** Undefined if there is no room. */
  enter(socket: Socket, remoteAddress: string): Visitor | undefined;
  /** Destroys the connections on which nobody has proved anything. */
  clear(): void;
}

export interface Visitor {
  /** It has a session, and no longer counts as unproved. Idempotent. */
  proved(): void;
}

export interface Listener {
  /** With the port that was really taken. */
  readonly at: ListenerOptions;
  /** Accepts no more. Connections that exist go on. */
  close(): void;
}

export interface ListenerParts {
  kind: Pick<TargetKind, "kind" | "serve" | "handshakeMs">;
  at: ListenerOptions;
  tls: { key: string; cert: string };
  /** Who the gateway is in this protocol now; asked at each connection. */
  identity(): JsonObject;
  plaintextLoopback: boolean;
  limits: GatewayLimits;
  lobby: Lobby;
  gate(connection: Connection, proved: () => void): Gate;
  log: (line: string) => void;
}

const KEEPALIVE_MS = 30_000; // below the idle time after which common firewalls forget a connection
const BACKLOG = 1_024;

export function createLobby(limits: GatewayLimits): Lobby {
  const total = new Map<string, number>();
  const unproved = new Map<string, Set<Socket>>();
  let connections = 0;
  let unprovedConnections = 0;

  const prove = (group: string, socket: Socket): void => {
    const waiting = unproved.get(group);
    if (waiting?.delete(socket) !== true) return;
    unprovedConnections--;
    if (waiting.size === 0) unproved.delete(group);
  };

  /** Strangers must not lock the door for others: whoever has most connections waiting loses the oldest of them. */
  const makeRoom = (): void => {
    let busiest: Set<Socket> | undefined;
    for (const waiting of unproved.values()) if (waiting.size > (busiest?.size ?? 0)) busiest = waiting;
    const [oldest] = busiest ?? [];
    oldest?.destroy();
  };

  return {
    enter(socket, remoteAddress) {
      const group = addressGroup(remoteAddress);
      const mine = total.get(group) ?? 0;
      const waiting = unproved.get(group) ?? new Set();
      if (connections >= limits.connections || mine >= limits.connectionsPerAddress) return undefined;
      if (waiting.size >= limits.unprovedConnectionsPerAddress) return undefined;
      if (unprovedConnections >= limits.unprovedConnections) makeRoom();
      connections++;
      unprovedConnections++;
      total.set(group, mine + 1);
      unproved.set(group, waiting.add(socket));
      socket.once("close", () => {
        connections--;
        prove(group, socket);
        const left = (total.get(group) ?? 1) - 1;
        if (left === 0) total.delete(group);
        else total.set(group, left);
      });
      return { proved: () => prove(group, socket) };
    },
    clear() {
      for (const waiting of unproved.values()) for (const socket of waiting) socket.destroy();
    },
  };
}

/** @throws GlassError `config_invalid` if the address cannot be listened on. */
export async function startListener(parts: ListenerParts): Promise<Listener> {
  const { at, limits, log } = parts;
  let plaintextAllowed = false;

  const accept = (socket: Socket): void => {
    socket.on("error", () => undefined); // told by "close"; a reset client must not end the process
    socket.setMaxListeners(2 * MAX_SESSIONS_PER_CONNECTION);
    const remoteAddress = plainAddress(socket.remoteAddress ?? ""); // empty when it has left already
    const visitor = remoteAddress === "" ? undefined : parts.lobby.enter(socket, remoteAddress);
    if (visitor === undefined) {
      socket.destroy();
      return;
    }
    const handshake = setTimeout(() => socket.destroy(), parts.kind.handshakeMs ?? limits.handshakeMs);
    socket.once("close", () => clearTimeout(handshake));
    const connection: Connection = {
      ...{ socket, remoteAddress, tls: parts.tls, identity: parts.identity(), plaintextAllowed },
      ...{ kind: at.kind, sessions: new Set() },
    };
    const proved = (): void => {
      clearTimeout(handshake);
      visitor.proved();
    };
    try {
      parts.kind.serve(connection, parts.gate(connection, proved));
    } catch (error) {
      log(`${at.kind} failed to serve a connection: ${describe(error)}`);
      socket.destroy();
    }
  };

  const server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS }, accept);
  await listen(server, at);
  server.on("error", (error) => log(`listener ${at.kind} on ${at.host}:${at.port}: ${describe(error)}`));
  const bound = server.address();
  if (bound === null || typeof bound === "string") throw new GlassError("internal", "a listener without a port");
  plaintextAllowed = parts.plaintextLoopback && isLoopback(bound.address);
  return { at: { ...at, port: bound.port }, close: () => void server.close() };
}

function listen(server: Server, at: ListenerOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (cause: NodeJS.ErrnoException) => {
      const taken = cause.code === "EADDRINUSE";
      reject(
        new GlassError("config_invalid", `${at.kind} cannot listen on ${at.host}:${at.port}: ${describe(cause)}`, {
          next: taken ? "Stop what holds the port, or choose another one in glasskey.yaml." : "Check the address.",
          cause,
        }),
      );
    });
    server.listen({ host: at.host, port: at.port, backlog: BACKLOG }, () => {
      server.removeAllListeners("error");
      resolve();
    });
  });
}
