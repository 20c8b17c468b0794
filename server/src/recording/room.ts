import { statfs } from "node:fs/promises";
import { dirname } from "node:path";
import { describe, GlassError } from "../core/errors.ts";

/** What the data plane says of its journal, each time that it changes. Plain data: it crosses a thread. */
export interface JournalHealth {
  /** Why no session may begin now; null while all is well. */
  readonly unavailable: { readonly text: string; readonly next?: string } | null;
  /** Which of the journal's two folders was given up, and why; null with both, and with one alone. */
  readonly degraded: string | null;
}

export interface RoomWatch {
  /** Why nothing new may be opened: `recording_unavailable`, and what to do. Undefined while there is room for it all. */
  refusal(): GlassError | undefined;
  /** Takes what the journal says. */
  journal(health: JournalHealth): void;
  /** Recording has stopped and every session was cut: an alarm, until the journal takes records again. */
  stopped(why: string): void;
  /** Looks at the disks, and raises and clears alarms. @throws when an alarm cannot be stored; repeat it. */
  look(): Promise<void>;
}

export interface RoomOptions {
  /** This process's id: the alarms are its own. */
  readonly node: string;
  /** Folders that what is recorded goes into in the end: sealed chunks, the store, the log's folder. */
  readonly folders: readonly string[];
  readonly alarms: {
    raise(key: string, text: string): Promise<unknown>;
    clear(key: string): Promise<unknown>;
  };
  /** Whatever opens something has to hear this: {@link RoomWatch.refusal} as it is now. Called each time that it was looked at. */
  onRefusal?(refusal: GlassError | undefined): void;
  /** Free bytes of the disk with this folder; the file system's answer by default. */
  freeBytes?(folder: string): Promise<number>;
}

/** Room for the files that are being written by the sessions that are open; twice the journal's own two files of 64 MiB. */
const LOW_BYTES = 256 << 20;
/** Above it there is room again: a little more, so that one deleted file does not open and close the door all day. */
const ENOUGH_BYTES = 320 << 20;

/**
 * Says early that the recording runs out of room: no new grants while the sessions that are open still have all they need.
 */
export function watchRoom(options: RoomOptions): RoomWatch {
  const { node, folders, alarms } = options;
  let health: JournalHealth = { unavailable: null, degraded: null };
  let stopped: string | undefined;
  let low = new Map<string, string>();
  /** What the store was told each alarm is about, "" for that it is over; at the start it may remember another time. */
  const told = new Map<string, string>();

  /** @param about what the text says without its numbers: said again when this has changed. */
  const tell = async (key: string, text: string | undefined, about = text ?? ""): Promise<void> => {
    if (told.get(key) === about) return;
    if (text === undefined) await alarms.clear(key);
    else await alarms.raise(key, text);
    told.set(key, about);
  };

  const refusal = (): GlassError | undefined => {
    if (health.unavailable !== null) {
      const { text, next } = health.unavailable;
      return new GlassError("recording_unavailable", text, next === undefined ? {} : { next });
    }
    const [why] = low.values();
    if (why === undefined) return undefined;
    return new GlassError("recording_unavailable", why, {
      next: "Make room on that disk. Sessions that are open go on; grants open again by themselves.",
    });
  };

  return {
    refusal,
    journal(next) {
      health = next;
      if (next.unavailable === null) stopped = undefined;
      options.onRefusal?.(refusal());
    },
    stopped(why) {
      stopped = `nothing can be recorded, so nothing is opened: ${why}`;
    },
    async look() {
      const found = new Map<string, string>();
      for (const folder of folders) {
        try {
          const free = await (options.freeBytes ?? freeOf)(folder);
          if (free >= (low.has(folder) ? ENOUGH_BYTES : LOW_BYTES)) continue;
          found.set(folder, `the disk of ${folder} has ${free >> 20} MiB left, and ${LOW_BYTES >> 20} is the least`);
        } catch (error) {
          found.set(folder, `how much room there is in ${folder} is not known: ${describe(error)}`);
        }
      }
      low = found;
      const why = refusal();
      options.onRefusal?.(why);
      const [folder = ""] = low.keys();
      const about = health.unavailable === null ? folder : "the journal";
      await tell(`room ${node}`, why && `nothing new is opened: ${why.message}`, about);
      await tell(`recording ${node}`, stopped);
      await tell(`journal copy ${node}`, health.degraded ?? undefined);
    },
  };
}

/** Of the folder, or of the nearest one above that is there: it is made when it is needed. */
async function freeOf(folder: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(folder);
    return bavail * bsize;
  } catch (error) {
    const absent = error instanceof Error && "code" in error && error.code === "ENOENT";
    if (!absent || dirname(folder) === folder) throw error;
    return freeOf(dirname(folder));
  }
}
