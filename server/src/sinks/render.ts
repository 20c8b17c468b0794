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
 */
export function createRenderer({
  format,
  speaker,
  namesOf,
}: RenderOptions): (entries: readonly StoredEntry[]) => Promise<readonly Item[]> {
  return async (entries) => {
    const decoded = entries.map((stored) => ({ ...stored, entry: JSON.parse(stored.text) as JsonObject }));
    const people = [...new Set(decoded.map(({ entry }) => textOf(entry["actor"])))].filter((id) =>
      id.startsWith("pe_"),
    );
    const names = namesOf === undefined || people.length === 0 ? {} : await namesOf(people);
    return decoded.map(({ index, leafHash, text, entry }): Item => {
      const type = textOf(entry["type"]);
      const json =
        format === "ocsf"
          ? JSON.stringify(ocsfOf({ index, leafHash, entry, names }, speaker))
          : `${head(index, leafHash, speaker, names[textOf(entry["actor"])])}${text}}`;
      return { index, leafHash, type, at: textOf(entry["at"]), severity: severityOf(type), json };
    });
  };
}

function head(index: number, leafHash: string, { origin }: Speaker, actorName: string | undefined): string {
  const fields = { index, leafHash, origin, ...(actorName === undefined ? {} : { actorName }) };
  return `${JSON.stringify(fields).slice(0, -1)},"entry":`;
}

function textOf(value: JsonValue | undefined): string {
  return typeof value === "string" ? value : "";
}
