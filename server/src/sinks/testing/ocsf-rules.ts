import type { Attribute, Schema, Shape } from "./ocsf-schema.ts";

/**
 * What OCSF 1.8.0 asks of the classes and objects that we use, as far as we use them, so that `npm test` can check our
 * events without the published schema. Where a checkout of it is given, ocsf.test.ts holds this table against it.
 *
 * A line is an attribute: `name` with `!` where it is required, its type with `[]` for a list, the numbers that it may
 * have, and `~` before the attribute that has the text of the number. `any of` and `one of` are constraints.
 */
const EVERY_CLASS = `
  activity_name string_t
  category_name string_t
  class_name string_t
  message string_t
  metadata! metadata
  severity string_t
  severity_id! integer_t 0,1,2,3,4,5,6,99 ~severity
  time! timestamp_t
  type_name string_t
  type_uid! long_t ~type_name
  unmapped object`;
const WITH_STATUS = `
  status string_t
  status_detail string_t
  status_id integer_t 0,1,2,99 ~status`;

const CLASSES: Readonly<Record<number, readonly [name: string, lines: string]>> = {
  0: ["base_event", "activity_id! integer_t 0,99 ~activity_name"],
  2004: [
    "detection_finding",
    `activity_id! integer_t 0,1,2,3,99 ~activity_name
     finding_info! finding_info
     is_alert boolean_t
     status string_t
     status_detail string_t
     status_id integer_t 0,1,2,3,4,5,6,99 ~status`,
  ],
  3001: [
    "account_change",
    `${WITH_STATUS}
     activity_id! integer_t 0,1,2,3,4,5,6,7,8,9,10,11,12,99 ~activity_name
     actor actor
     observables observable[]
     user! user`,
  ],
  3002: [
    "authentication",
    `${WITH_STATUS}
     any of service dst_endpoint
     activity_id! integer_t 0,1,2,3,4,5,6,7,99 ~activity_name
     is_remote boolean_t
     observables observable[]
     service service
     session session
     user! user`,
  ],
  3004: [
    "entity_management",
    `${WITH_STATUS}
     activity_id! integer_t 0,1,2,3,4,5,6,7,8,9,10,11,12,13,99 ~activity_name
     actor actor
     entity! managed_entity
     observables observable[]`,
  ],
  6002: [
    "application_lifecycle",
    `${WITH_STATUS}
     activity_id! integer_t 0,1,2,3,4,5,6,7,8,99 ~activity_name
     app! product`,
  ],
  6003: [
    "api_activity",
    `${WITH_STATUS}
     activity_id! integer_t 0,1,2,3,4,99 ~activity_name
     actor! actor
     api! api
     observables observable[]
     src_endpoint! network_endpoint`,
  ],
  6005: [
    "datastore_activity",
    `${WITH_STATUS}
     any of database databucket table
     activity_id! integer_t 0,1,2,3,4,5,6,7,8,9,10,99 ~activity_name
     actor! actor
     databucket databucket
     observables observable[]
     src_endpoint! network_endpoint
     type string_t
     type_id integer_t 0,1,2,3,99 ~type`,
  ],
};

const OBJECTS: Readonly<Record<string, string>> = {
  actor: `any of process user invoked_by session app_name app_uid
    user user`,
  api: `operation! string_t
    service service`,
  databucket: `any of name uid
    name string_t
    type string_t
    type_id! integer_t 0,1,2,3,99 ~type
    uid resource_uid_t`,
  finding_info: `title string_t
    uid! string_t`,
  managed_entity: `any of name uid device group org policy user
    name string_t
    type string_t
    type_id integer_t 0,1,2,3,4,5,6,7,99 ~type
    uid string_t
    version string_t`,
  metadata: `correlation_uid string_t
    event_code string_t
    log_name string_t
    original_time string_t
    product! product
    sequence integer_t
    uid string_t
    version! string_t`,
  network_endpoint: `any of ip uid name hostname svc_name instance_uid interface_uid interface_name domain
    svc_name string_t`,
  observable: `name string_t
    type string_t
    type_id! integer_t 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,19,20,21,22,23,24,25,26,27,30,36,37,42,45,99 ~type
    value string_t`,
  product: `any of name uid
    name string_t
    vendor_name string_t
    version string_t`,
  service: `any of name uid
    name string_t`,
  session: `is_remote boolean_t
    uid string_t`,
  user: `any of account name uid
    domain string_t
    name username_t
    type string_t
    type_id integer_t 0,1,2,3,4,99 ~type
    uid string_t`,
};

/** The table above in the form that the validator takes. */
export function ownRules(): Schema {
  const classes = Object.entries(CLASSES).map(([number, [name, lines]]) => {
    const uid = Number(number);
    const own = `class_uid! integer_t ${uid} ~class_name\ncategory_uid! integer_t ${Math.floor(uid / 1_000)} ~category_name`;
    return [uid, { name, ...shapeOf(`${EVERY_CLASS}\n${own}\n${lines}`) }] as const;
  });
  const objects = Object.entries(OBJECTS).map(([name, lines]) => [name, shapeOf(lines)] as const);
  return { version: "1.8.0", classes: new Map(classes), objects: new Map(objects) };
}

function shapeOf(lines: string): Shape {
  const attributes: Record<string, Attribute> = {};
  let atLeastOne: readonly string[] | undefined;
  for (const line of lines.split("\n").map((text) => text.trim())) {
    if (line === "") continue;
    if (line.startsWith("any of ")) {
      atLeastOne = line.slice("any of ".length).split(" ");
      continue;
    }
    const [, name = "", required, type = "", list, numbers, sibling] =
      /^(\w+)(!)? (\w+)(\[\])?(?: ([\d,]+))?(?: ~(\w+))?$/.exec(line) ?? [];
    if (name === "") throw new Error(`not a rule: ${line}`);
    attributes[name] = {
      type,
      ...(required === undefined ? {} : { required: true }),
      ...(list === undefined ? {} : { array: true }),
      ...(numbers === undefined ? {} : { oneOf: numbers.split(",") }),
      ...(sibling === undefined ? {} : { sibling }),
    };
  }
  return { attributes, ...(atLeastOne === undefined ? {} : { atLeastOne }) };
}
