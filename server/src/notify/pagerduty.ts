import { sha256 } from "../core/bytes.ts";
import { unreachable } from "../core/errors.ts";
import type { PagerDutyChannel } from "./config.ts";
import { linkUrl, type Delivery } from "./delivery.ts";
import { commandsOf, factsOf, sentenceOf, whyOf, wordsOf, type Message } from "./message.ts";
import { oneLine } from "./text.ts";
import { DeliveryError, refusal } from "./post.ts";

const MAX_SUMMARY = 1_024;

/** An alert by its `dedup_key`: what one event triggers, a later one resolves. */
interface Action {
  readonly action: "trigger" | "resolve";
  readonly key: string;
  readonly severity: "critical" | "error" | "warning";
}

/**
 * Sends to the Events API v2 (https://developer.pagerduty.com/docs/events-api-v2-overview): 202 with the alert's
 * `dedup_key` says that PagerDuty has the event. Repeats merge into the same alert.
 */
export async function sendPagerDuty(channel: PagerDutyChannel, delivery: Delivery): Promise<string> {
  const routingKey = delivery.secret(channel.routingKey);
  const receipts: string[] = [];
  for (const action of actionsOf(delivery.message)) {
    const body = JSON.stringify({ routing_key: routingKey, ...eventOf(delivery, action) });
    const answer = await delivery.post(new URL(channel.url), { "content-type": "application/json" }, body);
    if (answer.status !== 202) throw refusal(answer, delivery.nowMs);
    const key = dedupKeyOf(answer.body);
    if (key !== action.key) throw new DeliveryError("answered 202 without naming the alert");
    receipts.push(`202 ${action.action} ${key}`);
  }
  return receipts.join("; ");
}

/** What an event does to which alerts. One alert asks for a decision, another says that nobody gave one. */
function actionsOf(message: Message): readonly Action[] {
  const { grant, event, text } = message;
  const subject = `glasskey-${grant ?? sha256(text).toString("hex").slice(0, 32)}`;
  const trigger = (key: string, severity: Action["severity"]): Action => ({ action: "trigger", key, severity });
  const resolve = (key: string): Action => ({ action: "resolve", key, severity: "critical" });
  switch (event) {
    case "approval_wanted":
    case "extension_wanted":
    case "not_proved":
      return [trigger(subject, "critical")];
    case "alarm":
      return [trigger(`${subject}-alarm`, "critical")];
    case "alarm_over":
      return [resolve(`${subject}-alarm`)];
    case "opened_unanswered":
      return [trigger(`${subject}-unanswered`, "critical"), resolve(subject)];
    case "review_overdue":
      return [trigger(`${subject}-review`, "warning")];
    case "review_signed":
      return [resolve(`${subject}-review`)];
    case "opened":
    case "denied":
    case "withdrawn":
    case "timed_out":
    case "failed":
    case "extended":
      return [resolve(subject)];
    case "closed":
      return [resolve(subject), resolve(`${subject}-unanswered`)];
    default:
      return unreachable(event);
  }
}

function eventOf(delivery: Delivery, { action, key, severity }: Action): object {
  if (action === "resolve") return { event_action: action, dedup_key: key };
  const { message, url } = delivery;
  const why = whyOf(message);
  const link = linkUrl(delivery);
  return {
    event_action: action,
    dedup_key: key,
    client: "Glasskey",
    client_url: url,
    payload: {
      summary: `${wordsOf(message.event).title}: ${sentenceOf(message)}`.slice(0, MAX_SUMMARY).toWellFormed(),
      source: new URL(url).host,
      severity,
      timestamp: message.at,
      ...(message.target === undefined ? {} : { component: oneLine(message.target, 200) }),
      class: message.event,
      custom_details: {
        ...Object.fromEntries(factsOf(message).map(([label, value]) => [label.toLowerCase(), value])),
        ...(why === undefined ? {} : { why }),
        commands: commandsOf(message),
      },
    },
    ...(link === undefined ? {} : { links: [{ href: link, text: "Look at the request and decide" }] }),
  };
}

function dedupKeyOf(body: string): string | undefined {
  try {
    const parsed: unknown = JSON.parse(body);
    if (typeof parsed !== "object" || parsed === null || !("dedup_key" in parsed)) return undefined;
    return typeof parsed.dedup_key === "string" ? parsed.dedup_key : undefined;
  } catch {
    return undefined;
  }
}
