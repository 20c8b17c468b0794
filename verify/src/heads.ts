import { openCheckpoint } from "./checkpoint.ts";
import { openWitnessed } from "./cosignature.ts";
import { FormatError, VerifyError } from "./errors.ts";
import type { NoteVerifier } from "./note.ts";
import type { WitnessPolicy } from "./policy.ts";
import { readFile, type ExpectedRoot } from "./replay.ts";
import type { Findings, Witnessed } from "./report.ts";
import { ReadError, type LogSource } from "./source.ts";
import { parseNumberName } from "./tiles.ts";
import type { Checkpoint } from "./tree-head.ts";

export const MAX_CHECKPOINT_BYTES = 1 << 20;
const WITNESSED = "checkpoint.witnessed";

/** The newest signed checkpoint, and the file that it was in. */
export interface Head {
  readonly where: string;
  readonly checkpoint: Checkpoint;
}

/** Whether the source is an archive: it has no file that is ever replaced, so its checkpoints are all dated. */
export function isArchive(head: Head): boolean {
  return head.where !== "checkpoint";
}

/**
 * The checkpoint that everything is held against: without an authentic one nothing else means anything. In an archive, where
 * no file is ever written twice, there is no `checkpoint`: its newest dated one is taken.
 */
export async function readHead(
  source: LogSource,
  verifiers: readonly NoteVerifier[],
  findings: Findings,
): Promise<Head | undefined> {
  const dated = async (): Promise<string> => {
    let newest = -1;
    for await (const { name, kind } of source.list?.("checkpoints") ?? []) {
      if (kind === "file") newest = Math.max(newest, parseNumberName(name) ?? -1);
    }
    return newest < 0 ? "checkpoint" : `checkpoints/${newest}`;
  };
  try {
    const bytes = await source.read("checkpoint", MAX_CHECKPOINT_BYTES);
    const where = bytes === undefined ? await dated() : "checkpoint";
    const note = bytes ?? (await readFile(source, where, MAX_CHECKPOINT_BYTES, findings));
    const checkpoint = note === undefined ? undefined : openNamed(where, note, verifiers, findings);
    return checkpoint === undefined ? undefined : { where, checkpoint };
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    findings.add("checkpoint", error.message);
    return undefined;
  }
}

/** The newest checkpoint that witnesses saw, if the source has one. */
export async function readWitnessed(source: LogSource, findings: Findings): Promise<Uint8Array | undefined> {
  try {
    return await source.read(WITNESSED, MAX_CHECKPOINT_BYTES);
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    findings.add(WITNESSED, error.message);
    return undefined;
  }
}

export interface Expectations {
  readonly source: LogSource;
  readonly head: Head;
  readonly verifiers: readonly NoteVerifier[];
  readonly findings: Findings;
  readonly witnessedNote: Uint8Array | undefined;
  readonly policy: WitnessPolicy | undefined;
}

/**
 * Every root that the log must have had, by size: of the remembered checkpoint, the witnessed one, those kept in the
 * source, and the newest.
 */
