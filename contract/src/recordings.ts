import { z } from "zod";

/**
 * What a recording holds, as the API gives it: one JSON object a line (application/x-ndjson). The lines of a replay and of
 * a watched session are told apart by `what`; readers pass over those that they do not know.
 */

const time = z.iso.datetime();
const name = z
  .string()
  .max(200)
  .regex(/^\P{Cc}*$/u, "is not a name");

export const EXPORT_FORMATS = ["json", "text", "asciicast", "raw"] as const;
export type ExportFormat = (typeof EXPORT_FORMATS)[number];

/** Which of a session's terminals is to be drawn. */
export const terminalNumber = z.coerce
  .number()
  .int()
  .min(1)
  .max(2 ** 32 - 1)
  .optional()
  .describe("The terminal, by the number of the statement that opened it; where absent, the first one");

/** Name of the trailer that ends every recording that is streamed: `ok`, or the error as JSON in base64url. */
export const END_TRAILER = "glass-end";

export interface StatementLine {
  readonly what: "statement";
  readonly at: string;
  readonly n: number;
  readonly seq: number;
  readonly via: string;
  readonly text: string;
  /** Length of a statement that was too long to be shown; `text` is empty then. */
  readonly leftOutBytes?: number;
  readonly params?: unknown;
  /** What else the target's kind says of it: `path`, `direction`, `sha256`, totals of a command's streams, … */
  readonly detail?: Readonly<Record<string, unknown>>;
  readonly outcome: "running" | "done" | "failed" | "refused" | "unknown";
  readonly rows?: number;
  readonly tag?: string;
  /** Of the answer, or of the file. */
  readonly bytes?: number;
  readonly us?: number;
  readonly error?: { readonly sqlstate?: string; readonly code?: string; readonly message: string };
  readonly sentBytes: number;
}

export interface EventLine {
  readonly what: "started" | "ended" | "action" | "notice" | "prepared";
  readonly at: string;
  readonly seq: number;
  readonly content: Readonly<Record<string, unknown>>;
}

/** Cells of one row that look alike. Colours are a palette number 0 to 255, or `#rrggbb`. */
export interface ScreenRun {
  readonly text: string;
  readonly bold?: true;
  readonly dim?: true;
  readonly italic?: true;
  readonly underline?: true;
  readonly inverse?: true;
  readonly fg?: number | string;
  readonly bg?: number | string;
}

/** What a terminal showed at that time. Rows that are missing are as they were, or empty where it is `whole`. */
export interface ScreenLine {
  readonly what: "screen";
  /** Which terminal: the statement that opened it. */
  readonly n: number;
  readonly at: string;
  readonly cols: number;
  readonly rows: number;
  readonly cursor: { readonly x: number; readonly y: number };
  readonly whole: boolean;
  readonly lines: readonly { readonly y: number; readonly runs: readonly ScreenRun[] }[];
}

/** A line of text that a terminal showed, a command that its shell marked (OSC 133), or a line that a command wrote. */
export interface ShownLine {
  readonly what: "shown" | "command" | "output";
  /** Of which statement. */
  readonly n: number;
  readonly at: string;
  readonly seq: number;
  readonly text: string;
}

/** The last line of a replay of frames: which of several terminals it was. */
export interface TerminalsLine {
  readonly what: "terminals";
  readonly shown: number;
  readonly others: readonly number[];
}

export type ReplayLine = StatementLine | EventLine | ScreenLine | ShownLine | TerminalsLine;

/** What only a watcher is told, beside {@link ReplayLine}. */
export type WatchLine =
  | Exclude<ReplayLine, TerminalsLine>
  | { readonly what: "watching"; readonly live: boolean; readonly person: string; readonly earlierLines: number }
  | { readonly what: "behind"; readonly records: number }
  /** Nothing happened, and the connection is there. */
  | { readonly what: "beat" }
  /** The last line. `code` is an error's, where it is over for another reason than the session's end. */
  | { readonly what: "over"; readonly code?: string; readonly text: string; readonly next?: string };

export const searchRequest = z.strictObject({
  text: z.string().min(1).max(200),
  regex: z.boolean().default(false).describe("JavaScript's regular expressions with the flags i and u"),
  person: name.optional(),
  target: name.optional(),
  playbook: name.optional(),
  since: time.optional().describe("Sessions that were open after this"),
  until: time.optional().describe("Sessions that began before this"),
  cursor: z.string().max(200).optional().describe("`next` of the page before, to go on"),
});
export type SearchRequest = z.input<typeof searchRequest>;

export const searchHit = z.object({
  session: z.string(),
  person: z.string(),
  target: z.string(),
  playbook: z.string(),
  at: z.string(),
  seq: z.number().int(),
  where: z.enum(["statement", "error", "notice", "action", "screen", "command", "output"]),
  text: z.string().describe("What was found, with what stands around it"),
});
export type SearchHit = z.infer<typeof searchHit>;

export const searchAnswer = z.object({
  hits: z.array(searchHit),
  sessions: z.number().int().describe("How many were looked through for this page"),
  erased: z.number().int().describe("Of them, recordings that are erased"),
  problems: z
    .array(z.object({ session: z.string(), message: z.string() }))
    .describe("Recordings that could not be read"),
  next: z.string().nullable().describe("To go on with; null at the end"),
});
export type SearchAnswer = z.infer<typeof searchAnswer>;
