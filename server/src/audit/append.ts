import { isEventType, type EventType } from "@glasskey/contract/events";
import canonicalize from "canonicalize";
import { sql, type Transaction } from "kysely";
import { GlassError } from "../core/errors.ts";
import { isId, type IdKind } from "../core/ids.ts";
import type { JsonObject, JsonValue } from "../core/json.ts";

/** C2SP tlog-tiles gives an entry's length two bytes. */
export const MAX_ENTRY_BYTES = 65_535;
const MAX_DEPTH = 16;
const MAX_NAME_LENGTH = 200;

/**
 * What happened. Ids only, no names of people and no free text: an entry can never be taken back. Free text belongs in
 * the session's encrypted recording, or in a column that may be erased.
 */
export interface LogEvent {
  type: EventType;
  at: Date;
  /** Who did it: a pseudonymous person id (`pe_…`), or `glasskey` for what it does by itself. */
  actor: string;
  grant?: string | undefined;
  session?: string | undefined;
  lease?: string | undefined;
  target?: string | undefined;
  playbook?: string | undefined;
  data?: JsonObject | undefined;
}

/**
 * Puts the event into the log, in the caller's transaction: both are committed, or neither is. It has an index and is
 * covered by a signed checkpoint about a tenth of a second after the commit; `LogReader.settled` waits for that.
 * @throws GlassError `internal` when the event is not well-formed. That is a defect in the caller, and the transaction
 *   must not be committed without its entry.
 */
export async function append<DB>(trx: Transaction<DB>, event: LogEvent): Promise<void> {
  const entry = encodeEvent(event);
  if (!trx.isTransaction) throw malformed("it must be appended in the transaction of the change that it tells of");
  await sql`insert into log_queue (entry, grant_id) values (${entry}, ${event.grant ?? null})`.execute(trx);
}

/**
 * The bytes of an entry: RFC 8785 canonical JSON. They are stored and hashed as they are; nothing re-encodes them later.
 * @throws GlassError `internal` that names the field that cannot be logged.
 */
export function encodeEvent(event: LogEvent): Buffer {
  if (!isEventType(event.type)) throw malformed(`"${String(event.type)}" is not a type of the closed list`);
  if (!(event.at instanceof Date) || Number.isNaN(event.at.getTime())) throw malformed("`at` is not a time");
  const year = event.at.getUTCFullYear();
  if (year < 1970 || year > 9999) throw malformed("`at` does not fit RFC 3339"); // toISOString would write a sign
  if (event.actor !== "glasskey" && !isId("person", event.actor)) throw malformed("`actor` is not a person's id");
  const fields: Record<string, JsonValue> = { v: 1, type: event.type, at: event.at.toISOString(), actor: event.actor };
  for (const kind of ["grant", "session", "lease"] as const satisfies readonly IdKind[]) {
    const id = event[kind];
    if (id === undefined) continue;
    if (!isId(kind, id)) throw malformed(`\`${kind}\` is not the id of a ${kind}`);
    fields[kind] = id;
  }
  for (const name of ["target", "playbook"] as const) {
    const value = event[name];
    if (value === undefined) continue;
    if (value === "" || value.length > MAX_NAME_LENGTH) throw malformed(`\`${name}\` is empty or too long`);
    checkJson(value, name, 0);
    fields[name] = value;
  }
  if (event.data !== undefined) {
    if (!isPlainObject(event.data)) throw malformed("`data` is not an object");
    checkJson(event.data, "data", 0);
    fields["data"] = event.data;
  }
  const text = canonicalize(fields);
  if (text === undefined) throw malformed("it has no canonical form");
  const bytes = Buffer.from(text, "utf8");
  if (bytes.length > MAX_ENTRY_BYTES) {
    throw malformed(`it takes ${bytes.length} bytes, and ${MAX_ENTRY_BYTES} is the most an entry can have`);
  }
  return bytes;
}

/** Refuses what JSON would drop or change in silence: the log must hold what the caller meant. */
function checkJson(value: unknown, path: string, depth: number): void {
  if (depth > MAX_DEPTH) throw malformed(`\`${path}\` is nested too deeply`);
  switch (typeof value) {
    case "boolean":
      return;
    case "string":
      if (!value.isWellFormed()) throw malformed(`\`${path}\` has half of a surrogate pair`);
      return;
    case "number":
      if (!Number.isFinite(value)) throw malformed(`\`${path}\` is not a finite number`);
      if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
        throw malformed(`\`${path}\` is an integer that other readers would round`);
      }
      return;
    case "object":
      if (value === null) return;
      if (Array.isArray(value)) {
        for (let i = 0; i < value.length; i += 1) checkJson(value[i], `${path}[${i}]`, depth + 1); // sees holes too
        return;
      }
      if (!isPlainObject(value)) throw malformed(`\`${path}\` is not plain JSON`);
      for (const [key, inner] of Object.entries(value)) {
        if (!key.isWellFormed()) throw malformed(`a key in \`${path}\` has half of a surrogate pair`);
        checkJson(inner, `${path}.${key.slice(0, 40)}`, depth + 1);
      }
      return;
    case "undefined":
    case "bigint":
    case "symbol":
    case "function":
      throw malformed(`\`${path}\` is ${typeof value}, which JSON does not have`);
  }
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return (prototype === Object.prototype || prototype === null) && Object.getOwnPropertySymbols(value).length === 0;
}

function malformed(why: string): GlassError {
  return new GlassError("internal", `a log event is not well-formed: ${why}`);
}
