import type { Identity } from "../../core/certificates.ts";
import { startFake, type Fake, type FakeAnswer } from "../../notify/testing/fakes.ts";

/** What a fake of Splunk has: events that were taken, by acknowledgement, and those that are indexed. */
export interface FakeSplunk extends Omit<Fake, "broken"> {
  /** The events that the indexers have, in the order of their arrival. */
  indexed(): readonly Record<string, unknown>[];
  /** Answers like this instead; undefined: as documented again. */
  breaks(how: FakeAnswer | undefined): void;
  /**
   * `acknowledges`: whether acknowledgements are given; otherwise what was taken is never indexed. `useAck`: whether the
   * token has indexer acknowledgement.
   */
  set(changes: { acknowledges?: boolean; useAck?: boolean }): void;
}

/**
 * A fake of Splunk's HTTP Event Collector, from Splunk's documents "Format events for HTTP Event Collector", "About HTTP
 * Event Collector Indexer Acknowledgment" and "Troubleshoot HTTP Event Collector" (its status codes).
 */
export async function fakeSplunk(identity: Identity, token: string): Promise<FakeSplunk> {
  const channels = new Map<string, { next: number; waiting: Map<number, Record<string, unknown>[]> }>();
  const indexed: Record<string, unknown>[] = [];
  const state = { acknowledges: true, useAck: true };
  const answer = (status: number, code: number, text: string, more: object = {}): FakeAnswer => ({
    status,
    body: JSON.stringify({ text, code, ...more }),
  });
  const fake = await startFake(identity, "", ({ path, headers, text }) => {
    if (headers.authorization === undefined) return answer(401, 2, "Token is required");
    if (headers.authorization !== `Splunk ${token}`) return answer(403, 4, "Invalid token");
    const name = headers["x-splunk-request-channel"];
    if (typeof name !== "string") return answer(400, 10, "Data channel is missing");
    if (!/^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i.test(name)) return answer(400, 11, "Invalid data channel");
    const channel = channels.get(name) ?? { next: 0, waiting: new Map<number, Record<string, unknown>[]>() };
    channels.set(name, channel);
    if (path === "/services/collector/event") {
      const events = concatenated(text);
      if (text === "") return answer(400, 5, "No data");
      if (events === undefined) return answer(400, 6, "Invalid data format", { "invalid-event-number": 0 });
      if (events.some((event) => event["event"] === undefined)) return answer(400, 12, "Event field is required");
      if (!state.useAck) {
        indexed.push(...events);
        return answer(200, 0, "Success");
      }
      const ackId = channel.next++;
      channel.waiting.set(ackId, events);
      return answer(200, 0, "Success", { ackId });
    }
    if (path === "/services/collector/ack") {
      if (!state.useAck) return answer(400, 14, "ACK is disabled");
      const { acks } = JSON.parse(text) as { acks: number[] };
      const states = acks.map((ack): [string, boolean] => {
        const events = state.acknowledges ? channel.waiting.get(ack) : undefined;
        if (events !== undefined) indexed.push(...events);
        if (events !== undefined) channel.waiting.delete(ack); // asked once, and forgotten
        return [String(ack), events !== undefined];
      });
      return { status: 200, body: JSON.stringify({ acks: Object.fromEntries(states) }) };
    }
    return { status: 404 };
  });
  return {
    ...{ url: fake.url, seen: fake.seen, taken: fake.taken, stop: fake.stop, indexed: () => indexed },
    breaks: (how) => (fake.broken = how),
    set: (changes) => Object.assign(state, changes),
  };
}

/** JSON objects one after another. */
function concatenated(text: string): Record<string, unknown>[] | undefined {
  try {
    // Between two events stands nothing, and inside one a `}{` only within text, where we have none.
    return JSON.parse(`[${text.replaceAll("}{", "},{")}]`) as Record<string, unknown>[];
  } catch {
    return undefined;
  }
}

/** A record as a fake collector took it. */
export interface OtelRecord {
  readonly attributes: readonly { key: string; value: Record<string, string> }[];
  readonly body: Record<string, unknown>;
  readonly timeUnixNano: string;
  readonly eventName: string;
}
export interface FakeCollector extends Omit<Fake, "broken"> {
  records(): readonly OtelRecord[];
  breaks(how: FakeAnswer | undefined): void;
  /** A record with this index is refused. */
  refuse(index: number | undefined): void;
}

/** A fake OpenTelemetry collector, from the OTLP specification 1.x, OTLP/HTTP with JSON, `/v1/logs`. */
export async function fakeCollector(identity: Identity): Promise<FakeCollector> {
  const taken: OtelRecord[] = [];
  const state: { refuses: number | undefined } = { refuses: undefined };
  const indexOf = (record: OtelRecord): number =>
    Number(record.attributes.find(({ key }) => key === "glasskey.log.index")?.value["intValue"]);
  const fake = await startFake(identity, "/v1/logs", ({ path, headers, body }) => {
    if (path !== "/v1/logs") return { status: 404 };
    if (headers["content-type"] !== "application/json") return { status: 415 };
    const { resourceLogs } = body as { resourceLogs: { scopeLogs: { logRecords: OtelRecord[] }[] }[] };
    const records = resourceLogs.flatMap(({ scopeLogs }) => scopeLogs.flatMap(({ logRecords }) => logRecords));
    const good = records.filter((record) => indexOf(record) !== state.refuses);
    taken.push(...good);
    const rejected = records.length - good.length;
    const partial = { partialSuccess: { rejectedLogRecords: String(rejected), errorMessage: "not that one" } };
    return { status: 200, body: JSON.stringify(rejected === 0 ? {} : partial) };
  });
  return {
    ...{ url: fake.url, seen: fake.seen, taken: fake.taken, stop: fake.stop, records: () => taken },
    breaks: (how) => (fake.broken = how),
    refuse: (index) => (state.refuses = index),
  };
}
