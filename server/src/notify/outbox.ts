import { sql, type Insertable } from "kysely";
import type { Notice, NoticeEvent, Notifier } from "../access/access.ts";
import { unreachable } from "../core/errors.ts";
import { randomBase32 } from "../core/ids.ts";
import type { Policy } from "../playbooks/policy.ts";
import type { Keyring } from "../store/keyring.ts";
import type { NoticesTable } from "../store/tables-policy.ts";
import type { NotifyConfig } from "./config.ts";
import { wordsOf, type Message } from "./message.ts";

export interface OutboxOptions {
  readonly keyring: Pick<Keyring, "seal">;
  readonly config: NotifyConfig;
  readonly policy: () => Policy;
  readonly warn: (line: string) => void;
  /** Called when something was written; it is not committed yet. */
  readonly onPost: () => void;
}

const MAX_DECIDERS = 100; // one link each; a group of more is better told in a channel
const DEFAULT_LIFE_MS = 24 * 3_600_000; // older news about a grant would only confuse

/** Events that go to the installation's `alarms` channels beside the playbook's. */
const ALARMING: ReadonlySet<NoticeEvent> = new Set(["alarm", "alarm_over", "not_proved", "opened_unanswered"]);
/** What is still to be done however late it is heard of, and what takes that back. */
const LASTING: ReadonlySet<NoticeEvent> = new Set([
  "alarm",
  "alarm_over",
  "not_proved",
  "review_overdue",
  "review_signed",
]);
/** Events whose deciders are told on their own channels; with a link where there is something to decide. */
const FOR_DECIDERS: ReadonlySet<NoticeEvent> = new Set(["approval_wanted", "extension_wanted", "opened_unanswered"]);

/** Writes notices into the outbox. A channel that does not exist is a warning, never an obstacle to what is told. */
export function createOutbox({ keyring, config, policy, warn, onPost }: OutboxOptions): Notifier {
  const warned = new Set<string>();
  const warnOnce = (line: string): void => {
    if (warned.size < 1_000 && !warned.has(line)) warn(line);
    warned.add(line);
  };

  /** @returns undefined for a channel that does not exist. */
  const rowFor = (notice: Notice, channel: string, person?: string): Insertable<NoticesTable> | undefined => {
    const known = config.channels.get(channel);
    if (known === undefined) {
      warnOnce(`notify: there is no channel ${JSON.stringify(channel.slice(0, 60))} in glasskey.yaml; it is not told`);
      return undefined;
    }
    const id = `no_${randomBase32(12)}`;
    const { event, grant, expiresAt, round = 0 } = notice;
    const decision = wantsDecision(event);
    const until = notice.until ?? (decision ? expiresAt : undefined);
    const message: Message = {
      ...{ channel, event, at: new Date().toISOString(), grant, round, person, text: notice.text },
      ...{ playbook: notice.playbook, target: notice.target, requester: notice.requester, reason: notice.reason },
      ...{ incident: notice.incident, until: until?.toISOString() },
      ...(known.why ? { why: notice.why } : {}),
      // Without a deadline there is no link: it would be good for ever.
      ...(person !== undefined && decision ? { linkUntil: expiresAt?.toISOString() } : {}),
    };
    const place = { table: "notices", row: id, column: "content" };
    const lasting = LASTING.has(event) && expiresAt === undefined;
    return {
      ...{ id, channel, event, round, person: person ?? null, grant_id: grant ?? null },
      content: keyring.seal(place, Buffer.from(JSON.stringify(message))),
      page: known.kind !== "slack" && known.page && wordsOf(event).calls,
      expires_at: lasting ? null : (expiresAt ?? new Date(Date.now() + DEFAULT_LIFE_MS)),
    };
  };

  /** Own channels of those who may decide, each with its owner. */
  const ownChannels = (notice: Notice): readonly (readonly [channel: string, person: string])[] => {
    if (!FOR_DECIDERS.has(notice.event)) return [];
    const inForce = policy();
    const deciders = [...new Set((notice.deciders ?? []).map((name) => inForce.person(name)?.name ?? name))];
    if (deciders.length > MAX_DECIDERS) {
      warnOnce(`notify: ${notice.playbook}: only ${MAX_DECIDERS} of ${deciders.length} people get a link`);
    }
    return deciders.slice(0, MAX_DECIDERS).flatMap((decider) =>
      [...new Set(inForce.person(decider)?.notify)].flatMap((channel) => {
        const fault = notOwn(inForce, config, channel, decider, notice.requester);
        if (fault === undefined) return [[channel, decider] as const];
        if (fault !== "") warnOnce(`notify: ${fault}`);
        return [];
      }),
    );
  };

  return {
    async post(tx, notice) {
      const shared = new Set([...notice.channels, ...(ALARMING.has(notice.event) ? config.alarms : [])]);
      const rows = [
        ...[...shared].map((channel) => rowFor(notice, channel)),
        ...ownChannels(notice).map(([channel, person]) => rowFor(notice, channel, person)),
      ].filter((row) => row !== undefined);
      if (rows.length === 0) return;
      // Not the transaction's start: whoever waited for the grant's lock comes after the one who held it.
      const created_at = sql<Date>`clock_timestamp()`;
      await tx
        .insertInto("notices")
        .values(rows.map((row) => ({ ...row, created_at })))
        .execute();
      onPost();
    },
    channel(name) {
      const known = config.channels.get(name);
      return known === undefined ? undefined : { page: known.kind !== "slack" && known.page };
    },
  };
}

function wantsDecision(event: NoticeEvent): boolean {
  return event === "approval_wanted" || event === "extension_wanted";
}

/**
 * Why what is meant for one person alone may not go to that channel: a link is a vote, so it goes nowhere that somebody
 * else reads, and never to the requester. @returns undefined when it may; an empty text when nobody need be warned.
 */
export function notOwn(
  policy: Policy,
  config: NotifyConfig,
  channel: string,
  person: string,
  requester: string | undefined,
): string | undefined {
  const decider = policy.person(person);
  if (decider === undefined || !decider.enabled || !decider.notify.includes(channel)) return "";
  const asking = requester === undefined ? undefined : policy.person(requester);
  if (decider.name === (asking?.name ?? requester)) return "";
  const same = (other: string): boolean => inboxOf(config, other) === inboxOf(config, channel);
  const shared = policy.people.some((other) => other.name !== decider.name && other.notify.some(same));
  const playbook = policy.playbooks.find((known) => known.notify.some(same));
  if (shared) return `${channel} belongs to several people, so no link goes there`;
  if (playbook !== undefined) return `${channel} is a channel of playbook ${playbook.name}, so no link goes there`;
  return config.alarms.some(same) ? `${channel} is a channel for alarms, so no link goes there` : undefined;
}

/** What tells one inbox from another: two names for one Slack webhook or one PagerDuty key are one inbox. */
function inboxOf(config: NotifyConfig, name: string): string {
  const channel = config.channels.get(name);
  switch (channel?.kind) {
    case "slack":
      return channel.webhook;
    case "pagerduty":
      return `${channel.url} ${channel.routingKey}`;
    case "webhook": // may pass on to the `person` that each message names
    case undefined:
      return name;
    default:
      return unreachable(channel);
  }
}
