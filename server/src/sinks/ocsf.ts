import { isEventType } from "@glasskey/contract/events";
import { unreachable } from "../core/errors.ts";
import type { JsonObject, JsonValue } from "../core/json.ts";
import { CATEGORIES, CLASSES, MAPPINGS, type EntityKind, type Mapping, type Outcome } from "./ocsf-map.ts";
import { SEVERITY, type Severity, type Speaker } from "./sink.ts";

/** The version of the schema that events are of (https://schema.ocsf.io/1.8.0). */
const OCSF_VERSION = "1.8.0";

export interface OcsfInput {
  readonly index: number;
  /** Hex. */
  readonly leafHash: string;
  readonly entry: JsonObject;
  /** Names of people by their pseudonymous id; empty where names do not go out. */
  readonly names: Readonly<Record<string, string>>;
}

const SEVERITY_CAPTION: Readonly<Record<Severity, string>> = {
  ...{ informational: "Informational", low: "Low", medium: "Medium", high: "High", critical: "Critical" },
};
const STATUS: Readonly<Record<Outcome, readonly [number, string]>> = {
  ...{ success: [1, "Success"], failure: [2, "Failure"], other: [99, "Under way"] },
};
const ENTITY_TYPE: Readonly<Record<EntityKind, readonly [number, string]>> = {
  ...{ grant: [99, "Grant"], approval: [99, "Approval"], review: [99, "Review"], lease: [99, "Lease"] },
  ...{ session: [99, "Session"], policy: [5, "Policy"], "log key": [99, "Log signing key"] },
};

/** How grave an entry is; what is not of the closed list is for a person to look at, and what has no type all the more. */
export function severityOf(type: string): Severity {
  if (type === "") return "high";
  return isEventType(type) ? MAPPINGS[type].severity : "medium";
}

/** One entry of the log as an OCSF event. Total: an entry of a kind that is not known here becomes a Base Event. */
export function ocsfOf({ index, leafHash, entry, names }: OcsfInput, speaker: Speaker): JsonObject {
  const type = textOf(entry["type"]) ?? "";
  const mapping = isEventType(type) ? MAPPINGS[type] : undefined;
  const severity = severityOf(type);
  const person = textOf(entry["actor"]) ?? "unknown";
  const common = {
    severity_id: SEVERITY[severity],
    severity: SEVERITY_CAPTION[severity],
    // What says no time is of now: in 1970, no SIEM would show it to anybody.
    time: Date.parse(textOf(entry["at"]) ?? "") || Date.now(),
    message: [type, entry["grant"], entry["playbook"], entry["target"]].filter(isText).join(" "),
    metadata: {
      version: OCSF_VERSION,
      product: product(speaker),
      uid: `${speaker.origin}#${index}`,
      log_name: speaker.origin,
      sequence: index,
      event_code: type,
      ...(isText(entry["at"]) ? { original_time: entry["at"] } : {}),
      ...(isText(entry["grant"]) ? { correlation_uid: entry["grant"] } : {}),
    },
    unmapped: unmapped(index, leafHash, entry),
  };
  if (mapping === undefined) {
    return {
      class_uid: 0,
      class_name: "Base Event",
      category_uid: 0,
      category_name: "Uncategorized",
      ...noActivity,
      ...common,
    };
  }
  const { uid, caption, activities } = CLASSES[mapping.class];
  const activity = (activities as Readonly<Record<number, string>>)[mapping.activity] ?? "";
  const category = Math.floor(uid / 1_000);
  const actor = personOf(person, names);
  return {
    ...{ class_uid: uid, class_name: caption, category_uid: category, category_name: CATEGORIES[category] ?? "" },
    ...{ activity_id: mapping.activity, activity_name: activity },
    ...{ type_uid: uid * 100 + mapping.activity, type_name: `${caption}: ${activity}` },
    ...common,
    ...statusOf(mapping, entry),
    ...own(mapping, { entry, speaker, actor, names }),
    ...observables(mapping, person, names),
  };
}

const noActivity = { activity_id: 0, activity_name: "Unknown", type_uid: 0, type_name: "Base Event: Unknown" };

interface About {
  readonly entry: JsonObject;
  readonly speaker: Speaker;
  readonly actor: JsonObject;
  readonly names: Readonly<Record<string, string>>;
}

