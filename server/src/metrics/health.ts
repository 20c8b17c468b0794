import { sql } from "kysely";
import { within } from "../core/clock.ts";
import type { Store } from "../store/database.ts";

/** Why a probe fails, in words for machines such as `store` or `journal`; none: it does not. */
export interface Probe {
  readonly ok: boolean;
  readonly reasons: readonly string[];
  /** What is weaker than it could be and stops nothing, such as `store_owner`; left out where there is none. */
  readonly notes?: readonly string[];
}

export interface Health {
  /** Whether this process works at all. A store that is down does not count: its sessions go on, and must not be killed for it. */
  live(): Probe;
  /** Whether a grant can be opened and used here now. Asks the store, at most once a second, whether it can be written. */
  ready(): Promise<Probe>;
}

export interface HealthParts {
  readonly store: Store;
  /** False once the data plane is gone. It is asked twice a second, and ended when it does not answer for five. */
  readonly gatewayLives: () => boolean;
  /** What keeps everything new closed, such as `journal`, `log` or `room`. */
  readonly shut: () => readonly string[];
  /** Whether a policy is in force. */
  readonly hasPolicy: () => boolean;
  readonly stopping: () => boolean;
  /** What `ready` says beside, whatever else it says. */
  readonly notes?: readonly string[];
}

const STORE_MS = 2_000;
const CACHED_MS = 1_000;

/** The probes of one process. Neither ever rejects. */
export function createHealth(parts: HealthParts): Health {
  // A store that hangs is asked once, not once a second: it would be full of questions when it is back.
  let asking: Promise<boolean> | undefined;
  const storeAnswers = atMostOnceIn(CACHED_MS, () => {
    asking ??= isWritable(parts.store).finally(() => (asking = undefined));
    return within(STORE_MS, asking, () => false);
  });
  return {
    live: () => probe(parts.gatewayLives() ? [] : ["gateway"]),
    async ready() {
      const reasons = [
        ...(parts.stopping() ? ["stopping"] : []),
        ...(parts.gatewayLives() ? [] : ["gateway"]),
        ...((await storeAnswers()) ? [] : ["store"]),
        ...(parts.hasPolicy() ? [] : ["policy"]),
        ...parts.shut().map(toCode),
      ];
      return { ...probe([...new Set(reasons)]), ...(parts.notes?.length ? { notes: parts.notes } : {}) };
    },
  };
}

/** A standby, or a store that was made read-only, answers, and opens nothing. Never rejects. */
async function isWritable(store: Store): Promise<boolean> {
  const query = sql<{ readonly: string }>`select current_setting('transaction_read_only') as readonly`;
  return query.execute(store).then(
    ({ rows }) => rows[0]?.readonly === "off",
    () => false,
  );
}

/** Shares one answer among all who ask within `ms`; whoever asks while it is looked for waits for the same one. */
export function atMostOnceIn<T>(ms: number, ask: () => Promise<T>): () => Promise<T> {
  let asked: { at: number; answer: Promise<T>; done: boolean } | undefined;
  return () => {
    const now = performance.now();
    if (asked !== undefined && (!asked.done || now - asked.at < ms)) return asked.answer;
    const next = { at: now, answer: ask(), done: false };
    const finish = (): void => void (next.done = true);
    next.answer.then(finish, finish);
    asked = next;
    return next.answer;
  };
}

function probe(reasons: readonly string[]): Probe {
  return { ok: reasons.length === 0, reasons };
}

function toCode(reason: string): string {
  return reason.toLowerCase().replaceAll(/[^a-z]+/g, "_");
}
