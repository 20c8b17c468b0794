import { withPartialTiles, withReadAhead } from "./ahead.ts";
import { decodeUtf8 } from "./encoding.ts";
import { FormatError } from "./errors.ts";
import { openFolder } from "./folder.ts";
import {
  isArchive,
  openNamed,
  readExpected,
  readHead,
  readWitnessed,
  MAX_CHECKPOINT_BYTES,
  type Head,
} from "./heads.ts";
import { checkListing } from "./listing.ts";
import { parseVerifierKeys, type NoteVerifier } from "./note.ts";
import type { WitnessPolicy } from "./policy.ts";
import { newRecordings, type Others } from "./recordings.ts";
import { replay } from "./replay.ts";
import { newFindings, type Findings, type Report } from "./report.ts";
import { ReadError, type LogSource } from "./source.ts";

export interface VerifyOptions {
  /**
   * The log's verifier key, from outside the folder: whoever can change the folder can change a key in it. Several, one
   * to a line, after a key was replaced.
   */
  readonly vkey: string;
  /** A checkpoint remembered from an earlier look: the log must have grown from it. Finds a cut-off tail and a fork. */
  readonly since?: string | undefined;
  /** Then the source's `checkpoint.witnessed` must be there, satisfy the policy, and be a prefix of the log. */
  readonly witnesses?: WitnessPolicy | undefined;
  /** With `witnesses`: how many entries after the newest witnessed checkpoint are too many. No bound when left out. */
  readonly maxUnwitnessed?: number | undefined;
  /** False for a copy of the log without `chunks/`: recordings are then not looked at. */
  readonly recordings?: boolean | undefined;
  /**
   * For a folder that a running Glasskey writes to: when something does not fit, wait this long (ms) for a newer signed
   * checkpoint, and if one came, look again from the start. 0 when left out.
   */
  readonly settleMs?: number | undefined;
}

/**
 * Verifies an exported log: signature, every entry and tile against the signed root, growth from every earlier
 * checkpoint that was kept, every chunk of every recording against its entry, and that nothing else lies there.
 * @throws FormatError when no well-formed key is given. What is wrong with the folder is in the report.
 */
export async function verifyFolder(options: VerifyOptions & { readonly folder: string }): Promise<Report> {
  return verifyLog({ ...options, source: openFolder(options.folder) });
}

const MAX_ROUNDS = 5;
const SETTLE_POLL_MS = 50;

/** The same for a log from anywhere. */
export async function verifyLog(options: VerifyOptions & { readonly source: LogSource }): Promise<Report> {
  const shown: Head[] = []; // whoever signed two histories must not be believed for having shown the second one later
  for (let round = 1; ; round += 1) {
    const report = await verifyOnce(options, shown);
    if (report.ok || report.origin === undefined || round === MAX_ROUNDS) return report;
    const newer = await newerHead(options, report.size, options.settleMs ?? 0);
    if (newer === undefined) return report;
    shown.push(newer);
  }
}

/** A signed checkpoint of more entries, if one is there now or within the time. */
async function newerHead(
  { source, vkey }: VerifyOptions & { readonly source: LogSource },
  size: number,
  settleMs: number,
): Promise<Head | undefined> {
  const until = performance.now() + settleMs;
  while (performance.now() < until) {
    const ignored = newFindings();
    const now = await readHead(source, parseVerifierKeys(vkey), ignored);
    if (now !== undefined && now.checkpoint.size > size) return now;
    await new Promise((done) => setTimeout(done, SETTLE_POLL_MS));
  }
  return undefined;
}

/** @param shown what the source showed before as its newest checkpoint; this one's is added. */
async function verifyOnce(options: VerifyOptions & { readonly source: LogSource }, shown: Head[]): Promise<Report> {
  if (typeof options.vkey !== "string" || options.vkey.trim() === "") {
    throw new FormatError("a log is verified with its key, from a place that you trust; none was given");
  }
  const verifiers = parseVerifierKeys(options.vkey);
  refuseOwnWitness(verifiers, options.witnesses);
  const findings = newFindings();
  // Before the head, which is newer: what witnesses saw must then be a prefix of it also while the log grows.
  const witnessedNote = await readWitnessed(options.source, findings);
  const head = await readHead(options.source, verifiers, findings);
  const [size, root] = [head?.checkpoint.size ?? 0, head?.checkpoint.root];
  let witnessed: Report["witnessed"];
  if (head !== undefined) {
    const source = withReadAhead(await withPartialTiles(options.source, size), size);
    const remembered =
      options.since === undefined ? undefined : openNamed("remembered checkpoint", options.since, verifiers, findings);
    const expected = await readExpected(
      { source, head, verifiers, findings, witnessedNote, policy: options.witnesses },
      remembered,
      shown,
    );
    shown.push(head);
    witnessed = expected.witnessed;
    const recordings = options.recordings === false ? undefined : newRecordings(source, findings);
    const unsound = await replay({
      ...{ source, size, findings, expected: expected.roots },
      onBundle: (bundle) => recordings?.onBundle(bundle),
    });
    const others: Others = isArchive(head) ? "beyond" : "problem";
    await listed(findings, "chunks", async () => recordings?.finish(others));
    await listed(findings, "tile", () => checkListing({ source, size, findings, unsound, others }));
    await checkKeyFile(source, verifiers, findings);
    if (witnessed !== undefined && witnessed.unwitnessed > (options.maxUnwitnessed ?? Infinity)) {
      findings.add(
        "checkpoint.witnessed",
        `covers ${witnessed.size} entries: ${witnessed.unwitnessed} newer ones are not witnessed, and at most ` +
          `${options.maxUnwitnessed} may be`,
      );
    }
  }
  return {
    ok: head !== undefined && findings.count() === 0 && findings.totals.entries === size,
    origin: head?.checkpoint.origin,
    ...{ size, witnessed },
    root: root === undefined ? undefined : Buffer.from(root).toString("base64"),
    head: head?.where ?? "checkpoint",
    listed: options.source.list !== undefined,
    recordings: options.recordings !== false,
    problems: findings.problems,
    problemCount: findings.count(),
    totals: findings.totals,
  };
}

/** A witness with the log's own key is the log's word again. */
function refuseOwnWitness(log: readonly NoteVerifier[], policy: WitnessPolicy | undefined): void {
  const own = policy?.keys.find((witness) => log.some((key) => Buffer.compare(key.publicKey, witness.publicKey) === 0));
  if (own !== undefined) throw new FormatError(`the witness ${own.name} has the key of the log itself`);
}

/** A key file in the folder is not trusted, but one that differs from the given key is a lie to somebody. */
async function checkKeyFile(source: LogSource, verifiers: readonly NoteVerifier[], findings: Findings): Promise<void> {
  try {
    const bytes = await source.read("log.vkey", MAX_CHECKPOINT_BYTES);
    if (bytes === undefined) return;
    const text = decodeUtf8(bytes, "the key file");
    const said = parseVerifierKeys(text);
    if (said.some((key) => !verifiers.some((verifier) => verifier.vkey === key.vkey))) {
      findings.add("log.vkey", "has another key than the one given");
    } else if (!/^(?:#[\u0020-\u007e]*\n|[^#\s][^\s]*\n)*$/.test(text)) {
      findings.add("log.vkey", "has something besides comments and one verifier key to a line");
    }
  } catch (error) {
    if (!(error instanceof FormatError || error instanceof ReadError)) throw error;
    findings.add("log.vkey", error.message);
  }
}

async function listed(findings: Findings, where: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    findings.add(where, error.message);
  }
}
