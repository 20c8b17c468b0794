import { sleep, type Clock } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import { Secret } from "../core/secret.ts";
import type { Gate, OpenRequest } from "../targets/target.ts";
import type { Link } from "./link.ts";
import type { GatewayLimits, UpVerbs } from "./messages.ts";
import type { Expected, Registry } from "./registry.ts";
import type { Connection, Session } from "./session.ts";
import { addressGroup, createCounter } from "./throttle.ts";

/**
 * Slows down and refuses those who keep failing. The secret has 256 bits, so this is against noise, not against guessing:
 * a user's name is only ever slowed down, or a colleague who knows it could lock the engineer on call out.
 */
export interface Throttle {
  failed(user: string, remoteAddress: string): void;
  /** Waits, where someone at that address, or with that name, has failed often. @throws GlassError `too_many_attempts`. */
  pace(user: string, remoteAddress: string): Promise<void>;
}

export interface GateParts {
  connection: Connection;
  link: Link<UpVerbs>;
  registry: Registry;
  throttle: Throttle;
  limits: GatewayLimits;
  /** Why nobody may begin at the moment. */
  refusal(): GlassError | undefined;
  /** The client has proved who it is and has a session. */
  proved(): void;
}

const MAX_USER_LENGTH = 256;
const MAX_CLIENT_LENGTH = 8_192;
export const MAX_SESSIONS_PER_CONNECTION = 64;
const MAX_FAILURES_PER_CONNECTION = 6; // as OpenSSH's MaxAuthTries
const MAX_CHALLENGES_PER_CONNECTION = 4 * MAX_FAILURES_PER_CONNECTION;
const MAX_KEYS = 20_000;
const SLOWEST_MS = 4_000;

export function createThrottle(clock: Clock, limits: GatewayLimits): Throttle {
  const byAddress = createCounter(clock, MAX_KEYS);
  const byUser = createCounter(clock, MAX_KEYS);
  return {
    failed(user, remoteAddress) {
      byAddress.add(addressGroup(remoteAddress));
      byUser.add(user.slice(0, MAX_USER_LENGTH));
    },
    async pace(user, remoteAddress) {
      const fromAddress = byAddress.count(addressGroup(remoteAddress));
      if (fromAddress >= limits.refuseAfterFailures) {
        throw new GlassError("too_many_attempts", "too many failed attempts from this address", {
          next: "Wait a minute, then try again.",
        });
      }
      const over = Math.max(fromAddress, byUser.count(user)) - limits.slowAfterFailures;
      if (over >= 0) await sleep(Math.min(SLOWEST_MS, 250 * 2 ** Math.min(over, 10)));
    },
  };
}

/** One connection's {@link Gate}. What the protocol says of the peer's address is not believed. */
export function createGate(parts: GateParts): Gate {
  const { connection, link, registry, throttle, limits } = parts;
  const { remoteAddress } = connection;
  const challenged = new Set<string>();
  let challenges = 0;
  let failures = 0;
  let opening = 0;

  /** An answer that came after everybody had stopped waiting: the control plane holds a session that never was. */
  const abandon = (session: string): void => {
    const end = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
    const detail = "the control plane's answer came too late";
    link.ask("closed", { session, end: { cause: "error", detail, ...end } }, { must: true }).catch(() => undefined);
  };

  const begin = async (request: OpenRequest, expected: Expected): Promise<Session> => {
    const granted = await link.ask("open", request, {
      timeoutMs: limits.answerMs,
      late: (granted) => abandon(granted.session),
    });
    let session: Session;
    try {
      session = expected.begin(granted, request, connection);
    } catch (error) {
      abandon(granted.session);
      throw parts.refusal() ?? error;
    }
    const refusal = parts.refusal();
    if (refusal !== undefined) {
      const code = refusal.code === "recording_unavailable" ? refusal.code : "stopping";
      void session.cut({ code, text: refusal.message });
    }
    if (granted.kind !== connection.kind) {
      const text = `grant ${granted.grant} is for a target of kind ${granted.kind}, not ${connection.kind}`;
      void session.cut({ code: "error", text });
    }
    await session.started;
    return session;
  };

  return {
    async challenge(user) {
      if (user === "" || user.length > MAX_USER_LENGTH) throw new GlassError("unauthenticated", "no such user name");
      if (++challenges > MAX_CHALLENGES_PER_CONNECTION || failures >= MAX_FAILURES_PER_CONNECTION) {
        throw new GlassError("too_many_attempts", "too many attempts on one connection");
      }
      challenged.add(user);
      await throttle.pace(user, remoteAddress);
      const { connectSecret } = await link.ask("challenge", { user }, { timeoutMs: limits.answerMs });
      return { connectSecret: new Secret(connectSecret) };
    },
    failed(user) {
      failures++;
      throttle.failed(user, remoteAddress);
      link.tell("failed", { user: user.slice(0, MAX_USER_LENGTH), remoteAddress });
    },
    async open(request) {
      const refusal = parts.refusal();
      if (refusal !== undefined) throw refusal;
      if (!challenged.has(request.user)) throw new GlassError("internal", "a session for somebody who was never asked");
      if (JSON.stringify(request.client).length > MAX_CLIENT_LENGTH) {
        throw new GlassError("usage", "what the client says of itself is too long");
      }
      if (connection.sessions.size + opening >= MAX_SESSIONS_PER_CONNECTION) {
        throw new GlassError("too_many_attempts", "too many sessions on one connection");
      }
      const expected = registry.expect();
      opening++;
      try {
        const session = await begin({ user: request.user, remoteAddress, client: request.client }, expected);
        parts.proved();
        return session.door;
      } finally {
        opening--;
        expected.done();
      }
    },
  };
}
