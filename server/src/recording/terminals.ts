import { createDecipheriv } from "node:crypto";
import { GlassError } from "../core/errors.ts";
import { RECORD } from "../targets/target.ts";
import { malformed, numberedPayload, type StoredRecord } from "./record.ts";

/** A recording may hold several terminals; each has the number of the statement that opened it. */
const OF_A_TERMINAL: ReadonlySet<number> = new Set([
  ...[RECORD.terminalOutput, RECORD.terminalInput, RECORD.terminalResize],
  ...[RECORD.terminalHidden, RECORD.terminalReveal],
]);

export function isTerminal({ kind }: Pick<StoredRecord, "kind">): boolean {
  return OF_A_TERMINAL.has(kind);
}

const KEY_BYTES = 32;
const ZERO_IV = Buffer.alloc(16);

/** A part of a run of typed text (kind 19). @throws GlassError `integrity` where it is too short. */
export function hiddenOf(record: StoredRecord): { n: number; run: number; bytes: Buffer } {
  const { n, bytes } = numberedPayload(record);
  if (bytes.length < 4) throw malformed(record, "has no run");
  return { n, run: bytes.readUInt32BE(0), bytes: bytes.subarray(4) };
}

/**
 * What became of a run (kind 20): the key, or undefined where it was not echoed and nobody can read it.
 * @throws GlassError `integrity` where it is no key.
 */
export function revealOf(record: StoredRecord): { n: number; run: number; key: Buffer | undefined } {
  const { n, run, bytes } = hiddenOf(record);
  if (bytes.length !== 0 && bytes.length !== KEY_BYTES) throw malformed(record, "has no key");
  return { n, run, key: bytes.length === 0 ? undefined : bytes };
}

/** The parts of one run, in order, as they were typed. */
export function openRun(key: Uint8Array, parts: readonly Uint8Array[]): Buffer[] {
  const decipher = createDecipheriv("aes-256-ctr", key, ZERO_IV);
  return parts.map((part) => decipher.update(part));
}

/** Said when a terminal is asked for that the recording has not. */
export function noSuchTerminal(n: number, terminals: Iterable<number>): GlassError {
  const there = [...terminals];
  return new GlassError("usage", `there is no terminal ${n} in this session`, {
    next: there.length === 0 ? "It has none." : `Those that there are: ${there.slice(0, 20).join(", ")}`,
  });
}
