import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { ERRORS } from "@glasskey/contract/errors";
import { FormatError, parseVerifierKeys, type NoteVerifier } from "@glasskey/verify";
import { openPlace } from "./archive/place.ts";
import { restore } from "./archive/restore.ts";
import { overlap, type PlaceConfig } from "./archive/config.ts";
import { readConfig, resolveSecret } from "./config.ts";
import { describe, GlassError } from "./core/errors.ts";
import { awsEndpoint, endpointFault } from "./objects/config.ts";

const USAGE = `glass archive restore [--from DIR|s3://BUCKET/PREFIX | --config FILE] --to DIR (--key VKEY|FILE | --unverified)`;
const HELP = `Make a log folder from an archive alone: no server, no store, no data folder.

  ${USAGE}

  --from         the archive: a folder, or a bucket and prefix; keys are then looked for where AWS's own tools look
  --config FILE  take place and keys from \`archive:\` in this file instead; default: glasskey.yaml
  --region, --endpoint URL, --ca FILE   of a bucket given by --from
  --to DIR       a folder that is not there yet, or empty
  --key          the log's verifier key, or a file with it, from a source other than the archive
  --unverified   without the key: the newest checkpoint that fits its own tree, whoever signed it
  --json

Exit code 1 when something is missing; each is named. Then: glass verify DIR --key …`;

const text = { type: "string" } as const;
const flag = { type: "boolean" } as const;
const OPTIONS = {
  ...{ from: text, config: text, to: text, key: text, region: text, endpoint: text, ca: text },
  ...{ unverified: flag, json: flag, help: flag },
};

/** `glass archive restore`. @returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const json = argv.includes("--json");
  process.stdout.on("error", () => process.exit(0)); // the reader of a pipe left
  try {
    return await run(argv.slice(2));
  } catch (error) {
    const { code, next } = error instanceof GlassError ? error : { code: "internal" as const, next: undefined };
    if (json) process.stdout.write(`${JSON.stringify({ error: { code, message: describe(error), next } })}\n`);
    console.error(`glass: ${describe(error)}`);
    if (next !== undefined) console.error(`  ${next}`);
    return ERRORS[code].exit;
  }
}

async function run(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args.map((arg) => (arg === "-h" ? "--help" : arg)));
  if (values.help === true) {
    console.log(HELP);
    return 0;
  }
  const { to, key, unverified = false, json = false } = values;
  if (positionals.length > 0 || to === undefined) throw usage("it needs --to DIR, and no other words");
  if ((key === undefined) !== unverified) throw usage("give the log's key with --key, or say --unverified");
  const place = placeFrom(values);
  // What is written into an archive may never be removed again.
  if (overlap(place, { kind: "folder", folder: resolve(to) })) throw usage("--to is within the archive, or holds it");
  const source = openPlace(place, resolveSecret);
  try {
    const say = (line: string): void => (json ? undefined : console.error(line));
    say(`Restoring from ${source.place} to ${to}.`);
    const keys = key === undefined ? undefined : keysFrom(key);
    const done = await restore({ source, folder: resolve(to), keys, say });
    if (json)
      process.stdout.write(`${JSON.stringify({ ...done, folder: resolve(to), verified: keys !== undefined })}\n`);
    else {
      for (const note of done.notes) console.error(`  ${note}`);
      for (const one of done.missing) console.error(`missing: ${one}`);
      const chunks = done.chunks === 1 ? "1 chunk" : `${done.chunks} chunks`;
      console.log(`${done.size} entries and ${chunks} of recordings are in ${to}.`);
      if (keys === undefined) console.log("Whose log it is was not checked: no key was given.");
      console.log(`Next: glass verify ${to} --key ${key ?? "VKEY"}`);
    }
    return done.missing.length === 0 ? 0 : 1;
  } finally {
    source.close();
  }
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({ args: [...args], options: OPTIONS, allowPositionals: true, strict: true });
  } catch (error) {
    throw usage(describe(error).split(". ")[0] ?? "");
  }
}

function placeFrom(values: { [name in "from" | "config" | "region" | "endpoint" | "ca"]?: string }): PlaceConfig {
  const { from, config, region = "us-east-1", endpoint, ca } = values;
  if (from === undefined) {
    const { archive } = readConfig(config ?? "glasskey.yaml");
    if (archive !== undefined) return archive.to;
    throw usage("glasskey.yaml has no `archive:`; name the archive with --from");
  }
  if (config !== undefined) throw usage("--from and --config both name an archive");
  const [, bucket, prefix] =
    /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([A-Za-z0-9._/-]*?)\/*)?$/.exec(from) ?? [];
  if (bucket === undefined) {
    if (from.startsWith("s3:")) throw usage("a bucket is written s3://BUCKET or s3://BUCKET/PREFIX");
    if (!existsSync(from)) throw new GlassError("not_found", `there is no folder ${from}`);
    return { kind: "folder", folder: resolve(from) };
  }
  const fault = endpoint === undefined ? undefined : endpointFault(endpoint);
  if (fault !== undefined) throw usage(`--endpoint ${fault}`);
  return {
    ...{ kind: "s3", bucket, prefix: prefix ?? "", region, credentials: "standard", ca },
    ...{ endpoint: endpoint ?? awsEndpoint(region), pathStyle: endpoint !== undefined },
  };
}

/** A key, or a file with one or several. */
function keysFrom(given: string): readonly NoteVerifier[] {
  try {
    return parseVerifierKeys(existsSync(given) ? readFileSync(given, "utf8").slice(0, 65_536) : given);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw usage(`--key: ${error.message}`);
  }
}

function usage(message: string): GlassError {
  return new GlassError("usage", message, { next: `Use: ${USAGE}` });
}
