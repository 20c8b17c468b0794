/** Runs work with at most so many at once for each name; who is aborted while waiting leaves the queue. */
export type Lanes = <T>(name: string, signal: AbortSignal, work: () => Promise<T>) => Promise<T>;

/** sshd drops logins at random above ten unproved ones (MaxStartups 10:30:100); people's own logins count there too. */
export function createLanes(atOnce: number): Lanes {
  const lanes = new Map<string, { running: number; waiting: Set<() => void> }>();
  return async (name, signal, work) => {
    signal.throwIfAborted();
    const lane = lanes.get(name) ?? { running: 0, waiting: new Set() };
    lanes.set(name, lane);
    if (lane.running < atOnce) lane.running += 1;
    else {
      const turn = Promise.withResolvers<void>();
      const go = (): void => turn.resolve();
      const abort = (): void => {
        // Who was given the place already passes it on below.
        if (lane.waiting.delete(go)) turn.reject(signal.reason as Error);
      };
      lane.waiting.add(go);
      signal.addEventListener("abort", abort, { once: true });
      try {
        await turn.promise;
      } finally {
        signal.removeEventListener("abort", abort);
      }
    }
    try {
      signal.throwIfAborted();
      return await work();
    } finally {
      const [next] = lane.waiting;
      if (next !== undefined) {
        lane.waiting.delete(next);
        next(); // the place goes over, so `running` stays
      } else {
        lane.running -= 1;
        if (lane.running === 0) lanes.delete(name);
      }
    }
  };
}
