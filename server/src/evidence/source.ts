import { lineFault, severityFault } from "../playbooks/text.ts";

/**
 * One place that facts come from, as the service sees it. What a source says is hostile until it was looked at: each
 * implementation checks that the answer has its API's form and is about what was asked.
 *
 * An answer that is `unknown` is knowledge about the fact; a source that fails throws {@link SourceFault}.
 */
export interface Source {
  readonly name: string;
  /** How long an answer counts; 0: asked every time. */
  readonly maxAgeMs: number;
  rota?(ref: string, signal: AbortSignal): Promise<Told<RotaAnswer>>;
  incident?(ref: string, signal: AbortSignal): Promise<Told<IncidentAnswer>>;
  openIncidents?(signal: AbortSignal): Promise<Told<readonly OpenIncident[]>>;
}

export interface Told<T> {
  readonly value: T;
  /** When the source learnt it, where that is not now. */
  readonly learnt?: { readonly at: Date; readonly ageMs: number };
  /** Counts no longer than this, whatever the source's `maxAgeMs`. */
  readonly freshForMs?: number;
}

/** Who is on call, by ids such as e-mail addresses that people.yaml may know. */
export type RotaAnswer =
  | { readonly state: "known"; readonly people: readonly string[] }
  | { readonly state: "unknown"; readonly why: string };

export type IncidentAnswer =
  | { readonly state: "open"; readonly severity: string }
  | { readonly state: "none"; readonly why?: string }
  | { readonly state: "unknown"; readonly why: string };

export interface OpenIncident {
  readonly ref: string;
  readonly severity: string;
  /** One line, cleaned. */
  readonly summary: string;
}

/** Clocks of two machines differ, and a shift changes while the answer travels. */
export const SKEW_MS = 120_000;
/** More people on call at once than this is not a rota. */
export const MAX_ON_CALL = 50;
export const MAX_OPEN_INCIDENTS = 200;

/**
 * The source did not answer, or not with what its API documents. The message says how in plain words, has nothing secret
 * and nothing that the source wrote.
 */
export class SourceFault extends Error {
  override readonly name = "SourceFault";
  /** It did not answer, or asked for a pause: the next question had better wait. */
  readonly down: boolean;
  constructor(message: string, down = false) {
    super(message);
    this.down = down;
  }
}

const REFERENCE = /^[A-Za-z0-9#][A-Za-z0-9._:#/@+-]{0,127}$/;

/** Whether `text` has the form of an incident's reference in any tool. */
export function isReference(text: string): boolean {
  return REFERENCE.test(text);
}

/** The playbooks' word for what the source calls `word`, or why there is none. */
export function severityOf(
  words: ReadonlyMap<string, string>,
  word: string,
): { readonly severity: string } | { readonly why: string } {
  const severity = words.get(word) ?? word;
  if (severityFault(severity) === undefined) return { severity };
  return {
    why: "it is open, but its severity is no word that a playbook can name; map it with `severity` in glasskey.yaml",
  };
}

/** A text of a source's as one line for people: at most 200 characters, nothing unseen. */
export function cleanLine(text: string): string {
  const line = text.slice(0, 1000).replaceAll(/\s+/g, " ").trim().slice(0, 200).toWellFormed();
  return lineFault(line, 200) === undefined ? line : line.replaceAll(/[^\x20-\x7E]/g, "?");
}

/** @throws SourceFault where a thing that the source says is going on begins in the future. */
export function checkPast(iso: string | null | undefined, nowMs: number): void {
  if (iso === null || iso === undefined || iso === "") return;
  const ms = Date.parse(iso);
  if (Number.isNaN(ms)) throw new SourceFault("its answer has a time that is none");
  if (ms > nowMs + SKEW_MS) throw new SourceFault("its answer is about the future; one of the two clocks is wrong");
}
