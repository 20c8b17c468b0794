import { existsSync } from "node:fs";
import { join } from "node:path";
import { EVENTS } from "@glasskey/contract/events";
import { expect, test } from "vitest";
import type { JsonObject } from "../core/json.ts";
import { ocsfOf } from "./ocsf.ts";
import { MAPPINGS } from "./ocsf-map.ts";
import { ownRules } from "./testing/ocsf-rules.ts";
import { compileSchema, validate, type Shape } from "./testing/ocsf-schema.ts";
import { sampleEntries } from "./testing/samples.ts";

/** A checkout of github.com/ocsf/ocsf-schema at 1.8.0. */
const FOLDER = process.env["GLASSKEY_OCSF_SCHEMA"] ?? "";
const published = existsSync(join(FOLDER, "dictionary.json")) ? compileSchema(FOLDER) : undefined;
const without = "GLASSKEY_OCSF_SCHEMA does not name a checkout of github.com/ocsf/ocsf-schema";

const speaker = { origin: "glasskey.test/log", version: "0.1.0" };
const LEAF = "ab".repeat(32);

function event(entry: JsonObject, names: Record<string, string> = {}): Record<string, unknown> {
  return { ...ocsfOf({ index: 7, leafHash: LEAF, entry, names }, speaker) };
}

const samples = [
  ...sampleEntries(),
  { v: 1, type: "of.a.later.version", at: "2026-11-20T02:14:09.120Z", actor: "glasskey" },
];

test("every type of entry is an OCSF event that has what its class requires, and nothing that it does not know", () => {
  const rules = ownRules();
  for (const entry of samples) {
    for (const names of [{}, { pe_0123456789ab: "ann" }])
      expect(validate(rules, event(entry, names)), JSON.stringify(entry)).toEqual([]);
  }
  expect(Object.keys(MAPPINGS).toSorted()).toEqual(Object.keys(EVENTS).toSorted());
});

test("every type of entry validates against the published OCSF schema", (context) => {
  if (published === undefined) {
    context.skip(without);
    return;
  }
  expect(published.version).toBe("1.8.0");
  for (const entry of samples) {
    for (const names of [{}, { pe_0123456789ab: "ann" }])
      expect(validate(published, event(entry, names)), JSON.stringify(entry)).toEqual([]);
  }
});

test("our own table of what OCSF requires says what the published schema says", (context) => {
  if (published === undefined) {
    context.skip(without);
    return;
  }
  const own = ownRules();
  const same = (name: string, ours: Shape, theirs: Shape | undefined): void => {
    expect(ours.atLeastOne, name).toEqual(theirs?.atLeastOne);
    expect(theirs?.justOne, name).toBeUndefined();
    for (const [attribute, rule] of Object.entries(theirs?.attributes ?? {})) {
      const mine = ours.attributes[attribute];
      if (mine === undefined) expect(rule.required, `${name}.${attribute} is required there`).toBeUndefined();
      else {
        const { captions: _captions, oneOf, ...rest } = rule;
        const sorted = { ...rest, oneOf: oneOf?.toSorted() };
        expect({ ...mine, oneOf: mine.oneOf?.toSorted() }, `${name}.${attribute}`).toEqual(sorted);
      }
    }
    for (const attribute of Object.keys(ours.attributes)) expect(theirs?.attributes, name).toHaveProperty(attribute);
  };
  for (const [uid, shape] of own.classes) same(shape.name, shape, published.classes.get(uid));
  for (const [name, shape] of own.objects) same(name, shape, published.objects.get(name));
});

test("the validator finds what is missing, unknown, of another type or not in an enumeration", () => {
  const rules = ownRules();
  const good = event(sampleEntries()[0] ?? {});
  const { metadata: _metadata, ...lacking } = good;
  expect(validate(rules, lacking)).toEqual(["entity_management.metadata is missing"]);
  expect(validate(rules, { ...good, colour: "red" })).toEqual(["entity_management.colour is not of the schema"]);
  expect(validate(rules, { ...good, time: "now" })).toEqual(["entity_management.time is not timestamp_t"]);
  expect(validate(rules, { ...good, severity_id: 9 })).toEqual(["entity_management.severity_id has no value 9"]);
  expect(validate(rules, { ...good, actor: {} })).toEqual([expect.stringMatching(/actor has none of process, user/)]);
  expect(validate(rules, { ...good, class_uid: 1 })).toEqual(["there is no class 1"]);
  expect(validate(rules, { ...good, type_uid: 1 })).toEqual(["type_uid does not fit"]);
});

test("an event says where in the log it stands: index, leaf hash, origin, and the entry's own fields", () => {
  const at = "2026-11-20T02:14:09.120Z";
  const entry = {
    v: 1,
    type: "grant.closing",
    at,
    actor: "pe_0123456789ab",
    grant: "gr_0123456789ab",
    data: { cause: "expired" },
  };
  expect(event(entry)).toMatchObject({
    class_uid: 3004,
    activity_name: "Deactivate",
    time: Date.parse(at),
    status_detail: "expired",
    metadata: {
      uid: "glasskey.test/log#7",
      sequence: 7,
      event_code: "grant.closing",
      correlation_uid: "gr_0123456789ab",
    },
    unmapped: { log_index: 7, leaf_hash: LEAF, grant: "gr_0123456789ab", data: { cause: "expired" } },
  });
});

test("who did it is in every event, whatever its class, and no entry says where in the log it stands", () => {
  for (const entry of samples) {
    const { unmapped } = event({ ...entry, log_index: 1, leaf_hash: "00" });
    expect(unmapped, JSON.stringify(entry)).toMatchObject({
      ...{ actor: entry["actor"], log_index: 7, leaf_hash: LEAF },
    });
  }
});

test("no name of a person is in an event unless the sink says so, and then it stands beside the pseudonym", () => {
  const entry = { v: 1, type: "login.succeeded", at: "2026-11-20T02:14:09.120Z", actor: "pe_0123456789ab" };
  expect(JSON.stringify(event(entry))).not.toContain("ann");
  expect(event(entry, { pe_0123456789ab: "ann" })).toMatchObject({ user: { uid: "pe_0123456789ab", name: "ann" } });
  // A name that a prototype has is nobody's.
  expect(JSON.stringify(event({ ...entry, actor: "constructor" }, {}))).not.toContain("function");
});
