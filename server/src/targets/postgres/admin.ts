import type { EventEmitter } from "node:events";
import { Socket } from "node:net";
import { getCACertificates } from "node:tls";
import pg from "pg";
import { describe, GlassError } from "../../core/errors.ts";
import type { Secret } from "../../core/secret.ts";
import { causeOnTheWay } from "./causes.ts";

/** Where a target listens, and who may vouch for it. */
export interface Endpoint {
  readonly host: string;
  readonly port: number;
  readonly tls: { readonly ca: string | null; readonly servername: string };
}

export interface Login {
  user: string;
  password: Secret;
  database: string;
  /** Shown in pg_stat_activity. */
  application: string;
}

/** Runs one statement, or several without values, and gives the rows of the last. */
export type Query = <Row extends object = Record<string, unknown>>(
  sql: string,
  values?: readonly unknown[],
) => Promise<readonly Row[]>;

const CONNECT_WITHIN_MS = 10_000; // a cross-region handshake over TLS takes about ten round trips
const STATEMENT_WITHIN_MS = 30_000; // REASSIGN OWNED over thousands of objects; everything else is far below
const LOCK_WITHIN_MS = 5_000; // somebody else's lock on an object of the lease; the caller retries later
const ANSWER_WITHIN_MS = STATEMENT_WITHIN_MS + 5_000; // a target that no longer enforces its own timeout

/**
 * Settings that a role, a database or the environment must not choose for us: names resolve in pg_catalog only, so no
 * object that somebody made in `public` can take part in an administrator's statement.
 */
const SESSION_OPTIONS = [
  "search_path=pg_catalog,pg_temp",
  "default_transaction_read_only=off",
  "default_transaction_isolation=read\\ committed",
  "standard_conforming_strings=on",
  "synchronous_commit=on", // NOLOGIN must survive a crash of the target
  "idle_in_transaction_session_timeout=15s",
  "datestyle=ISO",
  "timezone=UTC",
  "client_min_messages=error",
  "jit=off",
];

/**
 * Opens one connection over verified TLS with SCRAM-SHA-256, and nothing less; runs `work`; always closes the connection.
 * An abort destroys the socket at once. @throws the signal's reason, or the error as `pg` gives it.
 */
export async function withConnection<T>(
  endpoint: Endpoint,
  login: Login,
  signal: AbortSignal,
  work: (query: Query) => Promise<T>,
): Promise<T> {
  signal.throwIfAborted();
  const socket = new Socket();
  const dial = socket.connect.bind(socket);
  // `pg` takes the certificate's name from the host it dials; here the two may differ.
  socket.connect = ((port: number) => dial(port, endpoint.host)) as Socket["connect"];
  const proof = { asked: false, mutual: false };
  const client = new pg.Client({
    ...{ host: endpoint.tls.servername, port: endpoint.port, user: login.user, database: login.database },
    password: () => {
      if (!proof.asked) throw new Error("the target asked for a password without SCRAM-SHA-256; it was not sent");
      return login.password.reveal();
    },
    ssl: { ca: authorities(endpoint.tls.ca), minVersion: "TLSv1.2", rejectUnauthorized: true },
    ...{ sslnegotiation: "postgres", stream: () => socket, application_name: login.application },
    ...{ connectionTimeoutMillis: CONNECT_WITHIN_MS, query_timeout: ANSWER_WITHIN_MS },
    ...{ statement_timeout: STATEMENT_WITHIN_MS, lock_timeout: LOCK_WITHIN_MS },
    options: SESSION_OPTIONS.map((setting) => `-c ${setting}`).join(" "),
  });
  client.on("error", () => {}); // also reported to the query that was running, or to the next one
  const { connection } = client as unknown as { connection: EventEmitter };
  connection.on("authenticationSASL", () => (proof.asked = true));
  connection.on("authenticationSASLFinal", () => (proof.mutual = true));
  const onAbort = (): void => void socket.destroy();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await client.connect();
    if (!proof.mutual) throw new Error("the target let us in without SCRAM-SHA-256; check its pg_hba.conf");
    return await work(async (sql, values) => {
      signal.throwIfAborted();
      const result = await client.query({ text: sql, ...(values === undefined ? {} : { values: [...values] }) });
      const last = (Array.isArray(result) ? result.at(-1) : result) as pg.QueryResult;
      return last.rows;
    });
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener("abort", onAbort);
    // Terminate is sent where the socket still takes it; waiting for a hung target's FIN would hold the caller.
    client.end().catch(() => {});
    setTimeout(() => socket.destroy(), 1_000).unref();
  }
}

