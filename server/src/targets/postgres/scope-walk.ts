/**
 * From a statement's parse tree to facts: what it does, to which relations, with which functions and parameters.
 * Pure, and without any opinion on what a playbook allows.
 *
 * The walk is by shape, so that it cannot miss a place: every object in the tree is visited, an object with `relname` is a
 * relation, one with `funcname` a call, and a key that ends in `Stmt` a statement, however deep it stands.
 */
import type { JsonObject, JsonValue } from "../../core/json.ts";
import { field, list, PARTS, statementName, STATEMENTS, text, type StatementClass } from "./scope-classes.ts";
import { classOfFunction, neverCalled, SEQUENCE_WRITERS } from "./scope-functions.ts";
import { splitIdentifiers } from "./scope-parameters.ts";

/** `via` is the command in which the fact was found, in SQL words. */
export type Fact =
  | { fact: "class"; class: StatementClass; via: string; what?: string }
  /** `name` is undefined for a command on relations that it does not name, such as VACUUM without a table. */
  | { fact: "relation"; access: "read" | "write"; schema: string | undefined; name: string | undefined; via: string }
  | { fact: "function"; schema: string | undefined; name: string; via: string }
  /** `value` is undefined where it is not a constant. */
  | { fact: "parameter"; name: string; value: string | undefined; via: string }
  | { fact: "forbidden"; reason: string; via: string };

/** Deeper trees are refused. One level of SQL nesting is two to four levels of the tree. */
const MAX_DEPTH = 4_000;

/** Most steps outwards in search of a WITH that defines a name, in one statement: a nest of them times its relations. */
const MAX_LOOKUPS = 300_000;

/** Thrown by {@link factsOf}. */
export class TooDeep extends Error {}

/** Common table expressions of one WITH: those before `before` hide relations, and so do those of the WITHs around it. */
interface Hidden {
  readonly positions: ReadonlyMap<string, number>;
  readonly before: number;
  readonly outer: Hidden | undefined;
}

interface Place {
  readonly hidden: Hidden | undefined;
  readonly via: string;
  readonly depth: number;
  /** Shared by all places of a statement. */
  readonly work: { lookups: number };
  /** Inside of a view or rule, whose text runs again when it is used. */
  readonly definition: boolean;
  /** The one setting that `FROM pg_settings WHERE name = '…'` selects; see {@link settingSelected}. */
  readonly setting: string | undefined;
}

type Sink = (fact: Fact) => void;

/** All facts of one statement, in the order of the tree. @throws TooDeep */
export function factsOf(statement: JsonObject): readonly Fact[] {
  const facts: Fact[] = [];
  const place: Place = {
    hidden: undefined,
    via: "",
    depth: 0,
    work: { lookups: 0 },
    definition: false,
    setting: undefined,
  };
  const kinds = Object.keys(statement);
  if (kinds.length !== 1 || !kinds[0]?.endsWith("Stmt")) {
    return [{ fact: "forbidden", via: "the statement", reason: "the gateway does not know this kind of statement" }];
  }
  visit(statement, place, (fact) => facts.push(fact));
  return facts;
}

function visit(value: JsonValue | undefined, place: Place, sink: Sink): void {
  if (typeof value !== "object" || value === null) return;
  if (place.depth > MAX_DEPTH) throw new TooDeep();
  const inner = { ...place, depth: place.depth + 1 };
  if (Array.isArray(value)) {
    for (const item of value as readonly JsonValue[]) visit(item, inner, sink);
    return;
  }
  visitObject(value as JsonObject, inner, sink);
}

function visitObject(node: JsonObject, place: Place, sink: Sink, skip: readonly string[] = []): void {
  if (typeof node["relname"] === "string") {
    relation(node, "read", place, sink);
    return;
  }
  if (node["funcname"] !== undefined) call(node, place, sink);
  let here = node["withClause"] === undefined ? place : withExpressions(node["withClause"], place, sink);
  if (node["targetList"] !== undefined || node["fromClause"] !== undefined) {
    const setting = settingSelected(node, here);
    if (setting !== here.setting) here = { ...here, setting };
  }
  for (const [key, child] of Object.entries(node)) {
    // FOR UPDATE OF names aliases of this very FROM, not relations
    if (key === "withClause" || key === "lockedRels" || skip.includes(key)) continue;
    if (key === "intoClause" || key === "into") {
      into(child, here, sink);
    } else if (key.endsWith("Stmt") && isUpper(key) && !PARTS.has(key)) {
      statement(key, child, here, sink);
    } else {
      if (key === "ColumnRef") attributeCall(list(field(child, "fields")).slice(1), here, sink);
      else if (key === "A_Indirection") attributeCall(list(field(child, "indirection")), here, sink);
      visit(child, here, sink);
    }
  }
}

