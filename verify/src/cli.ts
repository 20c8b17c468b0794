import { closeSync, existsSync, fstatSync, openSync, readSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseCommand, type Command, type Source } from "./args.ts";
import { decodeUtf8 } from "./encoding.ts";
import { FormatError, VerifyError } from "./errors.ts";
import { openFolder } from "./folder.ts";
import { formatGrowth, formatProved, formatReport } from "./format.ts";
import { verifyGrowth } from "./growth.ts";
import { parseVerifierKeys } from "./note.ts";
import { parseWitnessPolicy, type WitnessPolicy } from "./policy.ts";
import { verifyProof, type Proved } from "./proof.ts";
import { plainText, type Report } from "./report.ts";
import { ReadError, type LogSource } from "./source.ts";
import { openUrl } from "./url.ts";
import { verifyLog } from "./verify.ts";

const FORMS = `Usage: glasskey-verify DIR|URL --key VKEY|FILE [--since FILE]
           [--witnesses FILE [--max-unwitnessed N]] [--no-recordings] [--json]
       glasskey-verify DIR|URL --key VKEY|FILE --since FILE --until FILE
       glasskey-verify --proof FILE --entry FILE --key VKEY|FILE
           [--witnesses FILE]
       glasskey-verify DIR|URL --pin FILE
`;

export const USAGE = `${FORMS}
Verifies a Glasskey log: its signature, every entry and hash, growth from
earlier checkpoints, what witnesses saw, and every chunk of every recording.
With --until only growth, from a few tiles; with --proof one entry, by a
proof file alone.

  --key VKEY|FILE      the log's verifier key, or a file with it; not from the
                       folder itself
  --since FILE         a checkpoint you kept from an earlier look; the log must
                       have grown from it
  --until FILE         with --since: check only that the log grew from the one
                       to the other
  --witnesses FILE     a policy (c2sp.org/tlog-policy): enough witnesses must
                       have seen the log. Where it names the log's key, --key
                       may be left out
  --max-unwitnessed N  more entries than this that no witness has seen yet are
                       a problem
  --no-recordings      the folder is a copy of the log alone; do not look at
                       chunks
  --proof, --entry     a proof, as of glass log prove, and the entry that it is
                       of
  --token-file FILE    for a URL: a token of somebody who may read entries and
                       recordings
  --ca FILE            for a URL: the CA of the server's certificate, in PEM
  --json               print one JSON document
  --pin FILE           first use only: copy the key that lies in the folder to
                       FILE, unverified. Compare it with what the log's
                       operator tells you, then use --key FILE.

Exit code: 0 everything verifies, 1 something does not,
           2 the command is not well-formed.
`;

const SETTLE_MS = 4_000; // a running Glasskey writes about every two seconds
const MAX_FILE_BYTES = 4 << 20; // keys, checkpoints, policies, proofs, entries

export interface CliOptions {
  /** How long to wait for a newer checkpoint where something does not fit. */
  readonly settleMs?: number;
  /** What is known of a server, `https://HOST:PORT`, for what the person did not name. */
  loginFor?(origin: string): Login | undefined;
}

export interface Login {
  readonly token?: string | undefined;
  /** PEM. */
  readonly ca?: string | undefined;
}

/** Runs the command with its arguments; returns the exit code. Writes only through `print` and `complain`. */
export async function runCli(
  args: readonly string[],
  print: (text: string) => void,
  complain: (text: string) => void,
  options: CliOptions = {},
): Promise<0 | 1 | 2> {
  const refuse = (error: unknown, more = ""): 2 => {
    complain(`glasskey-verify: ${plainText(error instanceof Error ? error.message : String(error))}\n${more}`);
    return 2;
  };
  let command: Command;
  try {
    command = parseCommand(args);
  } catch (error) {
    return refuse(error, `\n${FORMS}\nglasskey-verify --help says what each means.\n`);
  }
  try {
    return await run(command, print, options);
  } catch (error) {
    if (error instanceof FormatError || error instanceof FileError) return refuse(error);
    throw error;
  }
}

