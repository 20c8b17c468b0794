/**
 * Statement classes: PostgreSQL's own command words, what belongs to the default set, and what each kind of statement in
 * PostgreSQL's parse tree needs. The one place for these facts. A kind that is not in {@link STATEMENTS} is refused.
 */
import type { JsonObject, JsonValue } from "../../core/json.ts";

export const CLASSES = {
  select: "SELECT, VALUES, TABLE, also with FOR UPDATE",
  copy_to: "COPY … TO STDOUT",
  explain: "EXPLAIN, together with the classes of what it explains",
  insert: "INSERT",
  update: "UPDATE, and INSERT … ON CONFLICT DO UPDATE",
  delete: "DELETE",
  merge: "MERGE, together with the classes of its actions",
  copy_from: "COPY … FROM STDIN",
  sequence: "nextval() and setval()",
  truncate: "TRUNCATE",
  transaction: "BEGIN, COMMIT, ROLLBACK, SAVEPOINT, SET TRANSACTION, SET CONSTRAINTS",
  cursor: "DECLARE, FETCH, MOVE, CLOSE",
  prepare: "PREPARE and DEALLOCATE, together with the classes of what is prepared",
  execute: "EXECUTE of a statement that was checked when it was prepared",
  set: "SET, RESET and set_config() of harmless parameters",
  show: "SHOW",
  discard: "DISCARD",
  listen: "LISTEN and UNLISTEN",
  notify: "NOTIFY and pg_notify()",
  lock: "LOCK TABLE and advisory locks",
  analyze: "ANALYZE",
  vacuum: "VACUUM",
  reindex: "REINDEX",
  cluster: "CLUSTER",
  refresh: "REFRESH MATERIALIZED VIEW",
  checkpoint: "CHECKPOINT",
  create: "CREATE …, SELECT INTO",
  alter: "ALTER …",
  drop: "DROP …, ALTER TABLE … DROP …",
  comment: "COMMENT ON",
  security_label: "SECURITY LABEL",
  grant: "GRANT of privileges on objects, ALTER DEFAULT PRIVILEGES … GRANT",
  revoke: "REVOKE of privileges on objects, ALTER DEFAULT PRIVILEGES … REVOKE",
  routine: "CREATE FUNCTION, PROCEDURE, TRIGGER, RULE, CAST, OPERATOR, AGGREGATE: code that runs later, unseen",
  do: "DO: a block whose text the gateway cannot see into",
  call: "CALL of a procedure",
  signal: "pg_cancel_backend() and pg_terminate_backend()",
  two_phase: "PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED: outlives the session",
  large_object: "functions that create, write or remove large objects",
  fastpath: "the FunctionCall message: a function by number, so without a name that could be checked",
} as const satisfies Record<string, string>;
export type StatementClass = keyof typeof CLASSES;

const SESSION = [
  ...(["transaction", "cursor", "prepare", "execute", "set", "show", "discard", "listen", "notify", "lock"] as const),
] as const;
const READ = [...SESSION, "select", "copy_to", "explain"] as const;
const WRITE = ["insert", "update", "delete", "merge", "copy_from", "sequence"] as const;

/** Names for sets of classes, so that a playbook stays short. */
export const GROUPS = {
  session: SESSION,
  read: READ,
  write: WRITE,
  default: [...READ, ...WRITE, "analyze"],
  ddl: ["create", "alter", "drop", "truncate", "comment"],
  maintenance: ["analyze", "vacuum", "reindex", "cluster", "refresh", "checkpoint"],
  privileges: ["grant", "revoke", "security_label"],
  opaque: ["do", "call", "routine", "fastpath"],
} as const satisfies Record<string, readonly StatementClass[]>;

export interface StatementRule {
  /** Classes that the statement needs, from its own node. */
  classes(node: JsonObject): readonly StatementClass[];
  /** Fields that hold the relations it changes or defines; every other relation inside is one that it reads. */
  writes?: readonly string[];
  /** Words for a refusal, where the statement is never allowed. */
  never?(node: JsonObject): string | undefined;
}

const is = (...classes: StatementClass[]): StatementRule => ({ classes: () => classes });
const changes = (classes: StatementClass[], ...writes: string[]): StatementRule => ({ classes: () => classes, writes });
const never = (why: string): StatementRule => ({ classes: () => [], never: () => why });

const OUTLIVES = "it changes roles or memberships, which would outlive the lease";
const REACHES_OUT = "it opens a way out of the database that the gateway cannot see";
const SERVER_WIDE = "it changes the whole server, not the data of one database";
const LOADS_CODE = "it loads code into the server";

