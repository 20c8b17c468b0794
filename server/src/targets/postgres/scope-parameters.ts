/**
 * Which run-time parameters a session may set: at its start, by SET and by set_config().
 *
 * An allow-list, since some parameters change who the session is (`role`), what the server takes the same bytes to mean
 * (`standard_conforming_strings`, `client_encoding`), or load code (`local_preload_libraries`). PostgreSQL keeps the truly
 * dangerous ones for superusers, but the two kinds above are open to everybody.
 */
import { MAX_NAME_BYTES } from "./scope-cost.ts";

export type ParameterVerdict = { ok: true } | { ok: false; reason: string };

/** Harmless with every value: how results look, how long things may take, how plans are made. */
const FREE: ReadonlySet<string> = new Set(
  `application_name array_nulls backend_flush_after bytea_output check_function_bodies client_connection_check_interval
   client_min_messages commit_siblings constraint_exclusion cpu_index_tuple_cost cpu_operator_cost cpu_tuple_cost
   cursor_tuple_fraction datestyle deadlock_timeout debug_parallel_query force_parallel_mode
   default_statistics_target default_table_access_method default_tablespace default_text_search_config
   default_toast_compression default_transaction_deferrable default_transaction_isolation default_transaction_read_only
   effective_cache_size effective_io_concurrency exit_on_error extra_float_digits from_collapse_limit geqo geqo_effort
   geqo_generations geqo_pool_size geqo_seed geqo_selection_bias geqo_threshold gin_fuzzy_search_limit
   gin_pending_list_limit hash_mem_multiplier icu_validation_level idle_in_transaction_session_timeout
   idle_session_timeout intervalstyle io_combine_limit jit jit_above_cost jit_expressions jit_inline_above_cost
   jit_optimize_above_cost jit_tuple_deforming join_collapse_limit lc_messages lc_monetary lc_numeric lc_time
   lock_timeout logical_decoding_work_mem maintenance_io_concurrency maintenance_work_mem
   max_parallel_maintenance_workers max_parallel_workers max_parallel_workers_per_gather
   min_parallel_index_scan_size min_parallel_table_scan_size parallel_leader_participation parallel_setup_cost
   parallel_tuple_cost plan_cache_mode quote_all_identifiers random_page_cost recursive_worktable_factor
   restrict_nonsystem_relation_kind row_security seed seq_page_cost statement_timeout stats_fetch_consistency
   synchronize_seqscans synchronous_commit temp_buffers temp_tablespaces timezone timezone_abbreviations
   trace_notify trace_sort transaction_deferrable transaction_isolation transaction_read_only transaction_timeout
   vacuum_cost_delay vacuum_cost_limit vacuum_cost_page_dirty vacuum_cost_page_hit vacuum_cost_page_miss
   vacuum_freeze_min_age vacuum_freeze_table_age vacuum_buffer_usage_limit wal_skip_threshold work_mem xmlbinary
   xmloption`
    .split(/\s+/)
    .filter((name) => name !== ""),
);

const FREE_PREFIXES = ["enable_"];

const IDENTITY = "a session acts as its own lease, never as another role";

/** What is refused has its own words where a person would ask why. */
const REFUSED: Readonly<Record<string, string>> = {
  role: IDENTITY,
  session_authorization: IDENTITY,
  backslash_quote: "the gateway and the server would no longer read string constants the same way",
  local_preload_libraries: "it loads code into the server",
  session_replication_role: "it switches triggers and foreign keys off",
};

/**
 * The gateway reads and records UTF-8. With any other encoding the recording would show another text than ran; with
 * SQL_ASCII too, where the database's own encoding is another one.
 */
const UTF8: ReadonlySet<string> = new Set(["utf8", "unicode"]);

export interface ParameterRules {
  /** Schemas that unqualified names may mean; undefined where the session may choose. */
  searchPath: readonly string[] | undefined;
}

