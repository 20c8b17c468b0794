// Stands in for psql in the demo where psql is not installed: prints a query's rows, or its error, as psql would.
import { readFileSync } from "node:fs";
import pg from "pg";

const client = new pg.Client({
  ssl: { ca: readFileSync(process.env["PGSSLROOTCERT"] ?? "", "utf8") },
});
client.on("error", () => {});
client.on("notice", (notice) => console.error(`NOTICE:  ${notice.message ?? ""}`));
try {
  await client.connect();
  const { rows, command, rowCount } = await client.query<Record<string, unknown>>(process.argv[2] ?? "");
  for (const row of rows) console.log(Object.values(row).join(" | "));
  console.log(`${command} ${rowCount ?? 0}`);
} catch (error) {
  console.error(`ERROR:  ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  await client.end();
}
