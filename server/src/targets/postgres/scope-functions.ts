/**
 * Functions that do more than compute. A statement's class says nothing of what its functions do, so what the gateway
 * must know about a function stands here, once. Names are compared without their schema: a user's own function with
 * such a name is refused too, which is safe, whereas a schema left out or quoted would otherwise be a way around.
 *
 * Listed is what PostgreSQL 15 to 18 and its bundled extensions offer, and well-known extensions that run SQL or reach
 * out. A function that somebody wrote on the target cannot be known here: `functions:` in a playbook's scope is for that.
 */
import type { StatementClass } from "./scope-classes.ts";

interface FunctionGroup {
  /** Completes "…() is refused: ". */
  why: string;
  names: readonly string[];
  prefixes?: readonly string[];
  schemas?: readonly string[];
}

/** Refused whatever a playbook says. */
const NEVER: readonly FunctionGroup[] = [
  {
    why: "it runs a text as SQL, which the gateway cannot check",
    names: words(`query_to_xml query_to_xmlschema query_to_xml_and_xmlschema cursor_to_xml cursor_to_xmlschema
      ts_stat connectby xpath_table pg_background_launch pg_background_launch_v2 plpgsql_check_function
      plpgsql_check_function_tb plpgsql_profiler_function_tb master_run_on_worker`),
    prefixes: ["crosstab", "run_command_on_"],
    schemas: ["dbms_sql"],
  },
  {
    // They take the name of a relation as a value, and read it: `relations:` could not see it.
    why: "it reads relations that are named by a value, which the gateway cannot check",
    names: words(`table_to_xml table_to_xmlschema table_to_xml_and_xmlschema schema_to_xml schema_to_xmlschema
      schema_to_xml_and_xmlschema database_to_xml database_to_xmlschema database_to_xml_and_xmlschema currtid currtid2
      get_raw_page heap_page_items heap_page_item_attrs tuple_data_split bt_page_items brin_page_items
      gist_page_items gist_page_items_bytea hash_page_items gin_leafpage_items pgrowlocks pg_dirtyread`),
  },
  {
    why: "it reads or writes files of the database server",
    names: words(`pg_stat_file pg_logdir_ls lo_import lo_export pg_current_logfile pg_hba_file_rules
      pg_ident_file_mappings pg_show_all_file_settings pg_read_server_files`),
    prefixes: ["pg_read_file", "pg_read_binary_file", "pg_ls_", "pg_file_"],
    schemas: ["utl_file"],
  },
  {
    why: "it connects to another system, past the recording",
    names: words("http http_get http_post http_put http_patch http_delete http_head xslt_process"),
    prefixes: ["dblink", "postgres_fdw_disconnect"],
    schemas: ["aws_s3", "aws_lambda", "net", "utl_smtp", "utl_http"],
  },
  {
    why: "it schedules work that would outlive the session",
    names: words("cron_schedule"),
    schemas: ["cron", "pgagent", "dbms_job", "dbms_scheduler"],
  },
  {
    why: "it administers the whole server",
    names: words(`pg_reload_conf pg_promote pg_switch_wal pg_create_restore_point pg_start_backup pg_stop_backup
      pg_backup_start pg_backup_stop pg_wal_replay_pause pg_wal_replay_resume pg_import_system_collations pg_nextoid
      pg_stop_making_pinned_objects pg_log_backend_memory_contexts pg_get_process_memory_contexts pg_buffercache_evict
      pg_buffercache_evict_relation pg_buffercache_evict_all pg_stat_statements_reset pg_truncate_visibility_map
      heap_force_kill heap_force_freeze
      autoprewarm_start_worker autoprewarm_dump_now`),
    prefixes: ["pg_rotate_logfile", "pg_stat_reset", "binary_upgrade_", "pg_prewarm_", "injection_points_"],
  },
  {
    why: "it works on replication, which carries data past the gateway",
    names: words(`pg_create_physical_replication_slot pg_create_logical_replication_slot pg_drop_replication_slot
      pg_copy_physical_replication_slot pg_copy_logical_replication_slot pg_replication_slot_advance
      pg_sync_replication_slots pg_get_publication_tables`),
    prefixes: ["pg_logical_", "pg_replication_origin_", "pg_get_wal_", "pg_get_logical_", "pglogical_"],
    schemas: ["pglogical"],
  },
  {
    why: "it changes who the session is",
    names: words("sepgsql_setcon"),
  },
  {
    why: "it writes planner statistics by hand",
    names: words(`pg_restore_relation_stats pg_restore_attribute_stats pg_clear_relation_stats pg_clear_attribute_stats
      pg_set_relation_stats pg_set_attribute_stats`),
  },
];

/** Functions that do what a statement of that class does. */
const AS_CLASS: ReadonlyMap<string, StatementClass> = new Map([
  ...each("sequence", "nextval setval"),
  ...each("notify", "pg_notify"),
  ...each("set", "set_config"),
  ...each("signal", "pg_cancel_backend pg_terminate_backend"),
  ...each(
    "lock",
    `pg_advisory_lock pg_advisory_lock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_lock
     pg_try_advisory_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared pg_advisory_unlock
     pg_advisory_unlock_shared pg_advisory_unlock_all`,
  ),
  ...each(
    "large_object",
    "lo_creat lo_create lo_unlink lowrite lo_put lo_from_bytea lo_truncate lo_truncate64 lo_open lo_manage",
  ),
  ...each("vacuum", "brin_summarize_new_values brin_summarize_range brin_desummarize_range gin_clean_pending_list"),
]);

/** Functions whose first argument names a sequence that they change. */
export const SEQUENCE_WRITERS: ReadonlySet<string> = new Set(["nextval", "setval"]);

const NEVER_BY_NAME = new Map(NEVER.flatMap(({ why, names }) => names.map((name) => [name, why] as const)));
const NEVER_BY_SCHEMA = new Map(NEVER.flatMap(({ why, schemas = [] }) => schemas.map((name) => [name, why] as const)));
const NEVER_BY_PREFIX = NEVER.flatMap(({ why, prefixes = [] }) => prefixes.map((prefix) => [prefix, why] as const));

/** Why this function is refused in every scope, or undefined. `schema` as written, undefined where left out. */
export function neverCalled(schema: string | undefined, name: string, argumentCount?: number): string | undefined {
  const why = NEVER_BY_NAME.get(name) ?? (schema === undefined ? undefined : NEVER_BY_SCHEMA.get(schema));
  if (why !== undefined) return why;
  // ts_rewrite(query, text) runs the text; ts_rewrite(query, query, query) only computes.
  if (name === "ts_rewrite" && argumentCount !== 3) return NEVER_BY_NAME.get("ts_stat");
  return NEVER_BY_PREFIX.find(([prefix]) => name.startsWith(prefix))?.[1];
}

export function classOfFunction(name: string): StatementClass | undefined {
  return AS_CLASS.get(name);
}

function words(names: string): readonly string[] {
  return names.split(/\s+/).filter((name) => name !== "");
}

function each(cls: StatementClass, names: string): readonly (readonly [string, StatementClass])[] {
  return words(names).map((name) => [name, cls] as const);
}