async function run(command: Command, print: (text: string) => void, options: CliOptions): Promise<0 | 1> {
  if (command.verb === "help") {
    print(USAGE);
    return 0;
  }
  if (command.verb === "pin") {
    return withSource(command.source, options, (source) => pin(source, command.source.where, command.file, print));
  }
  const witnesses = command.witnesses === undefined ? undefined : parseWitnessPolicy(readFile(command.witnesses));
  const vkey = readKey(command.key, witnesses);
  const show = (value: object, text: () => string): void =>
    print(command.json ? `${JSON.stringify(value, null, 2)}\n` : text());
  if (command.verb === "proof") return proof({ ...command, vkey, witnesses }, show);
  const { since } = command;
  if (command.verb === "growth") {
    return withSource(command.source, options, async (source) => {
      const [older, newer] = [readText(command.since), readText(command.until)];
      const growth = await verifyGrowth({ source, vkey, since: older, until: newer });
      show(growth, () => formatGrowth(growth));
      return growth.ok ? 0 : 1;
    });
  }
  const { recordings, maxUnwitnessed } = command;
  const { settleMs = SETTLE_MS } = options;
  const older = since === undefined ? undefined : readText(since);
  return withSource(command.source, options, async (source) => {
    const what = { vkey, since: older, witnesses, maxUnwitnessed, recordings };
    const report = await verifyLog({ ...what, source, settleMs });
    show(report, () => formatReport(report, recordings) + hintOf(command.source, report));
    return report.ok ? 0 : 1;
  });
}

async function withSource(
  source: Source,
  options: CliOptions,
  work: (source: LogSource) => Promise<0 | 1>,
): Promise<0 | 1> {
  if (!source.isUrl) return work(openFolder(source.where));
  const { tokenFile, ca } = source;
  const login = URL.canParse(source.where) ? options.loginFor?.(new URL(source.where).origin) : undefined;
  const opened = openUrl({
    url: source.where,
    token: tokenFile === undefined ? login?.token : (readText(tokenFile).split(/\r?\n/)[0] ?? "").trim(),
    ca: ca === undefined ? login?.ca : readText(ca),
  });
  try {
    return await work(opened);
  } finally {
    opened.close();
  }
}

/** The log's keys: as given, or as the witness policy names them. Never from the source that is verified. */
function readKey(key: string | undefined, witnesses: WitnessPolicy | undefined): string {
  const logs = witnesses?.logs ?? [];
  if (key !== undefined) {
    const given = key.includes("+") ? key : readText(key);
    // By tlog-policy it says whose checkpoints it is for, too.
    if (logs.length > 0 && !parseVerifierKeys(given).some(({ vkey }) => logs.includes(vkey)))
      throw new FormatError("the witness policy is for other logs: it names none of the keys given with --key");
    return given;
  }
  if (logs.length === 0) throw new FormatError("the witness policy names no log: give the log's key with --key");
  return logs.join("\n");
}

function proof(
  options: { proof: string; entry: string; vkey: string; witnesses: WitnessPolicy | undefined },
  show: (value: object, text: () => string) => void,
): 0 | 1 {
  const [file, entry] = [readFile(options.proof), readFile(options.entry)];
  const { vkey, witnesses } = options;
  parseVerifierKeys(vkey); // a key that is none is a mistake of the command, and not a proof that does not hold
  // An entry is one line of JSON without an end; an editor or a shell may have added one.
  const trimmed = entry.at(-1) === 0x0a ? [entry, entry.subarray(0, -1)] : [entry];
  let problem = "";
  for (const candidate of trimmed) {
    try {
      const proved: Proved = verifyProof({ proof: file, entry: candidate, vkey, witnesses });
      const { origin, index, size, cosignatures } = proved;
      const by = [...new Set(cosignatures.map(({ name }) => name))];
      show({ ok: true, origin, index, size, by }, () => formatProved(proved, witnesses, candidate !== entry));
      return 0;
    } catch (error) {
      if (!(error instanceof VerifyError || error instanceof FormatError)) throw error;
      problem ||= error.message;
    }
  }
  show({ ok: false, problem }, () => `✗ ${plainText(problem)}\nThis proof does not verify.\n`);
  return 1;
}