/** Kinds of objects that DROP, RENAME, ALTER … OWNER and ALTER … SET SCHEMA may not touch, by the reason. */
const PROTECTED_OBJECTS: Readonly<Record<string, string>> = {
  OBJECT_ROLE: OUTLIVES,
  OBJECT_DATABASE: SERVER_WIDE,
  OBJECT_TABLESPACE: SERVER_WIDE,
  OBJECT_EVENT_TRIGGER: SERVER_WIDE,
  OBJECT_ACCESS_METHOD: LOADS_CODE,
  OBJECT_EXTENSION: LOADS_CODE,
  OBJECT_LANGUAGE: LOADS_CODE,
  OBJECT_TRANSFORM: LOADS_CODE,
  OBJECT_FDW: REACHES_OUT,
  OBJECT_FOREIGN_SERVER: REACHES_OUT,
  OBJECT_FOREIGN_TABLE: REACHES_OUT,
  OBJECT_USER_MAPPING: REACHES_OUT,
  OBJECT_PUBLICATION: REACHES_OUT,
  OBJECT_SUBSCRIPTION: REACHES_OUT,
};

function onObject(field: string, classes: StatementClass[], ...writes: string[]): StatementRule {
  return { ...changes(classes, ...writes), never: (node) => PROTECTED_OBJECTS[text(node[field])] };
}

const MERGE_ACTIONS: Readonly<Record<string, readonly StatementClass[]>> = {
  CMD_INSERT: ["insert"],
  CMD_UPDATE: ["update"],
  CMD_DELETE: ["delete"],
  CMD_NOTHING: [],
};

const TRANSACTIONS: Readonly<Record<string, StatementClass>> = {
  TRANS_STMT_BEGIN: "transaction",
  TRANS_STMT_START: "transaction",
  TRANS_STMT_COMMIT: "transaction",
  TRANS_STMT_ROLLBACK: "transaction",
  TRANS_STMT_SAVEPOINT: "transaction",
  TRANS_STMT_RELEASE: "transaction",
  TRANS_STMT_ROLLBACK_TO: "transaction",
  TRANS_STMT_PREPARE: "two_phase",
  TRANS_STMT_COMMIT_PREPARED: "two_phase",
  TRANS_STMT_ROLLBACK_PREPARED: "two_phase",
};

