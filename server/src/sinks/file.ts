import { constants } from "node:fs";
import { lstat, mkdir, open, readdir, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import type { FileSink } from "./config.ts";
import { DeliveryError, networkFault, type Item, type SinkDriver } from "./sink.ts";

const BATCH = { entries: 5_000, bytes: 4 * 1024 * 1024 };
/** A name has the index of its first entry, so that names sort in the order of the log. */
const DIGITS = 12;
const NAME = /^glasskey-(\d{12,15})\.jsonl$/;
const LINE_FEED = 0x0a;
/** How a line begins, however little of it there is; after a power failure also with zeros. */
const LINE_BEGINS = /^(\0|\{("|$)|$)/;
/** A line has an entry of at most 65,535 bytes and what is around it. */
const MAX_LINE_BYTES = 1024 * 1024;

interface Writing {
  readonly path: string;
  readonly file: FileHandle;
  /** What we have written and synced; another size means that somebody else writes too. */
  bytes: number;
  /** The index after the last line. */
  next: number;
}

/**
 * Appends one line for each entry and syncs. The folder says where it is: after a crash the newest file is read from its
 * end, a torn last line is cut, and what is there already is not written again. Files that grew to their size are left
 * alone, and may be taken away; the newest may not.
 */
export function fileDriver(sink: FileSink): SinkDriver {
  let writing: Writing | undefined;

  const close = async (): Promise<void> => {
    const closed = writing;
    writing = undefined;
    await closed?.file.close();
  };

  return {
    ...{ batch: BATCH, doubtful: false },
    close,
    async resume(next, leafHashOf) {
      return guarded(async () => {
        if (writing !== undefined) {
          if (await untouched(writing)) return writing.next;
          await close(); // somebody else wrote, or cut, or took it away; look again
        }
        const [last, previous] = await newestFirst(sink.folder);
        if (last === undefined) return next;
        const path = join(sink.folder, last.name);
        const file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW);
        try {
          const end = await endOf(file);
          // A file of no lines says where it is by its name alone, and a name is believed only as far as lines lead to it.
          if (end.last === undefined && last.first > next && !(await leadsTo(last.first, sink.folder, previous))) {
            throw new DeliveryError(`${last.name} is empty, and no file leads up to it; move it away`);
          }
          if (end.torn) {
            await file.truncate(end.bytes);
            await file.datasync();
          }
          if (end.last !== undefined && (await leafHashOf(end.last.index)) !== end.last.leafHash) {
            throw new DeliveryError(
              `${last.name} ends with an entry that is not the log's; move the folder's files away`,
            );
          }
          const at = end.last === undefined ? last.first : end.last.index + 1;
          writing = { path, file, bytes: end.bytes, next: at };
          return at;
        } catch (error) {
          if (writing?.file !== file) await file.close();
          throw error;
        }
      });
    },
    async deliver(items) {
      return guarded(async () => {
        const [first] = items;
        if (first === undefined) return;
        // A parked entry is never asked of a file; anything but the next one would be a gap.
        if (writing !== undefined && writing.next !== first.index) throw new DeliveryError("the file is elsewhere");
        if (writing === undefined || writing.bytes >= sink.rotateBytes) {
          await close();
          writing = await begin(sink.folder, first.index);
        }
        await append(writing, items);
      }).catch(async (error: unknown) => {
        await close().catch(() => {}); // the next attempt looks at the file itself
        throw error;
      });
    },
  };
}

async function begin(folder: string, first: number): Promise<Writing> {
  await mkdir(folder, { recursive: true, mode: 0o750 });
  const name = `glasskey-${String(first).padStart(DIGITS, "0")}.jsonl`;
  const path = join(folder, name);
  const file = await open(path, "wx", 0o640);
  const parent = await open(folder, "r");
  try {
    await parent.sync();
  } finally {
    await parent.close();
  }
  return { path, file, bytes: 0, next: first };
}

async function append(writing: Writing, items: readonly Item[]): Promise<void> {
  if (!(await untouched(writing))) {
    throw new DeliveryError("somebody else writes to its file or took it away; give each process a folder of its own");
  }
  const bytes = Buffer.from(items.map((item) => `${item.json}\n`).join(""));
  let written = 0;
  while (written < bytes.length) {
    const part = await writing.file.write(bytes, written, bytes.length - written, writing.bytes + written);
    written += part.bytesWritten;
  }
  await writing.file.datasync();
  writing.bytes += bytes.length;
  writing.next = (items.at(-1)?.index ?? writing.next - 1) + 1;
}

/** Whether the file is where it was and as long as it was: what goes into one that was removed is lost. */
async function untouched({ path, file, bytes }: Writing): Promise<boolean> {
  const own = await file.stat();
  const there = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  return own.size === bytes && there?.ino === own.ino && there.dev === own.dev;
}

interface Named {
  readonly name: string;
  readonly first: number;
}

async function newestFirst(folder: string): Promise<readonly Named[]> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
  return names
    .flatMap((name) => {
      const digits = NAME.exec(name)?.[1];
      return digits === undefined ? [] : [{ name, first: Number(digits) }];
    })
    .toSorted((a, b) => b.first - a.first);
}

/** Whether a file ends with the entry before `first`. */
async function leadsTo(first: number, folder: string, before: Named | undefined): Promise<boolean> {
  if (before === undefined) return false;
  const file = await open(join(folder, before.name), constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    return (await endOf(file)).last?.index === first - 1;
  } finally {
    await file.close();
  }
}

/** Where the last complete line ends, and which entry it is. */
async function endOf(
  file: FileHandle,
): Promise<{ bytes: number; torn: boolean; last: { index: number; leafHash: string } | undefined }> {
  const { size } = await file.stat();
  const length = Math.min(size, 2 * MAX_LINE_BYTES);
  const tail = Buffer.alloc(length);
  for (let read = 0; read < length;) {
    const { bytesRead } = await file.read(tail, read, length - read, size - length + read);
    if (bytesRead === 0) throw new DeliveryError("its file became shorter while it was read");
    read += bytesRead;
  }
  const end = tail.lastIndexOf(LINE_FEED) + 1; // 0 without any
  if (end === 0) {
    if (size > length) throw new DeliveryError("its file has no line within the last 2 MiB");
    if (!LINE_BEGINS.test(tail.toString("latin1", 0, 16))) throw strange();
    return { bytes: 0, torn: size > 0, last: undefined };
  }
  const start = tail.lastIndexOf(LINE_FEED, end - 2) + 1;
  return { bytes: size - length + end, torn: end < length, last: tagOf(tail.subarray(start, end).toString("utf8")) };
}

/** Index and leaf hash of a line, in either format. */
function tagOf(line: string): { index: number; leafHash: string } {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw strange();
  }
  const top = recordOf(value);
  const unmapped = recordOf(top["unmapped"]);
  const index = top["index"] ?? unmapped["log_index"];
  const leafHash = top["leafHash"] ?? unmapped["leaf_hash"];
  if (typeof index !== "number" || !Number.isSafeInteger(index) || typeof leafHash !== "string") throw strange();
  return { index, leafHash };
}

function strange(): DeliveryError {
  return new DeliveryError("the last line of its file is not one of Glasskey's; move the folder's files away");
}

function recordOf(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

/** The disk's own errors in words: full, forbidden, not there. */
async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof DeliveryError) throw error;
    const code = error instanceof Error && "code" in error ? String(error.code) : "";
    if (/^E[A-Z0-9]{2,20}$/.test(code))
      throw new DeliveryError(`its file cannot be written (${code})`, { cause: error });
    throw networkFault(error);
  }
}
