import { EVENTS, type EventType } from "@glasskey/contract/events";
import type { JsonObject } from "../../core/json.ts";

const ALL = { grant: "gr_0123456789ab", playbook: "orders-db-write", target: "orders-prod" };
const LEASE = { ...ALL, lease: "ls_0123456789ab" };
const SESSION = { ...LEASE, session: "se_0123456789ab" };
const DATA: Partial<Record<EventType, JsonObject>> = {
  "alarm.raised": { alarm: "al_0123456789ab", key: "journal nd_1" },
  "alarm.cleared": { alarm: "al_0123456789ab", key: "journal nd_1" },
  "policy.loaded": { hash: "ab".repeat(32), commit: "cd".repeat(20), source: "folder" },
  "grant.closing": { cause: "expired" },
  "session.refused": { code: "grant_over" },
  "session.closed": { cause: "client", statements: 3, refused: 0, bytesIn: 10, bytesOut: 20 },
  "recording.sealed": { chunk: 0, sha256: "00".repeat(32), bytes: 100 },
  "log.key_added": { vkey: "glasskey.test/log+abcdef01+AQ" },
};

/** One entry of every type, by a person and by Glasskey itself, with as much and as little as it may have. */
export function sampleEntries(): readonly JsonObject[] {
  return (Object.keys(EVENTS) as EventType[]).flatMap((type): JsonObject[] => {
    const at = "2026-11-20T02:14:09.120Z";
    const data = DATA[type];
    const more =
      type.startsWith("session") || type.startsWith("recording") ? SESSION : type.startsWith("lease") ? LEASE : ALL;
    return [
      { v: 1, type, at, actor: "pe_0123456789ab", ...more, ...(data === undefined ? {} : { data }) },
      { v: 1, type, at, actor: "glasskey" },
    ];
  });
}
