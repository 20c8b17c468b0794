import { openCheckpoint, type Checkpoint } from "./checkpoint.ts";
import { decodeUtf8 } from "./encoding.ts";
import { FormatError, VerifyError } from "./errors.ts";
import { openFolder, ReadError, type LogSource } from "./folder.ts";
import { checkListing } from "./listing.ts";
import { parseVerifierKeys, type NoteVerifier } from "./note.ts";
import { newRecordings } from "./recordings.ts";
import { readFile, replay, type ExpectedRoot } from "./replay.ts";
import { newFindings, type Findings, type Report } from "./report.ts";
import { FULL_TILE_BYTES, MAX_BUNDLE_BYTES, parseNumberName, partialTiles, tilePath } from "./tiles.ts";

const MAX_CHECKPOINT_BYTES = 1 << 20;

export interface VerifyOptions {
  /**
   * The log's verifier key, from outside the folder: whoever can change the folder can change a key in it. Several, one
   * to a line, after a key was replaced.
   */
  readonly vkey: string;
  /** A checkpoint remembered from an earlier look: the log must have grown from it. Finds a cut-off tail and a fork. */
  readonly since?: string | undefined;
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
  for (let round = 1; ; round += 1) {
    const report = await verifyOnce(options);
    if (report.ok || report.origin === undefined || round === MAX_ROUNDS) return report;
    if (!(await grows(options, report.size, options.settleMs ?? 0))) return report;
  }
}

/** Whether a signed checkpoint of more entries is there, now or within the time. */
async function grows(
  { source, vkey }: VerifyOptions & { readonly source: LogSource },
  size: number,
  settleMs: number,
): Promise<boolean> {
  const until = performance.now() + settleMs;
  while (performance.now() < until) {
    const ignored = newFindings();
    const now = await readHead(source, parseVerifierKeys(vkey), ignored);
    if (now !== undefined && now.size > size) return true;
    await new Promise((done) => setTimeout(done, SETTLE_POLL_MS));
  }
  return false;
}

async function verifyOnce(options: VerifyOptions & { readonly source: LogSource }): Promise<Report> {
  if (typeof options.vkey !== "string" || options.vkey.trim() === "") {
    throw new FormatError("a log is verified with its key, from a place that you trust; none was given");
  }
  const verifiers = parseVerifierKeys(options.vkey);
  const findings = newFindings();
  const checkpoint = await readHead(options.source, verifiers, findings);
  const source = checkpoint === undefined ? options.source : await withPartialTiles(options.source, checkpoint.size);
  if (checkpoint !== undefined) {
    const expected = await readExpected(source, checkpoint, verifiers, options.since, findings);
    const recordings = options.recordings === false ? undefined : newRecordings(source, findings);
    const unsound = await replay({
      ...{ source, size: checkpoint.size, findings, expected },
      onBundle: (bundle) => recordings?.onBundle(bundle),
    });
    await listed(findings, "chunks", async () => recordings?.finish());
    const { size } = checkpoint;
    await listed(findings, "tile", () => checkListing({ source, size, findings, unsound }));
    await checkKeyFile(source, verifiers, findings);
  }
  return {
    ok: checkpoint !== undefined && findings.count() === 0 && findings.totals.entries === checkpoint.size,
    origin: checkpoint?.origin,
    size: checkpoint?.size ?? 0,
    root: checkpoint === undefined ? undefined : Buffer.from(checkpoint.root).toString("base64"),
    problems: findings.problems,
    problemCount: findings.count(),
    totals: findings.totals,
  };
}

/**
 * Reads the partial tiles ahead of everything else: in a folder that grows they are replaced soon after their
 * checkpoint, and a long replay would come to them last.
 */
async function withPartialTiles(source: LogSource, size: number): Promise<LogSource> {
  const ahead = new Map<string, Uint8Array>();
  for (const name of partialTiles(size)) {
    for (const level of name.level === 0 ? ([0, "entries"] as const) : [name.level]) {
      const path = tilePath({ ...name, level });
      try {
        const bytes = await source.read(path, level === "entries" ? MAX_BUNDLE_BYTES : FULL_TILE_BYTES);
        if (bytes !== undefined) ahead.set(path, bytes);
      } catch (error) {
        if (!(error instanceof ReadError)) throw error; // it is read again, and named then
      }
    }
  }
  return {
    read: (path, maxBytes) => ahead.get(path) ?? source.read(path, maxBytes),
    list: (path) => source.list(path),
  };
}

/** The signed checkpoint. Without an authentic one nothing else in the folder means anything. */
async function readHead(
  source: LogSource,
  verifiers: readonly NoteVerifier[],
  findings: Findings,
): Promise<Checkpoint | undefined> {
  const bytes = await readFile(source, "checkpoint", MAX_CHECKPOINT_BYTES, findings);
  return bytes === undefined ? undefined : openNamed("checkpoint", bytes, verifiers, findings);
}

/** Every root that the log must have had, by size: checkpoints kept in the folder, the remembered one, the newest. */
async function readExpected(
  source: LogSource,
  head: Checkpoint,
  verifiers: readonly NoteVerifier[],
  since: string | undefined,
  findings: Findings,
): Promise<ExpectedRoot[]> {
  const expected: ExpectedRoot[] = [];
  const add = (where: string, earlier: Checkpoint): void => {
    if (earlier.size <= head.size) expected.push({ where, size: earlier.size, root: earlier.root });
    else
      findings.add(
        where,
        `covers ${earlier.size} entries, and the log has only ${head.size} now: its tail was cut off`,
      );
  };
  if (since !== undefined) {
    const remembered = openNamed("remembered checkpoint", since, verifiers, findings);
    if (remembered !== undefined) add("remembered checkpoint", remembered);
  }
  await listed(findings, "checkpoints", async () => {
    for await (const { name, kind } of source.list("checkpoints")) {
      const path = `checkpoints/${name}`;
      const size = kind === "file" ? parseNumberName(name) : undefined;
      if (size === undefined) {
        findings.add(path, "does not belong here");
        continue;
      }
      const bytes = await readFile(source, path, MAX_CHECKPOINT_BYTES, findings);
      const kept = bytes === undefined ? undefined : openNamed(path, bytes, verifiers, findings);
      if (kept === undefined) continue;
      if (kept.size === size) add(path, kept);
      else findings.add(path, `is for ${kept.size} entries and not ${size}`);
    }
  });
  expected.sort((a, b) => a.size - b.size);
  return [...expected, { where: "checkpoint", size: head.size, root: head.root }];
}

function openNamed(
  where: string,
  note: Uint8Array | string,
  verifiers: readonly NoteVerifier[],
  findings: Findings,
): Checkpoint | undefined {
  try {
    return openCheckpoint(note, verifiers);
  } catch (error) {
    if (!(error instanceof FormatError || error instanceof VerifyError)) throw error;
    findings.add(where, error.message);
    return undefined;
  }
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
    } else if (text !== said.map((key) => `${key.vkey}\n`).join("")) {
      findings.add("log.vkey", "has something besides one verifier key to a line");
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
