import { isErrorCode, type ErrorCode } from "@glasskey/contract/errors";
import type { MessagePort } from "node:worker_threads";
import { GlassError } from "../core/errors.ts";

/** Verbs that one side asks of the other. Everything in them is data that `structuredClone` takes. */
export type Verbs = { readonly [verb: string]: { ask: unknown; answer: unknown } };

export type Handlers<V extends Verbs> = {
  readonly [K in keyof V]: (ask: V[K]["ask"]) => V[K]["answer"] | Promise<V[K]["answer"]>;
};

export interface AskOptions<Answer> {
  /** Without it, the answer may take for ever. */
  timeoutMs?: number;
  /** What to do with an answer that came after the time-out: something may have been opened for nobody. */
  late?: (answer: Answer) => void;
  /** Exempt from the bound on unanswered questions; for what is bounded otherwise and must not be lost. */
  must?: boolean;
}

export interface Link<Remote extends Verbs> {
  /**
   * @throws GlassError what the other side threw, with its code, message and `next`; or `store_unavailable` when there is
   * no answer in time, too many questions are unanswered, or the other side is gone.
   */
  ask<K extends keyof Remote & string>(
    verb: K,
    ask: Remote[K]["ask"],
    options?: AskOptions<Remote[K]["answer"]>,
  ): Promise<Remote[K]["answer"]>;
  /** Asks without waiting. Dropped, with `false`, when too many questions are unanswered or the other side is gone. */
  tell<K extends keyof Remote & string>(verb: K, ask: Remote[K]["ask"]): boolean;
  readonly isGone: boolean;
  close(): void;
}

export interface LinkOptions<Local extends Verbs> {
  handlers: Handlers<Local>;
  /** Name of the other side in errors, such as `the control plane`. */
  peer: string;
  /** Unanswered questions allowed; one that timed out counts until it is answered, so a frozen peer costs no memory. */
  maxUnanswered: number;
  /** A handler threw something that is no GlassError; the peer is told only that it was a defect. */
  onDefect(verb: string, error: unknown): void;
  onGone?(): void;
}

type Message =
  | { is: "ask"; id: number; verb: string; ask: unknown }
  | { is: "answer"; id: number; answer: unknown }
  | { is: "error"; id: number; code: ErrorCode; message: string; next?: string };

interface Unanswered {
  settle(message: Extract<Message, { is: "answer" | "error" }> | GlassError): void;
}

/** Questions and answers over a MessagePort, in both directions. Trusted: both ends are this program. */
export function createLink<Local extends Verbs, Remote extends Verbs>(
  port: MessagePort,
  options: LinkOptions<Local>,
): Link<Remote> {
  const unanswered = new Map<number, Unanswered>();
  let nextId = 1;
  let gone = false;

  const noAnswer = (why: string): GlassError =>
    new GlassError("store_unavailable", `${options.peer} ${why}`, { next: "Try again in a moment." });

  const send = (message: Message): void => {
    if (!gone) port.postMessage(message);
  };

  const answer = async (id: number, verb: string, ask: unknown): Promise<void> => {
    const handler: ((ask: unknown) => unknown) | undefined = options.handlers[verb];
    try {
      if (handler === undefined) throw new Error(`no such verb: ${verb}`);
      send({ is: "answer", id, answer: await handler(ask) });
    } catch (error) {
      if (error instanceof GlassError) {
        const next = error.next === undefined ? {} : { next: error.next };
        send({ is: "error", id, code: error.code, message: error.message, ...next });
        return;
      }
      options.onDefect(verb, error);
      send({ is: "error", id, code: "internal", message: "a defect in Glasskey; the server's output has the details" });
    }
  };

  port.on("message", (message: Message) => {
    if (message.is === "ask") {
      void answer(message.id, message.verb, message.ask);
      return;
    }
    const waiting = unanswered.get(message.id);
    unanswered.delete(message.id);
    waiting?.settle(message);
  });
  port.on("messageerror", (error) => options.onDefect("messageerror", error));
  port.on("close", () => {
    if (gone) return;
    gone = true;
    const waiting = [...unanswered.values()];
    unanswered.clear();
    for (const one of waiting) one.settle(noAnswer("is gone"));
    options.onGone?.();
  });

  const ask = <K extends keyof Remote & string>(
    verb: K,
    payload: Remote[K]["ask"],
    { timeoutMs, late, must = false }: AskOptions<Remote[K]["answer"]> = {},
  ): Promise<Remote[K]["answer"]> =>
    new Promise<Remote[K]["answer"]>((resolve, reject) => {
      if (gone) return reject(noAnswer("is gone"));
      if (!must && unanswered.size >= options.maxUnanswered) return reject(noAnswer("is overloaded"));
      const id = nextId++;
      let timedOut = false;
      const timer =
        timeoutMs === undefined
          ? undefined
          : setTimeout(() => {
              timedOut = true;
              reject(noAnswer("does not answer"));
            }, timeoutMs);
      unanswered.set(id, {
        settle(outcome) {
          clearTimeout(timer);
          if (outcome instanceof GlassError) reject(outcome);
          else if (outcome.is === "error") reject(unpack(outcome));
          else if (timedOut) late?.(outcome.answer);
          else resolve(outcome.answer);
        },
      });
      try {
        send({ is: "ask", id, verb, ask: payload });
      } catch (error) {
        unanswered.delete(id);
        clearTimeout(timer);
        reject(new GlassError("internal", `${verb} cannot be sent to ${options.peer}`, { cause: error }));
      }
    });

  return {
    ask,
    tell(verb, payload) {
      if (gone || unanswered.size >= options.maxUnanswered) return false;
      ask(verb, payload).catch((error: unknown) => {
        if (!gone) options.onDefect(verb, error);
      });
      return true;
    },
    get isGone() {
      return gone;
    },
    close: () => port.close(),
  };
}

function unpack(message: Extract<Message, { is: "error" }>): GlassError {
  const code = isErrorCode(message.code) ? message.code : "internal";
  return new GlassError(code, message.message, message.next === undefined ? {} : { next: message.next });
}
