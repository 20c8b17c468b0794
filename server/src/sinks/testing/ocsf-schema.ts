import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** What a class or an object requires: the part of OCSF's schema that a validator needs. */
export interface Shape {
  readonly attributes: Readonly<Record<string, Attribute>>;
  readonly atLeastOne?: readonly string[];
  readonly justOne?: readonly string[];
}
export interface Attribute {
  /** A scalar such as `string_t`, or the name of an object. */
  readonly type: string;
  readonly required?: true;
  readonly array?: true;
  /** Numbers or texts that it may be. */
  readonly oneOf?: readonly string[];
  /** What stands beside a number, by number; where it is known. */
  readonly captions?: Readonly<Record<string, string>>;
  /** The attribute that has the caption of this one's number. */
  readonly sibling?: string;
}
export interface Schema {
  readonly version: string;
  readonly classes: ReadonlyMap<number, Shape & { readonly name: string }>;
  readonly objects: ReadonlyMap<string, Shape>;
}

interface Source {
  readonly uid?: number;
  readonly name: string;
  readonly extends?: string;
  readonly category?: string;
  readonly observable?: number;
  readonly attributes: Readonly<Record<string, SourceAttribute>>;
  readonly constraints?: { readonly at_least_one?: readonly string[]; readonly just_one?: readonly string[] };
}
interface SourceAttribute {
  readonly type?: string;
  readonly requirement?: string;
  readonly is_array?: boolean;
  readonly enum?: Readonly<Record<string, { readonly caption?: string }>>;
  readonly sibling?: string;
  readonly profile?: string | null;
  readonly observable?: number;
}

/**
 * Compiles a checkout of OCSF's schema (https://github.com/ocsf/ocsf-schema) for events without profiles and extensions:
 * follows `extends`, merges each attribute over the dictionary's, and leaves out what a profile would add.
 */
export function compileSchema(folder: string): Schema {
  const read = (...path: string[]): unknown => JSON.parse(readFileSync(join(folder, ...path), "utf8"));
  const { attributes: dictionary, types } = read("dictionary.json") as {
    attributes: Record<string, SourceAttribute>;
    types: { attributes: Record<string, SourceAttribute> };
  };
  const { attributes: categories } = read("categories.json") as { attributes: Record<string, { uid: number }> };
  const sources = (top: string): Map<string, Source> => {
    const files = readdirSync(join(folder, top), { recursive: true, encoding: "utf8" }).filter((f) =>
      f.endsWith(".json"),
    );
    return new Map(files.map((file) => read(top, file) as Source).map((source) => [source.name, source]));
  };

  const resolve = (all: ReadonlyMap<string, Source>, source: Source): Source => {
    const base = source.extends === undefined ? undefined : all.get(source.extends);
    if (base === undefined || base === source) return source;
    const above = resolve(all, base);
    const attributes: Record<string, SourceAttribute> = { ...above.attributes };
    for (const [name, attribute] of Object.entries(source.attributes)) {
      const inherited = attributes[name];
      const values = { ...inherited?.enum, ...attribute.enum };
      attributes[name] = { ...inherited, ...attribute, ...(Object.keys(values).length > 0 ? { enum: values } : {}) };
    }
    const category = source.category ?? above.category;
    const constraints = source.constraints ?? above.constraints;
    return {
      ...{ ...source, attributes },
      ...(category === undefined ? {} : { category }),
      ...(constraints === undefined ? {} : { constraints }),
    };
  };

  const shapeOf = ({ attributes, constraints }: Source): Shape => {
    const own: Record<string, Attribute> = {};
    for (const [name, attribute] of Object.entries(attributes)) {
      if (name === "$include" || (attribute.profile ?? null) !== null) continue;
      const known = dictionary[name];
      const values = { ...known?.enum, ...attribute.enum };
      const sibling = attribute.sibling ?? known?.sibling;
      own[name] = {
        type: attribute.type ?? known?.type ?? "?",
        ...(attribute.requirement === "required" ? { required: true } : {}),
        ...((attribute.is_array ?? known?.is_array) === true ? { array: true } : {}),
        ...(Object.keys(values).length > 0 ? { oneOf: Object.keys(values), captions: captionsOf(values) } : {}),
        ...(sibling === undefined ? {} : { sibling }),
      };
    }
    return {
      attributes: own,
      ...(constraints?.at_least_one === undefined ? {} : { atLeastOne: constraints.at_least_one }),
      ...(constraints?.just_one === undefined ? {} : { justOne: constraints.just_one }),
    };
  };

  const events = sources("events");
  const objects = sources("objects");
  const classes = new Map<number, Shape & { name: string }>();
  for (const source of events.values()) {
    const whole = resolve(events, source);
    if (whole.uid === undefined && whole.name !== "base_event") continue; // only there to be extended
    const category = categories[whole.category ?? ""]?.uid ?? 0;
    const uid = whole.name === "base_event" ? 0 : category * 1_000 + (whole.uid ?? 0);
    const shape = shapeOf(whole);
    const fixed = (name: string, value: number): Record<string, Attribute> => {
      const attribute = shape.attributes[name];
      return attribute === undefined ? {} : { [name]: { ...attribute, oneOf: [String(value)] } };
    };
    const attributes = { ...shape.attributes, ...fixed("class_uid", uid), ...fixed("category_uid", category) };
    classes.set(uid, { ...shape, name: whole.name, attributes });
  }
  // Which observables there are is said where each is defined: at a type, at an attribute, at an object.
  const definers = [...Object.values(types.attributes), ...Object.values(dictionary), ...objects.values()];
  const observable = definers.flatMap((source) => (source.observable === undefined ? [] : [String(source.observable)]));
  const shapes = new Map([...objects.values()].map((source) => [source.name, shapeOf(resolve(objects, source))]));
  const known = shapes.get("observable");
  const kind = known?.attributes["type_id"];
  if (known !== undefined && kind !== undefined) {
    const typeId = { ...kind, oneOf: [...(kind.oneOf ?? []), ...observable] };
    shapes.set("observable", { ...known, attributes: { ...known.attributes, type_id: typeId } });
  }
  return {
    version: (read("version.json") as { version: string }).version,
    classes,
    objects: shapes,
  };
}

