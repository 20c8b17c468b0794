import { sql } from "kysely";
import { sleep } from "../core/clock.ts";
import type { Store } from "../store/database.ts";

/** Why a probe fails, in words for machines such as `store` or `journal`; none: it does not. */
export interface Probe {
  readonly ok: boolean;
  readonly reasons: readonly string[];
}

export interface Health {
  /** Whether this process works at all. A store that is down does not count: its sessions go on, and must not be killed for it. */
  live(): Probe;
  /** Whether a grant can be opened and used here now. Asks the store, at most once a second. */
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
}

const STORE_MS = 2_000;
const CACHED_MS = 1_000;

/** The probes of one process. Neither ever rejects. */
export function createHealth(parts: HealthParts): Health {
  const storeAnswers = atMostOnceIn(CACHED_MS, () => answers(parts.store));
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
      return probe([...new Set(reasons)]);
    },
  };
}

/** Whether the store answers at all, within two seconds. */
export async function answers(store: Store): Promise<boolean> {
  const ping = sql`select 1`.execute(store).then(
    () => true,
    () => false,
  );
  return Promise.race([ping, sleep(STORE_MS).then(() => false)]);
}

/** Shares one answer among all who ask within `ms`; whoever asks while it is looked for waits for the same one. */
export function atMostOnceIn<T>(ms: number, ask: () => Promise<T>): () => Promise<T> {
  let asked: { at: number; answer: Promise<T> } | undefined;
  return () => {
    const now = performance.now();
    if (asked === undefined || now - asked.at >= ms) asked = { at: now, answer: ask() };
    return asked.answer;
  };
}

function probe(reasons: readonly string[]): Probe {
  return { ok: reasons.length === 0, reasons };
}

function toCode(reason: string): string {
  return reason.toLowerCase().replaceAll(/[^a-z]+/g, "_");
}
