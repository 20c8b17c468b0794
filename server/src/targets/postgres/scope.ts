/**
 * The gateway's half of a scope: which statements of a session are forwarded. It narrows what the template role's own
 * privileges allow, and closes the ways around the recording (text that runs as SQL, server files, other roles); it never
 * grants anything. docs/postgres-scope.md says which half enforces what.
 *
 * A text is parsed with PostgreSQL's own parser, turned into facts by scope-walk.ts, and judged here. What cannot be
 * parsed, or holds something that is not known here, is refused.
 */
import { GlassError, unreachable } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import { cacheKey, createCache } from "./scope-cache.ts";
import { CLASSES, type StatementClass } from "./scope-classes.ts";
import { allowedAs, compilePatterns, isBuiltInFunction, isReadableCatalog, type NameMatcher } from "./scope-names.ts";
import { judgeParameter } from "./scope-parameters.ts";
import { parseSql, TOO_COSTLY, type RawStatement } from "./scope-parser.ts";
import { expandClasses, parseScope, type PostgresScope } from "./scope-schema.ts";
import { factsOf, TooDeep, type Fact } from "./scope-walk.ts";

export { loadParser } from "./scope-parser.ts";
export { parseScope } from "./scope-schema.ts";

export type Verdict =
  | { ok: true; classes: readonly StatementClass[] }
  | {
      ok: false;
      /** What was refused and by what, for the person at the client. */
      reason: string;
      /** What to do instead. */
      next?: string;
      /** 42601 where the text is not SQL, 54000 or 54001 where it is too big or too deep; otherwise 42501 is meant. */
      sqlstate?: "42601" | "54000" | "54001";
      /** Where in the text, in characters from 1, as in PostgreSQL's own errors. */
      position?: number;
    };

/** Judges everything that one scope's sessions send. Hold one per scope, not one per session: it has a cache. */
export interface ScopeChecker {
  /** Judges a query string, which may hold several statements: all must be allowed. Never throws. */
  check(sql: string): Verdict;
  /**
   * Judges a startup parameter (also `options`). Also to be asked about what the *server* reports for `client_encoding`
   * and `standard_conforming_strings`: if that is refused, the two read statements differently, and the session must end.
   */
  parameter(name: string, value: string): Verdict;
  /** Judges a FunctionCall message, which names its function by number only. */
  fastpath(): Verdict;
  /** Parameters that the session must be started with at the target, and may not be changed by the client's own. */
  readonly startup: Readonly<Record<string, string>>;
  /** Verdicts that are kept, for tests and measurements. */
  readonly cached: number;
}

interface Rules {
  allowed: ReadonlySet<StatementClass>;
  never: ReadonlySet<StatementClass>;
  relations: { read: NameMatcher; write: NameMatcher; scope: NonNullable<PostgresScope["relations"]> } | undefined;
  functions: { matches: NameMatcher; scope: readonly string[] } | undefined;
  /** What unqualified names may mean; undefined where the session may choose. */
  searchPath: readonly string[] | undefined;
}

type Refusal = Extract<Verdict, { ok: false }>;

/** A client's prepared repertoire is some hundred statements; 2 × (1024 entries, 1 Mi characters) are held at most. */
const CACHE_LIMITS = { entries: 1_024, characters: 1 << 20 };

/** Most patterns that are tried for one text: some 20 ms. Reached only by a long text under a scope of many patterns. */
const MAX_TRIES = 200_000;

/** @throws GlassError `config_invalid` if `scope` is not what {@link parseScope} accepts. */
export function compileScope(scope: JsonObject): ScopeChecker {
  const parsed = parseScope(scope);
  if (!parsed.ok) {
    throw new GlassError(
      "config_invalid",
      `the scope cannot be used: ${parsed.problems[0]?.message ?? "it is not valid"}`,
    );
  }
  const rules = compileRules(parsed.value as unknown as PostgresScope);
  const cache = createCache<Verdict>(CACHE_LIMITS);
  return {
    check(sql) {
      const key = cacheKey(sql);
      const known = key === undefined ? undefined : cache.get(key.key);
      if (known !== undefined) return known;
      const { verdict, constant } = judgeText(sql, rules);
      // A shared key stands for every text with other numbers in it, so only what holds for all of them is kept under it.
      if (key !== undefined && !transient(verdict) && (!key.shared || (constant && verdict.ok)))
        cache.set(key.key, verdict);
      return verdict;
    },
    parameter(name, value) {
      const verdict = judgeParameter(name, value, { searchPath: rules.searchPath });
      return verdict.ok ? { ok: true, classes: [] } : verdict;
    },
    fastpath: () =>
      judgeClass("fastpath", "a function call by number (fastpath)", rules) ?? { ok: true, classes: ["fastpath"] },
    startup: rules.searchPath === undefined ? {} : { search_path: rules.searchPath.map(quoteName).join(", ") },
    get cached() {
      return cache.size;
    },
  };
}