function captionsOf(values: NonNullable<SourceAttribute["enum"]>): Record<string, string> {
  return Object.fromEntries(Object.entries(values).map(([value, { caption }]) => [value, caption ?? ""]));
}

const SCALARS: Readonly<Record<string, (value: unknown) => boolean>> = {
  integer_t: (value) => Number.isInteger(value),
  long_t: (value) => Number.isSafeInteger(value),
  timestamp_t: (value) => Number.isSafeInteger(value) && Number(value) > 0,
  float_t: (value) => typeof value === "number",
  boolean_t: (value) => typeof value === "boolean",
  json_t: () => true,
  port_t: (value) => Number.isInteger(value) && Number(value) >= 0 && Number(value) <= 65_535,
};

/** What is wrong with an event: unknown attributes, missing ones, wrong types, numbers that an enumeration does not have. */
export function validate(schema: Schema, event: Readonly<Record<string, unknown>>): readonly string[] {
  const uid = Number(event["class_uid"]);
  const shape = schema.classes.get(uid);
  if (shape === undefined) return [`there is no class ${uid}`];
  const problems: string[] = [];
  check(schema, shape, event, shape.name, problems);
  if (event["type_uid"] !== uid * 100 + Number(event["activity_id"])) problems.push("type_uid does not fit");
  return problems;
}

function check(
  schema: Schema,
  { attributes, atLeastOne, justOne }: Shape,
  value: Readonly<Record<string, unknown>>,
  path: string,
  problems: string[],
): void {
  for (const [name, attribute] of Object.entries(attributes)) {
    if (attribute.required === true && value[name] === undefined) problems.push(`${path}.${name} is missing`);
  }
  const present = (names: readonly string[]): number => names.filter((name) => value[name] !== undefined).length;
  if (atLeastOne !== undefined && present(atLeastOne) === 0)
    problems.push(`${path} has none of ${atLeastOne.join(", ")}`);
  if (justOne !== undefined && present(justOne) !== 1)
    problems.push(`${path} has not just one of ${justOne.join(", ")}`);
  for (const [name, inner] of Object.entries(value)) {
    const attribute = attributes[name];
    const place = `${path}.${name}`;
    if (attribute === undefined) problems.push(`${place} is not of the schema`);
    else if (attribute.array === true) {
      if (!Array.isArray(inner)) problems.push(`${place} is not a list`);
      else for (const [i, element] of inner.entries()) checkOne(schema, attribute, element, `${place}[${i}]`, problems);
    } else checkOne(schema, attribute, inner, place, problems);
    if (attribute?.sibling === undefined || attribute.oneOf === undefined) continue;
    const caption = value[attribute.sibling];
    // 99 is "other": then the text must say what. Every other number has its own text.
    if (inner === 99 && typeof caption !== "string") problems.push(`${place} is 99, and its text does not say what`);
    const known = attribute.captions?.[String(inner)];
    if (inner !== 99 && known !== undefined && caption !== undefined && caption !== known) {
      problems.push(`${place} is ${String(inner)}, which is "${known}" and not ${JSON.stringify(caption)}`);
    }
  }
}

function checkOne(schema: Schema, { type, oneOf }: Attribute, value: unknown, path: string, problems: string[]): void {
  if (oneOf !== undefined && !oneOf.includes(String(value))) problems.push(`${path} has no value ${String(value)}`);
  if (type === "object") return; // anything: `unmapped`
  if (type.endsWith("_t")) {
    const fits = SCALARS[type] ?? ((scalar: unknown) => typeof scalar === "string");
    if (!fits(value)) problems.push(`${path} is not ${type}`);
    return;
  }
  const shape = schema.objects.get(type);
  if (shape === undefined) problems.push(`${path} is of an unknown object ${type}`);
  else if (typeof value !== "object" || value === null || Array.isArray(value))
    problems.push(`${path} is not an object`);
  else check(schema, shape, value as Record<string, unknown>, path, problems);
}
