import type { ConnectAnswer } from "@glasskey/contract";
import { CliError } from "./errors.ts";

/** How to run a native client. Built here: a server's answer supplies values, never a program or a variable's name. */
export interface NativeClient {
  /** Program and arguments; the secret is not among them. */
  argv: readonly string[];
  /** For the client, or for any other program that speaks the protocol; the secret is in it. */
  env: Readonly<Record<string, string>>;
  /** The one line that works without `glass`. */
  line: string;
}

/** Everything that libpq reads from its environment for a connection: psql, pg_dump, pgbench and most drivers. */
const LIBPQ = ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE", "PGSSLROOTCERT"] as const;
const KEYWORDS = {
  PGHOST: "host",
  PGPORT: "port",
  PGUSER: "user",
  PGDATABASE: "dbname",
  PGSSLMODE: "sslmode",
  PGSSLROOTCERT: "sslrootcert",
};

/** @throws CliError for a kind that this version of `glass` does not know. */
export function nativeClient(answer: ConnectAnswer, caFile: string): NativeClient {
  if (answer.kind !== "postgres") {
    throw new CliError("usage", "this glass does not know how to connect to that kind of target", {
      next: "Update glass to the server's version.",
    });
  }
  const settings = LIBPQ.map((name) => [name, (answer.env[name] ?? "").replaceAll("{ca}", caFile)] as const);
  const conninfo = settings.map(([name, value]) => `${KEYWORDS[name]}=${conninfoValue(value)}`).join(" ");
  return {
    argv: ["psql"],
    env: { ...Object.fromEntries(settings), PGPASSWORD: answer.secret },
    line: `PGPASSWORD=${shellQuote(answer.secret)} psql ${shellQuote(conninfo)}`,
  };
}

/** As libpq reads a keyword/value string (PostgreSQL documentation, section 34.1.1.1). */
function conninfoValue(value: string): string {
  return /^[\w./:-]+$/.test(value) ? value : `'${value.replaceAll(/['\\]/g, String.raw`\$&`)}'`;
}

/**
 * What follows `--` as arguments of ssh. One word is a command line, as a person would type it there. Several are a program
 * and its arguments, and arrive as such: ssh itself would join them with spaces, for the other side's shell to take apart.
 */
export function remoteCommand(command: readonly string[]): readonly string[] {
  const [first = ""] = command;
  if (command.length === 0 || first.startsWith("-")) return command;
  return ["--", command.length === 1 ? first : command.map(shellQuote).join(" ")];
}

/** For a POSIX shell; as it is, where nothing in it means anything to one. */
export function shellQuote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}