/** Judges `SET name = value`. `value` is undefined where it is not known, such as a parameter of a prepared statement. */
export function judgeParameter(name: string, value: string | undefined, rules: ParameterRules): ParameterVerdict {
  const folded = foldAscii(name).replaceAll(" ", "_");
  if (Buffer.byteLength(name, "utf8") > MAX_NAME_BYTES)
    return refuse(`parameter ${shown(name)} may not be set: its name is longer than ${MAX_NAME_BYTES} bytes`);
  const refused = REFUSED[folded];
  if (refused !== undefined) return refuse(`parameter ${folded} may not be set: ${refused}`);
  switch (folded) {
    case "client_encoding":
      if (value !== undefined && UTF8.has(foldAscii(value).replaceAll(/[^a-z0-9]/g, ""))) return OK;
      return refuse(
        `client_encoding ${shown(value)} is refused: what is recorded must be what runs, and the gateway reads UTF8`,
      );
    case "standard_conforming_strings":
      if (value !== undefined && ["on", "true", "yes", "1", "t", "y", "tr", "tru", "ye"].includes(value.toLowerCase()))
        return OK;
      return refuse(
        `standard_conforming_strings ${shown(value)} is refused: the gateway and the server would no longer read string constants the same way`,
      );
    case "search_path":
      return judgeSearchPath(value, rules.searchPath);
    case "options":
      return judgeOptions(value, rules);
    default:
      break;
  }
  // `app.tenant` and the like: PostgreSQL lets every role set them, so a policy that trusts one trusts every SQL client.
  if (/^[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)+$/.test(folded)) return OK;
  if (FREE.has(folded) || FREE_PREFIXES.some((prefix) => folded.startsWith(prefix))) return OK;
  return refuse(`parameter ${shown(folded)} is not one that a session may set`);
}

/** Where names are restricted, an unqualified one must keep meaning what is in the schemas that the scope names. */
function judgeSearchPath(value: string | undefined, allowed: readonly string[] | undefined): ParameterVerdict {
  if (allowed === undefined) return OK;
  const schemas = value === undefined ? undefined : splitIdentifiers(value);
  const catalogAt = schemas?.lastIndexOf("pg_catalog") ?? -1;
  if (
    schemas !== undefined &&
    catalogAt <= 0 &&
    schemas.every((schema) => IMPLICIT.has(schema) || allowed.includes(schema))
  ) {
    return OK;
  }
  return refuse(
    `search_path ${shown(value)} is refused: this playbook restricts names, and unqualified ones are read as names in ${allowed.join(", ")}`,
  );
}
const IMPLICIT: ReadonlySet<string> = new Set(["", "pg_catalog"]);

/** `-c name=value` and `--name=value`, as PostgreSQL splits the startup parameter `options`: blanks, `\` escapes. */
function judgeOptions(value: string | undefined, rules: ParameterRules): ParameterVerdict {
  const words = [...(value ?? "").matchAll(/(?:\\.|[^\\\s])+/g)].map(([word]) => word.replaceAll(/\\(.)/g, "$1"));
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? "";
    const setting = word === "-c" ? (words[++at] ?? "") : /^(?:-c|--)(.+)$/.exec(word)?.[1];
    const [, name, set] = /^([^=]+)=(.*)$/s.exec(setting ?? "") ?? [];
    if (name === undefined || set === undefined)
      return refuse(`startup option ${shown(word)} is refused: only -c name=value is known`);
    const verdict = judgeParameter(name.replaceAll("-", "_"), set, rules);
    if (!verdict.ok || name === "options")
      return verdict.ok ? refuse("options inside of options are refused") : verdict;
  }
  return OK;
}

/**
 * A list such as `a, "B", ''`, as PostgreSQL's SplitIdentifierString reads it, or undefined where it is not one. Unquoted
 * names are folded, in ASCII only, as are blanks. A name that PostgreSQL would cut off is no name.
 */
export function splitIdentifiers(value: string, separator: "," | "." = ","): readonly string[] | undefined {
  if (/^[ \t\n\r\f\v]*$/.test(value)) return [];
  const names: string[] = [];
  const pattern = separator === "," ? LISTED : DOTTED;
  for (let at = 0; ;) {
    pattern.lastIndex = at;
    const match = pattern.exec(value);
    if (match === null) return undefined;
    const name = match[1] === undefined ? foldAscii(match[2] ?? "") : match[1].replaceAll('""', '"');
    if (Buffer.byteLength(name, "utf8") > MAX_NAME_BYTES) return undefined;
    names.push(name);
    if (match[3] === "") return names;
    at = pattern.lastIndex;
  }
}
const LISTED = /[ \t\n\r\f\v]*(?:"((?:[^"]|"")*)"|([^ \t\n\r\f\v,"]+))[ \t\n\r\f\v]*(,|$)/y;
const DOTTED = /[ \t\n\r\f\v]*(?:"((?:[^"]|"")*)"|([^ \t\n\r\f\v."]+))[ \t\n\r\f\v]*(\.|$)/y;

/** Not toLowerCase(), which makes a plain k of the Kelvin sign. */
function foldAscii(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase());
}

const OK = { ok: true } as const;

function refuse(reason: string): ParameterVerdict {
  return { ok: false, reason };
}

function shown(value: string | undefined): string {
  return value === undefined ? "with a value that is not a constant" : JSON.stringify(value.slice(0, 80));
}
