import { hash } from "node:crypto";
import { readFile, type Bundle } from "./replay.ts";
import type { Findings } from "./report.ts";
import type { LogSource } from "./source.ts";
import { parseNumberName } from "./tiles.ts";

/** A chunk holds 64 KiB of records; this only bounds what a hostile folder can make us read. */
const MAX_CHUNK_BYTES = 16 << 20;
const MARK = Buffer.from('"recording.sealed"', "utf8");
const SESSION = /^se_[0-9a-z]{12}$/;

export interface Recordings {
  /** Takes the next bundle, and checks the chunks that its entries tell of. */
  onBundle(bundle: Bundle): Promise<void>;
  /** After the last entry: names chunks in the folder that no entry tells of, or counts them as beyond the checkpoint. */
  finish(others: Others): Promise<void>;
}

/** What a file means that the checkpoint does not cover: a problem, or in an archive something that came later. */
export type Others = "problem" | "beyond";

interface Reading {
  readonly index: number;
  readonly sound: boolean;
  readonly sealed: Sealed;
  readonly path: string;
  readonly bytes: Promise<Uint8Array | undefined>;
}

/** Where a chunk of a session's recording lies. */
export function chunkPath(session: string, chunk: number): string {
  return `chunks/${session}/${chunk}.gkc`;
}

/**
 * Holds `chunks/<session>/<n>.gkc` against the log's `recording.sealed` entries. An entry commits to the encrypted file,
 * so no key is needed, and a recording whose key was destroyed verifies like any other. Memory: one number for each
 * session, and as many chunks as are read at once.
 */
export function newRecordings(source: LogSource, findings: Findings): Recordings {
  const nextChunk = new Map<string, number>();
  const parallel = source.parallel ?? 1;

  function begin(index: number, entry: Uint8Array, sound: boolean): Reading | undefined {
    const sealed = parseSealed(entry);
    if (sealed === "other") return undefined;
    if (sealed === undefined) {
      if (sound)
        findings.add("recording", "a recording.sealed entry does not say session, chunk, sha256 and bytes", index);
      return undefined;
    }
    const { session, chunk } = sealed;
    const path = chunkPath(session, chunk);
    const expected = nextChunk.get(session) ?? 0;
    nextChunk.set(session, Math.max(expected, chunk + 1));
    if (chunk > expected) {
      const gap = chunk - expected === 1 ? `chunk ${expected} is` : `chunks ${expected} to ${chunk - 1} are`;
      findings.add(`chunks/${session}`, `${gap} not in the log, which goes on with chunk ${chunk}`, index);
    } else if (chunk < expected) {
      findings.add(path, "is sealed a second time or out of order", index);
    }
    return { index, sound, sealed, path, bytes: readFile(source, path, MAX_CHUNK_BYTES, findings, index) };
  }

  async function finishReading({ index, sound, sealed, path, bytes: reading }: Reading): Promise<void> {
    const bytes = await reading;
    if (bytes === undefined) return;
    findings.totals.chunks += 1;
    findings.totals.chunkBytes += bytes.length;
    if (!sound) return; // the entry itself is a finding already
    if (hash("sha256", bytes) !== sealed.sha256) {
      const length = bytes.length === sealed.bytes ? "" : ` (${bytes.length} bytes, sealed with ${sealed.bytes})`;
      findings.add(path, `was changed: it does not have the SHA-256 that the log has for it${length}`, index);
    } else if (bytes.length !== sealed.bytes) {
      findings.add(path, `has ${bytes.length} bytes, and the log says ${sealed.bytes}`, index);
    }
  }

  return {
    async onBundle({ firstIndex, bytes, entries, sound }) {
      if (!viewOf(bytes).includes(MARK)) return; // most bundles: one search instead of 256
      const underWay: Reading[] = [];
      for (const [i, entry] of entries.entries()) {
        const reading = viewOf(entry).includes(MARK) ? begin(firstIndex + i, entry, sound(i)) : undefined;
        if (reading !== undefined) underWay.push(reading);
        const first = underWay.length >= parallel ? underWay.shift() : undefined;
        if (first !== undefined) await finishReading(first);
      }
      for (const reading of underWay) await finishReading(reading);
    },
    async finish(others) {
      findings.totals.sessions = nextChunk.size;
      const list = source.list?.bind(source);
      if (list === undefined) return;
      for await (const folder of list("chunks")) {
        const path = `chunks/${folder.name}`;
        if (folder.kind !== "folder") {
          findings.add(path, "does not belong here");
          continue;
        }
        const next = nextChunk.get(folder.name) ?? 0;
        for await (const file of list(path)) {
          const chunk = file.name.endsWith(".gkc") ? parseNumberName(file.name.slice(0, -4)) : undefined;
          if (file.kind !== "file" || chunk === undefined || chunk >= next) {
            if (others === "beyond" && file.kind === "file" && chunk !== undefined) findings.totals.beyond += 1;
            else findings.add(`${path}/${file.name}`, "is not in the log");
          }
        }
      }
    },
  };
}

interface Sealed {
  session: string;
  chunk: number;
  sha256: string;
  bytes: number;
}

/** undefined: a `recording.sealed` entry that lacks something; `other`: an entry that only mentions the words. */
function parseSealed(entry: Uint8Array): Sealed | "other" | undefined {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(entry).toString("utf8"));
  } catch {
    return undefined;
  }
  if (!isRecord(value) || value["type"] !== "recording.sealed") return "other";
  const { session, data } = value;
  if (typeof session !== "string" || !SESSION.test(session) || !isRecord(data)) return undefined;
  const { chunk, sha256, bytes } = data;
  if (!isCount(chunk) || !isCount(bytes) || typeof sha256 !== "string" || !/^[0-9a-f]{64}$/.test(sha256))
    return undefined;
  return { session, chunk, sha256, bytes };
}

function viewOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
