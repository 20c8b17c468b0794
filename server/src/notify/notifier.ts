import type { Notifier } from "../access/access.ts";
import type { Clock } from "../core/clock.ts";
import type { Policy } from "../playbooks/policy.ts";
import type { Store } from "../store/database.ts";
import type { Keyring } from "../store/keyring.ts";
import { checkChannel, type SecretReader } from "./channel.ts";
import type { NotifyConfig } from "./config.ts";
import type { Links } from "./links.ts";
import { createOutbox } from "./outbox.ts";
import { startWorker, type Worker } from "./worker.ts";

export interface NotifierOptions {
  readonly store: Store;
  readonly keyring: Keyring;
  readonly config: NotifyConfig;
  readonly policy: () => Policy;
  /** Signs what people get on their own channels; the API reads it with the same. */
  readonly links: Links;
  /** This process's id in table `nodes`. */
  readonly node: string;
  readonly clock: Clock;
  readonly resolveSecret: SecretReader;
  readonly warn: (line: string) => void;
  readonly pollMs?: number;
  readonly timeoutMs?: number;
  readonly pausesMs?: readonly number[];
}

export interface RunningNotifier extends Notifier {
  /** Begins to deliver. @param url where people reach the API, `https://HOST:PORT`; links lead there. */
  start(url: string): void;
  /** Waits for deliveries that are under way; what is left is delivered by another process, or after the next start. */
  stop(): Promise<void>;
}

/**
 * Tells people: writes notices in the transaction of what they tell of, and delivers them afterwards, at least once.
 * @throws GlassError `config_invalid` when a channel's secret or CA cannot be read.
 */
export function createNotifier(options: NotifierOptions): RunningNotifier {
  const { keyring, config, policy, warn } = options;
  for (const [name, channel] of config.channels) checkChannel(name, channel, options.resolveSecret);
  let worker: Worker | undefined;
  const outbox = createOutbox({ ...{ keyring, config, policy, warn }, onPost: () => worker?.nudge() });
  return {
    ...outbox,
    start(url) {
      worker ??= startWorker({ ...options, url: () => url });
    },
    async stop() {
      await worker?.stop();
    },
  };
}
