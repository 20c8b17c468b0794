import { statfs } from "node:fs/promises";
import { within } from "../core/clock.ts";
import type { LocalFigures } from "./metrics.ts";

export interface LocalParts {
  readonly dataDir: string;
  /** Asks the data plane. */
  readonly sessions: () => Promise<number>;
  /** Of the sealer, where there is one: the last frame that was read, the last that is sealed, what waits in memory. */
  readonly sealer: () =>
    | { readonly readSequence: number; readonly completeSequence: number; readonly bufferedBytes: number }
    | undefined;
}

const ANSWER_MS = 1_000;

/** What this process knows of itself. Never rejects, and waits for nobody longer than a second. */
export async function localFigures(parts: LocalParts): Promise<LocalFigures> {
  const sealer = parts.sealer();
  const [sessions, disk] = await Promise.all([soon(parts.sessions()), soon(statfs(parts.dataDir))]);
  return {
    sessions,
    unsealedFrames: sealer && Math.max(0, sealer.readSequence - sealer.completeSequence),
    unsealedBytes: sealer?.bufferedBytes,
    diskFreeBytes: disk === undefined ? undefined : disk.bavail * disk.bsize,
  };
}

function soon<T>(answer: Promise<T>): Promise<T | undefined> {
  return within<T | undefined>(
    ANSWER_MS,
    answer.catch(() => undefined),
    () => undefined,
  );
}
