/** Which relations and functions a scope names, and what a name in a statement may mean. */
import { CATALOG_FUNCTIONS, CATALOG_RELATIONS } from "./scope-catalog.ts";

/** `schema.table`, `schema.*`, `public.orders_*`, `*`, or `table` alone: in a schema of the search path. */
export const NAME_PATTERN = /^(?:[A-Za-z_*][\w$*]*\.)?[A-Za-z_*][\w$*]*$/;

export interface NameMatcher {
  (schema: string, name: string): boolean;
  /** Patterns that must be tried for each name, in the worst case. */
  readonly tries: number;
}

const SYSTEM = /^(?:pg_.*|information_schema)$/;

/** A pattern's `*` never reaches a system schema; naming one in full does. */
export function compilePatterns(patterns: readonly string[], searchPath: readonly string[]): NameMatcher {
  const exact = new Set<string>();
  const matchers = patterns.flatMap((pattern): ((schema: string, name: string) => boolean)[] => {
    const dot = pattern.indexOf(".");
    if (pattern === "*") return [(schema) => !SYSTEM.test(schema)];
    if (!pattern.includes("*")) {
      for (const path of dot < 0 ? searchPath.map((schema) => `${schema}.${pattern}`) : [pattern]) exact.add(path);
      return [];
    }
    const name = glob(pattern.slice(dot + 1));
    if (dot < 0) return [(schema, given) => searchPath.includes(schema) && name.test(given)];
    const schemaPattern = pattern.slice(0, dot);
    const schemas = glob(schemaPattern);
    return [
      (schema, given) =>
        (schema === schemaPattern || (schemas.test(schema) && !SYSTEM.test(schema))) && name.test(given),
    ];
  });
  // neither part of an exact pattern has a dot, so that no other two names join to one
  const matcher = (schema: string, name: string): boolean =>
    (!name.includes(".") && !schema.includes(".") && exact.has(`${schema}.${name}`)) ||
    matchers.some((matches) => matches(schema, name));
  return Object.assign(matcher, { tries: matchers.length });
}

function glob(pattern: string): RegExp {
  return new RegExp(`^${pattern.replaceAll("$", "\\$").replaceAll(/\*+/g, ".*")}$`, "s");
}

/** Catalogs that hold data or samples of relations, which `relations:` would otherwise not cover. */
const CATALOGS_WITH_DATA: ReadonlySet<string> = new Set(
  "pg_statistic pg_statistic_ext_data pg_stats pg_stats_ext pg_stats_ext_exprs pg_largeobject".split(" "),
);

/** Whether a name is one of PostgreSQL's own catalogs, readable in every scope: psql's \d and pg_dump live on them. */
export function isReadableCatalog(schema: string | undefined, name: string): boolean {
  if (schema === "information_schema") return true;
  if (CATALOGS_WITH_DATA.has(name)) return false;
  return schema === "pg_catalog" || (schema === undefined && CATALOG_RELATIONS.has(name));
}

export function isBuiltInFunction(schema: string | undefined, name: string): boolean {
  return schema === undefined
    ? CATALOG_FUNCTIONS.has(name)
    : schema === "pg_catalog" || schema === "information_schema";
}

/** Unqualified names are allowed only if they are allowed in *every* schema that they may mean. */
export function allowedAs(
  matches: NameMatcher,
  schema: string | undefined,
  name: string,
  searchPath: readonly string[],
): boolean {
  if (schema === undefined) return searchPath.length > 0 && searchPath.every((candidate) => matches(candidate, name));
  return schema === "pg_temp" || matches(schema, name); // the session's own temporary objects
}
