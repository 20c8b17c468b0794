import { z } from "zod";
import { unreachable } from "../core/errors.ts";

/** A channel as `glasskey.yaml` describes it. Secrets are references (`${file:…}`, `${env:…}`), read at each use. */
export type ChannelConfig = SlackChannel | PagerDutyChannel | WebhookChannel;

interface Common {
  /** Whether the requester's own words go there. */
  readonly why: boolean;
  /** File with the PEM of the CA that the far side's certificate must chain to; undefined: the public ones. */
  readonly ca?: string | undefined;
}
export interface SlackChannel extends Common {
  readonly kind: "slack";
  /** Reference to the incoming webhook's URL, which is a secret. */
  readonly webhook: string;
}
export interface PagerDutyChannel extends Common {
  readonly kind: "pagerduty";
  readonly routingKey: string;
  readonly url: string;
  readonly page: boolean;
}
export interface WebhookChannel extends Common {
  readonly kind: "webhook";
  readonly url: string;
  /** Reference to `whsec_…` (Standard Webhooks). */
  readonly secret: string;
  readonly page: boolean;
}

export interface NotifyConfig {
  /** By name, `kind:name`. */
  readonly channels: ReadonlyMap<string, ChannelConfig>;
  /** Channels that hear of what concerns the whole installation, and of access that is not proved gone. */
  readonly alarms: readonly string[];
}

const MAX_CHANNELS = 200;
const NAME = /^(slack|pagerduty|webhook):[a-z][a-z0-9-]{0,39}$/;
const PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue";

const reference = z
  .string()
  .regex(
    /^\$\{(file|env):[^{}]+\}$/,
    "a literal secret is refused; write a reference such as ${file:secrets/slack-webhook}",
  );
const httpsUrl = z.url({ protocol: /^https$/, error: "must be an https:// URL" });
const common = { why: z.boolean().default(false), ca: z.string().min(1).optional() };

const KINDS = {
  slack: z
    .strictObject({ webhook: reference, ...common })
    .transform((value): ChannelConfig => ({ kind: "slack", ...value })),
  pagerduty: z
    .strictObject({
      routing_key: reference,
      url: httpsUrl.default(PAGERDUTY_URL),
      page: z.boolean().default(true),
      ...common,
    })
    .transform(({ routing_key, ...rest }): ChannelConfig => ({ kind: "pagerduty", routingKey: routing_key, ...rest })),
  webhook: z
    .strictObject({ url: httpsUrl, secret: reference, page: z.boolean().default(false), ...common })
    .transform((value): ChannelConfig => ({ kind: "webhook", ...value })),
} as const;

/** The keys of a channel's kind, for suggestions; none where there is no such kind. */
export function notifyKeys(name: string): readonly string[] {
  const kind = NAME.exec(name)?.[1];
  return kind === "slack" || kind === "pagerduty" || kind === "webhook" ? Object.keys(KINDS[kind].in.shape) : [];
}

/**
 * `notify:` in glasskey.yaml: channels by `kind:name`, and `alarms`, a list of some of them.
 * Relative paths and references stay as they are written; {@link locateChannels} resolves them.
 */
export const notifySchema = z.record(z.string(), z.unknown()).transform((input, context): NotifyConfig => {
  const channels = new Map<string, ChannelConfig>();
  for (const [name, value] of Object.entries(input)) {
    if (name === "alarms") continue;
    const kind = NAME.exec(name)?.[1];
    if (kind !== "slack" && kind !== "pagerduty" && kind !== "webhook") {
      const message = "is not the name of a channel; write slack:NAME, pagerduty:NAME or webhook:NAME";
      context.addIssue({ code: "custom", path: [name], message });
      continue;
    }
    const parsed = KINDS[kind].safeParse(value);
    if (parsed.success) channels.set(name, parsed.data);
    else for (const issue of parsed.error.issues) pass(context, name, issue);
  }
  if (channels.size > MAX_CHANNELS) {
    context.addIssue({ code: "custom", message: `has more than ${MAX_CHANNELS} channels` });
  }
  const alarms = z
    .array(z.string())
    .max(20)
    .safeParse(input["alarms"] ?? []);
  if (!alarms.success) {
    context.addIssue({ code: "custom", path: ["alarms"], message: "must be a list of at most 20 channels" });
  }
  const known = Object.keys(input);
  for (const [index, name] of (alarms.data ?? []).entries()) {
    if (name === "alarms" || !known.includes(name)) {
      context.addIssue({ code: "custom", path: ["alarms", index], message: "is not one of the channels above" });
    }
  }
  return context.issues.length > 0 ? z.NEVER : { channels, alarms: [...new Set(alarms.data)] };
});

/** An issue of one channel as an issue of the whole map; unknown keys stay recognisable as such. */
function pass(context: z.core.$RefinementCtx, name: string, issue: z.core.$ZodIssue): void {
  const path = [name, ...issue.path];
  if (issue.code === "unrecognized_keys")
    context.addIssue({ code: issue.code, keys: issue.keys, path, input: issue.input ?? {} });
  else context.addIssue({ code: "custom", message: issue.message, path });
}

/** The same channels with every path and reference made absolute by the caller's rules. */
export function locateChannels(
  config: NotifyConfig,
  to: { path: (text: string) => string; reference: (text: string) => string },
): NotifyConfig {
  const located = ([name, channel]: readonly [string, ChannelConfig]): [string, ChannelConfig] => {
    const ca = channel.ca === undefined ? {} : { ca: to.path(channel.ca) };
    switch (channel.kind) {
      case "slack":
        return [name, { ...channel, ...ca, webhook: to.reference(channel.webhook) }];
      case "pagerduty":
        return [name, { ...channel, ...ca, routingKey: to.reference(channel.routingKey) }];
      case "webhook":
        return [name, { ...channel, ...ca, secret: to.reference(channel.secret) }];
      default:
        return unreachable(channel);
    }
  };
  return { channels: new Map([...config.channels].map(located)), alarms: config.alarms };
}
