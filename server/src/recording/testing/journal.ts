import { accessSync, constants, statfsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { GlassError } from "../../core/errors.ts";
import { type Journal, type JournalOptions, openJournal } from "../journal.ts";
import { readJournal } from "../reader.ts";
import { JOURNAL_SESSION, type StoredRecord } from "../record.ts";
import type { Recorder } from "../../targets/target.ts";

export const KEY = Buffer.alloc(32, 7);
export const FILE_BYTES = 64 << 10;

/** For tests of very many small files, where it is no matter what a sync costs: in memory, where the system has such a folder. */
export function quickRoot(): string {
  try {
    accessSync("/dev/shm", constants.W_OK);
    const { bavail, bsize } = statfsSync("/dev/shm");
    return bavail * bsize > 32 << 20 ? "/dev/shm" : tmpdir();
  } catch {
    return tmpdir();
  }
}

/** A folder of a test's own, removed at the end of the block. */
export async function testFolder(root = tmpdir()): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(root, "glasskey-recording-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

export interface TestJournal extends Journal, AsyncDisposable {
  readonly failures: GlassError[];
}

/** A journal with small files; failures are collected. */
export async function testJournal(dir: string, options: Partial<JournalOptions> = {}): Promise<TestJournal> {
  const failures: GlassError[] = [];
  const journal = await openJournal({
    ...{ dir, key: KEY, mode: "durable", fileBytes: FILE_BYTES, onFailure: (error) => failures.push(error) },
    ...options,
  });
  return Object.assign(journal, { failures, [Symbol.asyncDispose]: () => journal.close() });
}

/** Resolves once the record is committed. */
export function committed(
  recorder: Recorder,
  kind: Parameters<Recorder["write"]>[0],
  payload: Uint8Array | string,
): Promise<void> {
  return new Promise((resolve) => {
    recorder.write(kind, payload, resolve);
  });
}

/** All records of sessions in the folder, the journal's own left out. */
export async function recordsIn(dir: string): Promise<StoredRecord[]> {
  const records: StoredRecord[] = [];
  for await (const frame of readJournal(dir, KEY))
    records.push(...frame.records.filter(({ session }) => session !== JOURNAL_SESSION));
  return records;
}

export function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
