import { readFileSync } from "node:fs";
import { describe, GlassError, unreachable } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import { webhookKey } from "../core/standard-webhooks.ts";
import type { ChannelConfig } from "./config.ts";
import type { Delivery } from "./delivery.ts";
import { sendPagerDuty } from "./pagerduty.ts";
import { post } from "./post.ts";
import { sendSlack, webhookUrl } from "./slack.ts";
import { sendWebhook } from "./webhook.ts";

export type SecretReader = (reference: string) => Secret;

/**
 * Delivers one message to one channel, once. @returns the receipt: short, and without anything secret or anything that
 * the far side could choose freely. @throws DeliveryError, or GlassError `config_invalid`; neither holds a secret.
 */
export async function deliver(
  channel: ChannelConfig,
  delivery: Omit<Delivery, "secret" | "post">,
  { resolveSecret, signal, timeoutMs }: { resolveSecret: SecretReader; signal: AbortSignal; timeoutMs: number },
): Promise<string> {
  const ca = channel.ca === undefined ? undefined : readFileSync(channel.ca, "utf8");
  const whole: Delivery = {
    ...delivery,
    secret: (reference) => resolveSecret(reference).reveal(),
    post: (url, headers, body) => post({ url, headers, body, ca, signal, timeoutMs }),
  };
  switch (channel.kind) {
    case "slack":
      return sendSlack(channel, whole);
    case "pagerduty":
      return sendPagerDuty(channel, whole);
    case "webhook":
      return sendWebhook(channel, whole);
    default:
      return unreachable(channel);
  }
}

/** Checks what can be checked without sending. @throws GlassError `config_invalid` that names the channel. */
export function checkChannel(name: string, channel: ChannelConfig, resolveSecret: SecretReader): void {
  try {
    if (channel.ca !== undefined) readFileSync(channel.ca, "utf8");
    switch (channel.kind) {
      case "slack":
        webhookUrl(resolveSecret(channel.webhook).reveal());
        return;
      case "pagerduty":
        resolveSecret(channel.routingKey);
        return;
      case "webhook":
        webhookKey(resolveSecret(channel.secret).reveal());
        return;
    }
  } catch (cause) {
    throw new GlassError("config_invalid", `notify, ${name}: ${describe(cause)}`, { cause });
  }
}
