import type { NoticeEvent } from "../access/access.ts";
import { moment, oneLine } from "./text.ts";

/** A notice as one channel gets it; stored sealed. Everything in it but ids and events is text of strangers. */
export interface Message {
  /** Where it goes, so that a row of the outbox cannot be sent elsewhere. */
  readonly channel: string;
  readonly event: NoticeEvent;
  /** ISO 8601, when it happened. */
  readonly at: string;
  readonly grant?: string | undefined;
  readonly round: number;
  readonly playbook?: string | undefined;
  readonly target?: string | undefined;
  readonly requester?: string | undefined;
  readonly reason?: string | undefined;
  readonly incident?: string | undefined;
  /** The requester's own words; only for channels that are configured to get them. */
  readonly why?: string | undefined;
  readonly until?: string | undefined;
  readonly text: string;
  /** Whose channel this is, where it is a person's own. */
  readonly person?: string | undefined;
  /** For a person who may decide: until when the signed link holds, ISO 8601. */
  readonly linkUntil?: string | undefined;
}

interface EventWords {
  readonly title: string;
  /** What `until` means there. */
  readonly until: string;
  /** What to type; GRANT stands for the id. */
  readonly commands: readonly string[];
  /** Whether its delivery to a page channel wakes somebody. */
  readonly calls: boolean;
}

/** Everything about one event, once. */
const EVENTS = {
  approval_wanted: {
    title: "Approval wanted",
    until: "Decide by",
    commands: ["glass approve GRANT", "glass deny GRANT"],
    calls: true,
  },
  extension_wanted: {
    title: "Extension wanted",
    until: "Decide by",
    commands: ["glass approve GRANT", "glass deny GRANT"],
    calls: true,
  },
  opened: { title: "Access is open", until: "Open until", commands: ["glass status GRANT"], calls: false },
  opened_unanswered: {
    title: "Access opened without an answer",
    until: "Open until",
    commands: ["glass status GRANT", "glass kill GRANT"],
    calls: true,
  },
  denied: { title: "Request denied", until: "Until", commands: ["glass status GRANT"], calls: false },
  withdrawn: { title: "Request withdrawn", until: "Until", commands: ["glass status GRANT"], calls: false },
  timed_out: { title: "Nobody decided in time", until: "Until", commands: ["glass status GRANT"], calls: false },
  failed: { title: "Nothing was opened", until: "Until", commands: ["glass status GRANT"], calls: false },
  extended: { title: "Access is extended", until: "Open until", commands: ["glass status GRANT"], calls: false },
  closed: { title: "Access is proved gone", until: "Until", commands: ["glass review GRANT"], calls: false },
  not_proved: {
    title: "Access is not proved gone",
    until: "Since",
    commands: ["glass status GRANT"],
    calls: true,
  },
  review_overdue: { title: "Review is overdue", until: "Was due", commands: ["glass review GRANT"], calls: true },
  review_signed: { title: "Review is signed", until: "Until", commands: ["glass review GRANT"], calls: false },
  alarm: { title: "Alarm", until: "Until", commands: ["glass status"], calls: true },
  alarm_over: { title: "Alarm is over", until: "Until", commands: [], calls: false },
} as const satisfies Record<NoticeEvent, EventWords>;

export function wordsOf(event: NoticeEvent): EventWords {
  return EVENTS[event];
}

const MAX_VALUE = 300;
const MAX_WHY = 1_000;

/** What a channel shows below the title: labels, and one line of text each, still to be escaped for the channel's format. */
export function factsOf(message: Message): readonly (readonly [label: string, value: string])[] {
  const facts: readonly (readonly [string, string | undefined])[] = [
    ["Who", message.requester],
    ["Playbook", message.playbook],
    ["Target", message.target],
    ["Reason", message.reason],
    ["Incident", message.incident],
    [EVENTS[message.event].until, message.until === undefined ? undefined : moment(new Date(message.until))],
  ];
  return facts.flatMap(([label, value]) =>
    value === undefined || value === "" ? [] : [[label, oneLine(value, MAX_VALUE)] as const],
  );
}

export function sentenceOf(message: Message): string {
  return oneLine(message.text, MAX_VALUE);
}

export function whyOf(message: Message): string | undefined {
  return message.why === undefined ? undefined : oneLine(message.why, MAX_WHY);
}

export function commandsOf(message: Message): readonly string[] {
  const { grant } = message;
  return grant === undefined && message.event !== "alarm"
    ? []
    : EVENTS[message.event].commands.map((command) => command.replace("GRANT", grant ?? ""));
}
