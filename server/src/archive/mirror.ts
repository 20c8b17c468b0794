import { chunkPath, openCheckpoint, parseVerifierKeys } from "@glasskey/verify";
import { exportLog, exportRecording, intoFolder } from "../audit/export.ts";
import type { LogReader } from "../audit/read.ts";
import { sleep, within } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import { sha256Hex, type ObjectStore } from "../objects/object-store.ts";
import type { Store } from "../store/database.ts";
import { openCopy } from "./copy.ts";
import { createCursors, type Cursor } from "./cursor.ts";
import type { SealedChunk } from "./layout.ts";
import { checkMirror } from "./owner.ts";
import { faultsOf, noteGiven, noteOwed, owed } from "./standing.ts";

export interface MirrorOptions {
  readonly store: Store;
  readonly reader: LogReader;
  /** A folder, which is brought up to date like an export; or where objects go. */
  readonly to: { readonly folder: string } | { readonly objects: ObjectStore };
  readonly readChunk: (chunk: Pick<SealedChunk, "session" | "chunk" | "sha256">) => Promise<Uint8Array | undefined>;
  readonly keys: () => Promise<string> | string;
  readonly node: string;
  readonly warn: (line: string) => void;
  readonly alarms: { raise(key: string, text: string): Promise<unknown>; clear(key: string): Promise<unknown> };
  readonly pollMs?: number;
  /** For how long it may fail before the alarm; 10 minutes by default. */
  readonly patienceMs?: number;
}

export interface Mirror {
  /** Brings it up to date now, if no other process is at it. */
  mirrorNow(): Promise<void>;
  /** Puts all chunks of a recording there again: some could not be read when their entries were copied. */
  putRecording(session: string): Promise<void>;
  stop(): Promise<void>;
}

const POLL_MS = 10_000;
const PATIENCE_MS = 10 * 60_000;
const PUTS_AT_ONCE = 8;
const OWED_A_ROUND = 50;
const ALARM = "mirror behind";
const INCOMPLETE = "mirror incomplete";

/** What table `archives` calls a mirror: one place may be both, of different logs or times. */
function mirrorRow(place: string): string {
  return `mirror ${place}`;
}

/**
 * Keeps a copy of the log and the encrypted recordings up to date where auditors reach it without Glasskey. It is not
 * locked: whoever may write there can change it, and the verifier then says so. One process at a time works on it.
 */
