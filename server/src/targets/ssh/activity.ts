/**
 * Whether a session does something for its user. What runs until it ends holds it busy: a command that is silent for hours
 * is not idle. What may wait at a prompt (a shell, an SFTP client, a forward) is busy for a while after each byte.
 */
export interface Activity {
  /** Busy until the returned function was called; that may be done more than once. */
  hold(): () => void;
  /** Something moved just now. */
  touch(): void;
  /** Never busy again. */
  stop(): void;
}

/** After the last byte of a shell: longer than a person who types pauses between keys, far shorter than any `idle:`. */
const LINGER_MS = 10_000;

export function createActivity(busy: (busy: boolean) => void, lingerMs = LINGER_MS): Activity {
  let holders = 0;
  let touchedMs = 0;
  let timer: NodeJS.Timeout | undefined;
  let said = false;
  let stopped = false;

  const say = (): void => {
    const now = !stopped && (holders > 0 || timer !== undefined);
    if (now === said) return;
    said = now;
    busy(now);
  };
  // One timer however many bytes: it looks at the last touch when it fires.
  const wait = (ms: number): void => {
    timer = setTimeout(() => {
      const leftMs = touchedMs + lingerMs - performance.now();
      if (leftMs > 0) return wait(leftMs);
      timer = undefined;
      say();
    }, ms);
    timer.unref();
  };

  return {
    hold() {
      holders += 1;
      say();
      let held = true;
      return () => {
        if (!held) return;
        held = false;
        holders -= 1;
        say();
      };
    },
    touch() {
      if (stopped) return;
      touchedMs = performance.now();
      if (timer !== undefined) return;
      wait(lingerMs);
      say();
    },
    stop() {
      stopped = true;
      clearTimeout(timer);
      timer = undefined;
      say();
    },
  };
}