function compileRules(scope: PostgresScope): Rules {
  const { relations, functions, searchPath } = scope;
  const path = searchPath ?? [];
  return {
    allowed: expandClasses(scope.allow),
    never: expandClasses(scope.never),
    relations:
      relations === undefined
        ? undefined
        : {
            read: compilePatterns([...relations.read, ...relations.write], path),
            write: compilePatterns(relations.write, path),
            scope: relations,
          },
    functions: functions === undefined ? undefined : { matches: compilePatterns(functions, path), scope: functions },
    searchPath,
  };
}

/** `constant`: the verdict does not depend on the value of any constant in the text. */
function judgeText(sql: string, rules: Rules): { verdict: Verdict; constant: boolean } {
  const parsed = parseSql(sql);
  if (!parsed.ok) return { verdict: unreadable(parsed), constant: false };
  const classes = new Set<StatementClass>();
  const seen = new Set<string>();
  let constant = true;
  let tries = 0;
  for (const [index, statement] of parsed.statements.entries()) {
    let facts: readonly Fact[];
    try {
      facts = factsOf(statement.node);
    } catch (error) {
      if (!(error instanceof TooDeep || error instanceof RangeError)) throw error;
      const verdict = {
        ok: false,
        reason: "the statement is nested too deeply to be checked",
        sqlstate: "54001",
      } as const;
      return { verdict, constant: false };
    }
    for (const fact of facts) {
      if (fact.fact === "class") classes.add(fact.class);
      if (fact.fact === "parameter") constant = false;
      if (fact.fact === "relation" || fact.fact === "function") {
        const key = JSON.stringify([fact.fact, fact.fact === "relation" && fact.access, fact.schema, fact.name]);
        if (seen.has(key)) continue;
        seen.add(key);
        tries += triesOf(fact, rules);
        if (tries > MAX_TRIES)
          return { verdict: { ok: false, reason: TOO_COSTLY, sqlstate: "54000" }, constant: false };
      }
      const refusal = judge(fact, rules);
      if (refusal !== undefined)
        return { verdict: located(refusal, sql, statement, index, parsed.statements.length), constant: false };
    }
  }
  return { verdict: { ok: true, classes: [...classes] }, constant };
}

/** Patterns that judging this fact may have to try. */
function triesOf(fact: Extract<Fact, { fact: "relation" | "function" }>, rules: Rules): number {
  const matcher = fact.fact === "relation" ? rules.relations?.[fact.access] : rules.functions?.matches;
  return (matcher?.tries ?? 0) * (fact.schema === undefined ? (rules.searchPath?.length ?? 1) : 1);
}

function unreadable(parsed: Extract<ReturnType<typeof parseSql>, { ok: false }>): Refusal {
  if (!parsed.syntax)
    return { ok: false, reason: parsed.message, sqlstate: parsed.message.includes("deeply") ? "54001" : "54000" };
  return {
    ok: false,
    reason: `${parsed.message} (read as PostgreSQL 18 SQL; what cannot be read is not forwarded)`,
    sqlstate: "42601",
    ...(parsed.position === undefined ? {} : { position: parsed.position }),
  };
}

/** Refusals that say something about this moment, not about the text. */
function transient(verdict: Verdict): boolean {
  return !verdict.ok && verdict.reason.includes("being restarted");
}

function located(refusal: Refusal, sql: string, statement: RawStatement, index: number, count: number): Refusal {
  const before = Buffer.from(sql, "utf8").toString("utf8", 0, statement.startByte);
  const ahead = sql.slice(before.length, before.length + 10_000);
  const blank = /^(?:\s|--[^\n]*(?:\n|$)|\/\*[^*]*\*\/)*/.exec(ahead)?.[0] ?? "";
  const reason = count > 1 ? `statement ${index + 1} of ${count}: ${refusal.reason}` : refusal.reason;
  return { ...refusal, reason, position: characters(before) + characters(blank) + 1 };
}

