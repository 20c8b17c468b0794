import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import pg from "pg";
import { describe, GlassError } from "../core/errors.ts";
import { clientConfig, type StoreAddress } from "./database.ts";

const FOLDER = new URL("./migrations/", import.meta.url);
const LOCK = 0x676c6173; // "glas": one migration at a time in one database

/**
 * Brings the store to this version: every `NNNN_name.sql` that is not applied yet, in order, each in its own transaction,
 * under an advisory lock, so that two processes may start at once.
 * @param then what the owner of the tables does last, on the same connection and under the same lock.
 * @returns the names of those applied now.
 * @throws GlassError `store_unavailable` when the store cannot be reached; `config_invalid` when it was migrated by a
 *   newer Glasskey, or an applied migration's text has changed since.
 */
export async function migrate(
  address: StoreAddress,
  then?: (client: pg.Client) => Promise<void>,
): Promise<readonly string[]> {
  const files = (await readdir(FOLDER)).filter((name) => /^\d{4}_[a-z_]+\.sql$/.test(name)).toSorted();
  const client = new pg.Client(clientConfig(address));
  client.on("error", () => {});
  try {
    await client.connect();
  } catch (cause) {
    throw new GlassError(
      "store_unavailable",
      `the store at ${address.host}:${address.port} does not answer: ${describe(cause)}`,
      {
        next: "Check `database:` in glasskey.yaml and that PostgreSQL runs there.",
        cause,
      },
    );
  }
  try {
    await client.query("select pg_advisory_lock($1)", [LOCK]);
    await client.query(
      `create table if not exists schema_migrations (
         name text primary key, sha256 text not null, applied_at timestamptz not null default now())`,
    );
    const { rows } = await client
      .query<{ name: string; sha256: string }>("select name, sha256 from schema_migrations")
      .catch((cause: unknown) => {
        throw notTheOwner(address.user, cause);
      });
    const applied = new Map(rows.map((row) => [row.name, row.sha256]));
    for (const name of applied.keys()) {
      if (!files.includes(name)) {
        throw new GlassError("config_invalid", `the store was migrated by a newer Glasskey (${name})`, {
          next: "Start that version, or restore the store from before the upgrade.",
        });
      }
    }
    const done: string[] = [];
    for (const name of files) {
      const sql = await readFile(new URL(name, FOLDER), "utf8");
      const sha256 = createHash("sha256").update(sql).digest("hex");
      const known = applied.get(name);
      if (known === sha256) continue;
      if (known !== undefined)
        throw new GlassError("config_invalid", `migration ${name} is applied, but its text has changed since`);
      await client.query("begin");
      try {
        await client.query(sql);
        await client.query("insert into schema_migrations (name, sha256) values ($1, $2)", [name, sha256]);
        await client.query("commit");
      } catch (cause) {
        await client.query("rollback");
        throw new GlassError("config_invalid", `migration ${name} failed: ${describe(cause)}`, { cause });
      }
      done.push(name);
    }
    await then?.(client);
    return done;
  } finally {
    await client.end(); // releases the lock too
  }
}

function notTheOwner(user: string, cause: unknown): unknown {
  if (!(cause instanceof pg.DatabaseError) || cause.code !== "42501") return cause;
  return new GlassError("config_invalid", `the store's tables do not belong to "${user}"`, {
    next: `As a superuser of the store: REASSIGN OWNED BY whoever has them TO ${pg.escapeIdentifier(user)}`,
    cause,
  });
}
