import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chunkPath, parseVerifierKeys, verifyFolder } from "@glasskey/verify";
import { createLog, type LogFixture } from "../../audit/fixtures/log.ts";
import { createLogReader, type LogReader } from "../../audit/read.ts";
import { newId } from "../../core/ids.ts";
import { folderStore } from "../../objects/folder.ts";
import { sha256Hex, type ObjectStore } from "../../objects/object-store.ts";
import type { SharedCluster } from "../../../testing/global.ts";
import { startArchive, type Archive, type ArchiveOptions } from "../archive.ts";
import { restore, type Restored } from "../restore.ts";

export const DAY_MS = 24 * 3_600_000;

/** A log with a sequencer and recordings, and archives of it that do nothing until they are told. */
export interface ArchiveRig {
  readonly log: LogFixture;
  readonly reader: LogReader;
  /** Chunks by path; what is deleted here is gone. */
  readonly chunks: Map<string, Buffer>;
  readonly alarms: Map<string, string>;
  readonly warnings: string[];
  readonly folder: string;
  /** Appends events, every tenth of which tells of a sealed chunk, and waits for the checkpoint. @returns its size. */
  grow(events: number): Promise<number>;
  archive(objects: ObjectStore, options?: Partial<ArchiveOptions>): Archive;
  /** Restores into a new folder and verifies that with the log's key. */
  restored(source: ObjectStore): Promise<Restored & { problems: readonly string[]; folder: string }>;
  dispose(): Promise<void>;
}

export async function createRig(cluster: SharedCluster): Promise<ArchiveRig> {
  const log = await createLog(cluster);
  await log.sequence();
  const reader = createLogReader(log.store);
  const folder = await mkdtemp(join(tmpdir(), "glasskey-archive-"));
  const chunks = new Map<string, Buffer>();
  const alarms = new Map<string, string>();
  const warnings: string[] = [];
  const running: Archive[] = [];
  const session = newId("session");
  let sealed = 0;
  let restores = 0;
  return {
    ...{ log, reader, chunks, alarms, warnings, folder },
    async grow(events) {
      const made = Array.from({ length: events }, (_, i) => {
        if (i % 10 !== 0) return { type: "login.succeeded" as const };
        const bytes = randomBytes(200);
        const chunk = sealed++;
        chunks.set(chunkPath(session, chunk), bytes);
        const data = { chunk, sha256: sha256Hex(bytes), bytes: bytes.length };
        return { type: "recording.sealed" as const, actor: "glasskey", session, data };
      });
      await log.append(...made);
      return reader.settled(60_000);
    },
    archive(objects, options = {}) {
      const archive = startArchive({
        ...{
          store: log.store,
          objects,
          reader,
          keys: () => log.signer.vkey,
          node: `nd_${randomBytes(4).toString("hex")}`,
        },
        ...{ retainMs: 400 * DAY_MS, recordingsRetainMs: 100 * DAY_MS, everyMs: 3_600_000 },
        readChunk: async ({ path }) => chunks.get(path),
        warn: (line) => void warnings.push(line),
        alarms: {
          raise: async (key, text) => alarms.set(key, text),
          clear: async (key) => alarms.delete(key),
        },
        ...options,
      });
      running.push(archive);
      return archive;
    },
    async restored(source) {
      const to = join(folder, `restored-${restores++}`);
      const keys = parseVerifierKeys(log.signer.vkey);
      const result = await restore({ source, folder: to, keys, say: () => {} });
      const report = await verifyFolder({ folder: to, vkey: log.signer.vkey });
      return { ...result, problems: report.problems.map(({ where, what }) => `${where} ${what}`), folder: to };
    },
    async dispose() {
      for (const one of running) await one.stop();
      await log.dispose();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export function folderIn(rig: Pick<ArchiveRig, "folder">, name = "archive"): ObjectStore {
  return folderStore(join(rig.folder, name));
}
