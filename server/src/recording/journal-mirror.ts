import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { sha256 } from "../core/bytes.ts";
import { describe } from "../core/errors.ts";
import type { JournalFiles } from "./journal-files.ts";

/**
 * A journal's files on two disks. Every operation runs on both at once; frames are sealed before, so that both folders
 * have the same bytes. It is done when both have done it. Where one disk fails and the other does not, the first is given
 * up, by a note on the disk that works, before the operation counts as done; from then on there is one disk, and its
 * errors are the journal's. An error on both at once is the journal's too, and nothing is given up.
 */
export interface MirroredFiles extends JournalFiles {
  /** The folder that was given up, and why; undefined while both are written. */
  lost(): LostCopy | undefined;
}

export interface LostCopy {
  readonly dir: string;
  readonly why: string;
}

export interface MirrorOptions {
  readonly dirs: readonly [string, string];
  readonly files: JournalFiles;
  /** A folder that is given up from the beginning; the other one says so already. */
  readonly lost?: LostCopy | undefined;
  /** How long a disk may take longer than the other before it is given up; 5000 by default. */
  readonly slowMs?: number | undefined;
}

/** In each folder: whether this copy goes on without the other. Of one sector, made beforehand, so that it always fits. */
export const NOTE = "mirror";

/** As long as no session's deadline needs to wait; a disk that takes longer is broken, or will be. */
const SLOW_MS = 5_000;
/** The last disk that is left has so many times as long, before all sessions are cut. */
const LAST_DISK = 6;

/** Whether the folder `by` says that it goes on without `dir`. Trusts the note. @throws whatever keeps it from being read. */
export async function isGivenUp(dir: string, by: string): Promise<boolean> {
  return (await readNote(by))?.without === nameOf(dir);
}

/** The note in a folder; undefined where there is none, or where it says nothing. `without`: what {@link noteText} calls a folder. */
export async function readNote(dir: string): Promise<{ without: string; why: string } | undefined> {
  const [first, why = ""] = (await textOfNote(dir)).split("\n");
  const without = /^without ([0-9a-f]{32})$/.exec(first ?? "")?.[1];
  return without === undefined ? undefined : { without, why };
}

/** The frame up to which this folder went on alone before it got another one beside it, as {@link noteText} has it; 0 for none. */
export async function readAlone(dir: string): Promise<number> {
  return Number(/^both\nalone (\d{1,15})$/.exec(await textOfNote(dir))?.[1] ?? 0);
}

async function textOfNote(dir: string): Promise<string> {
  try {
    return (await readFile(join(dir, NOTE), "latin1")).trimEnd();
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return "";
    throw error;
  }
}

/** Of one length, whatever the folder is called: a note has one sector. */
function nameOf(dir: string): string {
  return sha256(Buffer.from(dir)).toString("hex", 0, 16);
}

/** What {@link readNote} and {@link readAlone} read; the second line of a loss is for people. */
export function noteText(lost: LostCopy | undefined, alone = 0): string {
  if (lost === undefined) return alone === 0 ? "both" : `both\nalone ${alone}`;
  return `without ${nameOf(lost.dir)}\n${`${lost.why}: ${lost.dir}`.replaceAll(/[^ -~]/g, "?")}`;
}

type Index = 0 | 1;
type Done<T> = (error: Error | null, value?: T) => void;