async function pin(source: LogSource, where: string, file: string, print: (text: string) => void): Promise<0> {
  const bytes = (await readSome(source, "log.vkey")) ?? (await readSome(source, "vkey")); // in a folder, and over HTTP
  if (bytes === undefined) throw new FileError("there is no key file there");
  const keys = parseVerifierKeys(decodeUtf8(bytes, "the key file")).map((key) => key.vkey);
  // Whoever made the folder chose the names: what a screen does not show as it is cannot be compared by eye.
  if (keys.some((key) => plainText(key) !== key))
    throw new FileError("the key file has a name with invisible characters");
  try {
    writeFileSync(file, `${keys.join("\n")}\n`, { flag: "wx", mode: 0o644 });
  } catch (error) {
    throw new FileError(`cannot write ${file}: ${reasonOf(error)}`);
  }
  const which =
    keys.length === 1 ? "Compare it" : `Each of these ${keys.length} keys will be believed: compare every one`;
  print(`${keys.join("\n")}\n\nWritten to ${file}. Nothing is verified yet.\n`);
  print(`${which} with what the log's operator tells you by another way,\n`);
  print(`then run: glasskey-verify ${where} --key ${file}\n`);
  return 0;
}

async function readSome(source: LogSource, path: string): Promise<Uint8Array | undefined> {
  try {
    return await source.read(path, MAX_FILE_BYTES);
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    throw new FileError(`${path} ${error.message}`);
  }
}

/** For whoever gave another folder than the log's: the data folder, the one above, one that is not there. */
function hintOf({ where, isUrl }: Source, { problems }: Report): string {
  const checkpoint = isUrl ? problems.find((problem) => problem.where === "checkpoint")?.what : undefined;
  if (checkpoint === "is missing") return "Over HTTP a Glasskey's log is at https://HOST:PORT/log/.\n";
  if (checkpoint?.includes("certificate") === true) return "Give the CA of the server's certificate: --ca FILE\n";
  if (isUrl || ["checkpoint", "checkpoints", "tile"].some((name) => existsSync(join(where, name)))) return "";
  if (!existsSync(where)) return `There is no folder ${plainText(where)}.\n`;
  const below = existsSync(join(where, "log", "checkpoint"))
    ? ` There is one in ${plainText(join(where, "log"))}.`
    : "";
  return `No log lies here: that is a folder with checkpoint and tile/ in it.${below}\n`;
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  ENOTDIR: "there is no such file",
  EISDIR: "it is a folder",
  EACCES: "you may not",
  EEXIST: "it is there already",
};

function reasonOf(error: unknown): string {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return REASONS[code] ?? (error instanceof Error ? error.message : String(error));
}

class FileError extends Error {
  override readonly name = "FileError";
}

function readText(file: string): string {
  return decodeUtf8(readFile(file), file);
}

/** A file that the person named; pipes are taken too, such as those of `<(…)`. */
function readFile(file: string): Buffer {
  try {
    const fd = openSync(file, "r");
    try {
      const size = fstatSync(fd).size;
      if (size > MAX_FILE_BYTES) throw new Error(`it has ${size} bytes, more than the ${MAX_FILE_BYTES} it can have`);
      const bytes = Buffer.alloc(MAX_FILE_BYTES + 1);
      let length = 0;
      for (let count = -1; count !== 0 && length < bytes.length; length += count) {
        count = readSync(fd, bytes, length, bytes.length - length, null);
      }
      if (length > MAX_FILE_BYTES) throw new Error(`it has more than the ${MAX_FILE_BYTES} bytes it can have`);
      return Buffer.from(bytes.subarray(0, length));
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw new FileError(`cannot read ${file}: ${reasonOf(error)}`);
  }
}