export async function readExpected(
  options: Expectations,
  remembered: Checkpoint | undefined,
  /** Heads that the source showed a moment ago. */
  shown: readonly Head[] = [],
): Promise<{ roots: readonly ExpectedRoot[]; witnessed: Witnessed | undefined }> {
  const { head, verifiers, findings, witnessedNote, policy } = options;
  const roots: ExpectedRoot[] = [];
  const { size: headSize, root: headRoot } = head.checkpoint;
  const add = (where: string, earlier: Checkpoint): void => {
    if (earlier.size <= headSize) roots.push({ where, size: earlier.size, root: earlier.root });
    else
      findings.add(where, `covers ${earlier.size} entries, and the log has only ${headSize} now: its tail was cut off`);
  };
  let witnessed: Witnessed | undefined;
  const judge = (note: Uint8Array, wanted: WitnessPolicy): Checkpoint => {
    const { cosignatures, ...checkpoint } = openWitnessed(note, verifiers, wanted);
    // The beginning of every log, which witnesses cosign for any that they know: it vouches for no history.
    if (checkpoint.size === 0 && headSize > 0)
      throw new VerifyError("covers no entry: witnesses saw nothing of this log");
    witnessed = {
      ...{ size: checkpoint.size, unwitnessed: Math.max(0, headSize - checkpoint.size), policy: wanted.description },
      by: [...new Set(cosignatures.map(({ name }) => name))],
      seconds: Math.min(...cosignatures.map(({ seconds }) => seconds)),
    };
    return checkpoint;
  };
  if (remembered !== undefined) add("remembered checkpoint", remembered);
  for (const { where, checkpoint } of shown) add(`${where} of a moment ago`, checkpoint);
  if (witnessedNote !== undefined && policy !== undefined) {
    named(WITNESSED, findings, () => add(WITNESSED, judge(witnessedNote, policy)));
  } else if (witnessedNote !== undefined) {
    const seen = openNamed(WITNESSED, witnessedNote, verifiers, findings);
    if (seen !== undefined) add(WITNESSED, seen);
  }
  const onDated = (path: string, note: Uint8Array, kept: Checkpoint): void => {
    if (path !== head.where) add(path, kept);
    // In an archive dated checkpoints have the cosignatures; the newest of them that is witnessed counts.
    if (policy === undefined || witnessedNote !== undefined || kept.size < (witnessed?.size ?? 0)) return;
    try {
      judge(note, policy);
    } catch (error) {
      if (!(error instanceof VerifyError)) throw error; // one that is not witnessed is no problem
    }
  };
  await eachDated(options, "checkpoints", onDated);
  if (isArchive(head)) await eachDated(options, "witnessed", onDated);
  if (policy !== undefined && witnessedNote === undefined && witnessed === undefined) {
    findings.add(WITNESSED, `is missing: nothing here is cosigned by ${policy.description}`);
  }
  roots.sort((a, b) => a.size - b.size);
  return { roots: [...roots, { where: head.where, size: headSize, root: headRoot }], witnessed };
}

/** The authentic ones of the kept checkpoints; what is wrong with others is a finding. */
async function eachDated(
  { source, verifiers, findings }: Expectations,
  folder: "checkpoints" | "witnessed",
  onCheckpoint: (path: string, note: Uint8Array, checkpoint: Checkpoint) => void,
): Promise<void> {
  try {
    for await (const { name, kind } of source.list?.(folder) ?? []) {
      const path = `${folder}/${name}`;
      const size = kind === "file" ? parseNumberName(name) : undefined;
      if (size === undefined) {
        findings.add(path, "does not belong here");
        continue;
      }
      const note = await readFile(source, path, MAX_CHECKPOINT_BYTES, findings);
      const kept = note === undefined ? undefined : openNamed(path, note, verifiers, findings);
      if (note === undefined || kept === undefined) continue;
      if (kept.size === size) onCheckpoint(path, note, kept);
      else findings.add(path, `is for ${kept.size} entries and not ${size}`);
    }
  } catch (error) {
    if (!(error instanceof ReadError)) throw error;
    findings.add(folder, error.message);
  }
}

export function openNamed(
  where: string,
  note: Uint8Array | string,
  verifiers: readonly NoteVerifier[],
  findings: Findings,
): Checkpoint | undefined {
  let checkpoint: Checkpoint | undefined;
  named(where, findings, () => {
    checkpoint = openCheckpoint(note, verifiers);
  });
  return checkpoint;
}

/** What does not hold is a finding there. */
function named(where: string, findings: Findings, open: () => void): void {
  try {
    open();
  } catch (error) {
    if (!(error instanceof FormatError || error instanceof VerifyError)) throw error;
    findings.add(where, error.message);
  }
}