/** By kind of node. What is not here is refused. */
export const STATEMENTS: Readonly<Record<string, StatementRule>> = {
  // data
  SelectStmt: { classes: (node) => (node["intoClause"] === undefined ? ["select"] : ["select", "create"]) },
  InsertStmt: {
    classes: (node) =>
      text(field(node["onConflictClause"], "action")) === "ONCONFLICT_UPDATE" ? ["insert", "update"] : ["insert"],
    writes: ["relation"],
  },
  UpdateStmt: changes(["update"], "relation"),
  DeleteStmt: changes(["delete"], "relation"),
  MergeStmt: {
    classes: (node) => [
      "merge",
      ...list(node["mergeWhenClauses"]).flatMap(
        // an action that is unknown here counts as every change that MERGE can make
        (clause) => MERGE_ACTIONS[text(field(field(clause, "MergeWhenClause"), "commandType"))] ?? WRITE,
      ),
    ],
    writes: ["relation"],
  },
  CopyStmt: {
    classes: (node) => (node["is_from"] === true ? ["copy_from"] : ["copy_to"]),
    never: (node) => {
      if (node["is_program"] === true) return "COPY … PROGRAM runs a command on the database server";
      if (node["filename"] !== undefined) return "COPY with a file name reads or writes a file on the database server";
      return undefined;
    },
  },
  TruncateStmt: changes(["truncate"], "relations"),
  ExplainStmt: is("explain"),
  // the session
  TransactionStmt: {
    classes: (node) => list(TRANSACTIONS[text(node["kind"])]),
    never: (node) =>
      TRANSACTIONS[text(node["kind"])] === undefined ? "this transaction command is not known" : undefined,
  },
  ConstraintsSetStmt: is("transaction"),
  DeclareCursorStmt: is("cursor"),
  FetchStmt: is("cursor"),
  ClosePortalStmt: is("cursor"),
  PrepareStmt: is("prepare"),
  DeallocateStmt: is("prepare"),
  ExecuteStmt: is("execute"),
  // SET TRANSACTION and SET SESSION CHARACTERISTICS, or one parameter, whose name and value are judged apart
  VariableSetStmt: { classes: (node) => [node["kind"] === "VAR_SET_MULTI" ? "transaction" : "set"] },
  VariableShowStmt: is("show"),
  DiscardStmt: is("discard"),
  ListenStmt: is("listen"),
  UnlistenStmt: is("listen"),
  NotifyStmt: is("notify"),
  LockStmt: is("lock"), // read or write depends on the mode
  // maintenance
  VacuumStmt: {
    classes: (node) => {
      const options = list(node["options"]).map((option) => text(field(field(option, "DefElem"), "defname")));
      if (node["is_vacuumcmd"] !== true) return ["analyze"];
      return options.includes("analyze") ? ["vacuum", "analyze"] : ["vacuum"];
    },
    writes: ["rels"],
  },
  ReindexStmt: changes(["reindex"], "relation"),
  ClusterStmt: changes(["cluster"], "relation"),
  RefreshMatViewStmt: changes(["refresh"], "relation"),
  CheckPointStmt: is("checkpoint"),
  // definitions
  CreateStmt: changes(["create"], "relation"),
  CreateTableAsStmt: is("create"),
  ViewStmt: changes(["create"], "view"),
  IndexStmt: changes(["create"], "relation"),
  CreateSeqStmt: changes(["create"], "sequence"),
  CreateSchemaStmt: is("create"),
  CreateDomainStmt: is("create"),
  CreateEnumStmt: is("create"),
  CreateRangeStmt: is("create", "routine"), // names functions of its subtype
  CompositeTypeStmt: changes(["create"], "typevar"),
  CreateStatsStmt: is("create"),
  CreatePolicyStmt: changes(["create"], "table"),
  DefineStmt: {
    classes: (node) =>
      ["OBJECT_COLLATION", "OBJECT_TSDICTIONARY", "OBJECT_TSCONFIGURATION"].includes(text(node["kind"]))
        ? ["create"]
        : ["create", "routine"],
  },
  AlterTableStmt: {
    classes: (node) => {
      const drops = list(node["cmds"]).some((cmd) =>
        text(field(field(cmd, "AlterTableCmd"), "subtype")).startsWith("AT_Drop"),
      );
      return drops ? ["alter", "drop"] : ["alter"];
    },
    writes: ["relation"],
    never: (node) => PROTECTED_OBJECTS[text(node["objtype"])],
  },
  AlterDomainStmt: is("alter"),
  AlterEnumStmt: is("alter"),
  AlterTypeStmt: is("alter", "routine"),
  AlterSeqStmt: changes(["alter"], "sequence"),
  AlterStatsStmt: is("alter"),
  AlterPolicyStmt: changes(["alter"], "table"),
  AlterCollationStmt: is("alter"),
  AlterTSDictionaryStmt: is("alter"),
  AlterTSConfigurationStmt: is("alter"),
  AlterObjectDependsStmt: changes(["alter"], "relation"),
  AlterObjectSchemaStmt: onObject("objectType", ["alter"], "relation"),
  AlterOwnerStmt: onObject("objectType", ["alter"], "relation"),
  RenameStmt: onObject("renameType", ["alter"], "relation"),
  DropStmt: onObject("removeType", ["drop"]),
  CommentStmt: is("comment"),
  SecLabelStmt: is("security_label"),
  // code that runs later, or out of sight
  CreateFunctionStmt: is("create", "routine"),
  AlterFunctionStmt: is("alter", "routine"),
  CreateTrigStmt: changes(["create", "routine"], "relation"),
  RuleStmt: changes(["create", "routine"], "relation"),
  CreateCastStmt: is("create", "routine"),
  CreateConversionStmt: is("create", "routine"),
  CreateOpClassStmt: is("create", "routine"),
  CreateOpFamilyStmt: is("create", "routine"),
  AlterOpFamilyStmt: is("alter", "routine"),
  AlterOperatorStmt: is("alter", "routine"),
  ReturnStmt: is("routine"),
  DoStmt: is("do"),
  CallStmt: is("call"),
  // privileges
  GrantStmt: { classes: (node) => (node["is_grant"] === true ? ["grant"] : ["revoke"]), writes: ["objects"] },
  AlterDefaultPrivilegesStmt: {
    classes: (node) => (field(node["action"], "is_grant") === true ? ["grant"] : ["revoke"]),
  },
  // never
  CreateRoleStmt: never(OUTLIVES),
  AlterRoleStmt: never(OUTLIVES),
  AlterRoleSetStmt: never(OUTLIVES),
  DropRoleStmt: never(OUTLIVES),
  GrantRoleStmt: never(OUTLIVES),
  ReassignOwnedStmt: never(OUTLIVES),
  DropOwnedStmt: never("it drops everything that a role owns and its privileges, in one word"),
  AlterSystemStmt: never(SERVER_WIDE),
  AlterDatabaseStmt: never(SERVER_WIDE),
  AlterDatabaseSetStmt: never(SERVER_WIDE),
  AlterDatabaseRefreshCollStmt: never(SERVER_WIDE),
  CreatedbStmt: never(SERVER_WIDE),
  DropdbStmt: never(SERVER_WIDE),
  CreateTableSpaceStmt: never(SERVER_WIDE),
  DropTableSpaceStmt: never(SERVER_WIDE),
  AlterTableSpaceOptionsStmt: never(SERVER_WIDE),
  AlterTableMoveAllStmt: never(SERVER_WIDE),
  CreateEventTrigStmt: never(SERVER_WIDE),
  AlterEventTrigStmt: never(SERVER_WIDE),
  LoadStmt: never(LOADS_CODE),
  CreateExtensionStmt: never(LOADS_CODE),
  AlterExtensionStmt: never(LOADS_CODE),
  AlterExtensionContentsStmt: never(LOADS_CODE),
  CreatePLangStmt: never(LOADS_CODE),
  CreateAmStmt: never(LOADS_CODE),
  CreateTransformStmt: never(LOADS_CODE),
  CreateFdwStmt: never(REACHES_OUT),
  AlterFdwStmt: never(REACHES_OUT),
  CreateForeignServerStmt: never(REACHES_OUT),
  AlterForeignServerStmt: never(REACHES_OUT),
  CreateForeignTableStmt: never(REACHES_OUT),
  CreateUserMappingStmt: never(REACHES_OUT),
  AlterUserMappingStmt: never(REACHES_OUT),
  DropUserMappingStmt: never(REACHES_OUT),
  ImportForeignSchemaStmt: never(REACHES_OUT),
  CreatePublicationStmt: never(REACHES_OUT),
  AlterPublicationStmt: never(REACHES_OUT),
  CreateSubscriptionStmt: never(REACHES_OUT),
  AlterSubscriptionStmt: never(REACHES_OUT),
  DropSubscriptionStmt: never(REACHES_OUT),
};