/** Of code points, as PostgreSQL counts: a low surrogate is the second half of one. */
function characters(part: string): number {
  let count = 0;
  for (let at = 0; at < part.length; at++) if ((part.charCodeAt(at) & 0xfc00) !== 0xdc00) count++;
  return count;
}

function judge(fact: Fact, rules: Rules): Refusal | undefined {
  switch (fact.fact) {
    case "forbidden":
      return {
        ok: false,
        reason: `${fact.via}: ${fact.reason}`,
        next: "No playbook can allow this through the gateway.",
      };
    case "class":
      return judgeClass(fact.class, fact.what ?? fact.via, rules);
    case "parameter": {
      const verdict = judgeParameter(fact.name, fact.value, { searchPath: rules.searchPath });
      if (verdict.ok) return undefined;
      return { ok: false, reason: `${fact.via}: ${verdict.reason}`, next: "No playbook can allow this value." };
    }
    case "relation":
      return judgeRelation(fact, rules);
    case "function":
      return judgeFunction(fact, rules);
    default:
      return unreachable(fact);
  }
}

function judgeClass(cls: StatementClass, what: string, rules: Rules): Refusal | undefined {
  if (rules.never.has(cls)) {
    return {
      ok: false,
      reason: `${what} is refused: this playbook's scope says never: ${cls}`,
      next: `Ask for a playbook whose scope allows ${cls} (${CLASSES[cls]}).`,
    };
  }
  if (rules.allowed.has(cls)) return undefined;
  return {
    ok: false,
    reason: `${what} is refused: this playbook's scope does not allow ${cls}`,
    next: `Ask for a playbook whose scope has ${cls} among allow (${CLASSES[cls]}).`,
  };
}

function judgeRelation(fact: Extract<Fact, { fact: "relation" }>, rules: Rules): Refusal | undefined {
  if (rules.relations === undefined) return undefined;
  const { schema, name, access, via } = fact;
  const clause = access === "read" ? "relations.read" : "relations.write";
  const { scope } = rules.relations;
  const next = `Ask for a playbook whose scope lists it in ${clause}.`;
  if (name === undefined) {
    if (scope.write.includes("*")) return undefined;
    const reason = `${via} here reaches relations that it does not name, and this playbook's scope restricts relations.write`;
    return { ok: false, reason, next: "Name each relation, without CASCADE." };
  }
  if (access === "read" && isReadableCatalog(schema, name)) return undefined;
  if (allowedAs(rules.relations[access], schema, name, rules.searchPath ?? [])) return undefined;
  const shown =
    schema === undefined
      ? `${name} (meaning ${(rules.searchPath ?? []).map((path) => `${path}.${name}`).join(" or ")})`
      : `${schema}.${name}`;
  const listed = access === "read" ? [...scope.read, ...scope.write] : scope.write;
  const may = listed.length === 0 ? "nothing" : abridged(listed);
  return { ok: false, reason: `${via}: relation ${shown} is refused: this playbook's ${clause} allows ${may}`, next };
}

function judgeFunction(fact: Extract<Fact, { fact: "function" }>, rules: Rules): Refusal | undefined {
  if (rules.functions === undefined) return undefined;
  const { schema, name, via } = fact;
  if (isBuiltInFunction(schema, name) || allowedAs(rules.functions.matches, schema, name, rules.searchPath ?? []))
    return undefined;
  const shown = schema === undefined ? name : `${schema}.${name}`;
  const may =
    rules.functions.scope.length === 0
      ? "PostgreSQL's own only"
      : `PostgreSQL's own and ${abridged(rules.functions.scope)}`;
  return {
    ok: false,
    reason: `${via}: function ${shown}() is refused: this playbook's scope allows functions: ${may}`,
    next: "Ask for a playbook whose scope lists it in functions.",
  };
}

function abridged(names: readonly string[]): string {
  return names.length <= 5 ? names.join(", ") : `${names.slice(0, 5).join(", ")} and ${names.length - 5} more`;
}

function quoteName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}
