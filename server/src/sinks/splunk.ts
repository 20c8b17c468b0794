import { randomUUID } from "node:crypto";
import { sleep } from "../core/clock.ts";
import type { SplunkSink } from "./config.ts";
import { jsonOf, post, refusal, secretHeader, TIMEOUT_MS, type Answer } from "./http.ts";
import { DeliveryError, type Item, type SecretReader, type SinkDriver, type Speaker } from "./sink.ts";

/** Large, because an acknowledgement takes Splunk some seconds whatever the size. */
const BATCH = { entries: 5_000, bytes: 4 * 1024 * 1024 };
/** Of one request. Splunk's own limit (`max_content_length` of limits.conf) is far above. */
const REQUEST_BYTES = 512 * 1024;
const ACK_POLL_MS = 1_000;
/** Indexers that have not acknowledged by then have lost it: it is sent again. Splunk's own forwarders wait 5 minutes. */
const ACK_WITHIN_MS = 120_000;
/** Codes of the HTTP Event Collector that are about what was sent, not about token, channel, index or load. */
const ABOUT_THE_EVENT: ReadonlySet<unknown> = new Set([5, 6, 12, 13, 15]);
const TAKEN = 0;
const ACK_DISABLED = 14;

/**
 * Splunk's HTTP Event Collector, event endpoint, with indexer acknowledgement
 * (https://docs.splunk.com/Documentation/Splunk/latest/Data/AboutHECIDXAck): an entry counts as delivered when the
 * indexers have said so, not when the collector has taken it.
 */
export function splunkDriver(
  sink: SplunkSink,
  speaker: Speaker,
  secret: SecretReader,
  { timeoutMs = TIMEOUT_MS, pollMs = ACK_POLL_MS, withinMs = ACK_WITHIN_MS } = {},
): SinkDriver {
  const channel = randomUUID(); // acknowledgements are counted for each channel apart
  const base = sink.url.replace(/\/+$/, "");

  const ask = (path: string, body: string, signal: AbortSignal): Promise<Answer> => {
    const headers = {
      "content-type": "application/json",
      authorization: secretHeader("Splunk ", () => secret(sink.token)),
      "x-splunk-request-channel": channel,
    };
    return post({ url: new URL(`${base}${path}`), headers, body, ca: sink.ca, signal, timeoutMs });
  };

  const event = ({ index, leafHash, at, json }: Item): string => {
    const about = {
      time: (Date.parse(at) || 0) / 1_000,
      ...{ host: "glasskey", source: speaker.origin, sourcetype: sink.sourcetype ?? `glasskey:${sink.format}` },
      ...(sink.index === undefined ? {} : { index: sink.index }),
      fields: { log_index: String(index), leaf_hash: leafHash },
    };
    return `${JSON.stringify(about).slice(0, -1)},"event":${json}}`;
  };

  async function send(body: string, signal: AbortSignal): Promise<number> {
    const answer = await ask("/services/collector/event", body, signal);
    const code = codeOf(answer);
    if (answer.status !== 200 || code !== TAKEN) throw refused(answer, code);
    const ack = jsonOf(answer)["ackId"];
    if (typeof ack !== "number" || !Number.isSafeInteger(ack)) throw noAck();
    return ack;
  }

  async function acknowledged(acks: Set<number>, signal: AbortSignal): Promise<void> {
    const until = performance.now() + withinMs;
    for (;;) {
      const answer = await ask("/services/collector/ack", JSON.stringify({ acks: [...acks] }), signal);
      if (answer.status !== 200) throw refused(answer, codeOf(answer), false);
      const states = jsonOf(answer)["acks"];
      if (typeof states !== "object" || states === null) throw new DeliveryError("answered without `acks`");
      for (const ack of acks) if ((states as Record<string, unknown>)[String(ack)] === true) acks.delete(ack);
      if (acks.size === 0) return;
      if (performance.now() > until) {
        throw new DeliveryError(`the indexers did not acknowledge within ${Math.round(withinMs / 1000)} s`);
      }
      await sleep(pollMs, signal).catch(() => {
        throw new DeliveryError("it was interrupted");
      });
    }
  }

  return {
    ...{ batch: BATCH, doubtful: false },
    async deliver(items, signal) {
      const acks = new Set<number>();
      for (const body of bodies(items.map(event))) {
        const ack = await send(body, signal);
        // Numbers only grow. A collector that was restarted begins again: its answer would be about another request.
        if (acks.has(ack)) {
          throw new DeliveryError(
            "gave one acknowledgement number twice: it was restarted, or there are several of them",
          );
        }
        acks.add(ack);
      }
      await acknowledged(acks, signal);
    },
  };
}

/** Events one after another, as the collector takes them, in requests of some size. */
function* bodies(events: readonly string[]): Generator<string> {
  let body = "";
  for (const event of events) {
    if (body !== "" && body.length + event.length > REQUEST_BYTES) {
      yield body;
      body = "";
    }
    body += event;
  }
  if (body !== "") yield body;
}

function codeOf(answer: Answer): unknown {
  try {
    return jsonOf(answer)["code"];
  } catch {
    return undefined;
  }
}

function refused(answer: Answer, code: unknown, event = true): DeliveryError {
  if (code === ACK_DISABLED) return noAck();
  const { message, retryAfterMs } = refusal(answer);
  const words = typeof code === "number" && Number.isInteger(code) ? `${message}, code ${code}` : message;
  const about = event && (ABOUT_THE_EVENT.has(code) || answer.status === 413);
  return new DeliveryError(words, { refused: about, retryAfterMs });
}

function noAck(): DeliveryError {
  return new DeliveryError(
    "its token has no indexer acknowledgement, so nothing counts as delivered; turn it on in Splunk",
  );
}
