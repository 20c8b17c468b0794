import { GlassError } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import { append } from "../audit/append.ts";
import type { Store } from "../store/database.ts";
import { pseudonymOf } from "./pseudonyms.ts";
import { verifySecret } from "./secrets.ts";
import type { Throttle } from "./throttle.ts";
import { issueToken } from "./tokens.ts";
import { createTurnstile } from "./turnstile.ts";

/** A hash takes 32 MiB and a thread of the pool that also writes the journal: a flood of logins must not slow recording. */
const LIMITS = { atOnce: 2, waiting: 64, waitingPerAddress: 8, trusted: 1_000 };

export interface LoginDeps {
  store: Store;
  throttle: Throttle;
  tokenTtlMs: number;
  /** The person of that exact name and the hash of their secret; undefined when there is none. */
  find: (name: string) => { name: string; secret: string | undefined } | undefined;
}

export interface LoginAttempt {
  name: string;
  secret: string;
  /** Address of the peer, or the network that counts as one. */
  remoteAddress: string;
}

export interface LoggedIn {
  token: Secret;
  person: string;
  expiresAt: Date;
}

/**
 * Makes the one way for local people to log in. The answer and its time are the same for an unknown name and a wrong
 * secret. The returned function throws GlassError `unauthenticated`, or `too_many_attempts` with how long to wait.
 */
export function createLogin(deps: LoginDeps): (attempt: LoginAttempt) => Promise<LoggedIn> {
  const turnstile = createTurnstile(LIMITS);
  return async ({ name, secret, remoteAddress }) => {
    // By address and name together: neither a neighbour behind the same address nor somebody who knows the name can
    // lock the person on call out. Guessing is hopeless anyway: a secret has 120 bits.
    const key = `${remoteAddress} ${name}`;
    const waitMs = deps.throttle.waitMs(key);
    if (waitMs > 0) {
      throw new GlassError("too_many_attempts", "too many failed logins", {
        next: `Wait ${Math.ceil(waitMs / 1000)} s, then try again.`,
      });
    }
    // Counted before the slow check, so that attempts sent at once cannot all slip under the limit.
    deps.throttle.failed(key);
    const person = deps.find(name);
    const checked = await turnstile.pass(remoteAddress, () => verifySecret(secret, person?.secret));
    if (checked === undefined) {
      throw new GlassError("too_many_attempts", "too many people log in at this moment", {
        next: "Try again in a second.",
        details: { retry: true },
      });
    }
    const right = checked.value;
    if (!right || person === undefined) {
      await deps.store.transaction().execute(async (tx) => {
        // The name may be a secret typed into the wrong field: only a known one is logged.
        const actor = person === undefined ? "glasskey" : await pseudonymOf(tx, person.name);
        await append(tx, { type: "login.failed", at: new Date(), actor });
      });
      throw new GlassError("unauthenticated", "wrong name or secret", {
        next: "Check both; `glass login NAME` asks for the secret.",
      });
    }
    deps.throttle.succeeded(key);
    turnstile.trust(remoteAddress);
    const { token, expiresAt } = await issueToken(deps.store, person.name, deps.tokenTtlMs);
    await deps.store.transaction().execute(async (tx) => {
      const actor = await pseudonymOf(tx, person.name);
      await append(tx, { type: "login.succeeded", at: new Date(), actor, data: { until: expiresAt.toISOString() } });
    });
    return { token, person: person.name, expiresAt };
  };
}
