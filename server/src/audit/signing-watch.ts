import { formatDuration } from "../core/duration.ts";
import type { LogReader } from "./read.ts";

export interface SigningWatchOptions {
  readonly reader: Pick<LogReader, "progress">;
  readonly alarms: {
    raise(key: string, text: string): Promise<unknown>;
    clear(key: string): Promise<unknown>;
  };
  /** Whether people were told already why nothing is signed. */
  readonly explained: () => boolean;
  /** For so long nothing may be signed while events wait; a minute by default. */
  readonly patienceMs?: number;
  readonly monotonicMs?: () => number;
}

const PATIENCE_MS = 60_000;
const ALARM = "log waits";

/**
 * Says when events wait and nobody signs them. Nothing is lost then, but nothing is in the log either; and each process may
 * believe that another leads, as the lock by which it does can be held by anybody who may log in to the store's database.
 * @returns looks once. Called again and again. It throws when the store does not answer.
 */
export function watchSigning(options: SigningWatchOptions): () => Promise<void> {
  const { reader, alarms, explained, patienceMs = PATIENCE_MS, monotonicMs = () => performance.now() } = options;
  let signed: number | undefined;
  let sinceMs = monotonicMs();
  // The alarm is everybody's: at the start, and whenever nothing is signed for a while, another process may have raised it.
  let mayBeRaised = true;
  return async () => {
    const { size, waiting } = await reader.progress();
    const moves = waiting === 0 || (signed !== undefined && size !== signed);
    if (moves || signed === undefined) [signed, sinceMs] = [size, monotonicMs()];
    if (!moves) mayBeRaised = true;
    if (!explained() && monotonicMs() - sinceMs >= patienceMs)
      await alarms.raise(
        ALARM,
        `nothing was signed for ${formatDuration(patienceMs)}, and ${waiting} events wait: no process leads the log. Look at what each prints, and who holds the advisory lock: select pid, usename from pg_stat_activity where pid in (select pid from pg_locks where locktype = 'advisory')`,
      );
    else if (mayBeRaised && (moves || explained())) {
      await alarms.clear(ALARM);
      mayBeRaised = false;
    }
  };
}