function isUpper(key: string): boolean {
  const code = key.charCodeAt(0);
  return code >= 65 && code <= 90;
}

function statement(kind: string, value: JsonValue, outer: Place, sink: Sink): void {
  const via = statementName(kind);
  const rule = STATEMENTS[kind];
  if (rule === undefined || typeof value !== "object" || value === null || Array.isArray(value)) {
    sink({ fact: "forbidden", via, reason: `the gateway does not know this kind of statement (${kind})` });
    return;
  }
  const node = value as JsonObject;
  const place: Place = { ...outer, via, depth: outer.depth + 1 };
  const why = rule.never?.(node);
  if (why !== undefined) {
    sink({ fact: "forbidden", via, reason: why });
    return;
  }
  for (const cls of rule.classes(node)) sink({ fact: "class", class: cls, via });
  for (const name of rule.writes ?? []) written(node[name], place, sink);
  const skip = [...(rule.writes ?? []), ...(SPECIAL[kind]?.(node, place, sink) ?? [])];
  visitObject(node, kind === "ViewStmt" || kind === "RuleStmt" ? { ...place, definition: true } : place, sink, skip);
}

/** What single kinds of statements need beyond their rule. Each returns the fields that it has dealt with. */
const SPECIAL: Readonly<Record<string, (node: JsonObject, place: Place, sink: Sink) => readonly string[]>> = {
  VariableSetStmt: (node, place, sink) => {
    set(node, place.via, sink);
    return [];
  },
  InsertStmt: (node, place, sink) => {
    // INSERT … VALUES is a SelectStmt in the tree, but nobody would call it a SELECT.
    const source = field(node["selectStmt"], "SelectStmt");
    if (field(source, "valuesLists") === undefined) return [];
    visit(source, node["withClause"] === undefined ? place : withNames(node["withClause"], place), sink);
    return ["selectStmt"];
  },
  CopyStmt: (node, place, sink) => {
    if (node["relation"] !== undefined) {
      relation(node["relation"], node["is_from"] === true ? "write" : "read", place, sink);
    }
    return ["relation"];
  },
  LockStmt: (node, place, sink) => {
    const weak = node["mode"] === 1 || node["mode"] === 2; // ACCESS SHARE (what reading takes) and ROW SHARE
    for (const item of list(node["relations"])) {
      relation(field(item, "RangeVar"), weak ? "read" : "write", place, sink);
    }
    return ["relations"];
  },
  TruncateStmt: cascade,
  DropStmt: (node, place, sink) => {
    const type = text(node["removeType"]);
    if (type === "OBJECT_SCHEMA") everyRelation(place, sink);
    const part = DROPPED_RELATIONS[type];
    if (part !== undefined) {
      for (const item of list(node["objects"])) {
        const names = list(field(field(item, "List"), "items")).map((name) =>
          text(field(field(name, "String"), "sval")),
        );
        const path = part === "whole" ? names : names.slice(0, -1); // a trigger's last name is its own
        sink({ fact: "relation", access: "write", schema: path.at(-2), name: path.at(-1), via: place.via });
      }
    }
    return cascade(node, place, sink);
  },
  VacuumStmt: (node, place, sink) => {
    if (list(node["rels"]).length === 0) everyRelation(place, sink);
    return [];
  },
  ReindexStmt: unnamed,
  ClusterStmt: unnamed,
  GrantStmt: (node, place, sink) => {
    if (node["targtype"] !== "ACL_TARGET_OBJECT") everyRelation(place, sink);
    return [];
  },
  AlterDefaultPrivilegesStmt: unnamed,
  CreateDomainStmt: (node, place, sink) => named(node["domainname"], place, sink),
  CreateEnumStmt: (node, place, sink) => named(node["typeName"], place, sink),
  CreateRangeStmt: (node, place, sink) => named(node["typeName"], place, sink),
  CompositeTypeStmt: (node, place, sink) => {
    reserved(text(field(node["typevar"], "relname")), place, sink);
    return [];
  },
  DefineStmt: (node, place, sink) => (node["kind"] === "OBJECT_TYPE" ? named(node["defnames"], place, sink) : []),
  RenameStmt: (node, place, sink) => {
    reserved(text(node["newname"]), place, sink);
    if (node["renameType"] === "OBJECT_SCHEMA") everyRelation(place, sink); // each name in it comes to mean another
    return [];
  },
  CreateStmt: (node, place, sink) => {
    reserved(text(field(node["relation"], "relname")), place, sink);
    return [];
  },
  ViewStmt: (node, place, sink) => {
    reserved(text(field(node["view"], "relname")), place, sink);
    return [];
  },
};

