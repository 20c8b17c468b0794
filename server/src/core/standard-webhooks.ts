import { createHmac } from "node:crypto";
import { GlassError } from "./errors.ts";

const MIN_KEY_BYTES = 24;
const MAX_KEY_BYTES = 64;

/**
 * The headers that sign one delivery as Standard Webhooks 1.0.0 says
 * (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): HMAC-SHA-256 over id,
 * timestamp and body.
 * @param id the same at every attempt, so that a receiver knows a repetition. No full stop may be in it.
 */
export function webhookHeaders(delivery: {
  readonly key: Uint8Array;
  readonly id: string;
  readonly nowMs: number;
  readonly body: string;
}): Readonly<Record<"webhook-id" | "webhook-timestamp" | "webhook-signature", string>> {
  const timestamp = String(Math.floor(delivery.nowMs / 1_000));
  const signature = createHmac("sha256", delivery.key)
    .update(`${delivery.id}.${timestamp}.${delivery.body}`)
    .digest("base64");
  return { "webhook-id": delivery.id, "webhook-timestamp": timestamp, "webhook-signature": `v1,${signature}` };
}

/** The bytes of a `whsec_…` secret. @throws GlassError `config_invalid` without quoting it. */
export function webhookKey(secret: string): Buffer {
  const text = /^whsec_([A-Za-z0-9+/]+={0,2})$/.exec(secret)?.[1] ?? "";
  const key = Buffer.from(text, "base64");
  if (key.length < MIN_KEY_BYTES || key.length > MAX_KEY_BYTES) {
    throw new GlassError("config_invalid", "what `secret` refers to is not a Standard Webhooks secret", {
      next: "Make one: echo whsec_$(head -c 32 /dev/urandom | base64)",
    });
  }
  return key;
}
