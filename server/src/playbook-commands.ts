import { randomBytes } from "node:crypto";
import { open, readFile, realpath, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { parseArgs, type ParseArgsConfig } from "node:util";
import { ERRORS } from "@glasskey/contract/errors";
import { describe, GlassError } from "./core/errors.ts";
import { runTests } from "./playbooks/check-tests.ts";
import { measureCoverage, percentOf } from "./playbooks/coverage.ts";
import type { PolicyFiles } from "./playbooks/files.ts";
import { formatFile } from "./playbooks/format.ts";
import { createLayout, type Layout } from "./playbooks/layout.ts";
import { lintPolicy } from "./playbooks/lint.ts";
import { compilePolicy, loadPolicy, readPolicyFiles } from "./playbooks/load.ts";
import { formatPlan } from "./playbooks/plan-format.ts";
import { planPolicies } from "./playbooks/plan.ts";
import type { Policy } from "./playbooks/policy.ts";
import { countOf, printCoverage, printExplanation, printFailure, printSmell } from "./playbooks/printout.ts";
import { formatProblems, nearest, type PolicyProblem, sortProblems } from "./playbooks/problem.ts";
import { readRevision } from "./playbooks/revision.ts";
import { explain } from "./playbooks/what-if.ts";
import { kinds } from "./targets/registry.ts";

/**
 * `glass playbook …`: everything that is asked of policy files without a server. Nothing here opens a connection, and only
 * `fmt` writes.
 */
interface Verb {
  readonly usage: string;
  readonly summary: string;
  readonly help: string;
  readonly options: NonNullable<ParseArgsConfig["options"]>;
  /** Fewest and most arguments. */
  readonly arity: readonly [number, number];
  /** @returns the exit code. */
  run(call: Call): Promise<number>;
}

interface Call {
  readonly args: readonly string[];
  text(option: string): string | undefined;
  flag(option: string): boolean;
  readonly out: Layout;
  readonly json: boolean;
}

const text = { type: "string" } as const;
const flag = { type: "boolean" } as const;
const EXIT = { done: 0, failed: 1, denied: 3, waits: 4 } as const;
const KINDS = new Map(kinds.map((kind) => [kind.kind, kind]));
const MAX_FORMAT_BYTES = 4 * 1024 * 1024; // the largest policy file that is ever read

const FOLDER_HELP = "DIR is a policy folder; default: this folder if it is one, else its policy/.";

const VERBS: Readonly<Record<string, Verb>> = {
  lint: {
    usage: "glass playbook lint [DIR] [--strict]",
    summary: "Mistakes, and what a careful reviewer would ask about",
    help: `${FOLDER_HELP}
  --strict  exit code 1 for any warning that is not excepted
A comment in a playbook may say why a warning is meant:
  # glasskey-lint: allow GK003 because …
docs/playbook-lint.md explains each code.
Example: glass playbook lint policy --strict`,
    options: { strict: flag },
    arity: [0, 1],
    run: lint,
  },
  test: {
    usage: "glass playbook test [DIR] [--cover] [--min PERCENT]",
    summary: "Run the tests that are written in the playbooks",
    help: `${FOLDER_HELP}
  --cover  also list the clauses that no test exercises
  --min N  with less than N percent of the clauses exercised: exit code 1
Example: glass playbook test policy --cover --min 90`,
    options: { cover: flag, min: text },
    arity: [0, 1],
    run: test,
  },
  plan: {
    usage: "glass playbook plan OLD NEW [--markdown]",
    summary: "Who gains and who loses what between two versions",
    help: `OLD and NEW are folders, or REV:FOLDER of the git repository here; nothing is checked out.
  --markdown  for a comment on a pull request
Exit code 4 when access was widened, so that somebody looks at it; 0 when it was not.
Example: glass playbook plan origin/main:policy policy`,
    options: { markdown: flag },
    arity: [2, 2],
    run: plan,
  },
  explain: {
    usage: "glass playbook explain PLAYBOOK --as PERSON [--reason CODE] [--for 30m] [--dir DIR]",
    summary: "Would it open for this person, which clause says so, what would have to be true",
    help: `  --as PERSON        name or alias
  --reason CODE      default: the playbook's first
  --for 30m          default: the playbook's max
  --incident SEV1    an open incident of this severity is named
  --oncall A,B       on call for these rotas only; default: as oncall.yaml says
  --unknown A,B      nobody knows about these rotas, or: incident
  --approved-by A,B  these people have said yes
  --at MOMENT        such as 2026-11-20T02:14Z; default: now
  --unsigned N       uses within limit.per whose review is not signed
  --open N           other grants of it that wait or are open
  --overdue N        reviews that are overdue
  --since-last 2h    since this person's last use
  --cedar            show the Cedar policies that decide
  --dir DIR          the policy folder
Exit code 0: it opens; 4: it waits for approvals; 3: it is denied.
Example: glass playbook explain orders-db-write --as ann --approved-by bob`,
    options: {
      ...{
        as: text,
        reason: text,
        for: text,
        incident: text,
        oncall: text,
        unknown: text,
        "approved-by": text,
        at: text,
      },
      ...{ unsigned: text, open: text, overdue: text, "since-last": text, cedar: flag, dir: text },
    },
    arity: [1, 1],
    run: explainVerb,
  },
  fmt: {
    usage: "glass playbook fmt [--check] [DIR | FILE…]",
    summary: "Policy files in one form: order of keys, spaces, line lengths",
    help: `${FOLDER_HELP}
  --check  change nothing; exit code 1 if a file is not in this form
Comments stay, and what the files mean never changes. With a mistake in one file nothing is written.
Example: glass playbook fmt policy`,
    options: { check: flag },
    arity: [0, 4_000],
    run: format,
  },
};

/** `glass playbook VERB …`. @param argv begins with `playbook`. @returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const json = argv.includes("--json");
  process.stdout.on("error", () => process.exit(0)); // the reader of a pipe left
  try {
    return await run(argv.slice(1), json);
  } catch (error) {
    const code = error instanceof GlassError ? error.code : "internal";
    const message = error instanceof GlassError ? error.message : describe(error);
    const next = error instanceof GlassError ? error.next : undefined;
    const details = error instanceof GlassError ? error.details : undefined;
    if (json) printJson({ error: { code, message, next, details } });
    const err = layoutOf(process.stderr);
    const problems = error instanceof InvalidPolicy ? formatProblems(error.problems).trimEnd().split("\n") : [];
    for (const line of problems) err.say(line);
    err.say(`${err.red("glass:")} ${message}`);
    if (next !== undefined) err.block(next, 2);
    if (process.env["GLASSKEY_DEBUG"] !== undefined) console.error(error);
    return ERRORS[code].exit;
  }
}

async function run(argv: readonly string[], json: boolean): Promise<number> {
  const [name = "", ...rest] = argv;
  const out = json ? createLayout(() => {}) : layoutOf(process.stdout);
  if (["", "help", "--help", "-h"].includes(name)) {
    overview(layoutOf(process.stdout));
    return name === "" ? ERRORS.usage.exit : EXIT.done;
  }
  const verb = Object.hasOwn(VERBS, name) ? VERBS[name] : undefined;
  if (verb === undefined) {
    const near = nearest(name, Object.keys(VERBS));
    const next = near === undefined ? "See: glass playbook --help" : `Did you mean: glass playbook ${near}?`;
    throw new GlassError("usage", `there is no verb "playbook ${name.slice(0, 40)}"`, { next });
  }
  if (rest.includes("--help") || rest.includes("-h")) {
    const help = layoutOf(process.stdout);
    help.say(`${verb.summary}.`);
    help.say();
    help.block(verb.usage, 2);
    help.say();
    for (const line of verb.help.split("\n")) help.block(line.trimStart(), line.length - line.trimStart().length);
    return EXIT.done;
  }
  const { values, positionals } = parse(name, verb, rest);
  return await verb.run({
    ...{ args: positionals, out, json },
    text: (option) => (typeof values[option] === "string" ? values[option] : undefined),
    flag: (option) => values[option] === true,
  });
}

function overview(out: Layout): void {
  out.say("glass playbook: policy files, checked and explained offline. No server is asked.");
  out.say();
  out.table(
    Object.values(VERBS).map(({ usage, summary }) => [usage.replace(/ (?:\[?--| PERSON).*$/, ""), summary]),
    2,
  );
  out.say();
  out.block("Every verb takes --json; `glass playbook VERB --help` says more.", 0);
  out.block("Exit codes: 0 done, 1 failed, 2 a mistake in the files or the command, 3 denied, 4 waits, or widened.", 0);
}

function parse(name: string, verb: Verb, args: readonly string[]): ReturnType<typeof parseArgs> {
  const next = `Usage: ${verb.usage}`;
  const options = { ...verb.options, json: flag };
  let parsed: ReturnType<typeof parseArgs>;
  try {
    parsed = parseArgs({ args: [...args], options, allowPositionals: true, strict: true });
  } catch (cause) {
    const message = describe(cause);
    const wrong = /'(?:--?)([\w-]+)/.exec(message)?.[1] ?? "";
    const near = Object.hasOwn(options, wrong) ? undefined : nearest(wrong, Object.keys(options));
    if (near !== undefined) {
      throw new GlassError("usage", `there is no option --${wrong}`, {
        next: `Did you mean --${near}? ${next}`,
        cause,
      });
    }
    throw new GlassError("usage", message.split(". ")[0] ?? "", { next, cause });
  }
  const [least, most] = verb.arity;
  const { length } = parsed.positionals;
  if (length < least) throw new GlassError("usage", `glass playbook ${name} needs more`, { next });
  if (length > most) {
    throw new GlassError("usage", `"${parsed.positionals[most] ?? ""}" is too much`, { next });
  }
  return parsed;
}

async function lint({ args, flag: has, out, json }: Call): Promise<number> {
  const { policy, files } = await load(await folderOf(args[0]));
  const smells = lintPolicy(policy, files);
  const counted = smells.filter(({ because }) => because === undefined);
  const warnings = counted.filter(({ severity }) => severity === "warning").length;
  const failed = has("strict") && warnings > 0;
  if (json) printJson({ ok: !failed, smells });
  for (const smell of counted) printSmell(out, smell);
  const excepted = smells.length - counted.length;
  const notes = counted.length - warnings;
  const parts = [countOf(warnings, "warning"), ...(notes === 0 ? [] : [countOf(notes, "note")])];
  if (excepted > 0) parts.push(`${excepted} excepted`);
  const summary = `${countOf(policy.playbooks.length, "playbook")}: ${parts.join(", ")}.`;
  out.say(warnings === 0 ? out.green(summary) : out.yellow(summary));
  if (warnings > 0) out.block("docs/playbook-lint.md explains each code, and how to write an exception.", 0);
  return failed ? EXIT.failed : EXIT.done;
}

async function test({ args, text: value, flag: has, out, json }: Call): Promise<number> {
  const least = percentOption(value("min"));
  const { policy } = await load(await folderOf(args[0]));
  const outcomes = runTests(policy);
  const failed = outcomes.filter(({ passed }) => !passed);
  const cover = has("cover") || least !== undefined ? measureCoverage(policy) : undefined;
  const percent = cover === undefined ? undefined : percentOf(cover);
  const short = least !== undefined && percent !== undefined && percent < least;
  const good = outcomes.length > 0 && failed.length === 0 && !short;
  if (json) {
    const tests = outcomes.map(({ playbook, test: { place, expect, who }, passed, asked, decision }) => ({
      ...{ playbook, ...place, expect, who, passed, asked, reasons: decision.reasons, clauses: decision.clauses },
    }));
    printJson({ ok: good, tests, ...(cover === undefined ? {} : { coverage: { percent, clauses: cover } }) });
  }
  for (const { name } of policy.playbooks) {
    const own = outcomes.filter(({ playbook }) => playbook === name);
    const bad = own.filter(({ passed }) => !passed);
    if (own.length === 0) out.say(`${out.yellow("-")} ${name}  no tests`);
    else if (bad.length === 0) out.say(`${out.green("✓")} ${name}  ${countOf(own.length, "test")}`);
    else out.say(`${out.red("✗")} ${name}  ${bad.length} of ${countOf(own.length, "test")} failed`);
    for (const outcome of bad) printFailure(out, outcome);
  }
  out.say();
  if (outcomes.length === 0) {
    out.block(out.red("There is no test in this folder, so nothing was checked."), 0);
    out.block("Write some: docs/playbooks.md shows how.", 0);
  } else {
    const summary = `${countOf(outcomes.length, "test")}, ${failed.length === 0 ? "all passed" : `${failed.length} failed`}.`;
    out.say(failed.length === 0 ? out.green(summary) : out.red(summary));
  }
  if (cover !== undefined) printCoverage(out, cover);
  if (short) out.block(out.red(`That is less than the ${least}% that --min asks for.`), 0);
  return good ? EXIT.done : EXIT.failed;
}

async function plan({ args, flag: has, out, json }: Call): Promise<number> {
  const [old = "", next = ""] = args;
  const [before, after] = [await version(old), await version(next)];
  const found = planPolicies(before, after, KINDS);
  if (json) printJson(found);
  else if (has("markdown")) process.stdout.write(formatPlan(found, "markdown"));
  else for (const line of formatPlan(found, "text").trimEnd().split("\n")) out.say(line);
  return found.widened ? EXIT.waits : EXIT.done;
}

/** A folder, or a folder in a git revision. */
async function version(named: string): Promise<Policy> {
  if (await isFolder(named)) return (await load(named)).policy;
  if (!named.includes(":")) {
    throw new GlassError("usage", `there is no folder ${named}`, {
      next: "Name a folder, or REV:FOLDER such as HEAD:policy.",
    });
  }
  const compiled = compilePolicy({ files: await readRevision(named, process.cwd()), kinds: KINDS });
  if (!compiled.ok) throw new InvalidPolicy(named, compiled.problems);
  return compiled.policy;
}

async function explainVerb({ args, text: value, flag: has, out, json }: Call): Promise<number> {
  const person = value("as");
  if (person === undefined) {
    throw new GlassError("usage", "who asks?", { next: "Add --as with a person's name, such as --as ann." });
  }
  const { policy } = await load(await folderOf(value("dir")));
  const given = (key: string, option: string): object => (value(option) === undefined ? {} : { [key]: value(option) });
  const found = explain(
    policy,
    {
      ...{
        playbook: args[0] ?? "",
        person,
        unknown: listOf(value("unknown")),
        approvedBy: listOf(value("approved-by")),
      },
      ...(value("oncall") === undefined ? {} : { oncall: listOf(value("oncall")) }),
      ...{ ...given("reason", "reason"), ...given("duration", "for"), ...given("incident", "incident") },
      ...{ ...given("at", "at"), ...given("unsigned", "unsigned"), ...given("open", "open") },
      ...{ ...given("overdue", "overdue"), ...given("sinceLast", "since-last") },
    },
    Date.now(),
  );
  const cedar = has("cedar") ? policy.cedar(found.playbook.name) : undefined;
  if (json) {
    const { playbook, person: who, ...rest } = found;
    printJson({ playbook: playbook.name, person: who.name, ...rest, ...(cedar === undefined ? {} : { cedar }) });
  }
  printExplanation(out, found);
  for (const [id, policyText] of Object.entries(cedar ?? {})) {
    out.say();
    out.say(out.dim(`// ${id}`));
    for (const line of policyText.split("\n")) out.block(line, 0);
  }
  return { yes: EXIT.done, waits: EXIT.waits, no: EXIT.denied }[found.answer];
}

async function format({ args, flag: has, out, json }: Call): Promise<number> {
  const paths = (await Promise.all((args.length === 0 ? [await folderOf(undefined)] : args).map(filesBelow))).flat();
  const problems: PolicyProblem[] = [];
  const changed: { path: string; formatted: string }[] = [];
  for (const path of new Set(paths)) {
    const { size } = await stat(path);
    if (size > MAX_FORMAT_BYTES) throw new GlassError("usage", `${path} is too large to be a policy file`);
    const source = await readFile(path, "utf8");
    const result = formatFile(path, source);
    if (!result.ok) problems.push(...result.problems);
    else if (result.text !== source) changed.push({ path, formatted: result.text });
  }
  if (problems.length > 0) throw new InvalidPolicy("a file", sortProblems(problems));
  const check = has("check");
  if (!check) for (const { path, formatted } of changed) await replaceFile(path, formatted);
  if (json) printJson({ ok: !check || changed.length === 0, changed: changed.map(({ path }) => path) });
  for (const { path } of changed) out.say(`${check ? out.yellow("would change") : out.green("formatted")}  ${path}`);
  if (changed.length === 0) out.say(out.green(`${countOf(paths.length, "file")}, nothing to change.`));
  else if (check) out.say("To change them: glass playbook fmt");
  return check && changed.length > 0 ? EXIT.failed : EXIT.done;
}

async function filesBelow(path: string): Promise<readonly string[]> {
  if (!(await isFolder(path))) {
    if ((await stat(path).catch(() => undefined))?.isFile() === true) return [path];
    throw new GlassError("usage", `there is no file ${path}`, { next: "Name a policy folder, or files in it." });
  }
  const { files, problems } = await readPolicyFiles(path);
  if (problems.length > 0) throw new InvalidPolicy(path, problems);
  return [...files.keys()].filter((file) => file.endsWith(".yaml")).map((file) => join(path, file));
}

/** Written beside and renamed, so that a file is either as it was or as it should be; a link stays one. */
async function replaceFile(path: string, content: string): Promise<void> {
  const real = await realpath(path);
  const { mode } = await stat(real);
  const beside = join(dirname(real), `.glass-fmt-${randomBytes(6).toString("hex")}`);
  const file = await open(beside, "wx", mode & 0o777);
  try {
    await file.writeFile(content);
    await file.chmod(mode & 0o777); // whatever the umask took away
    await file.sync();
    await file.close();
    await rename(beside, real);
  } catch (error) {
    await file.close().catch(() => {});
    await rm(beside, { force: true });
    throw error;
  }
}

/** A policy that has mistakes: they are shown before the sentence. */
class InvalidPolicy extends GlassError {
  readonly problems: readonly PolicyProblem[];

  constructor(where: string, problems: readonly PolicyProblem[]) {
    const shown = problems.map(({ file, line, column, message, help }) => ({ file, line, column, message, help }));
    super("config_invalid", `${where} has ${countOf(problems.length, "mistake")}`, { details: { problems: shown } });
    this.problems = problems;
  }
}

async function load(folder: string): Promise<{ policy: Policy; files: PolicyFiles }> {
  const { files, problems } = await readPolicyFiles(folder);
  const compiled =
    problems.length === 0 ? compilePolicy({ files, kinds: KINDS }) : await loadPolicy({ folder, kinds: KINDS });
  if (!compiled.ok) throw new InvalidPolicy(folder, compiled.problems);
  return { policy: compiled.policy, files };
}

async function folderOf(named: string | undefined): Promise<string> {
  if (named !== undefined) {
    if (await isFolder(named)) return named;
    throw new GlassError("usage", `there is no folder ${named}`, {
      next: "Name a policy folder: it holds policy.yaml.",
    });
  }
  for (const folder of [".", "policy"]) {
    if ((await stat(join(folder, "policy.yaml")).catch(() => undefined))?.isFile() === true) return folder;
  }
  throw new GlassError("usage", "there is no policy.yaml here, nor in policy/", { next: "Name the policy folder." });
}

async function isFolder(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() === true;
}

function percentOption(given: string | undefined): number | undefined {
  if (given === undefined) return undefined;
  const percent = /^\d{1,3}%?$/.test(given) ? Number.parseInt(given, 10) : Number.NaN;
  if (percent <= 100) return percent;
  throw new GlassError("usage", "--min is not a percentage", { next: "Write it as --min 90." });
}

function listOf(given: string | undefined): readonly string[] {
  return (given ?? "").split(",").flatMap((word) => (word.trim() === "" ? [] : [word.trim()]));
}

function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

function layoutOf(stream: NodeJS.WriteStream): Layout {
  const colour = stream.isTTY && process.env["NO_COLOR"] === undefined && process.env["TERM"] !== "dumb";
  const columns = stream.isTTY ? stream.columns : undefined;
  return createLayout((line) => void stream.write(line), columns, colour);
}