/** What a class has beside what all have. */
function own(mapping: Mapping, { entry, speaker, actor, names }: About): JsonObject {
  const service = { name: textOf(entry["target"]) ?? "Glasskey" };
  switch (mapping.class) {
    case "entity_management":
      return { actor: { user: actor }, entity: entityOf(mapping.entity, entry) };
    case "account_change":
      return { actor: { user: actor }, user: credentialOf(entry) };
    case "authentication": {
      const user = textOf(entry["actor"]) === "glasskey" ? { name: "unknown", type_id: 0, type: "Unknown" } : actor;
      const session = textOf(entry["session"]);
      return {
        ...{ user, service, is_remote: true },
        ...(session === undefined ? {} : { session: { uid: session, is_remote: true } }),
      };
    }
    case "detection_finding":
      return {
        finding_info: findingOf(mapping.title, entry),
        is_alert: mapping.severity === "high" || mapping.severity === "critical",
      };
    case "application_lifecycle":
      return { app: product(speaker) };
    case "api_activity":
      return {
        ...{ actor: { user: actor }, api: { operation: mapping.operation, service: { name: "Glasskey" } } },
        src_endpoint: { svc_name: "glasskey" },
      };
    case "datastore_activity":
      return {
        ...{
          actor: { user: personOf(textOf(entry["actor"]) ?? "unknown", names) },
          src_endpoint: { svc_name: "glasskey" },
        },
        databucket: {
          ...{ name: "recordings", type_id: 99, type: "Glasskey recordings" },
          ...(isText(entry["session"]) ? { uid: entry["session"] } : {}),
        },
        ...{ type_id: 2, type: "Databucket" },
      };
    default:
      return unreachable(mapping);
  }
}

function statusOf(mapping: Mapping, entry: JsonObject): JsonObject {
  const data = dataOf(entry);
  const detail = [data["code"], data["cause"], data["verdict"], data["why"]].find(isText);
  const more = detail === undefined ? {} : { status_detail: detail };
  // A finding's status is its own: new, or resolved.
  if (mapping.class === "detection_finding") {
    return {
      ...(mapping.activity === 3 ? { status_id: 4, status: "Resolved" } : { status_id: 1, status: "New" }),
      ...more,
    };
  }
  const [id, caption] = STATUS[mapping.outcome];
  return { status_id: id, status: caption, ...more };
}

function entityOf(kind: EntityKind, entry: JsonObject): JsonObject {
  const [id, type] = ENTITY_TYPE[kind];
  const data = dataOf(entry);
  const of: Readonly<Record<EntityKind, readonly [JsonValue | undefined, JsonValue | undefined]>> = {
    grant: [entry["grant"], entry["playbook"]],
    approval: [entry["grant"], entry["playbook"]],
    review: [entry["grant"], entry["playbook"]],
    lease: [entry["lease"], entry["target"]],
    session: [entry["session"], entry["target"]],
    policy: [data["hash"], "policy"],
    "log key": [data["vkey"] ?? data["key"], "log signing key"],
  };
  const [uid, name] = of[kind];
  const version = kind === "policy" ? data["commit"] : undefined;
  return {
    ...{ type_id: id, type },
    ...(isText(uid) ? { uid } : {}),
    name: isText(name) ? name : type,
    ...(isText(version) ? { version } : {}),
  };
}

/** The credential that a lease has on its target. */
function credentialOf(entry: JsonObject): JsonObject {
  const domain = textOf(entry["target"]);
  const lease = textOf(entry["lease"]) ?? "unknown";
  return { uid: lease, type_id: 99, type: "Lease", ...(domain === undefined ? {} : { domain }) };
}

function findingOf(title: string, entry: JsonObject): JsonObject {
  const data = dataOf(entry);
  const uid = [data["alarm"], entry["lease"], entry["grant"], data["node"]].find(isText) ?? "glasskey";
  const what = [data["key"], data["name"], entry["target"]].find(isText);
  return { uid, title: what === undefined ? title : `${title}: ${what}` };
}

/** A person by the pseudonymous id; the name only where names go out. */
function personOf(id: string, names: Readonly<Record<string, string>>): JsonObject {
  const name = Object.hasOwn(names, id) ? names[id] : undefined;
  const kind = id.startsWith("pe_") ? { type_id: 1, type: "User" } : { type_id: 3, type: "System" };
  return { uid: id, ...kind, ...(name === undefined ? {} : { name }) };
}

/** The person: the object, and the name where it goes out. */
function observables(mapping: Mapping, person: string, names: Readonly<Record<string, string>>): JsonObject {
  if (!person.startsWith("pe_") || mapping.class === "detection_finding") return {};
  if (mapping.class === "application_lifecycle") return {};
  const at = mapping.class === "authentication" ? "user" : "actor.user";
  const name = Object.hasOwn(names, person) ? names[person] : undefined;
  return {
    observables: [
      { name: at, type_id: 21, type: "User" },
      ...(name === undefined ? [] : [{ name: `${at}.name`, type_id: 4, type: "User Name", value: name }]),
    ],
  };
}

/** Everything that an entry says, as it says it; and what ties it to the log. */
function unmapped(index: number, leafHash: string, entry: JsonObject): JsonObject {
  const { v: _v, type: _type, at: _at, ...rest } = entry;
  return { ...rest, log_index: index, leaf_hash: leafHash }; // ours last: no entry says where it stands
}

function product({ version }: Speaker): JsonObject {
  return { name: "Glasskey", vendor_name: "Glasskey", version };
}

function dataOf(entry: JsonObject): JsonObject {
  const data = entry["data"];
  return typeof data === "object" && data !== null && !Array.isArray(data) ? (data as JsonObject) : {};
}

const isText = (value: JsonValue | undefined): value is string => typeof value === "string" && value !== "";
const textOf = (value: JsonValue | undefined): string | undefined => (isText(value) ? value : undefined);
