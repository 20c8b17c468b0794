import { webhookHeaders, webhookKey } from "../core/standard-webhooks.ts";
import type { WebhookSink } from "./config.ts";
import { post, refusal, secretHeader, TIMEOUT_MS } from "./http.ts";
import { DeliveryError, type Item, type SecretReader, type SinkDriver } from "./sink.ts";

const BATCH = { entries: 1_000, bytes: 512 * 1024 };

/**
 * Posts batches to a receiver of one's own, signed as Standard Webhooks 1.0.0 says. Any 2xx says "taken". `webhook-id`
 * names the entries and the last leaf hash, so that a batch that comes twice has the same one.
 */
export function webhookDriver(sink: WebhookSink, secret: SecretReader, timeoutMs = TIMEOUT_MS): SinkDriver {
  const type = sink.body === "ndjson" ? "application/x-ndjson" : "application/json";
  return {
    ...{ batch: BATCH, doubtful: false },
    async deliver(items, signal) {
      const key = keyOf(secretHeader("", () => secret(sink.secret)));
      const lines = items.map((item) => item.json);
      const body = sink.body === "ndjson" ? `${lines.join("\n")}\n` : `[${lines.join(",")}]`;
      const signed = webhookHeaders({ key, id: idOf(items), nowMs: Date.now(), body });
      const headers = { "content-type": type, ...signed };
      const answer = await post({ url: new URL(sink.url), headers, body, ca: sink.ca, signal, timeoutMs });
      if (answer.status < 200 || answer.status > 299) throw refusal(answer);
    },
  };
}

function keyOf(secret: string): Buffer {
  try {
    return webhookKey(secret);
  } catch (cause) {
    throw new DeliveryError("what `secret` refers to is not a Standard Webhooks secret", { cause });
  }
}

function idOf(items: readonly Item[]): string {
  const last = items.at(-1);
  return `log_${items[0]?.index}_${last?.index}_${last?.leafHash.slice(0, 32)}`;
}
