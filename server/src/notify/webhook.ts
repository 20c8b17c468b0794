import { sha256 } from "../core/bytes.ts";
import { webhookHeaders, webhookKey } from "../core/standard-webhooks.ts";
import type { WebhookChannel } from "./config.ts";
import { linkUrl, type Delivery } from "./delivery.ts";
import { commandsOf, sentenceOf, whyOf } from "./message.ts";
import { refusal } from "./post.ts";

/**
 * Posts to a receiver of one's own, signed as Standard Webhooks 1.0.0 says
 * (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): `webhook-id` is the
 * notice's id at every attempt, `webhook-signature` is HMAC-SHA-256 over id, timestamp and body. Any 2xx says "taken".
 */
export async function sendWebhook(channel: WebhookChannel, delivery: Delivery): Promise<string> {
  const key = webhookKey(delivery.secret(channel.secret));
  const body = JSON.stringify(webhookPayload(delivery));
  const signed = webhookHeaders({ key, id: delivery.id, nowMs: delivery.nowMs, body });
  const headers = { "content-type": "application/json", ...signed };
  const answer = await delivery.post(new URL(channel.url), headers, body);
  if (answer.status < 200 || answer.status > 299) throw refusal(answer, delivery.nowMs);
  return `${answer.status} sha256:${sha256(answer.body).toString("hex")}`;
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
