import { Kysely, PostgresDialect, type Transaction } from "kysely";
import pg from "pg";
import { describe, GlassError } from "../core/errors.ts";
import type { Database } from "./tables.ts";

export type Store = Kysely<Database>;
export type Tx = Transaction<Database>;

/** How to reach the store's PostgreSQL. */
export interface StoreAddress {
  host: string;
  port: number;
  user: string;
  password: string;
  database: string;
  /** PEM of the CA that its certificate must chain to; undefined: no TLS, for loopback only. */
  ca?: string;
}

const CONNECTIONS = 16; // reconcile loops, the API and session opens of one process; far below PostgreSQL's default 100
const STATEMENT_TIMEOUT_MS = 15_000; // nothing here takes long; a store that hangs must show as an error
const INT8 = 20;

/** Opens a pool. Connects lazily; `ping` or the migrations show whether the store is there. */
export function openStore(address: StoreAddress): Store {
  const pool = new pg.Pool({
    ...clientConfig(address),
    max: CONNECTIONS,
    statement_timeout: STATEMENT_TIMEOUT_MS,
    query_timeout: STATEMENT_TIMEOUT_MS + 5_000,
    idleTimeoutMillis: 60_000,
  });
  pool.on("error", () => {}); // an idle connection broke; the next query opens another, or says why not
  return new Kysely<Database>({ dialect: new PostgresDialect({ pool }) });
}

/** Settings for one `pg` connection to the store, for LISTEN and for advisory locks. */
export function clientConfig(address: StoreAddress): pg.ClientConfig {
  const parsers: pg.CustomTypesConfig = {
    getTypeParser: (oid: number, format?: "text" | "binary") =>
      oid === INT8 && format !== "binary"
        ? Number
        : (pg.types.getTypeParser as (oid: number, format?: string) => unknown)(oid, format),
  };
  return {
    host: address.host,
    port: address.port,
    user: address.user,
    password: address.password,
    database: address.database,
    application_name: "glasskey",
    connectionTimeoutMillis: 10_000,
    keepAlive: true,
    ...(address.ca === undefined ? {} : { ssl: { ca: address.ca } }),
    types: parsers,
  };
}

/** Turns a failed query into `store_unavailable` where the store is to blame; leaves other errors as they are. */
export function storeError(error: unknown): unknown {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const lost =
    /^(08|57P|53)|^E(CONN|PIPE|HOST|NET|TIMEDOUT)/.test(code) || /timeout|terminated|ended/i.test(describe(error));
  if (error instanceof GlassError || !lost) return error;
  return new GlassError("store_unavailable", `the store does not answer: ${describe(error)}`, {
    next: "Try again in a moment. Running sessions go on; no new ones open.",
    cause: error,
  });
}
