import { join } from "node:path";
import { createInterface } from "node:readline/promises";
import { parseArgs } from "node:util";
import { ERRORS } from "@glasskey/contract/errors";
import { readConfig, type ServerConfig } from "./config.ts";
import { describe, GlassError } from "./core/errors.ts";
import { hashSecret, newPersonSecret } from "./identity/secrets.ts";
import { initFolder } from "./init.ts";
import { abandonLostJournal } from "./lost-journal.ts";
import { startServer, VERSION } from "./main.ts";

const HELP: Readonly<Record<string, string>> = {
  serve: `Control plane and gateway in one process, until SIGTERM or Ctrl-C.

  glass serve [--config glasskey.yaml] [--data DIR]
  glass serve --abandon-journal NODE [--yes]

  --config FILE  settings; docs/operations.md explains each key
  --data DIR     keys, store and recordings; wins over \`data:\` in the file
  --abandon-journal NODE
                 start nothing: declare that process's journal lost for good, and
                 end the recordings that were not sealed. The log will say so.
                 --yes does not ask. docs/retention.md tells when

Under a supervisor, SIGHUP reads the policy folder again.`,
  init: `Make a folder to start from: glasskey.yaml, a target to fill in, two playbooks with tests, one person.

  glass init DIR

The person's secret is printed once; only its hash is kept. A folder that is not empty is refused.`,
  secret: `A new secret for a person, and the line for people.yaml that holds its hash.

  glass secret`,
};

