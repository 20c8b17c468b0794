/**
 * Two clocks: the wall, which may jump, and a monotonic one, which may not. Deadlines on connections hold against both:
 * a session ends when either says so.
 */
export interface Clock {
  now(): Date;
  /** Milliseconds since an arbitrary start; never goes back. */
  monotonicMs(): number;
}

export const systemClock: Clock = {
  now: () => new Date(),
  monotonicMs: () => performance.now(),
};

/** Resolves after `ms`, or rejects with the signal's reason. Until then it keeps the process alive: see `within`. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason as Error);
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/** What `work` gives, or after `ms` what `late` gives. Unlike a race with `sleep` it leaves no timer that a stop waits for. */
export async function within<T>(ms: number, work: Promise<T>, late: () => T): Promise<T> {
  const over = new AbortController();
  try {
    return await Promise.race([work, sleep(ms, over.signal).then(late)]);
  } finally {
    over.abort();
  }
}
