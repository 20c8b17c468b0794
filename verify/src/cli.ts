import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { FormatError } from "./errors.ts";
import { parseVerifierKeys } from "./note.ts";
import { formatProblem, type Report } from "./report.ts";
import { verifyFolder } from "./verify.ts";

export const USAGE = `Usage: glasskey-verify DIR --key VKEY|FILE [--since FILE] [--no-recordings] [--json]
       glasskey-verify DIR --pin FILE

Verifies a folder that Glasskey exported: the log's signature, every entry and hash,
growth from earlier checkpoints, and every chunk of every recording.

  --key VKEY|FILE    the log's verifier key, or a file with it; not from the folder itself
  --since FILE       a checkpoint you kept from an earlier look; the log must have grown from it
  --no-recordings    the folder is a copy of the log alone; do not look at chunks
  --json             print one JSON document
  --pin FILE         first use only: copy the key that lies in the folder to FILE, unverified.
                     Compare it with what the log's operator tells you, then use --key FILE.

Exit code: 0 everything verifies, 1 something does not, 2 the command is not well-formed.
`;

const SETTLE_MS = 4_000; // a running Glasskey writes about every two seconds

/** Runs the command with its arguments; returns the exit code. Writes only through `print` and `complain`. */
export async function runCli(
  args: readonly string[],
  print: (text: string) => void,
  complain: (text: string) => void,
  settleMs: number = SETTLE_MS,
): Promise<0 | 1 | 2> {
  const usage = (message: string): 2 => {
    complain(`glasskey-verify: ${message}\n\n${USAGE}`);
    return 2;
  };
  let parsed;
  try {
    parsed = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        key: { type: "string" },
        since: { type: "string" },
        pin: { type: "string" },
        json: { type: "boolean", default: false },
        "no-recordings": { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    });
  } catch (error) {
    return usage(error instanceof Error ? error.message : String(error));
  }
  const { values, positionals } = parsed;
  if (values.help) {
    print(USAGE);
    return 0;
  }
  const [folder, ...rest] = positionals;
  if (folder === undefined || rest.length > 0) return usage("give one folder");
  try {
    if (values.pin !== undefined) {
      if (values.key !== undefined) return usage("--pin and --key do not go together");
      return pin(folder, values.pin, print);
    }
    if (values.key === undefined) {
      return usage("give the log's key with --key; a key that lies in the folder proves nothing (see --pin)");
    }
    const report = await verifyFolder({
      folder,
      vkey: values.key.includes("+") ? values.key : readText(values.key),
      since: values.since === undefined ? undefined : readText(values.since),
      recordings: !values["no-recordings"],
      settleMs,
    });
    print(values.json ? `${JSON.stringify(report, null, 2)}\n` : formatReport(report, !values["no-recordings"]));
    return report.ok ? 0 : 1;
  } catch (error) {
    if (error instanceof FormatError || error instanceof FileError) return usage(error.message);
    throw error;
  }
}

/** A report for people: what holds, or what does not and where. */
export function formatReport(report: Report, recordings = true): string {
  const { totals } = report;
  const lines = report.problems.map((problem) => `✗ ${formatProblem(problem)}`);
  const more = report.problemCount - report.problems.length;
  if (more > 0) lines.push(`✗ and ${more} more`);
  if (report.ok) {
    lines.push(
      `✓ ${report.origin}: ${count(report.size, "entry", "entries")}, root ${report.root}`,
      `✓ ${count(totals.checkpoints, "signed checkpoint")}, ${count(totals.tiles, "tile")}, all of one history`,
      recordings
        ? `✓ ${count(totals.chunks, "chunk")} of ${count(totals.sessions, "recorded session")} (${totals.chunkBytes} bytes)`
        : "- recordings were not looked at",
      "Everything verifies.",
    );
  } else {
    if (totals.unchecked > 0) {
      const files = count(totals.unchecked, "older partial tile");
      lines.push(
        `- ${files} could not be checked: there is nothing sound to hold ${totals.unchecked === 1 ? "it" : "them"} against`,
      );
    }
    const found = count(report.problemCount, "problem");
    lines.push(`This log does not verify: ${report.problemCount === 0 ? "not every entry could be read" : found}.`);
  }
  return `${lines.join("\n")}\n`;
}

function pin(folder: string, file: string, print: (text: string) => void): 0 {
  const text = readText(join(folder, "log.vkey"));
  const keys = parseVerifierKeys(text).map((key) => key.vkey);
  try {
    writeFileSync(file, `${keys.join("\n")}\n`, { flag: "wx", mode: 0o644 });
  } catch (error) {
    throw new FileError(`cannot write ${file}: ${error instanceof Error ? error.message : String(error)}`);
  }
  print(`${keys.join("\n")}\n\nWritten to ${file}. Nothing is verified yet. Compare it with what the log's operator\n`);
  print(`tells you by another way, then run: glasskey-verify ${folder} --key ${file}\n`);
  return 0;
}

class FileError extends Error {
  override readonly name = "FileError";
}

function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new FileError(`cannot read ${file}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function count(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}
