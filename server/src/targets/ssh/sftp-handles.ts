import type { JsonObject } from "../../core/json.ts";
import { KEPT_FILE_BYTES, type FileProxyParts } from "./file-proxy.ts";
import { createPassed, type Passed } from "./sftp-transfer.ts";
import { accessOf } from "./sftp-wire.ts";

/** One open file or folder: from its open to its close it is one statement. */
export interface Handle {
  readonly path: string;
  readonly read: boolean;
  readonly write: boolean;
  readonly folder: boolean;
  /** Bytes that the target sent of it. */
  took(offset: number, body: Buffer): void;
  /** Bytes for it. `forward` runs once they are recorded, where they are kept; at once otherwise. In order. */
  give(offset: number, body: Buffer, forward: () => void): void;
  /** Runs after everything that was given before, and after what holds it. */
  after(act: () => void): void;
  /** Something that comes before what is given from here on, and takes its time. @returns lets it go; once. */
  hold(): () => void;
  listed(entries: number): void;
  /** Something of it went wrong on the target; the first one is told. */
  failed(message: string): void;
  /** It was copied into on the target: no digest of the file can be told. */
  copied(): void;
  /** Whether its statement has ended: nothing of it can be counted any more. */
  readonly over: boolean;
  /** Its statement ends. Idempotent. */
  end(error?: { code: string; message: string }): void;
}

/** @param n its statement, already committed. */
export function createHandle(
  { tape, mask, scope }: FileProxyParts,
  n: number,
  path: string,
  flags: number | "folder",
): Handle {
  const folder = flags === "folder";
  const access = folder ? { read: true, write: false } : (accessOf(flags) ?? { read: false, write: false });
  const keep = scope.files === "keep";
  const passed: { read: Passed | undefined; write: Passed | undefined } = { read: undefined, write: undefined };
  let keptBytes = 0;
  let waiting = 0;
  let deferred: (() => void)[] = [];
  let entries = 0;
  let onTarget = false;
  let error: { code: string; message: string } | undefined;
  let over = false;

  const after = (act: () => void): void => {
    if (waiting === 0 && deferred.length === 0) act();
    else deferred.push(act);
  };
  const flush = (): void => {
    while (waiting === 0 && deferred.length > 0) {
      const acts = deferred;
      deferred = [];
      for (const act of acts) act();
    }
  };
  const detail = (): JsonObject => ({
    ...(passed.read === undefined ? {} : passed.read.result()),
    // A file that was read and written at once: the write's digest has a name of its own.
    ...(passed.write === undefined
      ? {}
      : passed.read === undefined
        ? passed.write.result()
        : { written: passed.write.result() }),
    ...(onTarget ? { copiedOnTarget: true } : {}),
  });

  return {
    ...{ path, folder, ...access, after },
    took(offset, body) {
      (passed.read ??= createPassed(mask)).add(offset, body);
      // The tape keeps its bound of it.
      if (keep && !mask.parameters) tape.output(n, 1, body);
    },
    give(offset, body, forward) {
      (passed.write ??= createPassed(mask)).add(offset, body);
      const part = keep ? body.subarray(0, Math.max(0, KEPT_FILE_BYTES - keptBytes)) : undefined;
      if (part === undefined || part.length === 0) return after(forward);
      keptBytes += part.length;
      waiting += 1;
      tape.data(n, part, () => {
        waiting -= 1;
        forward();
        flush();
      });
    },
    listed: (more) => void (entries += more),
    failed: (message) => void (error ??= { code: "target_refused", message }),
    copied: () => void (onTarget = true),
    get over() {
      return over;
    },
    hold() {
      waiting += 1;
      return () => {
        waiting -= 1;
        flush();
      };
    },
    end(why) {
      if (over) return;
      over = true;
      deferred = [];
      error ??= why;
      // What was opened to be read or written and never was has a digest too: that of nothing.
      if (!folder && !onTarget && passed.read === undefined && passed.write === undefined)
        passed[access.write ? "write" : "read"] = createPassed(mask);
      tape.end(n, {
        ...(error === undefined ? { tag: "ok" } : { error }),
        ...(folder ? { rows: entries } : { bytes: (passed.read?.bytes ?? 0) + (passed.write?.bytes ?? 0) }),
        detail: folder ? {} : detail(),
      });
    },
  };
}
