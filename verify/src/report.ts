/** One thing that is wrong. */
export interface Problem {
  /** The file, relative to the folder, or `remembered checkpoint`. */
  readonly where: string;
  /** Index of the log entry concerned. */
  readonly entry?: number;
  readonly what: string;
}

/** What a verification found. Only `ok` says that everything holds. */
export interface Report {
  readonly ok: boolean;
  readonly origin: string | undefined;
  /** Entries that the checkpoint covers. */
  readonly size: number;
  /** Base 64, as in the checkpoint. */
  readonly root: string | undefined;
  /** The file that the newest checkpoint was taken from: `checkpoint`, or in an archive `checkpoints/<size>`. */
  readonly head: string;
  /** Whether the source's files could be listed. Over HTTP they cannot: files that do not belong were not looked for. */
  readonly listed: boolean;
  /** Whether recordings were looked at. */
  readonly recordings: boolean;
  /** What witnesses have seen, where a policy was given and met. */
  readonly witnessed: Witnessed | undefined;
  readonly problems: readonly Problem[];
  /** Problems beyond the first thousand are counted, not kept. */
  readonly problemCount: number;
  readonly totals: Totals;
}

export interface Witnessed {
  /** Entries that the newest witnessed checkpoint covers. */
  readonly size: number;
  /** Entries of the log that came after it. */
  readonly unwitnessed: number;
  /** Key names of the policy's witnesses who cosigned it. */
  readonly by: readonly string[];
  /** When the first of them says that it did, in seconds since 1970. */
  readonly seconds: number;
  /** `2 of 3 witnesses`. */
  readonly policy: string;
}

export interface Totals {
  /** Entries whose bytes were hashed and found in the signed tree. */
  entries: number;
  tiles: number;
  /** Older partial tiles and bundles that could not be checked, because all that they became is wrong. 0 when `ok`. */
  unchecked: number;
  /** Files of an archive that came after its newest checkpoint. */
  beyond: number;
  /** Signed checkpoints, the newest and a remembered one included, whose root these entries have. */
  checkpoints: number;
  sessions: number;
  chunks: number;
  chunkBytes: number;
}

export interface Findings {
  readonly problems: Problem[];
  readonly totals: Totals;
  count(): number;
  add(where: string, what: string, entry?: number): void;
}

const MAX_KEPT = 1_000;

export function newFindings(): Findings {
  const problems: Problem[] = [];
  let count = 0;
  return {
    problems,
    totals: { entries: 0, tiles: 0, unchecked: 0, beyond: 0, checkpoints: 0, sessions: 0, chunks: 0, chunkBytes: 0 },
    count: () => count,
    add(where, what, entry) {
      count += 1;
      if (problems.length >= MAX_KEPT) return;
      const problem = { where: printable(where), what: printable(what) };
      problems.push(entry === undefined ? problem : { ...problem, entry });
    },
  };
}

/** `tile/entries/000.p/9, entry 5: was changed …` */
export function formatProblem({ where, entry, what }: Problem): string {
  return `${where}${entry === undefined ? "" : `, entry ${entry}`}: ${what}`;
}

/** File names of a hostile folder reach a terminal: no control characters, and not without end. */
function printable(text: string): string {
  const plain = plainText(text);
  return plain.length > 300 ? `${plain.slice(0, 300)}…` : plain;
}

/** One line that a terminal shows as it is: no controls, and nothing that hides or turns text (Unicode's Cc, Cf, Zl, Zp). */
export function plainText(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\uFFFD");
}
