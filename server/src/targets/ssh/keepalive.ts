import type { Connection } from "./types.ts";

const NONE = Buffer.alloc(0);

/**
 * Asks a peer for a sign of life at intervals (OpenSSH's `keepalive@openssh.com`; any answer is one), so that a peer that
 * vanished without a word is found in bounded time, and nothing on the way forgets a silent connection.
 * @param missed so many intervals without an answer, and `dead` is called, once
 * @returns stops it
 */
export function startKeepalive(connection: Connection, everyMs: number, missed: number, dead: () => void): () => void {
  let unanswered = 0;
  let waiting = false;
  const timer = setInterval(() => {
    if (waiting) {
      unanswered += 1;
      if (unanswered < missed) return;
      clearInterval(timer);
      return dead();
    }
    waiting = true;
    connection.request("keepalive@openssh.com", true, NONE).then(
      () => {
        waiting = false;
        unanswered = 0;
      },
      () => clearInterval(timer), // the connection is over, and says so itself
    );
  }, everyMs);
  timer.unref();
  return () => clearInterval(timer);
}
