import type { JsonValue } from "../core/json.ts";
import type { OtelSink } from "./config.ts";
import { jsonOf, post, refusal, secretHeader, TIMEOUT_MS } from "./http.ts";
import { DeliveryError, type Item, type SecretReader, type Severity, type SinkDriver, type Speaker } from "./sink.ts";

const BATCH = { entries: 1_000, bytes: 512 * 1024 };
/** https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber: INFO, INFO3, WARN, ERROR, FATAL. */
const SEVERITY_NUMBER: Readonly<Record<Severity, number>> = {
  ...{ informational: 9, low: 11, medium: 13, high: 17, critical: 21 },
};
const MAX_DEPTH = 32;

/**
 * OTLP/HTTP with JSON (https://opentelemetry.io/docs/specs/otlp/#otlphttp). A partial success says that some records were
 * refused and not which: the batch is halved until it is known, so that only that one is left out, and not in silence.
 * What was taken in such a batch arrives twice.
 */
export function otelDriver(sink: OtelSink, speaker: Speaker, secret: SecretReader, timeoutMs = TIMEOUT_MS): SinkDriver {
  return {
    ...{ batch: BATCH, doubtful: false },
    async deliver(items, signal) {
      const own = Object.entries(sink.headers).map(
        ([name, reference]) => [name.toLowerCase(), secretHeader("", () => secret(reference))] as const,
      );
      const headers = { ...Object.fromEntries(own), "content-type": "application/json" };
      const body = JSON.stringify(exportRequest(items, speaker, sink.format));
      const answer = await post({ url: new URL(sink.url), headers, body, ca: sink.ca, signal, timeoutMs });
      if (answer.status < 200 || answer.status > 299) throw refusal(answer, [400, 413]);
      // The specification wants 200 and a body; there are receivers that say 204, or nothing, for the same.
      const partial = answer.body.trim() === "" ? undefined : jsonOf(answer)["partialSuccess"];
      const rejected =
        typeof partial === "object" && partial !== null && "rejectedLogRecords" in partial
          ? Number(partial.rejectedLogRecords)
          : 0;
      if (Number.isNaN(rejected) || rejected !== 0) {
        throw new DeliveryError("took only some of the records", { refused: true });
      }
    },
  };
}

/** `ExportLogsServiceRequest` in the JSON mapping of protocol buffers: 64-bit integers are text. */
function exportRequest(items: readonly Item[], speaker: Speaker, format: OtelSink["format"]): object {
  const resource = [attribute("service.name", "glasskey"), attribute("service.version", speaker.version)];
  return {
    resourceLogs: [
      {
        resource: { attributes: [...resource, attribute("glasskey.log.origin", speaker.origin)] },
        scopeLogs: [
          {
            scope: { name: "glasskey.log", version: speaker.version },
            logRecords: items.map((item) => ({
              timeUnixNano: nanoseconds(item.at),
              observedTimeUnixNano: nanoseconds(item.at),
              severityNumber: SEVERITY_NUMBER[item.severity],
              severityText: item.severity,
              eventName: item.type,
              // An entry stays the text that its leaf hash is of.
              body: format === "ocsf" ? anyValue(JSON.parse(item.json) as JsonValue) : { stringValue: item.json },
              attributes: [
                { key: "glasskey.log.index", value: { intValue: String(item.index) } },
                attribute("glasskey.log.leaf_hash", item.leafHash),
              ],
            })),
          },
        ],
      },
    ],
  };
}

function attribute(key: string, text: string): object {
  return { key, value: { stringValue: text } };
}

function nanoseconds(at: string): string {
  const ms = Date.parse(at);
  return Number.isFinite(ms) && ms > 0 ? `${ms}000000` : "0";
}

/** A JSON value as an `AnyValue`. */
export function anyValue(value: JsonValue, depth = 0): object {
  if (value === null || depth > MAX_DEPTH) return {};
  switch (typeof value) {
    case "string":
      return { stringValue: value };
    case "boolean":
      return { boolValue: value };
    case "number":
      return Number.isSafeInteger(value) ? { intValue: String(value) } : { doubleValue: value };
    default:
      return Array.isArray(value)
        ? { arrayValue: { values: (value as readonly JsonValue[]).map((inner) => anyValue(inner, depth + 1)) } }
        : {
            kvlistValue: {
              values: Object.entries(value).map(([key, inner]) => ({
                key,
                value: anyValue(inner, depth + 1),
              })),
            },
          };
  }
}