const DROPPED_RELATIONS: Readonly<Record<string, "whole" | "owner">> = {
  OBJECT_TABLE: "whole",
  OBJECT_VIEW: "whole",
  OBJECT_MATVIEW: "whole",
  OBJECT_INDEX: "whole",
  OBJECT_SEQUENCE: "whole",
  OBJECT_TRIGGER: "owner",
  OBJECT_RULE: "owner",
  OBJECT_POLICY: "owner",
};

function cascade(node: JsonObject, place: Place, sink: Sink): readonly string[] {
  if (node["behavior"] === "DROP_CASCADE") everyRelation(place, sink);
  return [];
}

function unnamed(node: JsonObject, place: Place, sink: Sink): readonly string[] {
  if (node["relation"] === undefined) everyRelation(place, sink);
  return [];
}

function everyRelation(place: Place, sink: Sink): void {
  sink({ fact: "relation", access: "write", schema: undefined, name: undefined, via: place.via });
}

/**
 * A relation with the name of one of PostgreSQL's own would make catalog queries of clients mean something else; and one
 * that is called like a type that {@link isCastTo} takes as PostgreSQL's would be a type itself, found first in pg_temp.
 */
function reserved(name: string, place: Place, sink: Sink): void {
  if (TEXT_TYPES.has(name) || REGCLASS.has(name)) {
    sink({ fact: "forbidden", via: place.via, reason: `${name} is the name of one of PostgreSQL's own types` });
  }
  if (name.startsWith("pg_")) {
    sink({ fact: "forbidden", via: place.via, reason: `names that start with pg_ belong to PostgreSQL (${name})` });
  }
}

function named(path: JsonValue | undefined, place: Place, sink: Sink): readonly string[] {
  reserved(text(field(field(list(path).at(-1), "String"), "sval")), place, sink);
  return [];
}

function into(value: JsonValue | undefined, place: Place, sink: Sink): void {
  sink({ fact: "class", class: "create", via: place.via });
  reserved(text(field(field(value, "rel"), "relname")), place, sink);
  relation(field(value, "rel"), "write", place, sink);
}

/** A target: a relation, or a list of them. Common table expressions never hide the target of a change. */
function written(value: JsonValue | undefined, place: Place, sink: Sink): void {
  if (typeof value !== "object" || value === null) return;
  if (Array.isArray(value)) {
    for (const item of value as readonly JsonValue[]) written(item, place, sink);
    return;
  }
  if (field(value, "relname") !== undefined) relation(value, "write", place, sink);
  else for (const child of Object.values(value as JsonObject)) written(child, place, sink);
}

function relation(value: JsonValue | undefined, access: "read" | "write", place: Place, sink: Sink): void {
  const name = text(field(value, "relname"));
  const temporary = field(value, "relpersistence") === "t";
  const schema = text(field(value, "schemaname")) || (temporary ? "pg_temp" : undefined);
  if (access === "read" && schema === undefined && isHidden(place, name)) return;
  if (name === "pg_settings" && (access === "write" || place.definition)) {
    // The view has a rule that turns UPDATE into set_config(); a view over it would inherit the rule.
    const reason = "changing pg_settings sets parameters that the gateway cannot check; use SET";
    sink({ fact: "forbidden", via: place.via, reason });
    return;
  }
  sink({ fact: "relation", access, schema, name, via: place.via });
}

/** Visits the expressions of WITH and returns the place in which their names hide relations. */
function withExpressions(clause: JsonValue | undefined, place: Place, sink: Sink): Place {
  const inside = withNames(clause, place);
  if (inside.hidden === undefined) return place;
  const recursive = field(clause, "recursive") === true;
  for (const [at, item] of list(field(clause, "ctes")).entries()) {
    const hidden = recursive ? inside.hidden : { ...inside.hidden, before: at };
    visit(item, { ...place, hidden, setting: undefined }, sink);
  }
  return inside;
}

