import { GlassError } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import { append } from "../audit/append.ts";
import type { Store } from "../store/database.ts";
import { pseudonymOf } from "./pseudonyms.ts";
import { verifySecret } from "./secrets.ts";
import type { Throttle } from "./throttle.ts";
import { issueToken } from "./tokens.ts";

export interface LoginDeps {
  store: Store;
  throttle: Throttle;
  tokenTtlMs: number;
  /** The person of that exact name and the hash of their secret; undefined when there is none. */
  find: (name: string) => { name: string; secret: string | undefined } | undefined;
}

/**
 * Logs a local person in. The answer and its time are the same for an unknown name and a wrong secret.
 * @throws GlassError `unauthenticated`, or `too_many_attempts` with the seconds to wait.
 */
export async function login(
  deps: LoginDeps,
  { name, secret, remoteAddress }: { name: string; secret: string; remoteAddress: string },
): Promise<{ token: Secret; person: string; expiresAt: Date }> {
  // By address only: a count by name would let anybody lock the person on call out.
  const waitMs = deps.throttle.waitMs(remoteAddress);
  if (waitMs > 0) {
    throw new GlassError("too_many_attempts", "too many failed logins", {
      next: `Wait ${Math.ceil(waitMs / 1000)} s, then try again.`,
    });
  }
  // Counted before the slow check, so that attempts sent at once cannot all slip under the limit.
  deps.throttle.failed(remoteAddress);
  const person = deps.find(name);
  if (!(await verifySecret(secret, person?.secret)) || person === undefined) {
    await deps.store.transaction().execute(async (tx) => {
      // The name may be a secret typed into the wrong field: only a known one is logged.
      const actor = person === undefined ? "glasskey" : await pseudonymOf(tx, person.name);
      await append(tx, { type: "login.failed", at: new Date(), actor });
    });
    throw new GlassError("unauthenticated", "wrong name or secret", {
      next: "Check both; `glass login NAME` asks for the secret.",
    });
  }
  deps.throttle.succeeded(remoteAddress);
  const { token, expiresAt } = await issueToken(deps.store, person.name, deps.tokenTtlMs);
  await deps.store.transaction().execute(async (tx) => {
    await append(tx, {
      type: "login.succeeded",
      at: new Date(),
      actor: await pseudonymOf(tx, person.name),
      data: { until: expiresAt.toISOString() },
    });
  });
  return { token, person: person.name, expiresAt };
}