export function mirroredFiles(options: MirrorOptions): MirroredFiles {
  const { dirs, files } = options;
  const slowMs = options.slowMs ?? SLOW_MS;
  let lost: { readonly index: Index; readonly copy: LostCopy } | undefined;
  if (options.lost !== undefined) lost = { index: options.lost.dir === dirs[0] ? 0 : 1, copy: options.lost };
  const descriptors = new Map<number, [number | undefined, number | undefined]>();
  let nextDescriptor = 1;
  const onLoss = new Set<(index: Index) => void>();

  const healthy = (): readonly Index[] => (lost === undefined ? [0, 1] : [lost.index === 0 ? 1 : 0]);

  /** Gives one up. @throws if the other cannot say so durably: then neither can be relied upon. */
  const giveUp = (index: Index, error: Error): void => {
    const copy = { dir: dirs[index], why: describe(error) };
    files.mark(dirs[index === 0 ? 1 : 0], NOTE, noteText(copy));
    lost = { index, copy };
    for (const tell of [...onLoss]) tell(index);
  };

  /** What an operation comes to that ended like this on each disk that took part. */
  const judge = (outcomes: ReadonlyMap<Index, Error | null>): Error | null => {
    const bad = healthy().find((index) => outcomes.get(index) instanceof Error);
    const good = healthy().find((index) => outcomes.get(index) === null);
    if (bad === undefined) return null;
    const error = outcomes.get(bad) as Error;
    if (good === undefined) return error;
    try {
      giveUp(bad, error);
      return null;
    } catch (cause) {
      return cause instanceof Error ? cause : new Error(describe(cause));
    }
  };

  /**
   * Runs `start` on each disk. `done` has the value of a disk that is still relied upon. A value that came too late to
   * count goes to `late`. A disk whose operation has steps says at each that it is `alive`.
   */
  const both = <T>(
    start: (index: Index, done: Done<T>, alive: () => void) => void,
    done: Done<T>,
    late?: (value: T) => void,
  ): void => {
    const sides = healthy();
    if (sides.length === 1) return start(sides[0] as Index, done, () => {});
    const outcomes = new Map<Index, Error | null>();
    const values = new Map<Index, T | undefined>();
    let over = false;
    let timer: NodeJS.Timeout | undefined;
    const finish = (): void => {
      over = true;
      clearTimeout(timer);
      onLoss.delete(other);
      const error = judge(outcomes);
      if (error !== null) return done(error);
      const kept = healthy().find((index) => outcomes.get(index) === null);
      done(null, kept === undefined ? undefined : values.get(kept));
    };
    const settle = (index: Index, error: Error | null, value?: T): void => {
      if (over) {
        if (error === null && value !== undefined) late?.(value);
        return;
      }
      if (outcomes.has(index)) return;
      outcomes.set(index, error);
      values.set(index, value);
      if (outcomes.size === 2) finish();
      else waitFor(index === 0 ? 1 : 0, error === null ? slowMs : slowMs * LAST_DISK);
    };
    const waitFor = (index: Index, ms: number): void => {
      clearTimeout(timer);
      timer = setTimeout(() => settle(index, new Error(`no answer within ${ms} ms of the other disk's`)), ms);
    };
    /** Another operation found the disk broken: this one need not wait for it. */
    const other = (index: Index): void => settle(index, new Error("the disk was given up"));
    onLoss.add(other);
    for (const index of sides) {
      const alive = (): void => {
        if (timer !== undefined && !over && !outcomes.has(index)) waitFor(index, slowMs);
      };
      start(index, (error, value) => settle(index, error, value), alive);
    }
  };

  const inBoth = <T>(
    act: (dir: string, index: Index, alive: () => void) => Promise<T>,
    late?: (value: T) => void,
  ): Promise<T> =>
    new Promise((resolve, reject) => {
      both<T>(
        (index, settle, alive) => {
          act(dirs[index], index, alive).then(
            (value) => settle(null, value),
            (error: unknown) => settle(error instanceof Error ? error : new Error(describe(error))),
          );
        },
        (error, value) => (error === null ? resolve(value as T) : reject(error)),
        late,
      );
    });

  const descriptor = (fd: number, index: Index): number => {
    const found = descriptors.get(fd)?.[index];
    if (found === undefined) throw new Error(`descriptor ${fd} is not open in ${dirs[index]}`);
    return found;
  };

  return {
    lost: () => lost?.copy,
    makeFolder: () => inBoth((dir) => files.makeFolder(dir)),
    async list() {
      const found = new Map<string, number>();
      await inBoth(async (dir) => {
        for (const { name, bytes } of await files.list(dir)) found.set(name, Math.max(bytes, found.get(name) ?? 0));
      });
      return [...found].map(([name, bytes]) => ({ name, bytes }));
    },
    prepare: (_, name, head, bytes, slice) =>
      inBoth((dir, _index, alive) => {
        const step = (): Promise<number> => {
          alive(); // a great file takes a slow disk a while: it must get on, not be done
          return slice();
        };
        return files.prepare(dir, name, head, bytes, step);
      }),
    rename: (_, from, to) => inBoth((dir) => files.rename(dir, from, to)),
    remove: (_, name) => inBoth((dir) => files.remove(dir, name)),
    syncFolder: () => inBoth((dir) => files.syncFolder(dir)),
    truncate: (_, name, bytes) => inBoth((dir) => files.truncate(dir, name, bytes)),
    async open(_, name, synced) {
      const opened: [number | undefined, number | undefined] = [undefined, undefined];
      const fd = nextDescriptor++;
      await inBoth(async (dir, index) => {
        opened[index] = await files.open(dir, name, synced);
      });
      descriptors.set(fd, opened);
      return fd;
    },
    write(fd, bytes, length, position, done) {
      both<void>((index, sideDone) => {
        files.write(descriptor(fd, index), bytes, length, position, sideDone);
      }, done);
    },
    writeSync(fd, bytes, length, position) {
      const outcomes = new Map<Index, Error | null>();
      for (const index of healthy()) {
        try {
          files.writeSync(descriptor(fd, index), bytes, length, position);
          outcomes.set(index, null);
        } catch (error) {
          outcomes.set(index, error instanceof Error ? error : new Error(describe(error)));
        }
      }
      const error = judge(outcomes);
      if (error !== null) throw error;
    },
    sync(fd, done) {
      both<void>((index, sideDone) => files.sync(descriptor(fd, index), sideDone), done);
    },
    close(fd) {
      for (const one of descriptors.get(fd) ?? []) if (one !== undefined) files.close(one);
      descriptors.delete(fd);
    },
    mark(_, name, text) {
      for (const index of healthy()) files.mark(dirs[index], name, text);
    },
  };
}