function withNames(clause: JsonValue | undefined, place: Place): Place {
  const expressions = list(field(clause, "ctes"));
  const names = expressions.map((item) => text(field(field(item, "CommonTableExpr"), "ctename")));
  const positions = new Map(names.map((name, at) => [name, at]));
  return { ...place, hidden: { positions, before: names.length, outer: place.hidden } };
}

function isHidden(place: Place, name: string): boolean {
  for (let scope = place.hidden; scope !== undefined; scope = scope.outer) {
    if (++place.work.lookups > MAX_LOOKUPS) throw new TooDeep();
    const position = scope.positions.get(name);
    if (position !== undefined && position < scope.before) return true;
  }
  return false;
}

function call(node: JsonObject, place: Place, sink: Sink): void {
  const path = list(node["funcname"]).map((name) => text(field(field(name, "String"), "sval")));
  const [schema, name = ""] = [path.at(-2), path.at(-1)];
  const inputs = list(node["args"]);
  const via = place.via;
  const why = neverCalled(schema, name, inputs.length);
  if (why !== undefined) {
    sink({ fact: "forbidden", via, reason: `${name}() is refused: ${why}` });
    return;
  }
  sink({ fact: "function", schema, name, via });
  const cls = classOfFunction(name);
  if (cls !== undefined) sink({ fact: "class", class: cls, via, what: `${name}()` });
  if (name === "set_config") setConfig(inputs, place, sink);
  if (SEQUENCE_WRITERS.has(name)) {
    const path = sequenceName(inputs[0]);
    sink({ fact: "relation", access: "write", schema: path?.at(-2), name: path?.at(-1), via });
  }
}

/** `(row).f` and `t.f` call the function f where there is no such column, so these names are checked as well. */
function attributeCall(fields: readonly JsonValue[], place: Place, sink: Sink): void {
  for (const item of fields) {
    const name = text(field(field(item, "String"), "sval"));
    const why = name === "" ? undefined : neverCalled(undefined, name, 1);
    if (why !== undefined) {
      sink({
        fact: "forbidden",
        via: place.via,
        reason: `${name} may be a function's name here, and is refused: ${why}`,
      });
      continue;
    }
    const cls = name === "" ? undefined : classOfFunction(name);
    if (cls !== undefined) sink({ fact: "class", class: cls, via: place.via, what: name });
    if (SEQUENCE_WRITERS.has(name)) everyRelation(place, sink);
  }
}

function set(node: JsonObject, via: string, sink: Sink): void {
  const name = text(node["name"]);
  const parts = list(node["args"]);
  switch (text(node["kind"])) {
    case "VAR_RESET_ALL": // leaves role and session_authorization alone, and every other one as the session began
      return;
    case "VAR_RESET":
    case "VAR_SET_DEFAULT":
      // back to what the session began with, which was checked then; only who the session is stays out of reach
      sink({ fact: "parameter", name, value: RESET_VALUES[name.toLowerCase()] ?? "", via: `RE${via}` });
      return;
    case "VAR_SET_VALUE": {
      const values = parts.map((part) => constant(part));
      const known = values.every((value) => value !== undefined);
      const quoted = name.toLowerCase() === "search_path"; // each element of SET is one name, whatever it contains
      const value = values.map((item) => (quoted ? `"${item?.replaceAll('"', '""')}"` : item)).join(", ");
      sink({ fact: "parameter", name, value: known ? value : undefined, via });
      return;
    }
    case "VAR_SET_MULTI":
      if (name === "TRANSACTION" || name === "SESSION CHARACTERISTICS") {
        for (const part of parts) {
          sink({ fact: "parameter", name: text(field(field(part, "DefElem"), "defname")), value: "", via });
        }
        return;
      }
      if (name === "TRANSACTION SNAPSHOT") return; // which rows are seen, not who sees them
      break;
    default:
      break;
  }
  sink({ fact: "forbidden", via, reason: "the gateway does not know this form of SET" });
}
const RESET_VALUES: Readonly<Record<string, string>> = { client_encoding: "UTF8", standard_conforming_strings: "on" };

function setConfig(inputs: readonly JsonValue[], place: Place, sink: Sink): void {
  const name = string(inputs[0]) ?? (columnName(inputs[0]) === "name" ? place.setting : undefined);
  if (name === undefined || inputs.length !== 3) {
    sink({
      fact: "forbidden",
      via: place.via,
      reason: "set_config() with a name that is not a constant cannot be checked",
    });
    return;
  }
  sink({ fact: "parameter", name, value: constant(inputs[1]), via: "set_config()" });
}

