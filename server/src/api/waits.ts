import type { IncomingMessage } from "node:http";
import { GlassError } from "../core/errors.ts";

const PER_PERSON = 32; // a terminal each for a busy night; more is a program that forgets its requests

/** Requests that wait for news. */
export interface Waits {
  /**
   * Runs a wait; its signal aborts when the client leaves, so that nobody's abandoned requests go on asking the store.
   * @throws GlassError `too_many_attempts` when this person has too many of them.
   */
  run<T>(person: string, request: IncomingMessage, wait: (gone: AbortSignal) => Promise<T>): Promise<T>;
}

/** @param perPerson how many of one person's may run at once. */
export function createWaits(perPerson = PER_PERSON): Waits {
  const count = new Map<string, number>();
  return {
    async run(person, request, wait) {
      const mine = count.get(person) ?? 0;
      if (mine >= perPerson) {
        throw new GlassError("too_many_attempts", `${perPerson} requests of yours are waiting already`, {
          next: "End some of them, or ask without waiting.",
        });
      }
      count.set(person, mine + 1);
      const gone = new AbortController();
      const leave = (): void => gone.abort(new Error("the client left"));
      request.socket.once("close", leave);
      try {
        return await wait(gone.signal);
      } finally {
        request.socket.off("close", leave);
        const left = (count.get(person) ?? 1) - 1;
        if (left > 0) count.set(person, left);
        else count.delete(person);
      }
    },
  };
}