function authorities(ca: string | null): string | string[] {
  if (ca !== null) return ca;
  const system = getCACertificates("system");
  return system.length > 0 ? system : getCACertificates("bundled");
}

/** Quotes any text as an SQL identifier. @throws GlassError `usage` for NUL, which PostgreSQL cannot hold. */
export function quoteIdentifier(text: string): string {
  return `"${withoutNul(text).replaceAll('"', '""')}"`;
}

/** Quotes any text as an SQL string literal, whatever `standard_conforming_strings` says. */
export function quoteLiteral(text: string): string {
  const doubled = withoutNul(text).replaceAll("'", "''");
  return doubled.includes("\\") ? ` E'${doubled.replaceAll("\\", "\\\\")}'` : `'${doubled}'`;
}

function withoutNul(text: string): string {
  if (text.includes("\0")) throw new GlassError("usage", "a PostgreSQL name or text cannot contain NUL");
  return text;
}

/** The five-character code of an error that PostgreSQL itself sent, or undefined. */
export function sqlState(error: unknown): string | undefined {
  const code = error instanceof pg.DatabaseError ? error.code : undefined;
  return code !== undefined && /^[0-9A-Z]{5}$/.test(code) ? code : undefined;
}

/**
 * Whether the same statement may succeed when simply tried again: two administrators changed one catalog row at once
 * (`tuple concurrently updated` has no code of its own), a deadlock, a lock that was not given in time.
 */
export function isContention(error: unknown): boolean {
  const code = sqlState(error);
  if (code === "XX000") return describe(error).includes("concurrently");
  return code === "40P01" || code === "40001" || code === "55P03";
}

/** Says in the product's words what went wrong on the way to, or at, the target. */
export function targetError(endpoint: Endpoint, doing: string, error: unknown): GlassError {
  if (error instanceof GlassError) return error;
  const where = `${endpoint.host}:${endpoint.port}`;
  const code = sqlState(error);
  const cause = code === undefined ? causeOnTheWay(endpoint, error) : undefined; // it names the host itself
  const why = `on ${where}: ${code === undefined ? "" : `${code} `}${describe(error)}`;
  const message = cause === undefined ? `${doing} ${why}` : `${doing}: ${cause.detail}`;
  const unfit = code !== undefined && /^(?:42|2B|0L|0P|22|54)/.test(code);
  const next = "Run `glass target check` to see what is missing.";
  return new GlassError(unfit ? "target_unfit" : "target_unreachable", message, { next, cause: error });
}

/** At most `limit` calls at once for one key; the others wait in order, and an abort takes a waiting one out. */
export function createLanes(
  limit: number,
): <T>(key: string, signal: AbortSignal, work: () => Promise<T>) => Promise<T> {
  const lanes = new Map<string, { running: number; waiting: Set<() => void> }>();
  return async (key, signal, work) => {
    signal.throwIfAborted();
    const lane = lanes.get(key) ?? { running: 0, waiting: new Set() };
    lanes.set(key, lane);
    if (lane.running < limit) lane.running += 1;
    else {
      await new Promise<void>((resolve, reject) => {
        const turn = (): void => {
          signal.removeEventListener("abort", leave);
          resolve();
        };
        const leave = (): void => {
          lane.waiting.delete(turn);
          reject(signal.reason as Error);
        };
        lane.waiting.add(turn);
        signal.addEventListener("abort", leave, { once: true });
      });
    }
    try {
      return await work();
    } finally {
      const [next] = lane.waiting;
      if (next !== undefined) {
        lane.waiting.delete(next);
        next(); // hands over the place
      } else {
        lane.running -= 1;
        if (lane.running === 0) lanes.delete(key);
      }
    }
  };
}