/**
 * pg_dump sets a parameter only if the server has it: `SELECT set_config(name, …) FROM pg_settings WHERE name = '…'`.
 * Only that one query is understood, for that one parameter; any other name that is not a constant stays refused.
 */
function settingSelected(node: JsonObject, place: Place): string | undefined {
  const [from, more] = list(node["fromClause"]);
  const table = field(from, "RangeVar");
  const schema = text(field(table, "schemaname"));
  if (more !== undefined || field(table, "relname") !== "pg_settings" || isHidden(place, "pg_settings"))
    return undefined;
  if (schema !== "" && schema !== "pg_catalog") return undefined;
  const where = field(node["whereClause"], "A_Expr");
  const operator = list(field(where, "name")).map((part) => text(field(field(part, "String"), "sval")));
  const name = string(field(where, "rexpr"));
  const matches =
    field(where, "kind") === "AEXPR_OP" && operator.join(".") === "=" && columnName(field(where, "lexpr")) === "name";
  return matches && name === "restrict_nonsystem_relation_kind" ? name : undefined;
}

function columnName(value: JsonValue | undefined): string | undefined {
  const [first, second] = list(field(field(value, "ColumnRef"), "fields"));
  return second === undefined ? text(field(field(first, "String"), "sval")) : undefined;
}

/**
 * What a constant is on the server, as text; undefined for everything else. Behind a cast only a string is known: numbers
 * are written anew by a cast (`1e3::text` is `1000`), and a type with a length cuts its value off (`'role.x'::varchar(4)`).
 */
function constant(value: JsonValue | undefined): string | undefined {
  const cast = field(value, "TypeCast");
  if (cast !== undefined) return isCastTo(cast, TEXT_TYPES) ? string(field(cast, "arg")) : undefined;
  const node = field(value, "A_Const");
  if (node === undefined || field(node, "isnull") === true) return undefined;
  if (field(node, "sval") !== undefined) return text(field(field(node, "sval"), "sval"));
  const whole = field(node, "ival");
  if (whole !== undefined) {
    const number = field(whole, "ival") ?? 0;
    return typeof number === "number" ? number.toString() : undefined;
  }
  const fraction = field(field(node, "fval"), "fval");
  if (fraction !== undefined) return text(fraction);
  const truth = field(node, "boolval");
  return truth === undefined ? undefined : field(truth, "boolval") === true ? "true" : "false";
}

/** The text of a string, also behind casts that leave it as it is. */
function string(value: JsonValue | undefined): string | undefined {
  const cast = field(value, "TypeCast");
  if (cast !== undefined) return isCastTo(cast, TEXT_TYPES) ? string(field(cast, "arg")) : undefined;
  const given = field(field(value, "A_Const"), "sval");
  return given === undefined ? undefined : text(field(given, "sval"));
}

/**
 * The path that names a sequence. Not so a number, also in quotes: it would be the OID of any sequence. A cast to regclass
 * may only stand outermost, for what comes out of it is another text than went in.
 */
function sequenceName(value: JsonValue | undefined): readonly string[] | undefined {
  const cast = field(value, "TypeCast");
  const given = string(cast !== undefined && isCastTo(cast, REGCLASS) ? field(cast, "arg") : value);
  const path = given === undefined || /^[0-9-]/.test(given) ? undefined : splitIdentifiers(given, ".");
  return path !== undefined && path.length > 0 && path.length <= 2 ? path : undefined;
}

/** Whether a cast is to one of these types, bare or as pg_catalog's, and to nothing narrower or else, such as an array. */
function isCastTo(cast: JsonValue, types: ReadonlySet<string>): boolean {
  const type = field(cast, "typeName");
  if (Object.keys(typeof type === "object" && type !== null ? type : {}).some((key) => !PLAIN_TYPE.has(key)))
    return false;
  if (field(type, "typemod") !== -1) return false;
  const path = list(field(type, "names")).map((part) => text(field(field(part, "String"), "sval")));
  const bare = path.length === 2 && path[0] === "pg_catalog" ? path.slice(1) : path;
  return bare.length === 1 && types.has(bare[0] ?? "");
}
/** The fields of a TypeName without modifiers, bounds, SETOF and %TYPE. */
const PLAIN_TYPE: ReadonlySet<string> = new Set(["names", "typemod", "location"]);
const TEXT_TYPES: ReadonlySet<string> = new Set(["text", "varchar"]);
const REGCLASS: ReadonlySet<string> = new Set(["regclass"]);
