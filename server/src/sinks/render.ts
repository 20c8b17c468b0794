import { isUtf8 } from "node:buffer";
import type { JsonObject, JsonValue } from "../core/json.ts";
import type { StoredEntry } from "./cursor.ts";
import { ocsfOf, severityOf } from "./ocsf.ts";
import type { Item, Speaker } from "./sink.ts";

export interface RenderOptions {
  readonly format: "ocsf" | "entry";
  readonly speaker: Speaker;
  /** Names behind pseudonymous ids; undefined: they do not go out. */
  readonly namesOf?: ((ids: readonly string[]) => Promise<Readonly<Record<string, string>>>) | undefined;
}

/**
 * Makes entries fit for a receiver. `entry`: `{"index":…,"leafHash":…,"origin":…,"entry":…}`, where the last is the
 * stored bytes as they are, so that the leaf hash is SHA-256(0x00 ‖ what stands there). `ocsf`: {@link ocsfOf}.
 *
 * Total: bytes that are no entry of ours, which only somebody beside Glasskey can have written, go out as `entryBase64`,
 * so that they hold nothing up, break no line, and are seen.
 */
export function createRenderer({
  format,
  speaker,
  namesOf,
}: RenderOptions): (entries: readonly StoredEntry[]) => Promise<readonly Item[]> {
  return async (entries) => {
    const decoded = entries.map((stored) => ({ ...stored, entry: decode(stored.bytes) }));
    const people = [...new Set(decoded.map(({ entry }) => textOf(entry?.["actor"])))].filter((id) =>
      id.startsWith("pe_"),
    );
    const names = namesOf === undefined || people.length === 0 ? {} : await namesOf(people);
    return decoded.map(({ index, leafHash, bytes, entry }): Item => {
      const type = textOf(entry?.["type"]);
      const strange = { entryBase64: bytes.toString("base64") };
      const ocsf = (read: JsonObject): string =>
        JSON.stringify(ocsfOf({ index, leafHash, entry: read, names }, speaker));
      const own = (): string => {
        const actorName = entry === undefined ? undefined : names[textOf(entry["actor"])];
        const head = { index, leafHash, origin: speaker.origin, ...(actorName === undefined ? {} : { actorName }) };
        return entry === undefined
          ? JSON.stringify({ ...head, ...strange })
          : `${JSON.stringify(head).slice(0, -1)},"entry":${bytes.toString("utf8")}}`;
      };
      const json = format === "entry" ? own() : (attempt(() => ocsf(entry ?? strange)) ?? ocsf(strange));
      const said = textOf(entry?.["at"]);
      const at = Number.isNaN(Date.parse(said)) ? new Date().toISOString() : said;
      return { index, leafHash, type, at, severity: severityOf(type), json };
    });
  };
}

/** An entry as `encodeEvent` writes it: an object on one line; undefined for anything else. */
function decode(bytes: Buffer): JsonObject | undefined {
  if (!isUtf8(bytes) || /[\0-\x1F]/.test(bytes.toString("latin1"))) return undefined;
  const value = attempt(() => JSON.parse(bytes.toString("utf8")) as JsonValue);
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : undefined;
}

/** Undefined where it fails: what is nested thousands deep is parsed, and cannot be written again. */
function attempt<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch {
    return undefined;
  }
}

function textOf(value: JsonValue | undefined): string {
  return typeof value === "string" ? value : "";
}
