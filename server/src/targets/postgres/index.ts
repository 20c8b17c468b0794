import type { ClientCommand, ClientEndpoint, TargetKind } from "../target.ts";
import { configOf, parseConfig } from "./config.ts";
import { createDriver } from "./credentials.ts";
import { promisesOf } from "./promises.ts";
import { compileScope, loadParser, parseScope } from "./scope.ts";
import { createServe } from "./session.ts";

/** PostgreSQL 15 to 18: roles minted from a template role, its own wire protocol through the gateway. */
export const postgres: TargetKind = {
  kind: "postgres",
  parseConfig,
  parseScope,
  promises: promisesOf,
  driver: createDriver,
  serve: createServe({ compileScope, loadParser }),
  clientCommand,
};

/** The same settings twice: as psql's own argument, and in libpq's environment variables for every other client. */
function clientCommand(endpoint: ClientEndpoint): ClientCommand {
  const [database = "postgres"] = configOf(endpoint.config).databases;
  const settings = [
    ["host", "PGHOST", endpoint.host],
    ["port", "PGPORT", String(endpoint.port)],
    ["user", "PGUSER", endpoint.grant],
    ["dbname", "PGDATABASE", database],
    ["sslmode", "PGSSLMODE", "verify-full"],
    ["sslrootcert", "PGSSLROOTCERT", endpoint.caFile],
  ] as const;
  const argument = settings.map(([key, , value]) => `${key}=${quoteSetting(value)}`).join(" ");
  const env = Object.fromEntries(settings.map(([, variable, value]) => [variable, value]));
  return { argv: ["psql", argument], env, secretEnv: "PGPASSWORD" };
}

/** As libpq reads a keyword/value string (PostgreSQL documentation, section 34.1.1.1). */
function quoteSetting(value: string): string {
  return /^[\w./:-]+$/.test(value) ? value : `'${value.replaceAll(/['\\]/g, String.raw`\$&`)}'`;
}
