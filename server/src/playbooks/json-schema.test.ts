import { Ajv } from "ajv";
import fc from "fast-check";
import { readdir, readFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { describe, expect, test } from "vitest";
import type { JsonObject, JsonValue } from "../core/json.ts";
import { readDocument } from "./document.ts";
import { FAKE_KINDS, SMALL } from "./fixtures/folder.ts";
import { policySchemas, SCHEMAS } from "./json-schema.ts";
import { compilePolicy } from "./load.ts";
import { toJson } from "./shape.ts";

const root = join(import.meta.dirname, "../../..");
const ajv = new Ajv({ allErrors: true, strict: true, strictRequired: false, strictTypes: false });
const validators = Object.entries(policySchemas(["fake", "postgres", "ssh"])).map(([name, schema]) => ({
  name,
  fits: ajv.compile<JsonValue>(schema),
}));

/** What the schema of that file says about a text, as an editor would see it; "" where all is well. */
function schemaFaults(path: string, source: string): string {
  const kind = /^targets\//.test(path) ? "target" : /^playbooks\//.test(path) ? "playbook" : path.replace(".yaml", "");
  const fits = validators.find(({ name }) => name === kind)?.fits;
  const document = readDocument(path, source);
  if (fits === undefined || document.root === undefined) throw new Error(`${path}: no schema, or no YAML`);
  return fits(toJson(document.root)) ? "" : ajv.errorsText(fits.errors);
}

/** One good policy that uses every key of the language. */
const GOOD: Readonly<Record<string, JsonValue>> = {
  "policy.yaml": {
    reasons: { outage: "Something does not work", "data-loss": "Data is being lost" },
    zone: "Europe/Berlin",
    defaults: {
      ...{ approve: { within: "20m" }, time: { max: "1h", idle: "15m", extend: "2x30m" }, notify: "chat:all" },
      limit: { uses: 2, per: "7d", concurrent: 3, cooldown: "1h" },
      review: { by: { user: "sam" }, within: "2d" },
      drill: { every: "30d", on: "orders" },
    },
    forbid: [
      {
        rule: "weekend",
        why: "Frozen",
        who: { group: ["leads"] },
        target: { tag: "pci", name: ["orders"] },
        hours: { days: "sat" },
        zone: "UTC",
      },
    ],
  },
  "people.yaml": [
    { name: "ann", roles: ["requester"], groups: ["payments"], aliases: ["ann@shop.example"], notify: ["chat:ann"] },
    { name: "bob", roles: ["requester", "approver"], groups: ["payments", "leads"], enabled: true },
    { name: "carla", roles: ["approver"], groups: ["leads", "duty"] },
    { name: "sam", roles: ["security_officer"], secret: `scrypt$32768$8$1$${"a".repeat(22)}$${"b".repeat(43)}` },
  ],
  "oncall.yaml": { payments: ["ann"], nights: "unknown", duty: { source: "pagerduty:main", schedule: "P1" } },
  "targets/orders.yaml": { target: "orders", kind: "fake", summary: "Orders", tags: ["pci"], config: { host: "db" } },
  "playbooks/base.yaml": {
    ...{ template: "base", summary: "Look", target: "orders", scope: { role: "ro" }, who: { oncall: "payments" } },
    ...{ when: { reason: ["outage"] }, approve: { need: 0 }, notify: ["pager:duty"] },
  },
  "playbooks/short.yaml": {
    playbook: "short",
    extends: "base",
    time: { extend: "none" },
    limit: { uses: "none" },
    notify: "none",
  },
  "playbooks/whole.yaml": {
    ...{ playbook: "whole", summary: "Repair", target: "orders", scope: { role: "rw" } },
    who: { oncall: ["payments", "nights"], group: "payments", user: ["ann", "bob"] },
    when: {
      ...{ reason: ["outage", "data-loss"], incident: ["SEV1"], zone: "America/New_York" },
      hours: [
        { days: ["mon", "tue-fri"], from: "08:00", to: "18:00" },
        { days: "sat", from: "22:00", to: "24:00" },
      ],
    },
    approve: {
      need: 2,
      from: [{ group: "leads" }, { user: "carla" }],
      within: "15m",
      unanswered: { after: "10m", then: "open", for: "15m" },
    },
    time: { max: "45m", idle: "15m", extend: "2x30m" },
    limit: { uses: 2, per: "7d", concurrent: 1, cooldown: "12h" },
    notify: ["slack:incidents", "pagerduty:duty"],
    review: { by: { group: "leads", user: "sam" }, within: "1d12h" },
    drill: { every: "30d", on: "orders" },
    tests: [
      {
        allow: {
          who: "ann",
          oncall: ["payments"],
          incident: "SEV1",
          reason: "data-loss",
          for: "30m",
          approvedBy: ["bob", "carla"],
        },
      },
      {
        deny: {
          who: "ann",
          unknown: "incident",
          at: "2026-11-20T02:14:00+01:00",
          unsigned: 2,
          open: 1,
          overdue: 1,
          sinceLast: "1h",
        },
      },
    ],
  },
};

function compile(files: Readonly<Record<string, JsonValue>>): ReturnType<typeof compilePolicy> {
  // JSON is YAML: what is written here is read back as exactly this.
  const texts = Object.entries(files).map(([path, value]): [string, string] => [path, JSON.stringify(value)]);
  return compilePolicy({ files: new Map(texts), kinds: FAKE_KINDS });
}

/** Every place in a document, by path. */
function places(value: JsonValue, path: readonly (string | number)[] = []): readonly (readonly (string | number)[])[] {
  if (typeof value !== "object" || value === null) return [path];
  const inner = Object.entries(value).flatMap(([key, item]) =>
    places(item, [...path, Array.isArray(value) ? Number(key) : key]),
  );
  return [path, ...inner];
}

function changed(value: JsonValue, path: readonly (string | number)[], to: JsonValue | undefined): JsonValue {
  const [step, ...rest] = path;
  if (step === undefined || typeof value !== "object" || value === null) return to ?? null;
  if (rest.length === 0 && to !== undefined && !Array.isArray(value)) return Object.assign({}, value, { [step]: to });
  const entries = Object.entries(value).flatMap(([key, item]): [string, JsonValue][] => {
    if (key !== String(step)) return [[key, item]];
    return rest.length === 0 && to === undefined ? [] : [[key, changed(item, rest, to)]];
  });
  return Array.isArray(value) ? entries.map(([, item]) => item) : Object.fromEntries(entries);
}

/** Keys and their descriptions, at any depth. */
function keysOf(schema: JsonValue | undefined): readonly (readonly [string, string])[] {
  if (typeof schema !== "object" || schema === null || Array.isArray(schema)) return [];
  const inner = (schema as JsonObject)["properties"] as Record<string, JsonObject> | undefined;
  const own = Object.entries(inner ?? {}).flatMap(([key, value]) => {
    const description = value["description"];
    return [...(typeof description === "string" ? [[key, description] as const] : []), ...keysOf(value)];
  });
  const alternatives = (schema as JsonObject)["anyOf"];
  const options = Array.isArray(alternatives) ? (alternatives as JsonValue[]).flatMap((option) => keysOf(option)) : [];
  return [
    ...own,
    ...options,
    ...keysOf((schema as JsonObject)["items"]),
    ...keysOf((schema as JsonObject)["additionalProperties"]),
  ];
}

/** Told in the row of the key that holds them. */
const TOLD_ABOVE = /^(?:Names (?:of|or)|Tags of|Only `within`|As in a playbook)/;

test("docs/playbooks.md has a row for every key of every schema, in the schema's own words", async () => {
  const docs = await readFile(join(root, "docs/playbooks.md"), "utf8");
  const rows = docs.split("\n").filter((row) => row.startsWith("| `"));
  const keys = Object.values(policySchemas(["postgres", "ssh"])).flatMap((schema) => keysOf(schema));
  expect(keys.length).toBeGreaterThan(80);
  const absent = keys.filter(([key, description]) => {
    const row = new RegExp(`^\\| \`(?:[\\w.]+\\.)?${key}\``);
    return !TOLD_ABOVE.test(description) && !rows.some((text) => row.test(text) && text.includes(`| ${description}`));
  });
  expect(absent).toEqual([]);
});

describe("the JSON Schemas of policy files", () => {
  test("fit a policy that uses every key, and every example and fixture", async () => {
    const loaded = compile(GOOD);
    expect(loaded.ok ? [] : loaded.problems).toEqual([]);
    for (const [path, value] of Object.entries(GOOD)) expect(schemaFaults(path, JSON.stringify(value)), path).toBe("");
    for (const [path, text] of Object.entries(SMALL)) expect(schemaFaults(path, String(text)), path).toBe("");
    const folder = join(root, "examples/policy");
    const entries = await readdir(folder, { recursive: true, withFileTypes: true });
    const paths = entries
      .filter((entry) => entry.isFile() && entry.name.endsWith(".yaml"))
      .map((entry) => relative(folder, join(entry.parentPath, entry.name)))
      .filter((path) => /^(?:(?:targets|playbooks)\/)?[^./][^/]*$/.test(path));
    expect(paths.length).toBeGreaterThan(4);
    for (const path of paths) expect(schemaFaults(path, await readFile(join(folder, path), "utf8")), path).toBe("");
  });

  test("are committed as the code makes them", async () => {
    for (const name of SCHEMAS) {
      const committed: unknown = JSON.parse(await readFile(join(root, `contract/schemas/${name}.schema.json`), "utf8"));
      expect(committed, name).toEqual(policySchemas(["postgres", "ssh"])[name]);
    }
  });

  test("know each key of the good policy: a key that is misspelt there is refused by schema and loader alike", () => {
    for (const [path, value] of Object.entries(GOOD)) {
      for (const place of places(value)) {
        const key = place.at(-1);
        const free = place.some((step) => step === "config" || step === "scope") && key !== "config" && key !== "scope";
        if (typeof key !== "string" || free || (["reasons"].includes(String(place[0])) && place.length > 1)) continue;
        if (path === "oncall.yaml" && place.length === 1) continue; // rotas are named freely
        const at = place.slice(0, -1);
        const parent = at.reduce<JsonValue | undefined>(
          (node, step) => (node as Record<string, JsonValue>)[step],
          value,
        );
        const wrong = changed(value, at, { ...(parent as JsonObject), [`${key}x`]: 1 });
        expect(schemaFaults(path, JSON.stringify(wrong)), `${path} ${place.join(".")}`).not.toBe("");
        expect(compile({ ...GOOD, [path]: wrong }).ok, `${path} ${place.join(".")}`).toBe(false);
      }
    }
  });

  test("refuse, as the loader does, what is empty, of another type, or out of bounds", () => {
    const wrong: readonly (readonly [string, readonly (string | number)[], JsonValue])[] = [
      ...["who", "when", "approve", "time", "limit", "review", "drill", "notify", "tests", "scope", "summary"].flatMap(
        (key) => [null, [], "", true].map((value) => ["playbooks/whole.yaml", [key], value] as const),
      ),
      ...[{}, [], { oncall: [] }, { group: "" }, { user: ["ann", "ann"] }, { oncall: "Payments" }].map(
        (value) => ["playbooks/whole.yaml", ["who"], value] as const,
      ),
      ...[-1, 6, 0.5, "1", null].map((value) => ["playbooks/whole.yaml", ["approve", "need"], value] as const),
      ...[30, "30", "30 m", "1.5h", "", "30m1h", "m", null].map(
        (value) => ["playbooks/whole.yaml", ["time", "max"], value] as const,
      ),
      ...["30m", "0x30m", "2x", "100x1m", 2].map(
        (value) => ["playbooks/whole.yaml", ["time", "extend"], value] as const,
      ),
      ...["8:00", "24:30", 8, ""].map(
        (value) => ["playbooks/whole.yaml", ["when", "hours", 0, "from"], value] as const,
      ),
      ...["slack", "Slack:x", "slack:", ":x", 1].map((value) => ["playbooks/whole.yaml", ["notify"], value] as const),
      ["playbooks/whole.yaml", ["approve", "unanswered", "then"], "close"],
      ["playbooks/whole.yaml", ["limit"], {}],
      ["playbooks/whole.yaml", ["extends"], ["base"]],
      ["playbooks/base.yaml", ["extends"], "base"],
      ["people.yaml", [0, "roles"], ["root"]],
      ["people.yaml", [1, "enabled"], "yes"],
      ["people.yaml", [0, "name"], "аnn"],
      ["people.yaml", [3, "secret"], "hunter2"],
      ["oncall.yaml", ["payments"], "ann"],
      ["policy.yaml", ["reasons"], {}],
      ["policy.yaml", ["zone"], "+01:00"],
      ["policy.yaml", ["defaults", "who"], { user: "ann" }],
      ["policy.yaml", ["forbid", 0, "who"], {}],
      ["targets/orders.yaml", ["kind"], "fakes"],
      ["targets/orders.yaml", ["config"], "db"],
    ];
    for (const [path, place, value] of wrong) {
      const file = changed(GOOD[path] ?? null, place, value);
      const what = `${path} ${place.join(".")} ${JSON.stringify(value)}`;
      expect(schemaFaults(path, JSON.stringify(file)), what).not.toBe("");
      expect(compile({ ...GOOD, [path]: file }).ok, what).toBe(false);
    }
  });

  test("fit whatever the loader accepts, however the files are changed", { timeout: 120_000 }, () => {
    const everywhere = Object.entries(GOOD).flatMap(([path, value]) => places(value).map((place) => ({ path, place })));
    const values = Object.values(GOOD).flatMap((value) => places(value).map((place) => at(value, place)));
    const anything = fc.oneof(
      fc.constantFrom(...values),
      fc.constantFrom<JsonValue>(
        "none",
        "ann",
        "payments",
        "5m",
        "1d",
        "SEV2",
        "leads",
        0,
        1,
        3,
        null,
        [],
        {},
        true,
        "outage",
      ),
      fc.constant(undefined),
    );
    let accepted = 0;
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom(...everywhere), anything), { minLength: 1, maxLength: 2 }),
        (changes) => {
          const files = { ...GOOD };
          for (const [{ path, place }, value] of changes) {
            if (place.length > 0) files[path] = changed(files[path] ?? null, place, value);
          }
          if (!compile(files).ok) return;
          accepted++;
          for (const [path, value] of Object.entries(files))
            expect(schemaFaults(path, JSON.stringify(value)), path).toBe("");
        },
      ),
      { numRuns: 150 },
    );
    expect(accepted).toBeGreaterThan(5); // else it would say nothing
  });
});

function at(value: JsonValue, path: readonly (string | number)[]): JsonValue {
  return path.reduce<JsonValue>((node, step) => (node as Record<string, JsonValue>)[step] ?? null, value);
}