/** `glass serve`, `glass init` and `glass secret`. @returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  try {
    if (argv.slice(1).some((word) => word === "--help" || word === "-h")) {
      console.log(HELP[argv[0] ?? ""] ?? "");
      return 0;
    }
    switch (argv[0]) {
      case "serve":
        return await serve(argv.slice(1));
      case "init":
        return await init(argv.slice(1));
      case "secret":
        return await secret();
      default:
        throw new GlassError("usage", "use: glass serve | glass init DIR | glass secret");
    }
  } catch (error) {
    console.error(`glass: ${error instanceof GlassError ? error.message : describe(error)}`);
    if (error instanceof GlassError && error.next !== undefined) console.error(`  ${error.next}`);
    if (process.env["GLASSKEY_DEBUG"] !== undefined) console.error(error);
    return error instanceof GlassError ? ERRORS[error.code].exit : 1;
  }
}

function options<T extends NonNullable<Parameters<typeof parseArgs>[0]>>(
  verb: string,
  parse: T,
): ReturnType<typeof parseArgs<T>> {
  try {
    return parseArgs(parse);
  } catch (cause) {
    throw new GlassError("usage", describe(cause).split(". ")[0] ?? "", { next: `See: glass ${verb} --help`, cause });
  }
}

async function serve(args: readonly string[]): Promise<number> {
  const { values } = options("serve", {
    args: [...args],
    options: {
      ...{ config: { type: "string", default: "glasskey.yaml" }, data: { type: "string" } },
      ...{ "abandon-journal": { type: "string" }, yes: { type: "boolean", default: false } },
    },
  });
  if (values["abandon-journal"] !== undefined)
    return abandon(readConfig(values.config, values.data), values["abandon-journal"], values.yes);
  if (values.yes)
    throw new GlassError("usage", "--yes goes with --abandon-journal", { next: "See: glass serve --help" });
  const config = readConfig(values.config, values.data);
  // A terminal that was closed takes no text; that must not keep anything from being stopped in good order.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
  const warn = (line: string): void => console.error(`${new Date().toISOString()} ${line}`);
  // Installed before anything starts, so that Ctrl-C in the middle of a start stops what was started.
  const signal = Promise.withResolvers<string>();
  for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => signal.resolve(name));
  const server = await startServer(config, warn);
  const reload = (): void =>
    void server.reloadPolicy().then(
      (problems) => warn(problems ?? "the policy was read again and is in force"),
      (error: unknown) => warn(describe(error)),
    );
  // Started by hand, SIGHUP says that the terminal is gone; under a supervisor it asks to read the policy again.
  const byHand = process.stdin.isTTY || process.stdout.isTTY;
  process.on("SIGHUP", () => (byHand ? signal.resolve("SIGHUP") : reload()));
  console.log(`Glasskey ${VERSION} is ready.`);
  console.log(`  API      ${server.url}`);
  for (const [kind, { host, port }] of server.endpoints) console.log(`  gateway  ${host}:${port} (${kind})`);
  console.log(`  CA       ${server.caFile}`);
  console.log(`  log      ${server.logDir}, key ${server.vkey.replaceAll("\n", " and ")}`);
  console.log(`Next: glass login NAME --server ${server.url} --ca ${quoted(server.caFile)}`);
  const end = await Promise.race([signal.promise, server.failed]);
  if (end instanceof Error) console.error(`glass: cannot go on: ${end.message}`);
  else console.log("Stopping: sessions are told, recordings sealed.");
  await server.stop();
  return end instanceof Error ? 1 : 0;
}

/** Gives up a journal that is lost for good, once the operator has typed whose. */
async function abandon(config: ServerConfig, node: string, yes: boolean): Promise<number> {
  if (!/^nd_[0-9a-hjkmnp-tv-z]{8}$/.test(node)) {
    throw new GlassError("usage", "which process's journal? Its id looks like nd_7kq2m9x4", {
      next: "It stands in the file `node` of that process's data folder.",
    });
  }
  if (!yes) {
    if (!process.stdin.isTTY)
      throw new GlassError("usage", "nobody is there to confirm", { next: "Add --yes to give it up for ever." });
    console.error("What was in that journal and not sealed is lost then, and the log will say so for ever.");
    const reader = createInterface({ input: process.stdin, output: process.stderr });
    const typed = await reader.question(`Type ${node} to give up its journal: `).finally(() => reader.close());
    if (typed.trim() !== node) throw new GlassError("usage", "that is not its id; nothing was changed");
  }
  const { sessions, kept } = await abandonLostJournal(config, node);
  console.log(`The journal of ${node} is given up. Recordings that end with what was sealed: ${sessions.length}`);
  for (const session of sessions) console.log(`  ${session}`);
  for (const folder of kept) console.log(`What was in its folder is kept, for whoever looks into it: ${folder}`);
  console.log("Next: glass serve");
  return 0;
}

async function init(args: readonly string[]): Promise<number> {
  const { positionals } = options("init", { args: [...args], options: {}, allowPositionals: true });
  const [dir, ...rest] = positionals;
  if (dir === undefined || rest.length > 0)
    throw new GlassError("usage", "which folder?", { next: "Use: glass init DIR" });
  const made = await initFolder(dir);
  console.log(`Made ${made.dir}:`);
  for (const file of made.files) console.log(`  ${file}`);
  console.log(`\nFirst person: ${made.person}, secret ${made.secret}`);
  console.log("  It is shown once, and only its hash is kept. Write it down.");
  console.log("\nNext: say in policy/targets/orders-prod.yaml which database it is, and give the");
  console.log("others in policy/people.yaml a secret, with glass secret. Then:");
  console.log(`  glass playbook lint ${quoted(join(dir, "policy"))}`);
  console.log(`  glass serve --config ${quoted(join(dir, "glasskey.yaml"))}`);
  return 0;
}

/** A path as a shell takes it for one word. */
function quoted(path: string): string {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", String.raw`'\''`)}'`;
}

async function secret(): Promise<number> {
  const value = newPersonSecret();
  console.log(`Secret, for the person:  ${value}`);
  console.log(`Line for people.yaml:    secret: ${await hashSecret(value)}`);
  console.error("Nothing is stored: put that line below the person's name, then: glass policy reload");
  return 0;
}
