import { parseArgs } from "node:util";
import { COMMANDS, type Command } from "./commands.ts";
import { CliError, usage } from "./errors.ts";
import { helpFor, overview } from "./help.ts";
import { createOutput, paragraph, plain, type Output } from "./output.ts";

/** Runs one verb. @returns the exit code: 0 done, 1 failed, 2 usage, 3 denied, 4 waiting for a human, 5 not proved. */
export async function main(argv: readonly string[]): Promise<number> {
  const out = createOutput(argv.slice(0, argv.includes("--") ? argv.indexOf("--") : undefined).includes("--json"));
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(0); // the reader of a pipe left
    out.hint(`${out.red("glass:")} cannot write all of the output: ${error.message}`);
    process.exit(1);
  });
  try {
    return await run(argv, out);
  } catch (thrown) {
    const error =
      thrown instanceof CliError
        ? thrown
        : new CliError("internal", thrown instanceof Error ? thrown.message : String(thrown), { cause: thrown });
    out.value({ error: { code: error.code, message: error.message, next: error.next, details: error.details } });
    const [first = "", ...rest] = error.message.split("\n");
    const width = process.stderr.columns ?? Infinity; // a file gets whole lines
    for (const line of paragraph(`${out.red("glass:")} ${first}`, 0, width)) out.hint(line);
    for (const line of [...rest, ...(error.next === undefined ? [] : [error.next])])
      for (const part of paragraph(line, 2, width)) out.hint(part);
    if (process.env["GLASSKEY_DEBUG"] !== undefined) console.error(thrown);
    return error.exit;
  }
}

async function run(argv: readonly string[], out: Output): Promise<number> {
  const [verb, ...rest] = argv;
  if (verb === "--version" || verb === "version") {
    process.stdout.write(`glass ${VERSION}\n`);
    return 0;
  }
  if (verb === undefined || verb === "help" || verb === "--help" || verb === "-h") {
    if (rest.length === 0) {
      process.stdout.write(overview());
      return 0;
    }
    const topics = COMMANDS.filter((command) => `${command.name} `.startsWith(`${rest.join(" ")} `));
    const exact = topics.find((command) => command.name === rest.join(" "));
    if (topics.length === 0) throw unknownVerb(rest[0] ?? "");
    process.stdout.write((exact === undefined ? topics : [exact]).map(helpFor).join("\n"));
    return 0;
  }
  const found = find(argv);
  if (found === undefined) throw unknownVerb(verb);
  const { command, args } = found;
  const split = args.indexOf("--");
  const own = split === -1 ? args : args.slice(0, split);
  if (own.includes("--help") || own.includes("-h")) {
    process.stdout.write(helpFor(command));
    return 0;
  }
  const parsed = parse(command, own);
  return command.run({ ...parsed, command: split === -1 ? [] : args.slice(split + 1), out });
}

const VERSION = "0.1.0";
const SERVER_VERBS: readonly string[] = ["serve", "init", "secret", "playbook"];

/** Words that people type who know other tools. */
const MEANT: ReadonlyMap<string, string> = new Map(
  ["ssh", "scp", "sftp", "psql", "shell"].map((word) => [word, "connect"]),
);

function unknownVerb(verb: string): CliError {
  const verbs = [...COMMANDS.map((command) => command.name.split(" ")[0] ?? ""), ...SERVER_VERBS];
  const near = MEANT.get(verb) ?? verbs.find((name) => close(name, verb));
  const next = near === undefined ? "See: glass help" : `Did you mean: glass ${near}?`;
  return usage(`there is no verb "${plain(verb.slice(0, 40))}"`, next);
}

function find(argv: readonly string[]): { command: Command; args: readonly string[] } | undefined {
  for (const words of [3, 2, 1]) {
    const command = COMMANDS.find((candidate) => candidate.name === argv.slice(0, words).join(" "));
    if (command !== undefined) return { command, args: argv.slice(words) };
  }
  return undefined;
}

function parse(
  command: Command,
  args: readonly string[],
): { args: string[]; options: Record<string, string | boolean | undefined> } {
  try {
    const options = { ...command.options, json: { type: "boolean" as const } };
    const { values, positionals } = parseArgs({ args: [...args], options, allowPositionals: true, strict: true });
    const [least, most] = command.arity;
    if (positionals.length < least || positionals.length > most) {
      throw usage(
        positionals.length < least
          ? `glass ${command.name} needs more`
          : `"${plain(positionals[most] ?? "")}" is too much`,
        `${positionals.length > most && command.usage.includes("[-- CMD") ? "A command goes behind --. " : ""}Usage: ${command.usage}`,
      );
    }
    return { args: positionals, options: values };
  } catch (error) {
    if (error instanceof CliError) throw error;
    const wrong = /'--([\w-]+)/.exec(error instanceof Error ? error.message : "")?.[1];
    const near =
      wrong === undefined ? undefined : Object.keys(command.options ?? {}).find((name) => close(name, wrong));
    if (near !== undefined && near !== wrong) {
      throw usage(`there is no option --${wrong}`, `Did you mean --${near}? Usage: ${command.usage}`);
    }
    throw usage(
      error instanceof Error ? (error.message.split(". ")[0] ?? "") : String(error),
      `Usage: ${command.usage}`,
    );
  }
}

/** Two slips of the fingers away at most: Levenshtein's distance, one row at a time. */
function close(a: string, b: string): boolean {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (const [i, letter] of Array.from(a.slice(0, 40)).entries()) {
    const next = [i + 1];
    for (let j = 1; j <= b.length; j += 1) {
      const replaced = (row[j - 1] ?? 0) + (letter === b[j - 1] ? 0 : 1);
      next.push(Math.min((next[j - 1] ?? 0) + 1, (row[j] ?? 0) + 1, replaced));
    }
    row = next;
  }
  return (row[b.length] ?? 9) <= Math.min(2, b.length - 1);
}
