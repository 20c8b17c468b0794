import { isEventType, type EventType } from "@glasskey/contract/events";
import type { LogReader } from "../audit/read.ts";
import { formatDuration } from "../core/duration.ts";
import type { JsonObject, JsonValue } from "../core/json.ts";
import { namesOf } from "../identity/pseudonyms.ts";
import type { Access } from "./access.ts";

/** One line of a grant's story. */
export interface Moment {
  readonly at: string;
  readonly type: string;
  /** The entry's index in the log, so that it can be proved. */
  readonly index: number;
  readonly text: string;
}

const PAGE = 1_000;
const MAX_MOMENTS = 5_000; // a grant with more entries has thousands of sessions; the log has them all

/**
 * What happened under a grant, in words, written by itself from the log's entries, oldest first. What no checkpoint
 * covers yet (a tenth of a second) is not in it.
 */
export async function timelineOf(
  access: Access,
  reader: LogReader,
  grant: string,
): Promise<{ moments: readonly Moment[]; complete: boolean }> {
  const entries: { index: number; entry: JsonObject }[] = [];
  let complete = false;
  while (!complete && entries.length < MAX_MOMENTS) {
    const from = (entries.at(-1)?.index ?? -1) + 1;
    const page = await reader.entries({ from, grant, limit: PAGE });
    entries.push(...page.map(({ index, entry }) => ({ index, entry })));
    complete = page.length < PAGE;
  }
  const people = [
    ...new Set(entries.flatMap(({ entry }) => (typeof entry["actor"] === "string" ? [entry["actor"]] : []))),
  ];
  const names = await namesOf(
    access.store,
    people.filter((id) => id !== "glasskey"),
  );
  const moments = entries.flatMap(({ index, entry }) => {
    const { type, at, actor } = entry;
    if (typeof type !== "string" || typeof at !== "string" || !isEventType(type)) return [];
    const id = typeof actor === "string" ? actor : "";
    const who = id === "glasskey" ? "Glasskey" : (names[id] ?? "somebody who was erased");
    const text = WORDS[type]?.(who, dataOf(entry), entry);
    return text === undefined ? [] : [{ at, type, index, text }];
  });
  return { moments, complete };
}

type Words = (who: string, data: JsonObject, entry: JsonObject) => string | undefined;

/** What a person needs to read; a step that only a machine cares about is in the log, and not here. */
const WORDS: Readonly<Partial<Record<EventType, Words>>> = {
  "grant.requested": (who, data) =>
    `${who} asked for ${span(data["durationMs"])}, reason ${text(data["reason"])}${evidence(data["evidence"])}; ${approvals(data["need"])}${data["quorum"] === true ? " (quorum)" : ""}`,
  "approval.given": (who, data) => `${who} said yes${round(data)}`,
  "approval.denied": (who, data) => `${who} said no${round(data)}`,
  "notice.delivered": (_who, data) => `${text(data["channel"])} confirmed that it delivered: ${words(data["event"])}`,
  "notice.given_up": (_who, data) => `${text(data["channel"])} never got: ${words(data["event"])}`,
  "grant.approved": (who, data) =>
    data["unanswered"] === true
      ? `nobody answered; it opened by itself, for ${span(data["forMs"])} at most`
      : who === "Glasskey"
        ? "approved by the playbook itself"
        : `approved, with the yes of ${who}${evidence(data["evidence"])}`,
  "grant.denied": (_who, data) => (data["cause"] === "killed" ? "killed while it waited" : "denied"),
  "grant.withdrawn": (who) => `${who} took the request back`,
  "grant.timed_out": () => "nobody decided in time",
  "grant.active": (_who, data) => `open until ${time(data["endsAt"])}`,
  "grant.extension_requested": (who, data) => `${who} asked for ${span(data["byMs"])} more`,
  "grant.extended": (_who, data) => `extended to ${time(data["endsAt"])}`,
  "grant.closing": (who, data) => `closing: ${words(data["cause"])}${who === "Glasskey" ? "" : `, by ${who}`}`,
  "grant.closed": () => "closed: the target itself proved the access gone",
  "grant.failed": (_who, data) => `failed: ${words(data["cause"])}`,
  "review.opened": (_who, data) => `a review is due by ${time(data["dueAt"])}`,
  "review.overdue": () => "the review is overdue",
  "review.signed": (who, data) => `${who} signed the review: ${words(data["verdict"])}`,
  "lease.minted": () => "the credential was made on the target",
  "lease.failed": (_who, data) => `the credential could not be made: ${words(data["code"])}`,
  "lease.confirmed": (_who, data) => `the credential is proved gone, from ${time(data["from"])}`,
  "session.opened": (who, _data, entry) => `${who} connected: session ${text(entry["session"])}`,
  "session.refused": (who, data) => `a session of ${who} was refused: ${words(data["code"])}`,
  "session.killed": (who, _data, entry) => `${who} killed session ${text(entry["session"])}`,
  "session.closed": (_who, data, entry) =>
    `session ${text(entry["session"])} ended (${words(data["cause"])}): ${count(data["statements"], "statement")}, ${count(data["refused"], "refusal")}`,
  "access.drift": (_who, data) =>
    `the target's access state differs from before: ${count(data["addedCount"], "line")} more, ${count(data["removedCount"], "line")} less`,
};

function dataOf(entry: JsonObject): JsonObject {
  const data = entry["data"];
  return typeof data === "object" && data !== null && !Array.isArray(data) ? (data as JsonObject) : {};
}

const text = (value: JsonValue | undefined): string => (typeof value === "string" ? value : "?");
const words = (value: JsonValue | undefined): string => text(value).replaceAll("_", " ");
const time = (value: JsonValue | undefined): string =>
  text(value)
    .replace("T", " ")
    .replace(/(?:\.\d+)?Z$/, " UTC");
const span = (value: JsonValue | undefined): string => (typeof value === "number" ? formatDuration(value) : "?");
const round = ({ round: n }: JsonObject): string => (typeof n === "number" && n > 0 ? " to more time" : "");

function count(value: JsonValue | undefined, what: string): string {
  return typeof value === "number" ? `${value} ${what}${value === 1 ? "" : "s"}` : `? ${what}s`;
}

function approvals(need: JsonValue | undefined): string {
  return need === 0 ? "nobody had to approve" : `needed ${count(need, "approval")}`;
}

function evidence(value: JsonValue | undefined): string {
  if (!Array.isArray(value) || value.length === 0) return "";
  const told = (value as readonly JsonObject[]).map(
    ({ fact, value: known, severity, source }) =>
      `${text(fact)} ${text(known)}${severity === undefined ? "" : ` (${text(severity)})`} says ${text(source)}`,
  );
  return `; ${told.join(", ")}`;
}
