/**
 * Lets a bounded number of slow checks run at once, and a bounded number wait. Fair: whoever waits is taken by address in
 * turn, addresses from which somebody logged in lately first, so that neither a flood nor a trickle from elsewhere keeps
 * the person on call out.
 */
export interface Turnstile {
  /** Runs `work` when it is its turn. @returns undefined, without running it, when there is no room to wait. */
  pass<T>(address: string, work: () => Promise<T>): Promise<{ value: T } | undefined>;
  /** Somebody at this address is known to be genuine. */
  trust(address: string): void;
}

export interface TurnstileLimits {
  atOnce: number;
  waiting: number;
  waitingPerAddress: number;
  trusted: number;
}

export function createTurnstile(limits: TurnstileLimits): Turnstile {
  /** Addresses that wait, in the order of their turns; each with its own queue. */
  const queues = new Map<string, (() => void)[]>();
  const trusted = new Set<string>();
  let running = 0;
  let waiting = 0;

  const next = (): void => {
    if (running >= limits.atOnce || waiting === 0) return;
    const known = [...queues.keys()].find((address) => trusted.has(address));
    const address = known ?? queues.keys().next().value ?? "";
    const queue = queues.get(address) ?? [];
    queues.delete(address);
    const start = queue.shift();
    if (queue.length > 0) queues.set(address, queue); // its next turn comes after all others'
    waiting -= 1;
    running += 1;
    start?.();
  };
  return {
    async pass(address, work) {
      const queue = queues.get(address) ?? [];
      // Somebody who is known may wait though strangers fill the room.
      const room = trusted.has(address) ? 2 * limits.waiting : limits.waiting;
      if (waiting >= room || queue.length >= limits.waitingPerAddress) return undefined;
      waiting += 1;
      const turn = new Promise<void>((resolve) => queue.push(resolve));
      queues.set(address, queue);
      next();
      await turn;
      try {
        return { value: await work() };
      } finally {
        running -= 1;
        next();
      }
    },
    trust(address) {
      trusted.delete(address);
      trusted.add(address);
      const [oldest] = trusted;
      if (trusted.size > limits.trusted && oldest !== undefined) trusted.delete(oldest);
    },
  };
}
