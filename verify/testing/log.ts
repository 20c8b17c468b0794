import { createPrivateKey, hash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { signCheckpoint } from "../src/checkpoint.ts";
import { appendHashes, emptyRange, leafHash, rootOf, rootOfHashes } from "../src/merkle.ts";
import { createCosigner, createSigner, signatureLine, type NoteSigner } from "../src/note.ts";
import { chunkPath } from "../src/recordings.ts";
import type { LogSource } from "../src/source.ts";
import { encodeBundle, TILE_WIDTH, tilePath } from "../src/tiles.ts";

/** A log for tests, as files in memory, built the slow and obvious way. */
export interface TestLog {
  readonly entries: Buffer[];
  readonly files: Map<string, Buffer>;
  readonly signer: NoteSigner;
}

export const ORIGIN = "glasskey.test/log";

/** The same key for the same seed, so that tests can be repeated. */
export function testSigner(seed: string, name: string = ORIGIN): NoteSigner {
  const der = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), hash("sha256", seed, "buffer")]);
  return createSigner(name, createPrivateKey({ key: der, format: "der", type: "pkcs8" }));
}

/** A witness's key, made from a seed, whose clock stands at 2026-01-01. */
export function testWitness(
  seed: string,
  type: "ed25519" | "ml-dsa-44" = "ed25519",
  name = `w.test/${seed}`,
): NoteSigner {
  const der = type === "ed25519" ? "302e020100300506032b657004220420" : "3034020100300b060960864801650304031104228020";
  const key = Buffer.concat([Buffer.from(der, "hex"), hash("sha256", `witness ${seed}`, "buffer")]);
  return createCosigner(name, createPrivateKey({ key, format: "der", type: "pkcs8" }), () => WITNESSED_AT_MS);
}

export const WITNESSED_AT_MS = Date.UTC(2026, 0, 1);

/** The note with the witnesses' cosignatures behind the log's own. */
export function cosigned(note: string, witnesses: readonly NoteSigner[]): string {
  const text = Buffer.from(note.slice(0, note.lastIndexOf("\n\n") + 1));
  return note + witnesses.map((witness) => signatureLine(witness, text)).join("");
}

export interface TestLogOptions {
  entries: readonly (Buffer | string)[];
  /** Sizes at which a checkpoint was kept. */
  kept?: readonly number[];
  chunks?: ReadonlyMap<string, Buffer>;
  signer?: NoteSigner;
  origin?: string;
}

export function buildLog(options: TestLogOptions): TestLog {
  const signer = options.signer ?? testSigner("log");
  const entries = options.entries.map((entry) => Buffer.from(entry));
  const files = new Map<string, Buffer>();
  let level = entries.map(leafHash);
  for (let i = 0; i < entries.length; i += TILE_WIDTH) {
    const part = entries.slice(i, i + TILE_WIDTH);
    files.set(tilePath({ level: "entries", index: i / TILE_WIDTH, width: part.length }), encodeBundle(part));
  }
  for (let l = 0; level.length > 0; l += 1) {
    const above: Buffer[] = [];
    for (let i = 0; i < level.length; i += TILE_WIDTH) {
      const tile = Buffer.concat(level.slice(i, i + TILE_WIDTH));
      files.set(tilePath({ level: l, index: i / TILE_WIDTH, width: tile.length / 32 }), tile);
      if (tile.length === TILE_WIDTH * 32) above.push(rootOfHashes(tile));
    }
    level = above;
  }
  const origin = options.origin ?? signer.name;
  for (const size of options.kept ?? []) {
    files.set(`checkpoints/${size}`, Buffer.from(checkpointAt(entries, size, signer, origin)));
  }
  for (const [path, bytes] of options.chunks ?? []) files.set(path, bytes);
  files.set("log.vkey", Buffer.from(`${signer.vkey}\n`));
  files.set("checkpoint", Buffer.from(checkpointAt(entries, entries.length, signer, origin)));
  return { entries, files, signer };
}

export function checkpointAt(
  entries: readonly Buffer[],
  size: number,
  signer: NoteSigner,
  origin = signer.name,
): string {
  const range = emptyRange();
  appendHashes(range, 0, Buffer.concat(entries.slice(0, size).map(leafHash)));
  return signCheckpoint({ origin, size, root: rootOf(range) }, [signer]);
}

/** The same files as a source, for tests that verify thousands of times: a folder costs most of the time. */
export function memorySource(files: ReadonlyMap<string, Uint8Array>): LogSource {
  return {
    // A copy, as a folder gives: hashing in place writes into what it was given.
    read: (path) => (files.has(path) ? Buffer.from(files.get(path) ?? "") : undefined),
    *list(path) {
      const start = path === "" ? "" : `${path}/`;
      const names = new Map<string, "file" | "folder">();
      for (const file of files.keys()) {
        if (!file.startsWith(start)) continue;
        const [name = "", ...below] = file.slice(start.length).split("/");
        names.set(name, below.length === 0 ? "file" : "folder");
      }
      for (const [name, kind] of names) yield { name, kind };
    },
  };
}

export interface TestFolder {
  readonly folder: string;
  readonly write: (path: string, bytes: Uint8Array) => void;
  readonly remove: (path: string) => void;
  readonly dispose: () => void;
}

/** Writes the files into a new temporary folder. */
export function writeFolder(files: ReadonlyMap<string, Uint8Array>): TestFolder {
  const folder = mkdtempSync(join(tmpdir(), "glasskey-verify-"));
  const write = (path: string, bytes: Uint8Array): void => {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), bytes);
  };
  for (const [path, bytes] of files) write(path, bytes);
  return {
    ...{ folder, write },
    remove: (path) => rmSync(join(folder, path), { recursive: true }),
    dispose: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** Entries and chunk files of recorded sessions. */
export function recordedSession(session: string, chunks: number): { entries: string[]; files: Map<string, Buffer> } {
  const entries: string[] = [];
  const files = new Map<string, Buffer>();
  for (let chunk = 0; chunk < chunks; chunk += 1) {
    const bytes = hash("sha256", `${session} ${chunk}`, "buffer").subarray(0, 20 + chunk);
    files.set(chunkPath(session, chunk), bytes);
    const data = { bytes: bytes.length, chunk, sha256: hash("sha256", bytes) };
    entries.push(
      JSON.stringify({
        actor: "glasskey",
        at: "2026-01-01T00:00:00.000Z",
        data,
        session,
        type: "recording.sealed",
        v: 1,
      }),
    );
  }
  return { entries, files };
}