export function startMirror(options: MirrorOptions): Mirror {
  const { store, reader, to, alarms, warn } = options;
  const pollMs = options.pollMs ?? POLL_MS;
  const patienceMs = options.patienceMs ?? PATIENCE_MS;
  const place = "folder" in to ? to.folder : to.objects.place;
  const row = mirrorRow(place);
  const cursors = createCursors(store, row, options.node);
  const stopping = new AbortController();
  let failingSinceMs: number | undefined;
  let told: boolean | undefined;
  let lacking: string | undefined = ""; // as it was told; at the start it is not known what another time told
  let triedTo = 0;

  /** Undefined where the chunk is gone, or is not what the log has: that is noted, told, and tried again. */
  const sound: MirrorOptions["readChunk"] = async (chunk) => {
    const bytes = await options.readChunk(chunk);
    if (bytes !== undefined && sha256Hex(bytes) === chunk.sha256) return bytes;
    const why = bytes === undefined ? "it is not among the recordings" : "its bytes are not those of its entry";
    await noteOwed(store, row, [{ ...chunk, path: chunkPath(chunk.session, chunk.chunk), why }]);
    return undefined;
  };

  const put = (path: string, bytes: Uint8Array): Promise<void> =>
    "folder" in to ? intoFolder(to.folder)(path, bytes) : to.objects.replace(path, bytes);

  /** Tries some of what is owed again, others each time. */
  const giveOwed = async (): Promise<void> => {
    const open = await owed(store, row);
    if (triedTo >= open.length) triedTo = 0;
    const some = open.slice(triedTo, (triedTo += OWED_A_ROUND));
    for (const chunk of some) {
      const bytes = await sound(chunk);
      if (bytes === undefined) continue;
      await put(chunk.path, bytes);
      await noteGiven(store, row, chunk.path);
      open.splice(open.indexOf(chunk), 1);
    }
    const [first] = await faultsOf(store, row, 1);
    const text =
      first === undefined
        ? undefined
        : `the mirror ${place} lacks ${open.length} chunks of recordings, the first ${first.path}: ${first.fault}`;
    if (text === undefined && (some.length > 0 || lacking !== undefined)) await alarms.clear(INCOMPLETE);
    if (text !== undefined && text !== lacking) await alarms.raise(INCOMPLETE, text);
    lacking = text;
  };

  const toObjects = async (objects: ObjectStore, cursor: Cursor, note: string, keys: string): Promise<void> => {
    const head = openCheckpoint(note, parseVerifierKeys(keys));
    if (head.size > cursor.size) {
      await checkMirror({ store, objects, keys });
      const log = await openCopy(reader, head);
      for await (const { parts, chunks, next } of log.stepsFrom(cursor.next_index)) {
        const work = [
          ...parts.map(
            ({ path, bytes }) =>
              () =>
                objects.replace(path, bytes),
          ),
          ...chunks.map((chunk) => async () => {
            const bytes = await sound(chunk);
            if (bytes !== undefined) await objects.replace(chunk.path, bytes);
          }),
        ];
        for (let i = 0; i < work.length; i += PUTS_AT_ONCE) {
          await Promise.all(work.slice(i, i + PUTS_AT_ONCE).map((one) => one()));
        }
        if (!(await cursors.advance(store, { next_index: next }))) return;
        if (stopping.signal.aborted) return;
      }
      for (const { path, bytes } of await log.partialParts()) await objects.replace(path, bytes);
      await objects.replace("log.vkey", Buffer.from(keys.endsWith("\n") ? keys : `${keys}\n`));
      await objects.replace("checkpoint", Buffer.from(note)); // last: what it covers is there
      await cursors.advance(store, { size: head.size, dated: true });
    }
    const witnessed = await reader.witnessed();
    if (witnessed === undefined) return;
    const { size } = openCheckpoint(witnessed, parseVerifierKeys(keys));
    if (size <= cursor.witnessed || size > head.size) return;
    await objects.replace("checkpoint.witnessed", Buffer.from(witnessed));
    await cursors.advance(store, { witnessed: size });
  };

  const round = async (now: boolean): Promise<void> => {
    await cursors.read();
    const cursor = await cursors.claim(now);
    if (cursor === undefined) return;
    if (cursor.failures === 0) failingSinceMs = undefined; // another process has succeeded since
    let why = "";
    try {
      const note = await reader.checkpoint();
      const keys = await options.keys();
      if (note !== undefined && "objects" in to) await toObjects(to.objects, cursor, note, keys);
      else if (note !== undefined && "folder" in to) {
        const witnessed = (): Promise<string | undefined> => reader.witnessed();
        const exported = { store, folder: to.folder, vkey: keys, readChunk: sound, keepCheckpoint: false, witnessed };
        await cursors.advance(store, { size: (await exportLog(exported)).size, dated: true });
      }
      await giveOwed();
      await cursors.release();
      failingSinceMs = undefined;
    } catch (error) {
      const refused = error instanceof GlassError && (error.code === "integrity" || error.code === "config_invalid");
      await cursors.fail(describe(error), refused);
      if (failingSinceMs === undefined) warn(`mirror ${place}: ${describe(error)}`);
      failingSinceMs ??= performance.now();
      why = describe(error);
    }
    const late = failingSinceMs !== undefined && performance.now() - failingSinceMs >= patienceMs;
    // After a failure of whichever process: it may have raised the alarm, and be gone.
    if (late === told && (late || cursor.failures === 0)) return;
    if (late) await alarms.raise(ALARM, `the mirror ${place} is not up to date: ${why}`);
    else await alarms.clear(ALARM);
    told = late;
  };

  let turn: Promise<void> = Promise.resolve();
  const inTurn = (now: boolean): Promise<void> => {
    turn = turn
      .then(() => round(now))
      .catch((error: unknown) => warn(`mirror: it waits for the store: ${describe(error)}`));
    return turn;
  };
  const loop = async (): Promise<void> => {
    while (!stopping.signal.aborted) {
      await inTurn(false);
      await sleep(pollMs, stopping.signal).catch(() => {});
    }
  };
  const running = loop();
  return {
    mirrorNow: () => inTurn(true),
    putRecording: (session) => exportRecording({ store, readChunk: options.readChunk, put }, session),
    async stop() {
      stopping.abort();
      await within(pollMs, running, () => {});
      if ("objects" in to) to.objects.close();
    },
  };
}