/** Nodes whose names end like a statement's but that are parts of one. */
export const PARTS: ReadonlySet<string> = new Set(["ReplicaIdentityStmt"]);

/** How a statement is called in a refusal: `CreateTableAsStmt` → `CREATE TABLE AS`. */
export function statementName(kind: string): string {
  return (
    STATEMENT_NAMES[kind] ??
    kind
      .replace(/Stmt$/, "")
      .replaceAll(/(?<=[a-z])(?=[A-Z])/g, " ")
      .toUpperCase()
  );
}
const STATEMENT_NAMES: Readonly<Record<string, string>> = {
  VariableSetStmt: "SET",
  VariableShowStmt: "SHOW",
  DefineStmt: "CREATE",
  ViewStmt: "CREATE VIEW",
  IndexStmt: "CREATE INDEX",
  RuleStmt: "CREATE RULE",
  CreateSeqStmt: "CREATE SEQUENCE",
  AlterSeqStmt: "ALTER SEQUENCE",
  CreateStmt: "CREATE TABLE",
  CreateTrigStmt: "CREATE TRIGGER",
  CreatedbStmt: "CREATE DATABASE",
  DropdbStmt: "DROP DATABASE",
  CreatePLangStmt: "CREATE LANGUAGE",
  CreateForeignServerStmt: "CREATE SERVER",
  AlterForeignServerStmt: "ALTER SERVER",
  CreateFdwStmt: "CREATE FOREIGN DATA WRAPPER",
  AlterFdwStmt: "ALTER FOREIGN DATA WRAPPER",
  GrantRoleStmt: "GRANT or REVOKE of a role",
  AlterRoleSetStmt: "ALTER ROLE … SET",
  AlterDatabaseSetStmt: "ALTER DATABASE … SET",
  SecLabelStmt: "SECURITY LABEL",
  RefreshMatViewStmt: "REFRESH MATERIALIZED VIEW",
  ClosePortalStmt: "CLOSE",
  RenameStmt: "ALTER … RENAME",
  AlterOwnerStmt: "ALTER … OWNER TO",
  AlterObjectSchemaStmt: "ALTER … SET SCHEMA",
  CreateEventTrigStmt: "CREATE EVENT TRIGGER",
  AlterEventTrigStmt: "ALTER EVENT TRIGGER",
  CreateAmStmt: "CREATE ACCESS METHOD",
  CreateTableSpaceStmt: "CREATE TABLESPACE",
  DropTableSpaceStmt: "DROP TABLESPACE",
  CheckPointStmt: "CHECKPOINT",
};

// The tree is JSON from the parser: these read it without trusting its shape.

export function text(value: JsonValue | undefined): string {
  return typeof value === "string" ? value : "";
}

export function list<T extends JsonValue>(value: T | readonly T[] | undefined): readonly T[] {
  if (value === undefined) return [];
  return Array.isArray(value) ? (value as readonly T[]) : [value as T];
}

export function field(value: JsonValue | undefined, name: string): JsonValue | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject)[name] : undefined;
}
