import { createHmac } from "node:crypto";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import type { WebhookChannel } from "./config.ts";
import { linkUrl, type Delivery } from "./delivery.ts";
import { commandsOf, sentenceOf, whyOf } from "./message.ts";
import { refusal } from "./post.ts";

const MIN_KEY_BYTES = 24;
const MAX_KEY_BYTES = 64;

/**
 * Posts to a receiver of one's own, signed as Standard Webhooks 1.0.0 says
 * (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): `webhook-id` is the
 * notice's id at every attempt, `webhook-signature` is HMAC-SHA-256 over id, timestamp and body. Any 2xx says "taken".
 */
export async function sendWebhook(channel: WebhookChannel, delivery: Delivery): Promise<string> {
  const key = webhookKey(delivery.secret(channel.secret));
  const body = JSON.stringify(webhookPayload(delivery));
  const timestamp = String(Math.floor(delivery.nowMs / 1_000));
  const signature = createHmac("sha256", key).update(`${delivery.id}.${timestamp}.${body}`).digest("base64");
  const headers = {
    "content-type": "application/json",
    "webhook-id": delivery.id,
    "webhook-timestamp": timestamp,
    "webhook-signature": `v1,${signature}`,
  };
  const answer = await delivery.post(new URL(channel.url), headers, body);
  if (answer.status < 200 || answer.status > 299) throw refusal(answer, delivery.nowMs);
  return `${answer.status} sha256:${sha256(answer.body).toString("hex")}`;
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

function webhookPayload(delivery: Delivery): object {
  const { message } = delivery;
  const { event, at, grant, round, playbook, target, requester, reason, incident, until, person } = message;
  return {
    type: `glasskey.${event}`,
    timestamp: at,
    data: {
      ...{ grant, round, playbook, target, requester, reason, incident, until, person },
      text: sentenceOf(message),
      why: whyOf(message),
      link: linkUrl(delivery),
      linkUntil: message.linkUntil,
      commands: commandsOf(message),
    },
  };
}
